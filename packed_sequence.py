"""
Sequences of unequal length in one batch: rows whose real positions stand in front, and what is computed over them.

Knows nothing of text or images. Symbols: b rows of the batch, l positions of a sequence, d hidden size.
"""

from dataclasses import dataclass
from itertools import zip_longest

import torch


@dataclass
class PackedSequence:
    """
    A batch of sequences with the real positions of every row moved to its front, in order, so that padding is at the
    end whatever side, gap or amount it had. A causal recurrence then never meets padding, and positions count real
    tokens: what makes logits independent of padding and batch company exact rather than approximate.

    hidden_states: shape (b, l, d)
    mask: shape (b, l), True at real positions
    order: shape (b, l), which position of the caller's sequence each one came from
    states: the hidden states at every depth so far, shape (b, l, d) each; None unless collected
    attentions: the attention weights of every block so far, shape (b, h, l, l) each; None unless collected
    """

    hidden_states: torch.Tensor
    mask: torch.Tensor
    order: torch.Tensor
    states: list | None = None
    attentions: list | None = None

    @classmethod
    def pack(cls, hidden_states, mask, order=None):
        """hidden_states (b, l, d) and mask (b, l) as they come; order: where the caller had them, if not here."""
        move = torch.argsort(mask.logical_not().to(torch.uint8), dim=1, stable=True)  # (b, l)
        order = move if order is None else order.gather(1, move)
        return cls(take_positions(hidden_states, move), mask.gather(1, move), order)

    def collect(self, states, attentions):
        """Whether the hidden states, and the attention weights, of every depth are kept from here on."""
        self.states = [self.hidden_states] if states else None
        self.attentions = [] if attentions else None
        return self

    def advance(self, hidden_states):
        """The hidden states one depth further."""
        self.hidden_states = hidden_states
        if self.states is not None:
            self.states.append(hidden_states)

    def replace(self, hidden_states):
        """Other hidden states at the same depth."""
        self.hidden_states = hidden_states
        if self.states is not None:
            self.states[-1] = hidden_states

    @classmethod
    def join(cls, first, second):
        """
        Two sequences of the same rows end to end, at every depth, of n and m positions; the shallower one waits in its
        last state, without attention. Either may be None.
        """
        if first is None or second is None:
            return second if first is None else first
        states = attentions = None
        if first.states is not None:
            depth = max(len(first.states), len(second.states))
            pairs = [[*part.states, *part.states[-1:] * (depth - len(part.states))] for part in (first, second)]
            states = [torch.cat(pair, dim=1) for pair in zip(*pairs)]  # (b, n + m, d) each
        if first.attentions is not None:
            sizes = first.mask.shape[1], second.mask.shape[1]
            attentions = [block_diagonal(pair, sizes) for pair in zip_longest(first.attentions, second.attentions)]
        return cls(
            hidden_states=torch.cat([first.hidden_states, second.hidden_states], dim=1),
            mask=torch.cat([first.mask, second.mask], dim=1),
            order=torch.cat([first.order, second.order + first.order.shape[1]], dim=1),
            states=states,
            attentions=attentions,  # (b, h, n + m, n + m) each
        )

    def unpack(self, hidden_states):
        """hidden_states (b, l, d) of this sequence back in the caller's order, zero at padding."""
        hidden_states = hidden_states.masked_fill(~self.mask[..., None], 0)
        return take_positions(hidden_states, torch.argsort(self.order, dim=1))

    def unpack_attention(self, weights):
        """weights (b, h, l, l) from row to column back in the caller's order, zero at padding."""
        real = self.mask[:, None, :, None] & self.mask[:, None, None, :]  # (b, 1, l, l)
        weights, index = weights.masked_fill(~real, 0), torch.argsort(self.order, dim=1)  # (b, l)
        weights = weights.gather(2, index[:, None, :, None].expand_as(weights))
        return weights.gather(3, index[:, None, None, :].expand_as(weights))


def take_positions(hidden_states, index):
    """hidden_states (b, l, d) at the positions `index` (b, l) of each row."""
    b, l, d = hidden_states.shape
    rows = index + l * torch.arange(b, device=index.device)[:, None]  # (b, l)
    # whole rows by one flat index: faster on CPU, forward and backward, than gather with an index expanded over d
    return hidden_states.reshape(b * l, d).index_select(0, rows.flatten()).view(b, l, d)


def block_diagonal(pair, sizes):
    """A pair of attention weights, shape (b, h, n, n) and (b, h, m, m) for sizes n and m, None for zeros, as one."""
    (first, second), (n, m) = pair, sizes
    given = second if first is None else first
    joined = given.new_zeros(*given.shape[:2], n + m, n + m)
    if first is not None:
        joined[:, :, :n, :n] = first
    if second is not None:
        joined[:, :, n:, n:] = second
    return joined


def as_mask(name, mask, values):
    """mask (b, l) as booleans, checked against values (b, l, ...); all True when there is none."""
    if mask is None:
        return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    if mask.shape != values.shape[:2]:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, but must be {tuple(values.shape[:2])} as its input.")
    return mask.bool()


def pool(z, mask, pooling):
    """
    Z (b, l, d) as one vector per row over its real positions: shape (b, d), or (b, 2 * d) for "mean_max". A row
    without any comes out as zeros. The paper leaves pooling open: mean_max learns fusion where mean and last do not.
    """
    mask = mask[..., None]  # (b, l, 1)
    pooled = []
    if "mean" in pooling:
        pooled.append(z.masked_fill(~mask, 0).sum(dim=1) / mask.sum(dim=1).clamp(min=1).to(z.dtype))
    if "max" in pooling:
        lowest = torch.finfo(z.dtype).min
        pooled.append(z.masked_fill(~mask, lowest).amax(dim=1).masked_fill(~mask.any(dim=1), 0))
    if pooling == "last":
        last = (mask.sum(dim=1, keepdim=True) - 1).clamp(min=0)  # (b, 1, 1), real positions are in front
        pooled.append(z.masked_fill(~mask, 0).gather(1, last.expand(-1, -1, z.shape[-1])).squeeze(1))
    return torch.cat(pooled, dim=-1)
