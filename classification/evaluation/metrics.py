"""Metrics of the three problem types, offline, each beside that of a baseline that looks at no post.

Each is an `evaluate.Metric` over sums of per-post statistics, so that the same few lines give the value for the given
posts and, for bootstrap_intervals, those of a thousand resamples at once.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import datasets
import evaluate
import numpy as np

from ..data.labels import MULTI, REGRESSION, SINGLE
from ..data.posts import Posts
from .bootstrap import RESAMPLES, bootstrap_intervals


if TYPE_CHECKING:
    from transformers import EvalPrediction

    from .calibration import Calibration

Baseline = int | list[int] | float  # the prediction that looks at no post, see `baseline_of`

# Which metric the best checkpoint of a run is chosen by, unless the user names another.
DEFAULT_METRIC = {SINGLE: "accuracy", MULTI: "f1_micro", REGRESSION: "rmse"}
LOWER_IS_BETTER = ("loss", "mae", "rmse")

# The flat metrics of each problem type, without the baseline's. Some need two labels, or targets that vary.
METRIC_NAMES = {
    SINGLE: ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "precision", "recall", "f1"),
    MULTI: (
        "f1_micro",
        "f1_macro",
        "f1_samples",
        "precision_micro",
        "recall_micro",
        "subset_accuracy",
        "label_accuracy",
    ),
    REGRESSION: ("rmse", "mae", "r2", "pearson", "spearman"),
}


class PostMetrics(evaluate.Metric):
    """
    What the metrics of the three problem types share: the baseline, and data kept in memory, so that any number of
    processes can compute at once (`evaluate.load("accuracy")` fetches a script from the Hub).

    Args:
        label_names: the labels' names in the order of their ids
        baseline: the prediction that needs no post, see `baseline_of`; None leaves its metrics out
        kwargs: for `evaluate.Metric`

    `compute(predictions=..., references=...)` returns a flat dict of floats and `num_posts`.
    """

    problem_type: str
    interval_metrics: tuple[str, ...]  # those that `intervals` are given for
    baseline_metrics: dict[str, str]  # the baseline's metrics that are reported -> under which name
    calibration: "Calibration | None" = None  # once it is fitted

    def __init__(self, label_names: Sequence[str], *, baseline: Baseline | None = None, **kwargs: Any) -> None:
        self.label_names, self.baseline = list(label_names), baseline
        super().__init__(keep_in_memory=True, **kwargs)

    def _build_data_dir(self) -> str:
        """Where `evaluate` would exchange data between processes: nothing is created, data stay in memory."""
        return self._data_dir_root

    def _value_type(self) -> Any:
        """The type of a prediction, and of a reference."""
        return datasets.Value("int64")

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation="",
            inputs_description="predictions and references",
            features=datasets.Features({"predictions": self._value_type(), "references": self._value_type()}),
        )

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        truth = np.asarray(references)
        scores = self._scores_of(np.asarray(predictions), truth)
        if self.baseline is not None:
            of_baseline = self._scores_of(np.broadcast_to(np.asarray(self.baseline), truth.shape), truth)
            scores |= {name: of_baseline[metric] for metric, name in self.baseline_metrics.items()}
        return {name: float(value) for name, value in scores.items()} | {"num_posts": len(truth)}

    def _scores_of(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, np.ndarray]:
        kinds, counts = self.kinds(predictions, references)
        return self.scores(counts @ kinds, len(references))

    def intervals(
        self,
        predictions: Sequence | np.ndarray,
        references: Sequence | np.ndarray,
        *,
        seed: int,
        resamples: int = RESAMPLES,
    ) -> dict[str, tuple[float, float]]:
        """Bootstrap intervals of `interval_metrics`, {"accuracy": (low, high), ...}, see `bootstrap_intervals`."""
        kinds, counts = self.kinds(np.asarray(predictions), np.asarray(references))
        intervals = bootstrap_intervals(kinds, counts, self.scores, seed=seed, resamples=resamples)
        return {name: intervals[name] for name in self.interval_metrics if name in intervals}

    def kinds(self, predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The different statistics that posts have, shape (k, q), and how many posts have each, shape (k,)."""
        return np.unique(self.statistics(predictions, references), axis=0, return_counts=True)

    def statistics(self, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
        """The statistics of each post that the metrics sum up, shape (n, q)."""
        raise NotImplementedError

    def scores(self, sums: np.ndarray, num_posts: int) -> dict[str, np.ndarray]:
        """The metrics of sums of statistics, shape (..., q) -> (...) each."""
        raise NotImplementedError

    def from_logits(self, logits: np.ndarray) -> np.ndarray:
        """Logits (n, num_labels) as predictions, by the calibration if there is one."""
        return self.uncalibrated_predictions(logits) if self.calibration is None else self.calibration.decide(logits)

    def uncalibrated_predictions(self, logits: np.ndarray) -> np.ndarray:
        """Logits (n, num_labels) as predictions, without the calibration."""
        raise NotImplementedError


class ClassificationMetrics(PostMetrics):
    """
    Accuracy, balanced accuracy (mean recall of the labels that occur), macro and weighted F1; for two labels, or with
    a `positive_label`, also precision, recall and F1 of the positive one.

    Args:
        label_names, baseline: as for PostMetrics; the baseline is a label id, the most common one in training
        positive_label: the id that precision, recall and f1 are about; default: 1 if there are two labels

    `compute` takes label ids and returns `accuracy`, `balanced_accuracy`, `f1_macro` and `f1_weighted` (over the
    labels that occur in references or predictions, scikit-learn's default), with a positive label `precision`,
    `recall` and `f1`, with a baseline `majority_accuracy` (the accuracy of always predicting it, on these references),
    and `num_posts`.
    """

    problem_type = SINGLE
    interval_metrics = ("accuracy", "balanced_accuracy", "f1_macro", "f1_weighted", "f1")
    baseline_metrics = {"accuracy": "majority_accuracy"}

    def __init__(
        self,
        label_names: Sequence[str],
        *,
        positive_label: int | None = None,
        baseline: int | None = None,
        **kwargs: Any,
    ) -> None:
        label_names = list(label_names)
        for name, label in (("positive_label", positive_label), ("baseline", baseline)):
            if label is not None and not 0 <= label < len(label_names):
                raise ValueError(f"{name} {label} isn't a label id: there are {len(label_names)} labels, from id 0.")
        self.positive_label = 1 if positive_label is None and len(label_names) == 2 else positive_label
        super().__init__(label_names, baseline=baseline, **kwargs)

    def kinds(self, predictions: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        num_labels = len(self.label_names)
        cells, counts = np.unique(references * num_labels + predictions, return_counts=True)
        return self.statistics(cells % num_labels, cells // num_labels), counts

    def statistics(self, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
        identity = np.eye(len(self.label_names), dtype=np.int32)
        truth, predicted = identity[references], identity[predictions]
        return np.concatenate([truth * predicted, truth, predicted], axis=1)  # (n, 3 * num_labels)

    def scores(self, sums: np.ndarray, num_posts: int) -> dict[str, np.ndarray]:
        hits, truth, predicted = np.split(sums, 3, axis=-1)
        f1 = _ratio(2 * hits, truth + predicted)
        scores = {
            "accuracy": hits.sum(-1) / num_posts,
            "balanced_accuracy": _ratio(_ratio(hits, truth).sum(-1), (truth > 0).sum(-1)),
            "f1_macro": f1.sum(-1) / (truth + predicted > 0).sum(-1),
            "f1_weighted": (f1 * truth).sum(-1) / num_posts,
        }
        if self.positive_label is not None:
            hits, truth, predicted = (part[..., self.positive_label] for part in (hits, truth, predicted))
            scores["precision"], scores["recall"] = _ratio(hits, predicted), _ratio(hits, truth)
            scores["f1"] = f1[..., self.positive_label]
        return scores

    def uncalibrated_predictions(self, logits: np.ndarray) -> np.ndarray:
        return np.argmax(logits, axis=-1)


class MultiLabelMetrics(PostMetrics):
    """
    For several labels per post: micro, macro and per-post (`samples`) F1, and how often all labels are right.

    `compute` takes 0/1 vectors (n, num_labels) and returns `f1_micro`, `f1_macro` (over the labels that occur in
    references or predictions), `f1_samples` (1 where there is no label and none is predicted), `precision_micro`,
    `recall_micro`, `subset_accuracy` (the whole set is right) and `label_accuracy` (a single yes or no is right). With
    a baseline, each label's majority in training, `majority_f1_micro`, `majority_subset_accuracy` and
    `majority_label_accuracy`. `every_label_f1_micro` is the score of always predicting every label, the better guess
    where labels are rare. And `num_posts`.
    """

    problem_type = MULTI
    interval_metrics = ("f1_micro", "f1_macro", "f1_samples", "subset_accuracy", "label_accuracy")
    baseline_metrics = {
        "f1_micro": "majority_f1_micro",
        "subset_accuracy": "majority_subset_accuracy",
        "label_accuracy": "majority_label_accuracy",
    }

    def _value_type(self) -> Any:
        return datasets.List(datasets.Value("int64"))

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        every = self._scores_of(np.ones_like(references), np.asarray(references))["f1_micro"]
        return super()._compute(predictions, references) | {"every_label_f1_micro": float(every)}

    def statistics(self, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
        truth, predicted = references.astype(np.int32), predictions.astype(np.int32)
        hits, sizes = (truth * predicted).sum(1), (truth + predicted).sum(1)
        of_post = [
            (truth == predicted).all(1),
            (truth == predicted).sum(1),
            np.where(sizes, _ratio(2 * hits, sizes), 1),
        ]
        return np.concatenate([truth * predicted, truth, predicted, np.stack(of_post, axis=1)], axis=1)

    def scores(self, sums: np.ndarray, num_posts: int) -> dict[str, np.ndarray]:
        hits, truth, predicted = np.split(sums[..., :-3], 3, axis=-1)
        all_hits, all_truth, all_predicted = (part.sum(-1) for part in (hits, truth, predicted))
        return {
            "f1_micro": _ratio(2 * all_hits, all_truth + all_predicted),
            "f1_macro": _ratio(_ratio(2 * hits, truth + predicted).sum(-1), (truth + predicted > 0).sum(-1)),
            "f1_samples": sums[..., -1] / num_posts,
            "precision_micro": _ratio(all_hits, all_predicted),
            "recall_micro": _ratio(all_hits, all_truth),
            "subset_accuracy": sums[..., -3] / num_posts,
            "label_accuracy": sums[..., -2] / (num_posts * len(self.label_names)),
        }

    def uncalibrated_predictions(self, logits: np.ndarray) -> np.ndarray:
        return (logits > 0).astype(np.int64)  # a probability above a half


class RegressionMetrics(PostMetrics):
    """
    For numbers: mean absolute and root mean squared error, R², Pearson's and Spearman's correlation.

    `compute` takes floats and returns `mae`, `rmse`, `r2` (nan for references that are all equal), `pearson` and
    `spearman` (nan where either side is constant); with a baseline, the mean of training, `mean_mae` and `mean_rmse`
    of always predicting it; and `num_posts`. nan is left out, so that what is written stays valid JSON.
    """

    problem_type = REGRESSION
    interval_metrics = ("mae", "rmse", "r2", "pearson")
    baseline_metrics = {"mae": "mean_mae", "rmse": "mean_rmse"}

    def _value_type(self) -> Any:
        return datasets.Value("float64")

    def _compute(self, predictions: Sequence, references: Sequence) -> dict[str, float]:
        scores = super()._compute(predictions, references)
        of_ranks = self._scores_of(_ranks(np.asarray(predictions)), _ranks(np.asarray(references)))
        scores["spearman"] = float(of_ranks["pearson"])
        return {name: value for name, value in scores.items() if not np.isnan(value)}

    def statistics(self, predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
        predicted, truth = predictions.astype(np.float64), references.astype(np.float64)
        error = predicted - truth
        # both around a fixed point, else the squares of large numbers would drown their differences
        predicted, truth = predicted - predicted.mean(), truth - truth.mean()
        return np.stack([abs(error), error**2, predicted, truth, predicted**2, truth**2, predicted * truth], axis=1)

    def scores(self, sums: np.ndarray, num_posts: int) -> dict[str, np.ndarray]:
        absolute, squared, p, t, pp, tt, pt = np.moveaxis(sums / num_posts, -1, 0)
        variance_p, variance_t = np.maximum(pp - p**2, 0), np.maximum(tt - t**2, 0)
        tiny_p, tiny_t = (np.finfo(np.float64).eps * part for part in (pp, tt))
        return {
            "mae": absolute,
            "rmse": np.sqrt(squared),
            "r2": 1 - _ratio(squared, variance_t, np.nan, tiny_t),
            "pearson": _ratio(pt - p * t, np.sqrt(variance_p * variance_t), np.nan, np.sqrt(tiny_p * tiny_t)),
        }

    def uncalibrated_predictions(self, logits: np.ndarray) -> np.ndarray:
        return logits.reshape(len(logits))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1 on, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float = 0.0, tiny: float | np.ndarray = 0.0) -> np.ndarray:
    """above / below, `otherwise` where below isn't larger than `tiny`."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    there = below > tiny
    return np.where(there, above / np.where(there, below, 1), otherwise)


def metrics_for(
    problem_type: str, label_names: Sequence[str], *, baseline: Any = None, positive_label: int | None = None
) -> PostMetrics:
    """The metrics of a problem type. `positive_label` (an id) is for single labels only."""
    if problem_type == SINGLE:
        return ClassificationMetrics(label_names, baseline=baseline, positive_label=positive_label)
    kind = MultiLabelMetrics if problem_type == MULTI else RegressionMetrics
    return kind(label_names, baseline=baseline)


def baseline_of(values: Sequence, problem_type: str) -> Baseline:
    """
    The best prediction that looks at no post: the label id that occurs most often in `values` (the smallest of
    equals); for several labels a list of 0 and 1, the majority of each; for numbers their mean.
    """
    cells = np.asarray(values)
    if problem_type == SINGLE:
        return int(np.bincount(cells).argmax())
    return float(cells.mean()) if problem_type == REGRESSION else (cells.mean(axis=0) > 0.5).astype(int).tolist()


def baseline_of_posts(posts: Posts) -> Baseline | None:
    """`baseline_of` the training posts; None without a training split."""
    return baseline_of(posts.column("train", "label"), posts.problem_type) if "train" in posts.splits else None


def compute_metrics_for_trainer(
    metrics: PostMetrics | Sequence[str],
) -> "Callable[[EvalPrediction], dict[str, float]]":
    """
    The `compute_metrics` of a Trainer, for logits of shape (b, num_labels) and labels as `PostCollator` makes them.

    Args:
        metrics: `metrics_for(...)`, or only the names of single labels
    """
    post_metrics = metrics if isinstance(metrics, PostMetrics) else ClassificationMetrics(metrics)

    def compute(prediction: "EvalPrediction") -> dict[str, float]:
        predictions, references = as_predictions(post_metrics, prediction.predictions, prediction.label_ids)
        return post_metrics.compute(predictions=predictions, references=references)

    return compute


def logits_of(outputs: Any) -> np.ndarray:
    """The logits (n, num_labels) of a Trainer's gathered outputs: a tuple where there is more than logits."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def as_predictions(metrics: PostMetrics, outputs: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """A Trainer's gathered outputs (see `logits_of`) and labels as predictions and references of the metrics."""
    labels = labels if metrics.problem_type == REGRESSION else np.asarray(labels).astype(np.int64)
    return metrics.from_logits(np.asarray(logits_of(outputs))), labels
