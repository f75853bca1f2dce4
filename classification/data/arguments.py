"""The flags that say which posts are read and how, each with its own check."""

import re
from dataclasses import dataclass, field


ON_BAD_IMAGE = ("error", "drop", "keep_text")
ON_EMPTY_POST = ("error", "drop")

# Split -> the flag that names its file
FILE_FLAGS = {"train": "train_file", "validation": "validation_file", "test": "test_file"}

_USUAL = "Default: found by its usual names"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass
class DataArguments:
    """Which posts, and how they are read."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A data set of the Hub, a folder written by save_to_disk of `datasets`, a folder with "
            "train/metadata.jsonl (or .csv) beside its images and likewise validation and test, a folder of "
            "images for each label, train/LABEL/*.jpg, or posts that are generated on first use: builtin, "
            "builtin:three, builtin:several (multi-label) or builtin:score (regression)"
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the Hub's data set"})
    train_file: str | None = field(
        default=None, metadata={"help": "Training posts: .csv, .tsv, .jsonl, .json or .parquet; .gz"}
    )
    validation_file: str | None = field(default=None, metadata={"help": "Validation posts, likewise"})
    test_file: str | None = field(default=None, metadata={"help": "Test posts, likewise; labels may be absent"})
    image_dir: str | None = field(
        default=None,
        metadata={
            "help": "Where relative image paths start; given, no image may lie outside. Default: the folder of the "
            "file they are in"
        },
    )
    text_column_name: str | None = field(default=None, metadata={"help": f"Column of the texts. {_USUAL}"})
    image_column_name: str | None = field(default=None, metadata={"help": f"Column of the images. {_USUAL}"})
    label_column_name: str | None = field(default=None, metadata={"help": f"Column of the labels. {_USUAL}"})
    id_column_name: str | None = field(
        default=None, metadata={"help": f"Column of the posts' ids. {_USUAL}, else the row's number"}
    )
    group_column_name: str | None = field(
        default=None,
        metadata={"help": "Column that names each post's group (its city, for example): metrics for each group"},
    )
    label_separator: str | None = field(
        default=None,
        metadata={"help": "What stands between several labels in a cell, ',' for one. Default: lists, in csv as JSON"},
    )
    positive_label: str | None = field(
        default=None,
        metadata={"help": "The label that precision, recall and F1 are about. Default: of two labels the second"},
    )
    modalities: str = field(default="text,image", metadata={"help": "text,image or only one: the other is dropped"})
    max_seq_length: int | None = field(default=None, metadata={"help": "Texts are cut to so many tokens. Default: 64"})
    max_images: int | None = field(default=4, metadata={"help": "Images used of a post, the first ones; 0: all"})
    on_bad_image: str = field(
        default="error",
        metadata={
            "help": "An image that is missing or can't be read: error, drop the post, or keep_text: the post stays "
            "without the image",
            "choices": ON_BAD_IMAGE,
        },
    )
    on_empty_post: str = field(
        default="error",
        metadata={"help": "A post with neither text nor image: error, or drop the post", "choices": ON_EMPTY_POST},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many posts only"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Validate on the first so many posts only"})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Predict the first so many posts only"})
    streaming: bool = field(
        default=False,
        metadata={"help": "Train on --dataset_name while it is read, storing nothing; goes with --max_steps"},
    )
    stream_first_pass: int = field(
        default=10_000,
        metadata={"help": "With --streaming: posts read before training, for the columns, labels and vocabulary"},
    )
    stream_shuffle_buffer: int = field(
        default=1000,
        metadata={"help": "With --streaming: the next post is drawn at random from so many, held in memory"},
    )
    label_list: list[str] | None = field(
        default=None, metadata={"help": "All labels, in the order of their ids. Default: those of the training posts"}
    )
    validation_split: float = field(
        default=0.1, metadata={"help": "Share of the training posts set aside where no validation posts are given"}
    )
    test_split: float = field(
        default=0.0,
        metadata={"help": "Share of the training posts set aside for --do_predict where no test posts are given"},
    )
    split_seed: int | None = field(default=None, metadata={"help": "Decides which posts these are. Default: --seed"})
    vocab_size: int | None = field(
        default=None, metadata={"help": "Word pieces to learn from the training texts, at most. Default: 8000"}
    )
    folds: int | None = field(
        default=None,
        metadata={
            "help": "Cross-validation: split the training posts into so many parts, those with the same text into the "
            "same one, and test on each a model trained on the others, in fold-N of the output folder"
        },
    )
    fold: int | None = field(default=None, metadata={"help": "Run only this one of the --folds, from 1 on"})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Name or folder of a tokenizer to use in place of a new vocabulary"}
    )
    image_cache: str = field(
        default="auto",
        metadata={
            "help": "Images are decoded once, into this folder, which runs share. auto: beside the data sets that "
            "`datasets` keeps; off: they are decoded whenever they are used"
        },
    )
    image_cache_budget: str = field(
        default="4GB",
        metadata={
            "help": "At most so much in --image_cache, of all runs together; what doesn't fit is decoded at each use"
        },
    )
    reduce_jpeg: bool | None = field(
        default=None,
        metadata={
            "help": "Decode large JPEGs at a reduced scale, in training and wherever the checkpoint is used: several "
            "times faster, pixels differ a little. Default: no, or the loaded checkpoint's"
        },
    )


def check_data_arguments(args: DataArguments) -> None:
    """
    Each flag by itself, then the flags against each other, before anything is read.

    Raises:
        ValueError: names the flag, its value and what would be right.
    """
    for name in ("max_train_samples", "max_eval_samples", "max_predict_samples", "max_seq_length", "vocab_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: give 1 or more, or leave it out.")
    for name in ("validation_split", "test_split"):
        if not 0 <= getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: give a share of the training posts, 0 to 1.")
    for name, choices in (("on_bad_image", ON_BAD_IMAGE), ("on_empty_post", ON_EMPTY_POST)):
        if getattr(args, name) not in choices:
            raise ValueError(f"--{name} {getattr(args, name)}: give {', '.join(choices[:-1])} or {choices[-1]}.")
    if args.max_images is not None and args.max_images < 0:
        raise ValueError(f"--max_images {args.max_images}: give 1 or more, or 0 to use all images of a post.")
    parse_size(args.image_cache_budget)
    _check_data_is_named(args)


def _check_data_is_named(args: DataArguments) -> None:
    """The flags that say where the posts are: one way, and only with what goes with it."""
    files = [flag for flag in FILE_FLAGS.values() if getattr(args, flag)]
    if args.streaming:
        if args.dataset_name is None or files:
            raise ValueError("--streaming goes with --dataset_name alone: files are read where they lie.")
        if args.test_split > 0:
            raise ValueError("--test_split needs posts that can be counted: leave it out with --streaming.")
        if args.stream_first_pass < 2 or args.stream_shuffle_buffer < 1:
            raise ValueError("--stream_first_pass must be 2 or more, --stream_shuffle_buffer 1 or more.")
    if args.dataset_name and files:
        given = ", ".join(f"--{flag}" for flag in files)
        raise ValueError(f"--dataset_name and {given} are both given: leave one of them out.")
    if not (args.dataset_name or files):
        raise ValueError("No data: give --dataset_name, or --train_file, --validation_file or --test_file.")


def parse_size(text: str) -> int:
    """The bytes of "4GB", "500 MB" or "2GiB"."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([KMGT]?)(i?)B?", str(text).strip(), flags=re.IGNORECASE)
    if match is None:
        raise ValueError(f"--image_cache_budget {text}: give a size such as 4GB or 500MB.")
    number, unit, binary = float(match[1]), match[2].upper(), match[3]
    return int(number * (1024 ** "KMGT".index(unit) * 1024 if binary and unit else _UNITS[unit]))
