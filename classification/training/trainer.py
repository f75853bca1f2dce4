"""transformers' Trainer, as run_classification.py needs it."""

from contextlib import contextmanager

import numpy as np
import torch
from transformers import Trainer

from ...modeling_hf_mamba import classification_loss
from ...processing_hf_mamba import scale_patches
from ..evaluation.metrics import logits_of
from ..support.hub import check_may_write, explain_push_error
from .targets import ScaledTargets


class PixelScale:
    """
    Makes pixel_values (b, m, patch_dim) of uint8 what the image processor would have made of them, with the same bits.

    Args:
        image_processor: an HFMambaImageProcessor
        pixels: such pixel_values; those to come have their width and device
    """

    def __init__(self, image_processor, pixels):
        self.factor = image_processor.rescale_factor if image_processor.do_rescale else None
        statistics = (image_processor.image_mean, image_processor.image_std) if image_processor.do_normalize else ()
        self.statistics = [
            torch.from_numpy(np.resize(np.float32(statistic), pixels.shape[-1])).to(pixels.device)
            for statistic in statistics
        ]

    def __call__(self, pixels):
        floats = pixels.float()
        scale_patches(floats, self.factor, *self.statistics)
        return floats


class PostTrainer(ScaledTargets, Trainer):
    """transformers' Trainer, which would replace our model card by one about a fine-tuned text model."""

    pixel_scale = None  # once there was a picture

    def create_model_card(self, *args, **kwargs):
        """Leaves the card to `write_model_card`."""

    def init_hf_repo(self, token=None, private=None):
        """Makes the repo before anything is trained, and finds out whether uploading will be possible."""
        try:
            super().init_hf_repo(token=token, private=private)
            if self.is_world_process_zero():
                check_may_write(self.hub_model_id)
        except Exception as error:
            raise ValueError(f"--push_to_hub: {explain_push_error(error)}. Nothing was trained yet.") from error

    def _push_from_checkpoint(self, *args, **kwargs):
        """Uploads nothing while training: what leaves has been checked, which `push` does at the end."""

    def get_eval_dataloader(self, *args):
        """Trainer's, with all posts."""
        with no_post_dropped(self.args):
            return super().get_eval_dataloader(*args)

    def get_test_dataloader(self, *args):
        """Trainer's, with all posts."""
        with no_post_dropped(self.args):
            return super().get_test_dataloader(*args)

    def _prepare_inputs(self, inputs):
        """Trainer's, and pictures that came as bytes made floats where the model is."""
        inputs = super()._prepare_inputs(inputs)
        pixels = inputs.get("pixel_values")
        if pixels is not None and pixels.dtype == torch.uint8:
            self.pixel_scale = self.pixel_scale or PixelScale(self.processing_class.image_processor, pixels)
            inputs["pixel_values"] = self.pixel_scale(pixels)
        return inputs

    def evaluation_loop(self, *args, metric_key_prefix="eval", **kwargs):
        """Trainer's, with a loss that doesn't depend on how the posts fall into batches and processes."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if self.label_smoother is None:  # which has a loss of its own
            set_exact_loss(output, self.model.config, metric_key_prefix)
        return output


def set_exact_loss(output, config, prefix):
    """
    Puts the loss over all posts at once in place of Trainer's mean over batches, in which posts that fill up the last
    batch of several processes count too.

    Args:
        output: EvalLoopOutput; unchanged where it has no loss
        config: the model's
        prefix: of the metrics' names
    """
    name = f"{prefix}_loss"
    logits = logits_of(output.predictions)
    if name in output.metrics and logits is not None:
        output.metrics[name] = classification_loss(
            torch.from_numpy(logits), torch.from_numpy(output.label_ids), config
        ).item()


@contextmanager
def no_post_dropped(training_args):
    """--dataloader_drop_last is about training: Trainer would leave the last posts out of predictions as well."""
    asked, training_args.dataloader_drop_last = training_args.dataloader_drop_last, False
    try:
        yield
    finally:
        training_args.dataloader_drop_last = asked
