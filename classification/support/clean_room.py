"""
A process in which the package hf_mamba can't be imported: loads a checkpoint folder as someone without the package
would, and saves what it computes. upload_check.py runs this file as a script, and shares its descriptions of a model
and a processor:

    python clean_room.py FOLDER ROOM    reads ROOM/probe.pt, writes ROOM/found.pt
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def fingerprints(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """A name and a fingerprint of every weight of a state dict."""
    arrays = {name: weight.detach().cpu().float().contiguous().numpy() for name, weight in weights.items()}
    return {f"weight {name}": hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}


@torch.no_grad()
def describe_model(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Outputs on the probe posts, and a fingerprint of each weight: few tokens of the vocabulary are in the posts."""
    weights = model.state_dict()
    described: dict[str, Any] = dict(fingerprints(weights))
    described["not finite"] = [name for name, weight in weights.items() if not weight.isfinite().all()]
    output = model(**inputs)
    if "logits" in output:
        described["logits"] = output.logits
        output = model.base_model(**inputs)
    return described | {"pooler_output": output.pooler_output}


def describe_processor(processor: Any, post: dict[str, list]) -> dict[str, Any]:
    """The tensors of the probe post, and a fingerprint of the vocabulary."""
    vocabulary = json.dumps(sorted(processor.tokenizer.get_vocab().items()))
    tensors = processor(**post, return_tensors="pt")
    fingerprint = hashlib.sha256(vocabulary.encode()).hexdigest()
    return {"vocabulary": fingerprint} | {f"tensor {k}": v for k, v in tensors.items()}


def load_and_describe(folder: Path, room: Path) -> None:
    """
    Loads by transformers' Auto classes all that the folder's configs name, and saves what it computes in `room`. For
    an empty probe only the code is loaded: a config that is uploaded alone has no weights beside it.
    """
    sys.modules["hf_mamba"] = None  # type: ignore[assignment] # importing the package raises ImportError, as where it is not installed
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
    probe = torch.load(room / "probe.pt")
    found: dict[str, Any] = {}
    auto_map, architecture = config.get("auto_map", {}), (config.get("architectures") or [None])[0]
    for auto in ("AutoModelForSequenceClassification", "AutoModel") if architecture and probe else ():
        own = auto_map.get(auto, "").endswith(f".{architecture}")
        if not own and auto != "AutoModel":  # a classifier's checkpoint is one of its base model too
            continue
        load = {"trust_remote_code": True, "dtype": torch.float32, "output_loading_info": True}
        model, info = getattr(transformers, auto).from_pretrained(folder, **load)
        if info["missing_keys"]:
            raise ValueError(f"its weights lack {', '.join(sorted(info['missing_keys'])[:3])}")
        described = describe_model(model.eval(), probe["inputs"]) if "inputs" in probe else {}
        found |= described if own else {key: described[key] for key in described.keys() & {"pooler_output"}}
    if processor_config:
        processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        found |= describe_processor(processor, probe["post"]) if "post" in probe else {}
    torch.save(found, room / "found.pt")


if __name__ == "__main__":
    try:
        load_and_describe(*map(Path, sys.argv[1:]))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(1)
