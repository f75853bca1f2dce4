"""--calibrate: probabilities that mean what they say, by a temperature and thresholds fitted on the validation posts.

A network's predictions of probability .9 are seldom right nine times in ten. One number corrects most of that: logits
are divided by a temperature before they become probabilities (Guo et al. 2017, *On Calibration of Modern Neural
Networks*), the one with the least negative log-likelihood on the validation posts. It keeps the order of a post's
labels. Then a threshold decides from which probability on the second of two labels, or each of several labels per post,
is predicted; it stays at .5 unless another is better on the validation posts, so that predictions get no worse there.

The model itself stays as it is: `calibration.json` beside the checkpoint holds

| key | value |
|---|---|
| `problem_type`, `label_names` | which models it is for |
| `temperature` | logits are divided by it; `at_bound`: the best one lies outside of the allowed range |
| `thresholds` | label -> the calibrated probability above which it is predicted; of two labels only the second; empty for three labels or more, where the most probable one is the prediction |
| `metric` | which metric the thresholds maximise |
| `fitted_on`, `num_posts` | the posts it was fitted on |

and the report of a split, under `calibration`, holds `before` and `after`, each with `ece`, `nll`, `brier` and
`reliability`, the table of the bins: `above`, `to`, `count`, mean `confidence` and `accuracy` of each.
"""  # noqa: E501

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax

from ..data.labels import MULTI, is_varied
from ..data.posts import Posts
from ..support.files import read_mapping, write_json
from ..support.run_files import CALIBRATION_FILE


CALIBRATE_METRICS = ("accuracy", "f1_macro")
BINS = 15
_MAIN_METRICS = ("accuracy", "f1_micro", "f1_macro", "label_accuracy")
# On a few validation posts without a mistake it would go towards 0: certainty that they don't warrant
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
        """The predictions: label ids (n,), or vectors of 0 and 1 (n, num_labels)."""
        calibrated = self.probabilities(logits)
        above = calibrated > [self.thresholds.get(name, 0.5) for name in self.label_names]
        if self.problem_type == MULTI:
            return above.astype(np.int64)
        return above[:, 1].astype(np.int64) if self.thresholds else calibrated.argmax(axis=-1)

    def report(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
        """For the report of a split: how good the probabilities are without the calibration and with it."""

        def measured(temperature: float) -> dict[str, Any]:
            return {
                **probability_quality(logits, labels, self.problem_type, temperature),
                "reliability": reliability(logits, labels, self.problem_type, temperature),
            }

        return {
            "fitted_on": self.fitted_on,
            "temperature": self.temperature,
            "thresholds": self.thresholds,
            "before": measured(1.0),
            "after": measured(self.temperature),
        }


def probabilities(logits: np.ndarray, problem_type: str, temperature: float = 1.0) -> np.ndarray:
    """Logits (n, num_labels) as probabilities, in float64; those of single labels sum to 1."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    return expit(scaled) if problem_type == MULTI else softmax(scaled, axis=-1)


def probability_quality(
    logits: np.ndarray, labels: np.ndarray, problem_type: str, temperature: float = 1.0
) -> dict[str, float]:
    """
    How good probabilities are, by three measures of which less is better.

    Args:
        logits: (n, num_labels)
        labels: ids (n,), or vectors of 0 and 1 (n, num_labels)
        problem_type: single or multi-label
        temperature: logits are divided by it

    Returns:
        `ece`: expected calibration error, Guo et al. 2017, equation 3, in 15 bins of equal width of the most probable
        label's probability: how far, on average, confidence and accuracy of a bin's posts lie apart. `nll`: negative
        log-likelihood, in nats. `brier`: squared distance of the probabilities from the truth, summed over the labels
        (Brier 1950; 0 to 2). With several labels per post, every label is a yes-or-no question of its own, and
        `brier` is that of yes (0 to 1); all three are means over posts and labels
    """
    predicted = probabilities(logits, problem_type, temperature)
    bins = reliability(logits, labels, problem_type, temperature)
    gaps = [row["count"] * abs(row["accuracy"] - row["confidence"]) for row in bins if row["count"]]
    truth = np.asarray(labels) if problem_type == MULTI else np.eye(predicted.shape[1])[labels]
    squares = (predicted - truth) ** 2
    return {
        "ece": float(sum(gaps) / sum(row["count"] for row in bins)),
        "nll": _nll(logits, labels, problem_type, temperature),
        "brier": float(squares.mean() if problem_type == MULTI else squares.sum(axis=-1).mean()),
    }


def _nll(logits: np.ndarray, labels: np.ndarray, problem_type: str, temperature: float) -> float:
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    if problem_type == MULTI:
        return float((np.logaddexp(0, scaled) - scaled * labels).mean())
    return float(-log_softmax(scaled, axis=-1)[np.arange(len(labels)), labels].mean())


def reliability(
    logits: np.ndarray, labels: np.ndarray, problem_type: str, temperature: float = 1.0
) -> list[dict[str, Any]]:
    """
    The reliability table, arguments as of `probability_quality`: a row for each of 15 bins, whose `count` predictions
    have a probability `above` one number and up `to` the next; None where a bin is empty.
    """
    predicted, labels = probabilities(logits, problem_type, temperature), np.asarray(labels)
    if problem_type == MULTI:
        confidence = np.maximum(predicted, 1 - predicted).ravel()
        right = ((predicted > 0.5) == (labels == 1)).ravel()
    else:
        confidence, right = predicted.max(axis=-1), predicted.argmax(axis=-1) == labels
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


def fit_temperature(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> tuple[float, bool]:
    """
    The temperature of the least negative log-likelihood, which has one minimum (it is convex in 1 / temperature), and
    whether it lies at a bound: TEMPERATURE_BOUNDS.
    """

    def loss(log_temperature: float) -> float:
        return _nll(logits, labels, problem_type, np.exp(log_temperature))

    ends = np.log(TEMPERATURE_BOUNDS)
    inside = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6}).x
    best = min((0.0, inside, *ends), key=loss)  # 0 is no change: never worse than that
    return float(np.exp(best)), bool(best in ends)


def best_threshold(probability: np.ndarray, truth: np.ndarray, metric: str, *, macro: bool) -> float:
    """
    The threshold above which a label is best predicted: .5, or a better one halfway between two posts' probabilities;
    among equally good ones the nearest to .5.

    Args:
        probability: of the label, (n,)
        truth: whether a post has the label, (n,)
        metric: accuracy, or f1_macro
        macro: for one of two labels f1_macro is the mean of both labels' F1; for one of several, False, its own F1
    """
    values, truth = np.unique(probability), np.asarray(truth, dtype=bool)
    cuts = np.append((values[1:] + values[:-1]) / 2, 0.5)

    def above(part: np.ndarray) -> np.ndarray:
        return len(part) - np.searchsorted(np.sort(part), cuts, side="right")

    posts, positives = len(truth), int(truth.sum())
    predicted, hits = above(probability), above(probability[truth])
    true_no = posts - predicted - (positives - hits)
    if metric == "accuracy":
        scores = (hits + true_no) / posts
    else:
        scores = 2 * hits / (positives + predicted)
        if macro:
            scores = (scores + 2 * true_no / (2 * posts - positives - predicted)) / 2
    best = cuts[scores >= scores.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def fit_calibration(
    logits: np.ndarray, labels: np.ndarray, problem_type: str, label_names: list[str], metric: str
) -> Calibration:
    """
    The calibration that is best on validation posts.

    Args:
        logits: (n, num_labels)
        labels: ids (n,), or vectors of 0 and 1 (n, num_labels)
        problem_type, label_names: what they mean
        metric: accuracy or f1_macro, which the thresholds maximise; with several labels its mean over them
    """
    labels = np.asarray(labels).astype(np.int64)
    temperature, at_bound = fit_temperature(logits, labels, problem_type)
    predicted = probabilities(logits, problem_type, temperature)
    thresholds: dict[str, float] = {}
    if problem_type == MULTI:
        for index, name in enumerate(label_names):
            truth = labels[:, index]
            varied = is_varied(truth.tolist())  # else the posts don't show where to put it
            thresholds[name] = best_threshold(predicted[:, index], truth, metric, macro=False) if varied else 0.5
    elif len(label_names) == 2:
        thresholds[label_names[1]] = best_threshold(predicted[:, 1], labels, metric, macro=True)
    return Calibration(
        problem_type, list(label_names), temperature, at_bound, thresholds, metric, "validation", len(labels)
    )


def write_calibration(folder: str | Path, calibration: Calibration) -> None:
    """Writes calibration.json into a folder, which is made if need be."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_json(Path(folder) / CALIBRATION_FILE, asdict(calibration))


def read_calibration(checkpoint: str | Path, posts: Posts) -> Calibration | None:
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
    fix = "Delete it, and fit a new one with --do_eval."
    try:
        calibration = Calibration(**read_mapping(path))
        thresholds = calibration.thresholds.values()
        usable = 0 < calibration.temperature < np.inf and all(0 <= value <= 1 for value in thresholds)
    except (ValueError, TypeError, AttributeError):
        usable = False
    if not usable:
        raise ValueError(f"{path} isn't a calibration that --calibrate wrote. {fix}")
    if (calibration.problem_type, calibration.label_names) != (posts.problem_type, posts.label_names):
        raise ValueError(
            f"{path} is for the labels {', '.join(calibration.label_names)}, not for the checkpoint's "
            f"{', '.join(posts.label_names)}. {fix}"
        )
    return calibration


def describe_calibration(calibration: Calibration) -> str:
    """The calibration in a line, for people."""
    text = f"temperature {calibration.temperature:.4g}"
    shown = [f"{name} {value:.4g}" for name, value in list(calibration.thresholds.items())[:10]]
    more = ", ..." if len(calibration.thresholds) > len(shown) else ""
    return text + (f", thresholds for {calibration.metric}: {', '.join(shown)}{more}" if shown else "")


def flat_calibration_metrics(report: dict[str, Any], uncalibrated: dict[str, float]) -> dict[str, float]:
    """
    The calibration's part of a split's flat metrics: `ece`, `nll` and `brier`, and, with `_uncalibrated` after the
    name, what these and the main metrics are without it.

    Args:
        report: as `Calibration.report` returns it
        uncalibrated: the metrics of the predictions without the calibration
    """
    after = {name: report["after"][name] for name in ("ece", "nll", "brier")}
    before = {name: report["before"][name] for name in after}
    before |= {name: uncalibrated[name] for name in _MAIN_METRICS if name in uncalibrated}
    return after | {f"{name}_uncalibrated": value for name, value in before.items()}
