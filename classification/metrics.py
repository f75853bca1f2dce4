"""Metrics of single-label classification, with the majority-class baseline beside them; works offline."""

from collections import Counter
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support


class ClassificationMetrics(evaluate.Metric):
    """
    Accuracy, macro and weighted F1; for two labels also precision, recall and F1 of the positive one.

    `evaluate.load("accuracy")` fetches a script from the Hub; this one computes with scikit-learn. It keeps its data
    in memory and leaves nothing on the disk, so that any number of processes can compute at once.

    Args:
        label_names: the labels' names in the order of their ids
        positive_label: the id that precision, recall and f1 are about when there are two labels
        majority_label: the id of the label most common in training; None leaves `majority_accuracy` out

    `compute(predictions=..., references=...)` takes label ids and returns a dict of `accuracy`, `f1_macro` and
    `f1_weighted` (over the labels that occur in references or predictions, scikit-learn's default), with two labels
    `precision`, `recall` and `f1` of `positive_label`, `majority_accuracy` (what always answering `majority_label`
    scores on these references) and `num_posts`.
    """

    def __init__(
        self,
        label_names: Sequence[str],
        *,
        positive_label: int = 1,
        majority_label: int | None = None,
        **kwargs,
    ):
        self.label_names = list(label_names)
        for name, label in (("positive_label", positive_label), ("majority_label", majority_label)):
            if label is not None and not 0 <= label < len(self.label_names):
                raise ValueError(
                    f"{name} {label} is no label id: there are {len(self.label_names)} labels, from id 0."
                )
        self.positive_label, self.majority_label = positive_label, majority_label
        super().__init__(keep_in_memory=True, **kwargs)

    def _build_data_dir(self):
        """Where `evaluate` would keep data between processes; held in memory, they need no folder to be made."""
        return self._data_dir_root

    def _info(self):
        return evaluate.MetricInfo(
            description="Accuracy, F1 scores and the majority-class baseline.",
            citation="",
            inputs_description="predictions and references: label ids",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        scores = {
            "accuracy": accuracy_score(references, predictions),
            "f1_macro": f1_score(references, predictions, average="macro", zero_division=0),
            "f1_weighted": f1_score(references, predictions, average="weighted", zero_division=0),
        }
        if len(self.label_names) == 2:
            precision, recall, f1, _ = precision_recall_fscore_support(
                references, predictions, labels=[self.positive_label], average="macro", zero_division=0
            )
            scores |= {"precision": precision, "recall": recall, "f1": f1}
        if self.majority_label is not None:
            scores["majority_accuracy"] = np.mean(np.asarray(references) == self.majority_label)
        return {name: float(value) for name, value in scores.items()} | {"num_posts": len(references)}


def most_common_label(labels: Sequence[int]) -> int:
    """The label that occurs most often, the smallest of equals."""
    counts = Counter(map(int, labels))
    return min(counts, key=lambda label: (-counts[label], label))


def compute_metrics_for_trainer(
    label_names: Sequence[str], majority_label: int | None = None, positive_label: int = 1
):
    """
    The `compute_metrics` of a Trainer, for logits of shape (b, num_labels) and label ids (b,).

    Args:
        label_names, majority_label, positive_label: as for ClassificationMetrics
    """
    metrics = ClassificationMetrics(label_names, positive_label=positive_label, majority_label=majority_label)

    def compute(prediction):
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        return metrics.compute(predictions=np.argmax(logits, axis=-1), references=prediction.label_ids)

    return compute
