"""HFMambaProcessor under the tests that transformers demands of every processor of its library."""

import unittest

from mixins import import_mixins
from not_applicable import without

from hf_mamba import HFMambaImageProcessor, HFMambaProcessor
from hf_mamba.processing_hf_mamba import build_wordpiece_tokenizer


processing_common = import_mixins("test_processing_common")
VOCAB = ["[PAD]", "[UNK]", "lower", "new", "##er", "upper", "old", "longer", "string"]


@without("processing")
class HFMambaProcessorTest(processing_common.ProcessorTesterMixin, unittest.TestCase):
    processor_class = HFMambaProcessor

    @classmethod
    def _setup_tokenizer(cls):
        return build_wordpiece_tokenizer(VOCAB)

    @classmethod
    def _setup_image_processor(cls):
        return HFMambaImageProcessor(size=32, patch_size=8)
