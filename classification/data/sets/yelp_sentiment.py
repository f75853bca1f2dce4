r"""
Yelp Sentiment (Truong and Lauw, VistaNet, AAAI 2019) in its published raw form, made into posts.

    python -m hf_mamba.classification.prepare yelp_sentiment RAW_DIR OUTPUT_DIR
    python -m hf_mamba.classification.prepare yelp_sentiment RAW_DIR OUTPUT_DIR \
        --train_city NY --validation_city CH --test_city BO

`train.json`, `valid.json` and `test/CITY_test.json` hold a JSON object per line: `{"Rating": 1 to 5, "Text": sentences
joined by |||, "City": ..., "Photos": [{"_id": ...}, ...], "_id": ..., ...}`; photos are `PHOTO_ID.jpg`, anywhere in
`photos`. The label is the rating; `--group_column_name city` of `run_classification.py` gives metrics for each city.
Users, businesses and captions are left out.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from ..sources import SPLIT_NAMES
from .conversion import Post, RawFile, add_conversion_arguments, convert, find_raw, lines_of


# Short name, as the paper's -> name in the raw files, test reviews
CITIES = {
    "BO": ("Boston", 315),
    "CH": ("Chicago", 325),
    "LA": ("Los Angeles", 3_730),
    "NY": ("New York", 1_715),
    "SF": ("San Francisco", 570),
}
SENTENCE_END = "|||"
IMAGE_FOLDERS = ("photos",)

_OF_CITY = "_test.json"

_HINT = (
    " --train_city NY --validation_city CH --test_city BO and the like make splits of the test files that are there."
)
PUBLISHED = {"train": ("train.json", 35_435), "validation": ("valid.json", 2_215)}


def parse_line(line: str) -> dict[str, Any]:
    """
    A raw line as the object it holds.

    Raises:
        ValueError: the line is something else.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not valid JSON") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__}, not an object")
    return row


def to_post(row: dict[str, Any], file: RawFile, *, max_photos: int) -> Post:
    """
    A review as a post, its first `max_photos` photos with it (0: all).

    Raises:
        ValueError: a field is missing or not what it should be.
    """
    for name in ("_id", "Text", "City"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"{name} must be a string")
    city = file.path.name.removesuffix(_OF_CITY)
    if file.path.name.endswith(_OF_CITY) and row["City"] != city:
        raise ValueError(f"City is not {city}, which the file is named after")
    rating, photos = row.get("Rating"), row.get("Photos")
    if type(rating) is not int or not 1 <= rating <= 5:
        raise ValueError("Rating must be a whole number from 1 to 5")
    if not isinstance(photos, list) or not all(isinstance(p, dict) and isinstance(p.get("_id"), str) for p in photos):
        raise ValueError('Photos must be a list of objects such as {"_id": "...", "Caption": "..."}')
    return {
        "id": row["_id"],
        "text": row["Text"].replace(SENTENCE_END, " "),
        "images": [photo["_id"] for photo in photos[: max_photos or None]],
        "label": str(rating),
        "city": row["City"],
    }


def raw_files(raw_dir: Path, cities: dict[str, list[str] | None]) -> list[RawFile]:
    """
    The raw files of each split.

    Args:
        raw_dir: the folder of the raw files
        cities: split -> short names of the cities whose test reviews make it up; None: as published

    Raises:
        ValueError: two splits have a city in common.
    """
    files: list[RawFile] = []
    used: dict[str, str] = {}
    for split in SPLIT_NAMES:
        if cities[split] is None and split in PUBLISHED:
            name, posts = PUBLISHED[split]
            files.append(RawFile(split, find_raw(raw_dir, name), posts))
            continue
        for city in dict.fromkeys(cities[split] or CITIES):
            if used.setdefault(city, split) != split:
                raise ValueError(
                    f"The reviews of {city} would be in {used[city]} and in {split}: name the cities of each split "
                    "with --train_city, --validation_city and --test_city, each city once."
                )
            name, posts = CITIES[city]
            files.append(RawFile(split, find_raw(raw_dir, f"test/{name}{_OF_CITY}", f"{name}{_OF_CITY}"), posts))
    return files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `prepare yelp_sentiment`."""
    raw = "train.json, valid.json, test/Boston_test.json, ..."
    add_conversion_arguments(parser, raw=raw, image_folders=IMAGE_FOLDERS)
    for split in SPLIT_NAMES:
        published = "all five" if split == "test" else f"none, but {PUBLISHED[split][0]}"
        parser.add_argument(
            f"--{split}_city",
            nargs="+",
            choices=CITIES,
            metavar="CITY",
            help=f"make {split} of these cities' test reviews: {', '.join(CITIES)} (default: {published})",
        )
    parser.add_argument(
        "--max_photos",
        type=_count_of_photos,
        default=3,
        metavar="N",
        help="photos of a review, the first ones; 0: all (default: 3)",
    )


def _count_of_photos(text: str) -> int:
    """--max_photos as a number."""
    if (count := int(text)) < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return count


def prepare(args: argparse.Namespace) -> None:
    """Converts the raw files that the arguments of `add_arguments` name."""
    files = raw_files(args.raw_dir, {split: getattr(args, f"{split}_city") for split in SPLIT_NAMES})
    rows_of = partial(lines_of, parse=parse_line)
    convert(args, files, rows_of, partial(to_post, max_photos=args.max_photos), IMAGE_FOLDERS, _HINT)
