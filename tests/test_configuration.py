"""HFMambaConfig: what it accepts, what it refuses and how, what it saves."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from hf_mamba import HFMambaConfig


@pytest.mark.parametrize(
    ("field", "value", "fix"),
    [
        ("pooling", "average", "'mean_max', 'mean', 'max', 'last'"),
        ("fusion", "late", "'hierarchical', 'flatten'"),
        ("backbone", "lstm", "'mamba', 'self_attention', 'transformer'"),
        ("gating", "times", "'multiply', 'add'"),
        ("segment_embeddings", "zeros", "'learned', 'none'"),
        ("hidden_size", 63, "62 or 64"),
        ("hidden_size", 0, "1 or more"),
        ("hidden_size", "64", "expected int"),
        ("image_size", 100, "96"),
        ("num_text_layers", -1, "0 or more"),
        ("hidden_dropout", 1.0, "below 1"),
        ("label_smoothing", -0.1, "at least 0"),
        ("time_step_rank", "automatic", "'auto'"),
        ("time_step_max", 1e-5, "time_step_min"),
        ("class_weights", [1.0, -1.0], "0 or more"),
    ],
)
def test_bad_value_names_field_value_and_fix(field, value, fix):
    with pytest.raises(StrictDataclassError) as error:
        HFMambaConfig(**{field: value})
    for part in (field, str(value), fix):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("fields", "fix"),
    [
        ({"backbone": "transformer", "num_attention_heads": 5}, "must divide hidden_size (64): 1, 2, 4, 8, 16"),
        ({"num_text_layers": 0, "num_image_layers": 0, "num_fusion_layers": 0}, "set num_text_layers"),
        ({"fusion": "flatten", "num_fusion_layers": 0}, "set num_fusion_layers"),
        ({"backbone": "transformer", "bidirectional": True}, "already looks both ways"),
    ],
)
def test_fields_that_contradict_each_other(fields, fix):
    with pytest.raises(StrictDataclassError) as error:
        HFMambaConfig(**fields)
    assert fix in str(error.value)


def test_heads_matter_only_with_attention():
    HFMambaConfig(num_attention_heads=5)


def test_paper_values_are_the_defaults():
    config = HFMambaConfig()
    assert (config.hidden_size, config.image_size, config.patch_size) == (64, 224, 16)
    assert (config.num_text_layers, config.num_image_layers, config.num_fusion_layers) == (5, 5, 5)
    assert (config.num_patches, config.patch_dim, config.intermediate_size) == (196, 768, 128)


def test_labels_are_complete_whichever_side_is_given():
    assert HFMambaConfig(id2label={0: "a", 1: "b", 2: "c"}).label2id == {"a": 0, "b": 1, "c": 2}
    assert HFMambaConfig(num_labels=5).label2id["LABEL_4"] == 4


def test_save_and_reload_is_the_identity(tmp_path):
    config = HFMambaConfig(hidden_size=32, pooling="max", class_weights=[1.0, 2.0], hidden_dropout=0)
    config.save_pretrained(tmp_path)
    assert HFMambaConfig.from_pretrained(tmp_path).to_dict() == {**config.to_dict(), "hidden_dropout": 0}


def test_auto_map_names_every_class_and_its_module_is_saved(tmp_path):
    HFMambaConfig().save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert {
        "AutoConfig",
        "AutoModel",
        "AutoModelForSequenceClassification",
        "AutoProcessor",
        "AutoImageProcessor",
    } == {*auto_map}
    for target in auto_map.values():
        module, name = target.split(".")
        assert f"class {name}(" in (tmp_path / f"{module}.py").read_text()
    assert (tmp_path / "selective_scan.py").is_file()  # imported by the model's module


def test_auto_map_is_not_shared_between_configs():
    first, second = HFMambaConfig(), HFMambaConfig()
    first.auto_map["AutoConfig"] = "elsewhere.Config"
    assert second.auto_map["AutoConfig"] == "configuration_hf_mamba.HFMambaConfig"
