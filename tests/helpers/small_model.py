"""A small model in all its variants, and posts for it, as tensors and in batches."""

import itertools

import pytest
import torch

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification


NUM_LABELS = 3
SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_text_layers": 1,
    "num_image_layers": 2,
    "num_fusion_layers": 1,
    "state_size": 4,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": NUM_LABELS,
}
BACKBONES = ["mamba", "self_attention", "transformer"]
VARIANTS = [
    *({"backbone": b, "fusion": f, "pooling": p}
      for b, f, p in itertools.product(BACKBONES, ["hierarchical", "flatten"], ["mean_max", "mean", "max", "last"])),
    {"gating": "add"},
    {"bidirectional": True},
    {"bidirectional": True, "gating": "add", "pooling": "max"},
    {"segment_embeddings": "none"},
    {"num_text_layers": 0},
    {"num_fusion_layers": 0},
    {"use_bias": True, "use_conv_bias": False},
]  # fmt: skip
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))


def make_model(cls=HFMambaForSequenceClassification, **fields):
    torch.manual_seed(0)
    model = cls(HFMambaConfig(**{**SMALL, **fields})).eval()
    with torch.no_grad():  # away from the initial values, at which biases and D could hide a mistake
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_posts(config, texts=(7, 3, 0, 5), images=(1, 2, 1, 0), seed=0):
    """Posts as lists of (token ids, patches): `texts` tokens and `images` images each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randint(2, config.vocab_size, (n,), generator=generator),
            torch.randn(k * config.num_patches, config.patch_dim, generator=generator),
        )
        for n, k in zip(texts, images)
    ]


def pad(rows, length, side="right", fill=0.0):
    """Rows of unequal length as one tensor and its mask."""
    values = rows[0].new_full((len(rows), length, *rows[0].shape[1:]), fill)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        values[i, where], mask[i, where] = row, 1
    return values, mask


def batch(posts, *, side="right", extra_text=0, extra_image=0, fill=0.0):
    texts, images = zip(*posts)
    input_ids, attention_mask = pad(texts, max(map(len, texts)) + extra_text, side)
    pixel_values, pixel_attention_mask = pad(images, max(map(len, images)) + extra_image, side, fill)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": pixel_values,
        "pixel_attention_mask": pixel_attention_mask,
    }


def alone(post):
    """One post without any padding, a missing part left out."""
    text, image = post
    inputs = {"input_ids": text[None]} if len(text) else {}
    return inputs | ({"pixel_values": image[None]} if len(image) else {})


def loss_inputs(model):
    return batch(make_posts(model.config))
