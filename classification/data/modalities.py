"""Posts with one modality withheld: by chance in training (modality dropout), of all posts in evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from .posts import in_chunks


WITHOUT: dict[str, dict[str, Any]] = {"text": {"text": None}, "images": {"images": []}}


def withhold(row: dict, modality: str) -> dict:
    """The row without its "text" or its "images"."""
    return {**row, **WITHOUT[modality]}


def has_both(row: dict) -> bool:
    return row.get("text") is not None and bool(row.get("images"))


def rows_with_both(rows: Dataset) -> list[int]:
    """The numbers of the rows of a split that have a text and an image."""
    columns = [name for name in ("text", "images") if name in rows.column_names]
    both: list[int] = []
    for start, part in in_chunks(rows, columns):
        posts = [dict(zip(part, cells)) for cells in zip(*part.values())]
        both += [start + index for index, post in enumerate(posts) if has_both(post)]
    return both


class _Rows(torch.utils.data.Dataset):
    """Rows of a split, each as `change(row, number)` returns it."""

    def __init__(self, posts: Dataset | Sequence[dict]) -> None:
        self.posts = posts

    def change(self, row: dict, number: int) -> dict:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.posts)

    def __getitem__(self, number: int) -> dict:
        return self.change(self.posts[number], number)

    def __getitems__(self, numbers: Sequence[int]) -> list[dict]:
        rows = (
            self.posts.__getitems__(numbers)
            if hasattr(self.posts, "__getitems__")
            else map(self.posts.__getitem__, numbers)
        )
        return [self.change(row, number) for row, number in zip(rows, numbers)]


class Withheld(_Rows):
    """The posts of a split without their "text" or without their "images"."""

    def __init__(self, posts: Dataset | Sequence[dict], modality: str) -> None:
        super().__init__(posts)
        self.modality = modality

    def change(self, row: dict, number: int) -> dict:
        return withhold(row, self.modality)


class ModalityDropout(_Rows):
    """
    The posts of a training split; of those that have text and images, each time the share `probability` without one
    of the two; which one is drawn at random, too.

    What is drawn depends on seed, epoch and row alone: not on batch size, workers, processes or interruptions, so that
    a resumed run goes on as the whole one would have.

    Args:
        posts: the split
        probability: 0 to 1
        seed: any integer of 0 or more
    """

    def __init__(self, posts: Dataset | Sequence[dict], probability: float, seed: int) -> None:
        super().__init__(posts)
        self.probability, self.seed = probability, seed
        self.epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # also for workers that outlive an epoch

    def change(self, row: dict, number: int) -> dict:
        if not has_both(row):
            return row
        chance, which = np.random.default_rng([self.seed, int(self.epoch), number]).random(2)
        if chance >= self.probability:
            return row
        return withhold(row, "text" if which < 0.5 else "images")
