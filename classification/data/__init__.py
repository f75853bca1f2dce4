"""Posts for training, from rows of any supported source: the public names, imported when they are first used.

from hf_mamba.classification.data import DataArguments, PostCollator, Posts, check_images, load_posts
"""

from importlib import import_module


_PLACES = {
    "DataArguments": ".loading",
    "PostCollator": ".loading",
    "Posts": ".loading",
    "check_images": ".loading",
    "load_posts": ".loading",
    "train_wordpiece": ".vocabulary",
}

__all__ = sorted(_PLACES)


def __getattr__(name):
    if name in _PLACES:
        return getattr(import_module(_PLACES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]
