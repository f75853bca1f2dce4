"""A folder of small posts with images, for the tests of what reads them and makes batches of them."""

import csv
import json
import random

from PIL import Image

from hf_mamba.classification.data import DataArguments, load_posts


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return str(path)


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_image(path, color="red", size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def make_rows(count, images="p{}.png"):
    return [
        {"text": f"post {i}", "image": images.format(i % 3), "label": "yes" if i % 3 else "no"} for i in range(count)
    ]


def write_folder(path):
    """train.jsonl (30 posts) and validation.jsonl (6) with the images that they name."""
    for i in range(3):
        write_image(path / f"p{i}.png", color=(80 * i, 0, 0))
    write_jsonl(path / "train.jsonl", make_rows(30))
    write_jsonl(path / "validation.jsonl", make_rows(6))
    return path


def load(folder, label_names=None, seed=0, **flags):
    """Loads train.jsonl and validation.jsonl of the folder, or what the flags name; file flags are relative to it."""
    for flag in [flag for flag in flags if flag.endswith("_file")]:
        flags[flag] = str(folder / flags[flag])
    if not any(flag.endswith("_file") or flag == "dataset_name" for flag in flags):
        flags |= {"train_file": str(folder / "train.jsonl"), "validation_file": str(folder / "validation.jsonl")}
    return load_posts(DataArguments(**flags), seed=seed, label_names=label_names)


def damage(path, kind):
    if kind == "truncated":
        noise = Image.frombytes("RGB", (120, 120), random.Random(0).randbytes(120 * 120 * 3))
        noise.save(path, "JPEG")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "no image":
        path.write_text("<html>not found</html>")
    else:
        path.write_bytes(b"")
