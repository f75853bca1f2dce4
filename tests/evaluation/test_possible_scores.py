"""Published scores: what is called possible is, what isn't is not, counted against every confusion matrix there is."""

from decimal import ROUND_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from itertools import product

import pytest

from hf_mamba.classification.possible_scores import ROUNDINGS, main, possible_matrices


HOW = dict(zip(ROUNDINGS, (ROUND_HALF_UP, ROUND_HALF_EVEN, ROUND_DOWN)))
PAPER = {"accuracy": ".9191", "precision": ".9210", "recall": ".8816"}


def scores(tp, fp, positives, negatives):
    return {
        "accuracy": Fraction(tp + negatives - fp, positives + negatives),
        "precision": Fraction(tp, tp + fp) if tp + fp else Fraction(0),
        "recall": Fraction(tp, positives) if positives else Fraction(0),
        "f1": Fraction(2 * tp, tp + fp + positives) if tp + fp + positives else Fraction(0),
    }


def rounded(value, decimals, how):
    with localcontext(prec=60):
        exact = Decimal(value.numerator) / Decimal(value.denominator)
        return str(exact.quantize(Decimal(1).scaleb(-decimals), how))


@pytest.mark.parametrize("names", [("accuracy",), ("precision",), ("recall",), ("f1",), ("accuracy", "f1"),
                                   ("precision", "recall"), ("accuracy", "precision", "recall", "f1")])  # fmt: skip
@pytest.mark.parametrize("positives, negatives", [(5, 8), (0, 4), (8, 0)])
def test_the_same_matrices_as_by_trying_all(names, positives, negatives):
    """Of every row that can be published, with two digits and every way of rounding."""
    matrices = list(product(range(positives + 1), range(negatives + 1)))
    for rounding, how in HOW.items():
        row_of = {
            pair: tuple(rounded(scores(*pair, positives, negatives)[name], 2, how) for name in names)
            for pair in matrices
        }
        for row in set(row_of.values()):
            found = possible_matrices(positives, negatives, decimals=2, **dict(zip(names, row)))[rounding]
            assert found == [pair for pair in matrices if row_of[pair] == row], (rounding, row)


def test_roundings_differ_where_they_do():
    found = possible_matrices(8, 0, recall=".1", decimals=1)  # 1/8 is .125
    assert found == {"half up": [(1, 0)], "half even": [(1, 0)], "truncation": [(1, 0)]}
    assert possible_matrices(20, 0, recall=".2", decimals=1) == {  # 3/20 is .15, 5/20 is .25
        "half up": [(3, 0), (4, 0)],
        "half even": [(3, 0), (4, 0), (5, 0)],
        "truncation": [(4, 0), (5, 0)],
    }


def test_a_real_matrix_is_found_again():
    row = {name: rounded(value, 4, ROUND_HALF_UP) for name, value in scores(846, 73, 959, 1450).items()}
    assert (846, 73) in possible_matrices(959, 1450, **row)["half up"]


def test_the_row_of_the_paper(capsys):
    assert not any(possible_matrices(959, 1450, **PAPER).values())
    assert not any(possible_matrices(959, 1450, recall=PAPER["recall"]).values())
    main(["--positives=959", "--negatives=1450", *(f"--{name}={value}" for name, value in PAPER.items())])
    said = capsys.readouterr().out
    assert "not possible" in said and "mean over several runs" in " ".join(said.split())
    assert f"tp = 845 gives {845 / 959:.6f} and tp = 846 gives {846 / 959:.6f}" in said
    assert "imply accuracy 0.9228" in said and "published is 0.9191" in said


def test_what_is_possible_is_listed(capsys):
    main(["--positives=5", "--negatives=8", "--precision=.6", "--recall=.6", "--decimals=1"])
    said = capsys.readouterr().out
    assert "possible: 1 confusion matrix." in said and "tp 3, fn 2, fp 2, tn 6" in said and "half up" in said


@pytest.mark.parametrize("wrong, message", [
    ({}, "Nothing to check"),
    ({"recall": "88.16"}, "divide percent by 100"),
    ({"recall": ".88161"}, "more than 4 decimals"),
    ({"recall": "high"}, "isn't a number"),
    ({"recall": "nan"}, "from 0 to 1"),
])  # fmt: skip
def test_what_is_not_a_published_score_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        possible_matrices(959, 1450, **wrong)


def test_no_posts_are_refused():
    with pytest.raises(ValueError, match="not both 0"):
        possible_matrices(0, 0, recall=".5")
