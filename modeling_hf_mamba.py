"""
HF-Mamba in PyTorch: posts made of text and images, classified by a hierarchy of Mamba blocks.

After "HF-Mamba: Improving Multimodal Classification via Hierarchical Fusion based on Mamba" (Ren et al.). The file
follows the paper's section 2 from top to bottom: input sequences, Mamba block, hierarchical fusion, classifier. The
recurrence itself is in selective_scan.py, what keeps padding away from it in packed_sequence.py, and the mixer of the
two attention backbones in self_attention.py.

Glossary (shapes stand at the end of tensor lines):
    b: posts in the batch                         d: hidden size (`config.hidden_size`)
    n: text tokens of a post                      e: inner size of a Mamba block, expand * d
    m: image patches of a post (all its images)   s: state size of the recurrence (`config.state_size`)
    l: positions of a sequence, n + m when fused  r: rank of the projection to the time step Δ

What this file does not do: generate text, keep a cache between calls, or read images and text (that is
processing_hf_mamba.py).
"""

from .transformers_version import check_transformers_version  # noqa: F401 - before what older versions lack


# isort: split
import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils import can_return_tuple

from .block_layers import RMSNorm, TimeStepProjection, UndecayedParameters, causal_conv_silu
from .configuration_hf_mamba import HFMambaConfig
from .packed_sequence import PackedSequence, as_mask, pool, take_positions
from .pretrained_hf_mamba import HFMambaPreTrainedModel, classification_loss, problem_type_of
from .selective_scan import check_scan_implementation, selective_scan
from .self_attention import HFMambaAttention


# ---------------------------------------------------------------------------------------------------------------------
# Section 2.1, input sequences


def sinusoid(positions, d):
    """Eq. 1: the position embeddings pe, shape (l, d), fp32, of `positions` (l,)."""
    frequencies = torch.exp(torch.arange(0, d, 2, device=positions.device) * (-math.log(10000.0) / d))  # (d/2,)
    angles = positions[:, None] * frequencies  # (l, d/2)
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # (l, d): sine even, cosine odd


class HFMambaEmbeddings(nn.Module):
    """
    Section 2.1: text tokens to T (b, n, d) and image patches to P (b, m, d), both with positions (Eq. 1 and 2).

    Positions count real tokens and patches, so `pixel_attention_mask` is for padding and whole images: masking single
    patches of an image would move the positions of those after them.
    """

    def __init__(self, config: HFMambaConfig):
        super().__init__()
        self.token_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.patch_embeddings = nn.Linear(config.patch_dim, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.num_patches = config.num_patches
        # Token embeddings of std 0.02 drown under a sinusoid of RMS 0.7: unscaled, the quickstart stays at chance
        # (results/). Scaled to unit RMS the two are comparable, as sqrt(d) does for Vaswani et al.
        self.scale = 1.0 / config.initializer_range

    def forward_text(self, inputs_embeds, mask):
        """The tokens' embeddings (b, n, d) and their mask (b, n) -> T (b, n, d), packed."""
        inputs_embeds = inputs_embeds.masked_fill(~mask[..., None], 0) * self.scale
        positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
        return self._add_positions(inputs_embeds, mask, positions)

    def forward_image(self, pixel_values, mask):
        """pixel_values (b, m, patch_dim) and their mask (b, m) -> P (b, m, d), packed."""
        # padding may hold anything; a NaN there would reach the gradient of the projection
        dtype = self.patch_embeddings.weight.dtype
        pixel_values = pixel_values.to(dtype).masked_fill(~mask[..., None], 0)
        # every image of a post counts its patches from zero
        positions = torch.arange(pixel_values.shape[1], device=pixel_values.device) % self.num_patches
        # under autocast a linear layer answers in bf16, too coarse for what every block adds to
        return self._add_positions(self.patch_embeddings(pixel_values).to(dtype), mask, positions)

    def _add_positions(self, embeddings, mask, positions):
        sequence = PackedSequence.pack(embeddings, mask)
        pe = sinusoid(positions, embeddings.shape[-1]).to(embeddings.dtype)  # (l, d)
        sequence.hidden_states = self.dropout(sequence.hidden_states + pe)  # Eq. 2
        return sequence


# ---------------------------------------------------------------------------------------------------------------------
# Section 2.2, Mamba block


class HFMambaSSM(nn.Module):
    """SSM(Activation(Conv(x))) of Eq. 7 in one direction: Δ, B and C are read off the input, A and D are learnt."""

    def __init__(self, config: HFMambaConfig, scan_implementation="auto"):
        super().__init__()
        self.scan_implementation = scan_implementation
        e, s, r = config.intermediate_size, config.state_size, config.resolved_time_step_rank
        self.sizes = [r, s, s]
        self.conv1d = nn.Conv1d(e, e, config.conv_kernel, groups=e, bias=config.use_conv_bias)
        self.x_proj = nn.Linear(e, r + 2 * s, bias=False)
        self.dt_proj = TimeStepProjection(r, e)
        # Like biases, A_log and D must never be decayed. Trainer tells by name alone, hence this one: any user's
        # plain Trainer then treats them right.
        self.bias_like = UndecayedParameters(e, s)

    def forward(self, x, z):
        """x (b, l, e) and, to be multiplied in, the gate z (b, l, e) or None -> (b, l, e)."""
        x = causal_conv_silu(x, self.conv1d.weight, self.conv1d.bias)  # (b, l, e)
        dt, B, C = self.x_proj(x).split(self.sizes, dim=-1)  # (b, l, r), (b, l, s), (b, l, s)
        delta = self.dt_proj(dt)  # (b, l, e); its bias and softplus are fused into the scan
        y = selective_scan(
            x.transpose(1, 2),
            delta.transpose(1, 2),
            -torch.exp(self.bias_like.A_log.float()),  # negative, so that the state decays; fp32 whatever the model is
            B.transpose(1, 2),
            C.transpose(1, 2),
            D=self.bias_like.D.float(),
            z=None if z is None else z.transpose(1, 2),
            delta_bias=self.dt_proj.bias.float(),
            delta_softplus=True,
            scan_implementation=self.scan_implementation,
        )
        return y.transpose(1, 2)  # (b, l, e)


class HFMambaMixer(nn.Module):
    """
    Eq. 7. With `gating="multiply"` the gate multiplies the SSM's output, as in Mamba's own block; with `"add"` it is
    added, as Eq. 7 is printed. `bidirectional` adds the output of a second SSM that reads from right to left.
    """

    def __init__(self, config: HFMambaConfig, scan_implementation="auto"):
        super().__init__()
        self.gating = config.gating
        self.in_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.use_bias)
        self.ssm = HFMambaSSM(config, scan_implementation)
        self.reverse_ssm = HFMambaSSM(config, scan_implementation) if config.bidirectional else None
        self.out_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.use_bias)

    def forward(self, hidden_states, mask, reverse_index=None, attentions=None):
        """hidden_states (b, l, d), real positions first -> (b, l, d); there are no `attentions` to append"""
        x, z = self.in_proj(hidden_states).chunk(2, dim=-1)  # (b, l, e) each
        gate = z if self.gating == "multiply" else None
        y = self.ssm(x, gate)
        if self.reverse_ssm is not None:
            x = take_positions(x, reverse_index)
            gate = None if gate is None else take_positions(gate, reverse_index)
            y = y + take_positions(self.reverse_ssm(x, gate), reverse_index)
        if self.gating == "add":
            y = y + F.silu(z)
        return self.out_proj(y)


class HFMambaBlock(GradientCheckpointingLayer):
    """Eq. 8: one block of a stack, pre-norm with residual: Mamba's own, or one of the attention backbones."""

    def __init__(self, config: HFMambaConfig, scan_implementation="auto"):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if config.backbone == "mamba":
            self.mixer = HFMambaMixer(config, scan_implementation)
        else:
            self.mixer = HFMambaAttention(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.feed_forward = None
        if config.backbone == "transformer":
            d = config.hidden_size
            self.feed_forward_norm = RMSNorm(d, eps=config.rms_norm_eps)
            self.feed_forward = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, hidden_states, mask, reverse_index=None, attentions=None):
        """
        hidden_states (b, l, d), its mask (b, l), and the index that reverses it (b, l) -> (b, l, d); attention weights
        are appended to the list `attentions`, if there is one.
        """
        y = self.mixer(self.norm(hidden_states), mask, reverse_index, attentions)
        hidden_states = hidden_states + self.dropout(y)
        if self.feed_forward is not None:
            hidden_states = hidden_states + self.dropout(self.feed_forward(self.feed_forward_norm(hidden_states)))
        return hidden_states


class HFMambaStack(nn.Module):
    """`num_layers` blocks, one after the other, over one sequence: each of the three Mamba(...) of Eq. 9 and 11."""

    def __init__(self, config: HFMambaConfig, num_layers, scan_implementation="auto"):
        super().__init__()
        self.bidirectional = config.bidirectional
        self.layers = nn.ModuleList(HFMambaBlock(config, scan_implementation) for _ in range(num_layers))

    def forward(self, sequence):
        """A PackedSequence after all blocks; what it collects is collected after each."""
        mask, reverse_index = sequence.mask, None
        if self.bidirectional:
            position = torch.arange(mask.shape[1], device=mask.device)
            length = mask.sum(dim=1, keepdim=True)  # (b, 1)
            reverse_index = torch.where(position < length, length - 1 - position, position)  # (b, l)
        for layer in self.layers:
            sequence.advance(layer(sequence.hidden_states, mask, reverse_index, sequence.attentions))
        return sequence


# ---------------------------------------------------------------------------------------------------------------------
# Section 2.3, hierarchical fusion


class HFMambaModel(HFMambaPreTrainedModel):
    """
    The paper's section 2 without the classifier: T and P through their own stacks (Eq. 9), segment embeddings
    (Eq. 10), one stack over both (Eq. 11), and Z pooled to one vector per post.

    Args:
        config ([`HFMambaConfig`]): the model's hyper-parameters.
        scan_implementation (`str`, defaults to `"auto"`): which implementation of the recurrence runs, see
            `selective_scan`. Not saved: `from_pretrained(..., scan_implementation="torch")` chooses anew.
    """

    def __init__(self, config: HFMambaConfig, scan_implementation="auto"):
        super().__init__(config)
        check_scan_implementation(scan_implementation)
        self.embeddings = HFMambaEmbeddings(config)
        hierarchical = config.fusion == "hierarchical"
        self.text_stack = HFMambaStack(config, config.num_text_layers, scan_implementation) if hierarchical else None
        self.image_stack = HFMambaStack(config, config.num_image_layers, scan_implementation) if hierarchical else None
        self.segment_embeddings = None
        if hierarchical and config.segment_embeddings == "learned":
            self.segment_embeddings = nn.Embedding(2, config.hidden_size)
        self.fusion_stack = HFMambaStack(config, config.num_fusion_layers, scan_implementation)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.token_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.token_embeddings = value

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            input_ids: token ids, shape (b, n). Leave out (with `inputs_embeds`) for posts without any text.
            attention_mask: shape (b, n), 1 at real tokens, on whatever side the padding is. None: all are real.
            pixel_values: flattened patches of all images of a post end to end, shape (b, m, patch_dim), as
                `HFMambaImageProcessor` gives them. Leave out for posts without any image.
            pixel_attention_mask: shape (b, m), 1 at real patches. None: all are real.
            inputs_embeds: instead of input_ids, shape (b, n, d).
            output_hidden_states: also return T ⊕ P at every depth.
            output_attentions: also return what attends to what at every depth. Only the attention backbones have
                such weights, and only with `attn_implementation="eager"`.

        Returns:
            `last_hidden_state`: Z of Eq. 11 after the final norm, shape (b, n + m, d): text positions, then patches,
            as they came in; zero at padding. `pooler_output`: shape (b, 2 * d) with mean_max pooling, else (b, d).
            `hidden_states`: shape (b, n + m, d) each: the embeddings, then T ⊕ P after each depth of the modality
            stacks (a shallower stack waits for the deeper one), then after each block of the fusion stack.
            `attentions`: shape (b, heads, n + m, n + m) each, from row to column, at the same depths but the first;
            zero at padding, between text and image before the fusion stack, and where a stack waits.

        Raises:
            ValueError: no input at all, both of `input_ids` and `inputs_embeds`, or shapes that don't fit.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        text, image = self._embed(input_ids, attention_mask, pixel_values, pixel_attention_mask, inputs_embeds)
        for part in filter(None, (text, image)):
            part.collect(output_hidden_states, output_attentions)
        text, image = self._encode(text, self.text_stack, 0), self._encode(image, self.image_stack, 1)
        joined = PackedSequence.join(text, image)  # T ⊕ P of Eq. 11
        fused = PackedSequence.pack(joined.hidden_states, joined.mask, joined.order)
        fused = self.fusion_stack(fused.collect(output_hidden_states, output_attentions))  # Eq. 11
        z = self.norm(fused.hidden_states)  # (b, l, d)
        hidden_states = attentions = None
        if output_hidden_states:
            hidden_states = tuple(map(joined.unpack, joined.states)) + tuple(map(fused.unpack, fused.states[1:]))
        if output_attentions:
            attentions = [part.unpack_attention(weights) for part in (joined, fused) for weights in part.attentions]
        return BaseModelOutputWithPooling(
            last_hidden_state=fused.unpack(z),
            pooler_output=pool(z, fused.mask, self.config.pooling),
            hidden_states=hidden_states,
            attentions=tuple(attentions) if attentions else None,
        )

    def _embed(self, input_ids, attention_mask, pixel_values, pixel_attention_mask, inputs_embeds):
        """Checks what the caller gave and embeds it: T and P as PackedSequences, None for a modality not given."""
        if input_ids is not None and inputs_embeds is not None:
            raise ValueError("Both input_ids and inputs_embeds were given: they are the same text twice, drop one.")
        if input_ids is None and inputs_embeds is None and pixel_values is None:
            raise ValueError("Nothing to classify: give input_ids (or inputs_embeds), pixel_values, or both.")
        text = image = None
        if input_ids is not None:
            inputs_embeds = self.embeddings.token_embeddings(input_ids)
        if inputs_embeds is not None:
            mask = as_mask("attention_mask", attention_mask, inputs_embeds)
            text = self.embeddings.forward_text(inputs_embeds, mask)
        if pixel_values is not None:
            if pixel_values.ndim != 3 or pixel_values.shape[-1] != self.config.patch_dim:
                raise ValueError(
                    f"pixel_values has shape {tuple(pixel_values.shape)}, but must be (batch, patches, "
                    f"{self.config.patch_dim}) for this model's patch_size {self.config.patch_size}: let the "
                    "checkpoint's own processor make them."
                )
            mask = as_mask("pixel_attention_mask", pixel_attention_mask, pixel_values)
            image = self.embeddings.forward_image(pixel_values, mask)
        # shapes, not len(): that would fix the batch of an exported program to the example's
        if text is not None and image is not None and text.mask.shape[0] != image.mask.shape[0]:
            raise ValueError(
                f"{text.mask.shape[0]} texts were given with {image.mask.shape[0]} rows of pixel_values: give one row "
                "of each per post, and mask what a post lacks."
            )
        return text, image

    def _encode(self, sequence, stack, segment):
        """One modality through its own stack (Eq. 9), and marked as what it is (Eq. 10)."""
        if sequence is not None and stack is not None:
            sequence = stack(sequence)
        if sequence is not None and self.segment_embeddings is not None:
            index = torch.full((1,), segment, device=sequence.mask.device)
            sequence.replace(sequence.hidden_states + self.segment_embeddings(index))  # (1, d)
        return sequence


# ---------------------------------------------------------------------------------------------------------------------
# The classifier on Z


class HFMambaForSequenceClassification(HFMambaPreTrainedModel):
    """
    [`HFMambaModel`] with a linear classifier on the pooled Z: single label, several labels or regression, as
    `config.problem_type` says (found out from the first labels if it doesn't).

    Args: as [`HFMambaModel`].
    """

    # The loss is a mean over this batch's own posts, so Trainer must average over accumulation steps. Without this
    # it would take the model for one that normalises by num_items_in_batch itself.
    accepts_loss_kwargs = False

    def __init__(self, config: HFMambaConfig, scan_implementation="auto"):
        super().__init__(config)
        if config.class_weights is not None and len(config.class_weights) != config.num_labels:
            raise ValueError(
                f"class_weights has {len(config.class_weights)} weights for num_labels={config.num_labels}: "
                "give one for each label, or class_weights=None."
            )
        self.num_labels = config.num_labels
        self.model = HFMambaModel(config, scan_implementation)
        self.dropout = nn.Dropout(config.classifier_dropout)
        pooled_size = config.hidden_size * (2 if config.pooling == "mean_max" else 1)
        self.classifier = nn.Linear(pooled_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        r"""
        Args:
            labels: single label: ids, shape (b,). Several labels: 0 and 1 as floats, shape (b, num_labels).
                Regression: floats, shape (b,) or (b, num_labels).

        The other arguments, and what they raise, are those of [`HFMambaModel`].

        Returns:
            `loss` (if labels are given), `logits` (b, num_labels), and `hidden_states` and `attentions` as
            [`HFMambaModel`] gives them.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output))  # (b, num_labels)
        loss = None
        if labels is not None:
            if self.config.problem_type is None:
                self.config.problem_type = problem_type_of(labels, self.num_labels)
            loss = classification_loss(logits, labels, self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["HFMambaForSequenceClassification", "HFMambaModel", "HFMambaPreTrainedModel"]
