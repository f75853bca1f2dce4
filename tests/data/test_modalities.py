"""Withheld modalities: of all posts in evaluation, by seeded chance in training, the same after an interruption."""

import json
import pickle
from types import SimpleNamespace

import pytest
from running import assert_same_weights, command, interrupt_at
from torch.utils.data import DataLoader

from hf_mamba import run_classification
from hf_mamba.classification.data import DataArguments, load_posts
from hf_mamba.classification.data.modalities import ModalityDropout, Withheld, rows_with_both
from hf_mamba.classification.training.callbacks import EpochCounter


POSTS = [{"id": str(i), "text": "t", "images": ["p.png"], "label": 0} for i in range(400)]
POSTS[3] |= {"text": None}
POSTS[5] |= {"images": []}


def kind(row):
    return ("text" if row["text"] is not None else "") + ("image" if row["images"] else "")


def epoch_of(dropped, number):
    EpochCounter(dropped).on_epoch_begin(None, SimpleNamespace(epoch=number), None)
    return [kind(dropped[row]) for row in range(len(dropped))]


def test_each_epoch_draws_anew_and_one_modality_always_stays():
    dropped = ModalityDropout(POSTS, 0.5, seed=0)
    first, second = epoch_of(dropped, 0), epoch_of(dropped, 1.0)
    assert first != second and first == epoch_of(dropped, 0)
    for kinds in (first, second):
        assert (kinds[3], kinds[5]) == ("image", "text")  # never the only one
        assert "" not in kinds
        assert abs(kinds.count("textimage") - 199) < 40
        assert abs(kinds.count("text") - 100) < 35 and abs(kinds.count("image") - 100) < 35
    assert epoch_of(ModalityDropout(POSTS, 0.5, seed=1), 0) != first
    assert epoch_of(ModalityDropout(POSTS, 1.0, seed=0), 0).count("textimage") == 0


@pytest.mark.parametrize(
    "loader", [{"batch_size": 7}, {"batch_size": 32, "num_workers": 1, "persistent_workers": True}]
)
def test_batches_and_workers_do_not_matter(loader):
    dropped = ModalityDropout(POSTS, 0.5, seed=0)
    batches = DataLoader(dropped, collate_fn=lambda rows: [kind(row) for row in rows], **loader)
    for number in (0, 1):
        expected = epoch_of(pickle.loads(pickle.dumps(dropped)), number)
        EpochCounter(dropped).on_epoch_begin(None, SimpleNamespace(epoch=number), None)
        assert [one for batch in batches for one in batch] == expected


def test_withheld_posts_lack_one_modality_and_nothing_else(folder):
    rows = load_posts(DataArguments(dataset_name=str(folder)), seed=0).splits["test"]
    assert rows_with_both(rows) == list(range(16))
    assert rows_with_both(rows.map(lambda row, i: {"text": row["text"] if i % 2 else None}, with_indices=True)) == [
        *range(1, 16, 2)
    ]
    for modality, left in (("text", "image"), ("images", "text")):
        withheld = Withheld(rows, modality)
        assert len(withheld) == 16 and {kind(row) for row in withheld.__getitems__([0, 5])} == {left}
        assert (withheld[3]["id"], withheld[3]["label"]) == (rows[3]["id"], rows[3]["label"])


def test_an_interrupted_run_with_modality_dropout_goes_on_as_the_whole_one(folder, tmp_path, monkeypatch):
    flags = ["--modality_dropout", 0.5, "--save_strategy", "steps", "--save_steps", 4, "--eval_strategy", "no"]
    for name in ("whole", "resumed"):
        argv = command(folder, tmp_path / name, *flags, steps=["--do_train"])
        if name == "resumed":
            interrupt_at(monkeypatch, 10, argv)
        run_classification.main(argv)
    assert_same_weights(tmp_path / "whole", tmp_path / "resumed")


def test_the_report_has_accuracy_without_text_and_without_images(finished):
    output_dir, metrics = finished
    report = json.loads((output_dir / "test_report.json").read_text())
    withheld = report["withheld"]
    assert withheld["both"]["accuracy"] == metrics["test"]["accuracy"]  # all posts have both
    for modality in ("text", "images"):
        assert withheld[modality]["num_posts"] == 16 and 0 <= withheld[modality]["accuracy"] <= 1
    assert "withheld" not in json.loads((output_dir / "validation_report.json").read_text())
    assert "| test, text withheld" in (output_dir / "README.md").read_text()
