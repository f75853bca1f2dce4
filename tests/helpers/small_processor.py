"""A small processor for tests."""

from hf_mamba.processing_hf_mamba import HFMambaImageProcessor, HFMambaProcessor, build_wordpiece_tokenizer


VOCAB = ["[PAD]", "[UNK]", "a", "great", "day", "at", "the", "sea", "##side", "!"]


def make_processor(**kwargs) -> HFMambaProcessor:
    tokenizer = build_wordpiece_tokenizer(VOCAB, max_length=8)
    return HFMambaProcessor(HFMambaImageProcessor(size=32, patch_size=16, **kwargs), tokenizer)
