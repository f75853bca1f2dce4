"""`hf-mamba`: each verb is a short way to a command that exists; help comes at once, mistakes name the fix."""

import subprocess
import sys

import pytest
import yaml
from running import SMALL

from hf_mamba import run_classification
from hf_mamba.classification import compare, console, share
from hf_mamba.classification.runs.recipes import all_flags, own_recipes, parse_arguments


HELP = [["--help"], *([verb, "--help"] for verb in ("train", "evaluate", "predict", "audit"))]


@pytest.fixture
def given(monkeypatch):
    """The arguments with which a verb calls run_classification.main."""
    calls = []
    monkeypatch.setattr(run_classification, "main", lambda argv: calls.append(argv))

    def run(*argv):
        console.main(list(map(str, argv)))
        return calls.pop()

    return run


def stopped(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        console.main([*argv])
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize("argv", HELP, ids=" ".join)
def test_help_fits_a_screen_and_names_flags_and_recipes_that_exist(capsys, argv):
    console.main(argv)
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 80
    flags = {word.strip("(,.;`").removeprefix("--") for word in text.split() if word.strip("(`").startswith("--")}
    assert flags <= {*all_flags(), "help", "version", "nproc_per_node"}
    assert "quickstart" in own_recipes() and "paper/twitter" in own_recipes()


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from hf_mamba.classification.console import main\n"
        f"for argv in {HELP!r}: main(argv)\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & sys.modules.keys()"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_every_verb_stands_in_the_overview():
    assert all(f"\n  {verb} " in console.overview() for verb in console.VERBS)


@pytest.mark.parametrize("argv, hint", [(["trian"], "Did you mean 'train'?"), ([], "Which command?"), (["x"], "'x'")])
def test_a_missing_or_misspelt_verb_is_a_usage_error(capsys, argv, hint):
    code, message = stopped(capsys, *argv)
    assert code == 2 and hint in message and "train, evaluate, predict" in message


def test_a_mistake_in_a_run_is_one_line_and_exit_code_1(capsys):
    code, _ = stopped(capsys, "train", "quickstrat")
    assert code.startswith("error: There is no recipe 'quickstrat'. Did you mean 'quickstart'") and "\n" not in code


def test_train_does_precisely_what_a_recipe_says(given):
    for flags in ([], ["--seed", "1", "--do_predict=false"]):
        assert parse_arguments(given("train", "quickstart", *flags)) == parse_arguments(["quickstart", *flags])


def test_train_trains_and_evaluates_where_no_recipe_says_what_to_do(given, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"train_file": "posts.csv", "base": "base.yaml"}))
    (tmp_path / "base.yaml").write_text("do_predict: true\n")
    for argv in (["--train_file", "posts.csv"], [tmp_path / "mine.yaml"]):
        training_args = parse_arguments(given("train", *argv))[2]
        assert training_args.do_train and training_args.do_eval
        assert training_args.do_predict == (len(argv) == 1)
    assert not parse_arguments(given("train", "--train_file", "posts.csv", "--do_eval", "false"))[2].do_eval


def test_an_audit_of_a_recipe_trains_nothing(given):
    model_args, data_args, training_args, _ = parse_arguments(given("audit", "quickstart", "--seed", "3"))
    steps = [getattr(training_args, step) for step in console.STEPS]
    assert (data_args.dataset_name, training_args.seed, steps) == ("builtin", 3, [False, False, False, True])


@pytest.mark.parametrize("verb, step", [("evaluate", "do_eval"), ("predict", "do_predict")])
def test_the_first_argument_of_evaluate_and_predict_is_a_checkpoint(given, verb, step):
    for argv in (["outputs/mine"], ["--model_name_or_path", "outputs/mine"]):
        model_args, data_args, training_args, _ = parse_arguments(given(verb, *argv, "--test_file", "x.csv"))
        assert model_args.model_name_or_path == "outputs/mine" and data_args.test_file == "x.csv"
        assert [name for name in console.STEPS if getattr(training_args, name)] == [step]


@pytest.mark.parametrize("module", [compare, share])
def test_the_other_verbs_forward_their_arguments(monkeypatch, module):
    calls = []
    monkeypatch.setattr(module, "main", lambda argv: calls.append(argv))
    console.main([module.__name__.rpartition(".")[2], "a", "--seed", "1"])
    assert calls == [["a", "--seed", "1"]]


def test_prepare_writes_posts_that_train_and_predict_use(tmp_path, capsys):
    posts, run = tmp_path / "posts", tmp_path / "run"
    sizes = ["--train=16", "--validation=8", "--test=8", "--image_size=32"]
    console.main(["prepare", "builtin", str(posts), *sizes])
    flags = [*SMALL, "--dataset_name", str(posts)]
    console.main(["train", *flags, "--num_train_epochs=1", "--output_dir", str(run)])
    assert (run / "validation_report.json").is_file() and not (run / "predictions.csv").exists()
    console.main(["predict", str(run), "--dataset_name", str(posts), "--use_cpu", "--output_dir", str(tmp_path / "p")])
    assert len((tmp_path / "p" / "predictions.csv").read_text().splitlines()) == 9
