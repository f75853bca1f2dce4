"""--calibrate, a step of a run: what it needs, and the calibration fitted or taken from the checkpoint, and saved."""

import logging
from typing import TYPE_CHECKING, Any

from ..data.labels import REGRESSION, is_varied
from ..data.posts import Posts
from ..evaluation.calibration import (
    Calibration,
    describe_calibration,
    fit_calibration,
    read_calibration,
    write_calibration,
)
from ..evaluation.metrics import logits_of
from ..support.processes import on_main_process
from ..support.run_files import CALIBRATION_FILE


if TYPE_CHECKING:
    from .arguments import ClassificationTrainingArguments

logger = logging.getLogger(__name__)


def check_calibration(
    posts: Posts, training_args: "ClassificationTrainingArguments", checkpoint: str | None
) -> Calibration | None:
    """
    Checks that what --calibrate asks for can be, before anything is trained.

    Returns:
        the calibration that comes with the checkpoint, which is applied where posts are only predicted; None if one is
        to be fitted

    Raises:
        ValueError: regression, no validation posts, or ones with a single label.
    """
    if not training_args.calibrate:
        return None
    if posts.problem_type == REGRESSION:
        raise ValueError("--calibrate is for probabilities, but the problem type is regression: leave it out.")
    saved = None
    if checkpoint is not None and not (training_args.do_train or training_args.do_eval):
        saved = read_calibration(checkpoint, posts)
    if saved is not None:
        return saved
    if "validation" not in posts.splits:
        lacks = "" if training_args.do_train else f", for {checkpoint} has no {CALIBRATION_FILE}"
        raise ValueError(
            f"--calibrate is fitted on validation posts{lacks}: give --validation_file, or of the training posts a "
            "--validation_split above 0."
        )
    if not is_varied(posts.column("validation", "label")):
        raise ValueError(
            f"--calibrate: all {len(posts.splits['validation'])} validation posts have the same label, which tells "
            "nothing of how sure to be: give --validation_file with posts of each."
        )
    return None


def calibrate(trainer: Any, posts: Posts, saved: Calibration | None) -> Calibration | None:
    """
    The calibration of the trainer's model: `saved`, or fitted by the main process. That one writes it down. None
    without --calibrate.

    Args:
        trainer: a Trainer with the model; all its processes call this
        posts: `Posts`
        saved: as `check_calibration` returns it
    """
    args = trainer.args
    if not args.calibrate:
        return None
    calibration = saved
    if calibration is None:
        output = trainer.predict(posts.splits["validation"], metric_key_prefix="validation")
        logits, labels = logits_of(output.predictions), output.label_ids
        calibration = on_main_process(
            lambda: fit_calibration(logits, labels, posts.problem_type, posts.label_names, args.calibrate_metric)
        )
    if trainer.is_world_process_zero():
        write_calibration(args.output_dir, calibration)
        origin = "fitted" if saved is None else "of the checkpoint"
        logger.info(f"Calibration {origin}: {describe_calibration(calibration)}.")
        if calibration.at_bound:
            logger.warning(
                f"--calibrate: the temperature ended at its bound, {calibration.temperature:g}. Either the model "
                f"classifies all {calibration.num_posts} validation posts correctly, or it has learned nothing about "
                "them."
            )
    return calibration
