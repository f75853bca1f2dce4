"""Probes of the audit: small models of what must not be able to solve a task, scored beside the majority class.

A probe is fitted on the training posts and scored on posts it has not seen. Its lift is its accuracy minus that of
always predicting the training posts' most common class, on the same posts. The interval of the lift is exact and
paired: of the posts that only one of the two gets right, the share that is the probe's has a Clopper-Pearson interval
(what McNemar's exact test inverts), so that it holds for three posts as for three thousand. With q probes every
interval is at 1 - 0.05 / q (Bonferroni): for data without any leak, all of them cover at once in 95 % of the cases.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import f1_score
from sklearn.tree import DecisionTreeClassifier


LEVELS = ("clean", "note", "warning", "leak")  # from good to bad

# What a probe looks at decides how much it may gain: share of the majority class's errors that it surely removes, from
# which it is a warning, and a leak. An artefact is what no reader would call part of a post's meaning. A surface is
# part of it, but nothing needs to be understood to use it. The order of a file can't be a leak: a model gets posts one
# by one and never sees it.
ARTEFACT, SURFACE, ORDER = "artefact", "surface", "order"
THRESHOLDS = {ARTEFACT: (0.05, 0.25), SURFACE: (0.10, 0.50), ORDER: (0.10, float("inf"))}

FAMILY_LEVEL = 0.95
_DEPTH = 4
_TOKENS = r"<\w+>|\w+|[^\w\s]"
_MIN_COUNT = 10  # posts that a token must occur in before it is looked at


# A post as a probe sees it: name -> number, or word
Features = dict[str, float | str]


@dataclass
class Probe:
    """
    A probe's predictions for the n scored posts, or for those it has a prediction for.

    Args:
        name: of the table
        kind: ARTEFACT, SURFACE or ORDER
        predictions: class ids, shape (n,)
        rule: its simplest form, in words; empty if there is none
        rule_predictions: what that rule alone predicts, shape (n,)
        rows: the scored posts that the predictions are for; None for all
        details: what else the report shows
    """

    name: str
    kind: str
    predictions: np.ndarray
    rule: str = ""
    rule_predictions: np.ndarray | None = None
    rows: np.ndarray | None = None
    details: dict[str, Any] | None = None


@dataclass
class Score:
    """
    What a probe scores; shares from 0 to 1.

    Args:
        posts: scored
        accuracy, accuracy_low, accuracy_high, f1_macro: the probe's
        majority_accuracy: of the constant prediction on the same posts
        lift, lift_low, lift_high: accuracy minus majority_accuracy
        errors_removed: lift, as a share of the constant prediction's errors on all scored posts
        errors_removed_low: the same of lift_low
        level: of LEVELS
        rule, rule_accuracy: the simplest form of the probe
    """

    name: str
    kind: str
    posts: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    f1_macro: float
    majority_accuracy: float
    lift: float
    lift_low: float
    lift_high: float
    errors_removed: float
    errors_removed_low: float
    level: str
    rule: str
    rule_accuracy: float | None
    details: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}


def score(probe: Probe, truth: np.ndarray, constant: int, num_probes: int) -> Score:
    """
    Scores a probe beside a constant prediction.

    Args:
        probe: its predictions
        truth: the classes of all scored posts, shape (n,)
        constant: the class most common in training
        num_probes: how many intervals hold at once
    """
    of_posts = truth if probe.rows is None else truth[probe.rows]
    if probe.rows is not None:  # where only some posts are predicted, the strongest constant among them
        constant_there = int(np.bincount(of_posts).argmax())
    else:
        constant_there = constant
    right, majority = probe.predictions == of_posts, of_posts == constant_there
    n, gained, lost = len(of_posts), int((right & ~majority).sum()), int((majority & ~right).sum())
    lift, low, high = _paired_interval(gained, lost, n, 1 - (1 - FAMILY_LEVEL) / num_probes)
    accuracy = binomtest(int(right.sum()), n).proportion_ci(1 - (1 - FAMILY_LEVEL) / num_probes, method="exact")
    errors = max(1, int((truth != constant).sum()))
    result = Score(
        name=probe.name,
        kind=probe.kind,
        posts=n,
        accuracy=float(right.mean()),
        accuracy_low=float(accuracy.low),
        accuracy_high=float(accuracy.high),
        f1_macro=float(f1_score(of_posts, probe.predictions, average="macro", zero_division=0)),
        majority_accuracy=float(majority.mean()),
        lift=lift,
        lift_low=low,
        lift_high=high,
        errors_removed=lift * n / errors,
        errors_removed_low=low * n / errors,
        level="clean",
        rule=probe.rule,
        rule_accuracy=None if probe.rule_predictions is None else float((probe.rule_predictions == of_posts).mean()),
        details=probe.details,
    )
    result.level = _level(result)
    return result


def _paired_interval(gained: int, lost: int, n: int, level: float) -> tuple[float, float, float]:
    """Lift, and its exact interval given the number of posts on which the two differ."""
    differ = gained + lost  # McNemar's discordant posts
    if not differ:
        return 0.0, 0.0, 0.0
    share = binomtest(gained, differ).proportion_ci(level, method="exact")
    low, high = (float(2 * end - 1) * differ / n for end in (share.low, share.high))
    return (gained - lost) / n, low, high


def _level(scored: Score) -> str:
    if scored.lift_low <= 0:
        return "clean"
    warning, leak = THRESHOLDS[scored.kind]
    if scored.errors_removed_low >= leak:
        return "leak"
    return "warning" if scored.errors_removed_low >= warning else "note"


def tree_probe(
    name: str,
    kind: str,
    train: Sequence[Features],
    scored: Sequence[Features],
    classes: np.ndarray,
    names: Sequence[str],
) -> Probe:
    """
    A decision tree over named features.

    Args:
        name, kind: as in `Probe`
        train, scored: for each post {feature: number or str}; strings are one feature for each value
        classes: of the training posts, shape (n,)
        names: of the classes by id
    """
    vectorizer = DictVectorizer(sparse=False, dtype=np.float32)
    x_train, x_scored = vectorizer.fit_transform(train), vectorizer.transform(scored)
    leaf = min(max(5, len(train) // 200), max(1, len(train) // 4))
    tree, stump = (
        DecisionTreeClassifier(max_depth=depth, min_samples_leaf=leaf, random_state=0).fit(x_train, classes)
        for depth in (_DEPTH, 1)
    )
    rule = _in_words(stump, vectorizer.get_feature_names_out(), names)
    return Probe(name, kind, tree.predict(x_scored), rule, stump.predict(x_scored) if rule else None)


def _in_words(stump: DecisionTreeClassifier, features: Sequence[str], names: Sequence[str]) -> str:
    """A tree of one question in words; empty if it predicts the same either way."""
    tree = stump.tree_
    if tree.node_count < 3:
        return ""
    below, above = (names[stump.classes_[tree.value[child].argmax()]] for child in (1, 2))
    if below == above:
        return ""
    feature = features[tree.feature[0]]
    if "=" in feature:
        return f"{feature.replace('=', ' is ', 1)}: {above}, else {below}"
    return f"{feature} above {tree.threshold[0]:.4g}: {above}, else {below}"


def one_sided_tokens(
    texts: Sequence[str], classes: np.ndarray, num_classes: int
) -> tuple[CountVectorizer, np.ndarray, np.ndarray, np.ndarray] | None:
    """
    Words, marks and pairs of neighbours that occur, in training, in posts of one class only, more often than chance
    lets any of them.

    A token of the share p of all posts' class in all of its k posts would be one of V by chance with probability
    p^k; those with V p^k < 0.05 are kept (Bonferroni over the V tokens that occur in 10 posts or more).

    Args:
        texts: of the training posts, white space collapsed
        classes: shape (n,)

    Returns:
        CountVectorizer, the columns of the tokens in it, their classes and their counts, the most frequent first; or
        None if no token occurs often enough.
    """
    vectorizer = CountVectorizer(
        token_pattern=_TOKENS, ngram_range=(1, 2), binary=True, min_df=_MIN_COUNT, dtype=np.int32
    )
    try:
        occurs = vectorizer.fit_transform(texts)
    except ValueError:  # no token is left
        return None
    of_class = np.asarray(occurs.T @ np.eye(num_classes, dtype=np.int32)[classes])  # (V, classes)
    counts, owner = of_class.sum(1), of_class.argmax(1)
    share = np.bincount(classes, minlength=num_classes) / len(classes)
    log_chance = counts * np.log(np.maximum(share[owner], 1e-12)) + np.log(len(counts))
    kept = np.flatnonzero((of_class.max(1) == counts) & (log_chance < np.log(0.05)))
    pairs = np.array([len(_parts(token, vectorizer)) for token in vectorizer.get_feature_names_out()[kept]])
    kept = kept[np.lexsort((pairs, -counts[kept]))]  # of equally frequent ones, single tokens before pairs
    return vectorizer, kept, owner[kept], counts[kept]


def token_probe(
    train_texts: Sequence[str],
    scored_texts: Sequence[str],
    classes: np.ndarray,
    truth: np.ndarray,
    names: Sequence[str],
    constant: int,
) -> Probe | None:
    """
    A post with a token of one class only is predicted to be of that class, any other of the class that is most common
    among the posts without such tokens.

    Returns:
        A Probe whose details list the tokens, {"token", "class", "train": posts with it in training, "scored": {class:
        posts with it}}, or None if no token occurs often enough.
    """
    found = one_sided_tokens(train_texts, classes, len(names))
    if found is None:
        return None
    vectorizer, columns, owner, counts = found
    without = classes[np.asarray(vectorizer.transform(train_texts)[:, columns].sum(1)).ravel() == 0]
    rest = int(np.bincount(without).argmax()) if len(without) else constant
    occurs = vectorizer.transform(scored_texts)[:, columns]
    votes = occurs @ (np.eye(len(names))[owner] * counts[:, None]) if len(columns) else np.zeros((len(truth), 1))
    predictions = np.where(votes.sum(1) > 0, votes.argmax(1), rest)
    tokens = vectorizer.get_feature_names_out()[columns]
    shown: list[dict[str, Any]] = []
    seen: set[str] = set()
    for index, token in enumerate(tokens):
        parts = _parts(token, vectorizer)
        if len(parts) > 1 and seen.intersection(parts):  # the pair adds nothing to its half
            continue
        seen.add(token)
        if len(shown) < 20:
            where = np.asarray(occurs[:, [index]].todense()).ravel() > 0
            there = np.bincount(truth[where], minlength=len(names))
            scored = {names[i]: int(number) for i, number in enumerate(there) if number}
            shown.append({"token": token, "class": names[owner[index]], "train": int(counts[index]), "scored": scored})
    details = {"number": len(seen), "tokens": shown}
    rule = f"has one of {len(seen)} tokens of one class only: that class" if seen else ""
    alone = predictions if rule else None
    return Probe("tokens of one class only", SURFACE, predictions, rule, alone, details=details)


def _parts(token: str, vectorizer: CountVectorizer) -> list[str]:
    return vectorizer.build_tokenizer()(token)


def neighbour_probe(truth: np.ndarray) -> Probe:
    """Predicts the label of the row before; for the first row the last row's."""
    return Probe("row order: label of the row before", ORDER, np.roll(truth, 1))
