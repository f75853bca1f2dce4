"""
One training step of the paper's model against the same stack built of transformers' own MambaBlock, in one run.

    python benchmarks/bench_model.py --threads 1            # time: batch 8, 15 tokens + 196 patches, 5 + 5 + 5 blocks
    python benchmarks/bench_model.py --memory --batch 128   # peak memory of one training step of ours, in this process

Prints Markdown. The two models are interleaved step by step, so that a noisy machine disturbs both alike; medians and
their ratio are what counts. transformers' eager scan has a backward pass quadratic in length: a step takes seconds.
"""

import argparse
import resource
import statistics
import sys
import time

import torch
import transformers
from torch import nn
from transformers.models.mamba.modeling_mamba import MambaBlock, MambaConfig

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification


NUM_TOKENS, NUM_PATCHES = 15, 196  # the paper's Twitter setting: 15 tokens, a 224 x 224 image in 16 x 16 patches


class TransformersBlock(nn.Module):
    """transformers' MambaBlock behind the signature of ours."""

    def __init__(self, config):
        super().__init__()
        mamba = MambaConfig(
            hidden_size=config.hidden_size,
            state_size=config.state_size,
            conv_kernel=config.conv_kernel,
            expand=config.expand,
            num_hidden_layers=1,
        )
        self.block = MambaBlock(mamba, layer_idx=0)

    def forward(self, hidden_states, mask, reverse_index=None):
        return self.block(hidden_states)


def build(peer):
    """The paper's model, with transformers' blocks in place of ours if `peer`."""
    torch.manual_seed(0)
    config = HFMambaConfig(num_labels=2, hidden_dropout=0, classifier_dropout=0)
    model = HFMambaForSequenceClassification(config, scan_implementation="torch")
    if peer:
        for stack in (model.model.text_stack, model.model.image_stack, model.model.fusion_stack):
            stack.layers = nn.ModuleList(TransformersBlock(config) for _ in stack.layers)
    return model.train()


def make_batch(batch_size):
    torch.manual_seed(1)
    return {
        "input_ids": torch.randint(2, 8000, (batch_size, NUM_TOKENS)),
        "pixel_values": torch.randn(batch_size, NUM_PATCHES, 768),
        "labels": torch.randint(0, 2, (batch_size,)),
    }


def make_step(model, batch):
    """Forward, backward and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()

    return step


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(batch_size, repeats):
    """Interleaved medians of forward alone and of the whole step."""
    batch = make_batch(batch_size)
    models = {"ours": build(peer=False), "transformers": build(peer=True)}
    rows = []
    for what in ("forward", "training step"):
        if what == "forward":
            functions = {name: torch.no_grad()(lambda m=model: m(**batch)) for name, model in models.items()}
        else:
            functions = {name: make_step(model, batch) for name, model in models.items()}
        times = {name: [] for name in functions}
        for repeat in range(repeats + 1):
            for name, function in functions.items():
                elapsed = seconds(function)
                if repeat:  # the first round warms up
                    times[name].append(elapsed)
        ours, theirs = (statistics.median(times[name]) for name in ("ours", "transformers"))
        rows.append(
            f"| {what}, batch {batch_size} | {ours * 1e3:.0f} ms | {theirs * 1e3:.0f} ms | {theirs / ours:.1f}x |"
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true", help="peak memory of one step of ours instead of times")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {args.threads} thread(s)"
    print(f"15 tokens + 196 patches, 5 + 5 + 5 blocks, hidden size 64, fp32; {versions}\n")
    if args.memory:
        step = make_step(build(peer=False), make_batch(args.batch))
        step(), step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform != "darwin" else 2**30)
        print(f"peak memory of the process, two training steps at batch {args.batch}: {peak:.2f} GiB")
        return
    print("| what | ours, scan_implementation=torch | transformers' MambaBlock | ratio |\n|---|---|---|---|")
    print("\n".join(compare(args.batch, args.repeats)))


if __name__ == "__main__":
    main()
