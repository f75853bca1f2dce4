"""README.md does what it says: its snippets run as printed, its commands name what exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hf_mamba import (
    HFMambaConfig,
    HFMambaForSequenceClassification,
    HFMambaImageProcessor,
    HFMambaProcessor,
    run_classification,
)
from hf_mamba.classification.runs.arguments import all_flags, find_recipe
from hf_mamba.processing_hf_mamba import build_wordpiece_tokenizer


ROOT = Path(run_classification.__file__).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def quickstart(tmp_path):
    """A folder that looks as after the quickstart: a checkpoint and a photo."""
    tokenizer = build_wordpiece_tokenizer(["[PAD]", "[UNK]", "what", "a", "lovely", "day"])
    image_processor = HFMambaImageProcessor(size={"height": 32, "width": 32}, patch_size=16)
    config = HFMambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, image_size=32, num_text_layers=1, num_image_layers=1,
        num_fusion_layers=1,
    )  # fmt: skip
    folder = tmp_path / "outputs" / "quickstart"
    HFMambaForSequenceClassification(config).save_pretrained(folder)
    HFMambaProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    Image.new("RGB", (80, 50), "red").save(tmp_path / "photo.jpg")
    return tmp_path


@pytest.mark.parametrize("index", range(len(SNIPPETS)))
def test_snippet_runs_as_printed(index, quickstart):
    snippet = SNIPPETS[index]
    if "hf_mamba" not in snippet:  # a stranger's: must work without the package
        snippet = 'import sys; sys.modules["hf_mamba"] = None\n' + snippet
    process = subprocess.run([sys.executable, "-c", snippet], cwd=quickstart, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_prediction_takes_three_lines():
    body = SNIPPETS[0].split("\n\n")[1]
    assert len(body.strip().splitlines()) == 3


def test_every_flag_and_recipe_exists():
    commands = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
    flags = {flag for flag in re.findall(r"--([a-z_]+)", commands + README) if "_" in flag or flag in all_flags()}
    assert flags - {"nproc_per_node"} <= set(all_flags())
    assert find_recipe("quickstart").is_file()
    for recipe in re.findall(r"recipes/\w+\.yaml", README):
        assert (ROOT / recipe).is_file()


def test_first_commands_set_everything_up():
    for mark, ending in [("quickstart", "run_classification.py quickstart"), ("test", "-m pytest")]:
        command = re.search(rf"<!-- {mark} command -->\n```bash\n(.*?)\n```", README, re.DOTALL)[1]
        assert len(command.splitlines()) == 1 and "-c constraints.txt" in command and command.endswith(ending)
