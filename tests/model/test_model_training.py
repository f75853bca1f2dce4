"""Losses, gradients, initial values, and what a plain Trainer does with the model."""

import pytest
import torch
from small_model import batch, each_variant, loss_inputs, make_model, make_posts
from transformers import Trainer, TrainingArguments

from hf_mamba import HFMambaConfig, HFMambaModel


# --- losses


@pytest.mark.parametrize("problem_type", ["single_label_classification", None])
def test_single_label_loss(problem_type):
    model = make_model(problem_type=problem_type, class_weights=[1.0, 2.0, 0.5], label_smoothing=0.1)
    labels = torch.tensor([0, 1, 2, 1])
    outputs = model(**loss_inputs(model), labels=labels)
    expected = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1)
    torch.testing.assert_close(outputs.loss, expected(outputs.logits, labels))


@pytest.mark.parametrize("problem_type", ["multi_label_classification", None])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_multi_label_loss(problem_type, weights):
    """Weights are the labels', not the rows'."""
    model = make_model(problem_type=problem_type, class_weights=weights)
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    outputs = model(**loss_inputs(model), labels=labels)
    expected = torch.nn.BCEWithLogitsLoss(weight=weights and torch.tensor(weights))
    torch.testing.assert_close(outputs.loss, expected(outputs.logits, labels))


@pytest.mark.parametrize("problem_type", ["regression", None])
def test_regression_loss(problem_type):
    model = make_model(problem_type=problem_type, num_labels=1)
    labels = torch.tensor([0.5, -1.0, 3.0, 2.0])
    outputs = model(**loss_inputs(model), labels=labels)
    torch.testing.assert_close(outputs.loss, torch.nn.MSELoss()(outputs.logits[:, 0], labels))


def test_class_weights_must_fit_the_labels():
    with pytest.raises(ValueError, match="class_weights has 2 weights for num_labels=3"):
        make_model(class_weights=[1.0, 1.0])


# --- training


@each_variant
def test_every_parameter_learns(variant):
    model = make_model(**variant).train()
    model(**loss_inputs(model), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(use_reentrant):
    model = make_model(hidden_dropout=0, classifier_dropout=0).train()
    inputs = loss_inputs(model) | {"labels": torch.tensor([0, 1, 2, 0])}
    model(**inputs).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def make_trainer(model, output_dir, rows=None, **arguments):
    """transformers' own, as any user of a checkpoint would make it."""
    arguments |= {"output_dir": output_dir, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(use_cpu=True, remove_unused_columns=False, max_steps=1, **arguments)
    return Trainer(model=model, args=arguments, train_dataset=rows)


@pytest.mark.parametrize(("problem_type", "num_labels"), [("multi_label_classification", 3), ("regression", 1)])
def test_accumulated_gradients_are_those_of_one_batch(problem_type, num_labels, tmp_path):
    fields = {"problem_type": problem_type, "num_labels": num_labels, "hidden_dropout": 0, "classifier_dropout": 0}
    weights = []
    for size in (8, 4):
        model = make_model(**fields)
        inputs = batch(make_posts(model.config, texts=[5] * 8, images=[1] * 8))
        generator = torch.Generator().manual_seed(0)
        inputs["labels"] = torch.rand(8, num_labels, generator=generator).round()
        rows = [{name: values[i] for name, values in inputs.items()} for i in range(8)]
        sgd = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0}
        steps = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        make_trainer(model, tmp_path, rows, **sgd, **steps).train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    untrained = torch.cat([parameter.detach().flatten() for parameter in make_model(**fields).parameters()])
    assert (weights[0] - untrained).abs().max() > 1e-3
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-6)


@each_variant
def test_a_plain_trainer_decays_weights_alone(variant, tmp_path):
    """No A_log, no D, no norm, no bias."""
    model = make_model(**variant)
    layers = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Embedding)
    expected = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, layers)}
    assert {*make_trainer(model, tmp_path).get_decay_parameter_names(model)} == expected


def test_initial_values():
    torch.manual_seed(0)
    model = HFMambaModel(HFMambaConfig())
    embedded = model.embeddings.forward_text(
        model.embeddings.token_embeddings(torch.arange(2000)[None]), torch.ones(1, 2000).bool()
    )
    tokens = model.embeddings.token_embeddings.weight * model.embeddings.scale
    assert 0.5 < tokens.square().mean().sqrt() / 0.5**0.5 < 2  # comparable to the sinusoid's RMS
    assert embedded.hidden_states.isfinite().all()
    ssm = model.text_stack.layers[0].mixer.ssm
    delta = torch.nn.functional.softplus(ssm.dt_proj.bias)
    assert delta.min() >= 0.001 * 0.99 and delta.max() <= 0.1 * 1.01
    torch.testing.assert_close(ssm.bias_like.A_log.exp()[5], torch.arange(1.0, 17))
    assert (ssm.bias_like.D == 1).all()
