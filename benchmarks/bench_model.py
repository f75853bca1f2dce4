"""
The paper's model (5 + 5 + 5 blocks, hidden size 64) against the same model built of other blocks, in one run.

    python benchmarks/bench_model.py --threads 1                # forward at batch 1, training steps at batch 8
    python benchmarks/bench_model.py --threads 1 --removed 128  # a step at batch 128 against that without any scan
    python benchmarks/bench_model.py --threads 1 --lengths      # one block of each kind over length 128 to 8,192

Prints Markdown. Models take turns step by step, so that a noisy machine disturbs all alike: medians and ratios are
what counts. Peers: transformers' own MambaBlock, eager and (if mambapy can be imported: `pip install mambapy`) with
its parallel scan; "scan removed" is ours with y = (u + Δ) * silu(z) in the scan's place, all projections kept;
"attention" is a pre-norm Transformer block of about the same number of parameters, with PyTorch's
scaled_dot_product_attention.
"""

import argparse
import statistics
import time

import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers.models.mamba.modeling_mamba import MambaBlock, MambaConfig
from transformers.utils.import_utils import is_mambapy_available

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification, modeling_hf_mamba
from hf_mamba.modeling_hf_mamba import HFMambaBlock
from hf_mamba.selective_scan import resolve_scan_implementation, selective_scan


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
    """Lets "reference", which nobody times, stand for no scan."""

    def scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, scan_implementation):
        if scan_implementation != "reference":
            return selective_scan(
                u, delta, A, B, C, D, z, delta_bias, delta_softplus, scan_implementation=scan_implementation
            )
        return (u + delta + _Ignored.apply(B, C)) * F.silu(z)

    modeling_hf_mamba.selective_scan = scan


def build(name):
    """The paper's model of one kind of block."""
    torch.manual_seed(0)
    config = HFMambaConfig(**WITHOUT_DROPOUT)
    model = HFMambaForSequenceClassification(config)
    for stack in (model.model.text_stack, model.model.image_stack, model.model.fusion_stack):
        stack.layers = nn.ModuleList(BLOCKS[name](config) for _ in stack.layers)
    return model


def make_batch(batch_size, with_image=True):
    torch.manual_seed(1)
    batch = {"input_ids": torch.randint(2, 8000, (batch_size, NUM_TOKENS)), "labels": torch.arange(batch_size) % 2}
    return batch | ({"pixel_values": torch.randn(batch_size, NUM_PATCHES, 768)} if with_image else {})


def forward_of(model, batch):
    model.eval()
    return torch.inference_mode()(lambda: model(**batch))


def gradients_of(model, batch):
    """Forward and backward."""
    model.train()

    def run():
        model.zero_grad()
        model(**batch).loss.backward()

    return run


def step_of(model, batch):
    """Forward, backward and AdamW."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())

    def run():
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return run


def medians(functions, repeats):
    """Median milliseconds of each, taking turns; the first round warms up."""
    times = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = clock()
            function()
            if repeat:
                times[name].append((clock() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_mebibytes(function):
    """What torch's allocator held at once beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / 2**20


def print_table(what, names, make, batch, repeats, build=build):
    models = {name: build(name) for name in names}
    functions = {name: make(model, batch) for name, model in models.items()}
    median = medians(functions, repeats)
    for name in names:
        parameters = sum(p.numel() for p in models[name].parameters())
        cells = [what, name, f"{median[name]:.1f}", f"{median[name] / median[names[0]]:.2f}", f"{parameters:,}"]
        print(f"| {' | '.join(cells)} | {peak_mebibytes(functions[name]):.0f} |", flush=True)


def compare_lengths(names, repeats):
    """Forward and backward of one block at batch 1."""
    config = HFMambaConfig(**WITHOUT_DROPOUT)

    def make(block, x):
        def run():
            block.zero_grad()
            block(x, torch.ones(x.shape[:2], dtype=torch.bool)).square().mean().backward()

        return run

    for length in (128, 256, 512, 1024, 2048, 4096, 8192):
        # quadratic in length, and seconds already at 512
        chosen = [name for name in names if name != "transformers" or length <= 512]
        x = torch.randn(1, length, config.hidden_size)
        print_table(f"one block, length {length}", chosen, make, x, repeats, lambda name: BLOCKS[name](config).train())


def clock():
    """Seconds: of the clock on the wall or, with --cpu_time, of this process on a processor."""
    return time.process_time() if cpu_time else time.perf_counter()


cpu_time = False


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="posts in a training step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--removed", type=int, metavar="BATCH", help="only a step with and without the scan")
    parser.add_argument("--lengths", action="store_true", help="only one block over lengths")
    parser.add_argument("--cpu_time", action="store_true", help="for a busy machine, with one thread only")
    args = parser.parse_args()
    global cpu_time
    cpu_time = args.cpu_time
    torch.set_num_threads(args.threads)
    remove_scan()
    peers = ["transformers", *(["mambapy"] if is_mambapy_available() else [])]
    print(
        f"15 tokens + 196 patches, 5 + 5 + 5 blocks, hidden size 64, fp32, scan: "
        f"{resolve_scan_implementation('auto', 'cpu')}; torch {torch.__version__}, transformers "
        f"{transformers.__version__}, {args.threads} thread(s), {args.repeats} repeats"
        f"{', processor time' * args.cpu_time}\n"
    )
    print("| what | blocks | ms | over the first | parameters | peak MiB |\n|---|---|---|---|---|---|")
    if args.lengths:
        return compare_lengths(["ours", "attention", *peers], args.repeats)
    if args.removed:
        names, batch = ["scan removed", "ours"], make_batch(args.removed)
        return print_table(f"training step, batch {args.removed}", names, step_of, batch, args.repeats)
    many = 20 * args.repeats
    ours = ["ours", "ours, torch path", "scan removed", "attention"]
    print_table("forward, batch 1, 15 tokens", [*ours, *peers], forward_of, make_batch(1, with_image=False), many)
    print_table("forward, batch 1, with image", [*ours, *peers], forward_of, make_batch(1), args.repeats * 4)
    batch = make_batch(args.batch)
    print_table(f"forward + backward, batch {args.batch}", [*ours, *peers], gradients_of, batch, args.repeats)
    print_table(f"training step, batch {args.batch}", ours, step_of, batch, args.repeats)


if __name__ == "__main__":
    main()
