"""Posts for training: rows of any supported source as `id`, `text`, `images` and `label`, checked, undecoded.

    posts = load_posts(DataArguments(train_file="posts/train.csv"), seed=0)
    check_images(posts)
    Trainer(..., train_dataset=posts.splits["train"], data_collator=PostCollator(processor))

with `remove_unused_columns=False` among the training arguments, since the collator reads raw columns.

Pictures stay where they are: a row holds their paths, or their bytes where the data hold bytes, and a picture is
decoded when a batch needs it. Rows keep their order. docs/data.md says what becomes of each kind of file and post.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from transformers.utils import logging

from ...processing_hf_mamba import load_rgb_image
from ..evaluation.metrics import baseline_of
from .columns import as_text, find_columns, is_missing, mend, parse_modalities, usual_column
from .image_cache import ImageCacheArguments
from .images import UnpackImages, find_bad_images, is_encoded, read_images
from .labels import REGRESSION, SINGLE, LabelScheme, is_varied, read_label_cells, set_aside
from .messy_posts import (
    ON_BAD_IMAGE,
    ON_EMPTY_POST,
    check_images,
    check_some_are_left,
    leave_out_images,
    settle_bad_images,
    settle_empty_posts,
)
from .raw_split import RawSplit
from .sources import SPLIT_NAMES, read_splits
from .splits import rows_of_fold
from .streaming import PostStream, read_streams


__all__ = ["DataArguments", "PostCollator", "Posts", "check_images", "load_posts"]

logger = logging.get_logger(__name__)

_USUAL = "Default: found by its usual names"


@dataclass
class DataArguments(ImageCacheArguments):
    """Which posts, and how they are read."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A data set of the Hub, a folder written by save_to_disk of `datasets`, a folder with "
            "train/metadata.jsonl (or .csv) beside its pictures and likewise validation and test, a folder of "
            "pictures for each label, train/LABEL/*.jpg, or posts that are drawn on first use: builtin, "
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
            "help": "Where relative image paths start; given, no picture may lie outside. Default: the folder of the "
            "file they are in"
        },
    )
    text_column_name: str | None = field(default=None, metadata={"help": f"Column of the texts. {_USUAL}"})
    image_column_name: str | None = field(default=None, metadata={"help": f"Column of the pictures. {_USUAL}"})
    label_column_name: str | None = field(default=None, metadata={"help": f"Column of the labels. {_USUAL}"})
    id_column_name: str | None = field(
        default=None, metadata={"help": f"Column of the posts' ids. {_USUAL}, else the row's number"}
    )
    group_column_name: str | None = field(
        default=None,
        metadata={"help": "Column that tells groups of posts apart (a city, say): metrics for each of them"},
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
    max_images: int | None = field(default=4, metadata={"help": "Pictures used of a post, the first ones; 0: all"})
    on_bad_image: str = field(
        default="error",
        metadata={
            "help": "A picture that is missing or can't be read: error, drop the post, or keep_text: the post stays "
            "without the picture",
            "choices": ON_BAD_IMAGE,
        },
    )
    on_empty_post: str = field(
        default="error",
        metadata={"help": "A post with neither text nor picture: error, or drop the post", "choices": ON_EMPTY_POST},
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
        default=1000, metadata={"help": "With --streaming: the next post is drawn from so many; they lie in memory"}
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
            "help": "Cross-validation: deal the training posts into so many parts, those with the same text into the "
            "same, and test on each a model trained on the others, in fold-N of the output folder"
        },
    )
    fold: int | None = field(default=None, metadata={"help": "Run only this one of the --folds, from 1 on"})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Name or folder of a tokenizer to use in place of a new vocabulary"}
    )


@dataclass
class Posts:
    """
    What `load_posts` returns.

    Args:
        splits: train, validation, test, as far as there are any; columns `id` (str), `text` (str or None), `images`
            (list of str or bytes); with --group_column_name `group` (str); where labels are known `label`: a
            ClassLabel, a list of bools (num_labels,) or a float, as the problem type says
        label_names: the labels' names by label id
        problem_type: single_label_classification, multi_label_classification or regression
        columns: role (text, image, label, id) -> the column it was found in
        source: what the posts come from, for people
        origins: for each split, where its rows lie: the raw split and the index of each row in it
        num_images: for each split, how many pictures each row has
        dropped: split -> what was left out of it -> how many, by --on_bad_image and --on_empty_post
        sample: the first posts of a streamed training split; `column` reads these
        quiet: nothing is said of posts that are left out
        image_cache: an ImageCache, if their pictures are to be decoded only once
    """

    splits: DatasetDict
    label_names: list[str]
    problem_type: str
    columns: dict[str, str]
    source: str
    origins: dict[str, tuple[RawSplit, Sequence[int]]] = field(repr=False)
    num_images: dict[str, list[int]] = field(default_factory=dict, repr=False)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    sample: Dataset | None = field(default=None, repr=False)
    quiet: bool = False
    image_cache: object | None = field(default=None, repr=False)

    def where(self, split: str, row: int) -> str:
        """Names row `row` of a split as the file or data set counts it."""
        raw, rows = self.origins[split]
        return raw.where(rows[row])

    def column(self, split: str, name: str) -> list:
        """The cells of a column but `images`; unlike `splits[split][name]` it reads no picture that is stored."""
        dataset = self.sample if split == "train" and self.sample is not None else self.splits[split]
        return dataset.with_format(None).select_columns([name])[:][name]

    def describe(self, split: str) -> None:
        """Says in the log how many posts of a split have what."""
        texts, images = self.column(split, "text"), self.num_images[split]
        logger.info(
            f"{split}: {len(texts):,} posts of {self.origins[split][0].place}, {sum(t is not None for t in texts):,} "
            f"with text, {sum(map(bool, images)):,} with pictures ({sum(images):,} pictures)"
        )

    def counts(self) -> str:
        """How many posts each split has, for people."""
        stored = {split: f"{len(rows):,} {split}" for split, rows in self.splits.items() if isinstance(rows, Dataset)}
        return ", ".join(stored.get(split, f"{split} streamed") for split in self.splits)

    def left_out(self) -> str:
        """What was left out of the splits, for people; empty if nothing was."""
        counts = {split: ", ".join(f"{n:,} {what}" for what, n in of.items()) for split, of in self.dropped.items()}
        return "; ".join(f"{split}: {count}" for split, count in counts.items())

    @property
    def baseline(self):
        """The best answer that looks at no post, see `baseline_of`; None without a training split."""
        if "train" not in self.splits:
            return None
        return baseline_of(self.column("train", "label"), self.problem_type)


@dataclass
class _Chosen:
    """The rows of a raw split that make up a split, and the labels of all rows of the raw split, if known."""

    raw: RawSplit
    rows: Sequence[int]
    labels: list | None


def load_posts(
    args: DataArguments,
    *,
    seed: int,
    label_names: list[str] | None = None,
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
    _check_numbers(args)
    raw_splits, source = read_streams(args, wanted) if args.streaming else read_splits(args)
    _check_test_split(args, raw_splits)
    if args.folds is not None:
        raw_splits = _only_train(raw_splits)
    named = {role: getattr(args, f"{role}_column_name") for role in ("text", "image", "label", "id", "group")}
    columns = find_columns(raw_splits, named, modalities)
    label_column = columns.get("label")
    cells = {split: read_label_cells(split, raw, label_column) for split, raw in raw_splits.items()}
    scheme = _label_scheme(args, raw_splits, cells, label_column, label_names, problem_type)
    chosen = {}
    for split, raw in raw_splits.items():
        values = None if cells[split] is None else scheme.values(raw, cells[split], label_column)
        chosen[split] = _Chosen(raw, range(len(raw)), values)
    if args.folds is not None:
        text_column = columns.get("text") or named["text"] or usual_column(raw_splits, "text", {*columns.values()})
        chosen = _deal_fold(chosen["train"], text_column, scheme, args, seed)
    elif "train" in chosen and not args.streaming:
        for split, share in (("test", args.test_split), ("validation", args.validation_split)):
            if split not in chosen and share > 0:
                chosen = _cut(chosen, split, scheme.problem_type, share, seed)
    _keep_first(chosen, args)
    posts = Posts(DatasetDict(), scheme.names, scheme.problem_type, columns, source, {})
    for split, part in chosen.items():
        _add_split(posts, split, part, args)
        posts.describe(split)
    check_some_are_left(posts)
    if args.streaming and "train" in posts.splits:
        _put_stream_in_place(posts, raw_splits["train"], args, partial(_stream_labels, scheme), seed)
    return posts


def _label_scheme(args, raw_splits, cells, column, label_names, problem_type):
    """What the labels are: as the checkpoint says, as --label_list says, or as the training posts show."""
    separator = args.label_separator
    if label_names is not None:
        return LabelScheme(problem_type or SINGLE, list(label_names), separator=separator)
    if "train" not in raw_splits:
        raise ValueError("No training posts: give --train_file, or the checkpoint to use as --model_name_or_path.")
    scheme = LabelScheme.from_training(raw_splits["train"], cells["train"], column, problem_type, separator)
    if args.label_list:
        if scheme.problem_type == REGRESSION:
            raise ValueError("--label_list names classes or labels, but the labels are numbers: leave it out.")
        scheme = replace(scheme, names=list(args.label_list), unknown="not in --label_list")
    return scheme


def _put_stream_in_place(posts: Posts, raw: RawSplit, args: DataArguments, labels_of, seed: int) -> None:
    """The stream as training split, its first posts as `sample`."""
    posts.sample = posts.splits["train"]
    posts_of = partial(_posts_of_chunk, replace(posts, sample=None), args, labels_of)
    posts.splits["train"] = PostStream(
        raw, posts_of, seed=seed, buffer=args.stream_shuffle_buffer, limit=args.max_train_samples
    )
    posts.dropped.pop("train", None)  # of the sample, which comes again
    checked = "looked at when their turn comes" if args.on_bad_image == "error" else "tried before their turn comes"
    logger.info(f"{raw.place} is streamed: its pictures are {checked}, not all before training.")


def _posts_of_chunk(whole: Posts, args: DataArguments, labels_of, raw: RawSplit, quiet: bool) -> Posts:
    """A few rows of a stream, treated like those of a file."""
    posts = replace(whole, splits=DatasetDict(), origins={}, num_images={}, dropped={}, quiet=quiet)
    _add_split(posts, "train", _Chosen(raw, range(len(raw)), labels_of(raw, posts.columns["label"])), args)
    if args.on_bad_image != "error" and len(posts.splits["train"]):
        settings = {"on_bad_image": args.on_bad_image, "on_empty_post": args.on_empty_post}
        settle_bad_images(posts, find_bad_images(posts, progress=False), **settings)
    return posts


def _stream_labels(scheme, raw, column):
    try:
        return scheme.values(raw, read_label_cells("train", raw, column), column)
    except ValueError as error:
        raise ValueError(
            f"{error} With --streaming the labels are those of the first posts: read more of them first by "
            "--stream_first_pass, or name all labels by --label_list."
        ) from None


def _check_numbers(args):
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
        raise ValueError(f"--max_images {args.max_images}: give 1 or more, or 0 to use all pictures of a post.")


def _check_test_split(args, raw_splits):
    """Unlike --validation_split it is there only if somebody asked for it."""
    if args.test_split > 0 and "test" in raw_splits:
        raise ValueError(
            f"--test_split {args.test_split} is for want of test posts, but {raw_splits['test'].place} holds some: "
            "leave one of them out."
        )


def _cut(chosen: dict[str, _Chosen], split: str, problem_type: str, share: float, seed: int) -> dict[str, _Chosen]:
    """Sets `share` of the training rows aside as `split`, the same rows for the same seed."""
    train = chosen["train"]
    picked = set_aside([train.labels[row] for row in train.rows], problem_type, share, seed)
    if not picked:
        raise ValueError(
            f"{train.raw.place} has too few rows ({len(train.rows)}) to set some aside for {split}: give "
            f"--{split}_file, or --{split}_split 0 to do without."
        )
    aside = [train.rows[i] for i in picked]
    logger.info(
        f"No {split} posts are given: {len(aside)} of {len(train.rows)} posts of {train.raw.place} are set aside"
        f"{' of each class alike' if problem_type == SINGLE else ''} (--{split}_split {share}, seed {seed})."
    )
    kept = sorted({*train.rows} - {*aside})
    others = {name: part for name, part in chosen.items() if name != "train"}
    return {"train": replace(train, rows=kept), split: replace(train, rows=aside)} | others


def _only_train(raw_splits):
    """For --folds: the training posts, alone."""
    if "train" not in raw_splits:
        raise ValueError("--folds deals the training posts, and there are none: give --train_file.")
    if len(raw_splits) > 1:
        others = ", ".join(split for split in raw_splits if split != "train")
        logger.warning(f"--folds deals the training posts alone and leaves aside: {others}.")
    return {"train": raw_splits["train"]}


def _deal_fold(train: _Chosen, text_column, scheme, args: DataArguments, seed: int) -> dict[str, _Chosen]:
    """Test, validation and training rows of --fold, all of the training split."""
    cells = train.raw.cells(text_column) if text_column in train.raw.columns else None
    rows = rows_of_fold(
        train.labels,
        cells,
        scheme.problem_type,
        names=scheme.names,
        place=train.raw.place,
        folds=args.folds,
        fold=args.fold,
        share=args.validation_split,
        seed=seed,
    )
    same = f"posts of the same {text_column!r} together" if cells is not None else "no texts to keep together"
    logger.info(f"Fold {args.fold} of {args.folds} of {train.raw.place} is the test posts, {same} (seed {seed}).")
    return {split: _Chosen(train.raw, part, train.labels) for split, part in rows.items()}


def _keep_first(chosen: dict[str, _Chosen], args: DataArguments):
    """Applies --max_*_samples, and checks that there is something left to tell apart."""
    flags = {"train": "max_train_samples", "validation": "max_eval_samples", "test": "max_predict_samples"}
    for split, part in chosen.items():
        part.rows = part.rows[: getattr(args, flags[split])]
        if part.labels is None or is_varied([part.labels[row] for row in part.rows]):
            continue
        cut = f" in the first {len(part.rows)} rows (--{flags[split]})" if getattr(args, flags[split]) else ""
        what = f"{part.raw.place} has only one label{cut}"
        cut_from_train = split == "validation" and "train" in chosen and part.raw is chosen["train"].raw
        if split == "test" or cut_from_train or (part.raw.streamed is not None and split == "train"):
            logger.warning(f"{what} among the {split} posts: their metrics say little.")
            continue
        raise ValueError(
            f"{what}: there is nothing to tell apart. Give {split} posts of two labels or more, or name the right "
            "column with --label_column_name."
        )


def _add_split(posts: Posts, split: str, part: _Chosen, args: DataArguments) -> None:
    """Reads the texts and looks for the pictures of a split's rows; posts that may be left out are."""
    raw, rows, columns = part.raw, part.rows, posts.columns
    texts, images, missing, shortened = [None] * len(raw), [[]] * len(raw), {}, 0
    if "text" in columns:
        cells = raw.cells(columns["text"])
        for row in rows:
            texts[row] = as_text(cells[row], raw.where(row), columns["text"])
    if "image" in columns:
        images, missing, shortened = read_images(
            raw, rows, columns["image"], args.max_images or None, args.on_bad_image
        )
    posts.splits[split] = _build_split(part, texts, images, posts, args)
    posts.origins[split] = raw, rows
    posts.num_images[split] = [len(images[row]) for row in rows]
    missing = {index: missing[row] for index, row in enumerate(rows) if row in missing}
    if shortened and not posts.quiet:
        logger.warning(
            f"{raw.place}: {shortened} posts have more than {args.max_images} pictures; the first {args.max_images} "
            "are used, the others left out (--max_images)."
        )
    leave_out_images(posts, split, missing, args.on_bad_image, args.on_empty_post)
    settle_empty_posts(posts, split, args.on_empty_post)


def _build_split(part: _Chosen, texts, images, posts: Posts, args: DataArguments) -> Dataset:
    raw, rows, columns = part.raw, part.rows, posts.columns
    id_column = columns.get("id")
    given_ids = raw.cells(id_column) if id_column in raw.columns else raw.numbers
    table = {
        "id": [
            mend(str(given_ids[row] if given_ids[row] is not None else raw.numbers[row])) for row in range(len(raw))
        ],
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
    # Side by side the stored pictures stay in the data set's own files, mapped into memory
    dataset = concatenate_datasets([Dataset.from_dict(table, features=Features(features)), pixels], axis=1)
    return dataset.select(rows).with_transform(unpack)


def _read_groups(raw: RawSplit, column: str) -> list[str]:
    if column not in raw.columns:
        logger.warning(f"{raw.place} has no column {column!r} (--group_column_name): its posts are one group.")
        return ["(none)"] * len(raw)
    return ["(none)" if is_missing(cell) else mend(str(cell)).strip() or "(none)" for cell in raw.cells(column)]


class PostCollator:
    """
    Rows {"id", "text", "images", "label"} to the tensors of `HFMambaProcessor` and `labels`: (b,) int64 for ids, (b,)
    float32 for numbers to be predicted, (b, num_labels) float32 for vectors of 0 and 1.

    For `Trainer(data_collator=...)` with `remove_unused_columns=False`, in any process. `labels` is there when every
    row has a label. Pictures are decoded here, one at a time.

    Args:
        processor: an HFMambaProcessor
        cache: an ImageCache of its image processor, to take pictures from
        as_bytes: pixel_values as uint8 where pictures have 8 bits, a quarter of the memory to move: whoever gets the
            batch makes them floats by `scale_patches`, as `PostTrainer` does
        pad_to_max_length: pad texts to the tokenizer's longest, so that batches have one shape

    Raises:
        ValueError: a picture that can't be read, with its post's id, or a post that has neither text nor picture.
    """

    def __init__(self, processor, cache=None, *, as_bytes=False, pad_to_max_length=False):
        self.processor, self.cache, self.as_bytes = processor, cache, as_bytes
        self.text_kwargs = {"padding": "max_length"} if pad_to_max_length else {}

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        texts = [row.get("text") for row in rows]
        images = [row.get("images") or [] for row in rows]
        pictures = images if self.cache is None else [[*map(self.cache.picture, sources)] for sources in images]
        try:
            batch = self._tensors(texts, pictures)
        except ValueError as error:
            raise self._named(rows, images, error) from error
        labels = [row.get("label") for row in rows]
        if all(label is not None for label in labels):
            labels = torch.from_numpy(np.array(labels))
            is_id = labels.ndim == 1 and not labels.is_floating_point()
            batch["labels"] = labels.to(torch.int64 if is_id else torch.float32)
        return batch

    def _tensors(self, texts, pictures):
        kwargs = {"text": texts, "images": pictures, "return_tensors": "pt", "text_kwargs": self.text_kwargs}
        if self.as_bytes:
            batch = self.processor(**kwargs, images_kwargs={"do_rescale": False, "do_normalize": False})
            if batch.get("pixel_values", torch.empty(0, dtype=torch.uint8)).dtype == torch.uint8:
                return dict(batch)
        return dict(self.processor(**kwargs))

    @staticmethod
    def _named(rows, images, error):
        """The error with the id of the post it is about, found by trying the pictures again."""
        for row, sources in zip(rows, images):
            for source in sources:
                try:
                    load_rgb_image(source)
                except ValueError as reason:
                    return ValueError(f"post {row.get('id')!r}: {reason}")
        return ValueError(f"{error} (ids of the batch: {', '.join(str(row.get('id')) for row in rows)})")
