"""
Posts per second of the data path alone, of the model alone, and of both together: which of them limits an epoch?

    python benchmarks/bench_epoch.py --threads 2                          # 512 generated posts with photos
    python benchmarks/bench_epoch.py --threads 2 --photo_size 4000x3000 --posts 64 --reduce_jpeg true
    python benchmarks/bench_epoch.py --threads 2 --recipe mvsa_single     # that recipe's posts and model

Prints Markdown. "Decoded at each use" is the data path without the cache of decoded pictures, "cached" with it; the
first pass over the pictures, which finds damaged ones, is what fills the cache. Every pass reads shuffled batches as
training does. Figures are medians of passes that take turns, so that a noisy machine disturbs all alike. Files are
most likely in the operating system's own cache already: a cold disk comes on top. Where others use the same cores,
OMP_WAIT_POLICY=passive keeps the model's threads from waiting for each other at full speed. Further flags are those of
run_classification.py: --image_size 224, --dataloader_num_workers 2, ...
"""

import argparse
import json
import logging
import random
import statistics
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL import __version__ as pillow_version
from torch.utils.data import DataLoader

from hf_mamba.classification.arguments import parse_arguments
from hf_mamba.classification.checkpoints import new_image_processor, new_processor_and_model
from hf_mamba.classification.data import PostCollator, check_images, load_posts
from hf_mamba.classification.image_cache import open_image_cache


def write_posts(folder, count, photo_size):
    """`count` posts of 5 to 20 words with a JPEG each: smooth colours under grain, as a photo has."""
    folder.mkdir()
    width, height = map(int, photo_size.split("x"))
    generator, words = np.random.default_rng(0), random.Random(0)
    grain = generator.normal(0, 6, (height, width, 3)).astype(np.float32)
    with open(folder / "train.jsonl", "w") as file:
        for row in range(count):
            smooth = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), 3)
            photo = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
            Image.fromarray(photo).save(folder / f"{row}.jpg", quality=85)
            text = " ".join(f"w{words.randrange(3000)}" for _ in range(words.randint(5, 20)))
            file.write(json.dumps({"text": text, "image": f"{row}.jpg", "label": "ab"[row % 2]}) + "\n")
    return folder / "train.jsonl"


def posts_per_second(step, batches, batch_size):
    """`step` on each of the batches; the first, in which workers start, isn't counted."""
    batches, count = iter(batches), 0
    step(next(batches))
    start = time.perf_counter()
    for batch in batches:
        step(batch)
        count += batch_size
    return count / (time.perf_counter() - start)


def make_training_step(model):
    optimizer = torch.optim.AdamW(model.parameters())

    def step(batch):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def first_pass(posts, cache):
    """Posts per second of `check_images`."""
    posts.image_cache = cache
    start = time.perf_counter()
    check_images(posts, progress=False)
    return sum(map(len, posts.splits.values())) / (time.perf_counter() - start)


def measure(posts, processor, model, cache, args, batch_size, num_workers):
    """(pictures, what) -> posts per second, a list with one figure for each repeat."""
    train, step = posts.splits["train"], make_training_step(model)
    loaders = {
        name: DataLoader(
            train,
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            collate_fn=PostCollator(processor, used),
            num_workers=num_workers,
        )
        for name, used in (("decoded at each use", None), ("cached", cache))
    }
    steps = min(args.steps, len(train) // batch_size) + 1
    kept = list(islice(loaders["cached"], min(8, steps)))
    figures = {}
    for _ in range(args.repeats):
        alone = posts_per_second(step, islice(cycle(kept), steps), batch_size)
        for name, loader in loaders.items():
            figures.setdefault((name, "model"), []).append(alone)
            data = posts_per_second(lambda batch: None, islice(cycle(loader), steps), batch_size)
            figures.setdefault((name, "data"), []).append(data)
            both = posts_per_second(step, islice(cycle(loader), steps), batch_size)
            figures.setdefault((name, "both"), []).append(both)
    return {key: statistics.median(values) for key, values in figures.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", help="posts and model of this recipe, by name or path; default: generated posts")
    parser.add_argument("--posts", type=int, default=512, help="posts to generate")
    parser.add_argument("--photo_size", default="1600x1200", help="of the generated photos")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=8, help="batches per pass")
    parser.add_argument("--repeats", type=int, default=9)
    args, flags = parser.parse_known_args()
    torch.set_num_threads(args.threads)
    logging.basicConfig(format="%(message)s")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        argv = (
            [args.recipe]
            if args.recipe
            else ["--train_file", write_posts(folder / "posts", args.posts, args.photo_size)]
        )
        argv += [*flags, "--output_dir", folder / "run", "--image_cache", folder / "cache" / "pictures"]
        run(args, *parse_arguments(map(str, argv))[:3])


def run(args, model_args, data_args, training_args):
    """Prints the tables for one set of posts."""
    posts = load_posts(data_args, seed=0)
    image_processor = new_image_processor(model_args, data_args)
    checks = {
        "check alone": first_pass(posts, None),
        "check and fill the cache": first_pass(posts, cache := open_image_cache(data_args, image_processor)),
        "check of what is cached": first_pass(posts, cache := open_image_cache(data_args, image_processor)),
    }
    processor, model = new_processor_and_model(model_args, data_args, posts)
    batch_size = training_args.per_device_train_batch_size
    num_workers = training_args.dataloader_num_workers
    figures = measure(posts, processor, model.train(), cache, args, batch_size, num_workers)

    size = image_processor.size.height
    what = f"recipe {args.recipe}" if args.recipe else f"{args.posts} generated posts, photos {args.photo_size}"
    print(
        f"{what}; pictures to {size}x{size}, batch {batch_size}, {args.threads} thread(s), {num_workers} workers, "
        f"torch {torch.__version__}, Pillow {pillow_version}; posts per second\n"
    )
    print("| first pass over the pictures | posts/s |\n|---|---|")
    print("\n".join(f"| {name} | {value:,.0f} |" for name, value in checks.items()))
    print("\n| pictures | data path alone | model alone (training) | both | the limit |\n|---|---|---|---|---|")
    for name in ("decoded at each use", "cached"):
        data, alone, both = (figures[name, column] for column in ("data", "model", "both"))
        limit, share = "model" if data > alone else "data path", both / alone
        print(f"| {name} | {data:,.0f} | {alone:,.0f} | {both:,.0f} ({share:.0%} of the model alone) | {limit} |")


if __name__ == "__main__":
    main()
