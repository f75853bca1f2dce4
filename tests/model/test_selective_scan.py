"""The scan: every implementation computes Eq. 5, and its gradients are those of Eq. 5."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from hf_mamba.cpu_kernels import say_that_numba_is_missing, why_not_numba
from hf_mamba.selective_scan import (
    CHUNK,
    check_scan_implementation,
    resolve_scan_implementation,
    selective_scan,
)


scan_module = importlib.import_module("hf_mamba.selective_scan")
needs_numba = pytest.mark.skipif(why_not_numba() is not None, reason=f"needs Numba: {why_not_numba()}")
IMPLEMENTATIONS = ["torch", pytest.param("numba", marks=needs_numba)]  # those checked against the reference
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
REFERENCE = {"scan_implementation": "reference"}
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def make_inputs(b=2, e=6, l=33, s=4, dtype=torch.float32, seed=0):
    """The eight tensors, those with a length as views of (b, l, k) memory like the model's."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    u, delta, z = (randn(b, l, e).transpose(1, 2) for _ in range(3))
    B, C = (randn(b, l, s).transpose(1, 2) for _ in range(2))
    return dict(zip(NAMES, (u, delta, -randn(e, s).exp(), B, C, randn(e), z, randn(e))))


def outputs_and_grads(inputs, implementation, dtype=None, delta_softplus=True, grad_y=None):
    """y and the gradient of every input; unless `grad_y` is given, the loss weighs every element of y differently."""
    leaves = {
        name: None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for name, x in inputs.items()
    }
    y = selective_scan(**leaves, delta_softplus=delta_softplus, scan_implementation=implementation)
    if grad_y is None:
        grad_y = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).cos()
    y.backward(grad_y.to(y))
    leaves = {name: x for name, x in leaves.items() if x is not None}
    # without any step the reference never touches some inputs
    grads = {f"grad of {name}": torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}
    return {"y": y.detach()} | grads


def assert_close(got, expected, tolerance):
    """`tolerance` is relative to the largest expected value."""
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        if x.numel() == 0:
            assert got[name].shape == x.shape, name
            continue
        error = (got[name].double() - x.double()).abs().max() / x.double().abs().max().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: {error:.1e}"


def check_against_float64(inputs, implementation, tolerance=1e-5, **kwargs):
    expected = outputs_and_grads(inputs, "reference", torch.float64, **kwargs)
    assert_close(outputs_and_grads(inputs, implementation, **kwargs), expected, tolerance)


def check_operators(inputs, implementation):
    """Torch's own checks, of which one is that memory lies as a compiler is told: what it makes relies on it."""
    inputs = [x.detach().requires_grad_() for x in inputs.values()]
    utilities = {"test_utils": ("test_schema", "test_faketensor")}
    for op in (torch.ops.hf_mamba.selective_scan_v2, torch.ops.hf_mamba.selective_scan_with_states_v2):
        torch.library.opcheck(op.default, (*inputs, True, implementation), **utilities)
    y, states = torch.ops.hf_mamba.selective_scan_with_states_v2(*inputs, True, implementation)
    arguments = (torch.ones_like(y), states, [True] * len(inputs), *(x.detach() for x in inputs), True, implementation)
    torch.library.opcheck(torch.ops.hf_mamba.selective_scan_backward_v2.default, arguments, **utilities)


# ---------------------------------------------------------------------------------------------------------------------
# The numbers


def test_reference_is_equation_5_by_hand():
    # one channel, one state: h1 = 0.5 * 3 * 2 = 3, h2 = exp(-1) * 3 + 1 * 1 * 4
    inputs = {"u": [[[2.0, 4.0]]], "delta": [[[0.5, 1.0]]], "A": [[-1.0]], "B": [[[3.0, 1.0]]], "C": [[[1.0, 10.0]]]}
    inputs = {name: torch.tensor(x) for name, x in inputs.items()}
    expected = torch.tensor([[[3.0, 10 * (3 * torch.tensor(-1.0).exp() + 4)]]])
    for implementation in ("reference", "torch", "auto", *([] if why_not_numba() else ["numba"])):
        torch.testing.assert_close(selective_scan(**inputs, scan_implementation=implementation), expected)


@each_implementation
@pytest.mark.parametrize("b", [0, 1, 5, 129])
@pytest.mark.parametrize(
    "l", [0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 4 * CHUNK + 1]
)
def test_lengths_and_batches(implementation, b, l):
    check_against_float64(make_inputs(b=b, l=l), implementation)


@each_implementation
@pytest.mark.parametrize("s", [1, 2, 7, 8, 16, 64, 70])
@pytest.mark.parametrize("e", [1, 7, 16, 33])
def test_state_sizes_and_odd_channel_counts(implementation, e, s):
    check_against_float64(make_inputs(e=e, s=s), implementation)


@each_implementation
@pytest.mark.parametrize("present", [(), ("D",), ("z",), ("delta_bias",), ("D", "z"), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("delta_softplus", [False, True])
def test_optional_inputs(implementation, present, delta_softplus):
    inputs = make_inputs()
    absent = {name: None for name in ("D", "z", "delta_bias") if name not in present}
    if not delta_softplus:
        inputs["delta"] = inputs["delta"].abs()
    check_against_float64(inputs | absent, implementation, delta_softplus=delta_softplus)


@each_implementation
def test_slow_fast_and_frozen_states(implementation):
    inputs = make_inputs(l=40)
    inputs["A"] = -torch.logspace(-3, 1.9, inputs["A"].numel()).reshape(inputs["A"].shape)  # up to 80 with delta = 1
    inputs["delta"] = torch.rand(inputs["delta"].shape)
    inputs["delta"][:, :, ::3] = 0
    inputs["delta"][:, :, 1::5] = 1
    check_against_float64(inputs | {"delta_bias": None}, implementation, delta_softplus=False)


@each_implementation
def test_growing_states(implementation):
    inputs = make_inputs()
    check_against_float64(inputs | {"A": inputs["A"].abs() / 10}, implementation)
    check_against_float64(inputs | {"A": torch.zeros_like(inputs["A"])}, implementation)


@each_implementation
def test_memory_layout_does_not_matter_and_the_models_is_returned(implementation):
    inputs = make_inputs(l=21)
    contiguous = {name: x.contiguous() for name, x in inputs.items()}
    gaps = {name: torch.stack([x, x * 9], dim=-1)[..., 0] for name, x in inputs.items()}
    expected = outputs_and_grads(inputs, implementation)
    assert expected["y"].transpose(1, 2).is_contiguous()
    assert_close(outputs_and_grads(contiguous, implementation), expected, 1e-6)
    assert_close(outputs_and_grads(gaps, implementation), expected, 1e-6)
    expanded = torch.ones(()).expand(expected["y"].shape)
    assert_close(
        outputs_and_grads(inputs, implementation, grad_y=expanded),
        outputs_and_grads(inputs, implementation, grad_y=expanded.contiguous()),
        1e-6,
    )


def test_gradcheck():
    inputs = [x.requires_grad_() for x in make_inputs(b=2, e=2, l=CHUNK + 2, s=2, dtype=torch.float64).values()]
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, True, scan_implementation="torch"), inputs)


@each_implementation
@pytest.mark.parametrize("wanted", NAMES)
def test_a_gradient_alone_is_the_same(implementation, wanted):
    inputs = make_inputs(l=20)
    expected = outputs_and_grads(inputs, implementation)[f"grad of {wanted}"]
    inputs[wanted].requires_grad_()
    y = selective_scan(*inputs.values(), True, scan_implementation=implementation)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).cos().to(y.dtype))
    torch.testing.assert_close(inputs[wanted].grad, expected, rtol=0, atol=0)
    assert all(x.grad is None for name, x in inputs.items() if name != wanted)


@each_implementation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_in_and_out_with_a_full_state(implementation, dtype):
    inputs = {name: x.to(dtype) for name, x in make_inputs(l=50).items()}
    got = outputs_and_grads(inputs, implementation)
    assert all(x.dtype == dtype for x in got.values())
    # the inputs are exact in float64, so all that is lost is the rounding of the result
    assert_close(got, outputs_and_grads(inputs, "reference", torch.float64), torch.finfo(dtype).eps)


@each_implementation
def test_mixed_dtypes_as_under_autocast(implementation):
    inputs = make_inputs()
    for name in ("delta", "B", "C", "z"):
        inputs[name] = inputs[name].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = outputs_and_grads(inputs, implementation)
    assert {name: x.dtype for name, x in got.items()} == {"y": torch.float32} | {
        f"grad of {name}": x.dtype for name, x in inputs.items()
    }
    assert_close(got, outputs_and_grads(inputs, "reference", torch.float64), torch.finfo(torch.bfloat16).eps)


@each_implementation
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["u", "delta", "B", "C", "z"])
def test_nan_and_infinity_come_out_as_in_the_reference(implementation, where, value):
    inputs = make_inputs(b=3, l=2 * CHUNK + 4)
    inputs[where][1, 2, 2 * CHUNK - 2] = value
    got = check_what_is_not_finite(inputs, implementation)
    assert got["y"][[0, 2]].isfinite().all()  # other rows know nothing of it


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["A", "D", "delta_bias"])
@each_implementation
def test_nan_and_infinity_in_a_parameter_stay_in_its_channel(implementation, where, value):
    inputs = make_inputs(e=20, l=2 * CHUNK + 4)
    inputs[where][3] = value
    got = check_what_is_not_finite(inputs, implementation)
    assert got["y"][:, [*range(3), *range(4, 20)]].isfinite().all()


def check_what_is_not_finite(inputs, implementation):
    """Of inf - inf and inf the order of summation decides, so for gradients just: finite or not."""
    got, expected = outputs_and_grads(inputs, implementation), outputs_and_grads(inputs, "reference", torch.float64)
    torch.testing.assert_close(got["y"], expected["y"].float(), rtol=1e-4, atol=1e-4, equal_nan=True)
    for name in expected:
        finite = expected[name].isfinite()
        assert torch.equal(got[name].isfinite(), finite), name
        torch.testing.assert_close(got[name][finite], expected[name][finite].float(), rtol=1e-4, atol=1e-4)
    return got


@needs_numba
def test_infinity_outlives_any_decay_that_float64_can_tell_from_zero():
    inputs = make_inputs(b=1, e=3, l=9, s=2) | {"delta_bias": None, "z": None, "D": None}
    inputs["A"] = torch.tensor([[-1.0, -1.0], [-150.0, -1.0], [-800.0, -1.0]])  # fp32 ends at 104, float64 at 745
    inputs["delta"], inputs["u"][0, :, 2] = torch.ones(1, 3, 9), float("inf")
    y = selective_scan(**inputs, scan_implementation="numba")
    expected = selective_scan(**{k: v if v is None else v.double() for k, v in inputs.items()}, **REFERENCE)
    torch.testing.assert_close(y, expected.float(), equal_nan=True)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    b=st.integers(1, 5),
    e=st.integers(1, 40),
    l=st.integers(1, 3 * CHUNK + 2),
    s=st.integers(1, 20),
    seed=st.integers(0, 9),
)
@each_implementation
def test_any_shape(implementation, b, e, l, s, seed):
    check_against_float64(make_inputs(b, e, l, s, seed=seed), implementation, tolerance=2e-5)


@each_implementation
def test_time_and_memory_grow_with_length_alone(implementation):
    """65,536 positions, forward and backward: what is kept is a sixteenth of what every state would be."""
    inputs = make_inputs(b=1, e=2, l=2**16, s=2)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        kept = []
        got = outputs_and_grads(inputs, implementation)
    own = {x.data_ptr() for x in inputs.values()}
    assert sum(x.numel() for x in kept if x.data_ptr() not in own) <= 2**16 // CHUNK * 2 * 2
    head = {name: x[:, :, :100] if x.dim() == 3 else x for name, x in inputs.items()}
    expected = selective_scan(**head, delta_softplus=True, **REFERENCE)
    torch.testing.assert_close(got["y"][:, :, :100], expected, rtol=1e-4, atol=1e-5)
    assert all(x.isfinite().all() for x in got.values())


@needs_numba
def test_threads_change_only_the_order_of_sums():
    inputs = make_inputs(b=3, e=70, l=400, s=16)
    for b in (1, 3):  # one row is cut by channels
        part = {name: x[:b] if x.dim() == 3 else x for name, x in inputs.items()}
        results, threads = [], torch.get_num_threads()
        try:
            for number in (1, 2, 2, 5):
                torch.set_num_threads(number)
                results.append(outputs_and_grads(part, "numba"))
        finally:
            torch.set_num_threads(threads)
        one, two, again, five = results
        assert all(torch.equal(two[name], again[name]) for name in two)
        assert torch.equal(one["y"], two["y"])
        assert_close(two, one, 1e-6)
        assert_close(five, one, 1e-6)


@each_implementation
def test_a_row_does_not_depend_on_its_company(implementation):
    inputs = make_inputs(b=300, e=32, s=16, l=35)  # several slabs
    whole = outputs_and_grads(inputs, implementation, grad_y=torch.ones(300, 32, 35))
    for rows in (slice(0, 1), slice(290, 300)):
        part = {name: x[rows] if x.dim() == 3 else x for name, x in inputs.items()}
        alone = outputs_and_grads(part, implementation, grad_y=torch.ones(300, 32, 35)[rows])
        for name in ("y", "grad of u", "grad of delta", "grad of B", "grad of C", "grad of z"):
            assert torch.equal(alone[name], whole[name][rows]), name


@each_implementation
def test_same_call_same_bits(implementation):
    inputs = make_inputs(b=64, e=32, s=16, l=35)
    first, second = (outputs_and_grads(inputs, implementation) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------------------------------------------------------
# Inside torch: memory, checkpointing, compile, export


@each_implementation
def test_states_are_kept_once_a_chunk_and_only_for_training(implementation):
    inputs = make_inputs(l=10 * CHUNK, e=8, s=4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        selective_scan(**inputs, scan_implementation=implementation)
        assert kept == []
        inputs["A"].requires_grad_()
        selective_scan(**inputs, scan_implementation=implementation)
    own = {x.data_ptr() for x in inputs.values()}
    chunks = {"torch": 10, "numba": 5}[implementation]
    assert sum(x.numel() for x in kept if x.data_ptr() not in own) == 2 * chunks * 4 * 8  # b * chunks * s * e


@each_implementation
def test_checkpointing_gives_the_same_gradients(implementation):
    inputs = make_inputs()
    expected = outputs_and_grads(inputs, implementation, grad_y=torch.ones(2, 6, 33))
    leaves = [x.requires_grad_() for x in inputs.values()]
    checkpoint(
        lambda *x: selective_scan(*x, True, scan_implementation=implementation), *leaves, use_reentrant=False
    ).sum().backward()
    for name, x in inputs.items():
        assert torch.equal(x.grad, expected[f"grad of {name}"]), name


class Mixer(torch.nn.Module):
    """The smallest module that reads all it scans with off its input, as the model does."""

    def __init__(self, e=6, s=4):
        super().__init__()
        self.sizes = [e, e, s, s]
        self.proj = torch.nn.Linear(e, sum(self.sizes))
        self.A_log, self.D, self.bias = (torch.nn.Parameter(torch.rand(shape)) for shape in ((e, s), (e,), (e,)))

    def forward(self, x):
        delta, z, B, C = (part.transpose(1, 2) for part in self.proj(x).split(self.sizes, dim=-1))
        y = selective_scan(x.transpose(1, 2), delta, -self.A_log.exp(), B, C, self.D, z, self.bias, True)
        return y.transpose(1, 2)


def test_exports_with_dynamic_batch_and_length():
    torch.manual_seed(0)
    mixer = Mixer()
    dynamic_shapes = {"x": {0: torch.export.Dim("b"), 1: torch.export.Dim("l")}}
    program = torch.export.export(mixer, (torch.randn(2, 20, 6),), dynamic_shapes=dynamic_shapes)
    assert [str(node.target) for node in program.graph.nodes if "scan" in str(node.target)] == [
        "hf_mamba.selective_scan_v2.default"
    ]
    for b, l in ((1, 1), (2, CHUNK), (3, 70)):
        x = torch.randn(b, l, 6)
        torch.testing.assert_close(program.module()(x), mixer(x))


def test_compiled_whole_is_eager():
    torch.manual_seed(0)
    mixer = Mixer()
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    for l in (20, 33):  # the second length makes the graph dynamic
        x = torch.randn(2, l, 6)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), mixer(x))
        grads = []
        for module in (compiled, mixer):
            mixer.zero_grad()
            module(x).square().sum().backward()
            grads.append([p.grad.clone() for p in mixer.parameters()])
        torch.testing.assert_close(grads[0], grads[1])


@each_implementation
@pytest.mark.parametrize("b", [0, 2])
def test_operators_pass_torchs_own_checks(implementation, b):
    check_operators(make_inputs(b=b, e=3, l=2 * CHUNK + 1, s=2), implementation)


@each_implementation
def test_operators_and_eager_mode_are_the_same_kernel(implementation, monkeypatch):
    inputs = make_inputs()
    expected = outputs_and_grads(inputs, implementation)
    monkeypatch.setattr(scan_module, "is_plain_eager", lambda *_: False)
    got = outputs_and_grads(inputs, implementation)
    assert all(torch.equal(got[name], x) for name, x in expected.items())


def copy_of_the_scan(folder, name, change=("", "")):
    """The scan's files as another checkpoint brings them, `change`d in the reference-free part."""
    folder = folder / name
    folder.mkdir()
    for path in Path(scan_module.__file__).parent.glob("*.py"):
        if path.name.startswith(("selective_scan", "vectors_numba", "block_numba", "cpu_kernels", "gpu_kernels")):
            (folder / path.name).write_text(path.read_text("utf-8").replace(*change), "utf-8")
    (folder / "__init__.py").touch()
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{name}.selective_scan")


def test_a_copy_of_the_same_code_shares_the_operators(tmp_path, monkeypatch):
    copy = copy_of_the_scan(tmp_path, "same_code")
    assert copy._inference_op is scan_module._inference_op and copy._training_op is scan_module._training_op


@pytest.mark.parametrize("requires_grad", [False, True])
def test_different_code_in_one_process_computes_with_its_own_kernel(requires_grad, tmp_path):
    """Even if its author forgot to change the version: whichever was first keeps the name."""
    name = f"different_code_{requires_grad}"
    other = copy_of_the_scan(tmp_path, name, ("y[rows] = _transposed(o)", "y[rows] = _transposed(o) * 0 + 7"))
    inputs = make_inputs()
    inputs["u"].requires_grad_(requires_grad)
    for is_eager in (True, False):
        for module in (other, scan_module):
            module_is_eager, module.is_plain_eager = module.is_plain_eager, lambda *_, answer=is_eager: answer
            y = module.selective_scan(**inputs, scan_implementation="torch")
            module.is_plain_eager = module_is_eager
            assert (y == 7).all() == (module is other)


# ---------------------------------------------------------------------------------------------------------------------
# Choosing an implementation, and mistakes


def without_numba(monkeypatch):
    for module in (scan_module, importlib.import_module("hf_mamba.cpu_kernels")):
        monkeypatch.setattr(module, "why_not_numba", lambda: "ImportError: No module named 'numba'")


def test_what_auto_runs(monkeypatch, caplog):
    monkeypatch.setattr(scan_module, "mamba_ssm_selective_scan", lambda *_: pytest.fail("reached by CPU tensors"))
    monkeypatch.setattr(scan_module, "why_not_numba", lambda: None)
    assert resolve_scan_implementation("auto", torch.device("cuda:1")) == "mamba_ssm"
    assert resolve_scan_implementation("auto", torch.device("cuda:1"), torch.float64) == "torch"
    assert resolve_scan_implementation("auto", "cpu") == "numba"
    assert resolve_scan_implementation("auto", "cpu", torch.float64) == "torch"
    assert resolve_scan_implementation("auto", "mps") == "torch"
    assert resolve_scan_implementation("numba", "cuda") == "torch"
    with pytest.raises(ValueError, match="CUDA only"):
        selective_scan(**make_inputs(), scan_implementation="mamba_ssm")
    monkeypatch.setattr(scan_module, "mamba_ssm_selective_scan", None)
    monkeypatch.setattr(scan_module, "why_not_triton", lambda _: None)
    assert resolve_scan_implementation("auto", torch.device("cuda")) == "triton"
    assert resolve_scan_implementation("auto", torch.device("cuda"), torch.float64) == "torch"
    assert resolve_scan_implementation("auto", "cpu") == "numba"
    monkeypatch.setattr(scan_module, "why_not_triton", lambda _: "it doesn't work")
    assert resolve_scan_implementation("auto", torch.device("cuda")) == "torch"
    with pytest.raises(ValueError, match="pip install"):
        resolve_scan_implementation("mamba_ssm", torch.device("cuda"))


@pytest.mark.parametrize("name, kernel", [("mamba_ssm", "mamba_ssm_selective_scan"), ("triton", "triton_forward")])
def test_a_kernel_for_cuda_is_refused_where_it_is_missing_or_the_tensors_are_on_cpu(name, kernel, monkeypatch):
    monkeypatch.setattr(scan_module, kernel, lambda *_: pytest.fail("reached by CPU tensors"))
    monkeypatch.setattr(scan_module, "why_not_triton", lambda device: f"not for {device}")
    check_scan_implementation(name)  # a model may be made on CPU, and moved then
    with pytest.raises(ValueError, match=f"'{name}'.* on cpu.*move the model"):
        selective_scan(**make_inputs(), scan_implementation=name)
    monkeypatch.setattr(scan_module, kernel, None)
    with pytest.raises(ValueError, match=f"'{name}'.*pip install"):
        check_scan_implementation(name)


def test_without_numba_auto_is_torch_and_says_so_once(monkeypatch, caplog):
    without_numba(monkeypatch)
    say_that_numba_is_missing.cache_clear()
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

    monkeypatch.setattr(scan_module, "mamba_ssm_selective_scan", kernel)
    monkeypatch.setattr(scan_module, "resolve_scan_implementation", lambda *_: "torch" if seen else "mamba_ssm")
    inputs = make_inputs() | {"delta_bias": None}
    inputs["u"] = inputs["u"].bfloat16()
    selective_scan(**inputs, delta_softplus=True)
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = seen
    assert all(x.dtype == torch.bfloat16 and x.is_contiguous() for x in (u, delta, B, C, z))
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in (A, D))
    assert delta_bias is None and delta_softplus is True


def test_unknown_implementation_lists_the_choices():
    with pytest.raises(ValueError, match="'fast'.*'auto', 'reference', 'torch', 'numba', 'triton', 'mamba_ssm'"):
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
