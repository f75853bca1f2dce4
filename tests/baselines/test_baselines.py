"""Baselines: the same posts, files and numbers as a run; what each computes; and what they refuse."""

import csv
import json
import random

import numpy as np
import pytest
import torch
import yaml
from documented import write_jsonl
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedConfig,
)

from hf_mamba import run_classification
from hf_mamba.classification.baselines.__main__ import main
from hf_mamba.classification.baselines.counting import COUNTING, WORDS, CountingClassifier
from hf_mamba.classification.baselines.networks import NETWORKS, TextProcessor
from hf_mamba.classification.compare import compare
from hf_mamba.classification.evaluation.predictions import read_predictions
from hf_mamba.processing_hf_mamba import build_wordpiece_tokenizer


pytestmark = pytest.mark.usefixtures("quick_collections")

TRAINING = ["--num_train_epochs=3", "--per_device_train_batch_size=16", "--learning_rate=5e-3"]
SIZES = {"train": 96, "validation": 24, "test": 32}


def texts_and_labels(number, seed):
    """Noise, and one word that tells the label of most posts; two in three are sad."""
    draw, posts = random.Random(seed), []
    for index in range(number):
        label = "glad" if index % 3 == 0 else "sad"
        told = label if draw.random() < 0.9 else "glad"
        words = [*draw.choices(["alpha", "beta", "gamma", "delta", "epsilon"], k=draw.randint(1, 6)), f"so{told}"]
        draw.shuffle(words)
        posts.append({"id": f"p{index}", "text": " ".join(words), "label": label, "city": "AB"[index % 2]})
    return posts


@pytest.fixture(scope="module")
def posts(tmp_path_factory):
    """A folder of posts, and in it a recipe for an HF-Mamba."""
    folder = tmp_path_factory.mktemp("posts")
    for seed, (split, number) in enumerate(SIZES.items()):
        write_jsonl(folder / f"{split}.jsonl", texts_and_labels(number, seed))
    recipe = {f"{split}_file": str(folder / f"{split}.jsonl") for split in SIZES}
    recipe |= {"do_train": True, "do_eval": True, "do_predict": True, "modalities": "text", "max_seq_length": 16}
    recipe |= {"hidden_size": 16, "num_text_layers": 1, "num_fusion_layers": 1, "group_column_name": "city"}
    recipe |= {"output_dir": str(folder / "run"), "disable_tqdm": True, "use_cpu": True}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A tiny BERT with three labels of its own."""
    folder = tmp_path_factory.mktemp("pretrained") / "tiny"
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "soglad", "sosad"]
    tokenizer = build_wordpiece_tokenizer(["[PAD]", "[UNK]", *words], max_length=24)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=24, num_labels=3, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def baseline(posts, name, output_dir, *flags):
    training = [] if name in COUNTING else TRAINING
    line = [str(posts / "recipe.yaml"), "--baseline", name, "--output_dir", str(output_dir)]
    return main([*line, *training, *map(str, flags)])


def answers(folder):
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", [*COUNTING, *NETWORKS, "auto"])
def test_it_leaves_what_a_run_leaves_and_repeats_from_its_recipe(name, posts, pretrained, tmp_path):
    name = f"auto:{pretrained}" if name == "auto" else name
    metrics = baseline(posts, name, tmp_path / "a")
    found = json.loads((tmp_path / "a" / "all_results.json").read_text())
    report = json.loads((tmp_path / "a" / "test_report.json").read_text())
    assert metrics["test"]["accuracy"] == found["test_accuracy"] == report["metrics"]["accuracy"]
    assert found["train_majority_label"] == report["baseline"] == "sad" and set(report["per_group"]) == {
        "A",
        "B",
    }
    assert found["test_accuracy_low"] <= found["test_accuracy"] <= found["test_accuracy_high"]
    recipe = yaml.safe_load((tmp_path / "a" / "recipe.yaml").read_text())
    assert recipe["baseline"] == name and "hidden_size" not in recipe
    main([str(tmp_path / "a" / "recipe.yaml"), "--output_dir", str(tmp_path / "b")])
    assert answers(tmp_path / "a") == answers(tmp_path / "b")


def test_compare_takes_a_baseline_and_a_run(posts, tmp_path):
    flags = ["--num_train_epochs=1", "--output_dir", str(tmp_path / "run")]
    run_classification.main([str(posts / "recipe.yaml"), *flags])
    baseline(posts, "majority", tmp_path / "majority")
    result = compare(*(read_predictions(tmp_path / name) for name in ("run", "majority")))
    assert result["b"]["accuracy"]["value"] == pytest.approx(21 / 32)


def test_majority_answers_the_commonest_label_with_the_frequencies_of_training(posts, tmp_path):
    metrics = baseline(posts, "majority", tmp_path / "out")
    assert metrics["test"]["accuracy"] == metrics["test"]["majority_accuracy"]
    rows = answers(tmp_path / "out")
    assert {row["prediction"] for row in rows} == {"sad"}
    assert {row["probability_sad"] for row in rows} == {"0.666667"}


def test_majority_needs_no_text(folder, tmp_path):
    """Of posts with pictures it takes the same ones as a model of both."""
    line = [
        "--do_train",
        "--do_predict",
        "--dataset_name",
        str(folder),
        "--baseline",
        "majority",
        "--disable_tqdm=True",
    ]
    assert main([*line, "--output_dir", str(tmp_path / "out")])["test"]["accuracy"] == 0.5


def test_naive_bayes_is_scikit_learns_with_the_best_alpha_on_validation(posts, tmp_path):
    baseline(posts, "naive_bayes", tmp_path / "out")
    read = {split: texts_and_labels(SIZES[split], seed) for seed, split in enumerate(SIZES)}
    counts = CountVectorizer(token_pattern=WORDS).fit(post["text"] for post in read["train"])
    x = {split: counts.transform(post["text"] for post in of) for split, of in read.items()}
    y = {split: [post["label"] for post in of] for split, of in read.items()}
    models = [MultinomialNB(alpha=alpha).fit(x["train"], y["train"]) for alpha in COUNTING["naive_bayes"][3]]
    best = max(models, key=lambda model: model.score(x["validation"], y["validation"]))
    chances = best.predict_proba(x["test"])[:, 1]
    assert [float(row["probability_sad"]) for row in answers(tmp_path / "out")] == pytest.approx(chances, abs=1e-6)
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["train_alpha"] == best.alpha


def test_the_parameter_is_chosen_by_the_score_on_validation():
    texts, labels = ["a b", "a c", "d b", "d c"], [0, 0, 1, 1]
    wanted = iter([0.1, 0.5, 0.9, 0.9, 0.2])
    model = CountingClassifier("tfidf_logistic", 2)
    model.fit(texts, labels, validation=texts, score=lambda logits: next(wanted))
    assert model.chosen == COUNTING["tfidf_logistic"][3][2] == model.classifier.C


def test_nothing_is_chosen_where_the_last_pass_counts(posts, tmp_path):
    baseline(posts, "naive_bayes", tmp_path / "out", "--load_best_model_at_end", "False")
    assert json.loads((tmp_path / "out" / "all_results.json").read_text())["train_alpha"] == 1


@pytest.mark.parametrize("name", ["tfidf_logistic", "naive_bayes"])
def test_words_beyond_the_limit_and_white_space_count_for_nothing(name):
    texts, labels = ["good day x y", "bad  day\tz", "good\n\nnight", "bad night"], [0, 1, 0, 1]
    limited, whole = CountingClassifier(name, 2, max_words=2), CountingClassifier(name, 2)
    limited.fit(texts, labels)
    whole.fit([" ".join(text.split()[:2]) for text in texts], labels)
    seen = ["good  day bad bad bad", " bad day"]
    assert np.array_equal(limited.logits(seen), whole.logits(["good day", "bad day"]))
    assert not np.allclose(whole.logits(seen), limited.logits(seen))


@pytest.mark.parametrize("name", ["tfidf_logistic", "naive_bayes"])
def test_class_weights_are_repeated_posts(name):
    texts, labels = ["good day", "bad day", "so so", "bad night"], [0, 1, 0, 1]
    weighted, repeated = CountingClassifier(name, 3), CountingClassifier(name, 3)
    weighted.fit(texts, labels, weights=[3, 1, 1])
    repeated.fit(texts + 2 * [texts[0], texts[2]], labels + [0] * 4)
    odds = [model.logits(["good", "bad", "so"]) for model in (weighted, repeated)]
    assert all(np.isneginf(of[:, 2]).all() for of in odds)  # no post has that label
    plain = CountingClassifier(name, 3)
    plain.fit(texts, labels)
    assert (odds[0][:, 0] > plain.logits(["good", "bad", "so"])[:, 0]).all()
    assert (odds[0].argmax(1) == odds[1].argmax(1)).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_changes_no_logit_of_a_network(name):
    torch.manual_seed(0)
    config = PreTrainedConfig(
        vocab_size=30, num_labels=3, problem_type="single_label_classification", class_weights=None, label_smoothing=0
    )
    network = NETWORKS[name](config).eval()
    ids = torch.randint(1, 30, (4, 9))
    mask = torch.arange(9) < torch.tensor([9, 4, 1, 2])[:, None]
    together = network(ids, mask.long()).logits
    for row, length in enumerate(mask.sum(1)):
        alone = network(ids[row : row + 1, :length], mask[row : row + 1, :length].long()).logits
        assert torch.allclose(alone, together[row : row + 1], atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns_and_honours_class_weights(name, posts, tmp_path):
    metrics = baseline(posts, name, tmp_path / "a", "--num_train_epochs", 6)
    assert metrics["test"]["accuracy"] > metrics["test"]["majority_accuracy"] + 0.1
    baseline(posts, name, tmp_path / "b", "--num_train_epochs", 1, "--class_weights", '{"glad": 1000}')
    assert {row["prediction"] for row in answers(tmp_path / "b")} == {"glad"}


def test_a_pretrained_model_stays_one(posts, pretrained, tmp_path):
    baseline(posts, f"auto:{pretrained}", tmp_path / "out", "--num_train_epochs", 1)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "glad", 1: "sad"} and (tmp_path / "out" / "tokenizer.json").is_file()


def test_its_texts_are_collapsed_and_cut():
    texts, settings = TextProcessor(lambda texts, **settings: (texts, settings), 3)([" a \0\n b ", "a b"])
    assert texts == ["a b", "a b"] and settings["max_length"] == 3 and settings["truncation"] and settings["padding"]
    processor = TextProcessor(lambda texts, **settings: settings, 3)
    asked = {"text_kwargs": {"padding": "max_length"}, "images_kwargs": {"do_rescale": False}}
    assert processor(["a"], **asked) == {**processor(["a"]), "padding": "max_length"}


def test_seeds_of_a_network_differ_and_what_counts_runs_once(posts, tmp_path):
    found = baseline(posts, "text_cnn", tmp_path / "cnn", "--seeds", 0, 1)
    runs = [answers(tmp_path / "cnn" / f"seed-{seed}") for seed in (0, 1)]
    assert runs[0] != runs[1] and len(found["test"]["accuracy"]["values"]) == 2
    found = baseline(posts, "naive_bayes", tmp_path / "bayes", "--seeds", 0, 1)
    assert isinstance(found["test"]["accuracy"], float) and (tmp_path / "bayes" / "predictions.csv").is_file()


def test_without_an_output_folder_it_goes_beside_the_models(posts):
    main([str(posts / "recipe.yaml"), "--baseline", "majority"])
    assert (posts / "run_majority" / "test_report.json").is_file() and not (posts / "run").exists()
    with pytest.raises(ValueError, match="holds a finished run"):
        main([str(posts / "run_majority" / "recipe.yaml")])


@pytest.mark.parametrize(
    "name, flags, said",
    [
        ("", [], "--baseline is missing: give majority"),
        ("bayes", [], "--baseline bayes: give majority"),
        ("auto:", [], "--baseline auto:"),
        ("text_cnn", ["--hidden_size", "32"], "--hidden_size means nothing to --baseline text_cnn"),
        ("naive_bayes", ["--learning_rate", "1e-3"], "--learning_rate means nothing"),
        ("naive_bayes", ["--max_seq_length", "15"], "--baseline_max_words"),
        ("naive_bayes", ["--label_smoothing", "0.1"], "--label_smoothing can't be honoured"),
        ("naive_bayes", ["--label_smoothing_factor", "0.1"], "--label_smoothing_factor can't be honoured"),
        ("naive_bayes", ["--metric_for_best_model", "loss"], "--metric_for_best_model loss can't be"),
        ("majority", ["--class_weights", "auto"], "--class_weights can't be honoured"),
        ("bigru", ["--modalities", "text,image"], "reads text alone: give --modalities text"),
        ("naive_bayes", ["--modalities", "image"], "reads text alone"),
        ("bigru", ["--baseline_max_words", "5"], "--baseline_max_words 5"),
        ("naive_bayes", ["--baseline_max_words", "0"], "--baseline_max_words 0"),
        ("text_cnn", ["--modality_dropout", "0.3"], "--modality_dropout doesn't go with --baseline"),
        ("text_cnn", ["--model_name_or_path", "x"], "auto:NAME"),
        ("text_cnn", ["--search_trials", "3"], "--search_trials doesn't go"),
        ("text_cnn", ["--do_train", "False"], "give --do_train"),
        ("auto:nowhere/at/all", [], "--baseline auto:nowhere/at/all can't be loaded"),
        ("auto:{pretrained}", ["--max_seq_length", "64"], "no more than 24 tokens"),
        ("auto:{pretrained}", ["--vocab_size", "64"], "--vocab_size can't be honoured"),
        ("auto:{pretrained}", ["--class_weights", "auto"], "--class_weights can't be honoured"),
        ("naive_bayes", ["--problem_type", "multi_label_classification"], "one label per post"),
    ],
)
def test_what_a_baseline_cannot_honour_is_refused(name, flags, said, posts, pretrained, tmp_path):
    line = [str(posts / "recipe.yaml"), "--output_dir", str(tmp_path / "out"), *flags]
    line += ["--baseline", name.format(pretrained=pretrained)] if name else []
    with pytest.raises(ValueError) as error:
        main(line)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_a_baseline_is_none_of_the_models(posts, tmp_path):
    baseline(posts, "majority", tmp_path / "out")
    with pytest.raises(ValueError, match="'baseline' isn't a flag"):
        run_classification.main([str(tmp_path / "out" / "recipe.yaml"), "--output_dir", str(tmp_path / "other")])
