"""The model exported by torch.export: sizes of batches, texts and images other than those of the example."""

import pytest
import torch
from small_model import BACKBONES, batch, make_model, make_posts


FUSIONS, POOLINGS = ["hierarchical", "flatten"], ["mean_max", "mean", "max", "last"]
# quick: every backbone with every fusion, every pooling; the other combinations are slow
VARIANTS = [
    pytest.param(
        {"backbone": backbone, "fusion": fusion, "pooling": pooling},
        marks=[] if pooling == "mean_max" or (backbone, fusion) == ("mamba", "hierarchical") else pytest.mark.slow,
        id=f"{backbone}-{fusion}-{pooling}",
    )
    for backbone in BACKBONES
    for fusion in FUSIONS
    for pooling in POOLINGS
]
POSTS = [  # tokens and images of the posts of a batch
    ((7, 3, 0, 5), (1, 2, 1, 0)),
    ((2,), (1,)),
    ((9, 9), (3, 3)),
    ((1, 4, 30), (1, 0, 5)),
]


def export(model, inputs):
    """A program whose batch, length of texts and number of patches are free."""
    b, n, m = (torch.export.Dim(name) for name in ("b", "n", "m"))
    sizes = {name: {0: b, 1: m if name.startswith("pixel") else n} for name in inputs}
    return torch.export.export(model, (), inputs, dynamic_shapes=sizes)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_an_exported_model_takes_other_sizes(variant):
    model = make_model(**variant)
    program = export(model, batch(make_posts(model.config))).module()
    for texts, images in POSTS:
        inputs = batch(make_posts(model.config, texts=texts, images=images), side="left", extra_text=1)
        torch.testing.assert_close(program(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", [{"bidirectional": True}, {"gating": "add"}, {"num_text_layers": 0}], ids=str)
@torch.no_grad()
def test_other_variants_are_exported_too(variant):
    model = make_model(**variant)
    program = export(model, batch(make_posts(model.config))).module()
    inputs = batch(make_posts(model.config, texts=(2, 8, 1), images=(2, 1, 1)))
    torch.testing.assert_close(program(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("modality", ["text", "image"])
@torch.no_grad()
def test_one_modality_alone_is_exported_without_masks(backbone, modality):
    """As a caller exports who has no padding."""
    model = make_model(backbone=backbone)
    name = "input_ids" if modality == "text" else "pixel_values"
    program = export(model, {name: batch(make_posts(model.config, (5, 5), (2, 2)))[name]}).module()
    for texts, images in (((3,), (1,)), ((6, 6, 6), (3, 3, 3))):
        inputs = {name: batch(make_posts(model.config, texts, images))[name]}
        torch.testing.assert_close(program(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)
