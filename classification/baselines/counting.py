"""The baselines that count: the majority class, and words with naive Bayes or a linear classifier (scikit-learn)."""

import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from transformers import Trainer
from transformers.trainer_utils import PredictionOutput
from transformers.utils import logging

from ...processing_hf_mamba import clean_text
from ..data.posts import Posts
from ..evaluation.metrics import PostMetrics
from ..runs.arguments import ClassificationTrainingArguments


logger = logging.get_logger(__name__)

WORDS = r"\w+|[^\w\s]+"  # words, and what stands between them: punctuation, emoji

# Name -> what makes features of texts (None: nothing is read), the classifier, its parameter and the values tried;
# without validation posts the parameter stays at 1
COUNTING = {
    "majority": (None, lambda _: DummyClassifier(strategy="prior"), None, (1,)),
    "tfidf_logistic": (
        lambda: TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORDS, sublinear_tf=True, dtype=np.float32),
        lambda value: LogisticRegression(C=value, max_iter=1000),
        "C",
        (0.3, 1, 3, 10, 30),
    ),
    "naive_bayes": (
        lambda: CountVectorizer(token_pattern=WORDS),
        lambda value: MultinomialNB(alpha=value),
        "alpha",
        (0.1, 0.3, 1, 3),
    ),
}


class CountingClassifier:
    """
    A baseline of `COUNTING`.

    Args:
        name: which
        num_labels: of the logits; ids that no training post has get minus infinity
        max_words: only the first so many words of a text count, as white space separates them; None: all
    """

    def __init__(self, name: str, num_labels: int, max_words: int | None = None) -> None:
        new_vectorizer, self.new_classifier, self.parameter, self.grid = COUNTING[name]
        self.vectorizer = new_vectorizer and new_vectorizer()
        self.num_labels, self.max_words = num_labels, max_words
        self.classifier: Any = None
        self.chosen: Any = None  # the parameter's value

    def fit(
        self,
        texts: Sequence[str],
        labels: Sequence[int],
        *,
        weights: Sequence[float] | None = None,
        validation: Sequence[str] | None = None,
        score: Callable[[np.ndarray], float] | None = None,
    ) -> None:
        """
        Args:
            texts, labels: of the training posts
            weights: one per label, or None
            validation: texts by which the parameter is chosen, or None: then it is 1
            score: from logits of the validation texts to what is to be large; of equals the first value counts
        """
        label_ids = np.asarray(labels)
        of_post = None if weights is None else np.asarray(weights)[label_ids]
        if of_post is not None:
            of_post = of_post / of_post.mean()  # as cross-entropy does: C keeps its meaning
        features = self._features(texts, fit=True)
        tried: dict[float, tuple[float, Any]] = {}
        for value in self.grid if validation is not None else (1,):
            classifier = self.new_classifier(value)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                classifier.fit(features, label_ids, sample_weight=of_post)
            self.classifier = classifier
            tried[value] = (0 if validation is None or score is None else score(self.logits(validation)), classifier)
        self.chosen = max(tried, key=lambda value: tried[value][0])
        self.classifier = tried[self.chosen][1]

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """Logarithms of the labels' probabilities, (n, num_labels)."""
        with np.errstate(divide="ignore"):
            log_probabilities = np.log(self.classifier.predict_proba(self._features(texts)))
        logits = np.full((len(texts), self.num_labels), -np.inf)
        logits[:, self.classifier.classes_] = log_probabilities
        return logits

    def num_parameters(self) -> int:
        """Numbers that were learned from the posts."""
        names = ("coef_", "intercept_", "feature_log_prob_", "class_log_prior_", "class_prior_")
        return sum(np.size(getattr(self.classifier, name)) for name in names if name in vars(self.classifier))

    def _features(self, texts: Sequence[str], fit: bool = False) -> Any:
        if self.vectorizer is None:
            return np.zeros((len(texts), 1))
        texts = [clean_text(text) for text in texts]
        if self.max_words is not None:
            texts = [" ".join(text.split()[: self.max_words]) for text in texts]
        return self.vectorizer.fit_transform(texts) if fit else self.vectorizer.transform(texts)


class CountingTrainer:
    """
    What a run needs of a Trainer, for a CountingClassifier.

    Args:
        model: a CountingClassifier
        args: ClassificationTrainingArguments
        posts: `Posts`
        metrics: of the problem type; --metric_for_best_model among them chooses the parameter
        weights: of the labels, or None
    """

    save_metrics = Trainer.save_metrics

    def __init__(
        self,
        model: CountingClassifier,
        args: ClassificationTrainingArguments,
        posts: Posts,
        metrics: PostMetrics,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.model, self.args, self.posts, self.metrics, self.weights = model, args, posts, metrics, weights

    def train(self) -> dict[str, Any]:
        """Fits the model. Returns the metrics of training."""
        start = time.perf_counter()
        texts, labels = (self.posts.column("train", name) for name in ("text", "label"))
        choosing: dict[str, Any] = {}
        if self.args.load_best_model_at_end and self.model.parameter is not None:
            references = np.asarray(self.posts.column("validation", "label"))
            choosing = {
                "validation": self.posts.column("validation", "text"),
                "score": lambda logits: self._score(logits, references),
            }
        self.model.fit(texts, labels, weights=self.weights, **choosing)
        seconds = time.perf_counter() - start
        measured = {"train_runtime": seconds, "train_samples_per_second": len(texts) / seconds}
        if self.model.parameter is not None:
            measured[f"train_{self.model.parameter}"] = self.model.chosen
            how = "chosen on the validation posts" if choosing else "nothing was chosen"
            logger.info(f"{self.model.parameter} = {self.model.chosen} ({how}).")
        return measured

    def _score(self, logits: np.ndarray, references: np.ndarray) -> float:
        name = (self.args.metric_for_best_model or "").removeprefix("eval_")
        return self.metrics.compute(predictions=self.metrics.from_logits(logits), references=references)[name]

    def predict(self, rows: Dataset, metric_key_prefix: str = "test") -> PredictionOutput:
        """As Trainer's, of a split."""
        start = time.perf_counter()
        rows = rows.with_format(None).select_columns([n for n in ("text", "label") if n in rows.column_names])[:]
        logits = self.model.logits(rows["text"])
        labels = np.asarray(rows["label"]) if "label" in rows else None
        return PredictionOutput(logits, labels, {f"{metric_key_prefix}_runtime": time.perf_counter() - start})

    def is_world_process_zero(self) -> bool:
        return True
