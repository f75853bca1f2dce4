"""
The mixer of the paper's Table 4 backbones: bidirectional multi-head self-attention (Vaswani et al.).

Knows nothing of text or images. Symbols: b rows of the batch, l positions of a sequence, d hidden size, h heads. Which
kernel computes it is transformers' `attn_implementation` ("sdpa", "eager", or one registered by the user).
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_hf_mamba import HFMambaConfig


def eager_attention_forward(module, query, key, value, attention_mask, scaling, **kwargs):
    """
    softmax(query key^T * scaling) value, written out: the one implementation that returns its weights.

    Args:
        query, key, value: shape (b, h, l, d / h) each
        attention_mask: shape (b, 1, 1 or l, l), True where a position may be looked at

    Returns:
        shape (b, l, h, d / h), and the weights, shape (b, h, l, l)
    """
    weights = query @ key.transpose(2, 3) * scaling
    weights = weights.masked_fill(~attention_mask, torch.finfo(weights.dtype).min)
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class HFMambaAttention(nn.Module):
    """Every real position looks at every real position."""

    is_causal = False  # read by transformers' own implementations

    def __init__(self, config: HFMambaConfig):
        super().__init__()
        self.config = config  # model.set_attn_implementation changes it
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // self.num_heads) ** -0.5
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, mask, reverse_index=None, attentions=None):
        """
        hidden_states (b, l, d) and its mask (b, l) -> (b, l, d); the weights (b, h, l, l) are appended to the list
        `attentions` where there is one and the implementation has them.
        """
        b, l, d = hidden_states.shape
        qkv = self.qkv_proj(hidden_states).view(b, l, 3, self.num_heads, d // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (b, h, l, d / h) each
        # a row without any real position may look everywhere: softmax over nothing would be NaN
        mask = mask | ~mask.any(dim=1, keepdim=True)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        y, weights = attend(
            self,
            query,
            key,
            value,
            mask[:, None, None, :].expand(-1, -1, l, -1),
            scaling=self.scaling,
            output_attentions=attentions is not None,
        )
        if attentions is not None and weights is not None:
            attentions.append(weights)
        return self.out_proj(y.reshape(b, l, d))
