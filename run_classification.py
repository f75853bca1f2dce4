#!/usr/bin/env python
"""
Trains, evaluates and applies HF-Mamba on posts made of text and images.

    python run_classification.py quickstart
    python run_classification.py recipes/quickstart.yaml --seed 1 --output_dir outputs/seed1
    python run_classification.py --do_train --do_eval --train_file posts.csv --image_dir photos --output_dir mine
    python run_classification.py --do_predict --model_name_or_path mine --test_file new.csv --output_dir new
    torchrun --nproc_per_node 2 run_classification.py quickstart
    accelerate launch run_classification.py quickstart

The recipe (YAML or JSON) comes first, then the flags, which win. `--help` lists them all. Mistakes are told in a line;
HF_MAMBA_TRACEBACK=1 in the environment shows where they came from. This file only orchestrates: the parts are in
classification/, the model in modeling_hf_mamba.py.
"""

import importlib.util
import logging
import os
import sys
from pathlib import Path


if __package__ in (None, ""):  # run as a script: this very folder is the package, installed or not
    _spec = importlib.util.spec_from_file_location("hf_mamba", Path(__file__).parent / "__init__.py")
    sys.modules["hf_mamba"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["hf_mamba"])
    __package__ = "hf_mamba"

from accelerate.utils import broadcast_object_list
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, Trainer, set_seed
from transformers.trainer_callback import ProgressCallback
from transformers.utils.logging import disable_progress_bar

from .classification.arguments import parse_arguments
from .classification.builtin_data import write_builtin_posts
from .classification.data import PostCollator, check_images, load_posts
from .classification.metrics import compute_metrics_for_trainer
from .classification.output_dir import prepare_output_dir
from .classification.reports import ReadableProgress, summary, write_model_card, write_predictions, write_results
from .classification.vocabulary import train_wordpiece
from .configuration_hf_mamba import HFMambaConfig
from .modeling_hf_mamba import HFMambaForSequenceClassification
from .processing_hf_mamba import HFMambaImageProcessor, HFMambaProcessor, build_wordpiece_tokenizer


logger = logging.getLogger(__name__)

BUILTIN = "builtin"  # the --dataset_name of the posts this project draws itself

# Config fields that may differ from the loaded checkpoint's: they have no weights.
_FREE_FIELDS = {"hidden_dropout", "classifier_dropout", "label_smoothing", "class_weights"}


def main(argv=None):
    """Runs the steps that the flags ask for. Returns the metrics, {"validation": {...}, "test": {...}}."""
    model_args, data_args, training_args, recipe = parse_arguments(sys.argv[1:] if argv is None else argv)
    check_request(model_args, training_args)
    set_up_logging(training_args)

    checkpoint = [None]  # to resume from; the main process decides, for it also writes
    if training_args.do_train and training_args.process_index == 0:
        checkpoint = [prepare_output_dir(training_args, recipe)]
    checkpoint = broadcast_object_list(checkpoint)[0]
    posts, processor, model = load_everything(model_args, data_args, training_args)
    trainer = build_trainer(posts, processor, model, data_args, training_args)

    train_metrics = train(trainer, checkpoint) if training_args.do_train else {}
    metrics_of_split = {}
    if training_args.do_eval:
        metrics_of_split["validation"] = evaluate(trainer, posts)
    if training_args.do_predict:
        metrics_of_split["test"] = predict(trainer, posts)
    metrics_of_split = {split: metrics for split, metrics in metrics_of_split.items() if metrics}

    if trainer.is_world_process_zero():
        if training_args.do_train:
            write_model_card(
                training_args.output_dir,
                model=model,
                processor=processor,
                posts=posts,
                metrics_of_split=metrics_of_split,
                recipe=recipe,
                seed=training_args.seed,
            )
        write_results(training_args.output_dir, {"train": train_metrics, **metrics_of_split})
        print(
            summary(
                metrics_of_split,
                num_parameters=model.num_parameters(),
                posts=posts,
                train_metrics=train_metrics,
                output_dir=training_args.output_dir,
            )
        )
    if training_args.push_to_hub:
        trainer.push_to_hub()
    return metrics_of_split


def check_request(model_args, training_args):
    """Refuses what can't work before anything is read."""
    if not (training_args.do_train or training_args.do_eval or training_args.do_predict):
        raise ValueError("Nothing to do: give --do_train, --do_eval or --do_predict, or a recipe that does.")
    if not training_args.do_train and model_args.model_name_or_path is None:
        raise ValueError(
            "--do_eval and --do_predict without --do_train need a trained checkpoint: give --model_name_or_path."
        )
    if training_args.remove_unused_columns:
        raise ValueError("--remove_unused_columns must stay False: text and images are read when a batch is made.")


def set_up_logging(training_args):
    """The main process says what it does, the others only warn; progress bars are Trainer's and the data's."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_mamba").setLevel(logging.INFO if training_args.process_index == 0 else logging.WARNING)
    disable_progress_bar()  # transformers' own for each saved file


def load_everything(model_args, data_args, training_args):
    """The posts, the processor that turns them into tensors, and the model, in step with each other."""
    set_seed(training_args.seed)
    checkpoint, label_names = model_args.model_name_or_path, None
    if checkpoint is not None:
        processor, model = load_checkpoint(model_args)
        label_names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    with training_args.main_process_first(desc="posts"):
        if data_args.dataset_name == BUILTIN:
            folder = Path(training_args.output_dir).parent / "builtin_posts"
            data_args.dataset_name = str(write_builtin_posts(folder))
        posts = load_posts(data_args, seed=training_args.seed, label_names=label_names)
        if training_args.process_index == 0:
            check_images(posts, progress=not training_args.disable_tqdm)
    if checkpoint is None:
        processor, model = new_processor_and_model(model_args, data_args, posts)
    return posts, processor, model


def load_checkpoint(model_args):
    """Processor and model of --model_name_or_path, checked against the other model flags."""
    checkpoint = model_args.model_name_or_path
    try:
        config = HFMambaConfig.from_pretrained(checkpoint)
        processor = HFMambaProcessor.from_pretrained(checkpoint)
    except OSError as error:
        raise ValueError(
            f"--model_name_or_path {checkpoint} is neither a checkpoint's folder nor to be had from the Hub: {error}"
        ) from None
    if config.model_type != HFMambaConfig.model_type:
        raise ValueError(f"--model_name_or_path {checkpoint} is a {config.model_type!r} checkpoint, not an HF-Mamba.")
    overrides = model_args.config_overrides()
    for name in overrides.keys() - _FREE_FIELDS:
        if overrides[name] != getattr(config, name):
            raise ValueError(
                f"--{name} {overrides[name]} doesn't fit the checkpoint {checkpoint}, which has {name}="
                f"{getattr(config, name)!r}: leave the flag out, or train a new model without --model_name_or_path."
            )
    free = {name: overrides[name] for name in overrides.keys() & _FREE_FIELDS}
    model = HFMambaForSequenceClassification.from_pretrained(
        checkpoint, scan_implementation=model_args.scan_implementation, **free
    )
    return processor, model


def new_processor_and_model(model_args, data_args, posts):
    """A processor whose vocabulary comes from the training split, and a model of its size with fresh weights."""
    if data_args.tokenizer_name is not None:
        tokenizer = AutoTokenizer.from_pretrained(data_args.tokenizer_name, model_max_length=data_args.max_seq_length)
    else:
        texts = [text for text in posts.column("train", "text") if text]
        vocabulary = train_wordpiece(texts, vocab_size=data_args.vocab_size) if texts else ["[PAD]", "[UNK]"]
        tokenizer = build_wordpiece_tokenizer(vocabulary, max_length=data_args.max_seq_length)
    config = HFMambaConfig(
        **model_args.config_overrides(),
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(posts.label_names)),
        problem_type="single_label_classification",
    )
    image_processor = HFMambaImageProcessor(
        size={"height": config.image_size, "width": config.image_size}, patch_size=config.patch_size
    )
    model = HFMambaForSequenceClassification(config, scan_implementation=model_args.scan_implementation)
    return HFMambaProcessor(image_processor=image_processor, tokenizer=tokenizer), model


def build_trainer(posts, processor, model, data_args, training_args):
    """transformers' Trainer over the posts."""
    training_args.label_names = ["labels"]
    trainer = Trainer(
        model=model,
        args=training_args,
        train_dataset=posts.splits.get("train") if training_args.do_train else None,
        eval_dataset=posts.splits.get("validation"),
        data_collator=PostCollator(processor, data_args.modalities),
        processing_class=processor,
        compute_metrics=compute_metrics_for_trainer(posts.label_names, posts.majority_label),
    )
    if not training_args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ReadableProgress)
    return trainer


def train(trainer, checkpoint):
    """Trains (from `checkpoint` if there is one) and saves the model, its processor and its code."""
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("train", result.metrics, combined=False)
    return result.metrics


def evaluate(trainer, posts):
    """Metrics on the validation split."""
    if "validation" not in posts.splits:
        raise ValueError(
            "--do_eval needs a validation split: give --validation_file, or --do_predict for a test file."
        )
    metrics = trainer.evaluate(posts.splits["validation"], metric_key_prefix="validation")
    trainer.save_metrics("validation", metrics, combined=False)
    return without_prefix(metrics, "validation")


def predict(trainer, posts):
    """Predictions of the test split in a csv file, and metrics where its labels are known."""
    if "test" not in posts.splits:
        raise ValueError("--do_predict needs a test split: give --test_file, or a data set that has one.")
    test = posts.splits["test"]
    output = trainer.predict(test, metric_key_prefix="test")
    labels = posts.column("test", "label") if "label" in test.column_names else None
    if trainer.is_world_process_zero():
        path = Path(trainer.args.output_dir) / "predictions.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_predictions(path, posts.column("test", "id"), output.predictions, posts.label_names, labels)
    if labels is None:
        return {}
    trainer.save_metrics("test", output.metrics, combined=False)
    return without_prefix(output.metrics, "test")


def without_prefix(metrics, prefix):
    """Trainer's {"test_accuracy": ...} as {"accuracy": ...}."""
    return {name.removeprefix(f"{prefix}_"): value for name, value in metrics.items()}


def run():
    """The command line: what a user can mend is one line and exit code 1, never a traceback."""
    try:
        main()
    except (ValueError, OSError, StrictDataclassError) as error:
        if os.environ.get("HF_MAMBA_TRACEBACK"):
            raise
        message = str(error).strip()
        raise SystemExit(f"error: {message}") from None


if __name__ == "__main__":
    run()
