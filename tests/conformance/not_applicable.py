"""The mixins' tests that can't apply here, each with the reason, and how they are taken out."""

import unittest


NOT_APPLICABLE = {
    "modeling": {
        "test_retain_grad_hidden_states_attentions": "the blocks run on rows packed to the front; hidden_states and "
        "attentions are copies in the caller's order, which no gradient passes: inputs_embeds has one",
    },
    "modeling with Mamba blocks": dict.fromkeys(  # would run where there is an accelerator
        ["test_cpu_offload", "test_disk_offload_bin", "test_disk_offload_safetensors"],
        "the scan reads weights of modules it does not call, so that accelerate does not fetch them",
    ),
    "processing": {},
    "image_processing": {
        "test_new_models_require_torchvision_backend": "torchvision is no dependency: images are read by Pillow alone",
        "test_pil_can_run_without_torchvision": "its fresh process would have to trust a checkpoint's code; all tests "
        "here run without torchvision",
    },
}


def without(*lists):
    """A test class without the tests that `NOT_APPLICABLE` lists: they are reported as skipped, with the reason."""

    def decorate(test_class):
        for name, reason in [entry for key in lists for entry in NOT_APPLICABLE[key].items()]:
            setattr(test_class, name, unittest.skip(reason)(getattr(test_class, name)))
        return test_class

    return decorate
