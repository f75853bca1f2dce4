"""The code that travels with a checkpoint: loading it starts no process and opens no connection."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_mamba import HFMambaConfig


# Modules through which code starts processes or opens connections
FORBIDDEN = {"subprocess", "socket", "http", "urllib", "requests", "httpx", "asyncio", "multiprocessing", "ctypes"}
# Loads every class that the folder's configuration names, as remote code, and reports each process and connection
LOAD = """
import json, sys
sys.modules["hf_mamba"] = None  # as if the package were not installed
# what the code builds on is imported before anything is counted: it is not ours
import llvmlite.binding, numba, PIL.Image, torch, transformers
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers import AutoImageProcessor, AutoModelForSequenceClassification, PreTrainedTokenizerFast, image_utils
from transformers import image_processing_backends, processing_utils, modeling_layers, initialization

events = []
STARTS = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn")
CONNECTS = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "http.client", "urllib.Request")
sys.addaudithook(lambda event, args: events.append(event) if event.startswith((*STARTS, *CONNECTS)) else None)
folder = sys.argv[1]
names = set(json.load(open(f"{folder}/config.json"))["auto_map"].values())
loaded = [get_class_from_dynamic_module(name, folder).__name__ for name in sorted(names)]
print(json.dumps([loaded, events]))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder that holds a configuration and all the code that goes with it."""
    folder = tmp_path_factory.mktemp("saved")
    HFMambaConfig(hidden_size=16).save_pretrained(folder)
    return folder


def load(saved, home, code=LOAD):
    """What a fresh process without the package reports of loading the code: names of classes, and events."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", code, saved]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_loading_a_checkpoints_code_starts_no_process_and_opens_no_connection(saved, tmp_path):
    classes, events = load(saved, tmp_path)
    assert {"HFMambaForSequenceClassification", "HFMambaProcessor", "HFMambaImageProcessor"} <= set(classes)
    assert events == []


def test_a_process_that_code_starts_would_be_noticed(saved, tmp_path):
    events = load(saved, tmp_path, LOAD.replace("folder = ", "import os; os.system('true'); folder = "))[1]
    assert events == ["os.system"]


def imported_modules(path):
    """Top-level names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_no_travelling_module_imports_what_starts_processes_or_connects(saved):
    modules = sorted(saved.glob("*.py"))
    assert "modeling_hf_mamba.py" in {path.name for path in modules}
    for path in modules:
        assert not FORBIDDEN & set(imported_modules(path)), path.name


def test_reading_and_cutting_images_takes_pillow_and_numpy_alone(tmp_path):
    """So that a server without torch can use it."""
    import hf_mamba

    source = Path(hf_mamba.__file__).with_name("image_patches.py")
    own = {"numpy", "PIL"}
    assert set(imported_modules(source)) <= own | sys.stdlib_module_names
    code = (
        "import sys, io, runpy; import numpy as np; from PIL import Image\n"
        f"module = runpy.run_path({str(source)!r})\n"
        "file = io.BytesIO(); Image.new('RGB', (40, 30), 'red').save(file, 'PNG')\n"
        "pixels = np.asarray(module['resize'](module['read_image'](file.getvalue()), 32, Image.Resampling.BILINEAR))\n"
        "patches = module['cut_into_patches'](pixels[None], 16).astype(np.float32)\n"
        "module['scale_patches'](patches, 1 / 255, [0.5] * 3, [0.5] * 3)\n"
        "assert patches.shape == (1, 4, 768) and patches.max() == 1 and patches.min() == -1\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
