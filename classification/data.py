"""Posts for training: rows of any supported source as `id`, `text`, `images` and `label`, checked, undecoded.

    posts = load_posts(DataArguments(train_file="posts/train.csv"), seed=0)
    check_images(posts)
    Trainer(..., train_dataset=posts.splits["train"], data_collator=PostCollator(processor))

with `remove_unused_columns=False` among the training arguments, since the collator reads raw columns.

Pictures stay where they are: a row holds their paths, or their bytes where the data set stores bytes, and a picture is
decoded when a batch needs it. Rows keep their order.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np
import torch
from datasets import Dataset, DatasetDict, Features, List, Value, concatenate_datasets
from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import logging

from ..processing_hf_mamba import load_rgb_image
from .columns import MODALITIES, as_paths, as_text, find_columns, is_missing, mend, parse_modalities
from .labels import SINGLE, LabelScheme, is_varied, read_label_cells, set_aside
from .metrics import baseline_of
from .readers import STORED, RawSplit, UnpackPixels, read_splits


logger = logging.get_logger(__name__)

_USUAL = "Default: found by its usual names"


@dataclass
class DataArguments:
    """Which posts, and how they are read."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A data set of the Hub, a folder written by save_to_disk of `datasets`, a folder with "
            "train/metadata.jsonl (or .csv) beside its pictures and likewise validation and test, or posts that are "
            "drawn on first use: builtin, builtin:three, builtin:several (multi-label) or builtin:score (regression)"
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of the Hub's data set"})
    train_file: str | None = field(default=None, metadata={"help": "Training posts: .csv, .jsonl or .json (lines)"})
    validation_file: str | None = field(default=None, metadata={"help": "Validation posts, likewise"})
    test_file: str | None = field(default=None, metadata={"help": "Test posts, likewise; labels may be absent"})
    image_dir: str | None = field(
        default=None,
        metadata={"help": "Where relative image paths start. Default: the folder of the file they are in"},
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
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many posts only"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Validate on the first so many posts only"})
    max_predict_samples: int | None = field(default=None, metadata={"help": "Predict the first so many posts only"})
    validation_split: float = field(
        default=0.1, metadata={"help": "Share of the training posts set aside where no validation posts are given"}
    )
    vocab_size: int | None = field(
        default=None, metadata={"help": "Word pieces to learn from the training texts, at most. Default: 8000"}
    )
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
    """

    splits: DatasetDict
    label_names: list[str]
    problem_type: str
    columns: dict[str, str]
    source: str
    origins: dict[str, tuple[RawSplit, Sequence[int]]] = field(repr=False)

    def where(self, split: str, row: int) -> str:
        """Names row `row` of a split as the file or data set counts it."""
        raw, rows = self.origins[split]
        return raw.where(rows[row])

    def column(self, split: str, name: str) -> list:
        """The cells of a column but `images`; unlike `splits[split][name]` it reads no picture that is stored."""
        return self.splits[split].with_format(None).select_columns([name])[:][name]

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
    args: DataArguments, *, seed: int, label_names: list[str] | None = None, problem_type: str | None = None
) -> Posts:
    """
    Reads and checks the posts that the flags name.

    Args:
        args: the flags
        seed: decides which training posts are set aside for validation
        label_names: a checkpoint's labels, in their order; needed without a training split
        problem_type: the checkpoint's, or the one asked for; None leaves it to the training labels

    Raises:
        FileNotFoundError, ValueError: names the file, row, column or flag, what was found and what would be right.
    """
    modalities = parse_modalities(args.modalities)
    _check_numbers(args)
    raw_splits, source = read_splits(args)
    named = {role: getattr(args, f"{role}_column_name") for role in ("text", "image", "label", "id", "group")}
    columns = find_columns(raw_splits, named, modalities)
    label_column = columns.get("label")
    cells = {split: read_label_cells(split, raw, label_column) for split, raw in raw_splits.items()}
    if label_names is not None:
        scheme = LabelScheme(problem_type or SINGLE, list(label_names), separator=args.label_separator)
    elif "train" in raw_splits:
        scheme = LabelScheme.from_training(
            raw_splits["train"], cells["train"], label_column, problem_type, args.label_separator
        )
    else:
        raise ValueError("No training posts: give --train_file, or the checkpoint to use as --model_name_or_path.")
    chosen = {}
    for split, raw in raw_splits.items():
        values = None if cells[split] is None else scheme.values(raw, cells[split], label_column)
        chosen[split] = _Chosen(raw, range(len(raw)), values)
    if "train" in chosen and "validation" not in chosen and args.validation_split > 0:
        chosen = _cut_validation(chosen, scheme.problem_type, args.validation_split, seed)
    _keep_first(chosen, args)
    splits = {split: _build_split(part, columns, scheme, args) for split, part in chosen.items()}
    origins = {split: (part.raw, part.rows) for split, part in chosen.items()}
    return Posts(DatasetDict(splits), scheme.names, scheme.problem_type, columns, source, origins)


def _check_numbers(args):
    for name in ("max_train_samples", "max_eval_samples", "max_predict_samples", "max_seq_length", "vocab_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value}: give 1 or more, or leave it out.")
    if not 0 <= args.validation_split < 1:
        raise ValueError(f"--validation_split {args.validation_split}: give a share of the training posts, 0 to 1.")
    if args.max_images is not None and args.max_images < 0:
        raise ValueError(f"--max_images {args.max_images}: give 1 or more, or 0 to use all pictures of a post.")


def _cut_validation(chosen: dict[str, _Chosen], problem_type: str, share: float, seed: int) -> dict[str, _Chosen]:
    """Sets `share` of the training rows aside, the same rows for the same seed."""
    train = chosen["train"]
    validation = set_aside(train.labels, problem_type, share, seed)
    if not validation:
        raise ValueError(
            f"{train.raw.place} has too few rows ({len(train.labels)}) to set some aside for validation: give "
            "--validation_file, or --validation_split 0 to do without."
        )
    aside = set(validation)
    kept = [row for row in train.rows if row not in aside]
    logger.info(
        f"No validation posts are given: {len(validation)} of {len(train.labels)} posts of {train.raw.place} are set "
        f"aside{' of each class alike' if problem_type == SINGLE else ''} (--validation_split {share}, seed {seed})."
    )
    parts = {
        "train": _Chosen(train.raw, kept, train.labels),
        "validation": _Chosen(train.raw, validation, train.labels),
    }
    return parts | {split: part for split, part in chosen.items() if split != "train"}


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
        if split == "test" or cut_from_train:
            logger.warning(f"{what} among the {split} posts: their metrics say little.")
            continue
        raise ValueError(
            f"{what}: there is nothing to tell apart. Give {split} posts of two labels or more, or name the right "
            "column with --label_column_name."
        )


def _build_split(part: _Chosen, columns: dict[str, str], scheme: LabelScheme, args: DataArguments) -> Dataset:
    raw, rows = part.raw, part.rows
    id_column = columns.get("id")
    given_ids = raw.cells(id_column) if id_column in raw.columns else raw.numbers
    texts = [None] * len(raw)
    if "text" in columns:
        cells = raw.cells(columns["text"])
        for row in rows:
            texts[row] = as_text(cells[row], raw.where(row), columns["text"])
    images = _read_images(raw, rows, columns["image"], args.max_images) if "image" in columns else [[]] * len(raw)
    _check_not_empty(raw, rows, texts, images, columns)
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
        table["label"], features["label"] = part.labels, scheme.feature()
    if not raw.has_pixels(columns.get("image")):
        table = {name: [cells[row] for row in rows] for name, cells in table.items()}
        return Dataset.from_dict(table, features=Features(features))
    del table["images"], features["images"]
    pixels = raw.undecoded(columns["image"]).rename_columns({columns["image"]: "images"})
    # Side by side the stored pictures stay in the data set's own files, mapped into memory
    posts = concatenate_datasets([Dataset.from_dict(table, features=Features(features)), pixels], axis=1)
    return posts.select(rows).with_transform(UnpackPixels(raw.folder, args.max_images or None))


def _read_groups(raw: RawSplit, column: str) -> list[str]:
    if column not in raw.columns:
        logger.warning(f"{raw.place} has no column {column!r} (--group_column_name): its posts are one group.")
        return ["(none)"] * len(raw)
    return ["(none)" if is_missing(cell) else mend(str(cell)).strip() or "(none)" for cell in raw.cells(column)]


def _read_images(raw: RawSplit, rows: Sequence[int], column: str, max_images: int | None) -> list[list[str]]:
    """For all rows of the raw split, those in `rows` filled: the absolute paths of a post's pictures, all existing."""
    cells = raw.pixel_paths(column) if raw.has_pixels(column) else raw.cells(column)
    images = [[] for _ in range(len(raw))]
    shortened, missing, exists = 0, [], {STORED: True}
    for row in rows:
        named = cells[row] if raw.has_pixels(column) else as_paths(cells[row], raw.where(row), column)
        kept = named[: max_images or None]
        shortened += len(kept) < len(named)
        for path in kept:
            resolved = path if path is STORED else raw.resolve(path)
            if resolved not in exists:
                exists[resolved] = os.path.isfile(resolved)
                if not exists[resolved]:
                    missing.append((row, path, resolved))
            images[row].append(resolved)
    if missing:
        raise _missing_pictures(raw, column, missing, len(exists) - 1)
    if shortened:
        logger.warning(
            f"{raw.place}: {shortened} posts have more than {max_images} pictures; the others are left out "
            "(--max_images)."
        )
    return images


def _missing_pictures(raw, column, missing, total):
    row, path, resolved = missing[0]
    if path.startswith(("http://", "https://")):
        fix = "Addresses are not fetched: download the pictures and write their paths."
    else:
        fix = f"Relative paths start at {raw.folder or 'the working directory'}: name another folder with --image_dir."
    return FileNotFoundError(
        f"{raw.where(row)}, column {column!r}: there is no picture {path!r} ({resolved}). {len(missing)} of {total} "
        f"pictures are missing. {fix}"
    )


def _check_not_empty(raw, rows, texts, images, columns):
    empty = [row for row in rows if texts[row] is None and not images[row]]
    if empty:
        looked = " and ".join(f"{role} ({columns[role]!r})" for role in MODALITIES if role in columns)
        what = f"neither {looked.replace(' and ', ' nor ')}" if " and " in looked else f"no {looked}"
        raise ValueError(
            f"{raw.where(empty[0])}: the post has {what} ({len(empty)} of {len(rows)} rows). Drop such rows, or give "
            "them a text or a picture."
        )


def _distinct_sources(posts: Posts) -> Iterator[list[tuple[str, int, str | bytes]]]:
    """Every stored picture and every distinct path, with the split and row it is met in first; in small lists."""
    seen = set()
    for split, dataset in posts.splits.items():
        dataset = dataset.select_columns(["images"])
        for start in range(0, len(dataset), 64):
            jobs = []
            for row, images in enumerate(dataset[start : start + 64]["images"], start=start):
                for source in images:
                    if isinstance(source, bytes) or source not in seen:
                        jobs.append((split, row, source))
                    if isinstance(source, str):
                        seen.add(source)
            yield jobs


def _why_unreadable(source: str | bytes) -> str | None:
    """None for a picture that decodes."""
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                return f"cannot read image: {image.width} x {image.height} pixels is more than Pillow takes for safe"
            image.draft(None, (64, 64))  # a JPEG decodes faster at an eighth of its size, and fails all the same
            load_rgb_image(image)
        return None
    except Exception:  # whatever it is, load_rgb_image has the last word, and the wording that training would show
        try:
            load_rgb_image(source)
            return None
        except ValueError as error:
            return str(error)


def check_images(posts: Posts, *, num_threads: int = 2, progress: bool = True) -> None:
    """
    Decodes every picture once, so that a damaged one is found before training and not in the middle of it.

    Raises:
        ValueError: names the first unreadable pictures by row and path, and says how many there are.
    """
    failures = []
    total = sum(map(len, posts.splits.values()))
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(num_threads) as pool,
        tqdm(total=total, desc="Checking pictures", unit=" posts", disable=not progress) as bar,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # reported as failures
        for jobs in _distinct_sources(posts):
            reasons = pool.map(_why_unreadable, [source for _, _, source in jobs])
            failures += [(split, row, why) for (split, row, _), why in zip(jobs, reasons) if why is not None]
            bar.update(min(64, total - bar.n))
    if failures:
        shown = "\n".join(f"  {split}: {posts.where(split, row)}: {why}" for split, row, why in failures[:5])
        more = f"\n  and {len(failures) - 5} more" if len(failures) > 5 else ""
        raise ValueError(
            f"{len(failures)} pictures (column {posts.columns.get('image')!r}) can't be read:\n{shown}{more}\n"
            "Replace these files, or drop their rows."
        )


class PostCollator:
    """
    Rows {"id", "text", "images", "label"} to the tensors of `HFMambaProcessor` and `labels`: (b,) int64 for ids, (b,)
    float32 for numbers to be predicted, (b, num_labels) float32 for vectors of 0 and 1.

    For `Trainer(data_collator=...)` with `remove_unused_columns=False`, in any process. `labels` is there when every
    row has a label. Pictures are decoded here, one at a time.

    Args:
        processor: an HFMambaProcessor

    Raises:
        ValueError: a picture that can't be read, with its post's id, or a post that has neither text nor picture.
    """

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        texts = [row.get("text") for row in rows]
        images = [row.get("images") or [] for row in rows]
        try:
            batch = dict(self.processor(text=texts, images=images, return_tensors="pt"))
        except ValueError as error:
            raise self._named(rows, images, error) from error
        labels = [row.get("label") for row in rows]
        if all(label is not None for label in labels):
            labels = torch.from_numpy(np.array(labels))
            is_id = labels.ndim == 1 and not labels.is_floating_point()
            batch["labels"] = labels.to(torch.int64 if is_id else torch.float32)
        return batch

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
