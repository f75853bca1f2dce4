"""Images decoded once: the same bits with and without the cache, whatever happens to its files."""

import json
import logging
import multiprocessing
import os
import pickle
import random
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from hf_mamba import processing_hf_mamba
from hf_mamba.classification.data import DataArguments, PostCollator, check_images, image_cache, load_posts
from hf_mamba.classification.data.arguments import parse_size
from hf_mamba.classification.data.image_cache import ImageCache, open_image_cache
from hf_mamba.processing_hf_mamba import (
    HFMambaImageProcessor,
    HFMambaProcessor,
    build_wordpiece_tokenizer,
)


SIDE, BUDGET = 32, 10**8
BYTES_EACH = SIDE * SIDE * 3
MODES = {"a.png": "RGB", "b.jpg": "RGB", "c.png": "RGBA", "d.png": "L", "e.png": "P", "f.tif": "CMYK", "g.png": "I;16"}


@pytest.fixture
def processor():
    tokenizer = build_wordpiece_tokenizer(["[PAD]", "[UNK]", "post"])
    return HFMambaProcessor(HFMambaImageProcessor(size={"height": SIDE, "width": SIDE}, patch_size=16), tokenizer)


@pytest.fixture
def folder(tmp_path):
    """Seven posts with images of seven kinds; the last has three of them, one of which another post has too."""
    folder = tmp_path / "posts"
    folder.mkdir()
    for index, (name, mode) in enumerate(MODES.items()):
        draw(folder / name, mode, seed=index)
    rows = [{"text": f"post {i}", "image": [name], "label": "ab"[i % 2]} for i, name in enumerate(MODES)]
    rows[-1]["image"] += ["a.png", "b.jpg"]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def draw(path, mode="RGB", seed=0, size=(90, 60)):
    pixels = random.Random(seed).randbytes(size[0] * size[1] * 4)
    if mode == "I;16":
        Image.frombytes(mode, size, pixels[: size[0] * size[1] * 2]).save(path)
    else:
        image = Image.frombytes("RGBA", size, pixels)
        (image if mode == "RGBA" else image.convert("RGB").convert(mode)).save(path)


def load(folder, **flags):
    flags = {"train_file": str(folder / "train.jsonl"), "validation_split": 0} | flags
    return load_posts(DataArguments(**flags), seed=0)


def new_cache(folder, processor, budget=BUDGET):
    return ImageCache(folder.parent / "cache", processor.image_processor, budget)


def fill(folder, processor, **kwargs):
    return check(load(folder), new_cache(folder, processor, **kwargs))


def check(posts, cache):
    posts.image_cache = cache
    check_images(posts, progress=False)
    return cache


def assert_same_batch(posts, processor, cache):
    rows = list(posts.splits["train"])
    plain, cached = PostCollator(processor)(rows), PostCollator(processor, cache)(rows)
    assert plain.keys() == cached.keys()
    assert all(torch.equal(plain[name], cached[name]) for name in plain)


def num_cached(posts, cache):
    sources = [source for row in posts.splits["train"] for source in row["images"]]
    return sum(isinstance(cache.image(source), Image.Image) for source in sources)


@pytest.fixture
def decoded(monkeypatch):
    """The sources that were decoded."""
    sources, decode = [], image_cache.decode

    def count(source, image_processor):
        sources.append(source)
        return decode(source, image_processor)

    monkeypatch.setattr(image_cache, "decode", count)
    return sources


@pytest.fixture
def logged(caplog):
    def messages(level=logging.WARNING):
        messages = [record.getMessage() for record in caplog.records if record.levelno >= level]
        caplog.clear()
        return messages

    caplog.set_level(logging.INFO, logger="hf_mamba")
    return messages


# The same bits


def test_a_batch_has_the_same_bits_and_every_image_is_decoded_once(folder, processor, decoded, logged):
    cache = fill(folder, processor)
    assert sorted(decoded) == [str(folder / name) for name in MODES]
    lines = [message for message in logged(logging.INFO) if "decoded once" in message]
    assert len(lines) == 1 and lines[0].startswith("7 images at 32x32: 21 KiB in ")
    assert num_cached(load(folder), cache) == len(MODES) + 2
    assert_same_batch(load(folder), processor, cache)
    assert_same_batch(load(folder), processor, new_cache(folder, processor).load())
    assert fill(folder, processor) and len(decoded) == len(MODES)  # a later run decodes nothing


@pytest.mark.parametrize("settings", [{"resample": 3}, {"reduce_jpeg": True}, {"size": {"height": 16, "width": 16}}])
def test_other_settings_have_images_of_their_own(folder, processor, settings):
    draw(folder / "b.jpg", size=(400, 300))
    fill(folder, processor)
    other = HFMambaProcessor(
        HFMambaImageProcessor(**{"size": {"height": SIDE, "width": SIDE}, "patch_size": 16} | settings),
        processor.tokenizer,
    )
    assert len(new_cache(folder, other).load()) == 0
    cache = fill(folder, other)
    assert num_cached(load(folder), cache) == len(MODES) + 2
    assert_same_batch(load(folder), other, cache)


def test_other_code_has_images_of_its_own(folder, processor, monkeypatch):
    fill(folder, processor)
    monkeypatch.setattr(image_cache.PIL, "__version__", "13.0")
    assert len(new_cache(folder, processor).load()) == 0


def test_a_changed_decoder_has_images_of_its_own(folder, processor, monkeypatch, tmp_path):
    """Whichever of the modules that decode it is in: that of the class, or image_patches.py beside it."""
    fill(folder, processor)
    source = Path(processing_hf_mamba.__file__).parent
    for changed in (None, "processing_hf_mamba.py", "image_patches.py"):
        copy = tmp_path / str(changed)
        copy.mkdir()
        for path in source.glob("*.py"):
            shutil.copy(path, copy)
        if changed:
            with (copy / changed).open("a") as file:
                file.write("\n# changed\n")
        monkeypatch.setattr(image_cache.inspect, "getfile", lambda cls, copy=copy: copy / "processing_hf_mamba.py")
        assert (len(new_cache(folder, processor).load()) > 0) == (changed is None)


def test_stored_images_are_cached_by_their_bytes(folder, processor, decoded):
    images = [(folder / name).read_bytes() for name in ("a.png", "b.jpg", "a.png", "c.png")]
    table = {
        "text": ["one", "two", "three", "four"],
        "image": [{"bytes": image, "path": None} for image in images],
        "label": list("abab"),
    }
    features = datasets.Features(
        text=datasets.Value("string"), image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"])
    )
    saved = str(folder.parent / "saved")
    datasets.Dataset.from_dict(table, features=features).save_to_disk(saved)
    posts = load(folder, dataset_name=saved, train_file=None)
    cache = check(posts, new_cache(folder, processor))
    assert len(set(decoded)) == len(cache) == 3
    assert num_cached(posts, cache) == 4
    assert_same_batch(posts, processor, cache)


def test_a_cache_can_be_sent_to_another_process(folder, processor):
    cache = fill(folder, processor)
    assert len(pickle.dumps(cache)) < BYTES_EACH  # no pixels go along
    there = pickle.loads(pickle.dumps(PostCollator(processor, cache)))
    assert num_cached(load(folder), there.cache) == len(MODES) + 2
    assert_same_batch(load(folder), processor, there.cache)


# Files that change, break or come short


def test_a_changed_file_is_decoded_again(folder, processor, decoded):
    fill(folder, processor)
    draw(folder / "a.png", seed=99)
    decoded.clear()
    cache = fill(folder, processor)
    assert decoded == [str(folder / "a.png")]
    assert_same_batch(load(folder), processor, cache)


def test_a_damaged_image_is_named_and_the_others_are_kept(folder, processor, decoded):
    (folder / "c.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"1 images(.|\n)*line 3(.|\n)*c\.png"):
        fill(folder, processor)
    draw(folder / "c.png", seed=5)
    decoded.clear()
    assert_same_batch(load(folder), processor, fill(folder, processor))
    assert decoded == [str(folder / "c.png")]


@pytest.mark.parametrize("kind", ["pixels cut", "pixels gone", "index cut", "index of another type", "index empty"])
def test_a_broken_shard_is_made_anew_with_one_line(folder, processor, decoded, logged, kind):
    fill(folder, processor)
    (index,) = new_cache(folder, processor).folder.glob("*.index.npy")
    pixels = index.with_name(index.name.replace(".index.npy", ".pixels"))
    if kind == "pixels gone":
        pixels.unlink()
    elif kind == "index of another type":
        image_cache.np.save(index, image_cache.np.zeros(3))
    else:
        file = pixels if kind == "pixels cut" else index
        data = file.read_bytes()
        file.write_bytes(b"" if kind == "index empty" else data[: len(data) // 2])
    logged()
    decoded.clear()
    cache = fill(folder, processor)
    assert len(decoded) == len(MODES)
    (line,) = logged()
    assert "damaged" in line and str(index) in line
    assert_same_batch(load(folder), processor, cache)
    assert len(list(cache.folder.glob("*.pixels"))) == 1


def test_a_flipped_byte_is_found(folder, processor, decoded, logged):
    fill(folder, processor)
    (pixels,) = new_cache(folder, processor).folder.glob("*.pixels")
    data = bytearray(pixels.read_bytes())
    data[5] ^= 255
    pixels.write_bytes(data)
    decoded.clear()
    cache = fill(folder, processor)
    assert len(decoded) == 1
    assert [line for line in logged() if line.startswith("1 cached images in ")]
    assert_same_batch(load(folder), processor, cache)
    decoded.clear()
    assert_same_batch(load(folder), processor, fill(folder, processor))
    assert decoded == []


def test_what_was_decoded_before_an_interruption_is_kept(folder, processor, monkeypatch, decoded):
    cache, posts = new_cache(folder, processor), load(folder)
    with pytest.raises(KeyboardInterrupt), cache.filling(posts):
        cache.why_unreadable(str(folder / "a.png"))
        raise KeyboardInterrupt
    decoded.clear()
    fill(folder, processor)
    assert len(decoded) == len(MODES) - 1


def die_half_way(folder, processor):
    """Ends the process without a word after four images, one finished shard and a half."""
    image_cache.SHARD_BYTES = 3 * BYTES_EACH
    cache, count = new_cache(folder, processor), 0
    with cache.filling(load(folder)):
        for name in MODES:
            cache.why_unreadable(str(folder / name))
            count += 1
            if count == 4:
                cache._writer.file.flush()
                os._exit(1)  # nothing is tidied up


def in_process(function, *args):
    process = multiprocessing.get_context("fork").Process(target=function, args=args)
    process.start()
    return process


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_after_a_crash_whole_shards_are_kept_and_the_rest_is_cleared_away(folder, processor, decoded):
    in_process(die_half_way, folder, processor).join()
    cache = new_cache(folder, processor)
    assert len(list(cache.folder.glob("*.tmp"))) == 1
    assert len(cache.load()) == 3
    (cache.folder / "0.pixels").write_bytes(b"renamed, but its index never came")
    assert_same_batch(load(folder), processor, fill(folder, processor))
    assert len(decoded) == len(MODES) - 3
    assert sorted(path.suffix for path in cache.folder.iterdir()) == ["", ".npy", ".npy", ".pixels", ".pixels"]


def fill_slowly(folder, processor, barrier, results):
    decode, sources = image_cache.decode, []

    def slow(source, image_processor):
        sources.append(source)
        barrier[1].wait(0.02)  # an event that never comes
        return decode(source, image_processor)

    image_cache.decode = slow
    barrier[0].wait()
    cache = fill(folder, processor)
    results.put((len(sources), num_cached(load(folder), cache)))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
def test_of_two_processes_one_decodes_and_both_have_the_images(folder, processor):
    context = multiprocessing.get_context("fork")
    barrier, results = (context.Barrier(2), context.Event()), context.Queue()
    processes = [in_process(fill_slowly, folder, processor, barrier, results) for _ in range(2)]
    reported = sorted(results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    everything = len(MODES) + 2
    assert reported == [(0, everything), (len(MODES), everything)]


# Room


def test_beyond_the_budget_images_are_decoded_whenever_used(folder, processor, logged):
    cache = fill(folder, processor, budget=3 * BYTES_EACH + 100)
    (line,) = logged()
    assert "7 images at 32x32 need 21 KiB" in line and "--image_cache_budget" in line and "3 are decoded once" in line
    assert len(cache) == 3
    assert sum(path.stat().st_size for path in cache.folder.glob("*.pixels")) <= cache.budget
    assert_same_batch(load(folder), processor, cache)
    assert len(fill(folder, processor, budget=0)) == 3  # what is there is used, nothing is added


def test_a_full_disk_counts_like_a_budget(folder, processor, logged, monkeypatch):
    usage = image_cache.shutil.disk_usage(folder)._replace(free=image_cache.SPARE_BYTES + 2 * BYTES_EACH)
    monkeypatch.setattr(image_cache.shutil, "disk_usage", lambda path: usage)
    cache = fill(folder, processor)
    assert len(cache) == 2 and "free disk space" in logged()[0]
    assert_same_batch(load(folder), processor, cache)


def test_images_of_other_runs_make_room_the_longest_unused_first(folder, processor, tmp_path):
    budget = 2 * len(MODES) * BYTES_EACH
    caches = []
    for index in range(3):
        other = tmp_path / f"posts{index}"
        other.mkdir()
        for number, name in enumerate(MODES):
            draw(other / f"{name}.png", seed=100 * index + number)
        rows = [{"text": "post", "image": f"{name}.png", "label": "ab"[i % 2]} for i, name in enumerate(MODES)]
        (other / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        caches.append((other, fill(other, processor, budget=budget)))
        for pixels in caches[0][1].folder.glob("*.pixels"):  # as if each run took a while
            stat = pixels.stat()
            image_cache.os.utime(pixels, (stat.st_atime - 100, stat.st_mtime - 100))
        if index == 1:
            fill(caches[0][0], processor, budget=budget)  # used again, so that the second is the oldest
    assert len(new_cache(folder, processor).load()) == 2 * len(MODES)
    there = new_cache(folder, processor, budget=budget).load()
    assert [num_cached(load(other), there) for other, _ in caches] == [7, 0, 7]
    assert_same_batch(load(caches[1][0]), processor, caches[1][1])  # it had them mapped


@pytest.mark.parametrize("when", ["opening", "writing", "finishing", "no folder"])
def test_where_nothing_can_be_written_one_line_reports_it(folder, processor, logged, monkeypatch, when):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    if when == "no folder":
        (folder.parent / "cache").write_text("a file")
    else:
        method = {"opening": "__init__", "writing": "add", "finishing": "finish"}[when]
        monkeypatch.setattr(image_cache._ShardWriter, method, refuse)
    cache = fill(folder, processor)
    (line,) = logged()
    assert "Nothing can be written" in line and "--image_cache" in line
    assert len(cache) == 0
    assert_same_batch(load(folder), processor, cache)
    assert not list(cache.folder.glob("*.tmp"))


def test_a_cache_that_can_only_be_read_is_read(folder, processor, monkeypatch, decoded, logged):
    fill(folder, processor)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    decoded.clear()
    monkeypatch.setattr(image_cache.FileLock, "acquire", refuse)
    monkeypatch.setattr(image_cache._ShardWriter, "__init__", refuse)
    cache = fill(folder, processor)
    assert num_cached(load(folder), cache) == len(MODES) + 2 and decoded == [] and logged() == []


# Flags


def test_the_folder_of_the_cache_is_beside_the_data_sets_unless_named(processor, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    cache = open_image_cache(DataArguments(), processor.image_processor)
    assert cache.root == tmp_path / "hf_mamba_images" and cache.budget == 4 * 10**9
    assert open_image_cache(DataArguments(image_cache="off"), processor.image_processor) is None
    named = DataArguments(image_cache=str(tmp_path / "mine"), image_cache_budget="2GiB")
    cache = open_image_cache(named, processor.image_processor)
    assert cache.root == tmp_path / "mine" and cache.budget == 2 * 2**30


def test_a_cache_among_the_images_is_refused(folder, processor):
    cache = ImageCache(folder / "cache", processor.image_processor, BUDGET)
    with pytest.raises(ValueError, match=r"--image_cache .*among the images"):
        check(load(folder), cache)
    assert [path.name for path in folder.rglob("*") if path.suffix in (".pixels", ".npy", ".tmp")] == []


@pytest.mark.parametrize(
    "text, size", [("0", 0), ("123", 123), ("4GB", 4 * 10**9), ("1.5 kib", 1536), ("2m", 2 * 10**6)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "4 XB", "-1GB", "1.2.3"])
def test_a_budget_that_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="--image_cache_budget.*4GB"):
        parse_size(text)
