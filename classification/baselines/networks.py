"""The networks among the text baselines: a TextCNN, a BiGRU, and any pretrained classifier of transformers.

Symbols: b batch, n tokens, d size of an embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from ...modeling_hf_mamba import classification_loss
from ...processing_hf_mamba import HFMambaImageProcessor, HFMambaProcessor, clean_text
from ..data.arguments import DataArguments
from ..data.posts import Posts
from ..runs.arguments import ModelArguments
from ..runs.checkpoints import DEFAULT_MAX_SEQ_LENGTH, new_tokenizer
from ..support.hub import explain_hub_error
from ..training.class_weights import resolve_class_weights


EMBEDDING_SIZE = 128
CNN_FILTERS, CNN_WIDTHS = 100, (3, 4, 5)  # Kim's (2014)
GRU_SIZE = 128  # of each direction
DROPOUT = 0.5
EMBEDDING_STD = 0.1

_LOWEST = torch.finfo(torch.float32).min


class TextNetwork(nn.Module):
    """
    Embeddings, features of the whole text by `pool`, a linear classifier. What is beyond the attention mask changes
    no logit.

    Args:
        config: with vocab_size, num_labels, problem_type, class_weights and label_smoothing
        feature_size: of what `pool` returns
    """

    accepts_loss_kwargs = False  # the loss is a mean over the batch, see HFMambaForSequenceClassification

    def __init__(self, config: Any, feature_size: int) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.Embedding(config.vocab_size, EMBEDDING_SIZE)
        nn.init.normal_(self.embeddings.weight, std=EMBEDDING_STD)
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(feature_size, config.num_labels)

    def pool(self, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embedded tokens (b, n, d), 0 beyond the mask (b, n), to features (b, feature_size)."""
        raise NotImplementedError

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """
        Args:
            input_ids, attention_mask: (b, n), padded on the right
            labels: ids (b,)

        Returns:
            SequenceClassifierOutput with logits (b, num_labels) and, given labels, the loss
        """
        mask = attention_mask.bool()
        embedded = self.embeddings(input_ids) * mask[..., None]
        logits = self.classifier(self.dropout(self.pool(self.dropout(embedded), mask)))
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits)


class TextCNN(TextNetwork):
    """Convolutions over 3, 4 and 5 tokens, of each filter the largest value (Kim, EMNLP 2014)."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, CNN_FILTERS * len(CNN_WIDTHS))
        # half windows at both ends, so that a text shorter than a window has some
        self.convolutions = nn.ModuleList(
            nn.Conv1d(EMBEDDING_SIZE, CNN_FILTERS, width, padding=width - 1) for width in CNN_WIDTHS
        )

    def pool(self, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        largest = []
        for convolution, width in zip(self.convolutions, CNN_WIDTHS):
            windows = F.relu(convolution(embedded.transpose(1, 2)))  # (b, CNN_FILTERS, n + width - 1)
            padded = F.pad(mask.float()[:, None], (width - 1, width - 1))
            real = F.max_pool1d(padded, width, stride=1) > 0  # windows that see a token
            largest.append(windows.masked_fill(~real, _LOWEST).amax(-1))
        return torch.cat(largest, dim=-1)


class BiGRU(TextNetwork):
    """A GRU from both sides, of each of its outputs the largest value over the tokens."""

    def __init__(self, config: Any) -> None:
        super().__init__(config, 2 * GRU_SIZE)
        self.gru = nn.GRU(EMBEDDING_SIZE, GRU_SIZE, batch_first=True, bidirectional=True)

    def pool(self, embedded: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        lengths = mask.sum(-1).cpu()
        packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=mask.shape[1])
        return states.masked_fill(~mask[..., None], _LOWEST).amax(1)


NETWORKS: dict[str, Callable[[Any], TextNetwork]] = {"text_cnn": TextCNN, "bigru": BiGRU}


def new_network(
    name: str, model_args: ModelArguments, data_args: DataArguments, posts: Posts
) -> tuple[HFMambaProcessor, TextNetwork]:
    """The processor of an HF-Mamba, with a vocabulary of its own from the training posts, and a fresh network."""
    tokenizer = new_tokenizer(data_args, posts)
    tokenizer.padding_side = "right"  # which `TextNetwork` counts on
    fields = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "class_weights": resolve_class_weights(model_args.class_weights, posts),
        "label_smoothing": vars(model_args)["label_smoothing"] or 0.0,
        **_labels_of(posts),
    }
    processor = HFMambaProcessor(image_processor=HFMambaImageProcessor(), tokenizer=tokenizer)
    return processor, NETWORKS[name](PreTrainedConfig(**fields))


def _labels_of(posts: Posts) -> dict[str, Any]:
    id2label = dict(enumerate(posts.label_names))
    return {
        "id2label": id2label,
        "label2id": {name: index for index, name in id2label.items()},
        "problem_type": posts.problem_type,
    }


class TextProcessor:
    """
    Posts to the tensors of a tokenizer of transformers, as `PostCollator` calls it. White space is collapsed.

    Args:
        tokenizer: of the pretrained model
        max_length: texts are cut to so many tokens
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(
        self,
        text: Sequence[str | None],
        images: Any = None,
        return_tensors: str = "pt",
        text_kwargs: Mapping[str, Any] | None = None,
        images_kwargs: Any = None,
    ) -> BatchEncoding:
        """`text_kwargs` go to the tokenizer; there are no images, so nothing takes `images` or `images_kwargs`."""
        kwargs = {"padding": True, "truncation": True, "max_length": self.max_length} | dict(text_kwargs or {})
        return self.tokenizer([clean_text(one) for one in text], return_tensors=return_tensors, **kwargs)

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> Any:
        return self.tokenizer.save_pretrained(folder, **kwargs)


def load_pretrained(name: str, data_args: DataArguments, posts: Posts) -> tuple[TextProcessor, Any]:
    """
    The tokenizer and the classifier of a pretrained model, the latter's last layer made new for the posts' labels.

    Args:
        name: a folder, or a name on the Hub

    Raises:
        ValueError: it can't be loaded, can't be padded, or takes fewer tokens than --max_seq_length.
    """
    flag = f"--baseline auto:{name}"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForSequenceClassification.from_pretrained(
            name, ignore_mismatched_sizes=True, **_labels_of(posts)
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{flag} can't be loaded as a text classifier: {explain_hub_error(error)}") from error
    if tokenizer.pad_token_id is None:
        raise ValueError(f"{flag}: its tokenizer has no padding token, which batches need. Give it one and save it.")
    model.config.pad_token_id = tokenizer.pad_token_id
    max_length = data_args.max_seq_length or DEFAULT_MAX_SEQ_LENGTH
    known = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    longest = min(length for length in known if length is not None)
    if max_length > longest:
        raise ValueError(f"{flag} takes no more than {longest} tokens: give --max_seq_length {longest} or less.")
    model.accepts_loss_kwargs = False
    model.config.class_weights, model.config.label_smoothing = None, 0.0  # where PostTrainer looks for them
    return TextProcessor(tokenizer, max_length), model
