"""The model as others' tools meet it: a plain Trainer gives the script's numbers, PEFT adapts every linear layer."""

import json

import pytest
import torch
from running import assert_same_weights
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification, HFMambaImageProcessor, HFMambaProcessor
from hf_mamba.classification.data import PostCollator
from hf_mamba.classification.data.vocabulary import train_wordpiece
from hf_mamba.classification.evaluation.metrics import compute_metrics_for_trainer
from hf_mamba.processing_hf_mamba import build_wordpiece_tokenizer


def read(folder):
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text("utf-8").splitlines()]
    names = sorted({row["label"] for row in rows})
    return [
        {"text": row["text"], "images": [str(folder / row["file_name"])], "label": names.index(row["label"])}
        for row in rows
    ], names


def test_a_plain_trainer_gives_the_scripts_numbers(finished, folder, tmp_path):
    """As README's own-script example does it: own rows, the package's collator, transformers' Trainer."""
    (train, names), (validation, _) = read(folder / "train"), read(folder / "validation")
    set_seed(42)
    vocabulary = train_wordpiece((post["text"] for post in train), vocab_size=500)
    tokenizer = build_wordpiece_tokenizer(vocabulary, max_length=16)
    image_processor = HFMambaImageProcessor(size={"height": 32, "width": 32}, patch_size=16)
    processor = HFMambaProcessor(image_processor=image_processor, tokenizer=tokenizer)
    config = HFMambaConfig(
        vocab_size=len(tokenizer), image_size=32, patch_size=16, hidden_size=16, state_size=4, num_text_layers=1,
        num_image_layers=1, num_fusion_layers=1, id2label=dict(enumerate(names)),
    )  # fmt: skip
    arguments = TrainingArguments(
        tmp_path, remove_unused_columns=False, report_to="none", use_cpu=True, disable_tqdm=True, save_strategy="no",
        eval_strategy="epoch", num_train_epochs=2, per_device_train_batch_size=8, learning_rate=1e-3,
        lr_scheduler_type="cosine", warmup_steps=0.05, weight_decay=0.05, per_device_eval_batch_size=128,
    )  # fmt: skip
    trainer = Trainer(
        model=HFMambaForSequenceClassification(config), args=arguments, train_dataset=train, eval_dataset=validation,
        data_collator=PostCollator(processor), processing_class=processor,
        compute_metrics=compute_metrics_for_trainer(names),
    )  # fmt: skip
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    assert_same_weights(tmp_path / "saved", finished[0] / "checkpoint-12")
    script = json.loads((finished[0] / "checkpoint-12" / "trainer_state.json").read_text())["log_history"][-1]
    evaluated = trainer.evaluate()
    for name in ("eval_loss", "eval_accuracy", "eval_f1_macro", "eval_num_posts"):
        assert evaluated[name] == script[name]


@pytest.fixture
def lora():
    """A small model whose linear layers all have LoRA weights, none of them zero, and a batch for it."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = HFMambaConfig(
        vocab_size=30, hidden_size=16, state_size=4, num_text_layers=1, num_image_layers=1, num_fusion_layers=1,
        image_size=16, patch_size=8, num_labels=2, hidden_dropout=0, classifier_dropout=0, bidirectional=True,
    )  # fmt: skip
    adapter = peft.LoraConfig(
        r=2, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["classifier"], init_lora_weights=False
    )
    model = peft.get_peft_model(HFMambaForSequenceClassification(config), adapter)
    return model, {"input_ids": torch.randint(2, 30, (3, 5)), "pixel_values": torch.randn(3, 4, 192)}


def test_lora_trains_every_linear_layer_and_nothing_else(lora):
    model, batch = lora
    linear = [name for name, module in model.base_model.model.model.named_modules() if hasattr(module, "lora_A")]
    plain = HFMambaForSequenceClassification(model.config).model
    assert len([name for name in linear if not name.endswith("lora_A")]) == len(
        [module for module in plain.modules() if isinstance(module, nn.Linear)]
    )
    model.train()(**batch, labels=torch.tensor([0, 1, 0])).loss.backward()
    for name, parameter in model.named_parameters():
        if "lora_" in name or "classifier.modules_to_save" in name:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


@torch.no_grad()
def test_lora_saves_reloads_and_merges_to_the_same_logits(lora, tmp_path):
    from peft import PeftModel

    model, batch = lora
    model.eval()
    expected = model(**batch).logits
    with model.disable_adapter():
        assert not torch.allclose(model(**batch).logits, expected, atol=1e-3)
    model.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(0)
    base = HFMambaForSequenceClassification(model.config)
    reloaded = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(reloaded(**batch).logits, expected)
    merged = reloaded.merge_and_unload()
    torch.testing.assert_close(merged(**batch).logits, expected, rtol=0, atol=1e-5)
