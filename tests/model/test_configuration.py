"""HFMambaConfig: what it accepts, what it refuses and how, what it saves."""

import json
import os
import shutil
import subprocess
import sys

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
        ("problem_type", "regresion", "'multi_label_classification'"),
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


FROM_THE_HUB = """
import shutil, sys
sys.modules["hf_mamba"] = None  # as if the package were not installed
from pathlib import Path
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers.utils import cached_file

hub, snapshot, out = map(Path, sys.argv[1:4])

def download(checkpoint, file, **kwargs):  # as from the Hub: one file at a time, asked for by its name
    if (hub / file).exists():
        shutil.copy(hub / file, snapshot)
    return cached_file(checkpoint, file, **kwargs)

config = AutoConfig.from_pretrained("me/model", trust_remote_code=True)
code = sys.modules[type(config).__module__.rpartition(".")[0] + ".remote_code"]
assert not Path(code.__file__).with_name("modeling_hf_mamba.py").exists()
code.cached_file = download
config.save_pretrained(out)
assert {path.name for path in hub.iterdir()} == {path.name for path in out.iterdir()}
for auto in (AutoModel, AutoModelForSequenceClassification) if sys.argv[4] == "None" else ():
    auto.from_config(AutoConfig.from_pretrained(out, trust_remote_code=True), trust_remote_code=True)
"""


@pytest.mark.parametrize("missing", [None, "block_layers.py"])
def test_config_alone_from_the_hub_is_saved_with_all_code(missing, tmp_path):
    """Loading it has fetched its own modules and no others; a module that is nowhere is warned about."""
    hub, out = tmp_path / "hub", tmp_path / "out"
    snapshot = tmp_path / "cache" / "models--me--model" / "snapshots" / ("0" * 40)
    HFMambaConfig(hidden_size=16).save_pretrained(hub)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "configuration_hf_mamba.py", "remote_code.py", "transformers_version.py"):
        shutil.copy(hub / name, snapshot)
    (refs := snapshot.parents[1] / "refs").mkdir()
    (refs / "main").write_text(snapshot.name)
    if missing:
        (hub / missing).unlink()
    folders = {"HF_HOME": "home", "HF_HUB_CACHE": "cache", "HF_MODULES_CACHE": "modules"}
    environment = os.environ | {key: str(tmp_path / folder) for key, folder in folders.items()}
    done = subprocess.run(
        [sys.executable, "-c", FROM_THE_HUB, *map(str, (hub, snapshot, out, missing))],
        env=environment | {"HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert ("was not found" in done.stderr) == (missing is not None), done.stderr
    assert missing is None or f"{missing} was not found" in done.stderr


def test_auto_map_is_not_shared_between_configs():
    first, second = HFMambaConfig(), HFMambaConfig()
    first.auto_map["AutoConfig"] = "elsewhere.Config"
    assert second.auto_map["AutoConfig"] == "configuration_hf_mamba.HFMambaConfig"
