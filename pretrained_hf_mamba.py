"""
What a model of transformers has whatever it computes: initial values, the choice of the scan's implementation, the way
to the Hub, and the loss of each problem type. What this one computes is in modeling_hf_mamba.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel

from .block_layers import TimeStepProjection, UndecayedParameters
from .configuration_hf_mamba import HFMambaConfig
from .remote_code import check_before_upload
from .selective_scan import resolve_scan_implementation


class HFMambaPreTrainedModel(PreTrainedModel):
    """Initialisation, loading and saving."""

    config_class = HFMambaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["HFMambaBlock"]
    _supports_sdpa = True

    def __init__(self, config: HFMambaConfig, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        if config.backbone == "mamba":  # A_log decides how long the state remembers: bf16 is too coarse
            self._keep_in_fp32_modules_strict = ["bias_like"]

    @torch.no_grad()
    def _init_weights(self, module):
        """The single truth about initial values; linear layers as in Mamba's reference code, i.e. PyTorch's own."""
        if isinstance(module, TimeStepProjection):
            self._init_time_step(module)
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                fan_in = module.weight[0].numel()
                init.uniform_(module.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, UndecayedParameters):
            e, s = module.A_log.shape
            init.copy_(module.A_log, torch.arange(1, s + 1, dtype=torch.float32).log().expand(e, s))  # S4D-real
            init.ones_(module.D)

    def _init_time_step(self, dt_proj):
        """Mamba's initialisation of Δ: softplus of the bias is log-uniform in [time_step_min, time_step_max]."""
        config = self.config
        bound = config.resolved_time_step_rank**-0.5
        init.uniform_(dt_proj.weight, -bound, bound)
        low, high = math.log(config.time_step_min), math.log(config.time_step_max)
        uniform = torch.rand(dt_proj.bias.shape, dtype=torch.float32, device=dt_proj.bias.device)
        delta = torch.exp(uniform * (high - low) + low).clamp(min=config.time_step_floor)
        init.copy_(dt_proj.bias, delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus

    def set_scan_implementation(self, scan_implementation):
        """Chooses the recurrence's implementation for every block: see `selective_scan`."""
        for module in self.modules():
            if hasattr(module, "scan_implementation"):
                module.scan_implementation = scan_implementation

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """The one way to the Hub, for `push_to_hub` and `save_pretrained(push_to_hub=True)`: checked before it."""
        check_before_upload(self, working_dir, repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def describe_scan(self):
        """One line for a log: what computes the recurrence on the device that the model is on."""
        asked = {module.scan_implementation for module in self.modules() if hasattr(module, "scan_implementation")}
        runs = {resolve_scan_implementation(name, self.device) for name in asked}
        return f"The recurrence runs on {self.device} by: {', '.join(sorted(runs)) or 'nothing, there is none'}."


def classification_loss(logits, labels, config):
    """
    The loss of `config.problem_type` as a scalar, computed in fp32.

    Args:
        logits: shape (b, num_labels)
        labels: single label: ids, shape (b,). Multi-label: 0 and 1 as floats, shape (b, num_labels). Regression:
            floats, shape (b,) or (b, num_labels).
    """
    logits = logits.float()
    weights = config.class_weights and torch.tensor(config.class_weights, device=logits.device, dtype=torch.float32)
    if config.problem_type == "regression":
        return F.mse_loss(logits.view(-1), labels.to(logits.dtype).view(-1))
    if config.problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), weight=weights)
    return F.cross_entropy(logits, labels.view(-1), weight=weights, label_smoothing=config.label_smoothing)


def problem_type_of(labels, num_labels):
    """transformers' own rule for labels of a config that names no problem type."""
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.dtype.is_floating_point else "single_label_classification"
