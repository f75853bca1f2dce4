"""HF-Mamba: classify posts made of text and images with a hierarchical Mamba network.

Nothing is imported here until it is asked for (PEP 562), so that importing this package is free and a tool that
imports the folder under another name (pytest does) makes no second copy of a class.
"""

import importlib


__version__ = "0.1.0"

_MODULE_OF = {
    "HFMambaConfig": "configuration_hf_mamba",
    "HFMambaForSequenceClassification": "modeling_hf_mamba",
    "HFMambaImageProcessor": "processing_hf_mamba",
    "HFMambaModel": "modeling_hf_mamba",
    "HFMambaPreTrainedModel": "modeling_hf_mamba",
    "HFMambaProcessor": "processing_hf_mamba",
}

__all__ = ["__version__", *_MODULE_OF]
# Not for users: what the model's code calls before an upload where it is part of this package (remote_code.py). A
# checkpoint's copy of that code has no package around it, and none of this.
_HOOKS = {"check_upload": "classification.support.upload_check"}


def __getattr__(name):
    module = _MODULE_OF.get(name) or _HOOKS.get(name)
    if module is not None:
        return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_MODULE_OF])
