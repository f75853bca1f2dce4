"""The scan: every implementation computes Eq. 5, and its gradients are those of Eq. 5."""

import importlib.util

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from hf_mamba.selective_scan import CHUNK, resolve_scan_implementation, selective_scan


scan_module = importlib.import_module("hf_mamba.selective_scan")
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
    y.backward(grad_y.to(y.dtype))
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


def check_against_float64(inputs, tolerance=1e-5, **kwargs):
    expected = outputs_and_grads(inputs, "reference", torch.float64, **kwargs)
    assert_close(outputs_and_grads(inputs, "torch", **kwargs), expected, tolerance)


# ---------------------------------------------------------------------------------------------------------------------
# The numbers


def test_reference_is_equation_5_by_hand():
    # one channel, one state: h1 = 0.5 * 3 * 2 = 3, h2 = exp(-1) * 3 + 1 * 1 * 4
    inputs = {"u": [[[2.0, 4.0]]], "delta": [[[0.5, 1.0]]], "A": [[-1.0]], "B": [[[3.0, 1.0]]], "C": [[[1.0, 10.0]]]}
    inputs = {name: torch.tensor(x) for name, x in inputs.items()}
    expected = torch.tensor([[[3.0, 10 * (3 * torch.tensor(-1.0).exp() + 4)]]])
    for implementation in ("reference", "torch", "auto"):
        torch.testing.assert_close(selective_scan(**inputs, scan_implementation=implementation), expected)


@pytest.mark.parametrize("b", [0, 1, 5])
@pytest.mark.parametrize("l", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 1])
def test_lengths_and_batches(b, l):
    check_against_float64(make_inputs(b=b, l=l))


@pytest.mark.parametrize("s", [1, 8, 16])
@pytest.mark.parametrize("e", [1, 7])
def test_state_sizes_and_odd_channel_counts(e, s):
    check_against_float64(make_inputs(e=e, s=s))


@pytest.mark.parametrize("present", [(), ("D",), ("z",), ("delta_bias",), ("D", "z"), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("delta_softplus", [False, True])
def test_optional_inputs(present, delta_softplus):
    inputs = make_inputs()
    absent = {name: None for name in ("D", "z", "delta_bias") if name not in present}
    if not delta_softplus:
        inputs["delta"] = inputs["delta"].abs()
    check_against_float64(inputs | absent, delta_softplus=delta_softplus)


def test_slow_fast_and_frozen_states():
    inputs = make_inputs(l=40)
    inputs["A"] = -torch.logspace(-3, 1.9, inputs["A"].numel()).reshape(inputs["A"].shape)  # up to 80 with delta = 1
    inputs["delta"] = torch.rand(inputs["delta"].shape)
    inputs["delta"][:, :, ::3] = 0
    inputs["delta"][:, :, 1::5] = 1
    check_against_float64(inputs | {"delta_bias": None}, delta_softplus=False)


def test_growing_states():
    inputs = make_inputs()
    check_against_float64(inputs | {"A": inputs["A"].abs() / 10})
    check_against_float64(inputs | {"A": torch.zeros_like(inputs["A"])})


def test_memory_layout_does_not_matter_and_the_models_is_returned():
    inputs = make_inputs(l=21)
    contiguous = {name: x.contiguous() for name, x in inputs.items()}
    gaps = {name: torch.stack([x, x * 9], dim=-1)[..., 0] for name, x in inputs.items()}
    expected = outputs_and_grads(inputs, "torch")
    assert expected["y"].transpose(1, 2).is_contiguous()
    assert_close(outputs_and_grads(contiguous, "torch"), expected, 1e-6)
    assert_close(outputs_and_grads(gaps, "torch"), expected, 1e-6)
    expanded = torch.ones(()).expand(expected["y"].shape)
    assert_close(
        outputs_and_grads(inputs, "torch", grad_y=expanded),
        outputs_and_grads(inputs, "torch", grad_y=expanded.contiguous()),
        1e-6,
    )


def test_gradcheck():
    inputs = [x.requires_grad_() for x in make_inputs(b=2, e=2, l=CHUNK + 2, s=2, dtype=torch.float64).values()]
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, True, scan_implementation="torch"), inputs)


@pytest.mark.parametrize("wanted", NAMES)
def test_a_gradient_alone_is_the_same(wanted):
    inputs = make_inputs(l=20)
    expected = outputs_and_grads(inputs, "torch")[f"grad of {wanted}"]
    inputs[wanted].requires_grad_()
    y = selective_scan(*inputs.values(), True)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).cos().to(y.dtype))
    torch.testing.assert_close(inputs[wanted].grad, expected, rtol=0, atol=0)
    assert all(x.grad is None for name, x in inputs.items() if name != wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_in_and_out_with_a_full_state(dtype):
    inputs = {name: x.to(dtype) for name, x in make_inputs(l=50).items()}
    got = outputs_and_grads(inputs, "torch")
    assert all(x.dtype == dtype for x in got.values())
    # the inputs are exact in float64, so all that is lost is the rounding of the result
    assert_close(got, outputs_and_grads(inputs, "reference", torch.float64), torch.finfo(dtype).eps)


def test_mixed_dtypes_as_under_autocast():
    inputs = make_inputs()
    for name in ("delta", "B", "C", "z"):
        inputs[name] = inputs[name].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = outputs_and_grads(inputs, "torch")
    assert {name: x.dtype for name, x in got.items()} == {"y": torch.float32} | {
        f"grad of {name}": x.dtype for name, x in inputs.items()
    }
    assert_close(got, outputs_and_grads(inputs, "reference", torch.float64), torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["u", "delta", "B", "C", "z"])
def test_nan_and_infinity_come_out_as_in_the_reference(where, value):
    inputs = make_inputs(b=3, l=CHUNK + 4)
    inputs[where][1, 2, CHUNK - 2] = value
    got, expected = (outputs_and_grads(inputs, name) for name in ("torch", "reference"))
    torch.testing.assert_close(got["y"], expected["y"], equal_nan=True)
    for name in expected:  # of inf - inf and inf the order of summation decides, so here just: finite or not
        finite = expected[name].isfinite()
        assert torch.equal(got[name].isfinite(), finite), name
        torch.testing.assert_close(got[name][finite], expected[name][finite], rtol=1e-4, atol=1e-4)
    assert got["y"][[0, 2]].isfinite().all()  # other rows know nothing of it


def test_a_row_does_not_depend_on_its_company():
    inputs = make_inputs(b=300, e=32, s=16, l=35)  # several slabs
    whole = outputs_and_grads(inputs, "torch", grad_y=torch.ones(300, 32, 35))
    for rows in (slice(0, 1), slice(290, 300)):
        part = {name: x[rows] if x.dim() == 3 else x for name, x in inputs.items()}
        alone = outputs_and_grads(part, "torch", grad_y=torch.ones(300, 32, 35)[rows])
        for name in ("y", "grad of u", "grad of delta", "grad of B", "grad of C", "grad of z"):
            assert torch.equal(alone[name], whole[name][rows]), name


def test_same_call_same_bits():
    inputs = make_inputs(b=64, e=32, s=16, l=35)
    first, second = (outputs_and_grads(inputs, "torch") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------------------------------------------------------------
# Inside torch: memory, checkpointing, compile, export


def test_states_are_kept_once_a_chunk_and_only_for_training():
    inputs = make_inputs(l=10 * CHUNK, e=8, s=4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        selective_scan(**inputs)
        assert kept == []
        inputs["A"].requires_grad_()
        selective_scan(**inputs)
    own = {x.data_ptr() for x in inputs.values()}
    assert sum(x.numel() for x in kept if x.data_ptr() not in own) == 2 * 10 * 4 * 8  # b * chunks * s * e


def test_checkpointing_gives_the_same_gradients():
    inputs = make_inputs()
    expected = outputs_and_grads(inputs, "torch", grad_y=torch.ones(2, 6, 33))
    leaves = [x.requires_grad_() for x in inputs.values()]
    checkpoint(lambda *x: selective_scan(*x, True), *leaves, use_reentrant=False).sum().backward()
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
        "hf_mamba.selective_scan_v1.default"
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


def test_operators_pass_torchs_own_checks():
    inputs = [x.requires_grad_() for x in make_inputs(b=1, e=3, l=CHUNK + 1, s=2).values()]
    for op in (torch.ops.hf_mamba.selective_scan_v1, torch.ops.hf_mamba.selective_scan_with_states_v1):
        utilities = ("test_schema", "test_faketensor")
        torch.library.opcheck(op.default, (*inputs, True, "torch"), test_utils=utilities)


def test_a_second_copy_of_the_file_keeps_the_first_ones_operators():
    spec = importlib.util.spec_from_file_location("another_checkpoints_selective_scan", scan_module.__file__)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    copy.KERNELS["torch"] = None  # were its kernels used now, everything would fail
    inputs = make_inputs()
    assert torch.equal(copy.selective_scan(**inputs), selective_scan(**inputs))
    inputs["A"].requires_grad_()
    copy.selective_scan(**inputs).sum().backward()


# ---------------------------------------------------------------------------------------------------------------------
# Choosing an implementation, and mistakes


def test_auto_takes_mamba_ssm_only_on_cuda(monkeypatch):
    monkeypatch.setattr(scan_module, "mamba_ssm_selective_scan", lambda *_: pytest.fail("reached by CPU tensors"))
    assert resolve_scan_implementation("auto", torch.device("cuda:1")) == "mamba_ssm"
    assert resolve_scan_implementation("auto", "cpu") == "torch"
    selective_scan(**make_inputs())
    with pytest.raises(ValueError, match="CUDA only"):
        selective_scan(**make_inputs(), scan_implementation="mamba_ssm")
    monkeypatch.setattr(scan_module, "mamba_ssm_selective_scan", None)
    assert resolve_scan_implementation("auto", torch.device("cuda")) == "torch"
    with pytest.raises(ValueError, match="pip install"):
        resolve_scan_implementation("mamba_ssm", torch.device("cuda"))


def test_mamba_ssm_gets_what_its_kernel_wants(monkeypatch):
    seen = []

    def kernel(*arguments):
        seen.extend(arguments)
        return selective_scan(*arguments)

    monkeypatch.setattr(scan_module, "mamba_ssm_selective_scan", kernel)
    monkeypatch.setattr(scan_module, "resolve_scan_implementation", lambda name, _: "torch" if seen else "mamba_ssm")
    inputs = make_inputs() | {"delta_bias": None}
    inputs["u"] = inputs["u"].bfloat16()
    selective_scan(**inputs, delta_softplus=True)
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = seen
    assert all(x.dtype == torch.bfloat16 and x.is_contiguous() for x in (u, delta, B, C, z))
    assert all(x.dtype == torch.float32 and x.is_contiguous() for x in (A, D))
    assert delta_bias is None and delta_softplus is True


def test_unknown_implementation_lists_the_choices():
    with pytest.raises(ValueError, match="'fast'.*'auto', 'reference', 'torch', 'mamba_ssm'"):
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
