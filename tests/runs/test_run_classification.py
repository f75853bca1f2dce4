"""run_classification.py as its user meets it: what it leaves, what repeats, what resumes, what it refuses."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from running import SMALL, assert_same_weights, command, refused

from hf_mamba import HFMambaForSequenceClassification, HFMambaProcessor, run_classification
from hf_mamba.classification.data import DataArguments, PostCollator, load_posts


ROOT = Path(run_classification.__file__).parent
# --- what a run leaves


def test_everything_is_left(finished):
    output_dir, metrics = finished
    files = {path.name for path in output_dir.iterdir()}
    assert {
        "README.md",
        "all_results.json",
        "config.json",
        "configuration_hf_mamba.py",
        "model.safetensors",
        "modeling_hf_mamba.py",
        "predictions.csv",
        "processing_hf_mamba.py",
        "processor_config.json",
        "recipe.yaml",
        "selective_scan.py",
        "tokenizer.json",
        "trainer_state.json",
    } <= files
    results = json.loads((output_dir / "all_results.json").read_text())
    for split in ("validation", "test"):
        assert 0 <= metrics[split]["accuracy"] <= 1
        assert metrics[split]["majority_accuracy"] == 0.5  # the built-in posts are balanced
        assert results[f"{split}_accuracy"] == metrics[split]["accuracy"]


def test_predictions_are_those_of_the_checkpoint_in_input_order(finished, folder):
    output_dir, metrics = finished
    posts = load_posts(DataArguments(dataset_name=str(folder)), seed=0)
    model = HFMambaForSequenceClassification.from_pretrained(output_dir)
    collator = PostCollator(HFMambaProcessor.from_pretrained(output_dir))
    with (output_dir / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["id"] for line in lines] == posts.column("test", "id")
    correct = 0
    for line, row in zip(lines, posts.splits["test"]):
        batch = collator([row])
        batch.pop("labels")
        with torch.no_grad():
            probability = model(**batch).logits[0].softmax(-1)
        for name, value in zip(posts.label_names, probability.tolist()):
            assert abs(float(line[f"probability_{name}"]) - value) < 2e-5
        assert line["prediction"] == posts.label_names[probability.argmax()]
        assert line["label"] == posts.label_names[row["label"]]
        correct += line["prediction"] == line["label"]
    assert correct / len(lines) == metrics["test"]["accuracy"]


def test_the_saved_recipe_repeats_the_run(finished, tmp_path):
    output_dir, metrics = finished
    again = run_classification.main([str(output_dir / "recipe.yaml"), "--output_dir", str(tmp_path / "again")])
    assert_same_weights(output_dir, tmp_path / "again")
    for name in ("accuracy", "loss"):
        assert again["test"][name] == metrics["test"][name]


STRANGER = """
import json, sys
sys.modules["hf_mamba"] = None  # as if the package were not installed
import torch
from PIL import Image
from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSequenceClassification, AutoProcessor,
                          AutoTokenizer)
folder, text, image = sys.argv[1:]
load = lambda auto: auto.from_pretrained(folder, trust_remote_code=True)
processor, model, base = load(AutoProcessor), load(AutoModelForSequenceClassification), load(AutoModel)
assert load(AutoTokenizer)("what a day")["input_ids"] == processor(text="what a day")["input_ids"][0]
assert load(AutoImageProcessor)(Image.open(image))["pixel_values"][0].shape == (4, 768)
assert load(AutoConfig).model_type == "hf_mamba"
inputs = processor(text=text, images=image, return_tensors="pt")
with torch.no_grad():
    assert torch.equal(model.model(**inputs).pooler_output, base(**inputs).pooler_output)
    print(json.dumps(model(**inputs).logits.tolist()))
"""


def test_a_stranger_without_the_package_gets_the_same_logits(finished, folder, tmp_path):
    output_dir, _ = finished
    row = load_posts(DataArguments(dataset_name=str(folder)), seed=0).splits["test"][0]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    process = subprocess.run(
        [sys.executable, "-c", STRANGER, str(output_dir), row["text"], row["images"][0]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert process.returncode == 0, process.stderr
    model = HFMambaForSequenceClassification.from_pretrained(output_dir)
    processor = HFMambaProcessor.from_pretrained(output_dir)
    with torch.no_grad():
        expected = model(**processor(text=row["text"], images=row["images"][0], return_tensors="pt")).logits
    assert json.loads(process.stdout.splitlines()[-1]) == expected.tolist()


# --- other ways to run it


def test_the_script_runs_without_installation(finished, folder, tmp_path):
    """As a file, from another directory: evaluation of a checkpoint gives the numbers of training."""
    output_dir, metrics = finished
    argv = [
        "--model_name_or_path",
        output_dir,
        "--dataset_name",
        folder,
        "--output_dir",
        tmp_path / "out",
        "--use_cpu",
    ]
    process = subprocess.run(
        [sys.executable, ROOT / "run_classification.py", *map(str, argv), "--do_predict"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert process.returncode == 0, process.stderr
    assert f"{metrics['test']['accuracy']:.4f}" in process.stdout
    results = json.loads((tmp_path / "out" / "test_results.json").read_text())
    assert results["test_accuracy"] == metrics["test"]["accuracy"]
    assert (tmp_path / "out" / "predictions.csv").read_text() == (output_dir / "predictions.csv").read_text()


@pytest.mark.parametrize("modality", ["text", "image"])
def test_one_modality_alone_trains(modality, folder, tmp_path):
    metrics = run_classification.main(command(folder, tmp_path / "out", "--modalities", modality))
    assert metrics["test"]["num_posts"] == 16


def test_a_compiled_run_gives_the_eager_checkpoints_answers(folder, tmp_path):
    flags = ["--torch_compile", "true", "--torch_compile_backend", "aot_eager", "--pad_to_max_length"]
    flags += ["--dataloader_drop_last", "true", "--hidden_dropout", "0", "--classifier_dropout", "0"]
    compiled = run_classification.main(command(folder, tmp_path / "compiled", *flags))
    eager = run_classification.main(command(folder, tmp_path / "eager", *flags[5:]))
    assert compiled["test"]["loss"] == pytest.approx(eager["test"]["loss"], abs=1e-4)
    assert (tmp_path / "compiled" / "model.safetensors").is_file()
    HFMambaForSequenceClassification.from_pretrained(tmp_path / "compiled")


def test_unlabelled_posts_are_predicted(finished, folder, tmp_path):
    output_dir, _ = finished
    rows = [json.loads(line) for line in (folder / "test" / "metadata.jsonl").read_text().splitlines()]
    unlabelled = folder / "test" / "new.jsonl"
    unlabelled.write_text("\n".join(json.dumps({k: v for k, v in row.items() if k != "label"}) for row in rows))
    argv = ["--model_name_or_path", output_dir, "--test_file", unlabelled, "--output_dir", tmp_path / "new"]
    assert run_classification.main([*map(str, argv), "--do_predict", "--use_cpu"]) == {}
    header, *lines = (tmp_path / "new" / "predictions.csv").read_text().splitlines()
    assert header == "id,prediction,probability_sarcastic,probability_sincere"
    expected = (output_dir / "predictions.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1:4] for line in lines] == [line.split(",")[1:4] for line in expected]


# --- what it refuses


def test_evaluation_knows_the_majority_of_training(finished, folder, tmp_path):
    output_dir, metrics = finished
    argv = ["--model_name_or_path", output_dir, "--validation_file", folder / "validation" / "metadata.jsonl"]
    again = run_classification.main([*map(str, argv), "--do_eval", "--use_cpu", "--output_dir", str(tmp_path)])
    assert again["validation"]["majority_accuracy"] == metrics["validation"]["majority_accuracy"]
    assert again["validation"]["accuracy"] == metrics["validation"]["accuracy"]


def test_training_without_validation_posts_saves_the_last_pass(folder, tmp_path):
    train = ["--train_file", folder / "train" / "metadata.jsonl", "--validation_split", 0]
    run_classification.main(["--do_train", *SMALL, *map(str, train), "--output_dir", str(tmp_path / "out")])
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 12 and state["best_metric"] is None


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--output_dir", "x"], ["Nothing to do", "--do_train"]),
        (["--do_predict"], ["--model_name_or_path"]),
        (["--do_train"], ["--train_file"]),
        (["quikstart"], ["no recipe 'quikstart'", "Did you mean 'quickstart'?"]),
        (["nofolder/quickstart"], ["no recipe 'nofolder/quickstart'"]),
        (["--do_train", "--learning_rat", "1"], ["--learning_rat"]),
        (["--do_train", "--train_file", "$NO_SUCH_DATA/x.csv"], ["--train_file", "NO_SUCH_DATA is not set"]),
        (["--do_train", "--metric_for_best_model", "f1_makro"], ["'f1_makro'", "f1_macro"]),
        (["--do_train", "--train_file", "missing.csv"], ["missing.csv", "--train_file"]),
        (["--do_predict", "--model_name_or_path", "no/where", "--test_file", "x.csv"], ["no/where"]),
    ],
)
def test_requests_that_can_not_work(argv, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(monkeypatch, argv)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--pooling", "average"], ["pooling", "'mean_max'"]),
        (["--image_size", "30"], ["image_size is 30", "32"]),
        (["--scan_implementation", "fast"], ["scan_implementation", "'torch'"]),
        (["--label_column_name", "lable"], ["'lable'", "'label'"]),
    ],
)
def test_flags_that_do_not_fit(flags, parts, folder, tmp_path, monkeypatch):
    message = refused(monkeypatch, command(folder, tmp_path / "out", *flags))
    for part in parts:
        assert part in message


def test_what_is_set_aside_for_test_is_the_same_for_the_checkpoint(folder, tmp_path, monkeypatch):
    posts = ["--train_file", folder / "train" / "metadata.jsonl", "--validation_split", 0, "--test_split", 0.25]
    steps = ["--do_train", "--do_predict"]
    trained = run_classification.main([*map(str, [*steps, *SMALL, *posts, "--output_dir", tmp_path / "run"])])
    again = ["--do_predict", "--use_cpu", "--model_name_or_path", tmp_path / "run", *posts]
    predicted = run_classification.main([*map(str, [*again, "--output_dir", tmp_path / "again"])])
    assert predicted["test"]["accuracy"] == trained["test"]["accuracy"]
    files = [(tmp_path / name / "predictions.csv").read_text() for name in ("run", "again")]
    assert files[0] == files[1] and len(files[0].splitlines()) > 2
    message = refused(monkeypatch, [*steps, *SMALL, *posts[:4], "--output_dir", tmp_path / "out"])
    assert "--do_predict" in message and "--test_split 0.1" in message


def test_a_truncated_picture_is_named_before_training(folder, tmp_path, monkeypatch):
    rows = (folder / "train" / "metadata.jsonl").read_text().splitlines()[:8]
    picture = folder / "train" / json.loads(rows[3])["file_name"]
    (tmp_path / "cut.png").write_bytes(picture.read_bytes()[:200])
    rows[3] = json.dumps({**json.loads(rows[3]), "file_name": str(tmp_path / "cut.png")})
    (tmp_path / "posts.jsonl").write_text("\n".join(rows))
    argv = ["--train_file", tmp_path / "posts.jsonl", "--image_dir", folder / "train", "--validation_split", 0.25]
    message = refused(monkeypatch, ["--do_train", *SMALL, *argv, "--output_dir", tmp_path / "out"])
    assert "line 4" in message and "cut.png" in message
    assert not (tmp_path / "out" / "model.safetensors").exists()


# --- recipes


def test_a_recipe_inherits_and_flags_win(folder, tmp_path):
    (tmp_path / "base.yaml").write_text("hidden_size: 32\nlearning_rate: 1e-2\nseed: 7\n")
    (tmp_path / "mine.json").write_text(json.dumps({"base": "base.yaml", "hidden_size": 16}))
    flags = ["--seed", "3", "--do_train", "--use_cpu", "--bidirectional", "--class_weights", "1", "2.5"]
    model, _, training, recipe = run_classification.parse_arguments([str(tmp_path / "mine.json"), *flags])
    assert (model.hidden_size, training.learning_rate, training.seed) == (16, 0.01, 3)
    assert model.bidirectional is recipe["bidirectional"] is True
    assert model.class_weights == recipe["class_weights"] == [1.0, 2.5]
    assert (recipe["hidden_size"], recipe["learning_rate"], recipe["seed"]) == (16, 0.01, 3)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hidden_size: 64.0", ["--hidden_size", "'64.0'"]),
        ("hiden_size: 3", ["'hiden_size' isn't a flag", "Did you mean 'hidden_size'?"]),
        ("- a\n- b", ["holds a list"]),
        ("a: [", ["can't be read"]),
        ("base: nowhere.yaml", ["nowhere.yaml"]),
        ("base: recipe.yaml", ["inherits from itself"]),
    ],
)
def test_bad_recipes_are_named(text, parts, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(text)
    message = refused(monkeypatch, [tmp_path / "recipe.yaml"])
    for part in ["recipe.yaml", *parts]:
        assert part in message


def test_every_recipe_of_the_project_parses(monkeypatch):
    monkeypatch.setenv("HF_MAMBA_DATA", "data")
    recipes = sorted((ROOT / "recipes").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        run_classification.parse_arguments([str(recipe), "--use_cpu"])


# --- several processes


@pytest.mark.slow
def test_two_processes_train_and_predict_like_one(finished, folder, tmp_path):
    """13 posts do not divide by two: predictions are complete, in order, and those of one process."""
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", ROOT / "run_classification.py"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    trained = command(folder, tmp_path / "trained", "--modalities", "text", "--gradient_checkpointing")
    predicted = [
        "--model_name_or_path",
        finished[0],
        "--test_file",
        folder / "test" / "metadata.jsonl",
        "--do_predict",
    ]
    predicted += ["--max_predict_samples", "13", "--use_cpu", "--output_dir", tmp_path / "predicted"]
    for argv in (trained, predicted):
        process = subprocess.run([*map(str, [*run, *argv])], env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stderr
    one, two = ((path / "predictions.csv").read_text().splitlines() for path in (finished[0], tmp_path / "predicted"))
    assert two == one[:14]
    assert ModelCard.load(tmp_path / "trained" / "README.md")
