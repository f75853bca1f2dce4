"""Rows of posts to the tensors of a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ...processing_hf_mamba import load_rgb_image
from .image_sources import Source


if TYPE_CHECKING:
    from .image_cache import ImageCache


class PostCollator:
    """
    Rows {"id", "text", "images", "label"} to the tensors of `HFMambaProcessor` and `labels`: (b,) int64 for ids, (b,)
    float32 for numbers to be predicted, (b, num_labels) float32 for vectors of 0 and 1.

    For `Trainer(data_collator=...)` with `remove_unused_columns=False`, in any process. `labels` is there when every
    row has a label. Images are decoded here, one at a time.

    Args:
        processor: an HFMambaProcessor
        cache: an ImageCache of its image processor, to take images from
        as_bytes: pixel_values as uint8 where images have 8 bits, a quarter of the memory to move: whoever gets the
            batch makes them floats by `scale_patches`, as `PostTrainer` does
        pad_to_max_length: pad texts to the tokenizer's longest, so that batches have one shape

    Raises:
        ValueError: an image that can't be read, with its post's id, or a post that has neither text nor image.
    """

    def __init__(
        self,
        processor: Callable[..., Mapping[str, torch.Tensor]],
        cache: "ImageCache | None" = None,
        *,
        as_bytes: bool = False,
        pad_to_max_length: bool = False,
    ) -> None:
        self.processor, self.cache, self.as_bytes = processor, cache, as_bytes
        self.text_kwargs = {"padding": "max_length"} if pad_to_max_length else {}

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        texts = [row.get("text") for row in rows]
        sources: list[list[Source]] = [row.get("images") or [] for row in rows]
        load = self.cache.image if self.cache is not None else None
        images = sources if load is None else [[load(source) for source in of_post] for of_post in sources]
        try:
            batch = self._tensors(texts, images)
        except ValueError as error:
            raise self._named(rows, sources, error) from error
        labels = [row.get("label") for row in rows]
        if all(label is not None for label in labels):
            values = torch.from_numpy(np.array(labels))
            is_id = values.ndim == 1 and not values.is_floating_point()
            batch["labels"] = values.to(torch.int64 if is_id else torch.float32)
        return batch

    def _tensors(
        self, texts: Sequence[str | None], images: Sequence[Sequence[Source | Image.Image]]
    ) -> dict[str, torch.Tensor]:
        kwargs = {"text": texts, "images": images, "return_tensors": "pt", "text_kwargs": self.text_kwargs}
        if self.as_bytes:
            batch = self.processor(**kwargs, images_kwargs={"do_rescale": False, "do_normalize": False})
            if batch.get("pixel_values", torch.empty(0, dtype=torch.uint8)).dtype == torch.uint8:
                return dict(batch)
        return dict(self.processor(**kwargs))

    @staticmethod
    def _named(rows: Sequence[dict[str, Any]], images: Sequence[Sequence[Source]], error: ValueError) -> ValueError:
        """The error with the id of the post it is about, found by trying the images again."""
        for row, sources in zip(rows, images):
            for source in sources:
                try:
                    load_rgb_image(source)
                except ValueError as reason:
                    return ValueError(f"post {row.get('id')!r}: {reason}")
        return ValueError(f"{error} (ids of the batch: {', '.join(str(row.get('id')) for row in rows)})")
