"""What the probes of the audit look at: for each post a dict of named features, {name: number or str}."""

import re
from collections import Counter
from pathlib import PurePath

from ..data.image_sources import Source
from .images import ImageFacts
from .probes import Features


_WORDS = re.compile(r"\S+")
_MARKS = {
    name: re.compile(mark)
    for name, mark in {
        "full stops": r"\.",
        "commas": r",",
        "exclamation marks": r"!",
        "question marks": r"\?",
        "runs of dots": r"\.\.+|…",
        "colons": r"[:;]",
        "quotation marks": r"[\"“”«»]",
        "apostrophes": r"['’]",
        "brackets": r"[()\[\]{}]",
        "dashes": r"[-–—]",
        "other marks": r"[*/\\|&+=~^%$€£]",
        "marks after a space": r"\s[.,!?:;]",
        "capital letters": r"[A-Z]",
        "digits": r"\d",
        "characters beyond ASCII": r"[^\x00-\x7f]",
    }.items()
}
_MARKERS = {
    name: re.compile(mark)
    for name, mark in {
        "hashtags": r"#\s?\w",
        "handles": r"@\w|<user>",
        "URLs": r"https?:|www\.|\bt\.co\b|<url>",
        "placeholders": r"<\w+>|\[\w+\]",
        "emoji codes": r"\bemoji_\d+|:[a-z_]+:",
        "retweets": r"\bRT\b",
    }.items()
}


def collapse(text: str) -> str:
    """A text as the processor reads it: one space between words, none around."""
    return " ".join(text.split())


def white_space(text: str) -> Features:
    """White space of a raw text, beyond the one space between words."""
    words = _WORDS.findall(text)
    return {
        "runs of spaces": len(re.findall(r"\S\s{2,}(?=\S)", text)),
        "leading white space": len(text) - len(text.lstrip()),
        "trailing white space": len(text) - len(text.rstrip()),
        "white-space characters too many": sum(map(str.isspace, text)) - max(0, len(words) - 1),
        "line breaks and tabs": sum(c in "\n\r\t" for c in text),
        "other white space": sum(c.isspace() and c not in " \n\r\t" for c in text),
    }


def punctuation(text: str) -> Features:
    return {name: len(mark.findall(text)) for name, mark in _MARKS.items()}


def length(text: str) -> Features:
    """Characters and words of a collapsed text."""
    words = text.split()
    return {"characters": len(text), "words": len(words), "characters per word": len(text) / max(1, len(words))}


def markers(text: str) -> Features:
    """Hashtags, handles, URLs and what stands in place of something."""
    return {name: len(mark.findall(text)) for name, mark in _MARKERS.items()}


def presence(text: str, num_images: int) -> Features:
    return {"text": int(bool(text)), "presence of an image": int(num_images > 0), "number of images": num_images}


def name_features(train: list[str], scored: list[str], what: str) -> tuple[list[Features], list[Features]]:
    """
    What can be read off an id, or a file's name without folder and suffix: its number, its length and its beginning.

    Args:
        train, scored: ids of the posts
        what: how the features are called
    """
    beginnings = Counter(map(_beginning, train))
    known = {beginning for beginning, count in beginnings.most_common(20) if count >= 5}

    def features(name: str) -> Features:
        numbers = re.findall(r"\d+", name)
        number = int(numbers[-1][:18]) if numbers else -1
        beginning = _beginning(name)
        numbered: Features = {
            f"number of the {what}": float(number),
            f"last digit of the {what}": float(number % 10),
            f"length of the {what}": len(name),
            f"parity of the {what}": float(number % 2),
        }
        return numbered | ({f"beginning of the {what}": beginning} if beginning in known else {})

    return [features(name) for name in train], [features(name) for name in scored]


def _beginning(name: str) -> str:
    return re.split(r"\d", name, maxsplit=1)[0]


def stem(source: Source) -> str:
    """The name of an image's file without folder and suffix; empty for an image that is stored in the data."""
    return PurePath(source).stem if isinstance(source, str) else ""


def image_size(facts: ImageFacts | None) -> Features:
    """Width, height and their ratio."""
    if facts is None:
        return {"width": -1, "height": -1, "width by height": -1}
    return {"width": facts.width, "height": facts.height, "width by height": facts.width / facts.height}


def image_file(facts: ImageFacts | None) -> Features:
    """What describes a file but its pixels."""
    if facts is None:
        return {"file size": -1, "bytes per pixel": -1, "format": "none", "EXIF": -1, "colour mode": "none"}
    return {
        "file size": facts.num_bytes,
        "bytes per pixel": facts.num_bytes / (facts.width * facts.height),
        "format": facts.format,
        "EXIF": int(facts.exif),
        "colour mode": facts.mode,
    }


def mean_colour(facts: ImageFacts | None) -> Features:
    """Mean red, green and blue, and the contrast, 0 to 255."""
    names = ("red", "green", "blue", "contrast")
    return dict(zip(names, (-1.0,) * 4 if facts is None else (*facts.mean_colour, facts.contrast)))
