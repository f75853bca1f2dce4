r"""
Yelp Sentiment (Truong and Lauw, VistaNet, AAAI 2019) in its published raw form, made into posts.

    python -m hf_mamba.classification.yelp_sentiment RAW_DIR OUTPUT_DIR
    python -m hf_mamba.classification.yelp_sentiment RAW_DIR OUTPUT_DIR \
        --train_city NY --validation_city CH --test_city BO

`train.json`, `valid.json` and `test/CITY_test.json` hold a JSON object per line: `{"Rating": 1 to 5, "Text": sentences
joined by |||, "City": ..., "Photos": [{"_id": ...}, ...], "_id": ..., ...}`; photos are `PHOTO_ID.jpg`, anywhere in
`photos`. The label is the rating; `--group_column_name city` of `run_classification.py` gives metrics for each city.
Users, businesses and captions are left out.
"""

import json
from functools import partial

from ...support.command_line import run_command
from ..sources import SPLIT_NAMES
from .conversion import RawFile, conversion_parser, convert, find_raw, lines_of


# Short name, as the paper's -> name in the raw files, test reviews
CITIES = {
    "BO": ("Boston", 315),
    "CH": ("Chicago", 325),
    "LA": ("Los Angeles", 3_730),
    "NY": ("New York", 1_715),
    "SF": ("San Francisco", 570),
}
SENTENCE_END = "|||"
PICTURES = ("photos",)

_OF_CITY = "_test.json"

_HINT = (
    " --train_city NY --validation_city CH --test_city BO and the like make splits of the test files that are there."
)
PUBLISHED = {"train": ("train.json", 35_435), "validation": ("valid.json", 2_215)}


def parse_line(line: str) -> dict:
    """
    A raw line as the object it holds.

    Raises:
        ValueError: the line is something else.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("no valid JSON") from None
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__}, not an object")
    return row


def to_post(row: dict, file: RawFile, *, max_photos: int) -> dict:
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


def raw_files(raw_dir, cities: dict[str, list[str] | None]) -> list[RawFile]:
    """
    The raw files of each split.

    Args:
        raw_dir: the folder of the raw files
        cities: split -> short names of the cities whose test reviews make it up; None: as published

    Raises:
        ValueError: two splits have a city in common.
    """
    files, used = [], {}
    for split in SPLIT_NAMES:
        if cities[split] is None and split in PUBLISHED:
            name, posts = PUBLISHED[split]
            files.append(RawFile(split, find_raw(raw_dir, name), posts))
            continue
        for city in dict.fromkeys(cities[split] or CITIES):
            if used.setdefault(city, split) != split:
                raise ValueError(
                    f"The reviews of {city} would be in {used[city]} and in {split}: say which cities make up each "
                    "split with --train_city, --validation_city and --test_city, each city once."
                )
            name, posts = CITIES[city]
            files.append(RawFile(split, find_raw(raw_dir, f"test/{name}{_OF_CITY}", f"{name}{_OF_CITY}"), posts))
    return files


def main(argv=None):
    """The command line."""
    parser = conversion_parser(
        "yelp_sentiment", __doc__, raw="train.json, valid.json, test/Boston_test.json, ...", pictures=PICTURES
    )
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
        type=int,
        default=3,
        metavar="N",
        help="photos of a review, the first ones; 0: all (default: 3)",
    )
    args = parser.parse_args(argv)
    if args.max_photos < 0:
        parser.error("--max_photos must be 0 or more")
    files = raw_files(args.raw_dir, {split: getattr(args, f"{split}_city") for split in SPLIT_NAMES})
    rows_of = partial(lines_of, parse=parse_line)
    return convert(args, files, rows_of, partial(to_post, max_photos=args.max_photos), PICTURES, _HINT)


if __name__ == "__main__":
    run_command(main)
