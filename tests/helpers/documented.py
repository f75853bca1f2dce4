"""The tables of docs/data.md, and test cases that stand for their rows: neither goes without the other."""

import json
from pathlib import Path

from PIL import Image

from hf_mamba.classification.data import DataArguments, load_posts
from hf_mamba.classification.data.vocabulary import train_wordpiece
from hf_mamba.processing_hf_mamba import HFMambaImageProcessor, HFMambaProcessor, build_wordpiece_tokenizer


PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def rows_of(*sections):
    """The first cell of every row of the sections' tables."""
    names = []
    for section in sections:
        body = PAGE.read_text("utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
        table = [line for line in body.splitlines() if line.startswith("| ")]
        names += [line.split("|")[1].strip() for line in table[1:]]
    return names


class Cases(dict):
    """`@case("a row", "another")` registers a function that shows what becomes of them."""

    def __call__(self, *names):
        def register(function):
            self.update(dict.fromkeys(names, function))
            return function

        return register


def make_image(size=(24, 16), mode="RGB"):
    """An image that differs from itself turned or mirrored: red grows to the right, green downwards."""
    image = Image.new("RGB", size)
    image.putdata([(255 * x // size[0], 255 * y // size[1], 40) for y in range(size[1]) for x in range(size[0])])
    return image.convert(mode)


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows), encoding="utf-8")
    return path


def load(train_file=None, **flags):
    """Posts of one file or of what the flags name, with nothing cut off for validation unless asked for."""
    flags = {"validation_split": 0} | flags
    return load_posts(DataArguments(train_file=train_file and str(train_file), **flags), seed=0)


def load_rows(folder, rows, **flags):
    """Posts of a JSON lines file of these rows; labels are made up where there are none."""
    rows = [{"label": "ab"[i % 2], **row} for i, row in enumerate(rows)]
    return load(write_jsonl(folder / "posts.jsonl", rows), **flags)


def processor_for(*texts):
    """A processor of images of 4 patches, whose vocabulary knows these texts and "t"."""
    vocabulary = train_wordpiece([*texts, "t"] * 2)
    return HFMambaProcessor(HFMambaImageProcessor(size=32, patch_size=16), build_wordpiece_tokenizer(vocabulary))
