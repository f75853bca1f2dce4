"""transformers' Trainer, as run_classification.py needs it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from ...modeling_hf_mamba import classification_loss
from ...processing_hf_mamba import HFMambaImageProcessor, HFMambaProcessor, scale_patches
from ..evaluation.metrics import logits_of
from ..support.hub import check_may_write, explain_push_error
from .targets import ScaledTargetsTrainer


class PixelScale:
    """
    Turns pixel_values (b, m, patch_dim) of uint8 into what the image processor would have made of them, bit for bit.

    Args:
        image_processor: an HFMambaImageProcessor
        pixels: such pixel_values; later ones have their width and device
    """

    def __init__(self, image_processor: HFMambaImageProcessor, pixels: torch.Tensor) -> None:
        self.factor = image_processor.rescale_factor if image_processor.do_rescale else None
        statistics = (image_processor.image_mean, image_processor.image_std) if image_processor.do_normalize else ()
        self.statistics = [
            torch.from_numpy(np.resize(np.asarray(statistic, dtype=np.float32), pixels.shape[-1])).to(pixels.device)
            for statistic in statistics
        ]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        floats = pixels.float()
        scale_patches(floats, self.factor, *self.statistics)
        return floats


class PostTrainer(ScaledTargetsTrainer):
    """transformers' Trainer for posts: images scaled where the model is, an exact loss, our own card and push."""

    pixel_scale: PixelScale | None = None  # once there was an image

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leaves the card to `write_model_card`: Trainer's would be about a fine-tuned text model."""

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        Creates the repository before anything is trained, and checks that uploading will be possible.

        Raises:
            ValueError: it won't; says why and what to do.
        """
        try:
            super().init_hf_repo(token=token, private=private)
            if self.is_world_process_zero():
                check_may_write(str(self.hub_model_id))
        except Exception as error:
            raise ValueError(f"--push_to_hub: {explain_push_error(error)}. Nothing was trained yet.") from error

    def _push_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Uploads nothing while training: only a checked run is uploaded, at the end."""

    def get_eval_dataloader(self, *args: Any) -> DataLoader:
        """Trainer's, with all posts."""
        with no_post_dropped(self.args):
            return super().get_eval_dataloader(*args)

    def get_test_dataloader(self, *args: Any) -> DataLoader:
        """Trainer's, with all posts."""
        with no_post_dropped(self.args):
            return super().get_test_dataloader(*args)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Trainer's, where images that came as bytes become floats on the model's device."""
        inputs = super()._prepare_inputs(inputs)
        pixels = inputs.get("pixel_values")
        if pixels is not None and pixels.dtype == torch.uint8:
            processor = cast(HFMambaProcessor, self.processing_class)
            self.pixel_scale = self.pixel_scale or PixelScale(processor.image_processor, pixels)
            inputs["pixel_values"] = self.pixel_scale(pixels)
        return inputs

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Trainer's, with a loss that doesn't depend on how the posts fall into batches and processes."""
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self.label_smoother is not None:  # which has a loss of its own
            return output
        return with_exact_loss(output, cast(PreTrainedModel, self.model).config, metric_key_prefix)


def with_exact_loss(output: EvalLoopOutput, config: PreTrainedConfig, prefix: str) -> EvalLoopOutput:
    """
    The output with the loss over all posts at once in place of Trainer's mean over batches, in which the posts that
    fill up the last batch of several processes count too.

    Args:
        output: EvalLoopOutput; returned as it is where it has no loss
        config: the model's
        prefix: of the metrics' names
    """
    name = f"{prefix}_loss"
    if output.metrics is None or name not in output.metrics or output.predictions is None:
        return output
    logits = torch.from_numpy(logits_of(output.predictions))
    loss = classification_loss(logits, torch.from_numpy(output.label_ids), config)
    return output._replace(metrics={**output.metrics, name: loss.item()})


@contextmanager
def no_post_dropped(training_args: TrainingArguments) -> Iterator[None]:
    """
    --dataloader_drop_last is about training: Trainer would leave the last posts out of predictions as well. It reads
    the flag from its arguments only, which are therefore changed for the time being.
    """
    asked, training_args.dataloader_drop_last = training_args.dataloader_drop_last, False
    try:
        yield
    finally:
        training_args.dataloader_drop_last = asked
