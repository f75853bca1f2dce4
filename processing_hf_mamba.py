"""Posts to tensors: images to patches, texts to word pieces, both to one padded batch.

With b posts, n text tokens, m image patches, p patch size, c channels:

    input_ids             (b, n)        int64     absent when no post of the batch has text
    attention_mask        (b, n)        int64     a row of zeros for a post without text
    pixel_values          (b, m, p*p*c) float32   the patches of all images of a post end to end; absent without images
    pixel_attention_mask  (b, m)        int64     a row of zeros for a post without image
"""

from .transformers_version import check_transformers_version  # noqa: F401 - before what older versions lack


# isort: split
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import BertTokenizer, PreTrainedTokenizerFast
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import ChannelDimension, ImageInput, infer_channel_dimension_format, load_image
from transformers.processing_utils import ImagesKwargs, ProcessingKwargs, ProcessorMixin, Unpack
from transformers.utils import logging

from .configuration_hf_mamba import HFMambaConfig
from .image_patches import (
    BYTES,
    ImageSource,
    check_grid,
    cut_into_patches,
    floats_to_rgb,
    read_image,
    resize,
    scale_patches,
    to_8_bit,
    to_rgb,
)
from .remote_code import check_before_upload, code_left_in_place


logger = logging.get_logger(__name__)
PAD_TOKEN, UNK_TOKEN = "[PAD]", "[UNK]"
_ARRAYS = (np.ndarray, torch.Tensor)


def load_rgb_image(source: ImageSource) -> Image.Image:
    """`read_image` of an image in RGB; a URL is fetched as transformers does. Raises its ValueError."""
    return read_image(source, fetch=load_image)


def _is_list(value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, *BYTES))


def _flatten(images) -> list:
    """Make a flat list of one image, a 4-D array of images, or lists of them."""
    if _is_list(images):
        return [image for entry in images for image in _flatten(entry)]
    return list(images) if isinstance(images, _ARRAYS) and images.ndim == 4 else [images]


class HFMambaImageProcessorKwargs(ImagesKwargs, total=False):
    """patch_size (`int`): side of a square patch in pixels; `size` must be a multiple of it.
    reduce_jpeg (`bool`): decode a large JPEG at a reduced scale, never below twice `size`: several times faster, and
        pixels that differ by a few of 255 levels. Images that come decoded, as PIL images, stay as they are.
    """

    patch_size: int
    reduce_jpeg: bool


class HFMambaImageProcessor(PilBackend):
    """Images to patches: RGB, resize to a square, rescale, normalise, cut into patches.

    Takes one image or a list of them: whatever `load_rgb_image` takes, or an array or tensor (h, w), (h, w, c) or
    (c, h, w); floats are taken on the scale 0..255 unless `do_rescale=False`, as in transformers. Returns

        pixel_values           (images, patches, patch_size**2 * c) float32; of 8-bit images with neither do_rescale
                               nor do_normalize uint8
        pixel_attention_mask   (images, patches) int64, all ones

    Raises:
        ValueError: an unreadable image (named), or a `size` that isn't a square or not a multiple of `patch_size`.
    """

    _auto_class = "AutoImageProcessor"
    valid_kwargs = HFMambaImageProcessorKwargs
    model_input_names = ["pixel_values", "pixel_attention_mask"]
    do_convert_rgb = do_resize = do_rescale = do_normalize = True
    size = {"height": 224, "width": 224}
    resample = Image.Resampling.BILINEAR
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    patch_size = 16
    reduce_jpeg = False

    def __init__(self, **kwargs: Unpack[HFMambaImageProcessorKwargs]):
        super().__init__(**kwargs)
        check_grid(self.size, self.patch_size)
        own = {"AutoImageProcessor": "processing_hf_mamba.HFMambaImageProcessor"}
        self.auto_map = getattr(self, "auto_map", {}) | own

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        with code_left_in_place(save_directory, self):
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_dict(self) -> dict:
        return {key: value for key, value in super().to_dict().items() if key != "_auto_class"}

    def fetch_images(self, images):
        """Load paths, URLs and bytes, in lists too, by `load_rgb_image`; leave images and arrays as they are."""
        if _is_list(images):
            return [self.fetch_images(entry) for entry in images]
        return images if isinstance(images, (*_ARRAYS, Image.Image)) else load_rgb_image(images)

    def _validate_preprocess_kwargs(self, size=None, patch_size=None, **kwargs):
        super()._validate_preprocess_kwargs(size=size, **kwargs)
        check_grid(size, patch_size)
        if kwargs.get("do_center_crop") or kwargs.get("do_pad"):
            raise ValueError("do_center_crop and do_pad are not supported: images become one square")

    def _prepare_image_like_inputs(self, images: ImageInput, *args, expected_ndims: int = 3, **kwargs) -> list:
        # One by one from file to small square, so that a batch of photos never lies in memory at full size.
        images, prepared = _flatten(images), []
        for index, image in enumerate(images):
            try:
                prepared.append(self.process_image(image, **kwargs))
            except ValueError as error:
                where = f"image {index} of {len(images)}: " if len(images) > 1 else ""
                raise ValueError(f"{where}{error}") from error
        return prepared

    def process_image(
        self,
        image,
        do_convert_rgb=None,
        input_data_format=None,
        do_resize=None,
        size=None,
        resample=None,
        reduce_jpeg=None,
        **kwargs,
    ) -> np.ndarray:
        """Turn one image of any kind into pixels (height, width, channels), resized where `do_resize` says so."""
        if isinstance(image, _ARRAYS):
            pixels = self._array_to_pixels(image, do_convert_rgb, input_data_format, kwargs.get("do_rescale"))
        else:
            reduce_to = 2 * size.height if do_resize and reduce_jpeg else None
            pixels = read_image(image, bool(do_convert_rgb), reduce_to, fetch=load_image)
        if do_resize:
            pixels = resize(pixels, size.height, resample)
        return np.atleast_3d(np.asarray(pixels))

    def _array_to_pixels(self, array, do_convert_rgb, input_data_format, do_rescale):
        """(height, width), (h, w, c) or (c, h, w) to a PIL image where 8 bits and RGB will do, else to (h, w, c)."""
        if isinstance(array, torch.Tensor):
            array = (array.detach().float() if array.is_floating_point() else array).cpu().numpy()
        if array.ndim not in (2, 3) or array.size == 0:
            raise ValueError(f"an image array must be (h, w), (h, w, c) or (c, h, w) and not empty, got {array.shape}")
        if array.ndim == 2:
            array, input_data_format = array[:, :, None], ChannelDimension.LAST
        input_data_format = input_data_format or infer_channel_dimension_format(array, num_channels=(1, 3, 4))
        if input_data_format == ChannelDimension.FIRST:
            array = np.moveaxis(array, 0, -1)
        if array.dtype.kind != "f" and array.dtype != np.uint8:
            array = to_8_bit(array)
        if array.dtype.kind == "f" and do_rescale and array.min() >= 0 and array.max() <= 1:
            logger.warning_once("Images of floats within 0..1 are divided by 255 again: pass do_rescale=False.")
        if not do_convert_rgb:
            return array
        if array.dtype == np.uint8 and array.shape[-1] in (1, 3, 4):
            array = np.ascontiguousarray(array[:, :, 0] if array.shape[-1] == 1 else array)
            return to_rgb(Image.fromarray(array))
        return floats_to_rgb(array)

    def _preprocess(
        self, images, size, patch_size, do_rescale, do_normalize, image_mean, image_std, return_tensors, **kwargs
    ) -> BatchFeature:
        if not images:
            raise ValueError("no image given: pass one image or a list of at least one")
        expected = (size.height, size.width, images[0].shape[-1])
        wrong = next((image.shape for image in images if image.shape != expected), None)
        if wrong:
            raise ValueError(f"image (h, w, c) is {wrong}, not {expected}: use do_resize, do_convert_rgb or that size")
        patches = cut_into_patches(np.stack(images), patch_size)
        if do_normalize:
            for name, statistic in (("image_mean", image_mean), ("image_std", image_std)):
                if np.size(statistic) not in (1, expected[-1]):
                    raise ValueError(f"{name} {statistic} does not fit images of {expected[-1]} channels")
        if do_rescale or do_normalize or patches.dtype != np.uint8:
            patches = patches.astype(np.float32)
            statistics = (image_mean, image_std) if do_normalize else (None, None)
            scale_patches(patches, kwargs["rescale_factor"] if do_rescale else None, *statistics)
        data = {"pixel_values": patches, "pixel_attention_mask": np.ones(patches.shape[:2], dtype=np.int64)}
        if return_tensors is None:
            data = {name: list(array) for name, array in data.items()}
        return BatchFeature(data, tensor_type=return_tensors)


def clean_text(text: str | None) -> str:
    """Collapse white space, drop NUL characters and mend lone surrogates, which a tokenizer refuses.

    All else stays as it is, HTML entities too: what a text means is up to who wrote it.
    """
    text = " ".join((text or "").replace("\0", "").split())
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _align_posts(text, images) -> tuple[list[str | None], list[list]]:
    """Bring what a caller may pass into one text (or None) and one list of images per post."""
    if isinstance(images, _ARRAYS) and images.ndim == 4:
        images = list(images)
    if isinstance(text, str):
        text = [text]
        if _is_list(images) and not any(entry is None or _is_list(entry) for entry in images):
            images = [images]  # a flat list beside one text: several images of that post
    elif text is not None and not _is_list(text):
        raise ValueError(f"text must be a string or a list of strings and None, got {type(text).__name__}")
    if images is not None and not _is_list(images):
        images = [images]
    if not text and not images:
        raise ValueError("nothing to process: pass `text`, `images` or both")
    texts = [None] * len(images) if text is None else list(text)
    for row, entry in enumerate(texts):
        if entry is not None and not isinstance(entry, str):
            fix = "join pre-tokenized words with spaces" if _is_list(entry) else "pass a string or None"
            raise ValueError(f"text of row {row} is a {type(entry).__name__} ({str(entry)[:80]!r}): {fix}")
    posts = [[]] * len(texts) if images is None else [[] if entry is None else _flatten(entry) for entry in images]
    if len(texts) != len(posts):
        counts = f"{len(texts)} texts but images for {len(posts)} posts"
        raise ValueError(f"{counts}: `images` needs one entry per post, an image, a list of images, or None")
    return texts, posts


class HFMambaProcessorKwargs(ProcessingKwargs, total=False):
    """How texts are tokenized by default; only `_defaults` is read by every transformers since 5.10."""

    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class HFMambaProcessor(ProcessorMixin):
    """Posts, each a text, images or both, to the tensors listed at the top of this file.

    `tokenizer` is any of transformers' (`build_wordpiece_tokenizer` makes the paper's kind); without an
    `image_processor`, one with the defaults is made.
    """

    _auto_class = "AutoProcessor"
    unused_input_names = ["token_type_ids"]
    valid_processor_kwargs = HFMambaProcessorKwargs

    def __init__(self, image_processor=None, tokenizer=None, **kwargs):
        super().__init__(HFMambaImageProcessor() if image_processor is None else image_processor, tokenizer, **kwargs)
        self.auto_map = {"AutoProcessor": "processing_hf_mamba.HFMambaProcessor"}

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        with code_left_in_place(save_directory, self, self.image_processor):
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """The one way to the Hub, for `push_to_hub` and `save_pretrained(push_to_hub=True)`: checked before it."""
        check_before_upload(self, working_dir, repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def __call__(
        self,
        images: ImageInput | list | None = None,
        text: str | list[str | None] | None = None,
        **kwargs: Unpack[HFMambaProcessorKwargs],
    ) -> BatchFeature:
        """Process one post or a batch of posts.

        Args:
            images: with one text (a `str`), the image or images of that post. Else one entry per post: an image, a
                list of images, None or [].
            text: one text, or one text or None per post. White space is collapsed.
            kwargs: as in transformers: `return_tensors`, `max_length`, `size`, `text_kwargs={...}`, ...

        Raises:
            ValueError: counts differ, an image is unreadable, or a post (named by row) has no image and no text token.
        """
        texts, posts = _align_posts(text, images)
        merged = self._merge_kwargs(HFMambaProcessorKwargs, self.tokenizer.init_kwargs, **kwargs)
        return_tensors = merged["text_kwargs"].pop("return_tensors", None)
        tokens, has_text = self._encode_texts(texts, merged["text_kwargs"])
        empty = [row for row, post in enumerate(posts) if not post and not has_text[row]]
        if empty:
            rows = ", ".join(map(str, empty))
            raise ValueError(f"row {rows} of the batch has neither text nor an image: drop it, or give it one of them")
        data = tokens if any(has_text) else {}
        if any(posts):
            arrays = self._encode_images(posts, merged["images_kwargs"])
            data |= arrays if return_tensors is not None else {name: list(array) for name, array in arrays.items()}
        data = {name: values for name, values in data.items() if name not in self.unused_input_names}
        return BatchFeature(data, tensor_type=return_tensors)

    def _encode_texts(self, texts: list[str | None], text_kwargs: dict) -> tuple[dict, list[bool]]:
        """Tokenize; return the tokenizer's lists and, for each row, whether it holds a token of text."""
        refused = ("is_split_into_words", "return_overflowing_tokens", "text_pair", "text_target", "text_pair_target")
        refused = [name for name in refused if text_kwargs.get(name)]
        if refused:
            raise ValueError(f"{', '.join(refused)} is not supported: a post has one text, a string, and one row")
        show_special = text_kwargs.get("return_special_tokens_mask", False)
        text_kwargs = text_kwargs | {"return_attention_mask": True, "return_special_tokens_mask": True}
        tokens = dict(self.tokenizer([clean_text(text) for text in texts], **text_kwargs))
        special = tokens["special_tokens_mask"] if show_special else tokens.pop("special_tokens_mask")
        has_text = []
        for row, (mask, special_row) in enumerate(zip(tokens["attention_mask"], special)):
            has_text.append(any(real and not added for real, added in zip(mask, special_row)))
            if not has_text[row]:  # a missing text is a masked part, whatever the tokenizer puts around it
                tokens["input_ids"][row] = [self.tokenizer.pad_token_id or 0] * len(mask)
                tokens["attention_mask"][row] = [0] * len(mask)
        return tokens, has_text

    def _encode_images(self, posts: list[list], images_kwargs: dict) -> dict[str, np.ndarray]:
        """Cut the images of all posts into patches; join those of a post and pad with zeros to the longest."""
        images = [image for post in posts for image in post]
        patches = self.image_processor(images, **images_kwargs | {"return_tensors": "np"})["pixel_values"]
        _, per_image, width = patches.shape
        if len({len(post) for post in posts}) == 1:  # nothing to pad, nothing to copy
            values = patches.reshape(len(posts), -1, width)
            return {"pixel_values": values, "pixel_attention_mask": np.ones(values.shape[:2], dtype=np.int64)}
        mask = np.zeros((len(posts), max(map(len, posts)) * per_image), dtype=np.int64)
        values = np.zeros((*mask.shape, width), dtype=patches.dtype)
        for row, own in enumerate(np.split(patches, np.cumsum([len(post) for post in posts])[:-1])):
            values[row, : len(own) * per_image] = own.reshape(-1, width)
            mask[row, : len(own) * per_image] = 1
        return {"pixel_values": values, "pixel_attention_mask": mask}

    @classmethod
    def _get_arguments_from_pretrained(cls, path, processor_dict=None, **kwargs):
        # Names our own image processor, so that loading needs neither remote code nor an Auto registration. Unless the
        # caller trusts remote code, the tokenizer gets False, and given a config of ours: asked nothing, it would
        # prompt about the code that config.json names, and warn that it does not know this type of model.
        trust = {"trust_remote_code": bool(kwargs.pop("trust_remote_code", None))}
        if not trust["trust_remote_code"]:
            trust["config"] = HFMambaConfig()
        try:
            tokenizer = cls._load_tokenizer_from_pretrained("tokenizer", path, **kwargs, **trust)
        except (ValueError, TypeError, KeyError) as error:  # whose words are about converting tokenizers
            raise ValueError(
                f"{path} holds no vocabulary that can be loaded: it should have a sound tokenizer.json, as "
                "`processor.save_pretrained` writes it"
            ) from error
        return [HFMambaImageProcessor.from_pretrained(path, **kwargs), tokenizer]


def build_wordpiece_tokenizer(vocab: dict[str, int] | list[str], *, max_length: int = 64) -> PreTrainedTokenizerFast:
    """Make a lower-casing WordPiece tokenizer of a vocabulary: BERT's, without [CLS] and [SEP].

    Args:
        vocab: the pieces in the order of their ids, or each with its id (0, 1, 2, ...). [PAD] has id 0, [UNK] id 1.
        max_length: longer texts are cut to this many tokens.

    Raises:
        ValueError: a piece or an id occurs twice or is left out, or [PAD] and [UNK] are not the first two.
    """
    ids = dict(vocab) if isinstance(vocab, dict) else {piece: index for index, piece in enumerate(vocab)}
    in_place = ids.get(PAD_TOKEN) == 0 and ids.get(UNK_TOKEN) == 1
    if not in_place or sorted(ids.values()) != list(range(len(vocab))):
        found = f"{len(ids)} pieces, {PAD_TOKEN} as {ids.get(PAD_TOKEN)} and {UNK_TOKEN} as {ids.get(UNK_TOKEN)}"
        raise ValueError(
            f"vocab needs each piece once, ids 0, 1, 2, ..., first {PAD_TOKEN}, then {UNK_TOKEN}: got {found}"
        )
    bert = BertTokenizer(vocab=ids, do_lower_case=True, cls_token=None, sep_token=None, mask_token=None)
    backend = bert.backend_tokenizer
    # A BertTokenizer puts [CLS] and [SEP] back whenever it is loaded; the generic class keeps the backend as saved.
    backend.post_processor = None
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD_TOKEN,
        unk_token=UNK_TOKEN,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
