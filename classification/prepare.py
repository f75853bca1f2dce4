"""
Prepares posts for run_classification.py: a published data set from its raw files, or the built-in posts.

    python -m hf_mamba.classification.prepare twitter_sarcasm RAW_DIR OUTPUT_DIR
    python -m hf_mamba.classification.prepare builtin FOLDER --train 4000
    python -m hf_mamba.classification.prepare NAME --help

Another data set is a module with `add_arguments(parser)` and `prepare(args)`, and a line in DATA_SETS.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol

from .data.sets import builtin, mmsd2, twitter_sarcasm, yelp_sentiment
from .support.command_line import run_command
from .support.messages import did_you_mean


class DataSet(Protocol):
    """What a module of DATA_SETS has; the first line of its docstring is the data set in words."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the data set's own arguments to its part of the command line."""

    def prepare(self, args: argparse.Namespace) -> None:
        """Writes the posts; raises ValueError or OSError with the fix where it can't."""


DATA_SETS: dict[str, DataSet] = {
    "twitter_sarcasm": twitter_sarcasm,
    "mmsd2": mmsd2,
    "yelp_sentiment": yelp_sentiment,
    "builtin": builtin,
}


def main(argv: Sequence[str] | None = None, prog: str = "python -m hf_mamba.classification.prepare") -> None:
    """The command line; a missing or misspelt NAME lists the names, with exit code 2."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = make_parser(prog)
    if not argv or not argv[0].startswith("-") and argv[0] not in DATA_SETS:
        mistake = f"There is no data set {argv[0]!r}.{did_you_mean(argv[0], DATA_SETS)}" if argv else "Which data set?"
        names = "\n".join(f"  {name:<16} {in_words(module)}" for name, module in DATA_SETS.items())
        parser.exit(2, f"{mistake} Give one of these names, then --help for its arguments:\n{names}\n")
    args = parser.parse_args(argv)
    DATA_SETS[args.name].prepare(args)


def make_parser(prog: str) -> argparse.ArgumentParser:
    """The command line with a subcommand for each data set."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.strip().split("\n")[0])
    subparsers = parser.add_subparsers(dest="name", metavar="NAME", required=True)
    for name, module in DATA_SETS.items():
        text = in_words(module).replace("%", "%%")
        module.add_arguments(subparsers.add_parser(name, help=text, description=text))
    return parser


def in_words(module: DataSet) -> str:
    """The first line of a module's docstring."""
    return (module.__doc__ or "").strip().split("\n")[0]


if __name__ == "__main__":
    run_command(main)
