"""Which implementation of the scan runs where, and the mistakes that are refused."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from functools import cache

import pytest
import torch
from scan_checks import NAMES, make_inputs, outputs_and_grads

from hf_mamba import scan_kernels
from hf_mamba.scan_kernels import KERNELS
from hf_mamba.selective_scan import check_scan_implementation, resolve_scan_implementation, selective_scan


scan_module = importlib.import_module("hf_mamba.selective_scan")


def pretend(monkeypatch, name, **fields):
    """Changes a kernel's line of the table for one test."""
    monkeypatch.setitem(KERNELS, name, replace(KERNELS[name], **fields))


def fails(*_, **__):
    pytest.fail("a kernel was called where it can't run")


def test_what_auto_runs(monkeypatch):
    pretend(monkeypatch, "mamba_ssm", why_not=lambda device: None if device in ("cuda", None) else "no", whole=fails)
    pretend(monkeypatch, "numba", why_not=lambda device: None if device in ("cpu", None) else "no")
    assert resolve_scan_implementation("auto", torch.device("cuda:1")) == "mamba_ssm"
    assert resolve_scan_implementation("auto", torch.device("cuda:1"), torch.float64) == "torch"
    assert resolve_scan_implementation("auto", "cpu") == "numba"
    assert resolve_scan_implementation("auto", "cpu", torch.float64) == "torch"
    assert resolve_scan_implementation("auto", "mps") == "torch"
    assert resolve_scan_implementation("numba", "cuda") == "torch"
    with pytest.raises(ValueError, match="'mamba_ssm'.*on cpu"):
        selective_scan(**make_inputs(), scan_implementation="mamba_ssm")
    pretend(monkeypatch, "mamba_ssm", why_not=lambda device: "it isn't there")
    pretend(monkeypatch, "triton", why_not=lambda device: None)
    assert resolve_scan_implementation("auto", torch.device("cuda")) == "triton"
    assert resolve_scan_implementation("auto", torch.device("cuda"), torch.float64) == "torch"
    assert resolve_scan_implementation("auto", "cpu") == "numba"
    pretend(monkeypatch, "triton", why_not=lambda device: "it doesn't work")
    assert resolve_scan_implementation("auto", torch.device("cuda")) == "torch"
    with pytest.raises(ValueError, match="pip install"):
        resolve_scan_implementation("mamba_ssm", torch.device("cuda"))


@pytest.mark.parametrize("name", ["mamba_ssm", "triton"])
def test_a_kernel_for_cuda_is_refused_where_it_is_missing_or_the_tensors_are_on_cpu(name, monkeypatch):
    called = {"whole": fails} if name == "mamba_ssm" else {"forward": fails}
    pretend(monkeypatch, name, why_not=lambda device: device and f"not for {device}", **called)
    check_scan_implementation(name)  # a model may be made on CPU, and moved then
    with pytest.raises(ValueError, match=f"'{name}'.* on cpu.*move the model.* cuda"):
        selective_scan(**make_inputs(), scan_implementation=name)
    pretend(monkeypatch, name, why_not=lambda device: "it isn't there")
    with pytest.raises(ValueError, match=f"'{name}'.*it isn't there.*pip install"):
        check_scan_implementation(name)


def test_without_numba_auto_is_torch_and_logs_so_once(monkeypatch, caplog):
    monkeypatch.setattr(scan_kernels, "_no_numba", "ImportError: No module named 'numba'")
    monkeypatch.setattr(scan_kernels, "_numba_problem", cache(scan_kernels._numba_problem.__wrapped__))
    for _ in range(3):
        selective_scan(**make_inputs())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "No module named 'numba'" in caplog.text and "pip install numba" in caplog.text
    with pytest.raises(ValueError, match="pip install numba"):
        selective_scan(**make_inputs(), scan_implementation="numba")
    # a program that was exported with Numba runs without it
    op = torch.ops.hf_mamba.selective_scan_v2.default
    inputs = make_inputs()
    expected = selective_scan(**inputs, scan_implementation="torch")
    assert torch.equal(op(*inputs.values(), False, "numba"), expected)


def test_mamba_ssm_gets_what_its_kernel_wants(monkeypatch):
    seen = []

    def kernel(*arguments):
        seen.extend(arguments)
        return selective_scan(*arguments, scan_implementation="torch")

    monkeypatch.setattr(scan_kernels, "mamba_ssm_selective_scan", kernel)
    pretend(monkeypatch, "mamba_ssm", why_not=lambda device: None)
    inputs = make_inputs() | {"delta_bias": None}
    inputs["u"] = inputs["u"].bfloat16()
    selective_scan(**inputs, delta_softplus=True, scan_implementation="mamba_ssm")
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = seen
    assert all(x.dtype == torch.bfloat16 and x.is_contiguous() for x in (u, delta, B, C, z))
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in (A, D))
    assert delta_bias is None and delta_softplus is True


@pytest.mark.parametrize("sizes", [{"s": 257, "e": 1, "l": 3}, {"b": 0}, {"l": 0}], ids=str)
def test_what_mamba_ssms_kernel_cannot_do_is_left_to_torch(sizes, monkeypatch):
    pretend(monkeypatch, "mamba_ssm", why_not=lambda device: None, whole=fails)
    inputs = make_inputs(**sizes)
    y = selective_scan(**inputs, scan_implementation="mamba_ssm")
    assert torch.equal(y, selective_scan(**inputs, scan_implementation="torch"))


# --- a new kernel


def test_a_new_kernel_is_named_in_one_place(monkeypatch):
    """A line of the table makes it selectable, in eager mode, compiled and exported, with its gradients."""
    calls = []

    def forward(*arguments, keep_states):
        calls.append("forward")
        return scan_kernels.torch_forward(*arguments, keep_states=keep_states)

    def backward(*arguments):
        calls.append("backward")
        return scan_kernels.torch_backward(*arguments)

    inputs = make_inputs()
    expected = outputs_and_grads(inputs, "torch")
    with pytest.raises(ValueError, match="'fake'"):
        selective_scan(**inputs, scan_implementation="fake")
    fake = scan_kernels.Kernel(forward, backward, KERNELS["torch"].chunk, (), why_not=lambda device: None)
    monkeypatch.setitem(KERNELS, "fake", fake)
    check_scan_implementation("fake")
    for is_eager in (True, False):
        calls.clear()
        with monkeypatch.context() as patch:
            if not is_eager:
                patch.setattr(scan_module, "is_plain_eager", lambda *_: False)
            got = outputs_and_grads(inputs, "fake")
        assert all(torch.equal(got[name], x) for name, x in expected.items())
        assert calls == ["forward", "backward"]

    class Scan(torch.nn.Module):
        def forward(self, *tensors):
            return selective_scan(*tensors, True, scan_implementation="fake")

    for module in (
        torch.compile(Scan(), fullgraph=True, backend="aot_eager"),
        torch.export.export(Scan(), tuple(inputs.values())).module(),
    ):
        calls.clear()
        torch.testing.assert_close(module(*inputs.values()), expected["y"])
        assert calls == ["forward"]


def test_a_new_kernel_gives_way_to_torch_where_it_cannot_compute(monkeypatch):
    fake = scan_kernels.Kernel(fails, fails, 1, (), why_not=lambda device: None, largest_state=3)
    monkeypatch.setitem(KERNELS, "fake", fake)
    inputs = make_inputs(s=4)
    expected = outputs_and_grads(inputs, "torch")
    got = outputs_and_grads(inputs, "fake")
    assert all(torch.equal(got[name], x) for name, x in expected.items())
    double = {name: x.double() for name, x in make_inputs(s=3).items()}
    selective_scan(**double, scan_implementation="fake")  # kernels' states are fp32
    monkeypatch.setitem(KERNELS, "fake", replace(fake, why_not=lambda device: device and "only tomorrow"))
    with pytest.raises(ValueError, match="'fake'.*on cpu .only tomorrow"):
        selective_scan(**inputs, scan_implementation="fake")
    monkeypatch.setitem(KERNELS, "fake", replace(KERNELS["fake"], torch_elsewhere=True))
    assert resolve_scan_implementation("fake", "cpu") == "torch"


# --- mistakes


def test_unknown_implementation_lists_the_choices():
    with pytest.raises(ValueError, match="'fast'.*'auto', 'reference', 'mamba_ssm', 'triton', 'numba', 'torch'"):
        selective_scan(**make_inputs(), scan_implementation="fast")


@pytest.mark.parametrize("name", NAMES)
def test_mistakes_name_the_argument(name):
    inputs = make_inputs()
    with pytest.raises(ValueError, match=f"^{name} must be real floating point"):
        selective_scan(**inputs | {name: inputs[name].to(torch.complex64)})
    with pytest.raises(ValueError, match=f"^{name} must have shape"):
        selective_scan(**inputs | {name: inputs[name][None]})
    if name not in ("u", "A"):  # these two say how large b, e, l and s are
        with pytest.raises(ValueError, match=f"^{name} must have shape"):
            selective_scan(**inputs | {name: inputs[name][..., :-1]})
        with pytest.raises(ValueError, match=f"^{name} is on meta"):
            selective_scan(**inputs | {name: inputs[name].to("meta")})


CUDA_PACKAGES = {
    "mamba_ssm/__init__.py": "",
    "mamba_ssm/ops/__init__.py": "",
    "mamba_ssm/ops/selective_scan_interface.py": "def selective_scan_fn(*args): raise NameError('no extension')",
    "causal_conv1d/__init__.py": "def causal_conv1d_fn(*args, **kwargs): raise NameError('no extension')",
}
WHAT_IS_PRESENT = """
import json
from hf_mamba import block_layers, scan_kernels
from hf_mamba.scan_kernels import KERNELS
print(json.dumps([KERNELS["mamba_ssm"].why_not("cuda"), block_layers.causal_conv1d_fn is not None]))
"""


@pytest.mark.parametrize("extensions", ["", "raise ImportError('undefined symbol')", "loads"])
def test_the_cuda_packages_count_only_with_their_extensions(extensions, tmp_path, monkeypatch):
    """Both can be installed without: their functions then import, and raise when they are called."""
    files = dict(CUDA_PACKAGES)
    if extensions:
        code = "" if extensions == "loads" else extensions
        files |= {"selective_scan_cuda.py": code, "causal_conv1d_cuda.py": code}
    for name, code in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", WHAT_IS_PRESENT], capture_output=True, text=True, check=True)
    why_not_mamba_ssm, has_causal_conv1d = json.loads(done.stdout.splitlines()[-1])
    assert has_causal_conv1d == (extensions == "loads")
    if extensions == "loads":
        assert why_not_mamba_ssm is None
    else:
        assert "selective_scan_cuda" in why_not_mamba_ssm or "undefined symbol" in why_not_mamba_ssm
