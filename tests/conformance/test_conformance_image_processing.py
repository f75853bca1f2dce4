"""HFMambaImageProcessor under the tests that transformers demands of every image processor of its library."""

import unittest

from mixins import import_mixins
from not_applicable import without

from hf_mamba import HFMambaImageProcessor


image_processing_common = import_mixins("test_image_processing_common")


class HFMambaImageProcessingTester(image_processing_common.ImageProcessingTester):
    def __init__(self, parent, **kwargs):
        kwargs = {
            "size": {"height": 32, "width": 32},
            "patch_size": 8,
            "do_resize": True,
            "do_normalize": True,
            "image_mean": [0.4, 0.5, 0.6],
            "image_std": [0.2, 0.3, 0.4],
            "do_convert_rgb": True,
        } | kwargs
        super().__init__(parent, max_resolution=80, **kwargs)

    def _get_image_processing_classes(self):
        return {"pil": HFMambaImageProcessor}

    def expected_output_image_shape(self, images):
        return (self.size["height"] // self.patch_size) ** 2, self.patch_size**2 * self.num_channels


@without("image_processing")
class HFMambaImageProcessingTest(image_processing_common.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = HFMambaImageProcessingTester
    test_cast_dtype = True
