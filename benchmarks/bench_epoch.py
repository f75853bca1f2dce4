"""
Posts per second of the data path alone, of the model alone, and of both together: which of them limits an epoch?

    python benchmarks/bench_epoch.py --threads 2                          # 512 generated posts with photos
    python benchmarks/bench_epoch.py --threads 2 --photo_size 4000x3000 --posts 64 --reduce_jpeg true
    python benchmarks/bench_epoch.py --threads 2 --recipe mvsa_single     # that recipe's posts and model
    python benchmarks/bench_epoch.py --device cuda --posts 19816 --photo_size 224x224 --passes 100 $PAPER

Prints Markdown. "Decoded at each use" is the data path without the cache of decoded images, "cached" with it; the
first pass over the images, which finds damaged ones, is what fills the cache. Every epoch reads shuffled batches as
training does. Figures are medians of passes that take turns, so that a noisy machine disturbs all alike. Files are
most likely in the operating system's own cache already: a cold disk comes on top. Where others use the same cores,
OMP_WAIT_POLICY=passive keeps the model's threads from waiting for each other at full speed. Further flags are those of
run_classification.py: --image_size 224, --dataloader_num_workers 2, ... The last command then trains as many posts as
Twitter Sarcasm has, as often as the paper does, by run_classification.py, and prints its time; PAPER are the paper's
sizes and what suits a GPU (results/performance.md has it in full).
"""

import argparse
import json
import logging
import os
import random
import statistics
import tempfile
from itertools import cycle, islice
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import torch
from measuring import wall_clock
from PIL import Image
from PIL import __version__ as pillow_version
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from hf_mamba.classification.data import PostCollator, check_images, load_posts
from hf_mamba.classification.data.image_cache import open_image_cache
from hf_mamba.classification.runs.checkpoints import new_image_processor, new_processor_and_model
from hf_mamba.classification.runs.recipes import parse_arguments
from hf_mamba.classification.support.files import read_mapping
from hf_mamba.classification.training.trainer import PixelScale
from hf_mamba.run_classification import main as run_classification


def write_photos(folder, rows, width, height):
    """A JPEG for each of the rows: smooth colours under grain, as a photo has."""
    grain = np.random.default_rng(0).normal(0, 6, (height, width, 3)).astype(np.float32)
    for row in rows:
        colours = np.random.default_rng(row).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(colours).resize((width, height), 3))
        photo = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(photo).save(folder / f"{row}.jpg", quality=85)


def write_posts(folder, count, photo_size):
    """`count` posts of 5 to 20 words with a JPEG each."""
    folder.mkdir()
    processes, words = os.cpu_count(), random.Random(0)
    with Pool(processes) as pool:
        jobs = [
            (folder, range(first, count, processes), *map(int, photo_size.split("x"))) for first in range(processes)
        ]
        pool.starmap(write_photos, jobs)
    with open(folder / "train.jsonl", "w") as file:
        for row in range(count):
            text = " ".join(f"w{words.randrange(3000)}" for _ in range(words.randint(5, 20)))
            file.write(json.dumps({"text": text, "image": f"{row}.jpg", "label": "ab"[row % 2]}) + "\n")
    return folder / "train.jsonl"


def posts_per_second(step, batches, batch_size):
    """`step` on each of the batches; the first, in which workers start, isn't counted."""
    batches, count = iter(batches), 0
    step(next(batches))
    start = wall_clock()
    for batch in batches:
        step(batch)
        count += batch_size
    return count / (wall_clock() - start)


def make_training_step(model, processor, training_args):
    """As Trainer's."""
    on_gpu = model.device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), fused=on_gpu)
    if training_args.torch_compile:
        model = torch.compile(model, mode=training_args.torch_compile_mode)
    scales = {}

    def step(batch):
        batch = {name: x.to(model.device, non_blocking=True) for name, x in batch.items()}
        if "pixel_values" in batch:
            scale = scales.setdefault(0, PixelScale(processor.image_processor, batch["pixel_values"]))
            batch["pixel_values"] = scale(batch["pixel_values"])
        optimizer.zero_grad()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=training_args.bf16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()

    return step


def first_pass(posts, cache):
    """Posts per second of `check_images`."""
    posts.image_cache = cache
    start = wall_clock()
    check_images(posts, progress=False)
    return sum(map(len, posts.splits.values())) / (wall_clock() - start)


def measure(posts, processor, model, cache, args, training_args):
    """(images, what) -> posts per second, a list with one figure for each repeat."""
    train, step = posts.splits["train"], make_training_step(model, processor, training_args)
    batch_size, num_workers = training_args.per_device_train_batch_size, training_args.dataloader_num_workers
    loaders = {
        name: DataLoader(
            train,
            batch_size=batch_size,
            shuffle=True,
            drop_last=True,
            collate_fn=PostCollator(processor, used, as_bytes=True, pad_to_max_length=training_args.pad_to_max_length),
            num_workers=num_workers,
            pin_memory=args.device == "cuda",
            persistent_workers=num_workers > 0,
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
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--passes", type=int, help="then train so often, twice or more, over all posts by run_classification.py"
    )
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
        argv += [*flags, "--output_dir", folder / "run", "--image_cache", folder / "cache" / "images"]
        argv = [*map(str, argv)]
        run(args, *parse_arguments(argv)[:3])
        if args.passes:
            train(argv, args)


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
    figures = measure(posts, processor, model.to(args.device).train(), cache, args, training_args)

    size = image_processor.size.height
    what = f"recipe {args.recipe}" if args.recipe else f"{args.posts} generated posts, photos {args.photo_size}"
    print(
        f"{what}; images to {size}x{size}, batch {training_args.per_device_train_batch_size}, {args.threads} "
        f"thread(s), {training_args.dataloader_num_workers} workers, {args.device}, torch {torch.__version__}, Pillow "
        f"{pillow_version}; posts per second\n"
    )
    print("| first pass over the images | posts/s |\n|---|---|")
    print("\n".join(f"| {name} | {value:,.0f} |" for name, value in checks.items()))
    print("\n| images | data path alone | model alone (training) | both | the limit |\n|---|---|---|---|---|")
    for name in ("decoded at each use", "cached"):
        data, alone, both = (figures[name, column] for column in ("data", "model", "both"))
        limit, share = "model" if data > alone else "data path", both / alone
        print(f"| {name} | {data:,.0f} | {alone:,.0f} | {both:,.0f} ({share:.0%} of the model alone) | {limit} |")


class EpochTimes(TrainerCallback):
    """When each epoch ended."""

    def __init__(self):
        self.ends = []

    def on_epoch_end(self, *args, **kwargs):
        self.ends.append(wall_clock())


def train(argv, args):
    """Prints what Trainer says of a whole training, from its first step to its last, and the time of later epochs."""
    more = ["--do_train", "--num_train_epochs", str(args.passes), "--disable_tqdm", "true", "--eval_strategy", "no"]
    more += ["--save_strategy", "no", "--validation_split", "0", "--use_cpu", str(args.device == "cpu")]
    DEFAULT_CALLBACKS.append(times := EpochTimes())  # the only way to reach the Trainer of a whole run
    try:
        run_classification([*argv, *more])
    finally:
        DEFAULT_CALLBACKS.remove(times)
    output_dir = Path(argv[argv.index("--output_dir") + 1])
    results = read_mapping(output_dir / "train_results.json")
    seconds, rate = results["train_runtime"], results["train_samples_per_second"]
    later = (times.ends[-1] - times.ends[0]) / (args.passes - 1)
    print(
        f"\n{args.passes} epochs by run_classification.py: {seconds:,.0f} s, {rate:,.0f} posts/s; after the first, in "
        f"which a model is compiled, {later:.2f} s an epoch, {seconds * rate / args.passes / later:,.0f} posts/s"
    )


if __name__ == "__main__":
    main()
