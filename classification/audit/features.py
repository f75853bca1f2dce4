"""What the probes of the audit look at: for each post a dict of named features, {name: number or str}."""

import re
from collections import Counter
from pathlib import PurePath


_WORDS = re.compile(r"\S+")
_MARKS = {
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
}
_MARKERS = {
    "hashtags": r"#\s?\w",
    "handles": r"@\w|<user>",
    "addresses": r"https?:|www\.|\bt\.co\b|<url>",
    "placeholders": r"<\w+>|\[\w+\]",
    "emoji codes": r"\bemoji_\d+|:[a-z_]+:",
    "retweets": r"\bRT\b",
}
_MARKS, _MARKERS = ({name: re.compile(mark) for name, mark in marks.items()} for marks in (_MARKS, _MARKERS))


def collapse(text: str) -> str:
    """A text as the processor reads it: one space between words, none around."""
    return " ".join(text.split())


def white_space(text: str) -> dict:
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


def punctuation(text: str) -> dict:
    return {name: len(mark.findall(text)) for name, mark in _MARKS.items()}


def length(text: str) -> dict:
    """Characters and words of a collapsed text."""
    words = text.split()
    return {"characters": len(text), "words": len(words), "characters per word": len(text) / max(1, len(words))}


def markers(text: str) -> dict:
    """Hashtags, handles, addresses and what stands in place of something."""
    return {name: len(mark.findall(text)) for name, mark in _MARKERS.items()}


def presence(text: str, num_images: int) -> dict:
    return {"text": int(bool(text)), "picture": int(num_images > 0), "number of pictures": num_images}


def name_features(train: list[str], scored: list[str], what: str) -> tuple[list[dict], list[dict]]:
    """
    What an id, or a file's name without its folder and ending, tells: its number, its length, and its beginning.

    Args:
        train, scored: ids of the posts
        what: how the features are called
    """
    beginnings = Counter(map(_beginning, train))
    known = {beginning for beginning, count in beginnings.most_common(20) if count >= 5}

    def features(name):
        numbers = re.findall(r"\d+", name)
        number = int(numbers[-1][:18]) if numbers else -1
        beginning = _beginning(name)
        found = {
            f"number of the {what}": float(number),
            f"last digit of the {what}": float(number % 10),
            f"length of the {what}": len(name),
            f"parity of the {what}": float(number % 2),
        }
        return found | ({f"beginning of the {what}": beginning} if beginning in known else {})

    return [features(name) for name in train], [features(name) for name in scored]


def _beginning(name):
    return re.match(r"\D*", name)[0]


def stem(source) -> str:
    """The name of a picture's file without folder and ending; empty for a picture that is stored in the data."""
    return PurePath(source).stem if isinstance(source, str) else ""


def picture_size(facts) -> dict:
    """Width, height and their ratio; `facts` is a PictureFacts or None."""
    if facts is None:
        return {"width": -1, "height": -1, "width by height": -1}
    return {"width": facts.width, "height": facts.height, "width by height": facts.width / facts.height}


def picture_file(facts) -> dict:
    """What a file is beside its pixels."""
    if facts is None:
        return {"file size": -1, "bytes per pixel": -1, "format": "none", "EXIF": -1, "colour mode": "none"}
    return {
        "file size": facts.num_bytes,
        "bytes per pixel": facts.num_bytes / (facts.width * facts.height),
        "format": facts.format,
        "EXIF": int(facts.exif),
        "colour mode": facts.mode,
    }


def mean_colour(facts) -> dict:
    """Mean red, green and blue, and the contrast, 0 to 255."""
    names = ("red", "green", "blue", "contrast")
    return dict(zip(names, (-1.0,) * 4 if facts is None else (*facts.mean_colour, facts.contrast)))
