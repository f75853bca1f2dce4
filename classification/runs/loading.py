"""What a run is made of: the posts that the flags name, the processor that turns them into tensors, and the model."""

import logging
from pathlib import Path
from typing import Any

from transformers import set_seed

from ...modeling_hf_mamba import HFMambaForSequenceClassification
from ...processing_hf_mamba import HFMambaProcessor
from ..data.arguments import DataArguments
from ..data.image_cache import open_image_cache
from ..data.images import find_bad_images
from ..data.loading import load_posts
from ..data.messy_posts import apply_on_bad_image, check_some_are_left
from ..data.posts import Posts
from ..data.sets.builtin import LABELS, write_builtin_posts
from ..evaluation.metrics import DEFAULT_METRIC, LOWER_IS_BETTER, METRIC_NAMES
from ..support.processes import on_main_process
from ..training.class_weights import resolve_class_weights
from .arguments import ClassificationTrainingArguments, ModelArguments, with_changes
from .checkpoints import load_checkpoint, new_image_processor, new_processor_and_model, problem_type_of


logger = logging.getLogger(__name__)

# The --dataset_name of the posts that this project generates, and their labels
BUILTIN = {"builtin" if labels == "binary" else f"builtin:{labels}": labels for labels in LABELS}


def with_builtin_posts(data_args: DataArguments, training_args: ClassificationTrainingArguments) -> DataArguments:
    """
    The flags with the folder of the built-in posts in place of their name, if that is what --dataset_name names. The
    main process generates the posts unless they are there.
    """
    if data_args.dataset_name not in BUILTIN:
        return data_args
    labels = BUILTIN[data_args.dataset_name]
    folder = Path(training_args.output_dir).parent / f"builtin_posts_{labels}".removesuffix("_binary")
    logger.info(f"The built-in posts are in {folder}, generated if they weren't yet.")
    with training_args.main_process_first(desc="built-in posts"):
        folder = write_builtin_posts(folder, labels=labels, progress=not training_args.disable_tqdm)
    return with_changes(data_args, dataset_name=str(folder))


def split_seed(data_args: DataArguments, training_args: ClassificationTrainingArguments) -> int:
    """What decides which posts are set aside: --split_seed, else --seed."""
    return training_args.seed if data_args.split_seed is None else data_args.split_seed


def wanted_splits(training_args: ClassificationTrainingArguments) -> list[str]:
    """The splits that the steps asked for use."""
    steps = {
        "train": training_args.do_train,
        "validation": training_args.do_eval or training_args.eval_strategy != "no" or training_args.calibrate,
        "test": training_args.do_predict,
    }
    return [split for split, wanted in steps.items() if wanted]


def load_everything(
    model_args: ModelArguments, data_args: DataArguments, training_args: ClassificationTrainingArguments
) -> tuple[Posts, HFMambaProcessor, HFMambaForSequenceClassification]:
    """
    The posts, the processor that turns them into tensors, and the model: --model_name_or_path or a new one.

    Raises:
        ValueError, FileNotFoundError: names what can't be read or doesn't fit, and what to do.
    """
    set_seed(training_args.seed)
    checkpoint, label_names, problem_type = None, None, model_args.problem_type
    if model_args.model_name_or_path is not None:
        checkpoint = processor, model = load_checkpoint(model_args.model_name_or_path, model_args, data_args)
        config: Any = model.config
        label_names = [config.id2label[i] for i in range(config.num_labels)]
        problem_type = problem_type_of(config)
    image_processor = new_image_processor(model_args, data_args) if checkpoint is None else processor.image_processor
    with training_args.main_process_first(desc="posts"):
        posts = read_posts(data_args, training_args, label_names=label_names, problem_type=problem_type)
        posts.image_cache = open_image_cache(data_args, image_processor)
    apply_to_bad_images(posts, data_args, training_args)
    processor, model = checkpoint or new_processor_and_model(model_args, data_args, posts)
    if model_args.class_weights is not None:  # else a checkpoint keeps its own
        model.config.class_weights = resolve_class_weights(model_args.class_weights, posts)
        logger.info(f"Class weights: {model.config.class_weights or 'none'}")
    return posts, processor, model


def read_posts(
    data_args: DataArguments, training_args: ClassificationTrainingArguments, **of_checkpoint: Any
) -> Posts:
    """
    The posts as `load_posts` reads them.

    Args:
        data_args, training_args: the flags
        of_checkpoint: label_names and problem_type, as far as they are known

    Raises:
        ValueError: what `load_posts` raises, or a split is missing that a step needs.
    """
    seed = split_seed(data_args, training_args)
    posts = load_posts(data_args, seed=seed, wanted=wanted_splits(training_args), **of_checkpoint)
    check_splits(posts, training_args)
    return posts


def check_splits(posts: Posts, training_args: ClassificationTrainingArguments) -> None:
    """
    Raises:
        ValueError: a step has no posts.
    """
    has_validation = "validation" in posts.splits
    if training_args.do_eval and not has_validation:
        raise ValueError(
            "--do_eval needs a validation split: give --validation_file, or --do_predict for a test file."
        )
    if training_args.do_predict and "test" not in posts.splits:
        raise ValueError(
            "--do_predict needs a test split: give --test_file, or --test_split 0.1 to set a tenth of train aside."
        )
    if (
        training_args.eval_strategy != "no"
        and training_args.early_stopping_patience is not None
        and not has_validation
    ):
        raise ValueError("--early_stopping_patience needs validation posts: give some, or leave the flag out.")


def apply_to_bad_images(
    posts: Posts, data_args: DataArguments, training_args: ClassificationTrainingArguments
) -> None:
    """
    Applies --on_bad_image and --on_empty_post. The main process tries every image; all go on without the same ones.

    Raises:
        ValueError: an image can't be read, or no post of a split is left.
    """
    bad = on_main_process(lambda: find_bad_images(posts, progress=not training_args.disable_tqdm))
    if training_args.process_index != 0 and posts.image_cache is not None:
        posts.image_cache.load()
    apply_on_bad_image(posts, bad, on_bad_image=data_args.on_bad_image, on_empty_post=data_args.on_empty_post)
    check_some_are_left(posts)


def suited_to(posts: Posts, training_args: ClassificationTrainingArguments) -> ClassificationTrainingArguments:
    """
    The flags of training as far as the posts decide them: no evaluations without validation posts, and the problem
    type's own metric in place of --metric_for_best_model auto.

    Raises:
        ValueError: --metric_for_best_model isn't a metric of this problem type.
    """
    changes: dict[str, Any] = {}
    if training_args.eval_strategy != "no" and "validation" not in posts.splits:
        logger.info("There are no validation posts: training goes on to its last epoch, which is what is saved.")
        changes |= {"eval_strategy": "no", "load_best_model_at_end": False}
    best = training_args.metric_for_best_model
    if best == "auto":
        best = DEFAULT_METRIC[posts.problem_type]
        changes |= {"metric_for_best_model": best, "greater_is_better": best not in LOWER_IS_BETTER}
    suited = with_changes(training_args, **changes)
    known = ["loss", *METRIC_NAMES[posts.problem_type]]
    if suited.load_best_model_at_end and best not in known:
        raise ValueError(
            f"--metric_for_best_model is {best!r}, but for {posts.problem_type} must be one of {', '.join(known)}."
        )
    return suited
