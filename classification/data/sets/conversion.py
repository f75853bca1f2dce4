"""
What the converters of published data sets share: raw rows in, `train.jsonl`, `validation.jsonl` and `test.jsonl` out.

A converter (`twitter_sarcasm`, `mmsd2`, `yelp_sentiment`) says which raw files there are, how many posts each one is
known to give, and how one raw row becomes a post; `convert` does the rest. Counts that differ, rows that can't be
understood and files that are missing stop it, with nothing written, unless a partial result is asked for. Messages
name places and never quote posts.
"""

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...support.markdown import markdown_table
from ..sources import SPLIT_NAMES
from ..table_files import read_json


MAX_LINE = 1_000_000  # bytes; a longer "line" isn't a post, and parsing it may cost any amount of memory
LISTED = 10  # bad rows that are listed
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

Post = dict[str, Any]  # id, text, images, label and further columns


@dataclass
class RawFile:
    """
    A raw file and what it is known to hold.

    Args:
        split: train, validation or test: the split its posts belong to
        path: the file; where it is expected, if it is missing
        posts: how many posts it gives, once the posts that the data set's rules drop are gone; None if unknown
        labels: label -> how many of these posts have it, for those labels where that is known
    """

    split: str
    path: Path
    posts: int | None = None
    labels: dict[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """
    What became of one raw file.

    Args:
        file: the file
        dropped: rows left out by the data set's own rules
        bad: where and what, for each row that could not be understood
        labels: label -> posts written
        images, missing: images found and not found
        missing_names: of the first that were not found
    """

    file: RawFile
    dropped: int = 0
    bad: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    images: int = 0
    missing: int = 0
    missing_names: list[str] = field(default_factory=list)

    @property
    def posts(self) -> int:
        """How many were written."""
        return self.labels.total()

    def differences(self) -> list[str]:
        """Which counts are not the known ones."""
        known = {"posts": self.file.posts, **self.file.labels}
        counted = {"posts": self.posts, **self.labels}
        return [
            f"{self.file.path}: {count:,} {what} expected, {counted.get(what, 0):,} found"
            for what, count in known.items()
            if count is not None and count != counted.get(what, 0)
        ]


RowsOf = Callable[[Path], Iterable[tuple[str, Any]]]  # where each raw row is, and the row or a ValueError
ToPost = Callable[[Any, RawFile], Post | None]


class ImageFiles:
    """
    Finds images by their names without extension, anywhere in a folder, which is listed once.

    Args:
        folder: where the images are; None: there are none
        start: the folder that paths are given relative to, as `run_classification.py` resolves them
    """

    def __init__(self, folder: Path | None, start: Path) -> None:
        self.folder = folder
        self._paths: dict[str, str] = {}
        self._base = ""
        if folder is not None:
            # Links are resolved first: ".." behind a link leads elsewhere than its text says
            self._base = os.path.relpath(folder.resolve(), start.resolve())
            for path, folders, names in os.walk(folder):
                folders.sort()
                for name in sorted(names):
                    stem, suffix = os.path.splitext(name)
                    if suffix.lower() in _IMAGE_SUFFIXES:
                        self._paths.setdefault(stem, os.path.relpath(os.path.join(path, name), folder))

    def find(self, name: str) -> str | None:
        """The path of an image, None if there is none of this name."""
        path = self._paths.get(name)
        return None if path is None else Path(self._base, path).as_posix()


def add_conversion_arguments(parser: argparse.ArgumentParser, *, raw: str, image_folders: tuple[str, ...]) -> None:
    """The arguments that converters share: `raw` says what the raw folder holds, `image_folders` as in `convert`."""
    parser.add_argument("raw_dir", type=Path, help=f"the folder of the raw files: {raw}")
    parser.add_argument("output_dir", type=Path, help="where train.jsonl, validation.jsonl and test.jsonl are written")
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="DIR",
        help=f"the folder of the images (default: {image_folders[0]} of the raw folder, if there is one)",
    )
    parser.add_argument(
        "--allow_partial",
        action="store_true",
        help="write what there is: files may be missing, counts may differ, rows that can't be understood are left "
        "out",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier conversion wrote there")


def find_raw(folder: Path, *candidates: str) -> Path:
    """The first of these paths in `folder` that is a file, the first one of all if none is."""
    paths = [folder / candidate for candidate in candidates]
    return next((path for path in paths if path.is_file()), paths[0])


def lines_of(path: Path, parse: Callable[[str], object]) -> Iterator[tuple[str, object]]:
    """
    The lines of a UTF-8 file that aren't blank, one at a time.

    Yields:
        where the line is, for people, and what `parse` makes of it, or the ValueError that says what is wrong
    """
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                if len(line) > MAX_LINE:
                    raise ValueError(f"longer than {MAX_LINE:,} bytes")
                parsed: object = parse(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                parsed = ValueError(f"not UTF-8 (byte 0x{line[error.start]:02x})")
            except ValueError as error:
                parsed = error
            yield f"{path}, line {number}", parsed


def entries_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """
    The objects of a JSON array, likewise.

    Raises:
        ValueError: the file isn't such an array; names the line.
    """
    rows = read_json(path)
    columns = {name: rows.cells(name) for name in rows.columns}
    for i in range(len(rows)):
        yield rows.where(i), {name: cells[i] for name, cells in columns.items()}


def convert(
    args: argparse.Namespace,
    files: list[RawFile],
    rows_of: RowsOf,
    to_post: ToPost,
    image_folders: tuple[str, ...],
    hint: str = "",
) -> list[Report]:
    """
    Writes the splits and prints what became of each raw file.

    Args:
        args: of `add_conversion_arguments`
        files: the raw files
        rows_of: path -> where each raw row is, and the row, or a ValueError in its place
        to_post: row and its raw file -> a post: `id`, `text`, `images` (names of images without extension), `label`
            and further columns; None if the data set's rules drop it; raises ValueError where it can't be understood
        image_folders: usual names of the folder of images in the raw folder
        hint: what else can be done where files are missing

    Raises:
        FileNotFoundError, ValueError: the raw folder or files are missing, the output folder holds a split already,
            or, unless partial results are allowed, a count differs or a row can't be understood.
    """
    present = _present(args, files, hint)
    _check_output_dir(args)
    existed = args.output_dir.is_dir()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    try:
        lookup = ImageFiles(_image_folder(args, image_folders), args.output_dir)
        with tempfile.TemporaryDirectory(prefix=".conversion-", dir=args.output_dir) as temporary:
            reports = _write_splits(Path(temporary), present, rows_of, to_post, lookup)
            print(counts_table(reports))
            _report_images(reports, lookup, image_folders)
            _stop_at_problems(reports, args.allow_partial)
            for name in (f"{split}.jsonl" for split in SPLIT_NAMES):
                if (path := Path(temporary, name)).exists():
                    os.replace(path, args.output_dir / name)
                else:  # one of an earlier conversion is not of these posts
                    (args.output_dir / name).unlink(missing_ok=True)
    finally:
        if not existed and not os.listdir(args.output_dir):
            args.output_dir.rmdir()
    written = ", ".join(f"{split}.jsonl" for split in dict.fromkeys(report.file.split for report in reports))
    print(f"Written to {args.output_dir}: {written}. Name the folder to run_classification.py as --dataset_name.")
    return reports


def _present(args: argparse.Namespace, files: list[RawFile], hint: str) -> list[RawFile]:
    """The raw files that are there."""
    if not args.raw_dir.is_dir():
        raise FileNotFoundError(f"{args.raw_dir}: there is no such folder. It should be that of the raw files.")
    missing = [file for file in files if not file.path.is_file()]
    if missing:
        named = ", ".join(
            f"{file.path} ({file.split}, {'? ' if file.posts is None else f'{file.posts:,} '}posts)"
            for file in missing
        )
        message = f"{len(missing)} of {len(files)} raw files are missing: {named}"
        if not args.allow_partial or len(missing) == len(files):
            raise FileNotFoundError(
                f"{message}. docs/paper_data.md says where they are published; --allow_partial does without some of "
                f"them.{hint}"
            )
        print(f"note: {message}.")
    return [file for file in files if file not in missing]


def _check_output_dir(args: argparse.Namespace) -> None:
    if args.output_dir.is_file():
        raise NotADirectoryError(f"{args.output_dir} is a file: give a folder to write into.")
    if args.output_dir.resolve() == args.raw_dir.resolve():
        raise ValueError(f"{args.output_dir} is the folder of the raw files: give another one to write into.")
    there = [f"{split}.jsonl" for split in SPLIT_NAMES if (args.output_dir / f"{split}.jsonl").exists()]
    if there and not args.overwrite:
        raise FileExistsError(
            f"{args.output_dir} holds {', '.join(there)} already: give another folder, or --overwrite to replace it."
        )


def _image_folder(args: argparse.Namespace, usual: tuple[str, ...]) -> Path | None:
    if args.pictures is not None and not args.pictures.is_dir():
        raise NotADirectoryError(f"--pictures {args.pictures}: there is no such folder.")
    return args.pictures or next((args.raw_dir / name for name in usual if (args.raw_dir / name).is_dir()), None)


def _write_splits(
    folder: Path, files: list[RawFile], rows_of: RowsOf, to_post: ToPost, lookup: ImageFiles
) -> list[Report]:
    """Each split's file in `folder`, from its raw files in their order."""
    reports: list[Report] = []
    seen: dict[str, str] = {}
    for split in dict.fromkeys(file.split for file in files):
        with open(folder / f"{split}.jsonl", "wb") as out:
            for file in files:
                if file.split == split:
                    report = Report(file)
                    for post in _posts(report, rows_of, to_post, lookup, seen):
                        out.write(_json_line(post))
                    reports.append(report)
    return reports


def _posts(
    report: Report, rows_of: RowsOf, to_post: ToPost, lookup: ImageFiles, seen: dict[str, str]
) -> Iterator[Post]:
    """The posts of a raw file with the paths of their images; counts into `report`, notes ids in `seen`."""
    for where, row in rows_of(report.file.path):
        try:
            if isinstance(row, ValueError):
                raise row
            post = to_post(row, report.file)
            if post is None:
                report.dropped += 1
                continue
            if post["id"] in seen:
                raise ValueError(f"its id is that of {seen[post['id']]}")
        except ValueError as error:
            report.bad.append(f"{where}: {error}")
            continue
        seen[post["id"]] = where
        report.labels[post["label"]] += 1
        names = post.pop("images")
        paths = {name: lookup.find(name) for name in names}
        report.missing_names += [name for name in names if paths[name] is None][: 3 - len(report.missing_names)]
        post["images"] = [paths[name] for name in names if paths[name] is not None]
        report.images += len(post["images"])
        report.missing += len(names) - len(post["images"])
        yield post


def _json_line(post: Post) -> bytes:
    try:
        return (json.dumps(post, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can hold
        return (json.dumps(post) + "\n").encode()


def counts_table(reports: list[Report]) -> str:
    """What became of each raw file, as a table."""
    rows = [["split", "raw file", "rows", "dropped", "bad", "posts", "expected", "labels", "images", "missing"]]
    for report in reports:
        expected = "?" if report.file.posts is None else f"{report.file.posts:,}"
        expected += f" ({_counts(report.file.labels)})" if report.file.labels else ""
        counts = (report.posts + report.dropped + len(report.bad), report.dropped, len(report.bad), report.posts)
        labels = _counts(report.labels)
        ends = (f"{report.images:,}", f"{report.missing:,}")
        rows.append([report.file.split, report.file.path.name, *(f"{n:,}" for n in counts), expected, labels, *ends])
    return markdown_table(rows)


def _counts(labels: Mapping[str, int]) -> str:
    return ", ".join(f"{label}: {count:,}" for label, count in sorted(labels.items()))


def _report_images(reports: list[Report], lookup: ImageFiles, usual: tuple[str, ...]) -> None:
    missing, found = sum(report.missing for report in reports), sum(report.images for report in reports)
    if lookup.folder is None:
        print(f"No images: there is no folder {' or '.join(usual)}, and --pictures names none. Posts have text only.")
    elif missing:
        names = ", ".join([name for report in reports for name in report.missing_names][:3])
        print(f"{missing:,} of {missing + found:,} images are not in {lookup.folder} ({names}, ...): left out.")


def _stop_at_problems(reports: list[Report], allow_partial: bool) -> None:
    """Stops unless everything is as it is known to be, or partial results are allowed."""
    bad = [line for report in reports for line in report.bad]
    if bad:
        rest = f"\n  ... and {len(bad) - LISTED:,} more" if len(bad) > LISTED else ""
        print("Rows that can't be understood:\n  " + "\n  ".join(bad[:LISTED]) + rest)
    problems = [line for report in reports for line in report.differences()]
    if bad:
        problems.insert(0, f"{len(bad):,} rows can't be understood (see above)")
    empty = {report.file.split for report in reports} - {report.file.split for report in reports if report.posts}
    if empty:
        raise ValueError("; ".join(problems) + f". No post is left for {min(empty)}, so nothing was written.")
    if problems and not allow_partial:
        raise ValueError("; ".join(problems) + ". Nothing was written; --allow_partial writes it all the same.")
    for problem in problems:
        print(f"note: {problem}")
