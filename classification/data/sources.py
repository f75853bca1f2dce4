"""What the flags name, as raw splits: files, image folders, `datasets` folders and the Hub."""

import os
from collections.abc import Iterable
from pathlib import Path

import datasets
from PIL import Image
from transformers.utils import logging

from ..support.messages import did_you_mean, one_line
from .arguments import FILE_FLAGS, DataArguments
from .raw_split import RawSplit, dataset_cells
from .table_files import READERS, read_table


logger = logging.get_logger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


def read_splits(args: DataArguments) -> tuple[dict[str, RawSplit], str]:
    """
    Reads what the flags name.

    Args:
        args: checked by `check_data_arguments`

    Returns:
        The splits among train, validation and test, in this order, and what they come from, for people.

    Raises:
        FileNotFoundError, ValueError: names the file or flag, what was found and what would be right.
    """
    if args.dataset_name:
        splits, source = read_dataset(args.dataset_name, args.dataset_config_name)
    else:
        files = {split: getattr(args, flag) for split, flag in FILE_FLAGS.items() if getattr(args, flag)}
        splits = {split: read_file(path, f"--{FILE_FLAGS[split]}") for split, path in files.items()}
        source = "the files " + ", ".join(os.path.basename(path) for path in files.values())
    for raw in splits.values():
        if not len(raw):
            raise ValueError(f"{raw.place} holds no row: a split needs at least one post.")
        if args.image_dir is not None:
            raw.folder, raw.confined = args.image_dir, True
    if args.image_dir is not None and not os.path.isdir(args.image_dir):
        raise FileNotFoundError(f"--image_dir {args.image_dir}: there is no such folder.")
    return splits, source


def read_file(name: str | Path, flag: str) -> RawSplit:
    """A file by its extension; relative image paths in it start at its folder."""
    path = Path(name)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "there is no such file"
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []
        raise FileNotFoundError(f"{flag} {path}: {what}.{did_you_mean(path.name, siblings)}")
    raw = read_table(path, f"{flag} ")
    raw.folder = str(path.parent)
    return raw


def read_dataset(name: str, config_name: str | None) -> tuple[dict[str, RawSplit], str]:
    """What --dataset_name names: a folder, or a data set of the Hub."""
    if os.path.isdir(name):
        return _read_folder(Path(name)), f"the folder {os.path.basename(os.path.abspath(name))}"
    if os.path.isfile(name):
        raise ValueError(
            f"--dataset_name {name} is a file: give it as --train_file, --validation_file or --test_file."
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"--dataset_name {name}: there is no such folder.")
    config = f" ({config_name})" if config_name else ""
    return _load(name, config_name), f"the data set {name}{config}"


def _load(name: str, config_name: str | None) -> dict[str, RawSplit]:
    """By `datasets`: what is on the Hub, or a folder laid out as there."""
    try:
        loaded = datasets.load_dataset(name, config_name)
    except Exception as error:  # network, authorisation, missing configs, damaged files: no common base class
        here = os.path.isdir(name)
        what = "it can't be loaded" if here else "there is no such folder here, and the Hub's data set can't be loaded"
        cause = error.__cause__ if here and error.__cause__ else error
        raise ValueError(f"--dataset_name {name}: {what} ({type(cause).__name__}: {one_line(cause)}).") from error
    config = f" ({config_name})" if config_name else ""
    return _splits_of(loaded, f"data set {name}{config}", name if os.path.isdir(name) else None)


def _read_folder(folder: Path) -> dict[str, RawSplit]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        try:
            loaded = datasets.load_from_disk(str(folder))
        except Exception as error:  # whatever Arrow or json raises at a damaged file
            raise ValueError(
                f"--dataset_name {folder} can't be read as a saved data set: {one_line(error)}"
            ) from error
        return _splits_of(loaded, f"data set {folder}", str(folder))
    splits: dict[str, RawSplit] = {}
    for split, names in SPLIT_NAMES.items():
        tables = _tables(folder, [f"{name}/metadata" for name in names]) + _tables(folder, names)
        if len(tables) > 1:
            raise ValueError(
                f"--dataset_name {folder}: {tables[0]} and {tables[1]} both hold {split}; keep one of them."
            )
        if tables:
            splits[split] = read_file(tables[0], "--dataset_name")
    whole = _tables(folder, ["metadata"])
    if not splits and whole:
        splits["train"] = read_file(whole[0], "--dataset_name")
    if not splits and next(folder.rglob("*.parquet"), None):  # laid out as on the Hub
        return _load(str(folder), None)
    if splits := splits or _read_class_folders(folder):
        return splits
    there = ", ".join(sorted(os.listdir(folder))[:10]) or "nothing"
    raise ValueError(
        f"--dataset_name {folder} holds no data set: expected train/metadata.jsonl (or .csv) beside the images, "
        "likewise validation and test; or train.jsonl (or .csv) and so on; or a folder of images for each label, "
        f"train/LABEL/*.jpg; or what `save_to_disk` of `datasets` writes. There: {there}."
    )


def _tables(folder: Path, stems: Iterable[str]) -> list[Path]:
    """The files of these names, without their extensions, that can be read."""
    paths = [folder / f"{stem}{suffix}" for stem in stems for suffix in READERS]
    return [path for path in paths if path.is_file()]


def _read_class_folders(folder: Path) -> dict[str, RawSplit]:
    """SPLIT/LABEL/*.jpg, or LABEL/*.jpg for training posts alone."""
    folders: dict[str, Path | None] = {
        split: next((folder / name for name in names if (folder / name).is_dir()), None)
        for split, names in SPLIT_NAMES.items()
    }
    if not any(folders.values()):
        has_table = any(path.name.lower().endswith(tuple(READERS)) for path in folder.iterdir())
        folders = {} if has_table else {"train": folder}
    splits = {split: _read_images(path, split) for split, path in folders.items() if path is not None}
    return {split: raw for split, raw in splits.items() if raw is not None}


def _read_images(folder: Path, split: str) -> RawSplit | None:
    """
    An image per post, its label the name of the folder it is in: LABEL/*.jpg, folders in it included. Images of a
    test split may lie in the folder itself: they have no label. None if there is no image where one should be.
    """
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if not any(part.startswith(".") for part in path.parts)]
    images = [path for path in files if path.suffix.lower() in suffixes]
    flat = [path for path in images if len(path.parts) == 1]
    if flat and (split != "test" or len(flat) < len(images)):
        raise ValueError(
            f"{folder}: the image {flat[0]} ({len(flat)} of {len(images)} likewise) is in no label's folder. "
            "Write metadata.csv or .jsonl beside the images (columns file_name and label), or move each into a "
            "folder that is named like its label."
        )
    if not images:
        return None
    if len(images) < len(files):
        logger.warning(f"{folder}: {len(files) - len(images)} files are not named like images and are left out.")
    names = [path.as_posix() for path in images]
    columns = {"image": names} if flat else {"image": names, "label": [path.parts[0] for path in images]}
    raw = RawSplit(str(folder), "image", names, list(columns), columns.__getitem__, str(folder))
    logger.info(f"{folder}: {len(raw)} images, " + ("unlabelled." if flat else "labelled by their folders."))
    return raw


def _splits_of(loaded: datasets.Dataset | datasets.DatasetDict, place: str, folder: str | None) -> dict[str, RawSplit]:
    """The known splits of a Dataset (taken as train) or DatasetDict."""
    if isinstance(loaded, datasets.Dataset):
        loaded = datasets.DatasetDict(train=loaded)
    splits = {}
    for split, names in SPLIT_NAMES.items():
        name = next((name for name in names if name in loaded), None)
        if name is not None:
            rows = loaded[name]
            cells = dataset_cells(rows)
            split_place = f"{place}, split {name}"
            splits[split] = RawSplit(split_place, "row", range(len(rows)), rows.column_names, cells, folder, rows)
    if not splits:
        raise ValueError(f"{place} has the splits {', '.join(loaded)}; none is called train, validation or test.")
    return splits
