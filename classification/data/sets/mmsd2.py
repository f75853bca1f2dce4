"""
MMSD2.0 (Qin et al., Findings of ACL 2023), the corrected Twitter Sarcasm, in its published raw form, made into posts.

    python -m hf_mamba.classification.prepare mmsd2 RAW_DIR OUTPUT_DIR

RAW_DIR is the folder `data` of its repository: `text_json_final/train.json`, `valid.json` and `test.json` are arrays
of `{"image_id": ..., "text": ..., "label": 0 or 1}`; the image of a post is `dataset_image/IMAGE_ID.jpg`.
"""

import argparse
from typing import Any

from .conversion import Post, RawFile, add_conversion_arguments, convert, entries_of, find_raw
from .twitter_sarcasm import IMAGE_FOLDERS, label_name


# split -> raw file, posts. How many are sarcastic is not checked: we have no published count that we trust
FILES = {"train": ("train.json", 19_816), "validation": ("valid.json", 2_410), "test": ("test.json", 2_409)}


def to_post(row: dict[str, Any], file: RawFile) -> Post:
    """
    An entry as a post.

    Raises:
        ValueError: a field is missing or not what it should be.
    """
    name, text = row.get("image_id"), row.get("text")
    if type(name) not in (str, int) or name == "":
        raise ValueError("image_id must be a string or a whole number")
    if not isinstance(text, str):
        raise ValueError("text must be a string")
    return {"id": str(name), "text": text, "images": [str(name)], "label": label_name(row.get("label"))}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prepare mmsd2`."""
    raw = "text_json_final/train.json, valid.json, test.json"
    add_conversion_arguments(parser, raw=raw, image_folders=IMAGE_FOLDERS)


def prepare(args: argparse.Namespace) -> None:
    """Converts the raw files that the arguments of `add_arguments` name."""
    files = [
        RawFile(split, find_raw(args.raw_dir, f"text_json_final/{name}", f"data/text_json_final/{name}"), posts)
        for split, (name, posts) in FILES.items()
    ]
    convert(args, files, entries_of, to_post, (*IMAGE_FOLDERS, "data/dataset_image"))
