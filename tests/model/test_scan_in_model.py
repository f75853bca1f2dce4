"""Every implementation of the scan that runs on this CPU, inside the model: exactness whatever computes it."""

import pytest
import torch
from scan_checks import IMPLEMENTATIONS
from small_model import alone, batch, make_model, make_posts

from hf_mamba import HFMambaForSequenceClassification


@pytest.mark.parametrize("variant", [{}, {"bidirectional": True}, {"gating": "add"}, {"state_size": 7}], ids=str)
@pytest.mark.parametrize("implementation", ["auto", "reference", *IMPLEMENTATIONS])
@torch.no_grad()
def test_padding_company_and_reloading_change_no_logit(implementation, variant, tmp_path):
    model = make_model(**variant)
    model.set_scan_implementation(implementation)
    posts = make_posts(model.config, texts=(7, 3, 0, 5, 40), images=(1, 2, 1, 0, 9))
    expected = torch.cat([model(**alone(post)).logits for post in posts])
    for side, extra_text, extra_image in [("right", 0, 0), ("left", 4, 8), ("right", 30, 3)]:
        inputs = batch(posts, side=side, extra_text=extra_text, extra_image=extra_image)
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-5)
    company = [*posts, *make_posts(model.config, texts=(6,) * 30, images=(1,) * 30, seed=1)]
    torch.testing.assert_close(model(**batch(company)).logits[: len(posts)], expected, rtol=0, atol=1e-5)

    model.save_pretrained(tmp_path)
    reloaded = HFMambaForSequenceClassification.from_pretrained(tmp_path, scan_implementation=implementation)
    assert torch.equal(reloaded(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_model_says_what_computes_its_recurrence(implementation):
    model = make_model()
    model.set_scan_implementation(implementation)
    assert model.describe_scan() == f"The recurrence runs on cpu by: {implementation}."
    assert "nothing" in make_model(backbone="transformer").describe_scan()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_step_has_the_references_gradients(implementation):
    gradients = []
    for name in ("reference", implementation):
        model = make_model(hidden_dropout=0, classifier_dropout=0).train()
        model.set_scan_implementation(name)
        inputs = batch(make_posts(model.config))
        model(**inputs, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-5, msg=name)
