"""
Classifies a folder of images and texts, and writes a csv file with every label's probability:

    python examples/score_folder.py outputs/mine inbox scores.csv

Files of one name make up a post: inbox/7.jpg and inbox/7.txt; either may be missing. This needs transformers, torch
and Pillow alone, not this package: the checkpoint, a folder or a name on the Hub, brings its code.
"""

import argparse
import csv
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoProcessor


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")
BATCH_SIZE = 32


def read_folder(folder):
    """Name -> {"text": str or None, "images": list of paths}, in the order of the names."""
    posts = {}
    for path in sorted(Path(folder).iterdir()):
        post = {"text": None, "images": []}
        if path.suffix.lower() in IMAGE_SUFFIXES:
            posts.setdefault(path.stem, post)["images"].append(str(path))
        elif path.suffix.lower() == ".txt":
            posts.setdefault(path.stem, post)["text"] = path.read_text("utf-8")
    return posts


def main(argv=None):
    """Writes the csv file. Returns how many posts it holds."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    parser.add_argument("csv_file")
    args = parser.parse_args(argv)

    processor = AutoProcessor.from_pretrained(args.checkpoint, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(args.checkpoint, trust_remote_code=True).eval()
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    posts = read_folder(args.folder)
    names = list(posts)
    with open(args.csv_file, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "prediction", *(f"probability_{label}" for label in labels)])
        for start in range(0, len(names), BATCH_SIZE):
            batch = [posts[name] for name in names[start : start + BATCH_SIZE]]
            inputs = processor(
                text=[post["text"] for post in batch], images=[post["images"] for post in batch], return_tensors="pt"
            )
            with torch.inference_mode():
                probabilities = model(**inputs).logits.softmax(-1).tolist()
            for name, row in zip(names[start:], probabilities):
                writer.writerow([name, labels[row.index(max(row))], *(f"{p:.6f}" for p in row)])
    return len(posts)


if __name__ == "__main__":
    print(f"{main()} posts")
