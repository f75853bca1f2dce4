"""
Text baselines, run as a recipe of run_classification.py is: its posts, splits, metrics, reports and output folder.

    python -m hf_mamba.classification.baselines paper/twitter_text_15 --baseline naive_bayes
    python -m hf_mamba.classification.baselines my_recipe.yaml --modalities text --baseline bigru --seeds 0 1 2
    python -m hf_mamba.classification.baselines my_recipe.yaml --modalities text --baseline auto:FOLDER_OR_HUB_NAME

The baselines: majority, tfidf_logistic, naive_bayes, text_cnn, bigru, and auto:NAME for a pretrained text classifier.
Recipe and flags are those of run_classification.py. docs/baselines.md says what each one makes of them.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import set_seed

from ..data.arguments import DataArguments
from ..data.labels import SINGLE
from ..data.posts import Posts
from ..evaluation.metrics import PostMetrics
from ..reporting.tables import summarise_run
from ..runs.arguments import ClassificationTrainingArguments, ModelArguments, with_changes
from ..runs.flag_rules import check_flags
from ..runs.loading import apply_to_bad_images, read_posts, suited_to, with_builtin_posts
from ..runs.output_dir import check_output_dir, write_results
from ..runs.recipes import flags_of_line, parse_arguments, parse_recipe, split_command
from ..runs.steps import (
    build_metrics,
    build_trainer,
    named_baseline,
    run_several,
    set_up_logging,
    train,
    train_and_evaluate,
)
from ..support.command_line import run_command
from ..support.processes import on_main_process
from ..training.class_weights import resolve_class_weights
from ..training.trainer import PostTrainer
from .counting import COUNTING, CountingClassifier, CountingTrainer
from .flags import AUTO, BaselineArguments, check_baseline, check_line, check_name, unused_flags
from .networks import NETWORKS, load_pretrained, new_network


logger = logging.getLogger("hf_mamba.classification.baselines")  # also when run as a command


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """
    The command line. A recipe of HF-Mamba names much that a baseline has no use for (its layers; to one that counts,
    learning rates): that is left out and named in the log. On the command line it is a mistake.

    Returns:
        as `perform`
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return {}
    recipe_file, line = split_command(argv, (BaselineArguments,))
    model_args, data_args, training_args, baseline_args, recipe = parse_arguments(argv, (BaselineArguments,))
    set_up_logging(training_args)
    name, given = check_name(baseline_args.baseline), flags_of_line(line)
    check_line(name, given)
    check_baseline(model_args, data_args, training_args, baseline_args)
    if dropped := sorted(unused_flags(name) & recipe_file.keys()):
        logger.info(f"{name} has no use for these flags of the recipe: {', '.join(dropped)}.")
    if "baseline" in given and "output_dir" not in given:  # beside the model's run, not in it
        folder = f"{training_args.output_dir}_{name.replace(AUTO, 'auto_').rstrip('/').replace('/', '_')}"
        training_args, recipe = with_changes(training_args, output_dir=folder), recipe | {"output_dir": folder}
    return perform(model_args, data_args, training_args, baseline_args, recipe)


def run_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A run of a baseline's recipe, {flag: value}, as from its recipe.yaml. Returns the metrics, see `perform`."""
    return perform(*parse_recipe(recipe, (BaselineArguments,)))


def perform(
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: ClassificationTrainingArguments,
    baseline_args: BaselineArguments,
    recipe: dict[str, Any],
) -> dict[str, Any]:
    """
    Runs a baseline.

    Args:
        model_args, data_args, training_args, baseline_args: the flags
        recipe: the effective recipe; saved without what the baseline has no use for

    Returns:
        {"validation": {"accuracy": 0.9, ...}, "test": {...}}, or of several runs what `run_several` returns

    Raises:
        ValueError: a flag that the baseline can't honour; posts without one label each.
    """
    check_baseline(model_args, data_args, training_args, baseline_args)
    check_flags(model_args, data_args, training_args)
    name = check_name(baseline_args.baseline)
    recipe = {flag: value for flag, value in recipe.items() if flag not in unused_flags(name)}
    training_args = with_changes(training_args, report_withheld="none")  # there is but one modality
    if name in COUNTING and training_args.seeds is not None:
        logger.info(f"There is no chance in {name}: one run stands for all seeds.")
        training_args = with_changes(training_args, seeds=None)
        recipe.pop("seeds", None)
    if (of_several := run_several(run_recipe, data_args, training_args, recipe)) is not None:
        return of_several
    checkpoint = on_main_process(lambda: check_output_dir(training_args, None, recipe))
    posts = load_texts(model_args, with_builtin_posts(data_args, training_args), training_args)
    training_args = suited_to(posts, training_args)
    metrics = build_metrics(posts, model_args, data_args)
    make_trainer = counting_trainer if name in COUNTING else network_trainer
    trainer = make_trainer(posts, metrics, baseline_args, model_args, data_args, training_args)
    step = train_counting if name in COUNTING else train
    outcome = train_and_evaluate(trainer, posts, metrics, recipe, checkpoint=checkpoint, train=step)
    if trainer.is_world_process_zero():
        model: Any = trainer.model
        write_results(training_args.output_dir, {"train": outcome.train_metrics, **outcome.metrics})
        print(
            summarise_run(
                outcome.reports,
                name=name,
                num_parameters=num_parameters(model),
                posts=posts,
                train_metrics=outcome.train_metrics,
                output_dir=training_args.output_dir,
                positive_label=getattr(metrics, "positive_label", None),
            )
        )
    return outcome.metrics


def load_texts(
    model_args: ModelArguments, data_args: DataArguments, training_args: ClassificationTrainingArguments
) -> Posts:
    """
    The posts, as run_classification.py reads them.

    Raises:
        ValueError: they don't have one label each.
    """
    with training_args.main_process_first(desc="posts"):
        posts = read_posts(data_args, training_args, problem_type=model_args.problem_type)
    if posts.problem_type != SINGLE:
        raise ValueError(f"Baselines are for one label per post, but the problem type is {posts.problem_type}.")
    apply_to_bad_images(posts, data_args, training_args)
    return posts


def counting_trainer(
    posts: Posts,
    metrics: PostMetrics,
    baseline_args: BaselineArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: ClassificationTrainingArguments,
) -> CountingTrainer:
    """What fits and applies a baseline that counts."""
    name, max_words = check_name(baseline_args.baseline), baseline_args.baseline_max_words
    model = CountingClassifier(name, len(posts.label_names), max_words)
    weights = resolve_class_weights(model_args.class_weights, posts)
    return CountingTrainer(model, training_args, posts, metrics, weights)


def network_trainer(
    posts: Posts,
    metrics: PostMetrics,
    baseline_args: BaselineArguments,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: ClassificationTrainingArguments,
) -> PostTrainer:
    """The Trainer of a network, which trains it as HF-Mamba's does."""
    set_seed(training_args.seed)
    name = check_name(baseline_args.baseline)
    processor: Any
    model: Any
    if name in NETWORKS:
        processor, model = new_network(name, model_args, data_args, posts)
    else:
        processor, model = load_pretrained(name.removeprefix(AUTO), data_args, posts)
    return build_trainer(posts, processor, model, metrics, training_args)


def train_counting(trainer: CountingTrainer, posts: Posts, checkpoint: str | None) -> dict[str, Any]:
    """Fits a baseline that counts, which has no checkpoints. Returns the metrics of training, also written."""
    metrics = trainer.train() | named_baseline(posts)
    trainer.save_metrics("train", metrics, combined=False)
    return metrics


def num_parameters(model: CountingClassifier | torch.nn.Module) -> int:
    """Numbers learned from the posts."""
    if isinstance(model, CountingClassifier):
        return model.num_parameters()
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    run_command(main)
