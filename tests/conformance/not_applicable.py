"""The mixins' tests that can't apply here, each with the reason, and how they are taken out."""

import unittest


NOT_APPLICABLE = {
    "modeling": {
        "test_retain_grad_hidden_states_attentions": "the blocks run on rows packed to the front; hidden_states and "
        "attentions are copies in the caller's order, which no gradient passes: inputs_embeds has one",
    },
    "processing": {},
    "image_processing": {
        "test_new_models_require_torchvision_backend": "torchvision is no dependency: images are read by Pillow alone",
        "test_pil_can_run_without_torchvision": "its fresh process would have to trust a checkpoint's code; all tests "
        "here run without torchvision",
    },
}


def without(mixin):
    """A test class without the tests that `NOT_APPLICABLE[mixin]` lists: they are reported as skipped, with reason."""

    def decorate(test_class):
        for name, reason in NOT_APPLICABLE[mixin].items():
            setattr(test_class, name, unittest.skip(reason)(getattr(test_class, name)))
        return test_class

    return decorate
