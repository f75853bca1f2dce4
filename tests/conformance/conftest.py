"""The mixins speak to the Auto classes without remote code: while they run, ours are registered as a library's are."""

from contextlib import ExitStack
from unittest.mock import patch

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING,
    MODEL_MAPPING_NAMES,
)

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification, HFMambaImageProcessor, HFMambaModel


def pytest_configure(config):
    flash = ["flash_attn_test", "flash_attn_3_test", "flash_attn_4_test"]
    for mark in ["accelerate_tests", "torch_compile_test", *flash]:
        config.addinivalue_line("markers", f"{mark}: transformers' own, on the tests of its mixins")


@pytest.fixture(scope="module", autouse=True)
def registered_with_transformers():
    """For a while only: elsewhere, our tests load checkpoints as strangers to the library do."""
    entries = [
        (CONFIG_MAPPING._extra_content, "hf_mamba", HFMambaConfig),
        (MODEL_MAPPING._extra_content, HFMambaConfig, HFMambaModel),
        (MODEL_MAPPING_NAMES, "hf_mamba", HFMambaModel.__name__),
        (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING._extra_content, HFMambaConfig, HFMambaForSequenceClassification),
        (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "hf_mamba", HFMambaForSequenceClassification.__name__),
        (IMAGE_PROCESSOR_MAPPING._extra_content, HFMambaConfig, {"pil": HFMambaImageProcessor}),
    ]
    with ExitStack() as stack:
        for mapping, key, value in entries:
            stack.enter_context(patch.dict(mapping, {key: value}))
        yield
