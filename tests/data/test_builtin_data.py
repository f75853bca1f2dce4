"""The built-in posts: an exact XOR in which no single thing, seen or read, gives the label away."""

import json
import re
import threading
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from hf_mamba.classification import prepare
from hf_mamba.classification.data.sets import builtin as builtin_data
from hf_mamba.classification.data.sets import builtin_scenes
from hf_mamba.classification.data.sets.builtin import (
    SCENES,
    SPLITS,
    TONE_PHRASES,
    TONES,
    draw_image,
    plan_posts,
    write_builtin_posts,
)


SIZES = {"train": 48, "validation": 8, "test": 16}


def write(folder, **changes):
    return write_builtin_posts(folder, **{**SIZES, "image_size": 32, "progress": False, **changes})


def rows(folder, split):
    return [json.loads(line) for line in (folder / split / "metadata.jsonl").read_text().splitlines()]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write(tmp_path_factory.mktemp("posts") / "data")


@pytest.fixture(scope="module")
def planned():
    return {split: plan_posts(split, count) for split, count in (("train", 1600), ("validation", 160), ("test", 400))}


def gap(post):
    """The text without its tone phrase, and the phrase."""
    for pairs in TONE_PHRASES.values():
        for phrase in sorted((pair[TONES.index(post.tone)] for pair in pairs), key=len, reverse=True):
            head, found, tail = post.text.lower().partition(phrase)
            if found and not re.search(r"\w$", head) and not re.match(r"\w", tail):
                return f"{head}{{}}{tail}", phrase
    raise AssertionError(f"no {post.tone} phrase in {post.text!r}")


@pytest.mark.parametrize("labels", ["binary", "three"])
@pytest.mark.parametrize("split", SPLITS)
def test_the_four_cells_are_equal_and_the_label_is_their_contradiction(split, labels):
    posts = plan_posts(split, 40, seed=3, labels=labels)
    assert Counter((post.tone, post.scene) for post in posts) == {(t, s): 10 for t in TONES for s in SCENES}
    names = {"binary": ("sincere", "sincere", "sarcastic"), "three": ("praise", "complaint", "sarcasm")}[labels]
    for post in posts:
        agree = (post.tone == "positive") == (post.scene == "pleasant")
        assert post.label == (names[post.tone == "negative"] if agree else names[2])


def test_three_labels_rename_the_same_posts():
    binary, three = plan_posts("train", 40), plan_posts("train", 40, labels="three")
    assert [post._replace(label="") for post in binary] == [post._replace(label="") for post in three]


def test_no_sentence_occurs_twice_or_in_two_splits(planned):
    def texts(split):
        return [" ".join(re.findall(r"\w+", post.text.lower())) for post in planned[split]]

    every = [text for split in SPLITS for text in texts(split)]
    assert len(set(every)) == len(every)
    # Stronger: not even the sentence around the tone phrase is shared.
    frames = {split: {gap(post)[0] for post in planned[split]} for split in SPLITS}
    assert not frames["train"] & frames["test"]
    assert not frames["train"] & frames["validation"]
    assert not frames["validation"] & frames["test"]


def test_a_sentence_that_occurred_before_is_generated_anew(monkeypatch):
    monkeypatch.setattr(builtin_data, "TOPICS", [[["walk", "swim"], ["with the dog"], ["we left at nine"], ["#sea"]]])
    posts = plan_posts("train", 1200)
    assert len({" ".join(re.findall(r"\w+", post.text.lower())) for post in posts}) == len(posts)


def test_what_surrounds_the_tone_is_the_same_in_all_four_cells(planned):
    """Length, punctuation, case, fillers, subject and layout: equal counts, so none reveals tone, scene or label."""
    for posts in planned.values():
        cells = defaultdict(Counter)
        for post in posts:
            sentence, phrase = gap(post)
            cells[post.tone, post.scene][sentence, post.text.isupper(), post.text[0].islower(), post.layout_seed] += 1
        first, *others = cells.values()
        assert len(cells) == 4 and all(other == first for other in others)


@pytest.mark.parametrize("feature", ["word", "words", "marks", "length"])
def test_no_surface_feature_gives_the_label_away(planned, feature):
    measure = {
        "word": lambda text: re.findall(r"\w+", text.lower()),
        "words": lambda text: [len(text.split())],
        "marks": lambda text: [re.sub(r"[\w\s]", "", text)],
        "length": lambda text: [len(text) // 10],
    }[feature]
    for split, posts in planned.items():
        counts = defaultdict(Counter)
        for post in posts:
            for value in measure(post.text):
                counts[value][post.label] += 1
        for value, count in counts.items():
            slack = 0
            if feature == "length":  # phrases of one pair differ by a few letters
                slack = 4 * count.total() ** 0.5
            assert abs(count["sincere"] - count["sarcastic"]) <= slack, (split, value)


def test_the_number_of_words_does_not_give_the_tone_away(planned):
    for pairs in TONE_PHRASES.values():
        lengths = Counter((len(positive.split()), len(negative.split())) for positive, negative in pairs)
        assert all(positive == negative and count >= 2 for (positive, negative), count in lengths.items())
    for posts in planned.values():
        lengths = [len(re.findall(r"\w+", post.text)) for post in posts]
        assert min(lengths) >= 5 and max(lengths) <= 14
        assert Counter(zip(lengths, (post.tone for post in posts))) == Counter(
            zip(lengths, (TONES[post.tone == "positive"] for post in posts))
        )


def test_every_tone_phrase_of_the_test_posts_is_known_from_training(planned):
    known = Counter(gap(post)[1] for post in planned["train"])
    assert {gap(post)[1] for post in planned["test"]} <= set(known)
    assert min(known.values()) >= 8 and len(known) >= 40


def test_a_split_does_not_depend_on_the_size_of_the_others(written, tmp_path):
    other = write(tmp_path / "larger", train=64)
    assert rows(other, "test") == rows(written, "test")
    assert (other / "test/00003.png").read_bytes() == (written / "test/00003.png").read_bytes()


def test_no_image_occurs_twice(written):
    pixels = [np.asarray(Image.open(path)).tobytes() for path in written.rglob("*.png")]
    assert len(pixels) == sum(SIZES.values()) == len(set(pixels))


def test_an_image_that_occurred_before_is_generated_anew():
    post, seen = plan_posts("test", 4)[0], set()
    first = builtin_data._generate_new_image(post, 16, seen)
    second = builtin_data._generate_new_image(post, 16, seen)
    assert first.tobytes() != second.tobytes() and len(seen) == 2


def test_images_differ_by_scene_and_show_it():
    """Unpleasant skies are darker than pleasant ones in the same light, by far more often than not."""
    darker = 0
    for seed in range(40):
        pleasant, unpleasant = (np.asarray(draw_image(scene, seed, 100 + seed)) for scene in SCENES)
        assert pleasant.shape == (64, 64, 3) and pleasant.dtype == np.uint8
        darker += unpleasant[:16].mean() < pleasant[:16].mean()
    assert darker >= 36


def test_what_is_not_the_scene_comes_from_the_layout_alone(monkeypatch):
    """Without sky, ground, scenery and rain two images of one layout differ by their noise only."""
    for name in ("_backdrop", "_pleasant", "_unpleasant", "_rain"):
        monkeypatch.setattr(builtin_scenes, name, lambda *arguments: None)
    for seed in range(10):
        pleasant, unpleasant = (np.asarray(draw_image(SCENES[i], seed, i)).astype(int) for i in range(2))
        assert pleasant.max() > 60
        assert np.abs(pleasant - unpleasant).max() <= 0.05 * 255 + 8


def test_the_same_arguments_give_the_same_bytes_and_another_seed_gives_others(written, tmp_path):
    assert contents(write(tmp_path / "again")) == contents(written)
    other = write(tmp_path / "other", seed=1)
    for split in SPLITS:
        texts = {row["text"] for row in rows(written, split)}
        assert len(texts & {row["text"] for row in rows(other, split)}) < len(texts) / 10
    assert (other / "train/00000.png").read_bytes() != (written / "train/00000.png").read_bytes()


def test_metadata_names_images_beside_it(written):
    for split, count in SIZES.items():
        found = rows(written, split)
        assert len(found) == count
        for row in found:
            assert list(row) == ["file_name", "text", "label"]
            with Image.open(written / split / row["file_name"]) as image:
                assert (image.size, image.mode) == ((32, 32), "RGB")
    assert "sarcastic" in (written / "README.md").read_text()


def test_datasets_reads_it_as_an_imagefolder(written, tmp_path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(written), cache_dir=str(tmp_path))
    assert {split: len(loaded[split]) for split in loaded} == SIZES
    for split in SPLITS:
        assert set(loaded[split].column_names) == {"image", "text", "label"}
        for mine, row in zip(loaded[split], rows(written, split)):
            assert (mine["text"], mine["label"]) == (row["text"], row["label"])
            assert mine["image"].tobytes() == Image.open(written / split / row["file_name"]).tobytes()


def test_a_folder_that_holds_exactly_these_posts_is_reused(written):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    assert write(written) == written
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 5}, "seed=0, not 5"),
        ({"train": 40}, "train=48, not 40"),
        ({"labels": "three"}, "labels='binary', not 'three'"),
        ({"image_size": 64}, "image_size=32, not 64"),
    ],
)
def test_a_folder_with_other_posts_is_refused_and_left_alone(written, change, message):
    before = contents(written)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        write(written, **change)
    assert str(written) in str(error.value) and "another folder" in str(error.value)
    assert contents(written) == before


@pytest.mark.parametrize("damage", ["image gone", "image added", "text changed", "version", "stamp", "foreign"])
def test_a_damaged_or_foreign_folder_is_refused(tmp_path, damage):
    folder = tmp_path / "data"
    if damage != "foreign":
        write(folder, train=8, test=8)
    if damage == "image gone":
        (folder / "test/00002.png").unlink()
    elif damage == "image added":
        (folder / "test/mine.png").write_bytes((folder / "test/00002.png").read_bytes())
    elif damage == "text changed":
        path = folder / "validation/metadata.jsonl"
        path.write_text(path.read_text().replace("sincere", "sarcastic", 1))
    elif damage == "version":
        path = folder / builtin_data.STAMP_NAME
        path.write_text(path.read_text().replace('"version": ', '"version": 1000'))
    elif damage == "stamp":
        (folder / builtin_data.STAMP_NAME).write_text("{")
    else:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(ValueError, match="Name another folder"):
        write(folder, train=8, test=8)
    assert contents(folder) == before


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "data").write_text("mine")
    with pytest.raises(ValueError, match="it is, or lies in, a file"):
        write(tmp_path / "data")


def test_a_crash_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin_data, "_readme", lambda parameters: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_filled_and_missing_parents_are_made(written, tmp_path):
    (tmp_path / "empty").mkdir()
    assert contents(write(tmp_path / "empty")) == contents(written)
    assert contents(write(tmp_path / "a/b/c")) == contents(written)


def test_two_writers_at_once_leave_one_complete_copy(written, tmp_path):
    outcomes = []
    barrier = threading.Barrier(2, timeout=20)
    finish = builtin_data._write_all

    def finish_together(*arguments):
        finish(*arguments)
        barrier.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtin_data, "_write_all", finish_together)
        threads = [threading.Thread(target=lambda: outcomes.append(write(tmp_path / "data"))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes == [tmp_path / "data"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert contents(tmp_path / "data") == contents(written)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train": 30}, "train=30: .* the nearest is 32"),
        ({"test": 0}, "test=0: .* positive multiple of 4; the nearest is 4"),
        ({"labels": "two"}, "labels='two' is unknown; it is one of binary, three"),
        ({"image_size": 8}, "image_size=8: .* give 16 or more"),
    ],
)
def test_bad_arguments_are_named_with_the_fix_and_write_nothing(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "data", **change)
    assert not list(tmp_path.iterdir())


def test_more_posts_than_the_grammar_has_sentences_is_an_error(monkeypatch):
    monkeypatch.setattr(builtin_data, "_home_split", lambda words: "test")
    with pytest.raises(ValueError, match="train: the grammar has no more unused sentences"):
        plan_posts("train", 4)


def test_command_line_writes_and_reports(written, tmp_path, capsys):
    arguments = ["builtin", str(tmp_path / "data"), "--train=48", "--validation=8", "--test=16", "--image_size=32"]
    prepare.main(arguments)
    assert contents(tmp_path / "data") == contents(written)
    assert capsys.readouterr().out == f"{tmp_path / 'data'}\n"
    with pytest.raises(ValueError, match="seed=0, not 2"):
        prepare.main([*arguments, "--seed", "2"])
