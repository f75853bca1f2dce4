"""The model card that a run leaves: parsed, it holds what was measured, on what and by which recipe."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from running import SMALL

from hf_mamba import run_classification
from hf_mamba.classification.reporting.tables import SHOWN
from hf_mamba.classification.runs.recipes import shareable_recipe


@pytest.fixture(scope="module")
def card(finished):
    return ModelCard.load(finished[0] / "README.md")


def test_its_metadata_hold_what_was_measured(card, finished):
    _, metrics = finished
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-classification"
    assert "hf_mamba" in card.data.tags
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    expected = {
        (split, name): round(value, 4)
        for split, values in metrics.items()
        for name, value in values.items()
        if name in SHOWN and name != "majority_accuracy"
    }
    assert found == expected and len(expected) == 12


def test_results_stand_beside_the_majority_class(card, finished):
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in card.text.splitlines() if "|" in line]
    header = next(row for row in rows if row[0] == "split")
    for split, metrics in finished[1].items():
        row = dict(zip(header, next(row for row in rows if row[0] == split)))
        for name, title in SHOWN.items():
            assert row[title] == f"{metrics[name]:.4f}"
        assert row["posts"] == str(metrics["num_posts"])


def test_every_section_is_filled(card):
    headings = re.findall(r"^## (.+)$", card.text, re.MULTILINE)
    assert headings == [
        "Intended use", "How to use", "Training data", "Training", "Evaluation", "Model", "Limitations and biases",
        "Licence", "Citation",
    ]  # fmt: skip
    assert "{{" not in card.text.replace("title  = {{HF-Mamba}", "") and "None" not in card.text
    for text in ("48 train, 16 validation, 16 test", "text and image", "`sarcastic`, `sincere`", "seed 42", "@misc{"):
        assert text in card.text
    assert "trained from scratch" in card.text and card.data.base_model is None


def test_the_recipe_is_the_saved_one_without_anybodys_folders(card, finished, folder):
    output_dir, _ = finished
    recipe = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL)[1])
    saved = yaml.safe_load((output_dir / "recipe.yaml").read_text())
    assert recipe == shareable_recipe(saved) and recipe["dataset_name"] == folder.name
    assert str(folder) in saved.values() and str(folder.parent) not in card.content
    assert "output_dir" not in recipe


def test_the_snippet_runs_beside_the_checkpoint(card, finished, tmp_path):
    snippet = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
    (tmp_path / finished[0].name).symlink_to(finished[0])
    Image.new("RGB", (80, 50), "red").save(tmp_path / "photo.jpg")
    code = f'import sys; sys.modules["hf_mamba"] = None\n{snippet}\nassert logits.isfinite().all()'
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_a_run_that_starts_from_a_checkpoint_says_so(finished, folder, tmp_path):
    flags = [flag for flag in SMALL if flag.split("=")[0] not in ("--max_seq_length", "--vocab_size")]
    start = ["--model_name_or_path", finished[0], "--dataset_name", folder, "--num_train_epochs", 1]
    run_classification.main(["--do_train", *flags, *map(str, start), "--output_dir", str(tmp_path / "more")])
    card = ModelCard.load(tmp_path / "more" / "README.md")
    assert f"trained further from `{finished[0].name}`" in card.text
    assert "from scratch" not in card.text and "nothing was pretrained" not in card.text
    assert card.data.base_model is None  # a folder is no name on the Hub


def test_the_labels_stand_in_a_table_with_their_training_posts(card, folder):
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in card.text.splitlines() if "|" in line]
    start = rows.index(["id", "label", "training posts"])
    labels = [
        json.loads(line)["label"] for line in (folder / "train" / "metadata.jsonl").read_text("utf-8").splitlines()
    ]
    expected = [[str(index), name, str(labels.count(name))] for index, name in enumerate(["sarcastic", "sincere"])]
    assert rows[start + 2 : start + 4] == expected and sum(int(row[2]) for row in expected) == 48


def test_posts_left_out_are_reported(folder, tmp_path, capsys):
    rows = (folder / "train" / "metadata.jsonl").read_text("utf-8").splitlines()[:12]
    rows[3] = json.dumps({**json.loads(rows[3]), "file_name": "nowhere.png"})
    (tmp_path / "posts.jsonl").write_text("\n".join(rows), "utf-8")
    data = ["--train_file", tmp_path / "posts.jsonl", "--image_dir", folder / "train", "--validation_split", 0.25]
    flags = ["--on_bad_image", "drop", "--num_train_epochs", 1, "--output_dir", tmp_path / "out"]
    run_classification.main(["--do_train", *SMALL, *map(str, data + flags)])
    text = ModelCard.load(tmp_path / "out" / "README.md").text
    left_out = re.search(r"Left out: (.+)\.? ?Modalities", text)[1]
    assert left_out.startswith(("train: 1 ", "validation: 1 "))
    assert f"Left out: {left_out.rstrip('. ')}" in capsys.readouterr().out
