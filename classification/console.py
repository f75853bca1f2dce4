"""
The console command `hf-mamba`: the verbs people look for, each a short way to a command that exists.

| command | is |
|---|---|
| `hf-mamba train [RECIPE] ...` | `run_classification.py [RECIPE] ...`; if it names no steps, --do_train --do_eval |
| `hf-mamba evaluate CHECKPOINT ...` | `run_classification.py --do_eval --model_name_or_path CHECKPOINT ...` |
| `hf-mamba predict CHECKPOINT ...` | `run_classification.py --do_predict --model_name_or_path CHECKPOINT ...` |
| `hf-mamba audit [RECIPE] ...` | `run_classification.py [RECIPE] --do_audit ...`, without the other steps of RECIPE |
| `hf-mamba compare`, `share`, `prepare` | `python -m hf_mamba.classification.compare`, `.share`, `.prepare` |

Every flag is that of the command behind a verb. Nothing heavy is imported before a command runs, so that help comes at
once. This module stands on the top floor beside run_classification.py, and is the only one that may import it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .support.messages import did_you_mean


PROG = "hf-mamba"
SCRIPT = "python -m hf_mamba.run_classification"
STEPS = ("do_train", "do_eval", "do_predict", "do_audit")


@dataclass(frozen=True)
class Verb:
    """
    A word after `hf-mamba`.

    Args:
        summary: what it does, a line
        run: runs it with the arguments after it
        usage: those arguments; empty: the command behind it has help of its own
        text: more help, after the summary
    """

    summary: str
    run: Callable[[list[str]], None]
    usage: str = ""
    text: str = ""

    def help(self, name: str) -> str:
        """What `hf-mamba NAME --help` prints."""
        return f"usage: {PROG} {name} {self.usage}\n\n{self.summary}.\n\n{self.text.strip()}\n\n{_EVERY_FLAG}"


_EVERY_FLAG = f"`{SCRIPT} --help` lists every flag and its default."

_TRAIN = """
RECIPE is a YAML or JSON file of flags, or one of the package's own: quickstart,
paper/twitter, ... Flags win over it. The steps are those that RECIPE names
(quickstart: train, evaluate, predict), else --do_train --do_eval.

  hf-mamba train quickstart
  hf-mamba train quickstart --seeds 0 1 2 --output_dir outputs/seeds
  hf-mamba train --train_file posts.csv --image_dir photos --output_dir mine

Common flags:
  --train_file, --validation_file, --test_file   csv, json, jsonl or parquet
  --dataset_name, --image_dir, --output_dir      other data, images, results
  --num_train_epochs, --learning_rate, --seed    training
  --modalities text                              use one modality alone

Several processes: torchrun --nproc_per_node 2 -m hf_mamba.run_classification
"""
_EVALUATE = """
CHECKPOINT is the output folder of a training run, or a model's name on the Hub.
Metrics are printed, and written to validation_report.json of --output_dir.
For labelled test posts use `hf-mamba predict`, which reports on them, too.

  hf-mamba evaluate mine --validation_file labelled.csv --output_dir evaluated
"""
_PREDICT = """
CHECKPOINT is the output folder of a training run, or a model's name on the Hub.
Probabilities are written to predictions.csv of --output_dir (or, with
--predictions_format, .jsonl or .parquet); posts with labels are evaluated, too.

  hf-mamba predict mine --test_file new.csv --image_dir photos --output_dir new
"""
_AUDIT = """
Tries on the posts what must not be able to predict their labels (white space,
length, ids, files, copies, ...). Writes audit.json, audit.md and audit.png to
--output_dir. Of RECIPE only the posts are used: nothing is trained.

  hf-mamba audit --train_file train.csv --test_file test.csv --output_dir audit
  hf-mamba audit quickstart --output_dir audit
"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line. Help is exit code 0, a missing or misspelt verb 2, a mistake in a run 1, Ctrl-C 130."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in ("-h", "--help"):
        print(overview())
        return
    if argv and argv[0] == "--version":
        from .. import __version__

        print(f"{PROG} {__version__}")
        return
    if not argv or argv[0] not in VERBS:
        mistake = f"There is no command {argv[0]!r}.{did_you_mean(argv[0], VERBS)}" if argv else "Which command?"
        print(f"{PROG}: {mistake}\nThe commands are {', '.join(VERBS)}; see `{PROG} --help`.", file=sys.stderr)
        raise SystemExit(2)
    name, *rest = argv
    verb = VERBS[name]
    if verb.usage and ("-h" in rest or "--help" in rest):
        print(verb.help(name))
        return
    from .support.command_line import run_command  # pulls in torch, which help needs not

    interrupted = "Interrupted. The same command resumes from the last checkpoint."
    run_command(lambda: verb.run(rest), interrupted if name == "train" else "Interrupted.")


def overview() -> str:
    """The page of `hf-mamba --help`; it fits a screen of 24 lines."""
    verbs = "\n".join(f"  {name:<9} {verb.summary}" for name, verb in VERBS.items())
    return f"""\
usage: {PROG} COMMAND [ARGUMENTS]

Classifies posts made of text and images with HF-Mamba.

commands:
{verbs}

  {PROG} train quickstart
  {PROG} train --train_file posts.csv --image_dir photos --output_dir mine
  {PROG} predict mine --test_file new.csv --image_dir photos --output_dir new

`{PROG} COMMAND --help` explains a command.
`{SCRIPT} --help` lists every flag of train,
evaluate, predict and audit; torchrun and accelerate launch that module, too."""


def train(argv: list[str]) -> None:
    """Trains: the steps that the recipe names, or --do_train --do_eval."""
    recipe, flags = _recipe_and_flags(argv)
    named = _read(recipe)
    steps = [] if "do_train" in named else [f"--{step}" for step in ("do_train", "do_eval") if step not in named]
    _run_classification([*recipe, *steps, *flags])


def audit(argv: list[str]) -> None:
    """Audits the posts that the recipe or the flags name, and does nothing else."""
    recipe, flags = _recipe_and_flags(argv)
    others = [f"--{step}=false" for step in STEPS if step != "do_audit" and step in _read(recipe)]
    _run_classification([*recipe, *others, "--do_audit", *flags])


def evaluate(argv: list[str]) -> None:
    """Evaluates a checkpoint on labelled posts."""
    _run_classification(["--do_eval", *_with_checkpoint(argv)])


def predict(argv: list[str]) -> None:
    """Predicts the labels of posts with a checkpoint."""
    _run_classification(["--do_predict", *_with_checkpoint(argv)])


def compare(argv: list[str]) -> None:
    """Forwards to compare.py."""
    from . import compare as command

    command.main(argv)


def share(argv: list[str]) -> None:
    """Forwards to share.py."""
    from . import share as command

    command.main(argv)


def prepare(argv: list[str]) -> None:
    """Forwards to prepare.py."""
    from . import prepare as command

    command.main(argv, prog=f"{PROG} prepare")


def _with_checkpoint(argv: list[str]) -> list[str]:
    """A first argument that isn't a flag as --model_name_or_path."""
    return ["--model_name_or_path", *argv] if argv and not argv[0].startswith("-") else argv


def _recipe_and_flags(argv: list[str]) -> tuple[list[str], list[str]]:
    """The recipe, if the first argument is one, in a list; and the other arguments."""
    has_recipe = bool(argv) and not argv[0].startswith("-")
    return argv[:has_recipe], argv[has_recipe:]


def _read(recipe: list[str]) -> dict[str, Any]:
    """The flags of the recipe, with those it inherits; none without a recipe."""
    from .runs.recipes import find_recipe, read_recipe

    return read_recipe(find_recipe(recipe[0])) if recipe else {}


def _run_classification(argv: list[str]) -> None:
    from .. import run_classification

    run_classification.main(argv)


_RECIPE, _CHECKPOINT = "[RECIPE] [--flag value ...]", "CHECKPOINT [--flag value ...]"

VERBS = {
    "train": Verb("Train a model on labelled posts, and evaluate it", train, _RECIPE, _TRAIN),
    "evaluate": Verb("Measure a trained model on labelled posts", evaluate, _CHECKPOINT, _EVALUATE),
    "predict": Verb("Predict the labels of new posts", predict, _CHECKPOINT, _PREDICT),
    "audit": Verb("Find what gives labels away before training", audit, _RECIPE, _AUDIT),
    "compare": Verb("Compare two runs' predictions of the same posts", compare),
    "share": Verb("Check a finished run, and upload it to the Hub", share),
    "prepare": Verb("Convert a published data set, or generate the built-in posts", prepare),
}


if __name__ == "__main__":
    main()
