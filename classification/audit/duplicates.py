"""Posts that occur more than once: which are the same, and does copying the label of the other one predict theirs?

A post is recognised by keys. Two texts share a key if they are equal but for case, white space and URLs, or, loosely,
 if their character 4-grams overlap by four fifths (Jaccard; found by MinHash, then counted). Two images
share one if their pixels are equal, or, loosely, if their difference hashes differ in at most 4 of 64 bits *and* no
value of a thumbnail of 9 x 8 pixels by more than 16 of 255 levels: an image that is saved again changes a little
everywhere, another image of the same kind differs much somewhere. Loose keys are those of connected groups.

That a part repeats is not a finding by itself: a question may be asked of many images, a sentence may come from a
template. What counts is whether the whole post repeats, or whether the labels of the repeats predict the label: the
rule "predict what the same posts were before" is a probe like any other.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from .images import ImageFacts
from .probes import ARTEFACT, SURFACE, Probe


JACCARD = 0.8
HAMMING, THUMBNAIL = 4, 16
_SHINGLE, _BANDS, _ROWS = 4, 16, 4
_CANDIDATES = 64  # compared with one image, the nearest first: data of flat images have thousands
_PRIME = (1 << 31) - 1

_URLS = re.compile(r"https?://\S+|www\.\S+|<url>")


def normalise(text: str) -> str:
    """A text without what changes when it is posted again: case, white space, short URLs."""
    return " ".join(_URLS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split())


def groups_of_near_texts(texts: Sequence[str]) -> np.ndarray:
    """
    Args:
        texts: n different normalised texts

    Returns:
        The number of each text's group, shape (n,).
    """
    shingles = [_shingles(text) for text in texts]
    signatures = _signatures(shingles)
    pairs: set[tuple[int, int]] = set()
    for band in range(_BANDS):
        buckets = defaultdict(list)
        for index, row in enumerate(signatures[:, band * _ROWS : (band + 1) * _ROWS]):
            if len(shingles[index]):
                buckets[row.tobytes()].append(index)
        for members in buckets.values():  # neighbours and the first: a chain holds a bucket together
            pairs.update(zip(members, members[1:]))
            pairs.update((members[0], member) for member in members[2:])
    near = [(i, j) for i, j in pairs if _jaccard(shingles[i], shingles[j]) >= JACCARD]
    return _connected(near, len(texts))


def _shingles(text: str) -> np.ndarray:
    data = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if len(data) < _SHINGLE:
        return np.zeros(0, np.uint64)
    code = np.zeros(len(data) - _SHINGLE + 1, np.uint64)
    for offset in range(_SHINGLE):  # a polynomial hash, modulo 2^64
        code = code * np.uint64(1_000_003) + data[offset : len(code) + offset]
    return np.unique((code ^ (code >> np.uint64(29))) % np.uint64(_PRIME))


def _signatures(shingles: Sequence[np.ndarray]) -> np.ndarray:
    """MinHash: for each text the smallest of its shingles under each of 64 hash functions."""
    generator = np.random.default_rng(0)
    factors, offsets = generator.integers(1, _PRIME, (2, _BANDS * _ROWS), dtype=np.uint64)
    signatures = np.zeros((len(shingles), _BANDS * _ROWS), np.uint64)
    for index, codes in enumerate(shingles):
        if len(codes):  # products stay below 2^62
            signatures[index] = ((codes[:, None] * factors + offsets) % np.uint64(_PRIME)).min(0)
    return signatures


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    if min(len(one), len(other)) < JACCARD * max(len(one), len(other)):
        return 0.0
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)


def _connected(pairs: Collection[tuple[int, int]], size: int) -> np.ndarray:
    if not pairs:
        return np.arange(size)
    rows, columns = np.array(list(pairs)).T
    return connected_components(coo_matrix((np.ones(len(rows)), (rows, columns)), (size, size)), directed=False)[1]


def groups_of_near_images(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """
    Args:
        hashes: difference hashes of n images, bool (n, 64)
        thumbnails: uint8 (n, 8, 9, 3)

    Returns:
        The number of each image's group, shape (n,).
    """
    signs = hashes.astype(np.float32) * 2 - 1
    small = thumbnails.reshape(-1, 8 * 9 * 3).astype(np.int16)
    pairs: list[tuple[int, int]] = []
    step = 1024
    for start in range(0, len(signs), step):
        # A scalar product of two vectors of 64 signs is 64 less twice the number of bits that differ
        differing = (64 - signs[start : start + step] @ signs[start:].T) / 2
        for row, distances in enumerate(differing):
            others = np.flatnonzero(distances[row + 1 :] <= HAMMING) + row + 1
            if len(others) > _CANDIDATES:
                others = others[np.argsort(distances[others], kind="stable")[:_CANDIDATES]]
            if len(others):
                others = others + start
                apart = np.abs(small[others] - small[start + row]).max(1)
                pairs += [(start + row, other) for other in others[apart <= THUMBNAIL]]
    return _connected(pairs, len(signs))


class Keys:
    """
    What the posts of the splits are recognised by.

    Args:
        texts: split -> the raw text of each post, "" for none
        images: split -> the keys of each post's images (`source_key`)
        facts: key -> what is known of the image, None for one that can't be read
    """

    def __init__(
        self,
        texts: Mapping[str, Sequence[str]],
        images: Mapping[str, Sequence[Sequence[str]]],
        facts: Mapping[str, ImageFacts | None],
    ) -> None:
        self.splits = list(texts)
        plain = {split: [normalise(text) for text in of_split] for split, of_split in texts.items()}
        different = list(dict.fromkeys(text for of_split in plain.values() for text in of_split if text))
        near = dict(zip(different, groups_of_near_texts(different).tolist()))
        self.texts = {split: [text or None for text in of_split] for split, of_split in plain.items()}
        self.near_texts = {split: [near.get(text) for text in of_split] for split, of_split in plain.items()}

        readable = {key: of for key, of in facts.items() if of is not None}
        first = {of.pixels: of for of in readable.values()}  # of equal pixels, one
        hashes = np.array([of.difference_hash() for of in first.values()]).reshape(-1, 64)
        thumbnails = np.array([of.small for of in first.values()], np.uint8).reshape(-1, 8, 9, 3)
        group = dict(zip(first, groups_of_near_images(hashes, thumbnails).tolist()))
        self.images: dict[str, list[list[bytes]]] = {}
        self.near_images: dict[str, list[list[int]]] = {}
        for split, of_split in images.items():
            pixels = [[readable[key].pixels for key in keys if key in readable] for keys in of_split]
            self.images[split] = pixels
            self.near_images[split] = [[group[key] for key in keys] for keys in pixels]

    def posts(self, split: str, near: bool = False) -> list[Hashable | None]:
        """A key for each whole post: its text and all its images; None for a post without either."""
        texts = (self.near_texts if near else self.texts)[split]
        images: Sequence[list] = (self.near_images if near else self.images)[split]
        return [(t, frozenset(p)) if t is not None or p else None for t, p in zip(texts, images)]

    @property
    def two_parts(self) -> bool:
        """Whether there are posts with a text and others, or the same, with an image."""
        parts: tuple[Mapping[str, Sequence], ...] = (self.texts, self.images)
        return all(any(key for of_split in part.values() for key in of_split) for part in parts)


@dataclass
class CopyProbe:
    """
    The rule "what the same posts were before", for the scored posts that repeat training posts; and, since these may
    be few, for all repeats, those within training too.

    Args:
        scored, pooled: the rule's predictions
        pooled_truth: the classes of the posts that `pooled` is about
        alike: whether repeats within training are the same kind of thing as those across splits. Parts that are
            nearly the same need not be: a template or a topic makes many within training and says nothing about others
    """

    scored: Probe
    pooled: Probe
    pooled_truth: np.ndarray
    alike: bool


def copy_probes(keys: Keys, scored: str, classes: Mapping[str, np.ndarray], num_classes: int) -> list[CopyProbe]:
    """
    For each way in which posts are the same, the rule that predicts what they were before.

    Args:
        keys: of all splits
        scored: the split whose posts are predicted
        classes: split -> class ids
    """
    ways: list[tuple[str, str, Callable[[str], Sequence]]] = [
        ("whole post", ARTEFACT, keys.posts),
        ("whole post, nearly", ARTEFACT, lambda split: keys.posts(split, near=True)),
    ]
    if keys.two_parts:
        ways += [("text", SURFACE, keys.texts.__getitem__), ("text, nearly", SURFACE, keys.near_texts.__getitem__)]
        ways += [("image", SURFACE, keys.images.__getitem__), ("image, nearly", SURFACE, keys.near_images.__getitem__)]
    probes = []
    for name, kind, of in ways:
        votes: dict[Hashable, np.ndarray] = defaultdict(lambda: np.zeros(num_classes))
        earlier = _copy(of("train"), votes, classes["train"])
        across = _copy(of(scored), votes)
        if not across:
            continue
        rows = np.array(list(across))
        probe = Probe(f"copies: {name}", kind, np.array(list(across.values())), rows=rows)
        truth = np.concatenate([classes["train"][list(earlier)], classes[scored][rows]])
        predictions = np.concatenate([np.array(list(earlier.values()), dtype=int), probe.predictions])
        alike = kind == ARTEFACT or "nearly" not in name
        probes.append(CopyProbe(probe, Probe(f"{probe.name}, in training too", kind, predictions), truth, alike))
    return probes


def _copy(keys: Sequence, votes: dict[Hashable, np.ndarray], classes: np.ndarray | None = None) -> dict[int, int]:
    """
    Row -> the class that most posts with its keys have in `votes`, for rows with such. With the rows' own `classes`
    each row counts for those after it, so that a repeat is predicted by what came before and counted once.
    """
    predictions: dict[int, int] = {}
    for row, key in enumerate(keys):
        parts = _parts(key)
        count = sum((votes[part] for part in parts if part in votes), start=np.zeros(1))
        if count.any():
            predictions[row] = int(count.argmax())
        if classes is not None:
            for part in parts:
                votes[part][classes[row]] += 1
    return predictions


def _parts(key: Any) -> Collection[Hashable]:
    """A post's keys: of images a list, else one or none."""
    if isinstance(key, list):
        return set(key)
    return () if key is None else (key,)


def count_repeats(keys: Keys) -> dict[str, dict[str, int]]:
    """
    How many posts occur again, exactly: {"test in train": {"whole post": 3, "text": 9, "image": 3}, ...}; of the
    posts of one split, those after the first.
    """
    counts: dict[str, dict[str, int]] = {}
    ways: dict[str, Callable[[str], Sequence]] = {
        "whole post": keys.posts,
        "text": keys.texts.__getitem__,
        "image": keys.images.__getitem__,
    }
    for index, split in enumerate(keys.splits):
        for other in keys.splits[: index + 1]:
            name = f"within {split}" if other == split else f"{split} in {other}"
            counts[name] = {}
            for what, of in ways.items():
                seen = set() if other == split else {part for key in of(other) for part in _parts(key)}
                again = 0
                for key in of(split):
                    again += bool(seen.intersection(_parts(key)))
                    if other == split:
                        seen.update(_parts(key))
                counts[name][what] = again
    return counts


def conflicts(keys: Keys, classes: Mapping[str, np.ndarray]) -> dict[str, int]:
    """
    Posts that are the same, text and nearly the same images, in whatever split, but have different labels.

    Args:
        keys: of all splits
        classes: split -> class ids, of splits whose labels are known

    Returns:
        How many there are in how many groups, and how many of these posts no model can get right.
    """
    labels: dict[Hashable, Counter[int]] = defaultdict(Counter)
    for split, of_split in classes.items():
        whole = [
            (text, frozenset(images)) if text is not None or images else None
            for text, images in zip(keys.texts[split], keys.near_images[split])
        ]
        for key, label in zip(whole, of_split):
            if key is not None:
                labels[key][int(label)] += 1
    split_up = [counts for counts in labels.values() if len(counts) > 1]
    return {
        "groups": len(split_up),
        "posts": sum(counts.total() for counts in split_up),
        "never right": sum(counts.total() - max(counts.values()) for counts in split_up),
    }
