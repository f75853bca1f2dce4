"""--calibrate: probabilities that mean what they say, by a temperature and thresholds fitted on the validation posts.

A network's probability of .9 is seldom right nine times in ten. One number mends most of it: logits are divided by a
temperature before they become probabilities (Guo et al. 2017, *On Calibration of Modern Neural Networks*), that with
the least negative log-likelihood on the validation posts. It changes no order of a post's labels. Then a threshold
says from which probability on the second of two labels, or each of several labels per post, is answered; .5 stays
unless another is better on the validation posts, so that there the answers get no worse.

What the model computes stays as it is: `calibration.json` beside the checkpoint holds

| key | value |
|---|---|
| `problem_type`, `label_names` | what it is for |
| `temperature` | logits are divided by it; `at_bound`: the best one lies outside of what is allowed |
| `thresholds` | label -> the probability, calibrated, above which it is answered; of two labels only the second; empty for three labels or more, where the most probable one is the answer |
| `metric` | what the thresholds are best for |
| `fitted_on`, `num_posts` | the posts it was fitted on |

and the report of a split, under `calibration`, holds `before` and `after`, with `ece`, `nll`, `brier` and `reliability`
each. `reliability` is the table of the bins: `above`, `to`, `count`, mean `confidence` and `accuracy` of each.
"""  # noqa: E501

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax

from ..data.labels import MULTI, is_varied
from ..support.files import write_json
from ..support.run_files import CALIBRATION_FILE


CALIBRATE_METRICS = ("accuracy", "f1_macro")
BINS = 15
_MAIN_METRICS = ("accuracy", "f1_micro", "f1_macro", "label_accuracy")
# A few validation posts without a mistake would have it as near 0 as can be: certainty that they don't warrant
TEMPERATURE_BOUNDS = (0.1, 10.0)


@dataclass(frozen=True)
class Calibration:
    """What `calibration.json` holds, see above."""

    problem_type: str
    label_names: list[str]
    temperature: float
    at_bound: bool
    thresholds: dict[str, float]
    metric: str
    fitted_on: str
    num_posts: int

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities (n, num_labels) of logits (n, num_labels)."""
        return probabilities(logits, self.problem_type, self.temperature)

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """The answers: label ids (n,), or vectors of 0 and 1 (n, num_labels)."""
        found = self.probabilities(logits)
        above = found > [self.thresholds.get(name, 0.5) for name in self.label_names]
        if self.problem_type == MULTI:
            return above.astype(np.int64)
        return above[:, 1].astype(np.int64) if self.thresholds else found.argmax(axis=-1)

    def report(self, logits: np.ndarray, labels: np.ndarray) -> dict:
        """For the report of a split: how good the probabilities are without the calibration and with it."""
        of = {"before": 1.0, "after": self.temperature}
        found = {"fitted_on": self.fitted_on, "temperature": self.temperature, "thresholds": self.thresholds}
        for when, temperature in of.items():
            found[when] = quality(logits, labels, self.problem_type, temperature)
            found[when]["reliability"] = reliability(logits, labels, self.problem_type, temperature)
        return found


def probabilities(logits, problem_type: str, temperature: float = 1.0) -> np.ndarray:
    """Logits (n, num_labels) as probabilities, in float64: of single labels they sum to 1."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    return expit(scaled) if problem_type == MULTI else softmax(scaled, axis=-1)


def quality(logits, labels, problem_type: str, temperature: float = 1.0) -> dict[str, float]:
    """
    How good probabilities are; of all three, less is better.

    Args:
        logits: (n, num_labels)
        labels: ids (n,), or vectors of 0 and 1 (n, num_labels)
        problem_type: single or multi-label
        temperature: logits are divided by it

    Returns:
        `ece`: expected calibration error, Guo et al. 2017, equation 3, in 15 bins of equal width of the most probable
        label's probability: how far, on average, confidence and accuracy of a bin's posts lie apart. `nll`: negative
        log-likelihood, in nats. `brier`: squared distance of the probabilities from the truth, summed over the labels
        (Brier 1950; 0 to 2). With several labels per post, every label is a question of its own with the answers yes
        and no, and `brier` is that of yes (0 to 1); all three are means over posts and labels
    """
    found = probabilities(logits, problem_type, temperature)
    bins = reliability(logits, labels, problem_type, temperature)
    gaps = [row["count"] * abs(row["accuracy"] - row["confidence"]) for row in bins if row["count"]]
    truth = np.asarray(labels) if problem_type == MULTI else np.eye(found.shape[1])[labels]
    squares = (found - truth) ** 2
    return {
        "ece": float(sum(gaps) / sum(row["count"] for row in bins)),
        "nll": _nll(logits, labels, problem_type, temperature),
        "brier": float(squares.mean() if problem_type == MULTI else squares.sum(axis=-1).mean()),
    }


def _nll(logits, labels, problem_type, temperature):
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    if problem_type == MULTI:
        return float((np.logaddexp(0, scaled) - scaled * labels).mean())
    return float(-log_softmax(scaled, axis=-1)[np.arange(len(labels)), labels].mean())


def reliability(logits, labels, problem_type: str, temperature: float = 1.0) -> list[dict]:
    """
    The reliability table, arguments as `quality`: a row for each of 15 bins, whose `count` answers have a probability
    `above` one number and up `to` the next; null where a bin is empty.
    """
    found, labels = probabilities(logits, problem_type, temperature), np.asarray(labels)
    if problem_type == MULTI:
        confidence, right = np.maximum(found, 1 - found).ravel(), ((found > 0.5) == (labels == 1)).ravel()
    else:
        confidence, right = found.max(axis=-1), found.argmax(axis=-1) == labels
    edges = np.linspace(0, 1, BINS + 1)
    bins = np.clip(np.digitize(confidence, edges, right=True) - 1, 0, BINS - 1)
    rows = []
    for index in range(BINS):
        inside = bins == index
        count = int(inside.sum())
        means = [float(values[inside].mean()) if count else None for values in (confidence, right)]
        ends = {"above": round(edges[index], 6), "to": round(edges[index + 1], 6)}
        rows.append({**ends, "count": count, "confidence": means[0], "accuracy": means[1]})
    return rows


def fit_temperature(logits, labels, problem_type: str) -> tuple[float, bool]:
    """
    The temperature of the least negative log-likelihood, which has one minimum (it is convex in 1 / temperature), and
    whether it lies at a bound: TEMPERATURE_BOUNDS.
    """

    def loss(log_temperature):
        return _nll(logits, labels, problem_type, np.exp(log_temperature))

    ends = np.log(TEMPERATURE_BOUNDS)
    inside = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6}).x
    best = min((0.0, inside, *ends), key=loss)  # 0 is no change: never worse than that
    return float(np.exp(best)), bool(best in ends)


def best_threshold(probability: np.ndarray, truth: np.ndarray, metric: str, *, macro: bool) -> float:
    """
    The threshold above which a label is best answered: .5, or halfway between two posts' probabilities where that is
    better; of equals the nearest to .5.

    Args:
        probability: of the label, (n,)
        truth: whether a post has it, (n,)
        metric: accuracy, or f1_macro
        macro: f1_macro is the mean of yes and no, two labels; else of yes alone, one of several
    """
    values, truth = np.unique(probability), np.asarray(truth, dtype=bool)
    cuts = np.append((values[1:] + values[:-1]) / 2, 0.5)

    def above(part):
        return len(part) - np.searchsorted(np.sort(part), cuts, side="right")

    posts, positives = len(truth), int(truth.sum())
    answered, hits = above(probability), above(probability[truth])
    true_no = posts - answered - (positives - hits)
    if metric == "accuracy":
        scores = (hits + true_no) / posts
    else:
        scores = 2 * hits / (positives + answered)
        if macro:
            scores = (scores + 2 * true_no / (2 * posts - positives - answered)) / 2
    best = cuts[scores >= scores.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def fit_calibration(logits, labels, problem_type: str, label_names: list[str], metric: str) -> Calibration:
    """
    The calibration of validation posts.

    Args:
        logits: (n, num_labels)
        labels: ids (n,), or vectors of 0 and 1 (n, num_labels)
        problem_type, label_names: what they mean
        metric: accuracy or f1_macro, which the thresholds are best for; of several labels the mean of theirs
    """
    labels = np.asarray(labels).astype(np.int64)
    temperature, at_bound = fit_temperature(logits, labels, problem_type)
    found, thresholds = probabilities(logits, problem_type, temperature), {}
    if problem_type == MULTI:
        for index, name in enumerate(label_names):
            truth = labels[:, index]
            varied = is_varied(truth)  # else nothing is known of where to put it
            thresholds[name] = best_threshold(found[:, index], truth, metric, macro=False) if varied else 0.5
    elif len(label_names) == 2:
        thresholds[label_names[1]] = best_threshold(found[:, 1], labels, metric, macro=True)
    return Calibration(
        problem_type, list(label_names), temperature, at_bound, thresholds, metric, "validation", len(labels)
    )


def write_calibration(folder: str | Path, calibration: Calibration) -> None:
    """Writes calibration.json into a folder, which is made if need be."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json(Path(folder) / CALIBRATION_FILE, asdict(calibration))


def read_calibration(checkpoint, posts) -> Calibration | None:
    """
    The calibration.json of a checkpoint, a folder or a name on the Hub; None if it has none.

    Raises:
        ValueError: it is damaged, or for other labels than the posts'.
    """
    path = Path(checkpoint).expanduser() / CALIBRATION_FILE
    if not path.parent.is_dir():
        try:
            path = Path(hf_hub_download(str(checkpoint), CALIBRATION_FILE))
        except EntryNotFoundError:
            return None
    if not path.is_file():
        return None
    try:
        found = Calibration(**json.loads(path.read_text("utf-8")))
        usable = 0 < found.temperature < np.inf and all(0 <= value <= 1 for value in found.thresholds.values())
    except (ValueError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise ValueError(
            f"{path} is no calibration that --calibrate wrote: delete it, and fit it anew with --do_eval."
        )
    if (found.problem_type, found.label_names) != (posts.problem_type, posts.label_names):
        raise ValueError(
            f"{path} is for the labels {', '.join(found.label_names)}, not for the checkpoint's "
            f"{', '.join(posts.label_names)}: delete it, and fit it anew with --do_eval."
        )
    return found


def describe_calibration(calibration: Calibration) -> str:
    """In a line, for people."""
    text = f"temperature {calibration.temperature:.4g}"
    shown = [f"{name} {value:.4g}" for name, value in list(calibration.thresholds.items())[:10]]
    more = ", ..." if len(calibration.thresholds) > len(shown) else ""
    return text + (f", thresholds for {calibration.metric}: {', '.join(shown)}{more}" if shown else "")


def flat_metrics(report: dict, before: dict[str, float]) -> dict[str, float]:
    """
    The calibration's part of a split's flat metrics: `ece`, `nll` and `brier`, and with `_uncalibrated` after the name
    these and the main ones of the metrics `before`, of the answers without it.
    """
    found = {name: report["after"][name] for name in ("ece", "nll", "brier")}
    of_before = {name: report["before"][name] for name in found}
    of_before |= {name: before[name] for name in _MAIN_METRICS if name in before}
    return found | {f"{name}_uncalibrated": value for name, value in of_before.items()}
