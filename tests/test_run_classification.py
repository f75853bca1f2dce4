"""run_classification.py as its user meets it: what it leaves, what repeats, what resumes, what it refuses."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from hf_mamba import HFMambaForSequenceClassification, HFMambaProcessor, run_classification
from hf_mamba.classification.builtin_data import write_builtin_posts
from hf_mamba.classification.data import DataArguments, PostCollator, load_posts


ROOT = Path(run_classification.__file__).parent
TINY = {
    "image_size": 32,
    "patch_size": 16,
    "hidden_size": 16,
    "state_size": 4,
    "num_text_layers": 1,
    "num_image_layers": 1,
    "num_fusion_layers": 1,
    "max_seq_length": 16,
    "vocab_size": 500,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "disable_tqdm": True,
    "use_cpu": True,
}
SMALL = [f"--{name}={value}" for name, value in TINY.items()]
ALL_STEPS = ["--do_train", "--do_eval", "--do_predict"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """48 + 16 + 16 small built-in posts."""
    path = tmp_path_factory.mktemp("data") / "posts"
    return write_builtin_posts(path, train=48, validation=16, test=16, image_size=32, progress=False)


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A finished run and the metrics it returned."""
    output_dir = tmp_path_factory.mktemp("run") / "finished"
    metrics = run_classification.main([*command(folder, output_dir)])
    return output_dir, metrics


def command(folder, output_dir, *flags, steps=ALL_STEPS):
    return [*steps, *SMALL, "--dataset_name", str(folder), "--output_dir", str(output_dir), *map(str, flags)]


def refused(monkeypatch, argv):
    """The one line that the command line says of a mistake; as a string it makes the exit code 1."""
    monkeypatch.setattr(sys, "argv", ["run_classification.py", *map(str, argv)])
    with pytest.raises(SystemExit) as stop:
        run_classification.run()
    assert stop.value.code.startswith("error: ")
    return stop.value.code


def weights(output_dir):
    return load_file(Path(output_dir) / "model.safetensors")


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


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


def test_model_card_holds_the_numbers(finished):
    output_dir, metrics = finished
    card = ModelCard.load(output_dir / "README.md")
    assert card.data.library_name == "transformers"
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found["test", "accuracy"] == round(metrics["test"]["accuracy"], 4)
    assert f"{metrics['test']['majority_accuracy']:.4f}" in card.text
    for text in ("## Limits", "## Recipe", "hidden_size: 16", "seed 42", "`sarcastic`"):
        assert text in card.text
    assert "{{" not in card.text and "None" not in card.text


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


class StopAt(TrainerCallback):
    """Interrupts training the way a pulled plug would, after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupt_at(monkeypatch, step, argv):
    build_trainer = run_classification.build_trainer

    def build(*args):
        trainer = build_trainer(*args)
        trainer.add_callback(StopAt(step))
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(run_classification, "build_trainer", build)
        with pytest.raises(KeyboardInterrupt):
            run_classification.main(argv)


def test_an_interrupted_run_resumes_to_bit_identical_weights(folder, tmp_path, monkeypatch, caplog):
    flags = ["--save_strategy", "steps", "--eval_strategy", "steps", "--save_steps", 4, "--eval_steps", 4]
    run_classification.main(command(folder, tmp_path / "whole", *flags))
    interrupt_at(monkeypatch, 7, command(folder, tmp_path / "stopped", *flags))
    assert not (tmp_path / "stopped" / "all_results.json").exists()
    with caplog.at_level("INFO", logger="hf_mamba"):
        run_classification.main(command(folder, tmp_path / "stopped", *flags))
    assert "resuming from" in caplog.text and "checkpoint-4" in caplog.text
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")


def test_a_run_stopped_before_its_first_checkpoint_starts_again(folder, tmp_path, monkeypatch, caplog):
    interrupt_at(monkeypatch, 2, command(folder, tmp_path / "out"))
    run_classification.main(command(folder, tmp_path / "out"))
    assert "before its first checkpoint" in caplog.text


# --- what it refuses


def test_a_finished_run_is_not_overwritten_unless_asked(finished, folder, monkeypatch):
    output_dir, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")}
    message = refused(monkeypatch, command(folder, output_dir))
    assert "finished run" in message and "--overwrite_output_dir" in message
    assert {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")} == before


def test_overwriting_deletes_the_run_and_leaves_the_rest(folder, tmp_path):
    out = tmp_path / "out"
    run_classification.main(command(folder, out))
    for name in ("notes.txt", "my_predictions.csv", "checkpoints.md"):
        (out / name).write_text("mine")
    run_classification.main(command(folder, out, "--overwrite_output_dir", "--num_train_epochs", 1))
    for name in ("notes.txt", "my_predictions.csv", "checkpoints.md"):
        assert (out / name).read_text() == "mine"
    assert yaml.safe_load((out / "recipe.yaml").read_text())["num_train_epochs"] == 1
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-6"]


@pytest.mark.parametrize("flags", [["--label_column_name", "lable"], ["--image_size", "30"], ["--model_name_or_path"]])
def test_overwriting_deletes_nothing_when_the_request_is_wrong(flags, finished, folder, monkeypatch):
    output_dir, _ = finished
    flags = [*flags, output_dir] if flags == ["--model_name_or_path"] else flags
    before = {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")}
    refused(monkeypatch, command(folder, output_dir, "--overwrite_output_dir", *flags))
    assert {path: path.stat().st_mtime_ns for path in output_dir.rglob("*")} == before


def test_a_mistake_leaves_the_output_folder_free(folder, tmp_path, monkeypatch):
    refused(monkeypatch, command(folder, tmp_path / "out", "--label_column_name", "lable"))
    run_classification.main(command(folder, tmp_path / "out", "--num_train_epochs", 1))


def test_an_unfinished_run_of_another_recipe_is_not_resumed(folder, tmp_path, monkeypatch):
    interrupt_at(monkeypatch, 7, command(folder, tmp_path / "out"))
    message = refused(monkeypatch, command(folder, tmp_path / "out", "--learning_rate", 0.5))
    assert "learning_rate=0.001 then, 0.5 now" in message


def test_a_checkpoint_cut_off_while_it_was_written_is_passed_over(folder, tmp_path, monkeypatch, caplog):
    interrupt_at(monkeypatch, 9, command(folder, tmp_path / "out", "--num_train_epochs", 3, "--save_steps", 4,
                                         "--save_strategy", "steps", "--eval_strategy", "no"))  # fmt: skip
    (tmp_path / "out" / "checkpoint-8" / "trainer_state.json").write_text('{"epoch": 1.3')
    run_classification.main([str(tmp_path / "out" / "recipe.yaml")])
    assert "checkpoint-8 was not written to its end" in caplog.text and "resuming from" in caplog.text


def test_a_strangers_folder_is_left_alone(folder, tmp_path, monkeypatch):
    (tmp_path / "thesis.txt").write_text("years of work")
    for flags in ([], ["--overwrite_output_dir"]):
        assert "not a run of this script" in refused(monkeypatch, command(folder, tmp_path, *flags))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_evaluation_overwrites_no_result_and_no_unfinished_run(finished, folder, tmp_path, monkeypatch):
    output_dir, _ = finished
    argv = ["--model_name_or_path", output_dir, "--dataset_name", folder, "--use_cpu", "--output_dir"]
    assert "already holds" in refused(monkeypatch, [*argv, output_dir, "--do_predict"])
    interrupt_at(monkeypatch, 7, command(folder, tmp_path / "out"))
    assert "unfinished training run" in refused(monkeypatch, [*argv, tmp_path / "out", "--do_predict"])


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


def test_pushing_sends_our_card_and_no_token(folder, tmp_path, monkeypatch):
    """Up to the Hub's client: what Trainer would upload is what we wrote."""
    uploads = []

    def upload(self, folder_path, **kwargs):
        uploads.append({path.name: path.read_bytes() for path in Path(folder_path).iterdir() if path.is_file()})
        return SimpleNamespace(result=lambda: None, done=lambda: True)

    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, token=None: setattr(self, "hub_model_id", "me/model"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setenv("HF_TOKEN", "")
    push = ["--push_to_hub", "--hub_model_id", "me/model", "--hub_token", "hf_secret", "--hub_strategy", "end"]
    run_classification.main(command(folder, tmp_path / "out", *push))
    assert os.environ["HF_TOKEN"] == "hf_secret"
    last = uploads[-1]
    assert {"model.safetensors", "config.json", "modeling_hf_mamba.py", "recipe.yaml", "all_results.json"} <= {*last}
    assert b"## Limits" in last["README.md"] and b'from_pretrained("me/model"' in last["README.md"]
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"hf_secret" not in path.read_bytes(), path


def test_a_failed_push_loses_nothing(folder, tmp_path, monkeypatch):
    def fail(self, *args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr(Trainer, "init_hf_repo", lambda self, token=None: None)
    monkeypatch.setattr(Trainer, "push_to_hub", fail)
    push = ["--push_to_hub", "--hub_model_id", "me/model", "--num_train_epochs", 1, "--hub_strategy", "end"]
    message = refused(monkeypatch, command(folder, tmp_path / "out", *push))
    assert "no route" in message and f"hf upload me/model {tmp_path / 'out'}" in message
    assert (tmp_path / "out" / "all_results.json").exists()


def damage_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda f: damage_config(f, num_text_layers=2), ["weights don't fit", "text_stack.layers.1"]),
        (lambda f: damage_config(f, hidden_size=32), ["can't be loaded"]),
        (lambda f: damage_config(f, image_size=64), ["processor makes images of 32", "expects 64"]),
        (lambda f: damage_config(f, model_type="bert"), ["'bert' checkpoint"]),
        (lambda f: damage_config(f, pooling="average"), ["pooling"]),
        (lambda f: (f / "model.safetensors").write_bytes(b"cut"), ["can't be loaded"]),
        (lambda f: (f / "tokenizer.json").unlink(), ["can't be loaded"]),
    ],
)
def test_a_damaged_checkpoint_is_named(damage, parts, finished, folder, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy, ignore=shutil.ignore_patterns("checkpoint-*"))
    damage(copy)
    argv = ["--model_name_or_path", copy, "--dataset_name", folder, "--do_predict", "--output_dir", tmp_path / "out"]
    message = refused(monkeypatch, [*argv, "--use_cpu"])
    for part in parts:
        assert part in message


def test_dropout_may_differ_from_the_checkpoint(finished, folder, tmp_path):
    argv = ["--model_name_or_path", finished[0], "--hidden_dropout", 0.3, "--scan_implementation", "reference"]
    flags = [flag for flag in SMALL if flag.split("=")[0] not in ("--max_seq_length", "--vocab_size")]
    model_args, data_args, _, _ = run_classification.parse_arguments([*map(str, argv), *flags])
    _, model = run_classification.load_checkpoint(model_args, data_args)
    assert model.config.hidden_dropout == 0.3
    assert model.model.text_stack.layers[0].mixer.ssm.scan_implementation == "reference"


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


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--hidden_size", 32], ["--hidden_size 32 doesn't fit the checkpoint", "hidden_size=16"]),
        (["--label_column_name", "text"], ["unknown to the checkpoint", "'sarcastic', 'sincere'"]),
        (["--max_seq_length", 5], ["--max_seq_length 5 doesn't fit the checkpoint", "max_seq_length=16"]),
        (["--tokenizer_name", "bert"], ["--tokenizer_name bert doesn't fit", "its own vocabulary"]),
    ],
)
def test_a_checkpoint_that_does_not_fit(flags, parts, finished, folder, tmp_path, monkeypatch):
    argv = ["--model_name_or_path", finished[0], "--dataset_name", folder, "--do_predict", "--output_dir", tmp_path]
    message = refused(monkeypatch, [*argv, *flags])
    for part in parts:
        assert part in message


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
    parse = run_classification.parse_arguments
    model, _, training, recipe = parse([str(tmp_path / "mine.json"), "--seed", "3", "--do_train", "--use_cpu"])
    assert (model.hidden_size, training.learning_rate, training.seed) == (16, 0.01, 3)
    assert (recipe["hidden_size"], recipe["learning_rate"], recipe["seed"]) == (16, 0.01, 3)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hidden_size: 64.0", ["--hidden_size", "'64.0'"]),
        ("hiden_size: 3", ["'hiden_size' is no flag", "Did you mean 'hidden_size'?"]),
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
