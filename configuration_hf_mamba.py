"""HF-Mamba's hyper-parameters: every one the model has, the paper's values as defaults."""

from .transformers_version import check_transformers_version  # noqa: F401 - before what older versions lack


# isort: split
import math
from pathlib import Path

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig

from .remote_code import AUTO_MAP, check_before_upload, copy_remote_code


CHOICES = {
    "gating": ("multiply", "add"),
    "segment_embeddings": ("learned", "none"),
    "fusion": ("hierarchical", "flatten"),
    "backbone": ("mamba", "self_attention", "transformer"),
    "pooling": ("mean_max", "mean", "max", "last"),
    # transformers declares these, but checks only the fields of the class it decorates
    "problem_type": ("single_label_classification", "multi_label_classification", "regression", None),
}


@strict
class HFMambaConfig(PreTrainedConfig):
    r"""
    Configuration of [`HFMambaModel`] and [`HFMambaForSequenceClassification`]. The defaults are the paper's values
    where it gives them (hidden size 64, five blocks in each of three stacks, 224x224 images in 16x16 patches).

    Args:
        vocab_size (`int`, defaults to 8000): Number of WordPiece tokens.
        hidden_size (`int`, defaults to 64): d, the size of every embedding. Even, for the sinusoid of Eq. 1.
        num_text_layers (`int`, defaults to 5): Blocks in the text stack of Eq. 9.
        num_image_layers (`int`, defaults to 5): Blocks in the image stack of Eq. 9.
        num_fusion_layers (`int`, defaults to 5): Blocks in the stack over both, Eq. 11.
        state_size (`int`, defaults to 16): s, the size of the latent state of Eq. 3, per channel.
        conv_kernel (`int`, defaults to 4): Width of the causal depthwise convolution of Eq. 7.
        expand (`int`, defaults to 2): e = expand * d channels inside a Mamba block.
        time_step_rank (`int` or `"auto"`, defaults to `"auto"`): r, rank of the projection to Δ; auto is d / 16.
        time_step_min, time_step_max, time_step_floor (`float`): Range of Δ at initialisation, Mamba's own.
        use_conv_bias (`bool`, defaults to `True`), use_bias (`bool`, defaults to `False`): Biases of the convolution
            and of the two outer projections of a Mamba block.
        gating (`"multiply"` or `"add"`): How the gate meets the SSM's output: Mamba's own block multiplies, Eq. 7 as
            printed adds.
        segment_embeddings (`"learned"` or `"none"`): Seg of Eq. 10. The paper prints zeros for both modalities, which
            would be an identity; `"none"` is its HF-Mamba-Simple.
        fusion (`"hierarchical"` or `"flatten"`): `"flatten"` is the paper's Flatten-Mamba: one stack
            (`num_fusion_layers`) over the concatenated embeddings, no modality stacks, no segment embeddings.
        backbone (`"mamba"`, `"self_attention"` or `"transformer"`): The block of every stack (the paper's Table 4).
        num_attention_heads (`int`, defaults to 4): Heads of the two attention backbones.
        pooling (`"mean_max"`, `"mean"`, `"max"` or `"last"`): How Z becomes one vector, over real positions only.
        bidirectional (`bool`, defaults to `False`): Adds a scan from right to left to every Mamba block.
        image_size (`int`, defaults to 224), patch_size (`int`, defaults to 16), num_channels (`int`, defaults to 3):
            Pixels; the image processor's sizes must be the same.
        hidden_dropout (`float`): On the embeddings and on every block's output.
        classifier_dropout (`float`): On the pooled vector, before the classifier.
        label_smoothing (`float`, defaults to 0): For single-label classification.
        class_weights (`list[float]`, *optional*): A weight for each label in the loss of single- and multi-label
            classification.
        initializer_range (`float`): Standard deviation of token and segment embeddings. Linear layers and the
            convolution keep PyTorch's own initialisation, as in Mamba's reference code.
        rms_norm_eps (`float`, defaults to 1e-5): Epsilon of every RMSNorm.
        pad_token_id (`int`, defaults to 0): Id of [PAD].

    Raises `huggingface_hub.errors.StrictDataclassError`, as every transformers config does, for a value that can't
    be: the message names the field, what was given and what would be right.

    ```python
    >>> from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification

    >>> model = HFMambaForSequenceClassification(HFMambaConfig(num_labels=2))
    ```
    """

    model_type = "hf_mamba"

    vocab_size: int = 8000
    hidden_size: int = 64
    num_text_layers: int = 5
    num_image_layers: int = 5
    num_fusion_layers: int = 5
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    time_step_rank: int | str = "auto"
    time_step_min: float = 0.001
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4
    use_conv_bias: bool = True
    use_bias: bool = False
    gating: str = "multiply"
    segment_embeddings: str = "learned"
    fusion: str = "hierarchical"
    backbone: str = "mamba"
    num_attention_heads: int = 4
    pooling: str = "mean_max"
    bidirectional: bool = False
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_dropout: float | int = 0.1
    classifier_dropout: float | int = 0.1
    label_smoothing: float | int = 0.0
    class_weights: list[float | int] | None = None
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    pad_token_id: int | None = 0

    def __post_init__(self, **kwargs):
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)
        if self.id2label is not None and (self.label2id is None or len(self.label2id) != len(self.id2label)):
            self.label2id = {label: index for index, label in self.id2label.items()}
        self.auto_map = dict(AUTO_MAP)

    @property
    def intermediate_size(self) -> int:
        """e, the number of channels inside a Mamba block."""
        return self.expand * self.hidden_size

    @property
    def resolved_time_step_rank(self) -> int:
        """r, with `"auto"` worked out."""
        return math.ceil(self.hidden_size / 16) if self.time_step_rank == "auto" else self.time_step_rank

    @property
    def num_hidden_layers(self) -> int:
        """Depth of the network: blocks that a position passes on its longest way to the classifier."""
        if self.fusion == "flatten":
            return self.num_fusion_layers
        return max(self.num_text_layers, self.num_image_layers) + self.num_fusion_layers

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """Numbers in one flattened patch."""
        return self.patch_size**2 * self.num_channels

    def validate_architecture(self):
        """Part of `@strict` validation: fields against their choices, their ranges and each other."""
        for field, choices in CHOICES.items():
            if (value := getattr(self, field)) not in choices:
                raise ValueError(f"{field} is {value!r}, but must be one of {', '.join(map(repr, choices))}.")
        self._validate_ranges()
        if self.hidden_size % 2:
            raise ValueError(
                f"hidden_size is {self.hidden_size}, but must be even: half of the sinusoid of Eq. 1 is sine, half "
                f"cosine. Take {self.hidden_size - 1} or {self.hidden_size + 1}."
            )
        if self.image_size % self.patch_size:
            nearest = round(self.image_size / self.patch_size) or 1
            raise ValueError(
                f"image_size is {self.image_size}, but must be a multiple of patch_size ({self.patch_size}), "
                f"{nearest * self.patch_size} for one."
            )
        if self.backbone != "mamba" and self.hidden_size % self.num_attention_heads:
            divisors = [h for h in range(1, 17) if self.hidden_size % h == 0]
            raise ValueError(
                f"num_attention_heads is {self.num_attention_heads}, but must divide hidden_size "
                f"({self.hidden_size}): {', '.join(map(str, divisors))} would do."
            )
        if self.num_hidden_layers == 0:
            every = "num_text_layers, num_image_layers or num_fusion_layers"
            fields = "num_fusion_layers" if self.fusion == "flatten" else every
            raise ValueError(f"The network has no layers at all (fusion={self.fusion!r}): set {fields} to 1 or more.")
        if self.bidirectional and self.backbone != "mamba":
            raise ValueError(
                f"bidirectional is True with backbone={self.backbone!r}, which already looks both ways: "
                "it belongs to backbone='mamba'."
            )

    def _validate_ranges(self):
        """Single numbers against the range that makes sense for them."""
        at_least_one = ["vocab_size", "hidden_size", "state_size", "conv_kernel", "expand", "num_attention_heads"]
        for field in [*at_least_one, "image_size", "patch_size", "num_channels"]:
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}, but must be 1 or more.")
        for field in ["num_text_layers", "num_image_layers", "num_fusion_layers"]:
            if getattr(self, field) < 0:
                raise ValueError(f"{field} is {getattr(self, field)}, but must be 0 or more.")
        for field in ["hidden_dropout", "classifier_dropout", "label_smoothing"]:
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}, but must be at least 0 and below 1.")
        for field in ["initializer_range", "rms_norm_eps", "time_step_min", "time_step_floor"]:
            if not getattr(self, field) > 0:
                raise ValueError(f"{field} is {getattr(self, field)}, but must be above 0.")
        if self.time_step_max < self.time_step_min:
            raise ValueError(
                f"time_step_max is {self.time_step_max}, but must not be below time_step_min ({self.time_step_min})."
            )
        rank = self.time_step_rank
        if rank != "auto" and (isinstance(rank, str) or rank < 1):
            raise ValueError(f"time_step_rank is {rank!r}, but must be 'auto' or a whole number of 1 or more.")
        if self.class_weights is not None and any(not weight >= 0 for weight in self.class_weights):
            raise ValueError(f"class_weights is {self.class_weights}, but every weight must be 0 or more.")

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """Refuses a checkpoint of another type of model: transformers only warns, and then fails on its fields."""
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        model_type = config.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"{pretrained_model_name_or_path} is a {model_type!r} checkpoint, not an HF-Mamba: load it with "
                "transformers' AutoModel classes."
            )
        return config, kwargs

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        """
        Saves config.json and, beside it, all the code that its `auto_map` names: the one place through which a model,
        a processor or the config alone becomes a folder that loads with `trust_remote_code=True`.
        """
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        copy_remote_code(save_directory, self.name_or_path)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def _upload_modified_files(self, working_dir, repo_id, *args, **kwargs):
        """The one way to the Hub, for `push_to_hub` and `save_pretrained(push_to_hub=True)`: checked before it."""
        check_before_upload(self, working_dir, repo_id)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _get_files_timestamps(self, working_dir):
        """Without those of the code: it lies there before transformers asks, which would take it for uploaded."""
        found = super()._get_files_timestamps(working_dir)
        return {name: time for name, time in found.items() if not name.endswith(".py")}


__all__ = ["HFMambaConfig"]
