"""Names that lead to no checkpoint: one line that says why, and what to do."""

import json
import shutil
import socket
import sys

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from running import refused
from transformers import AutoProcessor

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification, HFMambaProcessor
from hf_mamba.classification.support.hub import explain_hub_error


HTTP = sys.modules[HfHubHTTPError.__mro__[1].__module__.split(".")[0]]  # the Hub client's library of this version


def http_error(cls, status):
    response = HTTP.Response(status, request=HTTP.Request("GET", "https://hub/me/x"))
    return cls(f"{status} Client Error.\n\nDetails over\nmany lines", response=response)


def another_client(name, base):
    """An error as another HTTP client would raise it, of which only the names of classes are known."""
    return type("SomeError", (type(name, (base,), {}),), {})("no route\nto host")


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (http_error(RepositoryNotFoundError, 401), ["no public repository of that name", "spelling", "hf auth login"]),
        (http_error(GatedRepoError, 403), ["ask for access", "hf auth login"]),
        (http_error(HfHubHTTPError, 401), ["refuses the token", "HF_TOKEN"]),
        (http_error(HfHubHTTPError, 403), ["may not do this", "write access"]),
        (http_error(HfHubHTTPError, 500), ["the Hub answered 500"]),
        (HTTP.ConnectError("[Errno 111] Connection refused"), ["can't be reached", "network"]),
        (another_client("TransportError", Exception), ["can't be reached (no route to host)", "network"]),
        (another_client("Timeout", OSError), ["can't be reached (no route to host)", "network"]),
        (LocalEntryNotFoundError("not\nthere"), ["can't be reached", "not in the cache"]),
        (OfflineModeIsEnabled("offline"), ["HF_HUB_OFFLINE"]),
        (HFValidationError("Repo id must ..."), ["owner/name"]),
        (OSError("first\nsecond"), ["first"]),
        (KeyError(), ["KeyError"]),
    ],
)
def test_every_error_is_one_line_with_its_fix(error, parts, monkeypatch):
    monkeypatch.setattr("hf_mamba.classification.support.hub.get_token", lambda: None)
    wrapped = OSError("We couldn't connect\nto anything")
    wrapped.__cause__ = error
    for given in [error] if type(error) in (OSError, KeyError) else [error, wrapped]:
        sentence = explain_hub_error(given)
        assert "\n" not in sentence
        for part in parts:
            assert part in sentence


def test_a_token_that_was_sent_is_part_of_the_answer(monkeypatch):
    monkeypatch.setattr("hf_mamba.classification.support.hub.get_token", lambda: "hf_x")
    assert "your token may read" in explain_hub_error(http_error(RepositoryNotFoundError, 404))


def predict(name, folder, tmp_path):
    data = ["--test_file", folder / "test" / "metadata.jsonl", "--output_dir", tmp_path / "out", "--use_cpu"]
    return ["--do_predict", "--model_name_or_path", name, *data]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("./nowhere", ["--model_name_or_path ./nowhere: there is no such folder"]),
        ("a/b/c", ["a/b/c: there is no such folder"]),
        ("not a name", ["there is no such folder here, and it isn't a valid name"]),
        ("me/model", ["me/model: there is no such folder here, and HF_HUB_OFFLINE is set"]),
        ("run", ["holds no config.json", "Did you mean run/checkpoint-12?"]),
        ("run/recipe.yaml", ["is a file", "folder that it is in"]),
        ("bert", ["'bert' checkpoint, not an HF-Mamba"]),
    ],
)
def test_names_without_a_checkpoint(name, parts, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for path in ("run/checkpoint-6", "run/checkpoint-12", "bert"):
        (tmp_path / path).mkdir(parents=True)
        (tmp_path / path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "run" / "recipe.yaml").touch()
    message = refused(monkeypatch, predict(name, folder, tmp_path))
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_without_a_network(folder, tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nobody listens there
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for name, value in {"HF_HUB_OFFLINE": False, "ENDPOINT": endpoint}.items():
            monkeypatch.setattr(constants, name, value)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("time.sleep", lambda _: None)  # the client's pauses between its tries
        message = refused(monkeypatch, predict("me/model", folder, tmp_path))
    assert f"{endpoint} can't be reached" in message and "check the network" in message and "\n" not in message


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("{}")])
def test_a_processor_without_vocabulary(damage, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))
    damage(tmp_path / "copy" / "tokenizer.json")
    for load in (HFMambaProcessor.from_pretrained, lambda f: AutoProcessor.from_pretrained(f, trust_remote_code=True)):
        with pytest.raises(ValueError, match="holds no vocabulary that can be loaded: .* sound tokenizer.json"):
            load(tmp_path / "copy")


def test_another_type_of_model_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "classifier_dropout": None}))
    for cls in (HFMambaConfig, HFMambaForSequenceClassification):
        with pytest.raises(ValueError, match="is a 'bert' checkpoint, not an HF-Mamba"):
            cls.from_pretrained(tmp_path)
