"""Small data sets with and without something planted, for the tests of the audit."""

import io
import json
import random

import numpy as np
from PIL import Image

from hf_mamba.classification.audit.audit import audit_posts, load_for_audit
from hf_mamba.classification.data import DataArguments


WORDS = [f"{first}{last}" for first in "bdfgklmn" for last in ("ara", "elo", "imu", "oni", "ute", "aro")]
TRAIN, TEST = 400, 200


def plain_posts(seed=0, sizes=(("train", TRAIN), ("test", TEST)), with_images=False):
    """split -> rows {"id", "text", "label"}; nothing predicts the label. With images, `image` holds one of noise."""
    draw = random.Random(seed)
    splits = {}
    for split, size in sizes:
        rows = []
        for index in range(size):
            row = {
                "id": str(draw.randrange(10**9)),
                "text": " ".join(draw.choice(WORDS) for _ in range(draw.randint(6, 12))),
                "label": "ab"[index % 2],
            }
            if with_images:
                row["image"] = noise(draw.randrange(2**32))
            rows.append(row)
        draw.shuffle(rows)
        splits[split] = rows
    return splits


def noise(seed, size=(48, 40)):
    """An image of soft noise: like no other one."""
    cells = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def write_posts(folder, splits):
    """Writes the rows as JSON lines, their images (or bytes) beside them. Returns the flags that read them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        lines = []
        for index, row in enumerate(rows):
            row = dict(row)
            if (image := row.pop("image", None)) is not None:
                data = image if isinstance(image, bytes) else encoded(image)
                ending = {b"\x89P": "png", b"\xff\xd8": "jpg"}.get(data[:2], "bin")
                row["image"] = f"{split}{(index * 7919) % 10007}.{ending}"
                (folder / row["image"]).write_bytes(data)
            elif any("image" in other for other in rows):
                row["image"] = None
            lines.append(json.dumps(row))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return {f"{split}_file": str(folder / f"{split}.jsonl") for split in splits} | {"validation_split": 0}


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def audit_of(folder, splits, **flags):
    posts = load_for_audit(DataArguments(**write_posts(folder, splits), **flags), seed=0)
    return audit_posts(posts, progress=False)


def levels(audit):
    """What was found: {"ids": "leak", ...}."""
    return {finding.about: finding.level for finding in audit.findings}


def score_of(audit, name):
    return next(scored for scored in audit.scores if scored.name == name)
