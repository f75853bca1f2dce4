"""What the paper's settings cost: parameters counted from a config, and forward passes timed on this machine's CPU."""

import datetime
import statistics
import time

import torch

from hf_mamba.configuration_hf_mamba import HFMambaConfig
from hf_mamba.modeling_hf_mamba import HFMambaForSequenceClassification


# Words the paper reads of a text, and its classes; one image of 224 x 224 in patches of 16 x 16
PAPER_DATA = {
    "Twitter Sarcasm": {"text_tokens": 15, "num_labels": 2},
    "Yelp Sentiment": {"text_tokens": 128, "num_labels": 5},
}
REPEATS = {1: 15, 128: 3}  # of each batch size: a large batch takes seconds, and scatters less


def paper_config(data, fields):
    """The paper's settings, which are HFMambaConfig's defaults, with the fields of a row of its tables."""
    return HFMambaConfig(num_labels=PAPER_DATA[data]["num_labels"], **fields)


def count_parameters(config):
    """How many parameters the model of a config, or of a config.json as dict, has; built without memory."""
    if isinstance(config, dict):
        config = HFMambaConfig.from_dict(dict(config))
    with torch.device("meta"):
        return HFMambaForSequenceClassification(config).num_parameters()


def measure_latency(configs, *, text_tokens, batch, repeats):
    """
    Seconds of a forward pass without gradients in fp32, on CPU with as many threads as torch is set to.

    Args:
        configs: {row: HFMambaConfig}; they take turns, so that a machine that gets busy slows all alike
        text_tokens: words of each text; with the image's patches the length of the sequence
        batch: posts at once, all of that length
        repeats: turns after one that warms up

    Returns:
        {row: median seconds}
    """
    generator = torch.Generator().manual_seed(0)
    models = {row: HFMambaForSequenceClassification(config).eval() for row, config in configs.items()}
    inputs = _inputs(next(iter(configs.values())), text_tokens, batch, generator)
    seconds = {row: [] for row in models}
    with torch.inference_mode():
        for turn in range(repeats + 1):
            for row, model in models.items():
                start = time.perf_counter()
                model(**inputs)
                if turn:
                    seconds[row].append(time.perf_counter() - start)
    return {row: statistics.median(times) for row, times in seconds.items()}


def _inputs(config, text_tokens, batch, generator):
    return {
        "input_ids": torch.randint(1, config.vocab_size, (batch, text_tokens), generator=generator),
        "attention_mask": torch.ones(batch, text_tokens, dtype=torch.long),
        "pixel_values": torch.randn(batch, config.num_patches, config.patch_dim, generator=generator),
        "pixel_attention_mask": torch.ones(batch, config.num_patches, dtype=torch.long),
    }


def latency_lines(rows, *, machine_kind, commit, repeats=None):
    """
    The lines of latency.jsonl.

    Args:
        rows: {row: (data, fields)} of the paper's Table 4
        machine_kind, commit: what it ran on, and of the code
        repeats: {batch size: repeats}, default REPEATS
    """
    lines = []
    for data, settings in PAPER_DATA.items():
        configs = {row: paper_config(data, fields) for row, (of, fields) in rows.items() if of == data}
        if not configs:
            continue
        patches = next(iter(configs.values())).num_patches
        for batch, count in (REPEATS if repeats is None else repeats).items():
            medians = measure_latency(configs, text_tokens=settings["text_tokens"], batch=batch, repeats=count)
            lines += [
                {
                    "row": row, "data": data, "text_tokens": settings["text_tokens"], "patches": patches,
                    "batch": batch,
                    "median_seconds": round(seconds, 6), "repeats": count, "threads": torch.get_num_threads(),
                    "machine_kind": machine_kind, "commit": commit,
                    "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                }
                for row, seconds in medians.items()
            ]  # fmt: skip
    return lines
