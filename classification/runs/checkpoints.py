"""A model and its processor, in step with each other: new ones for the posts, or a checkpoint's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from ...configuration_hf_mamba import HFMambaConfig
from ...modeling_hf_mamba import HFMambaForSequenceClassification, HFMambaModel
from ...processing_hf_mamba import HFMambaImageProcessor, HFMambaProcessor, build_wordpiece_tokenizer
from ..data.arguments import DataArguments
from ..data.labels import REGRESSION, SINGLE
from ..data.posts import Posts
from ..data.vocabulary import train_wordpiece
from ..evaluation.split_report import BASELINE_KEYS, read_baseline
from ..support.files import read_mapping
from ..support.hub import explain_hub_error, find_checkpoint
from ..support.run_files import RESULTS_FILE
from ..training.targets import TargetScale, init_regression_head
from .arguments import ModelArguments, with_changes


# Config fields that may differ from the loaded checkpoint's: they have no weights.
_FREE_FIELDS = {"hidden_dropout", "classifier_dropout", "label_smoothing"}

DEFAULT_MAX_SEQ_LENGTH, DEFAULT_VOCAB_SIZE = 64, 8000


def with_found_checkpoint(model_args: ModelArguments) -> ModelArguments:
    """
    The flags with the checkpoint of --model_name_or_path, if there is one, named as the libraries find it.

    Raises:
        FileNotFoundError, ValueError: see `find_checkpoint`.
    """
    name = model_args.model_name_or_path
    return model_args if name is None else with_changes(model_args, model_name_or_path=find_checkpoint(name))


def load_checkpoint(
    name: str, model_args: ModelArguments, data_args: DataArguments
) -> tuple[HFMambaProcessor, HFMambaForSequenceClassification]:
    """
    Processor and model of a checkpoint.

    Args:
        name: its folder or its name on the Hub, as `with_found_checkpoint` gives it
        model_args, data_args: flags that it must fit

    Raises:
        ValueError: a checkpoint of another type of model, with parts that don't fit each other, or that the flags
            contradict.
    """
    with _named(name):
        model_type = PreTrainedConfig.get_config_dict(name)[0].get("model_type")
    if model_type != HFMambaConfig.model_type:
        raise ValueError(
            f"--model_name_or_path {name} is a {model_type!r} checkpoint, not an HF-Mamba: give one that this script "
            "trained, or leave the flag out to train a new one."
        )
    with _named(name):
        processor = HFMambaProcessor.from_pretrained(name)
        config = HFMambaConfig.from_pretrained(name)
    _check_fit(name, config, processor, model_args, data_args)
    overrides = {field: value for field, value in model_args.config_overrides().items() if field in _FREE_FIELDS}
    with _named(name):
        with_info: Any = HFMambaForSequenceClassification.from_pretrained(
            name, scan_implementation=model_args.scan_implementation, output_loading_info=True, **overrides
        )
    model, loading_info = with_info
    wrong = {kind: sorted(map(str, keys)) for kind, keys in loading_info.items() if keys and kind.endswith("_keys")}
    if wrong:
        found = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(keys[:3])}" for kind, keys in wrong.items())
        raise ValueError(
            f"--model_name_or_path {name}: its weights don't fit its config.json ({found}). Use a whole checkpoint as "
            "save_pretrained wrote it."
        )
    return processor, model


@contextmanager
def _named(checkpoint: str) -> Iterator[None]:
    """Names the checkpoint in whatever error the libraries raise."""
    try:
        yield
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(
            f"--model_name_or_path {checkpoint} can't be loaded as a checkpoint: {explain_hub_error(error)}"
        ) from error


def load_run(folder: str | Path) -> tuple[HFMambaModel | HFMambaForSequenceClassification, HFMambaProcessor | None]:
    """
    Model and processor (None if it has none) of a finished run, by the code of this package.

    Raises:
        ValueError: the folder isn't a checkpoint.
    """
    try:
        config = read_mapping(Path(folder, "config.json"))
        classifier = HFMambaForSequenceClassification.__name__ in (config.get("architectures") or [])
        model = (HFMambaForSequenceClassification if classifier else HFMambaModel).from_pretrained(folder)
        has_processor = Path(folder, "processor_config.json").is_file()
        return model, HFMambaProcessor.from_pretrained(folder) if has_processor else None
    except Exception as error:  # whatever lies there, and whatever the libraries make of it
        raise ValueError(
            f"{folder} can't be loaded as a checkpoint ({explain_hub_error(error)}): give a folder that "
            "run_classification.py or save_pretrained has written."
        ) from error


def _check_fit(
    name: str,
    config: HFMambaConfig,
    processor: HFMambaProcessor,
    model_args: ModelArguments,
    data_args: DataArguments,
) -> None:
    """Checks a checkpoint's config, its processor and the flags against each other."""
    size, patch_size = processor.image_processor.size["height"], processor.image_processor.patch_size
    if (size, patch_size) != (config.image_size, config.patch_size):
        raise ValueError(
            f"--model_name_or_path {name}: its processor makes images of {size} pixels in patches of {patch_size}, "
            f"but its config.json expects {config.image_size} and {config.patch_size}. Use a whole checkpoint."
        )
    has: dict[str, Any] = {
        "max_seq_length": processor.tokenizer.model_max_length,
        "vocab_size": None,
        "tokenizer_name": None,
    }
    has["reduce_jpeg"] = processor.image_processor.reduce_jpeg
    asked = {flag: value for flag in has if (value := getattr(data_args, flag)) is not None}
    overrides = model_args.config_overrides()
    for flag in overrides.keys() - _FREE_FIELDS:
        asked[flag], has[flag] = overrides[flag], getattr(config, flag)
    if model_args.problem_type is not None:
        asked["problem_type"], has["problem_type"] = model_args.problem_type, problem_type_of(config)
    for flag, value in asked.items():
        if value != has[flag]:
            which = f"which has {flag}={has[flag]!r}" if has[flag] is not None else "which has its own vocabulary"
            raise ValueError(
                f"--{flag} {value} doesn't fit the checkpoint {name}, {which}: leave the flag out, or train a new "
                "model without --model_name_or_path."
            )


def new_image_processor(model_args: ModelArguments, data_args: DataArguments) -> HFMambaImageProcessor:
    """What prepares the images of a new model: all that can be known of it before the posts are."""
    config = HFMambaConfig(**model_args.config_overrides())
    return HFMambaImageProcessor(
        size={"height": config.image_size, "width": config.image_size},
        patch_size=config.patch_size,
        reduce_jpeg=bool(data_args.reduce_jpeg),
    )


def new_processor_and_model(
    model_args: ModelArguments, data_args: DataArguments, posts: Posts
) -> tuple[HFMambaProcessor, HFMambaForSequenceClassification]:
    """A processor whose vocabulary comes from the training split, and a model of its size with fresh weights."""
    tokenizer = new_tokenizer(data_args, posts)
    config = HFMambaConfig(
        **model_args.config_overrides(),
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(posts.label_names)),
        problem_type=cast(Any, posts.problem_type),  # one of three words
    )
    image_processor = new_image_processor(model_args, data_args)
    model = HFMambaForSequenceClassification(config, scan_implementation=model_args.scan_implementation)
    if posts.problem_type == REGRESSION:
        init_regression_head(model.classifier, TargetScale.of(posts.column("train", "label")))
    return HFMambaProcessor(image_processor=image_processor, tokenizer=tokenizer), model


def new_tokenizer(data_args: DataArguments, posts: Posts) -> PreTrainedTokenizerBase:
    """
    The tokenizer that --tokenizer_name names, or one with a vocabulary from the training texts.

    Raises:
        ValueError: --tokenizer_name can't be loaded, or has no padding token.
    """
    max_length = data_args.max_seq_length or DEFAULT_MAX_SEQ_LENGTH
    name = data_args.tokenizer_name
    if name is None:
        texts = [text for text in posts.column("train", "text") if text]
        vocab_size = data_args.vocab_size or DEFAULT_VOCAB_SIZE
        vocabulary = train_wordpiece(texts, vocab_size=vocab_size) if texts else ["[PAD]", "[UNK]"]
        return build_wordpiece_tokenizer(vocabulary, max_length=max_length)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, model_max_length=max_length)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--tokenizer_name {name} can't be loaded as a tokenizer: {explain_hub_error(error)}"
        ) from error
    if tokenizer.pad_token_id is None:
        raise ValueError(f"--tokenizer_name {name} has no padding token, which batches need: give it one and save it.")
    return tokenizer


def problem_type_of(config: HFMambaConfig) -> str:
    """The problem type in a checkpoint's config; where it has none, transformers' own rule."""
    return config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE)


def baseline_of_checkpoint(checkpoint: str, problem_type: str, label_names: list[str]) -> Any:
    """The baseline of a checkpoint's training, as its results name it; None if they don't."""
    path = Path(checkpoint) / RESULTS_FILE
    results = read_mapping(path) if path.is_file() else {}
    return read_baseline(results.get(BASELINE_KEYS[problem_type]), problem_type, label_names)
