"""What the package does before it uploads a model, a processor or a config of its own."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, ModelCardData
from transformers.utils.hub import PushToHubMixin

from hf_mamba.classification.support import upload_check
from hf_mamba.configuration_hf_mamba import HFMambaConfig
from hf_mamba.modeling_hf_mamba import HFMambaForSequenceClassification
from hf_mamba.processing_hf_mamba import HFMambaProcessor


def test_a_model_takes_the_card_of_its_run_along(finished, tmp_path, monkeypatch):
    """As long as it is still the model that the card describes."""
    card = tmp_path / "README.md"
    uploads = []

    def upload(self, working_dir, repo_id, *args, **kwargs):
        uploads.append(
            {path.name: path.read_text() for path in Path(working_dir).iterdir() if path.suffix != ".safetensors"}
        )

    monkeypatch.setattr(upload_check, "check_checkpoint", lambda *args, **kwargs: None)
    monkeypatch.setattr(PushToHubMixin, "_upload_modified_files", upload)
    model = HFMambaForSequenceClassification.from_pretrained(finished[0])
    blank = ModelCard.from_template(
        ModelCardData(tags=["mine"]), model_description="This model card has been automatically generated."
    )
    for text in (str(blank), "---\ntags: [mine]\n---\nWritten by hand."):
        card.write_text(text)
        model._upload_modified_files(tmp_path, "me/other")
    with torch.no_grad():
        model.classifier.bias.add_(1)
    card.write_text(str(blank))
    model._upload_modified_files(tmp_path, "me/other")
    filled, by_hand, trained_on = (upload["README.md"] for upload in uploads)
    assert "## Limitations" in filled and 'from_pretrained("me/other", trust' in filled
    assert {"mine", "mamba"} <= set(ModelCard(filled).data.tags) and ModelCard(filled).data.eval_results
    assert json.loads(uploads[0]["all_results.json"])["test_accuracy"] == finished[1]["test"]["accuracy"]
    assert by_hand.endswith("Written by hand.") and trained_on == str(blank)


@pytest.fixture
def uploads(monkeypatch):
    """The names of the repos that folders were uploaded to, where none is."""
    names = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **kwargs: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(
        PushToHubMixin, "_upload_modified_files", lambda self, folder, repo_id, *args, **kwargs: names.append(repo_id)
    )
    return names


def parts_of(folder):
    """A model, a processor and a config of the package, imported from the modules themselves."""
    return [cls.from_pretrained(folder) for cls in (HFMambaForSequenceClassification, HFMambaProcessor, HFMambaConfig)]


def test_the_package_checks_every_part_that_it_pushes(finished, uploads, tmp_path, monkeypatch):
    checked = []

    def check(folder, model=None, processor=None, name=None):
        checked.append((name, model, processor))
        assert (Path(folder) / "selective_scan.py").is_file()

    monkeypatch.setattr(upload_check, "check_checkpoint", check)
    model, processor, config = parts_of(finished[0])
    for part in (model, processor, config):
        part.save_pretrained(str(tmp_path / "saved"), push_to_hub=True, repo_id="me/saved")
    expected = [
        ("The model for me/saved", model, None),
        ("The processor for me/saved", None, processor),
        ("The config for me/saved", None, None),
    ]
    assert checked == expected and uploads == ["me/saved"] * 3


def test_the_package_uploads_nothing_that_does_not_work(finished, uploads, tmp_path):
    model, processor, config = parts_of(finished[0])
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="The model for me/new can't be shared: its weight model.norm.weight .* NaN"):
        model.save_pretrained(tmp_path / "model", push_to_hub=True, repo_id="me/new")
    config.save_pretrained(tmp_path / "config")
    with (tmp_path / "config" / "image_patches.py").open("a") as file:
        file.write("\n# changed\n")
    with pytest.raises(
        ValueError, match="The config for me/new can't be shared: its image_patches.py is not the code"
    ):
        config._upload_modified_files(tmp_path / "config", "me/new")
    assert uploads == []


def test_a_config_alone_is_checked_by_loading_its_code(finished, tmp_path):
    config = parts_of(finished[0])[2]
    config.save_pretrained(tmp_path)
    upload_check.check_checkpoint(tmp_path)
    (tmp_path / "packed_sequence.py").unlink()
    with pytest.raises(ValueError, match="packed_sequence.py"):
        upload_check.check_checkpoint(tmp_path)
