"""A small set of built-in posts and a finished run on it, made once."""

import gc

import pytest
from running import command

from hf_mamba import run_classification
from hf_mamba.classification.data.sets.builtin import write_builtin_posts


@pytest.fixture(scope="session", autouse=True)
def image_cache_folder(tmp_path_factory):
    """Keeps the runs of the tests, in other processes too, from caching pictures in the user's own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets_cache")))
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """48 + 16 + 16 small built-in posts."""
    path = tmp_path_factory.mktemp("data") / "posts"
    return write_builtin_posts(path, train=48, validation=16, test=16, image_size=32, progress=False)


@pytest.fixture(scope="session")
def finished(folder, tmp_path_factory):
    """A finished run and the metrics it returned."""
    output_dir = tmp_path_factory.mktemp("run") / "finished"
    metrics = run_classification.main([*command(folder, output_dir)])
    return output_dir, metrics


@pytest.fixture(scope="module")
def quick_collections():
    """Every run collects garbage twice, which among all that the libraries hold takes as long as a tiny run itself."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
