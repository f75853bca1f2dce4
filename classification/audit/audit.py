"""The audit of a data set: can a score on it be trusted at all?

    python run_classification.py --do_audit --train_file train.jsonl --test_file test.jsonl --output_dir outputs/audit

Rules that must not be able to solve a task are fitted on the training posts and scored on the test posts (validation
posts if there are no labelled test posts); repeats, conflicting labels, label balance and cut texts are counted. Every
finding gets a level: leak, warning or note; data without findings are clean. docs/audit.md describes each probe.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.stats import chi2_contingency
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from ..data.arguments import DataArguments
from ..data.labels import REGRESSION, SINGLE
from ..data.loading import load_posts
from ..data.posts import BAD_IMAGE, IMAGES_LEFT_OUT, Posts
from . import features
from .duplicates import CopyProbe, Keys, conflicts, copy_probes, count_repeats
from .images import ImageFacts, read_image_facts
from .probes import (
    ARTEFACT,
    LEVELS,
    ORDER,
    SURFACE,
    Features,
    Probe,
    Score,
    neighbour_probe,
    score,
    token_probe,
    tree_probe,
)


RAW_WHITE_SPACE = "white space, raw text"
_MAX_CLASSES = 20  # of sets of labels: the rarer ones are one class
_CUT_NOTE, _CUT_WARNING = 0.05, 0.5  # share of the posts that lose tokens
_SHIFT = 0.05  # share of the posts whose label would have to change for two splits to be alike
_ONE_SIDED = 0.9  # from this share of one class, accuracy says little


def percent(share: float) -> str:
    """A share from 0 to 1 as text: 12.5 %."""
    return f"{100 * share:.1f} %"


@dataclass
class Finding:
    """A verdict: its level, what it is about and, in a sentence, what was found."""

    level: str
    about: str
    text: str


@dataclass
class Audit:
    """
    What an audit found.

    Args:
        source, counts: the posts, as `Posts` names and counts them
        scored: the split that probes are scored on
        classes: what stands for a label, in words
        scores: of all probes
        findings: what is not clean, the worst first
        repeats, conflicts: as `count_repeats` and `conflicts` of audit/duplicates.py count them
        balance: split -> {class: posts}
        cut: split -> {"posts": share of the posts cut, "tokens": share of the tokens lost}; and "max_seq_length"
        images: {"read": different images read, "unreadable": that can't be, "missing": left out of the posts}
    """

    source: str
    counts: str
    scored: str
    classes: str
    scores: list[Score] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    repeats: dict[str, dict[str, int]] = field(default_factory=dict)
    conflicts: dict[str, int] = field(default_factory=dict)
    balance: dict[str, dict[str, int]] = field(default_factory=dict)
    cut: dict[str, Any] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """The worst level of the findings."""
        return max((finding.level for finding in self.findings), key=LEVELS.index, default="clean")


@dataclass
class _Material:
    """The posts as the probes see them; dicts are by split."""

    posts: Posts
    texts: dict[str, list[str]]  # raw
    images: dict[str, list[list[str]]]  # keys
    facts: dict[str, ImageFacts | None]  # by key
    classes: dict[str, np.ndarray]
    names: list[str]
    scored: str

    @property
    def pair(self) -> tuple[str, str]:
        """The split that probes are fitted on, and the one they are scored on."""
        return "train", self.scored

    def first_facts(self, split: str) -> list[ImageFacts | None]:
        """Of each post's first image."""
        return [self.facts[keys[0]] if keys else None for keys in self.images[split]]


def load_for_audit(
    data_args: DataArguments,
    *,
    seed: int,
    label_names: Sequence[str] | None = None,
    problem_type: str | None = None,
) -> Posts:
    """The posts as `load_posts` reads them, but for images that can't be found: these are counted, not refused."""
    if data_args.on_bad_image == "error":
        data_args = replace(data_args, on_bad_image="keep_text")
    if data_args.on_empty_post == "error":
        data_args = replace(data_args, on_empty_post="drop")
    return load_posts(data_args, seed=seed, label_names=label_names, problem_type=problem_type)


def audit_posts(posts: Posts, tokenizer: PreTrainedTokenizerBase | None = None, *, progress: bool = True) -> Audit:
    """
    Audits stored posts.

    Args:
        posts: `Posts` with a training split and another one whose labels are known
        tokenizer: counts tokens and knows `model_max_length`; without one, cut texts aren't counted
        progress: show bars

    Raises:
        ValueError: there is nothing to fit the probes on, or to score them on.
    """
    scored = _scored_split(posts)
    classes, names, meaning = classes_of(posts)
    images, facts = read_image_facts(posts, progress=progress and "image" in posts.columns)
    texts = {split: [text or "" for text in posts.column(split, "text")] for split in posts.splits}
    material = _Material(posts, texts, images, facts, classes, names, scored)
    audit = Audit(posts.source, posts.counts(), scored, meaning)
    steps: list[Callable[[], None]] = [
        lambda: _run_probes(material, audit),
        lambda: _count_labels(material, audit),
        lambda: _count_images(material, audit),
        lambda: _count_cuts(texts, tokenizer, audit),
    ]
    for step in tqdm(steps, desc="Auditing", unit=" steps", disable=not progress):
        step()
    audit.findings.sort(key=lambda finding: -LEVELS.index(finding.level))
    return audit


def _scored_split(posts: Posts) -> str:
    if "train" not in posts.splits:
        raise ValueError("--do_audit fits its probes on training posts: give --train_file, or a data set with some.")
    for split in ("test", "validation"):
        if split in posts.splits and "label" in posts.splits[split].column_names and len(posts.splits[split]):
            return split
    raise ValueError(
        "--do_audit scores its probes on labelled posts that they weren't fitted on: give --test_file or "
        "--validation_file with labels, or leave --validation_split above 0."
    )


def classes_of(posts: Posts) -> tuple[dict[str, np.ndarray], list[str], str]:
    """
    One class per post: its label; of several labels, their set; of a number, whether it is above the training median.

    Returns:
        split -> class ids, their names, and what they are, in words.
    """
    labels = {
        split: np.asarray(posts.column(split, "label"))
        for split, rows in posts.stored.items()
        if "label" in rows.column_names
    }
    if posts.problem_type == SINGLE:
        return {split: values.astype(int) for split, values in labels.items()}, list(posts.label_names), "label"
    if posts.problem_type == REGRESSION:
        median = float(np.median(labels["train"]))
        if not (labels["train"] > median).any():  # most posts have the highest number
            median = float(labels["train"].mean())
        above = {split: (values > median).astype(int) for split, values in labels.items()}
        return above, [f"up to {median:.4g}", f"above {median:.4g}"], "numbers above the training median, or not"
    sets = {split: [tuple(np.flatnonzero(row)) for row in values] for split, values in labels.items()}
    number = Counter(sets["train"])
    counted = sorted(number, key=lambda each: (-number[each], each))[:_MAX_CLASSES]
    names = [" + ".join(posts.label_names[i] for i in each) or "none" for each in counted]
    ids = {each: index for index, each in enumerate(counted)}
    classes = {split: np.array([ids.get(each, len(counted)) for each in of]) for split, of in sets.items()}
    return classes, [*names, "another set"], "the whole set of a post's labels"


def _run_probes(material: _Material, audit: Audit) -> None:
    train, scored = material.pair
    truth = material.classes[scored]
    constant = int(np.bincount(material.classes["train"]).argmax())
    keys = Keys(material.texts, material.images, material.facts)
    probes = [*_text_probes(material, constant), *_name_probes(material), *_image_probes(material)]
    probes += [_position_probe(material), neighbour_probe(truth)]
    copies = copy_probes(keys, scored, material.classes, len(material.names))
    num_probes = len(probes) + 2 * len(copies)
    audit.scores = [score(probe, truth, constant, num_probes) for probe in probes]
    audit.scores += [_score_copies(copy, truth, constant, num_probes) for copy in copies]
    found = (_finding_of(scored, audit) for scored in audit.scores)
    audit.findings += [finding for finding in found if finding is not None]
    audit.repeats = count_repeats(keys)
    audit.conflicts = conflicts(keys, material.classes)
    _judge_repeats(material, audit)


def _tree(material: _Material, name: str, kind: str, train: Sequence[Features], scored: Sequence[Features]) -> Probe:
    return tree_probe(name, kind, train, scored, material.classes["train"], material.names)


def _text_probes(material: _Material, constant: int) -> list[Probe]:
    train, scored = (material.texts[split] for split in material.pair)
    probes = []
    counts = [[len(keys) for keys in material.images[split]] for split in material.pair]
    present = [list(map(features.presence, texts, of)) for texts, of in zip((train, scored), counts)]
    probes.append(_tree(material, "presence of text or image", ARTEFACT, present[0], present[1]))
    if not any(train):
        return probes
    collapsed = [list(map(features.collapse, texts)) for texts in (train, scored)]
    for name, kind, function, (of_train, of_scored) in (
        (RAW_WHITE_SPACE, ARTEFACT, features.white_space, (train, scored)),
        ("white space, collapsed", ARTEFACT, features.white_space, collapsed),
        ("punctuation, capitals, digits", SURFACE, features.punctuation, collapsed),
        ("length", SURFACE, features.length, collapsed),
        ("hashtags, handles, URLs, placeholders", SURFACE, features.markers, collapsed),
    ):
        probes.append(_tree(material, name, kind, list(map(function, of_train)), list(map(function, of_scored))))
    train_classes, truth = (material.classes[split] for split in material.pair)
    lower_train, lower_scored = ([text.lower() for text in texts] for texts in collapsed)
    tokens = token_probe(lower_train, lower_scored, train_classes, truth, material.names, constant)
    return probes if tokens is None else [*probes, tokens]


def _name_probes(material: _Material) -> list[Probe]:
    probes, posts = [], material.posts
    if "id" in posts.columns:
        train, scored = (posts.column(split, "id") for split in material.pair)
        probes.append(_tree(material, "ids", ARTEFACT, *features.name_features(train, scored, "id")))
    train, scored = (
        [features.stem(keys[0]) if keys else "" for keys in material.images[split]] for split in material.pair
    )
    if any(train) and all(posts.splits[split].format["type"] != "custom" for split in material.pair):
        probes.append(
            _tree(material, "names of image files", ARTEFACT, *features.name_features(train, scored, "name"))
        )
    return probes


def _image_probes(material: _Material) -> list[Probe]:
    if not any(material.facts.values()):
        return []
    train, scored = (material.first_facts(split) for split in material.pair)
    return [
        _tree(material, name, kind, list(map(function, train)), list(map(function, scored)))
        for name, kind, function in (
            ("width and height of images", ARTEFACT, features.image_size),
            ("image files: size, format, EXIF", ARTEFACT, features.image_file),
            ("mean colour and contrast", SURFACE, features.mean_colour),
        )
    ]


def _position_probe(material: _Material) -> Probe:
    """Where a post stands in its file, from 0 to 1."""
    positions: list[list[Features]] = []
    for split in material.pair:
        raw, rows = material.posts.origins[split]
        positions.append([{"place in the file": row / max(1, len(raw) - 1)} for row in rows])
    return _tree(material, "row order: place in the file", ORDER, positions[0], positions[1])


def _score_copies(copy: CopyProbe, truth: np.ndarray, constant: int, num_probes: int) -> Score:
    """
    The score on the scored posts. All repeats together may show that copying predicts labels where the scored posts
    are too few to; what it gains is always counted on the scored posts, and has to be above zero there. A whole post
    that repeats with its label is a warning at least.
    """
    scored = score(copy.scored, truth, constant, num_probes)
    most_common = int(np.bincount(copy.pooled_truth).argmax())
    pooled = score(copy.pooled, copy.pooled_truth, most_common, num_probes)
    shown = ("posts", "accuracy", "majority_accuracy", "lift_low", "lift_high")
    scored.details = {"repeats": {name: getattr(pooled, name) for name in shown}}
    least = "warning" if scored.kind == ARTEFACT else "note"
    by_all = copy.alike and pooled.lift_low > 0 and scored.lift > 0
    if (scored.level != "clean" or by_all) and LEVELS.index(scored.level) < LEVELS.index(least):
        scored.level = least
    return scored


_WHAT_TO_DO = {
    "leak": "do not trust a score on this data until that is removed",
    "warning": "part of any score may come from this",
    "note": "little, but more than chance",
}


def _finding_of(scored: Score, audit: Audit) -> Finding | None:
    """What a probe's score means, in a sentence; None if it is no better than the majority class."""
    if scored.level == "clean":
        return None
    if scored.name.startswith("copies"):
        repeats, what = (scored.details or {})["repeats"], scored.name.split(": ")[1]
        text = (
            f"{scored.posts:,} {audit.scored} posts repeat training posts ({what}); copying their label is right for "
            f"{percent(scored.accuracy)}, their majority class {percent(scored.majority_accuracy)} (of all "
            f"{repeats['posts']:,} repeats, those within training too: {percent(repeats['accuracy'])}, "
            f"{percent(repeats['majority_accuracy'])})"
        )
    else:
        text = (
            f"this rule alone scores {percent(scored.accuracy)}, the majority class "
            f"{percent(scored.majority_accuracy)}"
        )
        if scored.rule and scored.rule_accuracy is not None and not scored.name.startswith("tokens"):
            text += f" (simplest form: {scored.rule}, {percent(scored.rule_accuracy)})"
    if scored.kind == ORDER:
        text += ": no model sees the order, but the file is sorted: shuffle it, and find out why it was"
    elif scored.name == RAW_WHITE_SPACE and scored.level == "leak":
        text += ": do not trust results on the raw text. HFMambaProcessor collapses white space"
    else:
        text += f": {_WHAT_TO_DO[scored.level]}"
    return Finding(scored.level, scored.name, f"{text}.")


def _judge_repeats(material: _Material, audit: Audit) -> None:
    """Whole posts of the scored split that occur in training too, whatever their labels; and conflicting labels."""
    across = (f"{audit.scored} in train", f"train in {audit.scored}")
    audited = next(audit.repeats[name] for name in across if name in audit.repeats)
    known = {finding.about for finding in audit.findings}
    if audited["whole post"] and "copies: whole post" not in known:
        text = f"{audited['whole post']:,} {audit.scored} posts occur in training too, text and images."
        audit.findings.append(Finding("note", "copies: whole post", text))
    counts = audit.conflicts
    if counts["posts"]:
        labelled = sum(map(len, material.classes.values()))
        level = "warning" if counts["never right"] >= 0.01 * labelled else "note"
        text = (
            f"{counts['posts']:,} posts in {counts['groups']:,} groups are the same but have different labels: of "
            f"{labelled:,} posts, no model can get {counts['never right']:,} right."
        )
        audit.findings.append(Finding(level, "conflicting labels", text))


def _count_labels(material: _Material, audit: Audit) -> None:
    names: Sequence[str] = material.names
    of_split: dict[str, np.ndarray] = {}
    for split, classes in material.classes.items():
        counts = of_split[split] = np.bincount(classes, minlength=len(names))
        audit.balance[split] = {name: int(count) for name, count in zip(names, counts)}
    train, scored = (of_split[split] for split in material.pair)
    missing = [name for name, here, there in zip(names, train, scored) if bool(here) != bool(there)]
    missing = [name for name in missing if name != "another set"]
    if missing:
        text = (
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}: in only one of train and {audit.scored}."
        )
        audit.findings.append(Finding("note", "label balance", text))
    if (share := scored.max() / scored.sum()) >= _ONE_SIDED:
        most = names[int(scored.argmax())]
        text = f"{percent(share)} of the {audit.scored} posts are {most}: read macro F1, not accuracy."
        audit.findings.append(Finding("note", "label balance", text))
    both = np.stack([train, scored])[:, (train + scored) > 0]
    shift = float(np.abs(train / train.sum() - scored / scored.sum()).sum() / 2)
    if both.shape[1] > 1 and shift >= _SHIFT and chi2_contingency(both).pvalue < 0.01:
        text = (
            f"the labels of {audit.scored} are distributed differently from those of train, by {percent(shift)} of "
            "the posts."
        )
        audit.findings.append(Finding("note", "label balance", text))


def _count_images(material: _Material, audit: Audit) -> None:
    unreadable = {key for key, facts in material.facts.items() if facts is None}
    dropped = material.posts.dropped.values()
    left_out = sum(counts.get(what, 0) for counts in dropped for what in (IMAGES_LEFT_OUT, BAD_IMAGE))
    audit.images = {
        "read": len(material.facts) - len(unreadable),
        "unreadable": len(unreadable),
        "missing": left_out,
    }
    if unreadable or left_out:
        text = f"{len(unreadable):,} images can't be read, {left_out:,} named by posts are missing or left out."
        audit.findings.append(Finding("warning", "images", text))


def _count_cuts(texts: Mapping[str, Iterable[str]], tokenizer: PreTrainedTokenizerBase | None, audit: Audit) -> None:
    """How much of the texts lies beyond --max_seq_length."""
    if tokenizer is None:
        return
    longest = tokenizer.model_max_length
    audit.cut = {"max_seq_length": longest}
    for split, of_split in texts.items():
        collapsed = [features.collapse(text) for text in of_split if text]
        if not collapsed:
            continue
        encoded = tokenizer(collapsed, truncation=False, add_special_tokens=True, verbose=False)["input_ids"]
        lengths = np.array([len(ids) for ids in encoded])
        beyond = np.maximum(lengths - longest, 0)
        audit.cut[split] = {"posts": float((beyond > 0).mean()), "tokens": float(beyond.sum() / max(1, lengths.sum()))}
    worst = max((cut["posts"] for name, cut in audit.cut.items() if name != "max_seq_length"), default=0)
    if worst >= _CUT_NOTE:
        level = "warning" if worst >= _CUT_WARNING else "note"
        text = f"--max_seq_length {longest} cuts up to {percent(worst)} of a split's texts."
        audit.findings.append(Finding(level, "cut texts", text))
