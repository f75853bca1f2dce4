"""Remote code under real conditions: in fresh processes, without the package, from a folder and from a Hub cache."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from running import without_numba
from small_processor import make_processor

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification


NAME = "me/model"
TEXT = ["A great day at the sea", "seaside!"]
ROOT = Path(__file__).parents[2]
MODULES = {path.name for path in ROOT.glob("*.py")} - {"__init__.py", "run_classification.py"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A classifier with its processor, saved, and its logits on TEXT."""
    folder = tmp_path_factory.mktemp("remote") / "checkpoint"
    torch.manual_seed(0)
    config = HFMambaConfig(vocab_size=10, hidden_size=16, num_text_layers=1, num_image_layers=1, num_fusion_layers=1)
    config.image_size, config.patch_size = 32, 16
    model = HFMambaForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder, logits_of(model)


@torch.no_grad()
def logits_of(model):
    return model(**make_processor()(text=TEXT, return_tensors="pt")).logits


def add_to_cache(folder, home, sha="0" * 40, ref="main"):
    """Lays a checkpoint down as the Hub's client would keep it in an HF_HOME, by the name NAME."""
    repo = home / "hub" / "models--me--model"
    shutil.copytree(folder, repo / "snapshots" / sha)
    if ref:
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(sha)
    return repo / "snapshots" / sha


PRELUDE = f"""
import json, sys
from pathlib import Path
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # below 5.18 else only with torchvision

TEXT = {TEXT!r}

def load(name, auto=AutoModelForSequenceClassification, **kwargs):
    return auto.from_pretrained(name, trust_remote_code=True, **kwargs)

def logits_of(model, processor):
    with torch.no_grad():
        return model.eval()(**processor(text=TEXT, return_tensors="pt")).logits.tolist()
"""
NOT_INSTALLED = 'import sys\nsys.modules["hf_mamba"] = None\n'  # importing the package raises ImportError


def python(home, code, *argv, path=None):
    """Runs code as a file in a fresh process, offline, with HF_HOME=`home`; its last line of output, as JSON."""
    home.mkdir(parents=True, exist_ok=True)
    (script := home / "script.py").write_text(code)
    path = path or without_numba(home)
    variables = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path)}
    done = subprocess.run(
        [sys.executable, "-P", script, *map(str, argv)],
        cwd=home,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_logits(found, expected):
    torch.testing.assert_close(torch.tensor(found), expected, rtol=0, atol=1e-5)


# --- optional kernels

IMPORT_ERROR = "raise ImportError('undefined symbol: _ZN3c10')"
RUNTIME_ERROR = "raise RuntimeError('no CUDA driver')"
NO_NAMES = ""
ABSENT = "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)"
FOR_CUDA = """
def selective_scan_fn(*args, **kwargs):
    raise RuntimeError("Expected u.is_cuda() to be true")
causal_conv1d_fn = selective_scan_fn
"""
STATES = {  # of each of these packages; one that is left out is as it is here
    "absent": dict.fromkeys(("numba", "triton", "mamba_ssm", "causal_conv1d"), ABSENT),
    "for CUDA": {
        "mamba_ssm": FOR_CUDA,
        "causal_conv1d": FOR_CUDA,
        "selective_scan_cuda": NO_NAMES,
        "causal_conv1d_cuda": NO_NAMES,
    },
    "broken": {
        "numba": IMPORT_ERROR,
        "triton": RUNTIME_ERROR,
        "mamba_ssm": NO_NAMES,
        "causal_conv1d": RUNTIME_ERROR,
    },
    "broken otherwise": {
        "numba": RUNTIME_ERROR,
        "triton": NO_NAMES,
        "mamba_ssm": IMPORT_ERROR,
        "causal_conv1d": NO_NAMES,
    },
    "broken in a third way": {
        "numba": NO_NAMES,
        "triton": IMPORT_ERROR,
        "mamba_ssm": RUNTIME_ERROR,
        "causal_conv1d": IMPORT_ERROR,
    },
}
FROM_BOTH = """
folder, name, triton = sys.argv[1:]
sys.path.insert(0, triton)  # only now: a broken triton breaks torch itself
print(json.dumps([logits_of(load(where), load(where, AutoProcessor)) for where in (folder, name)]))
"""
SLOW = [pytest.param(state, marks=pytest.mark.slow) if " " in state[6:] else state for state in STATES]


@pytest.mark.parametrize("state", SLOW)
def test_optional_kernels_may_be_absent_broken_or_for_cuda(state, checkpoint, tmp_path):
    """From a folder and from a Hub cache, where transformers checks the imports of every module."""
    folder, expected = checkpoint
    for package, code in STATES[state].items():
        inner = tmp_path / ("triton" if package == "triton" else "others") / package / "ops"
        inner.mkdir(parents=True)
        for path in (inner.parent / "__init__.py", inner / "__init__.py", inner / "selective_scan_interface.py"):
            path.write_text(code)
    add_to_cache(folder, tmp_path / "home")
    code = NOT_INSTALLED + PRELUDE + FROM_BOTH
    argv = [folder, NAME, tmp_path / "triton"]
    for logits in python(tmp_path / "home", code, *argv, path=tmp_path / "others"):
        assert_logits(logits, expected)


# --- saving what was loaded

SAVE_ON = """
name, out = sys.argv[1], Path(sys.argv[2])
model = load(name)
expected = logits_of(model, load(name, AutoProcessor))
model.save_pretrained(out / "model")  # alone: the processor's code comes along, its vocabulary doesn't
found = {"model": sorted(path.name for path in (out / "model").glob("*.py"))}

load(name, AutoProcessor).save_pretrained(out / "model")
again, processor = load(out / "model"), load(out / "model", AutoProcessor)
again.save_pretrained(out / "again")
processor.save_pretrained(out / "again")
found["again"] = sorted(path.name for path in (out / "again").glob("*.py"))
last = out / "again"
assert logits_of(load(last), load(last, AutoProcessor)) == expected
assert load(last, AutoTokenizer)(TEXT[0]).input_ids == processor(text=TEXT[0]).input_ids[0]
assert load(last, AutoImageProcessor).patch_size == 16

base = load(last, AutoModel)
base.save_pretrained(out / "base")
found["base"] = sorted(path.name for path in (out / "base").glob("*.py"))
inputs = processor(text=TEXT, return_tensors="pt")
with torch.no_grad():
    first, second = (each.eval()(**inputs).pooler_output for each in (base, load(out / "base", AutoModel)))
assert torch.equal(first, second)
print(json.dumps([expected, found]))
"""


@pytest.mark.parametrize("source", [pytest.param("folder", marks=pytest.mark.slow), "cache"])
def test_what_was_loaded_is_saved_whole(source, checkpoint, tmp_path):
    folder, expected = checkpoint
    add_to_cache(folder, tmp_path / "home")
    name = folder if source == "folder" else NAME
    logits, found = python(tmp_path / "home", NOT_INSTALLED + PRELUDE + SAVE_ON, name, tmp_path / "out")
    assert_logits(logits, expected)
    for saved, modules in found.items():
        assert set(modules) == MODULES, saved
        for module in modules:
            assert (tmp_path / "out" / saved / module).read_bytes() == (folder / module).read_bytes()


REVISION = """
name, out, sha = sys.argv[1:]
load(name, AutoModel, revision=sha).save_pretrained(out)
print(json.dumps(Path(out, "processing_hf_mamba.py").read_text().splitlines()[-1]))
"""


def test_code_that_was_not_loaded_is_saved_from_the_same_revision(checkpoint, tmp_path):
    for sha, ref, line in (("1" * 40, None, "# of the revision"), ("2" * 40, "main", "# of main")):
        with (add_to_cache(checkpoint[0], tmp_path / "home", sha, ref) / "processing_hf_mamba.py").open("a") as file:
            file.write(f"{line}\n")
    code = NOT_INSTALLED + PRELUDE + REVISION
    assert python(tmp_path / "home", code, NAME, tmp_path / "out", "1" * 40) == "# of the revision"


# --- several versions in one process

VERSIONS = """
from hf_mamba import HFMambaForSequenceClassification
from torch.utils._python_dispatch import TorchDispatchMode

class Operators(TorchDispatchMode):  # in it the scan is an operator of torch, as where a model is compiled
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        names.add(function.name())
        return function(*args, **(kwargs or {}))

folder, double, silent = sys.argv[1:]
models = {"package": HFMambaForSequenceClassification.from_pretrained(folder)}
models |= {name: load(where) for name, where in (("double", double), ("silent", silent), ("same", folder))}
assert len({type(model) for model in models.values()}) == 4
processor = load(folder, AutoProcessor)
logits = [{name: logits_of(model, processor) for name, model in reversed(models.items())}]
names = set()
with Operators():
    logits.append({name: logits_of(model, processor) for name, model in reversed(models.items())})
assert len([name for name in names if name.startswith("hf_mamba::selective_scan")]) == 2, names
print(json.dumps(logits))
"""


# The scan gives zeros, so that a Mamba block passes on its input alone.
SILENT = """def torch_forward(*args, **kwargs):
    y, *rest = loud_forward(*args, **kwargs)
    return 0 * y, *rest


"""


def change(module, old, new):
    code = module.read_text()
    assert code.count(old) == 1
    module.write_text(code.replace(old, new))


@pytest.fixture(scope="module")
def versions(checkpoint, tmp_path_factory):
    """
    Logits of the package and of three checkpoints, two of them with other code, all loaded in one process: in eager
    mode, and with the scan as an operator.
    """
    folder, _ = checkpoint
    home = tmp_path_factory.mktemp("versions")
    for name in ("double", "silent"):
        shutil.copytree(folder, home / name)
    change(home / "double" / "modeling_hf_mamba.py", "logits = self.classifier(", "logits = 2 * self.classifier(")
    (module,) = (path for path in (home / "silent").glob("*.py") if "def torch_forward(" in path.read_text())
    change(module, "def torch_forward(", SILENT + "def loud_forward(")
    return python(home / "home", PRELUDE + VERSIONS, folder, home / "double", home / "silent")


def test_each_checkpoint_computes_by_its_own_code(versions, checkpoint):
    expected = checkpoint[1]
    for logits in versions:
        assert_logits(logits["package"], expected)
        assert_logits(logits["same"], expected)
        assert_logits(logits["double"], 2 * expected)


def test_each_checkpoint_scans_by_its_own_code(versions, checkpoint):
    """torch's registry of operators is one for the whole process."""
    model = HFMambaForSequenceClassification.from_pretrained(checkpoint[0])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("out_proj.weight"):
                parameter.zero_()
    expected = logits_of(model)
    assert (expected - checkpoint[1]).abs().max() > 1e-4
    for logits in versions:
        assert_logits(logits["silent"], expected)


# --- workers

WORKERS = """
class Collator:
    def __init__(self, processor):
        self.processor = processor

    def __call__(self, texts):
        images = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * len(texts)
        return self.processor(text=texts, images=images, return_tensors="pt")

if __name__ == "__main__":
    collate = Collator(load(sys.argv[1], AutoProcessor))
    expected = collate(TEXT)
    for context in ("fork", "spawn"):
        loader = torch.utils.data.DataLoader(
            TEXT, batch_size=2, num_workers=1, multiprocessing_context=context, collate_fn=collate
        )
        for batch in loader:
            assert batch.keys() == expected.keys()
            assert all(torch.equal(batch[name], expected[name]) for name in expected)
    print(json.dumps(True))
"""


@pytest.mark.slow
def test_workers_process_by_remote_code(checkpoint, tmp_path):
    add_to_cache(checkpoint[0], tmp_path / "home")
    assert python(tmp_path / "home", NOT_INSTALLED + PRELUDE + WORKERS, NAME)
