"""The scan inside torch: memory, checkpointing, torch.compile, torch.export and operators."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from scan_checks import Mixer, check_operators, each_implementation, make_inputs, outputs_and_grads
from torch.utils.checkpoint import checkpoint

from hf_mamba.selective_scan import selective_scan
from hf_mamba.selective_scan_torch import CHUNK


scan_module = importlib.import_module("hf_mamba.selective_scan")


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
        if path.name.startswith(("selective_scan", "vectors_numba", "block_layers_numba", "scan_kernels")):
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
