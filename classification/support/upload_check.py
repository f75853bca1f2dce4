"""
The check before a checkpoint is uploaded: does it work for someone without this package?

A fresh process with empty caches, offline, in another directory, in which the package can't be imported, loads the
folder as anyone would and must hold the weights, and compute the outputs, of the model and processor being shared.
That process is clean_room.py.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from . import clean_room
from .cards import add_reports
from .clean_room import describe_model, describe_processor
from .files import PACKAGE_FOLDER


if TYPE_CHECKING:
    from ...modeling_hf_mamba import HFMambaPreTrainedModel
    from ...processing_hf_mamba import HFMambaProcessor

TOLERANCE = 1e-5  # in units of the largest output, if that is above 1
_AGAIN = "Save the checkpoint again with save_pretrained, which writes every file that it needs."


def check_upload(part: PreTrainedModel | ProcessorMixin | PreTrainedConfig, folder: str | Path, repo_id: str) -> None:
    """
    What the package does before `push_to_hub` uploads one of its models, processors or configs: checks the folder, and
    gives a model the card of its run.

    Raises:
        ValueError: as `check_checkpoint`.
    """
    if isinstance(part, ProcessorMixin):
        check_checkpoint(folder, processor=cast("HFMambaProcessor", part), name=f"The processor for {repo_id}")
    elif isinstance(part, PreTrainedConfig):
        check_checkpoint(folder, name=f"The config for {repo_id}")
    elif not part._hf_peft_config_loaded:  # else what is uploaded is an adapter alone
        add_reports(folder, repo_id, part)
        check_checkpoint(folder, model=cast("HFMambaPreTrainedModel", part), name=f"The model for {repo_id}")


def check_checkpoint(
    folder: str | Path,
    model: HFMambaPreTrainedModel | None = None,
    processor: HFMambaProcessor | None = None,
    name: str | None = None,
    same_code: bool = True,
) -> None:
    """
    Loads a checkpoint folder in a clean room and compares what it computes there with what it should.

    Args:
        folder: the checkpoint folder
        model, processor: what was saved in it; either may be None, and with neither only the code is loaded
        name: what an error calls the checkpoint, by default the folder
        same_code: its modules must be those that run here; False for a checkpoint of another version

    Raises:
        ValueError: it can't be loaded there, lacks a module, or has other code, other weights, other outputs on a
            batch of probe posts, or another processor. One line that says what differs and what to do.
    """
    folder = Path(folder).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        room = Path(temporary)
        probe: dict[str, Any] = {}
        expected: dict[str, Any] = {}
        if model is not None:
            reference: Any = copy.deepcopy(model)
            reference = reference.to("cpu", torch.float32).eval()  # what the fresh process will have
            reference.set_scan_implementation("auto")
            probe["inputs"] = _probe_inputs(reference.config)
            expected |= describe_model(reference, probe["inputs"])
        if processor is not None:
            probe["post"] = _probe_post(processor.tokenizer)
            expected |= describe_processor(processor, probe["post"])
        torch.save(probe, room / "probe.pt")
        problem = _not_finite(expected.pop("not finite", None)) or (_compare_code(folder) if same_code else None)
        problem = problem or _run_in(room, folder) or _compare(torch.load(room / "found.pt"), expected)
    if problem:
        raise ValueError(f"{name or folder} can't be shared: {problem} Nothing was uploaded.")


def _probe_inputs(config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """Four posts, with padding on the right: both modalities, both and shorter, no text, no image."""
    generator = torch.Generator().manual_seed(0)
    n, m = 12, 2 * config.num_patches
    mask, patch_mask = torch.ones(4, n, dtype=torch.long), torch.ones(4, m, dtype=torch.long)
    mask[1, n // 2 :], patch_mask[1, m // 2 :] = 0, 0
    mask[2], patch_mask[3] = 0, 0
    return {
        "input_ids": torch.randint(config.vocab_size, (4, n), generator=generator),
        "attention_mask": mask,
        "pixel_values": torch.randn(4, m, config.patch_dim, generator=generator),
        "pixel_attention_mask": patch_mask,
    }


def _probe_post(tokenizer: Any) -> dict[str, list]:
    """A post of words from all over the vocabulary with an image, and that image alone."""
    step = max(1, len(tokenizer) // 32)
    image = torch.randint(256, (3, 40, 56), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return {"text": [tokenizer.decode(list(range(0, len(tokenizer), step))), None], "images": [image, image]}


def _not_finite(names: list[str] | None) -> str | None:
    """NaN equals NaN in a fingerprint, but no prediction comes out of it."""
    if not names:
        return None
    return f"its weight {names[0]} holds NaN or infinity. Train it again, with a lower learning rate for one."


def _compare_code(folder: Path) -> str | None:
    """The first module that differs from the package's, as a sentence: the probe posts don't run every line."""
    for module in sorted(folder.glob("*.py")):
        own = PACKAGE_FOLDER / module.name
        if own.is_file() and own.read_bytes() != module.read_bytes():
            return f"its {module.name} is not the code that computes here. {_AGAIN}"
    return None


def _compare(found: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """The first thing that differs, as a sentence with the fix; None if nothing does."""
    for key, value in expected.items():
        other = found.get(key)
        if isinstance(value, str) or other is None or value.shape != other.shape:
            same, by = isinstance(value, str) and value == other, ""
        else:
            error = (value.double() - other.double()).abs().max().item()
            same = error <= TOLERANCE * max(1.0, value.abs().max().item())  # which NaN never is
            by = f", by up to {error:.2g}"
        if not same:
            return f"loaded in a fresh process it has another {key} than what is being shared{by}. {_AGAIN}"
    return None


def _run_in(room: Path, folder: Path) -> str | None:
    """Starts the clean room. Returns why the folder could not be loaded in it, as a sentence, or None."""
    (room / "cwd").mkdir()
    caches = {"HF_HOME": "home", "HF_HUB_CACHE": "home/hub", "HF_MODULES_CACHE": "modules"}
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    environment |= {name: str(room / path) for name, path in caches.items()}
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-P", clean_room.__file__, str(folder), str(room)],
        cwd=room / "cwd",
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode == 0:
        return None
    reason = " ".join((done.stdout.strip() or done.stderr.strip()[-300:] or f"exit code {done.returncode}").split())
    reason = reason.replace(f"{folder}{os.sep}", "").replace(str(folder), "the folder")[:500]
    return f"a fresh process without the package can't load it ({reason}). {_AGAIN}"
