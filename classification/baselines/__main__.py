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
from dataclasses import dataclass, field, fields

from accelerate.utils import broadcast_object_list
from transformers import set_seed

from ...run_classification import (
    build_metrics,
    build_trainer,
    check_all_images,
    check_request,
    check_splits,
    choose_best_by,
    draw_builtin_posts,
    evaluate,
    set_up_logging,
    train,
    wanted_splits,
)
from ..data.columns import parse_modalities
from ..data.labels import SINGLE
from ..data.loading import load_posts
from ..evaluation.metrics import baseline_of_posts
from ..evaluation.split_report import BASELINE_KEYS, name_baseline
from ..reporting.model_card import write_results
from ..reporting.tables import summarise_run
from ..runs.arguments import CONFIG_FIELDS, ClassificationTrainingArguments, find_recipe, parse_arguments, read_recipe
from ..runs.folds import check_folds, run_folds
from ..runs.output_dir import check_output_dir, start_run
from ..runs.seeds import run_seeds
from ..support.command_line import run_command
from ..training.class_weights import resolve_class_weights
from .counting import COUNTING, CountingClassifier, CountingTrainer
from .networks import NETWORKS, load_pretrained, new_network


logger = logging.getLogger("hf_mamba.classification.baselines")  # also when run as a command

AUTO = "auto:"

# Flags of HF-Mamba's network: what a baseline has in its place is its own
_OF_HF_MAMBA = {f.name for f in CONFIG_FIELDS} - {"class_weights", "label_smoothing"} | {"scan_implementation"}
# Flags of training that mean something to a baseline that counts; beside them all others are about gradient descent
_OF_COUNTING = {
    *("output_dir", "overwrite_output_dir", "do_train", "do_eval", "do_predict", "seed", "predictions_format"),
    *("report_withheld", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "disable_tqdm"),
    *("use_cpu", "report_to", "logging_strategy", "eval_strategy"),
}
_OF_TOKENS = {"max_seq_length", "vocab_size", "tokenizer_name"}
# What no baseline does, whatever the recipe says: flag -> what to do
_REFUSED = {
    "model_name_or_path": "a pretrained text classifier is --baseline auto:NAME",
    "streaming": "leave it out",
    "push_to_hub": "leave it out",
    "search_trials": "leave it out",
    "modality_dropout": "leave it out",
    "calibrate": "leave it out",
    "do_audit": "audit the posts by run_classification.py",
}


@dataclass
class BaselineArguments:
    """Which baseline."""

    baseline: str | None = field(
        default=None, metadata={"help": f"{', '.join([*COUNTING, *NETWORKS])}, or auto:NAME of a pretrained model"}
    )
    baseline_max_words: int | None = field(
        default=None,
        metadata={"help": "tfidf_logistic and naive_bayes read the first so many words of a text. Default: all"},
    )


def main(argv=None):
    """Runs a baseline. Returns the metrics, {"validation": {...}, "test": {...}}, or of several seeds theirs."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(argv):
        return print(__doc__.strip())
    model_args, data_args, training_args, baseline_args, recipe = read_flags(argv)
    check_folds(training_args, data_args)
    if data_args.folds is not None and data_args.fold is None:
        return run_folds(main, training_args, data_args, recipe)
    if training_args.seeds is not None:
        return run_seeds(main, training_args, recipe)
    checkpoint = [None]
    if training_args.process_index == 0:
        checkpoint = [check_output_dir(training_args, None, recipe)]
    checkpoint = broadcast_object_list(checkpoint)[0]
    posts = read_posts(model_args, data_args, training_args)
    metrics = build_metrics(posts, model_args, data_args)
    name = baseline_args.baseline
    make = counting_trainer if name in COUNTING else network_trainer
    trainer = make(posts, metrics, baseline_args, model_args, data_args, training_args)
    if checkpoint is None and trainer.is_world_process_zero():
        start_run(training_args, recipe)
    train_metrics = train_counting(trainer, posts) if name in COUNTING else train(trainer, posts, checkpoint)
    steps = {"validation": training_args.do_eval, "test": training_args.do_predict}
    reports = {split: evaluate(trainer, posts, split, metrics) for split, asked in steps.items() if asked}
    reports = {split: report for split, report in reports.items() if report}
    of_split = {split: report["metrics"] for split, report in reports.items()}
    if trainer.is_world_process_zero():
        write_results(training_args.output_dir, {"train": train_metrics, **of_split})
        print(
            summarise_run(
                reports,
                name=name,
                num_parameters=num_parameters(trainer.model),
                posts=posts,
                train_metrics=train_metrics,
                output_dir=training_args.output_dir,
                positive_label=metrics.positive_label,
            )
        )
    return of_split


def read_flags(argv):
    """
    Recipe and flags, as `parse_arguments` returns them, in which only what the baseline makes use of is left.

    A recipe of HF-Mamba says much that a baseline has no use for (its layers; to one that counts, learning rates):
    that is left out of the effective recipe and named in the log. On the command line it is a mistake.

    Raises:
        ValueError: no such baseline, or a flag that it can't honour.
    """
    model_args, data_args, training_args, baseline_args, recipe = parse_arguments(argv, (BaselineArguments,))
    set_up_logging(training_args)
    name = baseline_args.baseline
    if name not in {*COUNTING, *NETWORKS} and not (name or "").startswith(AUTO):
        known = ", ".join([*COUNTING, *NETWORKS])
        raise ValueError(
            f"--baseline {name or 'is missing'}: give {known}, or auto: and a folder or a name on the Hub."
        )
    given, unused = _flags_of_line(argv), _without_use(name)
    if wrong := sorted(given & unused):
        hint = " Words are limited by --baseline_max_words." if "max_seq_length" in wrong else ""
        raise ValueError(f"--{wrong[0]} means nothing to --baseline {name}: leave it out.{hint}")
    _refuse(name, model_args, data_args, training_args, baseline_args)
    check_request(model_args, training_args)
    if dropped := sorted(_flags_of_recipe(argv) & unused):
        logger.info(f"{name} has no use for these flags of the recipe: {', '.join(dropped)}.")
    recipe = {flag: value for flag, value in recipe.items() if flag not in unused}
    if "baseline" in given and "output_dir" not in given:  # beside the model's run, not in it
        ending = "_" + name.replace(AUTO, "auto_").rstrip("/").replace("/", "_")
        recipe["output_dir"] += ending
        training_args.output_dir += ending
    training_args.report_withheld = "none"  # there is but one modality
    if name in COUNTING and training_args.seeds is not None:
        logger.info(f"There is no chance in {name}: one run stands for all seeds.")
        training_args.seeds = None
        recipe.pop("seeds", None)
    return model_args, data_args, training_args, baseline_args, recipe


def _flags_of_line(argv):
    return {word[2:].partition("=")[0] for word in argv if word.startswith("--")}


def _flags_of_recipe(argv):
    if not argv or argv[0].startswith("-"):
        return set()
    return set(read_recipe(find_recipe(argv[0]), more=(BaselineArguments,)))


def _without_use(name):
    """The flags that a baseline has no use for."""
    if name not in COUNTING:
        return _OF_HF_MAMBA
    of_training = {f.name for f in fields(ClassificationTrainingArguments)}
    return _OF_HF_MAMBA | _OF_TOKENS | (of_training - _OF_COUNTING - {"seeds", *_REFUSED, "label_smoothing_factor"})


def _refuse(name, model_args, data_args, training_args, baseline_args):
    """Raises ValueError for what would change the task or the training and can't be honoured, recipe or not."""
    counting, pretrained = name in COUNTING, name.startswith(AUTO)
    for flag, fix in _REFUSED.items():
        if any(getattr(args, flag, None) for args in (model_args, data_args, training_args)):
            raise ValueError(f"--{flag} doesn't go with --baseline: {fix}.")
    if not training_args.do_train:
        raise ValueError("A baseline is trained on the spot: give --do_train.")
    if name != "majority" and parse_modalities(data_args.modalities) != ("text",):
        raise ValueError(f"--baseline {name} reads text alone: give --modalities text, not {data_args.modalities}.")
    if counting and training_args.world_size > 1:
        raise ValueError(f"--baseline {name} runs in one process: start it without torchrun or accelerate.")
    words = baseline_args.baseline_max_words
    if words is not None and (words < 1 or name not in ("tfidf_logistic", "naive_bayes")):
        raise ValueError(f"--baseline_max_words {words}: give 1 or more, to tfidf_logistic or naive_bayes only.")
    by_loss = training_args.load_best_model_at_end and training_args.metric_for_best_model == "loss"
    not_honoured = {
        "class_weights": (name == "majority" or pretrained) and model_args.class_weights not in (None, "none"),
        "label_smoothing": (counting or pretrained) and model_args.label_smoothing,
        "label_smoothing_factor": counting and training_args.label_smoothing_factor,
        "metric_for_best_model loss": counting and by_loss,
        "vocab_size": pretrained and data_args.vocab_size,
        "tokenizer_name": pretrained and data_args.tokenizer_name,
    }
    for flag, asked in not_honoured.items():
        if asked:
            raise ValueError(f"--{flag} can't be honoured by --baseline {name}: leave it out.")


def read_posts(model_args, data_args, training_args):
    """The posts, as run_classification.py reads them. Raises ValueError if they don't have one label each."""
    with training_args.main_process_first(desc="posts"):
        draw_builtin_posts(data_args, training_args)
        posts = load_posts(
            data_args,
            seed=training_args.seed if data_args.split_seed is None else data_args.split_seed,
            problem_type=model_args.problem_type,
            wanted=wanted_splits(training_args),
        )
    if posts.problem_type != SINGLE:
        raise ValueError(f"Baselines are for one label per post, but the problem type is {posts.problem_type}.")
    check_splits(posts, training_args)
    check_all_images(posts, data_args, training_args)
    choose_best_by(posts.problem_type, training_args)
    return posts


def counting_trainer(posts, metrics, baseline_args, model_args, data_args, training_args):
    """What fits and applies a baseline that counts."""
    name, max_words = baseline_args.baseline, baseline_args.baseline_max_words
    model = CountingClassifier(name, len(posts.label_names), max_words)
    weights = resolve_class_weights(model_args.class_weights, posts)
    return CountingTrainer(model, training_args, posts, metrics, weights)


def network_trainer(posts, metrics, baseline_args, model_args, data_args, training_args):
    """The Trainer of a network, which trains it as HF-Mamba's does."""
    training_args.accelerator_config.dispatch_batches = False  # as for HF-Mamba: batches differ in length
    set_seed(training_args.seed)
    name = baseline_args.baseline
    if name in NETWORKS:
        processor, model = new_network(name, model_args, data_args, posts)
    else:
        processor, model = load_pretrained(name.removeprefix(AUTO), data_args, posts)
    return build_trainer(posts, processor, model, metrics, training_args)


def train_counting(trainer, posts):
    """Fits a baseline that counts. Returns the metrics of training, which are also written down."""
    baseline = name_baseline(baseline_of_posts(posts), posts.problem_type, posts.label_names)
    found = trainer.train() | {BASELINE_KEYS[posts.problem_type]: baseline}
    trainer.save_metrics("train", found, combined=False)
    return found


def num_parameters(model):
    """Numbers learned from the posts."""
    if isinstance(model, CountingClassifier):
        return model.num_parameters()
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    run_command(main)
