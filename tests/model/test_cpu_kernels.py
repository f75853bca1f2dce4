"""Numba's kernels: the block's against PyTorch's operators, and all of them in processes of every kind."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_model import make_model

import hf_mamba
from hf_mamba import block_layers
from hf_mamba.scan_kernels import is_plain_eager, why_not_numba


needs_numba = pytest.mark.skipif(why_not_numba() is not None, reason=f"needs Numba: {why_not_numba()}")
ROOT = Path(hf_mamba.__file__).parent


def outputs_and_grads(function, *inputs):
    inputs = [x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs]
    y = function(*inputs)
    grad_y = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).cos().reshape(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad_y)]


def check(function, monkeypatch, *inputs):
    """fp32 on Numba, and on PyTorch's operators, against the latter in float64."""
    expected = outputs_and_grads(function, *(x.double() for x in inputs))
    for fused in (True, False):
        with monkeypatch.context() as patch:
            if not fused:
                patch.setattr(block_layers, "runs_on_cpu_kernels", lambda *_: False)
            for got, x in zip(outputs_and_grads(function, *inputs), expected):
                finite = x.isfinite()
                assert torch.equal(got.isfinite(), finite)
                scale = x[finite].abs().max().clamp(min=1e-30) if finite.any() else 1
                assert ((got[finite].double() - x[finite]).abs() / scale <= 1e-5).all()


@needs_numba
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("b", "l", "e", "k"), [(1, 1, 1, 4), (3, 2, 5, 4), (2, 40, 33, 4), (2, 9, 16, 1), (1, 9, 70, 7)]
)
def test_convolution_is_pytorchs(b, l, e, k, value, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    xz, weight = torch.randn(b, l, 2 * e, generator=generator), torch.randn(e, 1, k, generator=generator)
    x, bias = xz[..., :e], torch.randn(e, generator=generator)  # one half of a projection, as in the model
    if value is not None:
        x[-1, l // 2, e // 2] = value
    check(block_layers.causal_conv_silu, monkeypatch, x, weight, bias)
    if value is None:
        check(lambda x, weight: block_layers.causal_conv_silu(x, weight), monkeypatch, x, weight)
        y = block_layers.causal_conv_silu(x, weight, bias)
        expected = F.conv1d(x.transpose(1, 2), weight, bias, padding=k - 1, groups=e)[..., :l]
        torch.testing.assert_close(y, F.silu(expected).transpose(1, 2), rtol=1e-5, atol=1e-5)


@needs_numba
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(1, 3), (2, 3, 16), (4, 5, 70), (1, 64)])
def test_norm_is_pytorchs(shape, value, monkeypatch):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if value is not None:
        x.view(-1)[0] = value

    def norm(x, weight):
        return torch.func.functional_call(block_layers.RMSNorm(x.shape[-1], eps=1e-5), {"weight": weight}, (x,))

    check(norm, monkeypatch, x, torch.linspace(0.5, 2, shape[-1]))


@needs_numba
def test_threads_change_only_the_order_of_sums():
    x, weight, bias = torch.randn(9, 400, 70), torch.randn(70, 1, 4), torch.randn(70)
    results, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 2):
            torch.set_num_threads(number)
            results.append(outputs_and_grads(block_layers.causal_conv_silu, x, weight, bias))
    finally:
        torch.set_num_threads(threads)
    one, two, again = results
    assert all(torch.equal(a, b) for a, b in zip(two, again))
    for a, b in zip(one, two):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_what_is_not_plain_keeps_to_operators():
    x = torch.zeros(2)
    assert is_plain_eager(x, None, torch.nn.Parameter(x))
    with torch._subclasses.FakeTensorMode():
        assert not is_plain_eager(torch.zeros(2))
    assert not torch.func.vmap(lambda y: y + is_plain_eager(y))(x).any()
    assert not torch.func.grad(lambda y: y.sum() * is_plain_eager(y))(x).any()


# ---------------------------------------------------------------------------------------------------------------------
# In other processes

SCAN = """
import torch
from hf_mamba.selective_scan import resolve_scan_implementation, selective_scan

def scan(seed=0, b=8):
    generator = torch.Generator().manual_seed(seed)
    u, delta, z = (torch.randn(b, 200, 64, generator=generator).transpose(1, 2) for _ in range(3))
    B, C = (torch.randn(b, 200, 16, generator=generator).transpose(1, 2) for _ in range(2))
    A = -torch.rand(64, 16, generator=generator).requires_grad_()
    y = selective_scan(u, delta, A, B, C, z=z, delta_softplus=True)
    (grad,) = torch.autograd.grad(y.sum(), A)
    return torch.cat([y.detach().flatten(), grad.flatten()])
"""


def python(script, *path, **environment):
    """Runs a script in a new process, folders of `path` first; returns what it printed and what it logged."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(map(str, path)), **environment}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    "numba", ["raise ImportError('none here')", "raise RuntimeError('a broken install')", "jit = None"]
)
def test_without_numba_or_with_a_broken_one_everything_works_and_says_so_once(numba, tmp_path):
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(numba)
    script = SCAN + "first, second = scan(), scan(); print(resolve_scan_implementation('auto', 'cpu'), len(first))"
    out, err = python(script, tmp_path)
    assert out.split()[0] == "torch"
    assert err.count("pip install numba") == 1


@needs_numba
def test_without_a_folder_for_its_cache_numba_still_runs_and_says_so_once():
    script = """
    import numba.core.caching
    def refuse(self):
        raise OSError("read-only")
    numba.core.caching._CacheLocator.ensure_cache_path = refuse
    """
    out, err = python(textwrap.dedent(script) + SCAN + "scan(); print(resolve_scan_implementation('auto', 'cpu'))")
    assert out.split() == ["numba"]
    assert err.count("NUMBA_CACHE_DIR") == 1


@needs_numba
def test_a_second_process_loads_what_the_first_compiled_and_notices_changed_code(tmp_path):
    package = tmp_path / "a_checkpoints_code"
    package.mkdir()
    for path in ROOT.glob("*.py"):
        shutil.copy(path, package)
    script = """
    from a_checkpoints_code.selective_scan_numba import _forward, compile_kernels
    compile_kernels(_forward)
    print(sum(_forward.stats.cache_hits.values()))
    """
    assert [python(script, tmp_path)[0].strip() for _ in range(2)] == ["0", "1"]
    vectors = package / "vectors_numba.py"
    vectors.write_text(vectors.read_text("utf-8") + "\n# changed\n", "utf-8")
    assert python(script, tmp_path)[0].strip() == "0"


@needs_numba
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_compute_what_their_parent_does(start_method, tmp_path):
    """DataLoader's workers, started after the parent's threads; torch gives each one thread, so ask for two."""
    (tmp_path / "scan_for_workers.py").write_text(
        SCAN
        + textwrap.dedent("""
        from hf_mamba import vectors_numba
        vectors_numba.num_tasks = lambda work, most: 2

        class Scans(torch.utils.data.Dataset):
            def __len__(self):
                return 4

            def __getitem__(self, index):
                return scan(index)
        """)
    )
    script = f"""
    import torch
    from scan_for_workers import Scans, scan
    if __name__ == "__main__":
        expected = [scan(i) for i in range(4)]
        loader = torch.utils.data.DataLoader(
            Scans(), batch_size=None, num_workers=2, multiprocessing_context="{start_method}"
        )
        for got, x in zip(loader, expected):
            assert torch.equal(got, x)
        print("equal")
    """
    assert python(script, tmp_path)[0].split() == ["equal"]


@pytest.mark.parametrize("numba", [pytest.param("there", marks=needs_numba), "missing"])
def test_a_checkpoint_from_the_hub_uses_numba_where_it_is_and_works_where_it_is_not(numba, tmp_path):
    """In a process that never heard of this package; from a Hub cache transformers checks every file's imports."""
    snapshot = tmp_path / "hub" / "models--someone--posts" / "snapshots" / ("0" * 40)
    make_model().save_pretrained(snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    (tmp_path / "path" / "hf_mamba").mkdir(parents=True)
    (tmp_path / "path" / "hf_mamba" / "__init__.py").write_text("raise ImportError('not installed here')")
    if numba == "missing":
        (tmp_path / "path" / "sitecustomize.py").write_text(
            "import sys\n"
            "class Hidden:\n"
            "    def find_spec(self, name, path=None, target=None):\n"
            "        if name.partition('.')[0] in ('numba', 'llvmlite'):\n"
            "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
            "sys.meta_path.insert(0, Hidden())\n"
        )
    script = """
    import torch
    from transformers import AutoModelForSequenceClassification
    model = AutoModelForSequenceClassification.from_pretrained("someone/posts", trust_remote_code=True)
    print(model.describe_scan().split()[-1])
    torch.manual_seed(0)
    logits = model(input_ids=torch.randint(2, 60, (2, 9)), pixel_values=torch.randn(2, 4, 192)).logits
    print(*logits.flatten().tolist())
    """
    out, err = python(
        script, tmp_path / "path", HF_HUB_CACHE=str(tmp_path / "hub"), HF_MODULES_CACHE=str(tmp_path / "code")
    )
    name, logits = out.splitlines()[0], [float(x) for x in out.splitlines()[1].split()]
    assert name == ("torch." if numba == "missing" else "numba.")
    assert ("pip install numba" in err) == (numba == "missing")
    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(2, 60, (2, 9)), "pixel_values": torch.randn(2, 4, 192)}
    torch.testing.assert_close(
        torch.tensor(logits), make_model()(**inputs).logits.detach().flatten(), rtol=0, atol=1e-5
    )
