"""The vocabulary: the same for the same texts in every process, of bounded size, and fit for the tokenizer."""

import json
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_mamba.classification.data.vocabulary import train_wordpiece
from hf_mamba.processing_hf_mamba import build_wordpiece_tokenizer


def make_texts(count=400):
    """Texts full of ties: random words of few letters, all about as frequent."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(2, 7))) for _ in range(300)]
    return [" ".join(draw.choices(words, k=8)) + draw.choice(["!", " 😀", " 猫と犬", ""]) for _ in range(count)]


TRAIN_IN_CHILD = """
import json, sys
from hf_mamba.classification.data.vocabulary import train_wordpiece
print(json.dumps(train_wordpiece(json.load(sys.stdin), vocab_size=500)))
"""


def test_same_vocabulary_in_every_process():
    texts = make_texts()
    settings_of_children = [("1", "1", "false"), ("random", "4", "true")]  # and this process is the third
    children = []
    for hash_seed, threads, parallel in settings_of_children:
        environment = {"PYTHONHASHSEED": hash_seed, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel}
        children.append(
            subprocess.Popen(
                [sys.executable, "-c", TRAIN_IN_CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
            )
        )
    here = list(train_wordpiece(texts, vocab_size=500).items())
    for child in children:
        output, _ = child.communicate(json.dumps(texts))
        assert list(json.loads(output).items()) == here


def test_order_of_texts_does_not_matter():
    texts = make_texts()
    assert train_wordpiece(texts, vocab_size=300) == train_wordpiece(reversed(texts), vocab_size=300)


@given(st.lists(st.text(max_size=30), min_size=1, max_size=8), st.integers(4, 60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_ids_are_complete_and_bounded_for_any_texts(texts, vocab_size, lowercase):
    try:
        vocabulary = train_wordpiece(texts, vocab_size=vocab_size, lowercase=lowercase)
    except ValueError as error:
        assert "no vocabulary" in str(error) or "No training text" in str(error)
        return
    assert list(vocabulary.values()) == list(range(len(vocabulary)))
    assert list(vocabulary)[:2] == ["[PAD]", "[UNK]"]
    assert len(vocabulary) <= vocab_size


def test_training_texts_have_no_unknown_pieces():
    texts = [*make_texts(), "Ünïcode, CASE\t and \n white   space", "👩‍👩‍👧 family"]
    tokenizer = build_wordpiece_tokenizer(train_wordpiece(texts, vocab_size=500), max_length=200)
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert ids and tokenizer.unk_token_id not in ids


def test_frequent_words_become_one_piece():
    vocabulary = train_wordpiece(["what a lovely day"] * 20 + ["rare"], vocab_size=200)
    assert {"what", "lovely", "day"} <= set(vocabulary)
    assert "rare" not in vocabulary  # below min_frequency


def test_case_is_kept_when_asked():
    assert "Day" in train_wordpiece(["Day"] * 5, lowercase=False)
    assert "Day" not in train_wordpiece(["Day"] * 5)


@pytest.mark.parametrize("texts", [[], [""], ["  \n", "\u200b"]])
def test_no_words_is_an_error(texts):
    with pytest.raises(ValueError, match="check the text column"):
        train_wordpiece(texts)


def test_too_small_a_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="--vocab_size 3"):
        train_wordpiece(["a"], vocab_size=3)
