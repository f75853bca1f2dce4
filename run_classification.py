#!/usr/bin/env python
"""
Trains, evaluates and applies HF-Mamba on posts made of text and images.

    python run_classification.py quickstart
    python run_classification.py recipes/quickstart.yaml --seed 1 --output_dir outputs/seed1
    python run_classification.py --do_train --do_eval --train_file posts.csv --image_dir photos --output_dir mine
    python run_classification.py --do_audit --train_file train.csv --test_file test.csv --output_dir outputs/audit
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

import torch
from accelerate.utils import broadcast_object_list
from huggingface_hub.errors import StrictDataclassError
from transformers import set_seed
from transformers.trainer_callback import ProgressCallback
from transformers.utils.logging import disable_progress_bar

from .classification.audit.audit import audit_posts, load_for_audit
from .classification.audit.report import write_audit
from .classification.data.collator import PostCollator
from .classification.data.image_cache import open_image_cache
from .classification.data.images import find_bad_images
from .classification.data.labels import REGRESSION, SINGLE, label_id
from .classification.data.loading import load_posts
from .classification.data.messy_posts import apply_on_bad_image, check_some_are_left
from .classification.data.modalities import ModalityDropout
from .classification.data.sets.builtin import LABELS, write_builtin_posts
from .classification.evaluation.calibration import CALIBRATE_METRICS
from .classification.evaluation.metrics import (
    DEFAULT_METRIC,
    LOWER_IS_BETTER,
    METRIC_NAMES,
    baseline_of_posts,
    compute_metrics_for_trainer,
    metrics_for,
)
from .classification.evaluation.predictions import write_predictions
from .classification.evaluation.split_report import BASELINE_KEYS, evaluate_split, name_baseline, write_report
from .classification.reporting.model_card import write_model_card, write_results
from .classification.reporting.tables import summarise_run
from .classification.runs.arguments import parse_arguments
from .classification.runs.calibration import calibrate, check_calibration
from .classification.runs.checkpoints import (
    baseline_of_checkpoint,
    load_checkpoint,
    new_image_processor,
    new_processor_and_model,
    new_tokenizer,
    problem_type_of,
)
from .classification.runs.folds import check_folds, run_folds
from .classification.runs.output_dir import check_output_dir, start_run
from .classification.runs.search import check_search, search
from .classification.runs.seeds import check_seeds, run_seeds
from .classification.share import share_run
from .classification.support.extras import check_trackers
from .classification.support.processes import warn_of_one_process
from .classification.support.run_files import PREDICTIONS_FORMATS
from .classification.training.callbacks import (
    EpochCounter,
    ReadableProgress,
    best_epoch,
    check_early_stopping,
    had_stopped,
    set_tensorboard_folder,
    training_callbacks,
)
from .classification.training.class_weights import resolve_class_weights
from .classification.training.targets import TargetScale
from .classification.training.trainer import PostTrainer


logger = logging.getLogger("hf_mamba.run_classification")  # also when run as a script

# The --dataset_name of the posts this project draws itself, and their labels
BUILTIN = {"builtin" if labels == "binary" else f"builtin:{labels}": labels for labels in LABELS}


def main(argv=None):
    """Runs the steps that the flags ask for. Returns the metrics, {"validation": {...}, "test": {...}}."""
    model_args, data_args, training_args, recipe = parse_arguments(sys.argv[1:] if argv is None else argv)
    check_request(model_args, training_args)
    check_folds(training_args, data_args)
    set_up_logging(training_args)
    if data_args.folds is not None and data_args.fold is None:
        return run_folds(main, training_args, data_args, recipe)
    if training_args.seeds is not None:
        return run_seeds(main, training_args, recipe)
    if training_args.search_trials is not None:
        return search(main, training_args, recipe)

    checkpoint = [None]  # to resume from; the main process decides, for it also writes
    if training_args.process_index == 0:
        checkpoint = [check_output_dir(training_args, model_args.model_name_or_path, recipe)]
    checkpoint = broadcast_object_list(checkpoint)[0]
    if training_args.do_audit:
        audit(model_args, data_args, training_args)
    if not (training_args.do_train or training_args.do_eval or training_args.do_predict):
        return {}
    posts, processor, model = load_everything(model_args, data_args, training_args)
    saved_calibration = check_calibration(posts, training_args, model_args.model_name_or_path)
    metrics = build_metrics(posts, model_args, data_args)
    trainer = build_trainer(posts, processor, model, metrics, training_args)
    if training_args.do_train and checkpoint is None and trainer.is_world_process_zero():
        start_run(training_args, recipe)

    train_metrics = train(trainer, posts, checkpoint) if training_args.do_train else {}
    metrics.calibration = calibrate(trainer, posts, saved_calibration)
    steps = {"validation": training_args.do_eval, "test": training_args.do_predict}
    reports = {split: evaluate(trainer, posts, split, metrics) for split, asked in steps.items() if asked}
    reports = {split: report for split, report in reports.items() if report}
    metrics_of_split = {split: report["metrics"] for split, report in reports.items()}

    if trainer.is_world_process_zero():
        if training_args.do_train:
            write_model_card(
                training_args.output_dir,
                model=model,
                processor=processor,
                posts=posts,
                reports=reports,
                recipe=recipe,
                seed=training_args.seed,
                positive_label=getattr(metrics, "positive_label", None),
                calibration=metrics.calibration,
            )
        write_results(training_args.output_dir, {"train": train_metrics, **metrics_of_split})
        print(
            summarise_run(
                reports,
                num_parameters=model.num_parameters(),
                posts=posts,
                train_metrics=train_metrics,
                output_dir=training_args.output_dir,
                positive_label=getattr(metrics, "positive_label", None),
            )
        )
        if training_args.push_to_hub:
            push(trainer, model, processor)
    return metrics_of_split


def check_request(model_args, training_args):
    """Refuses what can't work before anything is read."""
    runs = training_args.do_train or training_args.do_eval or training_args.do_predict
    if not (runs or training_args.do_audit):
        raise ValueError(
            "Nothing to do: give --do_train, --do_eval, --do_predict or --do_audit, or a recipe that does."
        )
    if training_args.do_audit and (training_args.seeds is not None or training_args.search_trials is not None):
        raise ValueError("--do_audit looks at the posts, which --seeds and --search_trials share: audit them first.")
    if runs and not training_args.do_train and model_args.model_name_or_path is None:
        raise ValueError(
            "--do_eval and --do_predict without --do_train need a trained checkpoint: give --model_name_or_path."
        )
    if training_args.push_to_hub and not training_args.do_train:
        raise ValueError(
            "--push_to_hub goes with --do_train. A finished run is shared by `python -m hf_mamba.classification.share "
            "FOLDER NAME`."
        )
    if training_args.push_to_hub and training_args.hub_strategy in ("checkpoint", "all_checkpoints"):
        raise ValueError(
            f"--hub_strategy {training_args.hub_strategy.value} would upload during training what is not checked: "
            "leave it out, --push_to_hub uploads the finished run."
        )
    if training_args.remove_unused_columns:
        raise ValueError("--remove_unused_columns must stay False: text and images are read when a batch is made.")
    if not 0 <= training_args.modality_dropout <= 1:
        raise ValueError(f"--modality_dropout {training_args.modality_dropout}: give a share of the posts, 0 to 1.")
    choices = {
        "predictions_format": PREDICTIONS_FORMATS,
        "report_withheld": ("none", "test", "all"),
        "calibrate_metric": CALIBRATE_METRICS,
    }
    for flag, known in choices.items():
        if (value := getattr(training_args, flag)) not in known:
            raise ValueError(f"--{flag} {value}: give {', '.join(known[:-1])} or {known[-1]}.")
    best = training_args.metric_for_best_model
    known = ["auto", "loss", *dict.fromkeys(name for names in METRIC_NAMES.values() for name in names)]
    if training_args.load_best_model_at_end and best not in known:
        raise ValueError(f"--metric_for_best_model is {best!r}, but must be one of {', '.join(known)}.")
    check_early_stopping(training_args)
    check_trackers(training_args.report_to)
    check_seeds(training_args)
    check_search(training_args, model_args)


def set_up_logging(training_args):
    """The main process says what it does, the others only warn; progress bars are Trainer's and the data's."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_mamba").setLevel(logging.INFO if training_args.process_index == 0 else logging.WARNING)
    warn_of_one_process(training_args.world_size)
    disable_progress_bar()  # transformers' own for each saved file


def load_everything(model_args, data_args, training_args):
    """The posts, the processor that turns them into tensors, and the model."""
    if data_args.streaming and training_args.do_train and training_args.max_steps < 1:
        raise ValueError("--streaming: a stream has no known end, so say by --max_steps how long to train.")
    if data_args.streaming and training_args.modality_dropout:
        raise ValueError("--modality_dropout needs posts that can be counted: leave it out with --streaming.")
    # Each process reads a stream and takes its rows: batches of different lengths can't be joined to be handed out
    training_args.accelerator_config.dispatch_batches = False
    set_seed(training_args.seed)
    label_names, problem_type = None, model_args.problem_type
    if model_args.model_name_or_path is not None:
        processor, model = load_checkpoint(model_args, data_args)
        label_names = [model.config.id2label[i] for i in range(model.config.num_labels)]
        problem_type = problem_type_of(model.config)
        image_processor = processor.image_processor
    else:
        image_processor = new_image_processor(model_args, data_args)
    with training_args.main_process_first(desc="posts"):
        draw_builtin_posts(data_args, training_args)
        posts = load_posts(
            data_args,
            seed=training_args.seed if data_args.split_seed is None else data_args.split_seed,
            label_names=label_names,
            problem_type=problem_type,
            wanted=wanted_splits(training_args),
        )
        check_splits(posts, training_args)
        posts.image_cache = open_image_cache(data_args, image_processor)
    check_all_images(posts, data_args, training_args)
    if model_args.model_name_or_path is None:
        processor, model = new_processor_and_model(model_args, data_args, posts)
    if model_args.class_weights is not None:  # else a checkpoint keeps its own
        model.config.class_weights = resolve_class_weights(model_args.class_weights, posts)
        logger.info(f"Class weights: {model.config.class_weights or 'none'}")
    choose_best_by(posts.problem_type, training_args)
    return posts, processor, model


def draw_builtin_posts(data_args, training_args):
    """Puts the folder of the built-in posts in the place of their name, drawn there if they aren't yet."""
    if data_args.dataset_name in BUILTIN:
        labels = BUILTIN[data_args.dataset_name]
        folder = Path(training_args.output_dir).parent / f"builtin_posts_{labels}".removesuffix("_binary")
        logger.info(f"The built-in posts are in {folder}, drawn there if they aren't yet.")
        progress = not training_args.disable_tqdm
        data_args.dataset_name = str(write_builtin_posts(folder, labels=labels, progress=progress))


def audit(model_args, data_args, training_args):
    """The main process audits the posts, as they are before a model or the flags for bad pictures change them."""
    with training_args.main_process_first(desc="audit"):
        draw_builtin_posts(data_args, training_args)
        if training_args.process_index != 0:
            return
        seed = training_args.seed if data_args.split_seed is None else data_args.split_seed
        posts = load_for_audit(data_args, seed=seed, problem_type=model_args.problem_type)
        tokenizer = new_tokenizer(data_args, posts) if "train" in posts.splits else None
        found = audit_posts(posts, tokenizer, progress=not training_args.disable_tqdm)
        print(write_audit(training_args.output_dir, found))


def check_all_images(posts, data_args, training_args):
    """The main process tries every picture; all go on without the same ones."""
    bad = [None]
    if training_args.process_index == 0:
        bad = [find_bad_images(posts, progress=not training_args.disable_tqdm)]
    bad = broadcast_object_list(bad)[0]
    if training_args.process_index != 0 and posts.image_cache is not None:
        posts.image_cache.load()
    apply_on_bad_image(posts, bad, on_bad_image=data_args.on_bad_image, on_empty_post=data_args.on_empty_post)
    check_some_are_left(posts)


def wanted_splits(training_args):
    """The splits that the steps asked for use."""
    steps = {
        "train": training_args.do_train,
        "validation": training_args.do_eval or training_args.eval_strategy != "no" or training_args.calibrate,
        "test": training_args.do_predict,
    }
    return [split for split, wanted in steps.items() if wanted]


def choose_best_by(problem_type, training_args):
    """Puts the problem type's own metric in place of --metric_for_best_model auto, and refuses one it doesn't have."""
    best = training_args.metric_for_best_model
    if best == "auto":
        best = training_args.metric_for_best_model = DEFAULT_METRIC[problem_type]
        training_args.greater_is_better = best not in LOWER_IS_BETTER
    known = ["loss", *METRIC_NAMES[problem_type]]
    if training_args.load_best_model_at_end and best not in known:
        raise ValueError(
            f"--metric_for_best_model is {best!r}, but for {problem_type} must be one of {', '.join(known)}."
        )


def check_splits(posts, training_args):
    """Every step needs its split; training without validation posts goes without evaluation."""
    if training_args.do_eval and "validation" not in posts.splits:
        raise ValueError(
            "--do_eval needs a validation split: give --validation_file, or --do_predict for a test file."
        )
    if training_args.do_predict and "test" not in posts.splits:
        raise ValueError(
            "--do_predict needs a test split: give --test_file, or --test_split 0.1 to set a tenth of train aside."
        )
    if training_args.eval_strategy != "no" and "validation" not in posts.splits:
        if training_args.early_stopping_patience is not None:
            raise ValueError("--early_stopping_patience needs validation posts: give some, or leave the flag out.")
        logger.info("There are no validation posts: training goes on to its last pass, which is what is saved.")
        training_args.eval_strategy, training_args.load_best_model_at_end = "no", False


def build_metrics(posts, model_args, data_args):
    """The metrics of the problem type, beside the baseline of the training posts or of the checkpoint's training."""
    baseline = baseline_of_posts(posts)
    if baseline is None:
        baseline = baseline_of_checkpoint(model_args.model_name_or_path, posts.problem_type, posts.label_names)
    positive_label = None
    if data_args.positive_label is not None:
        if posts.problem_type != SINGLE:
            raise ValueError(
                f"--positive_label is for one label per post, but the problem type is {posts.problem_type}."
            )
        positive_label = label_id(data_args.positive_label, posts.label_names, "--positive_label")
    return metrics_for(posts.problem_type, posts.label_names, baseline=baseline, positive_label=positive_label)


def build_trainer(posts, processor, model, metrics, training_args):
    """The Trainer over the posts."""
    train_posts = posts.splits.get("train") if training_args.do_train else None
    if train_posts is not None and training_args.modality_dropout:
        train_posts = ModalityDropout(train_posts, training_args.modality_dropout, training_args.seed)
    training_args.label_names = ["labels"]
    trainer = PostTrainer(
        model=model,
        args=training_args,
        train_dataset=train_posts,
        eval_dataset=posts.splits.get("validation"),
        data_collator=PostCollator(
            processor, posts.image_cache, as_bytes=True, pad_to_max_length=training_args.pad_to_max_length
        ),
        processing_class=processor,
        compute_metrics=compute_metrics_for_trainer(metrics),
    )
    if posts.problem_type == REGRESSION and train_posts is not None:
        trainer.target_scale = TargetScale.of(posts.column("train", "label"))
    if isinstance(train_posts, ModalityDropout):
        trainer.add_callback(EpochCounter(train_posts))
    for callback in training_callbacks(training_args):
        trainer.add_callback(callback)
    set_tensorboard_folder(trainer)
    if not training_args.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(ReadableProgress)
    return trainer


def train(trainer, posts, checkpoint):
    """Trains (from `checkpoint` if there is one) and saves the model, its processor and its code."""
    if hasattr(trainer.model, "describe_scan"):  # a baseline's network has none
        logger.info(trainer.model.describe_scan())
    if checkpoint is not None and had_stopped(checkpoint):
        trainer.args.num_train_epochs, trainer.args.max_steps = 0, -1
    result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(_internal_call=True)  # else it would push already, before there is a card
    trainer.save_state()
    baseline = name_baseline(baseline_of_posts(posts), posts.problem_type, posts.label_names)
    metrics = {
        **result.metrics,
        **{f"train_{name}": value for name, value in best_epoch(trainer.args, trainer.state).items()},
        BASELINE_KEYS[posts.problem_type]: baseline,
    }
    trainer.save_metrics("train", metrics, combined=False)
    return metrics


def evaluate(trainer, posts, split, metrics):
    """
    The report of a split, None if its labels are unknown. The main process writes it down, with the metrics and, of
    the test split, the predictions.
    """
    args = trainer.args
    with_withheld = args.report_withheld == "all" or args.report_withheld == split
    report, logits = evaluate_split(trainer, posts, split, metrics, with_withheld=with_withheld)
    if not trainer.is_world_process_zero():
        return report
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if split == "test":
        labels = None if report is None else posts.column(split, "label")
        path = folder / f"predictions.{args.predictions_format}"
        told = posts.label_names, labels, posts.problem_type, metrics.calibration
        write_predictions(path, posts.column(split, "id"), logits, *told)
    if report is not None:
        trainer.save_metrics(split, {f"{split}_{k}": v for k, v in report["metrics"].items()}, combined=False)
        write_report(folder, report)
    return report


def push(trainer, model, processor):
    """Uploads the finished run if it works for a stranger: weights, processor, code, card, results, recipe."""
    args = trainer.args
    info = share_run(args.output_dir, model, processor, trainer.hub_model_id, revision=args.hub_revision)
    logger.info(f"Checked in a fresh process and uploaded: {info.commit_url}")


def run():
    """The command line: what a user can mend is one line and exit code 1, never a traceback."""
    try:
        main()
    except (ValueError, OSError, StrictDataclassError) as error:
        if os.environ.get("HF_MAMBA_TRACEBACK"):
            raise
        raise SystemExit(f"error: {str(error).strip()}") from None
    except KeyboardInterrupt:
        print("\nInterrupted. The same command resumes from the last checkpoint.", file=sys.stderr)
        raise SystemExit(130) from None
    finally:  # a process that ends with its group's threads still running may be aborted, after all was done
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run()
