"""The output folder of a run: is it fresh, unfinished or finished, and what may be written into it."""

import shutil
from pathlib import Path

import yaml
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging


logger = logging.get_logger(__name__)

RECIPE_FILE = "recipe.yaml"  # written when a run starts
RESULTS_FILE = "all_results.json"  # written when training has ended

# Flags that may differ when a run is resumed: they change how it runs, not what comes out.
_HARMLESS = {
    "output_dir",
    "scan_implementation",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "disable_tqdm",
    "logging_strategy",
    "logging_steps",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "report_to",
    "push_to_hub",
    "do_eval",
    "do_predict",
    "hub_model_id",
    "hub_token",
    "hub_private_repo",
}


def prepare_output_dir(training_args, recipe):
    """
    Decides how a training run meets its output folder, and writes the effective recipe into it.

    Args:
        training_args: ClassificationTrainingArguments; read: output_dir, overwrite_output_dir
        recipe: the effective recipe, a flat dict

    Returns:
        the checkpoint folder to resume from, or None to start from the beginning

    Raises:
        ValueError: the folder holds a finished run, a run of another recipe, or files that are not ours.
    """
    folder = Path(training_args.output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file: give a folder.")
    checkpoint = None
    if training_args.overwrite_output_dir:
        _delete_run(folder)
    elif folder.is_dir() and any(folder.iterdir()):
        checkpoint = _checkpoint_to_resume(folder, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        (folder / RECIPE_FILE).write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), "utf-8")
    return checkpoint


def _checkpoint_to_resume(folder, recipe):
    """The last checkpoint of an unfinished run of the same recipe in `folder`, None if it has none yet."""
    start_over = "or --overwrite_output_dir to delete that run and start over, or another --output_dir."
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(
            f"--output_dir {folder} is not empty and holds no {RECIPE_FILE}, so it is not a run of this script: give "
            "another --output_dir."
        )
    if (folder / RESULTS_FILE).is_file():
        raise ValueError(f"--output_dir {folder} holds a finished run ({RESULTS_FILE}). Use {start_over[3:]}")
    earlier = yaml.safe_load((folder / RECIPE_FILE).read_text("utf-8")) or {}
    differing = [
        f"{name}={earlier.get(name)!r} then, {recipe.get(name)!r} now"
        for name in sorted({*earlier, *recipe} - _HARMLESS)
        if earlier.get(name) != recipe.get(name)
    ]
    if differing:
        raise ValueError(
            f"--output_dir {folder} holds an unfinished run of another recipe ({'; '.join(differing)}). Rerun it as "
            f"`run_classification.py {folder / RECIPE_FILE}` to resume, {start_over}"
        )
    checkpoint = get_last_checkpoint(str(folder))
    if checkpoint is None:
        logger.warning(f"{folder} holds a run that was stopped before its first checkpoint: starting it again.")
    else:
        logger.warning(f"{folder} holds an unfinished run: resuming from {checkpoint}.")
    return checkpoint


def _delete_run(folder):
    """Deletes what an earlier run wrote, and nothing else: what it overwrites anyway may stay."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / RECIPE_FILE).is_file():
        raise ValueError(
            f"--overwrite_output_dir: {folder} holds no {RECIPE_FILE}, so it is not a run of this script and is left "
            "alone. Give another --output_dir, or empty it yourself."
        )
    for pattern in ("checkpoint-*", "*_results.json", "trainer_state.json", "*predictions.csv", "*.safetensors"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in folder.iterdir():
        if path.name in (RECIPE_FILE, "README.md"):
            path.unlink()
    if any(folder.iterdir()):  # config, tokenizer and code are overwritten in place
        logger.info(f"{folder} holds other files besides the deleted run; they are left.")
