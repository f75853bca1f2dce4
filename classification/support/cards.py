"""The card of a checkpoint that is uploaded: the one of its run, with the name of the repo."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from safetensors.torch import load_file

from .clean_room import fingerprints
from .files import read_text, write_text


def add_reports(folder: str | Path, repo_id: str, model: Any) -> None:
    """
    Replaces the empty card that transformers wrote into a folder to upload by the card and the results of the run that
    the model was loaded from, if its weights are still those of the run.
    """
    run, card = Path(model.config.name_or_path), Path(folder, "README.md")
    if not (run / "README.md").is_file() or not (run / "model.safetensors").is_file():
        return
    blank = card.is_file() and "model card has been automatically generated" in read_text(card)
    if blank and fingerprints(load_file(run / "model.safetensors")) == fingerprints(model.state_dict()):
        tags, filled = ModelCard.load(card).data.tags or [], ModelCard.load(run / "README.md")
        filled.data.tags = [*(filled.data.tags or []), *(tag for tag in tags if tag not in (filled.data.tags or []))]
        write_text(card, str(filled))
        name_repo_in_card(folder, repo_id)
        if (run / "all_results.json").is_file():
            Path(folder, "all_results.json").write_bytes((run / "all_results.json").read_bytes())


def name_repo_in_card(folder: str | Path, repo_id: str) -> None:
    """Lets the code in a card load the repo that it is uploaded to, whose name was unknown when it was written."""
    card = Path(folder, "README.md")
    if card.is_file():
        code = r'(\.from_pretrained\()"[^"]*"(, trust_remote_code)'
        write_text(card, re.sub(code, rf'\1"{repo_id}"\2', read_text(card)))
