"""Training from a stream: what is known beforehand, the order of the posts, going on after a stop."""

import zipfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from documented import load, make_image, processor_for
from running import SMALL, assert_same_weights, interrupt_at, refused
from torch.utils.data import DataLoader

from hf_mamba import run_classification
from hf_mamba.classification.data import PostCollator
from hf_mamba.classification.evaluation.metrics import baseline_of_posts


def rows_of_split(folder, count, bad=()):
    rows = []
    for i in range(count):
        data = b"broken" if i in bad else (folder / f"p{i % 2}.png").read_bytes()
        rows.append({"text": f"post {i}", "image": {"bytes": data, "path": None}, "label": "ab"[i % 2], "id": f"r{i}"})
    return rows


@pytest.fixture
def hub(tmp_path):
    """A function that lays out a data set as on the Hub: split -> rows, in two files each."""
    for i in range(2):
        make_image((32 + i, 32)).save(tmp_path / f"p{i}.png")

    def write(bad=(), **counts):
        (tmp_path / "hub" / "data").mkdir(parents=True)
        for split, count in counts.items():
            rows = rows_of_split(tmp_path, count, bad if split == "train" else ())
            for shard, part in enumerate((rows[: count // 2], rows[count // 2 :])):
                name = f"{split}-{shard:05}-of-00002.parquet"
                pq.write_table(pa.Table.from_pylist(part), tmp_path / "hub" / "data" / name)
        return str(tmp_path / "hub")

    return write


def stream(name, **flags):
    return load(dataset_name=name, streaming=True, **flags)


def ids(dataset, count):
    return [row["id"] for row, _ in zip(dataset, range(count))]


def test_each_epoch_has_every_post_once_in_an_order_of_its_own(hub):
    train = stream(hub(train=150, validation=4), stream_shuffle_buffer=50).splits["train"]
    seen = ids(train, 450)
    epochs = [seen[:150], seen[150:300], seen[300:]]
    everything = [f"r{i}" for i in range(150)]
    assert all(sorted(one) == sorted(everything) for one in epochs)
    assert len({tuple(one) for one in (*epochs, everything)}) == 4
    assert ids(train, 450) == seen  # the same for the same seed


def test_the_first_posts_give_labels_and_vocabulary_and_hold_no_pixels(hub):
    posts = stream(hub(train=100, test=5), stream_first_pass=30, max_predict_samples=3)
    assert posts.label_names == ["a", "b"] and baseline_of_posts(posts) == 0
    assert posts.column("train", "text") == [f"post {i}" for i in range(30)]
    assert posts.sample.with_format(None)[0]["images"]["bytes"] == b""
    assert posts.counts() == "train streamed, 3 test" and "validation" not in posts.splits
    assert posts.splits["test"][1]["images"][0].startswith(b"\x89PNG")
    row = next(iter(posts.splits["train"]))
    assert row["images"][0].startswith(b"\x89PNG") and set(row) == {"id", "text", "images", "label"}


def test_a_limit_and_loader_workers(hub):
    train = stream(hub(train=150), max_train_samples=130, stream_shuffle_buffer=8).splits["train"]
    one_epoch = {f"r{i}" for i in range(130)}
    assert set(ids(train, 130)) == one_epoch
    loader = DataLoader(train, batch_size=10, num_workers=2, collate_fn=lambda rows: [row["id"] for row in rows])
    seen = [name for batch, _ in zip(loader, range(40)) for name in batch]
    assert len(set(seen[:120])) == 120  # none is seen by both
    assert set(seen) == one_epoch and max(map(seen.count, one_epoch)) <= 6  # the worker with fewer posts is further on
    one_chunk = stream(train.raw.place.split()[2].rstrip(","), max_train_samples=40).splits["train"]
    loader = DataLoader(one_chunk, batch_size=10, num_workers=2, collate_fn=lambda rows: [row["id"] for row in rows])
    assert len([batch for batch, _ in zip(loader, range(6))]) == 6


def test_an_unknown_label_names_its_row_and_what_to_do(hub):
    name = hub(train=100)
    posts = stream(name, label_list=["a", "b", "c"])
    assert posts.label_names == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"split train, row 1 .*'b' is not in --label_list"):
        stream(name, label_list=["a", "c"])
    table = pa.Table.from_pylist([{"text": "t", "label": label} for label in [*"ab" * 40, "late"]])
    for shard in range(2):
        pq.write_table(table, f"{name}/data/train-{shard:05}-of-00002.parquet")
    expected = r"row 80 \(counted.*'late' is unseen.*--stream_first_pass, or .*--label_list"
    with pytest.raises(ValueError, match=expected):
        ids(stream(name, stream_first_pass=20, modalities="text").splits["train"], 90)


@pytest.mark.parametrize("policy", ["error", "drop", "keep_text"])
def test_bad_images_in_a_stream(hub, policy, caplog):
    posts = stream(hub(train=100, bad=[1, 70, 71]), on_bad_image=policy, stream_shuffle_buffer=1)
    rows = [row for row, _ in zip(posts.splits["train"], range(97 if policy == "drop" else 100))]
    kept = [i for i in range(100) if policy != "drop" or i not in (1, 70, 71)]
    assert [row["id"] for row in rows] == [f"r{i}" for i in kept]
    without = [row["id"] for row in rows if not row["images"]]
    assert without == (["r1", "r70", "r71"] if policy == "keep_text" else [])
    assert ("split train, rows 70, 71 (counted from 0)" in caplog.text) == (policy != "error")
    next(iter(posts.splits["train"]))
    if policy == "drop":
        [row for row, _ in zip(posts.splits["train"], range(98))]
        assert "epoch 1: 3 posts with a bad image" in caplog.text


def test_a_stream_of_nothing_ends(hub):
    posts = stream(hub(train=4, bad=range(4)), on_bad_image="drop")
    with pytest.raises(ValueError, match="no post is left to train on, all were dropped"):
        next(iter(posts.splits["train"]))


def test_images_in_an_archive_are_fetched(tmp_path):
    """As on the Hub, where an image's path isn't a file on this machine."""
    make_image().save(tmp_path / "p.png")
    (tmp_path / "hub").mkdir()
    with zipfile.ZipFile(tmp_path / "hub" / "train.zip", "w") as archive:
        archive.writestr("metadata.csv", "file_name,label\n" + "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(6)))
        for i in range(6):
            archive.write(tmp_path / "p.png", f"{i}.png")
    posts = stream(str(tmp_path / "hub"))
    assert posts.label_names == ["a", "b"]
    rows = [row for row, _ in zip(posts.splits["train"], range(6))]
    assert [row["images"] for row in rows] == [[(tmp_path / "p.png").read_bytes()]] * 6


FLAGS = ["--streaming", "--save_strategy=steps", "--save_steps=4", "--eval_strategy=no", "--stream_shuffle_buffer=20"]


def test_a_run_that_goes_on_equals_one_that_was_never_stopped(hub, tmp_path, monkeypatch):
    name = hub(train=40, test=5)
    argv = ["--do_train", "--do_predict", *SMALL, "--max_steps=9", "--dataset_name", name, *FLAGS, "--output_dir"]
    metrics = run_classification.main([*argv, str(tmp_path / "whole")])
    assert metrics["test"]["num_posts"] == 5
    argv.append(str(tmp_path / "stopped"))
    interrupt_at(monkeypatch, 7, argv)  # in the second epoch; saved at 4
    run_classification.main(argv)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_what_a_stream_needs_is_reported(hub, tmp_path, monkeypatch):
    name = hub(train=8)
    argv = ["--do_train", *SMALL, "--output_dir", tmp_path / "out", "--streaming"]
    assert "so give --max_steps" in refused(monkeypatch, [*argv, "--dataset_name", name])
    argv.append("--max_steps=1")
    assert "goes with --dataset_name alone" in refused(monkeypatch, [*argv, "--train_file", "t.csv"])
    assert "can't be streamed" in refused(monkeypatch, [*argv, "--dataset_name", tmp_path / "nowhere"])
    assert "--stream_first_pass must be 2" in refused(
        monkeypatch, [*argv, "--dataset_name", name, "--stream_first_pass=0"]
    )
    assert "--test_split needs" in refused(monkeypatch, [*argv, "--dataset_name", name, "--test_split=0.1"])
    datasets.Dataset.from_dict({"text": ["t"]}).save_to_disk(tmp_path / "saved")
    assert "Leave the flag out" in refused(monkeypatch, [*argv, "--dataset_name", tmp_path / "saved"])


def test_a_batch_of_a_stream(hub):
    rows = [row for row, _ in zip(stream(hub(train=8)).splits["train"], range(4))]
    batch = PostCollator(processor_for("post"))(rows)
    assert batch["pixel_attention_mask"].sum(1).tolist() == [4] * 4 and batch["labels"].shape == (4,)
