"""Built-in posts, drawn by the project: is a short text meant literally, or sarcastically?

    python -m hf_mamba.classification.data.sets.builtin FOLDER [--train 4000] [--labels binary]

The text has a positive or a negative tone, the picture shows a pleasant or an unpleasant scene. A post whose
text and picture agree is *sincere*, one whose text and picture contradict each other is *sarcastic*: an exact
XOR. Posts come in fours that share everything but tone and scene: the same sentence around the tone phrase, the
same clutter, light and noise level in the picture, once for each tone x scene cell. So in every split each
modality alone says nothing about the label (50 %), and neither does any filler, subject, hashtag, punctuation
mark, number of words or piece of clutter. Only a model that fuses can do better.

Nothing is downloaded, no font is needed. The folder is an ordinary image folder with metadata
(`train/metadata.jsonl` beside `train/00000.png`, ...), read like any user's data.
"""

import argparse
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm.auto import tqdm

from .builtin_scenes import SCENES, draw_picture


GENERATOR_VERSION = 1  # raise it whenever the same arguments give other texts or pictures
STAMP_NAME = "builtin_data.json"
SPLITS = ("train", "validation", "test")
TONES = ("positive", "negative")

# (tone, scene) -> label
LABELS = {
    "binary": {
        ("positive", "pleasant"): "sincere",
        ("negative", "unpleasant"): "sincere",
        ("positive", "unpleasant"): "sarcastic",
        ("negative", "pleasant"): "sarcastic",
    },
    "three": {
        ("positive", "pleasant"): "praise",
        ("negative", "unpleasant"): "complaint",
        ("positive", "unpleasant"): "sarcasm",
        ("negative", "pleasant"): "sarcasm",
    },
    "several": {  # those that hold: one is the text's, one the picture's, one needs both
        ("positive", "pleasant"): ["pleasant", "upbeat"],
        ("negative", "unpleasant"): [],
        ("positive", "unpleasant"): ["sarcastic", "upbeat"],
        ("negative", "pleasant"): ["pleasant", "sarcastic"],
    },
    "score": {  # a number that grows or falls with the emphasis of the text, which _score adds
        ("positive", "pleasant"): "2.5 + emphasis",
        ("negative", "unpleasant"): "2.5 + emphasis",
        ("positive", "unpleasant"): "2.5 - emphasis",
        ("negative", "pleasant"): "2.5 - emphasis",
    },
}
EMPHASIS = {"...": 0.5, "!!": 2.0, "!": 1.5}  # the first that the text holds; 1 without any

# Sentence frame -> positive/negative phrases. The two of a pair have equally many words, so that the number of
# words tells nothing, and at least one other pair of the frame has as many; no phrase occurs in any other slot of
# the grammar, so a text has one reading.
TONE_PHRASES = {
    frame: [tuple(pair.split("/")) for pair in pairs.split(", ")]
    for frame, pairs in {
        "{subject} was {tone}": "wonderful/awful, lovely/horrible, fantastic/terrible, amazing/appalling, "
        "brilliant/pathetic, gorgeous/ghastly, superb/lousy, excellent/atrocious, simply perfect/simply dreadful, "
        "pure bliss/pure misery, first class/utter rubbish, beyond magical/beyond painful, a total joy/a total mess, "
        "a real treat/a real disgrace, worth every penny/a complete ripoff, the best ever/the worst ever",
        "{who} {tone} {subject}": "loved/hated, adored/loathed, enjoyed/detested, relished/regretted, "
        "raved about/complained about, smiled about/groaned about, truly appreciated/deeply resented, "
        "was delighted by/was disgusted by, was charmed by/was annoyed by",
        "{tone} after {subject}": "thrilled/furious, grinning/fuming, overjoyed/heartbroken, so happy/so angry, "
        "so impressed/so disappointed, completely charmed/completely annoyed, feeling blessed/feeling miserable, "
        "in high spirits/in low spirits, walking on air/close to tears, over the moon/at breaking point",
    }.items()
}

# For each topic its nouns; where, or with whom; neutral clauses; hashtags. All of it is free of tone.
TOPICS = [
    [slot.split(", ") for slot in topic]
    for topic in (
        (
            "train ride, ferry crossing, flight, bus tour, road trip, hotel room, guided walk, weekend away",
            "to the coast, up north, near the border, with my cousins, in the old town, over the mountains",
            "we left at nine, two hours each way, seat by the window, same route as in spring, bags in the hall",
            "#travel, #ontheroad, #weekend, #trip",
        ),
        (
            "breakfast, lunch menu, pasta, vegetable soup, coffee, birthday cake, family dinner, pizza",
            "at the corner cafe, by the harbour, on market street, with my parents, at the new place, downtown",
            "table for four, we ordered at noon, bread on the side, second visit this month, they open at seven",
            "#food, #lunchtime, #foodie, #eatingout",
        ),
        (
            "haircut, phone repair, parcel delivery, support call, bank visit, bike service, shoe fitting",
            "on the high street, near the station, at the mall, this side of town, round the corner, with my dad",
            "number twelve in line, it took an hour, receipt in my pocket, booked it online, paid by card",
            "#service, #customer, #shopping, #errands",
        ),
        (
            "concert, museum visit, football match, street fair, garden show, boat party, film, picnic",
            "in the park, at the stadium, with the kids, across the river, at the town hall, with old friends",
            "doors opened at six, we took the tram, row five on the left, my aunt drove us, tickets from work",
            "#outing, #weekendplans, #familytime, #city",
        ),
        (
            "weekly meeting, yoga class, morning run, staff lunch, evening course, gym session, office move",
            "with the new team, on the third floor, at the sports centre, after work, with my neighbour, at school",
            "same room as before, laptop under my arm, it starts at eight, walked there and back, week three of ten",
            "#monday, #worklife, #routine, #schedule",
        ),
    )
]
DETERMINERS = ("the", "our", "that", "this")
WHO = ("I", "my sister", "everyone", "my whole family", "my flatmate", "the boss", "grandma")
OPENERS = (
    "honestly",
    "honestly,",
    "well,",
    "ok",
    "ok,",
    "anyway,",
    "update:",
    "quick note:",
    "just saying,",
    "hey all,",
)
TIMES = ("today", "last night", "this morning", "yesterday", "on sunday", "this week")
ENDINGS = ("", ".", ".", "!", "!!", "...")


class Post(NamedTuple):
    """One planned post; `layout_seed` (shared by the four of a group) and `picture_seed` fix its picture."""

    text: str
    tone: str
    scene: str
    label: str | list[str] | float
    layout_seed: int
    picture_seed: int


class Sentence(NamedTuple):
    """A text with a gap: `template` has `{}` where a phrase of TONE_PHRASES[frame] goes."""

    template: str
    frame: str
    case: str

    def fill(self, phrase: str) -> str:
        text = self.template.format(phrase)
        if self.case == "sentence":
            return re.sub(r"(^|[.] )([a-z])", lambda match: match[1] + match[2].upper(), text)
        return text.upper() if self.case == "upper" else text.lower()


def _draw_sentence(rng: random.Random, frame: str) -> Sentence:
    """Everything of a text but its tone, drawn without knowing it."""
    nouns, places, clauses, hashtags = rng.choice(TOPICS)
    subject = f"{rng.choice(DETERMINERS)} {rng.choice(nouns)}"
    if rng.random() < 0.6:
        subject += f" {rng.choice(places)}"
    core = frame.format(subject=subject, who=rng.choice(WHO), tone="{}")
    if rng.random() < 0.5:
        core = f"{rng.choice(OPENERS)} {core}"
    if rng.random() < 0.4:
        core += f" {rng.choice(TIMES)}"
    if rng.random() < 0.4:
        core += rng.choice((", ", ". ", " - ")) + rng.choice(clauses)
    core += rng.choice(ENDINGS)
    if rng.random() < 0.4:
        core += f" {rng.choice(hashtags)}"
    case = rng.choice(("sentence",) * 8 + ("lower",) * 7 + ("upper",))
    return Sentence(core, frame, case)


def _home_split(words: str) -> str:
    """The one split a sentence may occur in, from a hash of its words: splits can't overlap, whatever their size."""
    byte = hashlib.sha256(words.encode()).digest()[0]
    return {0: "test", 1: "validation"}.get(byte % 8, "train")


def _draw_new_sentence(rng: random.Random, frame: str, split: str, used: set[str]) -> Sentence:
    """A sentence of 5 to 14 words that belongs to `split` and whose words are not in `used` yet."""
    for _ in range(10_000):
        sentence = _draw_sentence(rng, frame)
        words = " ".join(re.findall(r"[a-z0-9{}]+", sentence.template.lower()))
        # The gap counts as a word and takes one to three.
        if 5 <= len(words.split()) <= 12 and words not in used and _home_split(words) == split:
            used.add(words)
            return sentence
    raise ValueError(f"{split}: the grammar has no more unused sentences after {4 * len(used)} posts; ask for fewer")


def plan_posts(split: str, count: int, *, seed: int = 0, labels: str = "binary") -> list[Post]:
    """Plan the `count` posts of one split, in their final order.

    Each tone x scene cell has exactly count / 4 posts. A split depends on its own stream only: neither on the
    size nor on the presence of the others. Two neighbouring groups of four swap their tone phrases between
    labels, so that with `count` a multiple of 8 no phrase, either, occurs more often with one label.

    Args:
        split: "train", "validation" or "test".
        count: number of posts, a positive multiple of 4.
        seed: any integer.
        labels: "binary" (sincere, sarcastic), "three" (praise, complaint, sarcasm), "several" (lists of upbeat,
            pleasant and sarcastic) or "score" (0.5 to 4.5, see EMPHASIS).

    Raises:
        ValueError: unknown split or labels, a count that isn't a positive multiple of 4, or one that is more than
            the grammar can fill without repeating itself.
    """
    _check(split=split, count=count, labels=labels)
    rng = random.Random(f"hf_mamba builtin {seed} {split}")
    used: set[str] = set()
    deck, posts = [], []
    for group in range(count // 4):
        if group % 2 == 0:
            if not deck:  # so that every phrase comes up about equally often
                deck = [(name, pair) for name, pairs in TONE_PHRASES.items() for pair in pairs]
                rng.shuffle(deck)
            frame, agreeing = deck.pop()
            words = len(agreeing[0].split())  # all four texts get equally many
            others = [pair for pair in TONE_PHRASES[frame] if pair != agreeing]
            contradicting = rng.choice([pair for pair in others if len(pair[0].split()) == words])
        else:
            agreeing, contradicting = contradicting, agreeing
        sentence = _draw_new_sentence(rng, frame, split, used)
        layout_seed = rng.getrandbits(63)
        for t, tone in enumerate(TONES):
            for s, scene in enumerate(SCENES):
                text = sentence.fill((agreeing if t == s else contradicting)[t])
                label = LABELS[labels][tone, scene]
                label = _score(label, text) if labels == "score" else label
                posts.append(Post(text, tone, scene, label, layout_seed, rng.getrandbits(63)))
    rng.shuffle(posts)
    return posts


def _score(cell: str, text: str) -> float:
    emphasis = next((value for mark, value in EMPHASIS.items() if mark in text), 1.0)
    return 2.5 + emphasis if "+" in cell else 2.5 - emphasis


def _check(*, split: str, count: int, labels: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; it is one of {', '.join(SPLITS)}")
    if labels not in LABELS:
        raise ValueError(f"labels={labels!r} is unknown; it is one of {', '.join(LABELS)}")
    if count < 4 or count % 4:
        raise ValueError(
            f"{split}={count}: four tone x scene cells of equal size need a positive multiple of 4; "
            f"the nearest is {max(4, round(count / 4) * 4)}"
        )


def write_builtin_posts(
    folder: str | os.PathLike,
    *,
    train: int = 4000,
    validation: int = 400,
    test: int = 800,
    image_size: int = 64,
    seed: int = 0,
    labels: str = "binary",
    progress: bool = True,
) -> Path:
    """Write the built-in posts as an image folder with metadata, unless the folder holds exactly these already.

    `folder/<split>/metadata.jsonl` has one object {"file_name", "text", "label"} a line, the pictures lie beside it;
    `datasets.load_dataset("imagefolder", data_dir=folder)` reads it. No text and no picture of one split occurs in
    another. The same arguments give the same texts and the same pixels; PNG bytes are the same under one Pillow
    version. The folder appears complete or not at all, also when two processes write it at once.

    Args:
        folder: where to; it may be missing or empty.
        train, validation, test: posts of each split, positive multiples of 4.
        image_size: side of the square pictures in pixels, at least 16.
        seed: any integer.
        labels: "binary" (sincere, sarcastic), "three" (praise, complaint, sarcasm), "several" (lists of upbeat,
            pleasant and sarcastic) or "score" (0.5 to 4.5, see EMPHASIS).
        progress: show a progress bar.

    Returns:
        The folder.

    Raises:
        ValueError: an argument is out of range, or the folder holds anything else.
    """
    folder = Path(folder)
    counts = dict(zip(SPLITS, (train, validation, test)))
    for split, count in counts.items():
        _check(split=split, count=count, labels=labels)
    if image_size < 16:
        raise ValueError(f"image_size={image_size}: the scenes can't be told below 16 pixels; give 16 or more")
    parameters = {**counts, "image_size": image_size, "seed": seed, "labels": labels, "version": GENERATOR_VERSION}
    if _is_written(folder, parameters):
        return folder
    target = folder.resolve()  # a link to an empty folder stays a link
    partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}.partial")
    try:
        partial.mkdir(parents=True)
        _write_all(partial, parameters, progress)
        if target.is_dir() and not os.listdir(target):
            target.rmdir()
        partial.rename(target)
    except OSError:
        # Another process may have finished the same folder meanwhile; then its copy serves.
        if not _is_written(folder, parameters):
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _is_written(folder: Path, parameters: dict) -> bool:
    """Whether `folder` holds exactly these posts; False if it is missing or empty, else a ValueError."""
    try:
        if not any(folder.iterdir()):
            return False
        found = _difference(folder, parameters)
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        found = "it is, or lies in, a file"
    if found is None:
        return True
    raise ValueError(
        f"{folder} isn't empty and doesn't hold the built-in posts asked for: {found}. "
        "Name another folder, or delete this one to have it written anew."
    )


def _difference(folder: Path, parameters: dict) -> str | None:
    """What of `folder` differs from what these parameters give, in words; pictures are checked by name only."""
    try:
        stamp = json.loads((folder / STAMP_NAME).read_text(encoding="utf-8"))
        written, digests = dict(stamp["parameters"]), dict(stamp["metadata_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"it has no readable {STAMP_NAME}"
    for name, value in parameters.items():
        if written.get(name) != value:
            return f"it was written with {name}={written.get(name)!r}, not {value!r}"
    for split in SPLITS:
        metadata = folder / split / "metadata.jsonl"
        if not metadata.is_file() or hashlib.sha256(metadata.read_bytes()).hexdigest() != digests.get(split):
            return f"{split}/metadata.jsonl is missing or was changed"
        present = {name for name in os.listdir(folder / split) if not name.startswith(".")}
        expected = {"metadata.jsonl", *(_file_name(index) for index in range(parameters[split]))}
        if present != expected:
            return f"{split}/{min(present ^ expected)} is missing or not one of its files"
    return None


def _file_name(index: int) -> str:
    return f"{index:05d}.png"


def _write_all(folder: Path, parameters: dict, progress: bool) -> None:
    seen: set[bytes] = set()  # pictures of all splits
    digests = {}
    total = sum(parameters[split] for split in SPLITS)
    with tqdm(total=total, desc="Drawing the built-in posts", unit="post", disable=not progress) as bar:
        for split in SPLITS:
            (folder / split).mkdir()
            lines = []
            posts = plan_posts(split, parameters[split], seed=parameters["seed"], labels=parameters["labels"])
            for index, post in enumerate(posts):
                picture = _draw_new_picture(post, parameters["image_size"], seen)
                picture.save(folder / split / _file_name(index), compress_level=1)
                row = {"file_name": _file_name(index), "text": post.text, "label": post.label}
                lines.append(json.dumps(row) + "\n")
                bar.update()
            metadata = "".join(lines).encode()
            (folder / split / "metadata.jsonl").write_bytes(metadata)
            digests[split] = hashlib.sha256(metadata).hexdigest()
    (folder / "README.md").write_bytes(_readme(parameters).encode())
    stamp = {"generator": "hf_mamba.classification.builtin_data", "parameters": parameters, "metadata_sha256": digests}
    (folder / STAMP_NAME).write_bytes((json.dumps(stamp, indent=2) + "\n").encode())


def _draw_new_picture(post: Post, size: int, seen: set[bytes]) -> Image.Image:
    """The post's picture; should it equal one drawn before, in whatever split, the next that differs."""
    picture_seed = post.picture_seed
    while True:
        picture = draw_picture(post.scene, post.layout_seed, picture_seed, size)
        digest = hashlib.sha256(picture.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            return picture
        picture_seed += 1


def _readme(parameters: dict) -> str:
    table = LABELS[parameters["labels"]].items()
    named = [(cell, ", ".join(label) if isinstance(label, list) else label) for cell, label in table]
    cells = "\n".join(f"| {tone} | {scene} | {label} |" for (tone, scene), label in named)
    flags = " ".join(f"--{name} {value}" for name, value in parameters.items() if name != "version")
    return f"""# HF-Mamba built-in posts

Synthetic posts drawn by HF-Mamba (generator version {parameters["version"]}): a short text of positive or negative
tone with a picture of a pleasant or unpleasant scene.

| text | picture | label |
|---|---|---|
{cells}

The four cases are equally frequent in every split, so text alone or picture alone can't tell when the two
contradict each other. No text and no picture occurs in two splits.

Written by `python -m hf_mamba.classification.data.sets.builtin FOLDER {flags}`;
read it with `datasets.load_dataset("imagefolder", data_dir=FOLDER)`.
"""


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 1, with the reason on stderr, when an argument or the folder won't do."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_mamba.classification.data.sets.builtin",
        description="Draw the built-in posts: text and picture agree (sincere) or contradict each other (sarcastic).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", help="where to: missing, empty, or holding exactly these posts already")
    for split, count in (("train", 4000), ("validation", 400), ("test", 800)):
        parser.add_argument(f"--{split}", type=int, default=count, help="number of posts, a multiple of 4")
    parser.add_argument("--image_size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other posts")
    parser.add_argument("--labels", default="binary", help=f"one of {', '.join(LABELS)}")
    try:
        print(write_builtin_posts(**vars(parser.parse_args(arguments))))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
