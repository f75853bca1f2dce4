"""HFMambaModel and its classifier under the tests that transformers demands of every model of its library."""

import unittest

from mixins import import_mixins
from not_applicable import without

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification, HFMambaModel


configuration_common = import_mixins("test_configuration_common")
modeling_common = import_mixins("test_modeling_common")


class HFMambaModelTester:
    """Tiny configs and posts of text and image, as the mixins ask for them."""

    is_training = True
    batch_size = 4
    text_length = 7
    image_length = 4  # patches
    hidden_size = 16
    num_attention_heads = 2
    num_hidden_layers = 2

    def __init__(self, **fields):
        self.fields = fields
        self.seq_length = self.text_length + self.image_length

    def get_config(self):
        return HFMambaConfig(
            vocab_size=99,
            hidden_size=self.hidden_size,
            num_attention_heads=self.num_attention_heads,
            num_text_layers=1,
            num_image_layers=1,
            num_fusion_layers=1,
            state_size=4,
            image_size=16,
            patch_size=8,
            **self.fields,
        )

    def prepare_config_and_inputs_for_common(self):
        config, b = self.get_config(), self.batch_size
        ids_tensor, floats_tensor = modeling_common.ids_tensor, modeling_common.floats_tensor
        pixel_attention_mask = ids_tensor([b, 1], 2).repeat(1, self.image_length)  # whole images
        inputs = {
            "input_ids": ids_tensor([b, self.text_length], config.vocab_size),
            "attention_mask": modeling_common.random_attention_mask([b, self.text_length]),
            "pixel_values": floats_tensor([b, self.image_length, config.patch_dim]),
            "pixel_attention_mask": pixel_attention_mask,
        }
        return config, inputs


class HFMambaModelTestMixin(modeling_common.ModelTesterMixin):
    all_model_classes = (HFMambaModel, HFMambaForSequenceClassification)
    backbone = None
    test_can_init_all_missing_weights_before_2023 = True  # runs that test; our files have no year for it to read

    def setUp(self):
        self.model_tester = HFMambaModelTester(backbone=self.backbone)


@without("modeling", "modeling with Mamba blocks")
class HFMambaModelTest(HFMambaModelTestMixin, unittest.TestCase):
    backbone = "mamba"
    has_attentions = False

    def test_config(self):
        properties = ["hidden_size", "num_hidden_layers", "num_attention_heads"]
        tester = configuration_common.ConfigTester(
            self, config_class=HFMambaConfig, common_properties=properties, hidden_size=36
        )
        tester.run_common_tests()


@without("modeling")
class HFMambaTransformerBackboneTest(HFMambaModelTestMixin, unittest.TestCase):
    backbone = "transformer"
