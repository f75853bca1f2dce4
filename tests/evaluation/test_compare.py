"""Comparing two predictions files: the test and the intervals against others' and by hand, and what is refused."""

import json

import numpy as np
import pytest
from scipy.stats import binomtest

from hf_mamba.classification.compare import compare, main, mcnemar
from hf_mamba.classification.evaluation.predictions import read_predictions, write_predictions


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
NAMES = ["no", "yes", '["odd"]']


def write(path, predicted, truth, names=NAMES, ids=None):
    """A predictions file of label ids."""
    path.parent.mkdir(exist_ok=True)
    ids = ids or [f"p{i}" for i in range(len(truth))]
    write_predictions(path, ids, 4 * np.eye(len(names))[predicted], names, list(truth), SINGLE)
    return path


def answers(seed, truth, share_right):
    generator = np.random.default_rng(seed)
    return np.where(generator.random(len(truth)) < share_right, truth, generator.integers(0, 3, len(truth)))


@pytest.fixture
def truth():
    return np.random.default_rng(0).integers(0, 3, 300)


@pytest.mark.parametrize("only_a, only_b", [(0, 0), (0, 1), (1, 1), (3, 9), (9, 3), (0, 40), (480, 600), (3000, 2000)])
def test_mcnemar_is_the_binomial_test_of_the_posts_they_differ_in(only_a, only_b):
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_hand():
    assert mcnemar(1, 5) == 2 * (1 + 6) / 2**6


@pytest.mark.parametrize("second", ["b.csv", "b.jsonl", "b.parquet"])
def test_a_model_is_no_better_than_itself(tmp_path, truth, second):
    """Whatever the format, and whatever the order of the labels."""
    predicted = answers(1, truth, 0.7)
    a = write(tmp_path / "a.csv", predicted, truth)
    b = write(tmp_path / second, 2 - predicted, 2 - truth, NAMES[::-1])
    a = read_predictions(a)
    result = compare(a, read_predictions(b, a.label_names))
    assert result["mcnemar"]["p"] == 1
    assert all(set(difference.values()) == {0} for difference in result["difference"].values())
    assert {k: v for k, v in result["a"].items() if k != "file"} == {
        k: v for k, v in result["b"].items() if k != "file"
    }


def test_values_and_counts(tmp_path, truth):
    of_a, of_b = answers(1, truth, 0.5), answers(2, truth, 0.8)
    result = compare(*(read_predictions(write(tmp_path / f"{i}.csv", p, truth)) for i, p in enumerate((of_a, of_b))))
    right_a, right_b = of_a == truth, of_b == truth
    counts = result["mcnemar"]
    assert (
        counts["only_a_right"] == (right_a & ~right_b).sum() and counts["only_b_right"] == (right_b & ~right_a).sum()
    )
    assert sum(value for name, value in counts.items() if name != "p") == len(truth)
    difference = result["difference"]["accuracy"]
    assert difference["value"] == pytest.approx(right_b.mean() - right_a.mean())
    assert difference["low"] < difference["value"] < difference["high"]


def test_the_interval_is_paired(tmp_path, truth):
    """Against resampling posts one by one; and far narrower than if the two were drawn apart."""
    of_a = answers(1, truth, 0.6)
    of_b = of_a.copy()
    of_b[:12] = truth[:12]
    a, b = (read_predictions(write(tmp_path / f"{i}.csv", p, truth)) for i, p in enumerate((of_a, of_b)))
    result = compare(a, b, resamples=4000)
    drawn = np.random.default_rng(5).integers(0, len(truth), (4000, len(truth)))
    gains = (of_b == truth).astype(int) - (of_a == truth)
    low, high = np.quantile(gains[drawn].mean(1), (0.025, 0.975))
    found = result["difference"]["accuracy"]
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.004)
    assert found["high"] - found["low"] < 0.5 * (result["a"]["accuracy"]["high"] - result["a"]["accuracy"]["low"])


def test_the_interval_of_f1_holds_its_value_and_is_seeded(tmp_path, truth):
    files = [write(tmp_path / f"{i}.csv", answers(i, truth, 0.5 + 0.2 * i), truth) for i in range(2)]
    first, second, other = (compare(*map(read_predictions, files), seed=seed) for seed in (0, 0, 1))
    found = first["difference"]["f1_macro"]
    assert first == second != other and found["low"] < found["value"] < found["high"]


def test_several_labels_and_numbers(tmp_path):
    generator = np.random.default_rng(0)
    truth, ids = generator.integers(0, 2, (80, 3)), list(range(80))
    for suffix, noise in ((".csv", 3), (".jsonl", 0.1)):
        logits = truth - 0.5 + noise * generator.normal(size=truth.shape)
        write_predictions(tmp_path / f"labels{suffix}", ids, logits, NAMES, list(truth), MULTI)
        numbers = truth[:, :1] + noise * generator.normal(size=(80, 1))
        write_predictions(tmp_path / f"numbers{suffix}", ids, numbers, ["x"], truth[:, 0], REGRESSION)
    for name, metric, better in (("labels", "f1_micro", 1), ("numbers", "rmse", -1)):
        result = compare(*(read_predictions(tmp_path / f"{name}{suffix}") for suffix in (".csv", ".jsonl")))
        difference = result["difference"][metric]
        assert difference["low"] <= difference["value"] <= difference["high"] and "mcnemar" not in result
        assert better * difference["low"] > 0 or better * difference["high"] > 0


def test_the_command_line_takes_folders(tmp_path, truth, capsys):
    files = [write(tmp_path / f"run{i}" / "predictions.csv", answers(i, truth, 0.6), truth) for i in range(2)]
    main([str(files[0].parent), str(files[1].parent), "--json", str(tmp_path / "out.json")])
    said, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert f"p = {found['mcnemar']['p']:.4f}" in said and f"{found['difference']['accuracy']['value']:+.4f}" in said
    assert "300 posts" in said


def refused(*files):
    with pytest.raises(ValueError) as error:
        main(list(map(str, files)))
    return str(error.value)


def test_other_posts_are_refused_by_the_first_row_that_differs(tmp_path, truth):
    a = write(tmp_path / "a.csv", truth, truth)
    ids = [f"p{i}" for i in range(300)]
    said = refused(a, write(tmp_path / "ids.csv", truth, truth, ids=[*ids[:4], "other", *ids[5:]]))
    assert "Row 5 " in said and "id 'p4'" in said and "'other'" in said
    said = refused(a, write(tmp_path / "order.csv", truth, truth, ids=ids[::-1]))
    assert "Row 1 " in said and "'p0'" in said and "'p299'" in said
    changed = truth.copy()
    changed[7] = (truth[7] + 1) % 3
    said = refused(a, write(tmp_path / "truth.csv", truth, changed))
    assert "Row 8 " in said and f"truth {NAMES[truth[7]]!r}" in said and repr(NAMES[changed[7]]) in said
    said = refused(a, write(tmp_path / "short.csv", truth[:9], truth[:9]))
    assert "Row 10 " in said and "300 rows" in said


def test_what_is_no_predictions_file_with_the_truth_is_refused(tmp_path, truth):
    a = write(tmp_path / "a.csv", truth, truth)
    write_predictions(tmp_path / "unknown.csv", ["x"], np.eye(3)[:1], NAMES, None, SINGLE)
    assert "no column 'label'" in refused(a, tmp_path / "unknown.csv")
    assert "no predictions file" in refused(a, tmp_path)
    assert "There is no file" in refused(a, tmp_path / "nothing.csv")
    assert "don't have the same labels" in refused(a, write(tmp_path / "two.csv", truth % 2, truth % 2, NAMES[:2]))
    lines = a.read_text().split("\n")
    lines[3] = "p2,maybe" + lines[3][lines[3].index(",0.") :]
    (tmp_path / "wrong.csv").write_text("\n".join(lines))
    assert "line 4: the prediction is 'maybe'" in refused(a, tmp_path / "wrong.csv")
    for name in ("predictions.csv", "predictions.jsonl"):
        write(tmp_path / "both" / name, truth, truth)
    assert "2 predictions files" in refused(a, tmp_path / "both")
