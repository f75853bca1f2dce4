"""Posts for training: rows of any supported source as `id`, `text`, `images` and `label`, checked, undecoded.

    posts = load_posts(DataArguments(train_file="posts/train.csv"), seed=0)
    check_images(posts)
    Trainer(..., train_dataset=posts.splits["train"], data_collator=PostCollator(processor))

with `remove_unused_columns=False` among the training arguments, since the collator reads raw columns.

Images stay where they are: a row holds their paths, or their bytes where the data hold bytes, and an image is
decoded when a batch needs it. Rows keep their order. docs/data.md says what becomes of each kind of file and post.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from transformers.utils import logging

from .arguments import DataArguments, check_data_arguments
from .columns import as_text, find_columns, is_missing, parse_modalities, repair_surrogates, usual_column
from .image_sources import UnpackImages, is_encoded
from .images import find_bad_images, read_images
from .labels import REGRESSION, SINGLE, LabelScheme, read_label_cells
from .messy_posts import apply_on_bad_image, apply_on_empty_post, check_some_are_left, leave_out
from .posts import Posts
from .raw_split import RawSplit
from .sources import SPLIT_NAMES, read_splits
from .splits import ChosenRows, keep_first, only_train, set_aside_missing, splits_of_fold
from .streaming import PostStream, read_streams


logger = logging.get_logger(__name__)

ROLES = ("text", "image", "label", "id", "group")


def load_posts(
    args: DataArguments,
    *,
    seed: int,
    label_names: Sequence[str] | None = None,
    problem_type: str | None = None,
    wanted: Sequence[str] = tuple(SPLIT_NAMES),
) -> Posts:
    """
    Reads and checks the posts that the flags name.

    Args:
        args: the flags
        seed: decides which training posts are set aside for validation and test
        label_names: a checkpoint's labels, in their order; needed without a training split
        problem_type: the checkpoint's, or the one asked for; None leaves it to the training labels
        wanted: the splits that are read with --streaming; of stored data all are

    Raises:
        FileNotFoundError, ValueError: names the file, row, column or flag, what was found and what would be right.
    """
    modalities = parse_modalities(args.modalities)
    check_data_arguments(args)
    raw_splits, source = read_streams(args, wanted) if args.streaming else read_splits(args)
    _check_test_split(args, raw_splits)
    if args.folds is not None:
        raw_splits = only_train(raw_splits)
    named = {role: getattr(args, f"{role}_column_name") for role in ROLES}
    columns = find_columns(raw_splits, named, modalities)
    scheme, chosen = _read_labels(args, raw_splits, columns.get("label"), label_names, problem_type)
    if args.folds is not None:
        text_column = columns.get("text") or named["text"] or usual_column(raw_splits, "text", {*columns.values()})
        chosen = splits_of_fold(chosen["train"], text_column, scheme, args, seed)
    elif not args.streaming:
        chosen = set_aside_missing(chosen, scheme, args, seed)
    posts = Posts(DatasetDict(), scheme.names, scheme.problem_type, columns, source)
    for split, part in keep_first(chosen, args).items():
        _add_split(posts, split, part, args)
        posts.describe(split)
    check_some_are_left(posts)
    if args.streaming and "train" in posts.splits:
        _stream_train(posts, raw_splits["train"], args, scheme, seed)
    return posts


def _check_test_split(args: DataArguments, raw_splits: Mapping[str, RawSplit]) -> None:
    """Unlike --validation_split, --test_split is only there if it was asked for, so it must be of use."""
    if args.test_split > 0 and "test" in raw_splits:
        raise ValueError(
            f"--test_split {args.test_split} is for data without test posts, but {raw_splits['test'].place} holds "
            "some: leave one of them out."
        )


def _read_labels(
    args: DataArguments,
    raw_splits: Mapping[str, RawSplit],
    column: str | None,
    label_names: Sequence[str] | None,
    problem_type: str | None,
) -> tuple[LabelScheme, dict[str, ChosenRows]]:
    """What the labels are, and all rows of each raw split with theirs."""
    cells = {split: read_label_cells(split, raw, column) for split, raw in raw_splits.items()}
    scheme = _label_scheme(args, raw_splits, cells, column, label_names, problem_type)
    chosen = {}
    for split, raw in raw_splits.items():
        of_split = cells[split]
        labels = None if of_split is None or column is None else scheme.values(raw, of_split, column)
        chosen[split] = ChosenRows(raw, range(len(raw)), labels)
    return scheme, chosen


def _label_scheme(
    args: DataArguments,
    raw_splits: Mapping[str, RawSplit],
    cells: Mapping[str, Sequence | None],
    column: str | None,
    label_names: Sequence[str] | None,
    problem_type: str | None,
) -> LabelScheme:
    """What the labels are: as the checkpoint says, as --label_list says, or as the training posts show."""
    separator = args.label_separator
    if label_names is not None:
        return LabelScheme(problem_type or SINGLE, list(label_names), separator=separator)
    if "train" not in raw_splits:
        raise ValueError("No training posts: give --train_file, or the checkpoint to use as --model_name_or_path.")
    train, labels = raw_splits["train"], cells["train"]
    assert labels is not None and column is not None  # `find_columns` refuses training posts without labels
    scheme = LabelScheme.from_training(train, labels, column, problem_type, separator)
    if args.label_list:
        if scheme.problem_type == REGRESSION:
            raise ValueError("--label_list names classes or labels, but the labels are numbers: leave it out.")
        scheme = replace(scheme, names=list(args.label_list), unknown="not in --label_list")
    return scheme


# A streamed training split


def _stream_train(posts: Posts, raw: RawSplit, args: DataArguments, scheme: LabelScheme, seed: int) -> None:
    """Makes the stream the training split, and its first posts the `sample`."""
    posts.sample = posts.splits["train"]
    posts_of = partial(_posts_of_chunk, replace(posts, sample=None), args, partial(_stream_labels, scheme))
    posts.splits["train"] = PostStream(
        raw, posts_of, seed=seed, buffer=args.stream_shuffle_buffer, limit=args.max_train_samples
    )
    posts.dropped.pop("train", None)  # of the sample, which comes again
    when = "when" if args.on_bad_image == "error" else "before"
    logger.info(f"{raw.place} is streamed: its images are checked {when} their turn comes, not all before training.")


def _posts_of_chunk(
    whole: Posts, args: DataArguments, labels_of: Callable[[RawSplit, str], list], raw: RawSplit, quiet: bool
) -> Posts:
    """A few rows of a stream, treated like those of a file."""
    posts = replace(whole, splits=DatasetDict(), origins={}, num_images={}, dropped={}, quiet=quiet)
    _add_split(posts, "train", ChosenRows(raw, range(len(raw)), labels_of(raw, posts.columns["label"])), args)
    if args.on_bad_image != "error" and len(posts.splits["train"]):
        bad = find_bad_images(posts, progress=False)
        apply_on_bad_image(posts, bad, on_bad_image=args.on_bad_image, on_empty_post=args.on_empty_post)
    return posts


def _stream_labels(scheme: LabelScheme, raw: RawSplit, column: str) -> list:
    try:
        return scheme.values(raw, raw.cells(column), column)
    except ValueError as error:
        raise ValueError(
            f"{error} With --streaming the labels are those of the first posts: read more of them first by "
            "--stream_first_pass, or name all labels by --label_list."
        ) from None


# The rows of a split


def _add_split(posts: Posts, split: str, part: ChosenRows, args: DataArguments) -> None:
    """Reads the texts and looks for the images of a split's rows; posts that may be left out are."""
    raw, rows, columns = part.raw, part.rows, posts.columns
    texts: list[str | None] = [None] * len(raw)
    images: list[list[str]] = [[]] * len(raw)
    missing: dict[int, list[str]] = {}
    shortened = 0
    if "text" in columns:
        cells = raw.cells(columns["text"])
        for row in rows:
            texts[row] = as_text(cells[row], raw.where(row), columns["text"])
    if "image" in columns:
        images, missing, shortened = read_images(
            raw, rows, columns["image"], args.max_images or None, args.on_bad_image
        )
    dataset = _build_split(part, texts, images, posts, args)
    posts.add(split, dataset, (raw, rows), [len(images[row]) for row in rows])
    missing = {index: missing[row] for index, row in enumerate(rows) if row in missing}
    if shortened and not posts.quiet:
        logger.warning(
            f"{raw.place}: {shortened} posts have more than {args.max_images} images; the first {args.max_images} "
            "are used, the others left out (--max_images)."
        )
    leave_out(posts, split, missing, args.on_bad_image, args.on_empty_post)
    apply_on_empty_post(posts, split, args.on_empty_post)


def _build_split(
    part: ChosenRows,
    texts: Sequence[str | None],
    images: Sequence[Sequence[str]],
    posts: Posts,
    args: DataArguments,
) -> Dataset:
    raw, rows, columns = part.raw, part.rows, posts.columns
    id_column = columns.get("id")
    given_ids = raw.cells(id_column) if id_column is not None and id_column in raw.columns else raw.numbers
    table: dict[str, Sequence] = {
        "id": [repair_surrogates(str(number if own is None else own)) for own, number in zip(given_ids, raw.numbers)],
        "text": texts,
        "images": images,
    }
    features = {"id": Value("string"), "text": Value("string"), "images": List(Value("string"))}
    if "group" in columns:
        table["group"], features["group"] = _read_groups(raw, columns["group"]), Value("string")
    if part.labels is not None:
        table["label"] = part.labels
        features["label"] = LabelScheme(posts.problem_type, posts.label_names).feature()
    unpack = UnpackImages(raw.folder, args.max_images or None)
    if not raw.has_pixels(columns.get("image")):
        table = {name: [cells[row] for row in rows] for name, cells in table.items()}
        encoded = any(is_encoded(source) for sources in table["images"] for source in sources)
        dataset = Dataset.from_dict(table, features=Features(features))
        return dataset.with_transform(unpack) if encoded else dataset
    del table["images"], features["images"]
    pixels = raw.undecoded(columns["image"]).rename_columns({columns["image"]: "images"})
    # Side by side the stored images stay in the data set's own files, mapped into memory
    dataset = concatenate_datasets([Dataset.from_dict(table, features=Features(features)), pixels], axis=1)
    return dataset.select(rows).with_transform(unpack)


def _read_groups(raw: RawSplit, column: str) -> list[str]:
    if column not in raw.columns:
        logger.warning(f"{raw.place} has no column {column!r} (--group_column_name): its posts are one group.")
        return ["(none)"] * len(raw)
    cells = ["" if is_missing(cell) else repair_surrogates(str(cell)).strip() for cell in raw.cells(column)]
    return [cell or "(none)" for cell in cells]
