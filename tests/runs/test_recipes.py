"""Every recipe of the project starts, trains two steps and evaluates; those of the paper differ where they should."""

import json
from pathlib import Path

import pytest
import yaml
from documented import make_image, write_jsonl

from hf_mamba import run_classification
from hf_mamba.classification.data.sets.builtin import write_builtin_posts
from hf_mamba.classification.runs.recipes import RECIPES_FOLDER, find_recipe, own_recipes, read_recipe


pytestmark = pytest.mark.usefixtures("quick_collections")

# What a recipe asks for, in small: the kinds and numbers of its layers stay its own
SMALL = {
    "max_steps": 2,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
    "vocab_size": 200,
    "image_size": 32,
    "patch_size": 16,
    "image_cache": "off",
    "use_cpu": True,
    "disable_tqdm": True,
}
SPLITS = {"train": 8, "validation": 4, "test": 4}

# What each recipe of the paper sets, in its own file, besides `base` and `output_dir`
OWN_FLAGS = {
    "text": {"modalities": "text"},
    "image": {"modalities": "image"},
    **{
        f"{backbone}_h{heads}": {"backbone": backbone, "num_attention_heads": heads}
        for backbone in ("self_attention", "transformer")
        for heads in (1, 2, 4)
    },
    "flatten": {"fusion": "flatten"},
    "flatten_15": {"fusion": "flatten", "num_fusion_layers": 15},
    "simple": {"segment_embeddings": "none"},
}
PAPER = [(data, row) for data in ("twitter", "yelp") for row in OWN_FLAGS]
MEASURED = {"paper/twitter_text_15", "paper/twitter_text_64", "paper/yelp_text_ny"}
ON_OTHER_DATA = {"paper/easy_vqa", "paper/mvsa_single"}


@pytest.fixture(scope="module")
def builtin(tmp_path_factory):
    """The labels of built-in posts -> a folder with a few of them, drawn on first use."""
    folder, drawn = tmp_path_factory.mktemp("builtin"), {}

    def draw(labels):
        if labels not in drawn:
            drawn[labels] = write_builtin_posts(
                folder / labels, labels=labels, image_size=32, progress=False, **SPLITS
            )
        return drawn[labels]

    return draw


def write_posts(path, number, recipe):
    """A few posts of two labels and two cities; one picture each or, where the recipe speaks of several, four."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image().save(path.parent / "photo.png")
    pictures = {"images": ["photo.png"] * 4} if "max_images" in recipe else {"image": "photo.png"}
    posts = [{"id": f"p{i}", "text": f"word {i}", "label": str(i % 2), "city": "AB"[i % 2]} for i in range(number)]
    write_jsonl(path, [post | pictures for post in posts])


def write_data(recipe, folder, builtin):
    """Writes what the recipe names below $HF_MAMBA_DATA into `folder`. Returns flags that name the data."""
    name = recipe.get("dataset_name", "")
    if name.startswith("builtin"):
        return ["--dataset_name", str(builtin(name.partition(":")[2] or "binary"))]
    files = [recipe[flag] for flag in recipe if flag.endswith("_file") and recipe[flag]]
    files += [f"{name}/{split}.jsonl" for split in SPLITS if name]
    for file in files:
        variable, _, path = file.partition("/")
        assert variable == "$HF_MAMBA_DATA", f"{file} is on no other machine"
        split = Path(path).stem
        write_posts(folder / path, SPLITS.get(split, SPLITS["test"]) * recipe.get("folds", 1), recipe)
    return []


@pytest.mark.parametrize("name", own_recipes())
def test_it_starts_trains_two_steps_and_evaluates(name, tmp_path, monkeypatch, builtin):
    recipe = read_recipe(find_recipe(name))
    monkeypatch.setenv("HF_MAMBA_DATA", str(tmp_path / "data"))
    flags = [*write_data(recipe, tmp_path / "data", builtin), *(f"--{flag}={value}" for flag, value in SMALL.items())]
    seeds = ["--seeds", "7"] if "seeds" in recipe else []
    fold = ["--fold", "1"] if "folds" in recipe else []
    metrics = run_classification.main([name, *flags, *seeds, *fold, "--output_dir", str(tmp_path / "run")])
    run = tmp_path / "run" / ("seed-7" if seeds else "")
    state = json.loads((run / "trainer_state.json").read_text("utf-8"))
    assert state["global_step"] == 2
    asked = {split for split, step in (("validation", "do_eval"), ("test", "do_predict")) if recipe.get(step)}
    assert asked and set(metrics) == asked
    for split in asked:
        report = json.loads((run / f"{split}_report.json").read_text("utf-8"))
        assert report["num_posts"] and ("per_group" in report) == ("group_column_name" in recipe)
    config = json.loads((run / "config.json").read_text("utf-8"))
    assert all(config[field] == recipe[field] for field in config.keys() & recipe.keys() - SMALL.keys())


def test_no_two_recipes_share_an_output_folder():
    folders = [read_recipe(find_recipe(name))["output_dir"] for name in own_recipes()]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("data, row", PAPER)
def test_an_ablation_of_the_paper_changes_its_own_flags_only(data, row):
    base, recipe = (read_recipe(find_recipe(f"paper/{name}")) for name in (data, f"{data}_{row}"))
    own = yaml.safe_load(find_recipe(f"paper/{data}_{row}").read_text("utf-8"))
    where = {"base": f"{data}.yaml", "output_dir": f"outputs/paper/{data}_{row}"}
    assert own == where | OWN_FLAGS[row]
    assert recipe == base | OWN_FLAGS[row] | {"output_dir": where["output_dir"]}


def test_the_papers_settings():
    """Section 3.2."""
    of_both = {
        "image_size": 224,
        "patch_size": 16,
        "hidden_size": 64,
        "num_text_layers": 5,
        "num_image_layers": 5,
        "num_fusion_layers": 5,
        "num_train_epochs": 100,
        "per_device_train_batch_size": 128,
        "seeds": [0, 1, 2],
    }
    for data, length in (("twitter", 15), ("yelp", 128)):
        recipe = read_recipe(find_recipe(f"paper/{data}"))
        assert recipe | of_both | {"max_seq_length": length} == recipe


def test_every_row_of_the_paper_has_a_recipe():
    of_paper = {name for name in own_recipes() if name.startswith("paper/")}
    of_rows = {f"paper/{data}_{row}" for data, row in PAPER}
    assert of_paper == {"paper/twitter", "paper/yelp", *of_rows, *MEASURED, *ON_OTHER_DATA}


def test_the_length_alone_tells_the_two_measured_twitter_recipes_apart():
    short, whole = (read_recipe(find_recipe(f"paper/twitter_text_{length}")) for length in (15, 64))
    assert {flag for flag in short if short[flag] != whole[flag]} == {"max_seq_length", "output_dir"}
    assert short["max_seq_length"] == 15 and whole["max_seq_length"] == 64 and short.keys() == whole.keys()


def test_a_recipe_of_the_paper_is_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = RECIPES_FOLDER / "paper" / "twitter.yaml"
    for name in ("paper/twitter", "paper/twitter.yaml", str(path)):
        assert find_recipe(name) == path
    (tmp_path / "paper").mkdir()
    mine = tmp_path / "paper" / "twitter.yaml"
    mine.write_text("seed: 3\n")
    assert find_recipe("paper/twitter.yaml").samefile(mine) and find_recipe("paper/twitter") == path


@pytest.mark.parametrize(
    "wrong, meant",
    [("twitter", "paper/twitter"), ("paper/yelp_simpel", "paper/yelp_simple"), ("twitter_flaten", "paper/twitter_fl")],
)
def test_a_wrong_name_is_told_the_right_one(wrong, meant):
    with pytest.raises(FileNotFoundError) as error:
        find_recipe(wrong)
    assert f"Did you mean '{meant}" in str(error.value) and "paper/yelp_text_ny" in str(error.value)
