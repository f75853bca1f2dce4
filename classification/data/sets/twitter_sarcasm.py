"""
Twitter Sarcasm (Cai, Cai and Wan, ACL 2019) in its published raw form, made into posts.

    python -m hf_mamba.classification.prepare twitter_sarcasm RAW_DIR OUTPUT_DIR

A raw line is a Python list: `[id, text, label]` in `text/train.txt`, `[id, text, hashtag label, human label]` in
`text/valid2.txt` and `text/test2.txt`, where the human label counts. The image of a post is `dataset_image/ID.jpg`.
Texts stay what they are, white space included: it gives the labels away (docs/paper_data.md), and an audit must see
it.
"""

import argparse
import ast
import warnings
from typing import Any

from .conversion import Post, RawFile, add_conversion_arguments, convert, find_raw, lines_of


# Posts that have one of these as a word are dropped, as in the authors' own code: they give the label away
DROPPED_WORDS = frozenset(
    ("sarcasm", "sarcastic", "reposting", "<url>", "joke", "humour", "humor", "jokes", "irony", "ironic", "exgag")
)

LABELS = ("not_sarcastic", "sarcastic")  # by the raw label, 0 or 1
IMAGE_FOLDERS = ("dataset_image",)

# split -> raw file, posts that are left, those of them that are sarcastic
FILES = {
    "train": ("train.txt", 19_816, 8_642),
    "validation": ("valid2.txt", 2_410, 959),
    "test": ("test2.txt", 2_409, 959),
}
_TRAIN_FIELDS = ("id", "text", "label")
_HUMAN_FIELDS = ("id", "text", "hashtag label", "human label")


def parse_line(line: str) -> list[Any]:
    """
    A raw line as the list it writes out. Only literals are read: nothing in a line is ever run.

    Raises:
        ValueError: the line is something else.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # a backslash in a tweet
            row = ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError("not a Python literal such as ['id', 'text', 1]") from None
    if not isinstance(row, list):
        raise ValueError(f"a Python {type(row).__name__}, not a list")
    return row


def to_post(row: list[Any], file: RawFile) -> Post | None:
    """
    A raw row as a post, None if it has one of the dropped words.

    Raises:
        ValueError: another number of fields, or one that is not what it should be.
    """
    fields = _TRAIN_FIELDS if file.split == "train" else _HUMAN_FIELDS
    if len(row) != len(fields):
        raise ValueError(f"{len(row)} fields, not {len(fields)} ({', '.join(fields)})")
    name, text, label = row[0], row[1], label_name(row[-1])
    if not (isinstance(name, str) and name and isinstance(text, str)):
        raise ValueError("the id and the text must be strings")
    if not DROPPED_WORDS.isdisjoint(text.split()):
        return None
    return {"id": name, "text": text, "images": [name], "label": label}


def label_name(label: object) -> str:
    """
    0 or 1 in words.

    Raises:
        ValueError: it is something else, True and "1" included.
    """
    if type(label) is not int or label not in (0, 1):
        given = label if type(label) is int else f"a {type(label).__name__}"
        raise ValueError(f"the label must be 0 or 1, not {given}")
    return LABELS[label]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prepare twitter_sarcasm`."""
    raw = "text/train.txt, text/valid2.txt, text/test2.txt"
    add_conversion_arguments(parser, raw=raw, image_folders=IMAGE_FOLDERS)


def prepare(args: argparse.Namespace) -> None:
    """Converts the raw files that the arguments of `add_arguments` name."""
    files = [
        RawFile(split, find_raw(args.raw_dir, f"text/{name}", name), posts, {LABELS[1]: positives})
        for split, (name, posts, positives) in FILES.items()
    ]
    convert(args, files, lambda path: lines_of(path, parse_line), to_post, IMAGE_FOLDERS)
