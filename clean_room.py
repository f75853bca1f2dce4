"""
The check before a checkpoint leaves: does it work for a stranger?

A fresh process with empty caches, offline, in another directory, in which the package hf_mamba can't be imported,
loads the folder as anyone would and must hold the weights, and compute the outputs, of the model and processor being
shared. This file, run as a script, is that process. It travels with every checkpoint: those can be shared on.
"""

import copy
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file


TOLERANCE = 1e-5  # in units of the largest output, if that is above 1
_AGAIN = "Save the checkpoint again with save_pretrained, which writes every file that it needs."


def check_checkpoint(folder, model=None, processor=None, name=None, same_code=True):
    """
    Loads a checkpoint folder in a clean room and compares what it computes there with what it should.

    Args:
        folder: the checkpoint folder
        model, processor: what was saved in it, either may be None
        name: what an error calls the checkpoint, by default the folder
        same_code: its modules must be those that run here; False for a checkpoint of another version

    Raises:
        ValueError: it can't be loaded there, lacks a module, or has other code, other weights, other outputs on a
            batch of probe posts, or another processor. One line that says what differs and what to do.
    """
    folder = Path(folder).resolve()
    with tempfile.TemporaryDirectory() as room:
        room = Path(room)
        probe, expected = {}, {}
        if model is not None:
            reference = copy.deepcopy(model).to("cpu", torch.float32).eval()  # what the fresh process will have
            reference.set_scan_implementation("auto")
            probe["inputs"] = _probe_inputs(reference.config)
            expected |= _describe_model(reference, probe["inputs"])
        if processor is not None:
            probe["post"] = _probe_post(processor.tokenizer)
            expected |= _describe_processor(processor, probe["post"])
        torch.save(probe, room / "probe.pt")
        problem = _not_finite(expected.pop("not finite", None)) or (_compare_code(folder) if same_code else None)
        problem = problem or _run_in(room, folder) or _compare(torch.load(room / "found.pt"), expected)
    if problem:
        raise ValueError(f"{name or folder} is no checkpoint to share: {problem} Nothing was uploaded.")


def _probe_inputs(config):
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


def _probe_post(tokenizer):
    """A post of words from all over the vocabulary with an image, and that image alone."""
    step = max(1, len(tokenizer) // 32)
    image = torch.randint(256, (3, 40, 56), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return {"text": [tokenizer.decode(list(range(0, len(tokenizer), step))), None], "images": [image, image]}


def _fingerprints(weights):
    """A name and a fingerprint of every weight of a state dict."""
    arrays = {name: weight.detach().cpu().float().contiguous().numpy() for name, weight in weights.items()}
    return {f"weight {name}": hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}


@torch.no_grad()
def _describe_model(model, inputs):
    """Outputs on the probe posts, and a fingerprint of each weight: few tokens of the vocabulary are in the posts."""
    weights = model.state_dict()
    described = _fingerprints(weights)
    described["not finite"] = [name for name, weight in weights.items() if not weight.isfinite().all()]
    output = model(**inputs)
    if "logits" in output:
        described["logits"] = output.logits
        output = model.base_model(**inputs)
    return described | {"pooler_output": output.pooler_output}


def _describe_processor(processor, post):
    """The tensors of the probe post, and a fingerprint of the vocabulary."""
    vocabulary = json.dumps(sorted(processor.tokenizer.get_vocab().items()))
    tensors = processor(**post, return_tensors="pt")
    fingerprint = hashlib.sha256(vocabulary.encode()).hexdigest()
    return {"vocabulary": fingerprint} | {f"tensor {k}": v for k, v in tensors.items()}


def _not_finite(names):
    """NaN equals NaN in a fingerprint, but no answer comes out of it."""
    if not names:
        return None
    return f"its weight {names[0]} holds NaN or infinity. Train it again, with a lower learning rate for one."


def _compare_code(folder):
    """The first module that is not the one beside this file, as a sentence: the probe posts don't run every line."""
    for module in sorted(folder.glob("*.py")):
        own = Path(__file__).with_name(module.name)
        if own.is_file() and own.read_bytes() != module.read_bytes():
            return f"its {module.name} is not the code that computes here. {_AGAIN}"
    return None


def _compare(found, expected):
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


def _run_in(room, folder):
    """Starts this file as a stranger's process. Returns why it could not load the folder, as a sentence, or None."""
    (room / "cwd").mkdir()
    caches = {"HF_HOME": "home", "HF_HUB_CACHE": "home/hub", "HF_MODULES_CACHE": "modules"}
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    environment |= {name: str(room / path) for name, path in caches.items()}
    environment |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-P", __file__, str(folder), str(room)],
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


def _be_the_stranger(folder, room):
    """Loads all that the folder's configs name by transformers' Auto classes, and saves what it computes in `room`."""
    sys.modules["hf_mamba"] = None  # importing the package raises ImportError, as where it is not installed
    import transformers
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    configs = [folder / name for name in ("config.json", "processor_config.json")]
    config, processor_config = (json.loads(path.read_text("utf-8")) if path.is_file() else {} for path in configs)
    if not config and not processor_config:
        raise FileNotFoundError(f"neither config.json nor processor_config.json is in {folder.name}")
    for module in folder.glob("*.py"):
        compile(module.read_bytes(), module.name, "exec")  # transformers' own error would not name the file
    for target in {**processor_config.get("auto_map", {}), **config.get("auto_map", {})}.values():
        get_class_from_dynamic_module(target, folder)
    probe, found = torch.load(room / "probe.pt"), {}
    auto_map, architecture = config.get("auto_map", {}), (config.get("architectures") or [None])[0]
    for auto in ("AutoModelForSequenceClassification", "AutoModel") if architecture else ():
        own = auto_map.get(auto, "").endswith(f".{architecture}")
        if not own and auto != "AutoModel":  # a classifier's checkpoint is one of its base model too
            continue
        load = {"trust_remote_code": True, "dtype": torch.float32, "output_loading_info": True}
        model, info = getattr(transformers, auto).from_pretrained(folder, **load)
        if info["missing_keys"]:
            raise ValueError(f"its weights lack {', '.join(sorted(info['missing_keys'])[:3])}")
        described = _describe_model(model.eval(), probe["inputs"]) if "inputs" in probe else {}
        found |= described if own else {key: described[key] for key in described.keys() & {"pooler_output"}}
    if processor_config:
        processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        found |= _describe_processor(processor, probe["post"]) if "post" in probe else {}
    torch.save(found, room / "found.pt")


def add_reports(folder, repo_id, model):
    """
    Where transformers wrote a card of blanks into a folder to upload, puts the card and the results of the run that
    the model was loaded from, if its weights are still those that they tell of.
    """
    run, card = Path(model.config.name_or_path), Path(folder, "README.md")
    if not (run / "README.md").is_file() or not (run / "model.safetensors").is_file():
        return
    blank = card.is_file() and "model card has been automatically generated" in card.read_text("utf-8")
    if blank and _fingerprints(load_file(run / "model.safetensors")) == _fingerprints(model.state_dict()):
        tags, filled = ModelCard.load(card).data.tags or [], ModelCard.load(run / "README.md")
        filled.data.tags = [*(filled.data.tags or []), *(tag for tag in tags if tag not in (filled.data.tags or []))]
        card.write_text(str(filled), "utf-8")
        address_card(folder, repo_id)
        if (run / "all_results.json").is_file():
            Path(folder, "all_results.json").write_bytes((run / "all_results.json").read_bytes())


def address_card(folder, repo_id):
    """Lets the code in a card load the repo that it is uploaded to, whose name was not known when it was written."""
    card = Path(folder, "README.md")
    if card.is_file():
        code = r'(\.from_pretrained\()"[^"]*"(, trust_remote_code)'
        card.write_text(re.sub(code, rf'\1"{repo_id}"\2', card.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    try:
        _be_the_stranger(*map(Path, sys.argv[1:]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(1)
