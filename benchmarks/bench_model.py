"""
The paper's model (5 + 5 + 5 blocks, hidden size 64) against the same model built of other blocks, in one run.

    python benchmarks/bench_model.py --threads 1                # forward at batch 1, training steps at batch 8
    python benchmarks/bench_model.py --threads 1 --removed 128  # a step at batch 128 against that without any scan
    python benchmarks/bench_model.py --threads 1 --lengths      # one block of each kind over length 128 to 8,192
    python benchmarks/bench_model.py --device cuda --bf16       # steps at batch 128, and compiled with CUDA graphs
    python benchmarks/bench_model.py --device cuda --bf16 --lengths                      # over length 324 to 65,536

Prints Markdown. Models take turns step by step, so that a noisy machine disturbs all alike: medians and ratios are
what counts. Peers: transformers' own MambaBlock, eager and (if mambapy can be imported: `pip install mambapy`) with
its parallel scan; "scan removed" is ours with y = (u + Δ) * silu(z) in the scan's place, all projections kept;
"attention" is a pre-norm Transformer block of about the same number of parameters, with PyTorch's
scaled_dot_product_attention; "ours, compiled" is torch.compile's mode "reduce-overhead", which on a GPU runs CUDA
graphs.
"""

import argparse

import torch
import transformers
from measuring import interleaved_medians, peak_mebibytes, processor_clock, wall_clock
from torch import nn
from torch.nn import functional as F
from transformers.models.mamba.modeling_mamba import MambaBlock, MambaConfig
from transformers.utils.import_utils import is_mambapy_available

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification, modeling_hf_mamba
from hf_mamba.modeling_hf_mamba import HFMambaBlock
from hf_mamba.selective_scan import check_scan_implementation, resolve_scan_implementation, selective_scan


NUM_TOKENS, NUM_PATCHES = 15, 196  # the paper's Twitter setting: 15 tokens, a 224 x 224 image in 16 x 16 patches
WITHOUT_DROPOUT = {"num_labels": 2, "hidden_dropout": 0, "classifier_dropout": 0}


class TransformersBlock(nn.Module):
    """transformers' MambaBlock behind the signature of ours."""

    def __init__(self, config, use_mambapy=False):
        super().__init__()
        mamba = MambaConfig(
            hidden_size=config.hidden_size,
            state_size=config.state_size,
            conv_kernel=config.conv_kernel,
            expand=config.expand,
            num_hidden_layers=1,
            use_mambapy=use_mambapy,
        )
        self.block = MambaBlock(mamba, layer_idx=0)

    def forward(self, hidden_states, *_):
        return self.block(hidden_states)


class AttentionBlock(HFMambaBlock):
    """Our transformer backbone's block with a feed-forward of 1.25 * d, which has a Mamba block's parameters."""

    def __init__(self, config):
        config = HFMambaConfig(**{**config.to_diff_dict(), "backbone": "transformer"})
        config._attn_implementation = "sdpa"  # as the model chooses for its own blocks
        super().__init__(config)
        d = config.hidden_size
        self.feed_forward = nn.Sequential(nn.Linear(d, 5 * d // 4), nn.GELU(), nn.Linear(5 * d // 4, d))


BLOCKS = {
    "ours": lambda config: HFMambaBlock(config),
    "ours, torch path": lambda config: HFMambaBlock(config, "torch"),
    "ours, triton": lambda config: HFMambaBlock(config, "triton"),
    "ours, compiled": lambda config: HFMambaBlock(config, "triton"),
    "ours, mamba_ssm": lambda config: HFMambaBlock(config, "mamba_ssm"),
    "attention, compiled": lambda config: AttentionBlock(config),
    "scan removed": lambda config: HFMambaBlock(config, "reference"),  # which `remove_scan` replaces
    "transformers": lambda config: TransformersBlock(config),
    "mambapy": lambda config: TransformersBlock(config, use_mambapy=True),
    "attention": lambda config: AttentionBlock(config),
}


class _Ignored(torch.autograd.Function):
    """Zero, whose gradient reaches B and C as zeros: their projection is computed and trained as ever."""

    @staticmethod
    def forward(ctx, B, C):
        ctx.save_for_backward(B, C)
        return B.new_zeros(())

    @staticmethod
    def backward(ctx, _):
        return tuple(map(torch.zeros_like, ctx.saved_tensors))


def remove_scan():
    """
    Lets "reference", which nobody times, stand for no scan. The model offers no such choice, so its function is
    replaced.
    """

    def scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, scan_implementation):
        if scan_implementation != "reference":
            return selective_scan(
                u, delta, A, B, C, D, z, delta_bias, delta_softplus, scan_implementation=scan_implementation
            )
        return (u + delta + _Ignored.apply(B, C)) * F.silu(z)

    modeling_hf_mamba.selective_scan = scan


def build(name, device):
    """The paper's model of one kind of block."""
    torch.manual_seed(0)
    config = HFMambaConfig(**WITHOUT_DROPOUT)
    model = HFMambaForSequenceClassification(config)
    for stack in (model.model.text_stack, model.model.image_stack, model.model.fusion_stack):
        stack.layers = nn.ModuleList(BLOCKS[name](config) for _ in stack.layers)
    model = model.to(device)
    return torch.compile(model, mode="reduce-overhead", fullgraph=True) if name.endswith("compiled") else model


def make_batch(batch_size, device, with_image=True):
    torch.manual_seed(1)
    batch = {"input_ids": torch.randint(2, 8000, (batch_size, NUM_TOKENS)), "labels": torch.arange(batch_size) % 2}
    batch |= {"pixel_values": torch.randn(batch_size, NUM_PATCHES, 768)} if with_image else {}
    return {name: x.to(device) for name, x in batch.items()}


def autocast(args):
    """Of --bf16."""
    return torch.autocast(args.device, torch.bfloat16, enabled=args.bf16)


def forward_of(model, batch, args):
    model.eval()

    @torch.inference_mode()
    def run():
        with autocast(args):
            model(**batch)

    return run


def gradients_of(model, batch, args):
    """Forward and backward."""
    model.train()

    def run():
        model.zero_grad()
        with autocast(args):
            loss = model(**batch).loss
        loss.backward()

    return run


def step_of(model, batch, args):
    """Forward, backward and AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=args.device == "cuda")

    def run():
        optimizer.zero_grad()
        with autocast(args):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()

    return run


def print_table(what, names, make, batch, args, models=None, repeats=None):
    """
    Prints a row for each kind of block.

    Args:
        what: the first cell
        names: of BLOCKS; the first is what the others are compared with
        make: from a model, `batch` and `args`, the function that is timed
        args: the flags
        models: by name; default: the paper's model of each kind of block
        repeats: default: of the flags
    """
    models = models or {name: build(name, args.device) for name in names}
    functions = {name: make(models[name], batch, args) for name in names}
    clock = processor_clock if args.cpu_time else wall_clock
    median = interleaved_medians(functions, repeats or args.repeats, clock)
    for name in names:
        parameters = sum(p.numel() for p in models[name].parameters())
        cells = [what, name, f"{median[name]:.1f}", f"{median[name] / median[names[0]]:.2f}", f"{parameters:,}"]
        # a CUDA graph's memory is its own, and taken once
        peak = "-" if name.endswith("compiled") else f"{peak_mebibytes(functions[name], args.device):.0f}"
        print(f"| {' | '.join(cells)} | {peak} |", flush=True)


def compare_lengths(names, args):
    """Forward and backward of one block at batch 1."""
    config = HFMambaConfig(**WITHOUT_DROPOUT)

    def make(block, x, args):
        mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)

        def run():
            block.zero_grad()
            with autocast(args):
                loss = block(x, mask).square().mean()
            loss.backward()

        return run

    on_gpu = args.device == "cuda"
    lengths = (324, 1024, 4096, 16384, 65536) if on_gpu else (128, 256, 512, 1024, 2048, 4096, 8192)
    for length in lengths:
        # quadratic in length, and seconds already at 512
        chosen = [name for name in names if name != "transformers" or length <= 512]
        x = torch.randn(1, length, config.hidden_size, device=args.device)
        blocks = {name: BLOCKS[name](config).to(args.device).train() for name in names}
        print_table(f"one block, length {length}", chosen, make, x, args, blocks)


def on_cuda(args):
    """The tables of a GPU, at the paper's batch."""
    names = ["ours, triton", "ours, mamba_ssm", "ours, torch path", "scan removed", "attention"]
    try:
        check_scan_implementation("mamba_ssm")
    except ValueError:
        names.remove("ours, mamba_ssm")
    if args.lengths:
        names.remove("scan removed")
        names.remove("ours, torch path")
        return compare_lengths(names, args)
    batch = make_batch(128, args.device)
    print_table("forward, batch 1, with image", names, forward_of, make_batch(1, args.device), args)
    print_table("forward, batch 128", names, forward_of, batch, args)
    names = ["ours, compiled", "attention, compiled", *names]
    print_table("training step, batch 128", names, step_of, batch, args)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--bf16", action="store_true", help="under autocast to bfloat16")
    parser.add_argument("--batch", type=int, default=8, help="posts in a training step, on CPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--removed", type=int, metavar="BATCH", help="only a step with and without the scan")
    parser.add_argument("--lengths", action="store_true", help="only one block over lengths")
    parser.add_argument("--cpu_time", action="store_true", help="for a busy machine, with one thread only")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    remove_scan()
    peers = ["transformers", *(["mambapy"] if is_mambapy_available() else [])]
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} thread(s)"
    print(
        f"15 tokens + 196 patches, 5 + 5 + 5 blocks, hidden size 64, {'bf16' if args.bf16 else 'fp32'}, scan: "
        f"{resolve_scan_implementation('auto', args.device)}; torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {where}, {args.repeats} repeats{', processor time' * args.cpu_time}\n"
    )
    print("| what | blocks | ms | over the first | parameters | peak MiB |\n|---|---|---|---|---|---|")
    if args.device == "cuda":
        return on_cuda(args)
    if args.lengths:
        return compare_lengths(["ours", "attention", *peers], args)
    if args.removed:
        names, batch = ["scan removed", "ours"], make_batch(args.removed, args.device)
        return print_table(f"training step, batch {args.removed}", names, step_of, batch, args)
    ours = ["ours", "ours, torch path", "scan removed", "attention"]
    short, post = make_batch(1, args.device, with_image=False), make_batch(1, args.device)
    everyone, what = [*ours, *peers], "forward, batch 1"
    print_table(f"{what}, 15 tokens", everyone, forward_of, short, args, repeats=20 * args.repeats)
    print_table(f"{what}, with image", everyone, forward_of, post, args, repeats=4 * args.repeats)
    batch = make_batch(args.batch, args.device)
    print_table(f"forward + backward, batch {args.batch}", everyone, gradients_of, batch, args)
    print_table(f"training step, batch {args.batch}", ours, step_of, batch, args)


if __name__ == "__main__":
    main()
