"""Posts for training, from rows of any supported source: the public names, imported when they are first used.

from hf_mamba.classification.data import DataArguments, PostCollator, Posts, check_images, load_posts
"""

from importlib import import_module


_PLACES = {
    "DataArguments": ".arguments",
    "PostCollator": ".collator",
    "Posts": ".posts",
    "check_images": ".messy_posts",
    "leave_out_bad_images": ".messy_posts",
    "load_posts": ".loading",
    "train_wordpiece": ".vocabulary",
}

__all__ = sorted(_PLACES)


def __getattr__(name: str) -> object:
    if name in _PLACES:
        return getattr(import_module(_PLACES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
