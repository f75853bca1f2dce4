"""
Makes the checkout that this folder belongs to the package `hf_mamba`, installed or not.

The commands here import this module before anything of the package, as run_classification.py does for itself: their
figures must come from the code beside them, never from another version that is installed.
"""

import importlib.util
import sys
from pathlib import Path


if "hf_mamba" not in sys.modules:
    _spec = importlib.util.spec_from_file_location("hf_mamba", Path(__file__).resolve().parents[1] / "__init__.py")
    sys.modules["hf_mamba"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["hf_mamba"])
