"""
MMSD2.0 (Qin et al., Findings of ACL 2023), the corrected Twitter Sarcasm, in its published raw form, made into posts.

    python -m hf_mamba.classification.mmsd2 RAW_DIR OUTPUT_DIR

RAW_DIR is the folder `data` of its repository: `text_json_final/train.json`, `valid.json` and `test.json` are arrays
of `{"image_id": ..., "text": ..., "label": 0 or 1}`; the picture of a post is `dataset_image/IMAGE_ID.jpg`.
"""

from ...support.command_line import run_command
from .conversion import RawFile, conversion_parser, convert, entries_of, find_raw
from .twitter_sarcasm import LABELS, PICTURES, label_name


__all__ = ["LABELS", "main", "to_post"]

# split -> raw file, posts. How many are sarcastic is not checked: we have no published count that we trust
FILES = {"train": ("train.json", 19_816), "validation": ("valid.json", 2_410), "test": ("test.json", 2_409)}


def to_post(row: dict, file: RawFile) -> dict:
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


def main(argv=None):
    """The command line."""
    parser = conversion_parser(
        "mmsd2", __doc__, raw="text_json_final/train.json, valid.json, test.json", pictures=PICTURES
    )
    args = parser.parse_args(argv)
    files = [
        RawFile(split, find_raw(args.raw_dir, f"text_json_final/{name}", f"data/text_json_final/{name}"), posts)
        for split, (name, posts) in FILES.items()
    ]
    return convert(args, files, entries_of, to_post, (*PICTURES, "data/dataset_image"))


if __name__ == "__main__":
    run_command(main)
