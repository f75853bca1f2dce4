"""The quickstart learns what only fusion can: minutes, hence slow."""

import pytest

from hf_mamba import run_classification


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


def test_quickstart_learns_the_contradiction(outputs):
    metrics = run_classification.main(["quickstart", "--output_dir", str(outputs / "both")])
    assert metrics["test"]["accuracy"] >= 0.95


@pytest.mark.parametrize("modality", ["text", "image"])
def test_one_modality_alone_stays_at_chance(modality, outputs):
    flags = ["--output_dir", str(outputs / modality), "--modalities", modality]
    metrics = run_classification.main(["quickstart", *flags])
    assert abs(metrics["test"]["accuracy"] - 0.5) <= 0.06
