"""Repeats count where they predict the label: whole posts, and parts with their labels; templates don't."""

from io import BytesIO

import numpy as np
from audited import audit_of, encoded, levels, noise, plain_posts, score_of
from PIL import Image

from hf_mamba.classification.audit.duplicates import groups_of_near_images, groups_of_near_texts, normalise
from hf_mamba.classification.audit.images import read_facts


def repeat(splits, rows, change=lambda row: row):
    """The first `rows` test posts are training posts again."""
    for index in range(rows):
        splits["test"][index] = change(dict(splits["train"][index], id=splits["test"][index]["id"]))
    return splits


def test_posts_of_training_in_the_test_split_are_found(tmp_path):
    audit = audit_of(tmp_path / "copies", repeat(plain_posts(), 60))
    assert levels(audit)["copies: whole post"] in ("warning", "leak")
    assert audit.repeats["test in train"]["whole post"] == 60
    assert score_of(audit, "copies: whole post").accuracy == 1
    clean = audit_of(tmp_path / "clean", plain_posts())
    assert levels(clean) == {} and not any(clean.repeats["test in train"].values())


def test_near_copies_are_found(tmp_path):
    def reposted(row):
        image = Image.open(BytesIO(encoded(row["image"], "JPEG", quality=80)))
        return dict(row, text=f"{row['text'].upper()}  https://t.co/x1", image=encoded(image, "PNG"))

    audit = audit_of(tmp_path, repeat(plain_posts(with_images=True), 60, reposted))
    near = score_of(audit, "copies: whole post, nearly")
    assert near.posts == 60 and near.accuracy == 1 and near.level in ("warning", "leak")
    assert audit.repeats["test in train"] == {"whole post": 0, "text": 60, "image": 0}


def test_a_text_that_repeats_with_any_label_is_not_a_finding(tmp_path):
    splits = plain_posts(with_images=True)
    texts = [row["text"] for row in splits["train"][:20]]
    for rows in splits.values():  # a question asked of many images
        for index, row in enumerate(rows):
            row["text"] = texts[(index * 7) % 20]
    audit = audit_of(tmp_path, splits)
    assert audit.repeats["test in train"]["text"] == 200 and levels(audit) == {}


def test_a_text_whose_repeats_predict_the_label_is_one(tmp_path):
    splits = plain_posts(with_images=True)
    texts = {label: [f"{row['text']} {label * 3}" for row in splits["train"][:20]] for label in "ab"}
    for rows in splits.values():
        for index, row in enumerate(rows):
            row["text"] = texts[row["label"]][(index * 7) % 20]
    assert levels(audit_of(tmp_path, splits))["copies: text"] in ("warning", "leak")


def test_conflicting_labels_are_counted_and_a_clean_twin_has_none(tmp_path):
    splits = plain_posts()
    for index in range(10):
        other = "ba"[splits["train"][index]["label"] == "b"]
        splits["train"][100 + index] = dict(splits["train"][index], label=other, id=f"{index}")
    audit = audit_of(tmp_path, splits)
    assert audit.conflicts == {"groups": 10, "posts": 20, "never right": 10}
    assert levels(audit) == {"conflicting labels": "warning"}


def test_texts_are_the_same_but_for_case_space_and_urls():
    assert normalise("A  Day https://t.co/ab\n") == normalise("a day <url>") == "a day"
    long = "the quick brown fox jumps over the lazy dog near the river bank at noon"
    texts = [long, f"{long} !", "something else altogether, with other words", "ab", "cd"]
    groups = groups_of_near_texts(texts)
    assert groups[0] == groups[1] and len(set(groups.tolist())) == 4


def test_images_are_nearly_the_same_when_saved_again_not_when_alike():
    image = noise(1, (64, 60))
    again = read_facts(encoded(image, "JPEG", quality=70))
    flat = [read_facts(encoded(Image.new("RGB", (64, 60), colour))) for colour in ("red", "green")]
    facts = [read_facts(encoded(image)), again, read_facts(encoded(noise(2, (64, 60)))), *flat]
    groups = groups_of_near_images(
        np.array([of.difference_hash() for of in facts]), np.array([of.small for of in facts])
    )
    assert groups[0] == groups[1] and len(set(groups.tolist())) == 4
    assert facts[0].pixels != again.pixels and read_facts(b"nothing") is None
