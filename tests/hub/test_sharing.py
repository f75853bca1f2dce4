"""Sharing over HTTP, with a Hub on loopback: what arrives works without the package, what would not isn't uploaded."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from hub_server import running_hub
from running import command, refused, without_numba

from hf_mamba import HFMambaForSequenceClassification, HFMambaProcessor
from hf_mamba.classification import share


TOKENS = {"hf_mine": ("me", "write"), "hf_reader": ("me", "read"), "hf_other": ("other", "write")}
TEXT = ["what a day", "oh great, rain again"]


@pytest.fixture(scope="module")
def hub():
    with running_hub(TOKENS) as server:
        yield server


def run(hub, home, argv, token="hf_mine"):
    """A process of its own whose Hub is ours: exit code, last line of stdout, stderr."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **hub.environment(home, token), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(without_numba(home))
    done = subprocess.run([*map(str, argv)], cwd=home, env=environment, capture_output=True, text=True)
    return done.returncode, (done.stdout.splitlines() or [""])[-1], done.stderr


def python(hub, home, code, *argv, token="hf_mine"):
    """What a piece of code prints as its last line, read as JSON."""
    code, line, error = run(hub, home, [sys.executable, "-c", code, *argv], token)
    assert code == 0, error
    return json.loads(line)


def expected_logits(folder):
    """What the installed package computes from a folder."""
    model = HFMambaForSequenceClassification.from_pretrained(folder)
    inputs = HFMambaProcessor.from_pretrained(folder)(text=TEXT, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits


def assert_same_logits(found, folder):
    torch.testing.assert_close(torch.tensor(found), expected_logits(folder), rtol=0, atol=1e-5)


# Trains, and before the push that ends the run tries others: with the folder damaged in several ways, put right again.
PUSH = """
import json, os, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from hf_mamba import run_classification

messages = {}

def change_code(folder):
    path = folder / "selective_scan.py"  # a line that no probe post runs
    path.write_text(path.read_text().replace("def _gradients(grad_y", "def _gradients(grad_z"))

def change_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.embeddings.token_embeddings.weight"][-1, 3] += 1e-3  # of a token that is in no probe post
    save_file(weights, folder / "model.safetensors", {"format": "pt"})

def remove_code(folder):
    (folder / "packed_sequence.py").unlink()

DAMAGE = {change_code: "selective_scan.py", change_weight: "model.safetensors", remove_code: "packed_sequence.py"}
push = run_classification.push

def push_damaged(trainer, model, processor):
    folder = Path(trainer.args.output_dir)
    for damage, name in DAMAGE.items():
        whole = (folder / name).read_bytes()
        damage(folder)
        try:
            push(trainer, model, processor)
        except ValueError as error:
            messages[damage.__name__] = str(error)
        (folder / name).write_bytes(whole)
    push(trainer, model, processor)

run_classification.push = push_damaged
run_classification.main(sys.argv[1:])
print(json.dumps(messages))
"""


@pytest.fixture(scope="module")
def pushed(hub, folder, tmp_path_factory):
    """A run pushed to me/model by the script, and what it said to the damaged ones before."""
    home = tmp_path_factory.mktemp("pushed")
    flags = ["--push_to_hub", "--hub_model_id", "me/model", "--hub_private_repo", "--hub_token", "hf_mine"]
    messages = python(hub, home, PUSH, *command(folder, home / "out", *flags), token=None)
    return home / "out", messages


def test_the_script_pushes_a_whole_checkpoint_once(hub, pushed):
    output_dir, _ = pushed
    files = hub.files("me/model")
    assert hub.repos["me/model"].private
    assert len(hub.repos["me/model"].commits) == 2  # the initial one, ours: none while training, none of the damaged
    for name in ("model.safetensors", "config.json", "processor_config.json", "tokenizer.json", "recipe.yaml"):
        assert name in files
    assert {"all_results.json", "test_results.json", "README.md"} <= files.keys()
    assert {path.name for path in output_dir.glob("*.py")} <= files.keys()
    for name, content in files.items():
        assert name in (".gitattributes", "recipe.yaml") or content == (output_dir / name).read_bytes()
        assert b"hf_mine" not in content and str(output_dir.parent).encode() not in content
    assert yaml.safe_load(files["recipe.yaml"])["num_train_epochs"] == 2
    assert b"## Limitations" in files["README.md"] and b'from_pretrained("me/model"' in files["README.md"]
    assert (output_dir / "predictions.csv").exists() and (output_dir / "training_args.bin").exists()
    assert not {"predictions.csv", "training_args.bin", "trainer_state.json"} & files.keys()
    assert not any("/" in name for name in files)  # no checkpoint-*, no optimiser state


def test_a_damaged_folder_is_not_pushed(pushed):
    output_dir, messages = pushed
    parts = {
        "change_code": "its selective_scan.py is not the code",
        "change_weight": "another weight model.embeddings.token_embeddings.weight",
        "remove_code": "packed_sequence.py",
    }
    assert messages.keys() == parts.keys()
    for damage, message in messages.items():
        assert message.startswith(f"{output_dir} can't be shared: ") and "\n" not in message
        assert parts[damage] in message and "Nothing was uploaded." in message


# Without the package and with an empty cache, repos are loaded by name; then what was loaded is shared on, all by the
# checkpoint's own code.
WITHOUT_PACKAGE = """
import json, sys
sys.modules["hf_mamba"] = None  # as if the package were not installed
import torch
from transformers import AutoModelForSequenceClassification, AutoProcessor
text, target, names = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3:]
logits = {}
for name in names:
    model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    with torch.no_grad():
        logits[name] = model(**processor(text=text, return_tensors="pt")).logits.tolist()
pushes = []
if target:
    kwargs = {"private": True, "commit_message": "Mine"}
    for part in (model, processor, processor):
        pushes.append(part.push_to_hub(target, **kwargs).oid)
    pushes.append(processor.push_to_hub(target, create_pr=True, tags=["mine"]).pr_url)
    model.config.push_to_hub(f"{target}-config")
    model.config.save_pretrained("config", push_to_hub=True, repo_id=f"{target}-config-saved")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    model.push_to_hub(f"{target}-broken")
print(json.dumps([logits, pushes]))
"""


def test_what_was_pushed_loads_by_name_and_is_shared_on(hub, pushed, tmp_path):
    """From the script, by `hf upload` and, with the checkpoint's own code, from model and processor."""
    output_dir, _ = pushed
    excluded = ["--exclude", "checkpoint-*/*", "--exclude", "predictions.csv", "--exclude", "training_args.bin"]
    hf = [sys.executable, "-c", "from huggingface_hub.cli.hf import main; main()"]
    code, _, error = run(hub, tmp_path / "cli", [*hf, "upload", "me/cli", output_dir, "--private", *excluded])
    assert code == 0, error
    text = json.dumps(TEXT)
    logits, pushes = python(hub, tmp_path / "first", WITHOUT_PACKAGE, text, "me/again", "me/cli", "me/model")
    for found in logits.values():
        assert_same_logits(found, output_dir)

    again = hub.repos["me/again"]
    first, second, unchanged, pull_request = pushes
    assert unchanged == second == again.refs["main"] != first and again.private
    assert again.messages == ["initial commit", "Mine", "Mine", "Upload processor"]
    assert (
        pull_request.endswith("/me/again/discussions/1")
        and b"- mine" in hub.files("me/again", "refs/pr/1")["README.md"]
    )
    for name in ("me/again-config", "me/again-config-saved"):
        assert {"config.json", *(path.name for path in output_dir.glob("*.py"))} <= hub.files(name).keys()
    # as with any transformers model, nothing is checked
    assert {"model.safetensors", *(path.name for path in output_dir.glob("*.py"))} <= hub.files(
        "me/again-broken"
    ).keys()
    logits, _ = python(hub, tmp_path / "second", WITHOUT_PACKAGE, text, "", "me/again")
    assert_same_logits(logits["me/again"], output_dir)


# Someone without the package trains on with transformers' own Trainer, and an adapter; another one loads both.
TRAIN_ON = """
import json, sys
sys.modules["hf_mamba"] = None
import peft, torch
from transformers import AutoModelForSequenceClassification, AutoProcessor, Trainer, TrainingArguments
text = json.loads(sys.argv[1])
base, model = (AutoModelForSequenceClassification.from_pretrained("me/model", trust_remote_code=True) for _ in "12")
processor = AutoProcessor.from_pretrained("me/model", trust_remote_code=True)
inputs = processor(text=text, return_tensors="pt")
layers = {"target_modules": "all-linear", "modules_to_save": ["classifier"], "init_lora_weights": False}
adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, task_type="SEQ_CLS", **layers)).eval()
adapted.push_to_hub("me/adapter", private=True)
flags = {"push_to_hub": True, "hub_private_repo": True, "num_train_epochs": 2, "report_to": "none", "use_cpu": True}
trainer = Trainer(
    model=model,
    args=TrainingArguments("out", remove_unused_columns=False, hub_model_id="me/plain", **flags),
    train_dataset=[{"text": each, "label": 0} for each in text],
    data_collator=lambda posts: {**inputs, "labels": torch.zeros(len(posts), dtype=torch.long)},
    processing_class=processor,
)
trainer.train()
trainer.push_to_hub()
with torch.no_grad():
    print(json.dumps([each.eval()(**inputs).logits.tolist() for each in (adapted, model)]))
"""
LOAD_BOTH = """
import json, sys
sys.modules["hf_mamba"] = None
import peft, torch
from transformers import AutoModelForSequenceClassification, AutoProcessor
autos = {"me/adapter": peft.AutoPeftModelForSequenceClassification, "me/plain": AutoModelForSequenceClassification}
inputs = AutoProcessor.from_pretrained("me/plain", trust_remote_code=True)(
    text=json.loads(sys.argv[1]), return_tensors="pt"
)
with torch.no_grad():
    models = [auto.from_pretrained(name, trust_remote_code=True).eval() for name, auto in autos.items()]
    print(json.dumps([model(**inputs).logits.tolist() for model in models]))
"""


@pytest.mark.slow
def test_what_others_tools_push_loads_by_name(hub, pushed, tmp_path):
    """Unchecked, and with Trainer's own card; but whole. An adapter finds its base by name."""
    pytest.importorskip("peft")
    saved = torch.tensor(python(hub, tmp_path / "first", TRAIN_ON, json.dumps(TEXT)))
    loaded = torch.tensor(python(hub, tmp_path / "second", LOAD_BOTH, json.dumps(TEXT)))
    torch.testing.assert_close(loaded, saved, rtol=0, atol=1e-5)
    before = expected_logits(pushed[0])
    assert all((logits - before).abs().max() > 1e-4 for logits in saved)
    assert hub.repos["me/adapter"].private and hub.repos["me/plain"].private


PRIVATE = """
import json, sys
from transformers import AutoConfig
messages = []
for token in (False, "hf_wrong", "hf_other", "hf_mine"):
    try:
        messages.append(AutoConfig.from_pretrained("me/model", trust_remote_code=True, token=token).model_type)
    except OSError as error:
        messages.append(str(error))
print(json.dumps(messages))
"""


def test_a_private_repo_needs_its_token(hub, pushed, tmp_path):
    none, wrong, other, loaded = python(hub, tmp_path, PRIVATE, token=None)
    assert loaded == "hf_mamba"
    for message in (none, other):
        assert "me/model" in message and "hf auth login" in message
    assert "me/model" in wrong and "Invalid credentials" in wrong


NO_TOKEN = """
import json, os, sys
from hf_mamba import run_classification
messages = []
for token, name in (("", "me/new"), ("hf_wrong", "me/new"), ("hf_reader", "me/model"), ("hf_mine", "other/new")):
    os.environ["HF_TOKEN"] = token
    sys.argv = ["run_classification.py", *json.loads(os.environ["FLAGS"]), "--hub_model_id", name]
    try:
        run_classification.run()
    except SystemExit as stop:
        messages.append(stop.code)
print(json.dumps(messages))
"""


def test_the_script_finds_out_before_training(hub, pushed, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAGS", json.dumps(command(folder, tmp_path / "out", "--push_to_hub")))
    commits = len(hub.repos["me/model"].commits)
    messages = python(hub, tmp_path, NO_TOKEN, token=None)
    parts = ["or none was sent", "refuses the token", "may not do this", "may not do this"]
    for message, part in zip(messages, parts, strict=True):
        assert message.startswith("error: --push_to_hub: ") and "\n" not in message
        assert part in message and "hf auth login" in message and "HF_TOKEN" in message
        assert "Nothing was trained" in message
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
    assert len(hub.repos["me/model"].commits) == commits and not {"me/new", "other/new"} & hub.repos.keys()


@pytest.fixture
def copied(pushed, tmp_path):
    """The files of the pushed run, to be changed."""
    for path in pushed[0].iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_finished_run_is_shared_by_the_command(hub, copied, tmp_path_factory):
    """Code of another version is fine, as long as it computes the same."""
    with (copied / "packed_sequence.py").open("a") as file:
        file.write("\n# of another version\n")
    argv = [sys.executable, "-m", "hf_mamba.classification.share", copied, "me/late", "--private"]
    code, line, error = run(hub, tmp_path_factory.mktemp("home"), argv)
    assert code == 0, error
    assert line.startswith(f"{hub.endpoint}/me/late/commit/") and hub.repos["me/late"].private
    late, first = dict(hub.files("me/late")), dict(hub.files("me/model"))
    assert late.keys() == first.keys() and b'from_pretrained("me/late"' in late["README.md"]
    assert {name for name in late if late[name] != first[name]} == {"packed_sequence.py", "README.md"}


@pytest.mark.slow
def test_the_command_refuses_what_computes_something_else(copied):
    module = copied / "modeling_hf_mamba.py"
    code = module.read_text()
    module.write_text(code.replace("self.dropout(outputs.pooler_output)", "1.01 * outputs.pooler_output"))
    with pytest.raises(ValueError, match="another logits than what is being shared, by up to"):
        share.main([str(copied)])
    with pytest.raises(ValueError, match="can't be loaded as a checkpoint"):
        share.main([str(copied / "nowhere")])


def test_a_failed_upload_loses_nothing(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(share, "check_checkpoint", lambda *args, **kwargs: None)
    monkeypatch.setattr(share.HfApi, "upload_folder", fail)
    with pytest.raises(ValueError) as refusal:
        share.share_run(tmp_path, None, None, "me/model")
    assert "can't be reached (no route): check the network. Nothing is lost" in str(refusal.value)
    assert f"python -m hf_mamba.classification.share {tmp_path} me/model`" in str(refusal.value)


@pytest.mark.slow
def test_two_processes_push_once(hub, folder, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m"]
    flags = ["--push_to_hub", "--hub_model_id", "me/two", "--num_train_epochs", "1"]
    argv = [*torchrun, "hf_mamba.run_classification", *command(folder, tmp_path / "out", *flags)]
    code, _, error = run(hub, tmp_path / "home", argv)
    assert code == 0, error
    assert len(hub.repos["me/two"].commits) == 2 and "model.safetensors" in hub.files("me/two")


def test_no_upload_during_training(folder, tmp_path, monkeypatch):
    push = ["--push_to_hub", "--hub_strategy", "all_checkpoints"]
    message = refused(monkeypatch, command(folder, tmp_path / "out", *push))
    assert "--hub_strategy all_checkpoints" in message and "leave it out" in message
