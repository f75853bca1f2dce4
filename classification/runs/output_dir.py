"""The output folder of a run: is it fresh, unfinished or finished, and what may be written into it."""

import logging
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..support.files import PACKAGE_FOLDER, read_mapping, write_json, write_yaml
from ..support.run_files import (
    AUDIT_FILES,
    AUDIT_JSON,
    CALIBRATION_FILE,
    PREDICTIONS_FILES,
    RECIPE_FILE,
    REPORT_FILES,
    RESULTS_FILE,
    TENSORBOARD_FOLDER,
    TEST_FILE,
    VALIDATION_FILE,
)
from .arguments import ClassificationTrainingArguments


logger = logging.getLogger(__name__)

PACKAGE = "hf_mamba"

# What --overwrite_output_dir deletes besides checkpoints; config, code and tokenizer are overwritten in place.
_WRITTEN_BY_A_RUN = (
    RECIPE_FILE,
    RESULTS_FILE,
    VALIDATION_FILE,
    TEST_FILE,
    CALIBRATION_FILE,
    *REPORT_FILES.values(),
    *PREDICTIONS_FILES,
    "train_results.json",
    "trainer_state.json",
    "training_args.bin",
    "model.safetensors",
    "README.md",
)

# Flags that may differ when a run is resumed: they change how it runs, not what comes out.
_HARMLESS = {
    "output_dir",
    "scan_implementation",
    "dataloader_num_workers",
    "image_cache",
    "image_cache_budget",
    "dataloader_pin_memory",
    "disable_tqdm",
    "logging_strategy",
    "logging_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "report_to",
    "push_to_hub",
    "do_audit",
    "do_eval",
    "do_predict",
    "predictions_format",
    "report_withheld",
    "positive_label",
    "group_column_name",
    "hub_model_id",
    "hub_private_repo",
}


def check_output_dir(
    training_args: ClassificationTrainingArguments, model_name_or_path: str | None, recipe: Mapping[str, Any]
) -> str | None:
    """
    Decides how a command meets its output folder, without changing anything in it.

    Args:
        training_args: ClassificationTrainingArguments; read: output_dir, overwrite_output_dir, do_*
        model_name_or_path: the checkpoint to start from or to evaluate, or None
        recipe: the effective recipe, a flat dict

    Returns:
        the checkpoint folder to resume training from, or None

    Raises:
        ValueError: the folder holds a finished run, a run of another recipe, results that would be overwritten, or
            files that are not ours.
    """
    folder = Path(training_args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file: give a folder.")
    if _hides_the_package(folder):
        raise ValueError(
            f"--output_dir {folder}: from here, `import {PACKAGE}` would find that folder in place of the package, "
            "which is installed in editable mode. Give another name."
        )
    if not folder.is_dir() or all(path.name in AUDIT_FILES for path in folder.iterdir()) and training_args.do_train:
        return None
    if not training_args.do_train:
        _check_results(folder, training_args, model_name_or_path)
        return None
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(
            f"--output_dir {folder} is not empty and holds no {RECIPE_FILE}, so it is not a run of this script and is "
            "left alone: give another --output_dir."
        )
    if not training_args.overwrite_output_dir:
        return _checkpoint_to_resume(folder, recipe)
    if model_name_or_path is not None and Path(model_name_or_path).resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"--overwrite_output_dir would delete {model_name_or_path}, which --model_name_or_path starts from: give "
            "another --output_dir."
        )
    return None


def _hides_the_package(folder: Path) -> bool:
    """
    Is it a folder of the package's name in the working directory? Without an __init__.py in it, Python prefers it to a
    package that an editable install maps to a folder of another name, but not to one copied into site-packages.
    """
    return folder.resolve() == Path.cwd() / PACKAGE and PACKAGE_FOLDER.name != PACKAGE


def open_group(
    training_args: ClassificationTrainingArguments,
    recipe: Mapping[str, Any],
    recipe_file: str,
    harmless: Collection[str],
) -> None:
    """
    Decides whether several runs of one command may use the output folder, and writes their recipe into it.

    Args:
        training_args: read: output_dir, overwrite_output_dir
        recipe: the effective recipe of the command
        recipe_file: its name in the folder, by which the folder is known again
        harmless: flags that may differ when the command is repeated, besides those that always may

    Raises:
        ValueError: the folder holds something else, or such runs of another recipe.
    """
    folder = Path(training_args.output_dir)
    path = folder / recipe_file
    if folder.is_file():
        raise ValueError(f"--output_dir {folder} is a file: give a folder.")
    if not path.is_file() and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"--output_dir {folder} is not empty and holds no {recipe_file}: give another --output_dir.")
    known = path.is_file() and not training_args.overwrite_output_dir
    if known and (differing := differing_flags(path, recipe, harmless)):
        raise ValueError(
            f"--output_dir {folder} holds runs of another recipe ({differing}): give another --output_dir, or "
            "--overwrite_output_dir to start over."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_yaml(path, recipe)


def start_run(training_args: ClassificationTrainingArguments, recipe: Mapping[str, Any]) -> None:
    """Deletes what an earlier run left if that was asked, and writes the recipe: the folder now holds this run."""
    folder = Path(training_args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if training_args.overwrite_output_dir:
        written = [*folder.glob("checkpoint-*"), *folder.glob(f"{TENSORBOARD_FOLDER}/events.out.*")]
        for path in [*written, *(folder / name for name in _WRITTEN_BY_A_RUN)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    write_yaml(folder / RECIPE_FILE, recipe)


def write_results(folder: str | Path, metrics_of_split: Mapping[str, Mapping[str, Any]]) -> None:
    """
    Writes all_results.json, which marks a run as finished: {"test_accuracy": 0.9, ...}. What an earlier command
    measured on other splits stays.
    """
    path = Path(folder) / RESULTS_FILE
    results = read_mapping(path) if path.is_file() else {}
    for split, metrics in metrics_of_split.items():
        for name, value in metrics.items():
            results[name if name.startswith(f"{split}_") else f"{split}_{name}"] = value
    write_json(path, results, indent=4, sort_keys=True)


def _check_results(folder: Path, training_args: ClassificationTrainingArguments, checkpoint: str | None) -> None:
    """Evaluation and prediction write into no unfinished run, and over no earlier result unless asked."""
    if (folder / RECIPE_FILE).is_file() and not (folder / RESULTS_FILE).is_file():
        raise ValueError(f"--output_dir {folder} holds an unfinished training run: give another --output_dir.")
    written = [AUDIT_JSON] if training_args.do_audit else []
    written += [VALIDATION_FILE] if training_args.do_eval else []
    written += [TEST_FILE, *PREDICTIONS_FILES] if training_args.do_predict else []
    # only predicting in the checkpoint's own folder, its calibration is read and stays
    in_own_folder = checkpoint is not None and Path(checkpoint).resolve() == folder.resolve()
    if training_args.calibrate and (training_args.do_eval or not in_own_folder):
        written.append(CALIBRATION_FILE)
    there = [name for name in written if (folder / name).exists()]
    if there and not training_args.overwrite_output_dir:
        raise ValueError(
            f"--output_dir {folder} already holds {' and '.join(there)}: give another --output_dir, or "
            "--overwrite_output_dir to replace them."
        )


def _checkpoint_to_resume(folder: Path, recipe: Mapping[str, Any]) -> str | None:
    """The last whole checkpoint of an unfinished run of the same recipe in `folder`, None if it has none yet."""
    start_over = "--overwrite_output_dir to delete that run and start over, or another --output_dir."
    if (folder / RESULTS_FILE).is_file():
        raise ValueError(f"--output_dir {folder} holds a finished run ({RESULTS_FILE}). Use {start_over}")
    checkpoint = _last_whole_checkpoint(folder)
    if checkpoint is None:
        logger.warning(f"{folder} holds a run that was stopped before its first checkpoint: starting again.")
        return None
    if differing := differing_flags(folder / RECIPE_FILE, recipe):
        raise ValueError(
            f"--output_dir {folder} holds an unfinished run of another recipe ({differing}). Rerun it as "
            f"`run_classification.py {folder / RECIPE_FILE}` to resume, or {start_over}"
        )
    logger.warning(f"{folder} holds an unfinished run: resuming from {checkpoint}.")
    return checkpoint


def differing_flags(path: str | Path, recipe: Mapping[str, Any], harmless: Collection[str] = ()) -> str:
    """
    What of a recipe that an earlier command left in `path` differs from the recipe now, in words; empty if nothing
    does that changes what comes out. `harmless` names flags that may differ besides those that always may.
    """
    earlier = read_mapping(path, "Recipe")
    return "; ".join(
        f"{name}={earlier.get(name)!r} then, {recipe.get(name)!r} now"
        for name in sorted({*earlier, *recipe} - _HARMLESS - {*harmless})
        if earlier.get(name) != recipe.get(name)
    )


def _last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end: trainer_state.json is the last file Trainer writes."""
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
    for path in sorted(checkpoints, key=lambda path: int(path.name.partition("-")[2]), reverse=True):
        try:
            read_mapping(path / "trainer_state.json")
            return str(path)
        except (OSError, ValueError):
            logger.warning(f"{path} was not written to its end and is skipped.")
    return None
