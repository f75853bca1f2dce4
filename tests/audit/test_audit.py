"""The audit finds what is planted, and nothing where nothing is."""

import json
import random

import numpy as np
import pytest
from audited import audit_of, encoded, levels, noise, plain_posts, score_of, write_posts
from huggingface_hub import ModelCard
from PIL import Image
from running import SMALL, refused

from hf_mamba import run_classification
from hf_mamba.classification.audit import plots as audit_plots
from hf_mamba.classification.audit.audit import audit_posts, load_for_audit
from hf_mamba.classification.audit.probes import Probe, score
from hf_mamba.classification.data import DataArguments
from hf_mamba.classification.data.sets.builtin import write_builtin_posts


def plant(splits, change, share=0.9, seed=1):
    """Calls `change(row, is_a)`; `is_a` predicts the label in `share` of the posts, 0.5 for the clean twin."""
    draw = random.Random(seed)
    for rows in splits.values():
        for row in rows:
            change(row, (row["label"] == "a") == (draw.random() < share))
    return splits


def double_space(row, is_a):
    row["text"] = row["text"].replace(" ", "  " if is_a else " ", 1)


def trailing_space(row, is_a):
    row["text"] += " " * is_a


def one_token(row, is_a):
    if is_a:
        row["text"] += " <num>"


def longer(row, is_a):
    row["text"] += " mora" * (8 * is_a)


def marks(row, is_a):
    row["text"] += "!" * is_a


def hashtag(row, is_a):
    row["text"] += f" #{row['id']}" * is_a


def id_prefix(row, is_a):
    row["id"] = f"{'s' if is_a else 't'}{row['id']}"


def id_number(row, is_a):
    row["id"] = str(int(row["id"]) + 10**9 * is_a)


def file_size(row, is_a):
    row["image"] = encoded(row["image"], "JPEG", quality=95 if is_a else 40)


def file_format(row, is_a):
    row["image"] = encoded(row["image"], "BMP" if is_a else "PNG")


def exif(row, is_a):
    entries = Image.Exif()
    entries[0x010E] = "description" if is_a else ""
    row["image"] = encoded(row["image"], "JPEG", **({"exif": entries} if is_a else {}))


def wide(row, is_a):
    row["image"] = row["image"].resize((60 if is_a else 48, 40))


def bright(row, is_a):
    row["image"] = Image.eval(row["image"], (lambda v: v // 2 + 128) if is_a else (lambda v: v // 2))


def no_image(row, is_a):
    if is_a:
        row["image"] = None


RAW = "white space, raw text"
FILES = "image files: size, format, EXIF"
PLANTED = [
    (double_space, RAW, False),
    (trailing_space, RAW, False),
    (one_token, "hashtags, handles, URLs, placeholders", False),
    (longer, "length", False),
    (marks, "punctuation, capitals, digits", False),
    (hashtag, "hashtags, handles, URLs, placeholders", False),
    (id_prefix, "ids", False),
    (id_number, "ids", False),
    (file_size, FILES, True),
    (file_format, FILES, True),
    (exif, FILES, True),
    (wide, "width and height of images", True),
    (bright, "mean colour and contrast", True),
    (no_image, "presence of text or image", True),
]


@pytest.mark.parametrize("change, about, images", PLANTED, ids=[planted[0].__name__ for planted in PLANTED])
def test_a_planted_leak_is_found_and_its_clean_twin_is_clean(change, about, images, tmp_path):
    audit = audit_of(tmp_path / "leak", plant(plain_posts(with_images=images), change))
    assert levels(audit)[about] == "leak" and audit.verdict == "leak"
    found = score_of(audit, about)
    assert 0.8 < found.accuracy < 1 and found.accuracy_low < found.accuracy < found.accuracy_high
    twin = audit_of(tmp_path / "clean", plant(plain_posts(with_images=images), change, share=0.5))
    assert levels(twin) == {} and twin.verdict == "clean"


def test_white_space_is_gone_once_collapsed(tmp_path):
    audit = audit_of(tmp_path, plant(plain_posts(), double_space))
    raw, collapsed = score_of(audit, RAW), score_of(audit, "white space, collapsed")
    assert raw.lift > 0.3 and collapsed.lift == 0 and collapsed.level == "clean"
    assert "do not trust results on the raw text" in audit.findings[0].text


def test_a_token_of_one_class_only_is_listed(tmp_path):
    splits = plain_posts()
    for rows in splits.values():
        for row in rows[::2]:
            row["text"] += " zeta" if row["label"] == "a" else ""
    audit = audit_of(tmp_path, splits)
    assert levels(audit)["tokens of one class only"] in ("warning", "leak")
    token = score_of(audit, "tokens of one class only").details["tokens"][0]
    expected = sum("zeta" in row["text"] for row in splits["train"])
    assert token["class"] == "a" and token["train"] == expected and token["token"] == "zeta"
    assert token["scored"] == {"a": sum("zeta" in row["text"] for row in splits["test"])}


def test_sorted_files_are_a_warning_never_a_leak(tmp_path):
    splits = plain_posts()
    for rows in splits.values():
        rows.sort(key=lambda row: row["label"])
    audit = audit_of(tmp_path, splits)
    assert levels(audit) == {
        "row order: place in the file": "warning",
        "row order: label of the row before": "warning",
    }


def test_intervals_hold_for_few_posts_as_for_many():
    truth = np.array([0] * 3 + [1] * 3)
    few = score(Probe("p", "artefact", truth), truth, 0, num_probes=1)
    assert few.lift == 0.5 and few.lift_low < 0 and few.level == "clean"  # three heads in a row prove nothing
    many = np.tile(truth, 100)
    assert score(Probe("p", "artefact", many), many, 0, num_probes=20).level == "leak"
    wider = score(Probe("p", "artefact", 1 - many), many, 0, num_probes=20)
    assert wider.lift == -0.5 and wider.level == "clean"
    assert score(Probe("p", "order", many), many, 0, num_probes=20).level == "warning"


def test_several_labels_and_numbers_are_audited_as_classes(tmp_path):
    for name, labels in (("several", {"a": ["x", "y"], "b": []}), ("numbers", {"a": 0.25, "b": 1.75})):
        splits = plant(plain_posts(), double_space)
        for rows in splits.values():
            for row in rows:
                row["label"] = labels[row["label"]]
        audit = audit_of(tmp_path / name, splits)
        assert levels(audit)[RAW] == "leak"
        assert audit.classes != "label"


def test_images_that_cant_be_read_are_counted(tmp_path):
    splits = plain_posts(with_images=True)
    splits["train"][3]["image"] = b"no image at all"
    flags = write_posts(tmp_path / "posts", splits)
    (tmp_path / "posts" / "test0.png").unlink()
    argv = ["--do_audit", "--disable_tqdm", "True", "--output_dir", str(tmp_path / "out")]
    run_classification.main([*argv, *(f"--{name}={value}" for name, value in flags.items())])
    audit = json.loads((tmp_path / "out" / "audit.json").read_text("utf-8"))
    assert audit["pictures"] == {"read": 598, "unreadable": 1, "missing": 1} and audit["verdict"] == "warning"


def flags_of(flags, *more):
    return ["--do_audit", "--disable_tqdm=True", *(f"--{name}={value}" for name, value in flags.items()), *more]


def test_the_files_and_the_card_of_a_run_report_what_was_found(tmp_path, capsys):
    splits = plant(plain_posts(sizes=(("train", 120), ("validation", 40), ("test", 120))), double_space)
    flags = write_posts(tmp_path / "posts", splits)
    out = tmp_path / "out"
    run_classification.main(flags_of(flags, f"--output_dir={out}"))
    printed = capsys.readouterr().out
    assert "Verdict: leak" in printed and "| white space, raw text" in printed
    assert (out / "audit.md").read_text("utf-8").count("leak") > 1
    assert Image.open(out / "audit.png").width > 1000
    assert sorted(path.name for path in out.iterdir()) == ["audit.json", "audit.md", "audit.png"]
    # an audit leaves the folder free for a run, whose card then reports it
    run_classification.main(
        [
            "--do_train",
            *SMALL,
            *flags_of(flags)[2:],
            f"--output_dir={out}",
            "--num_train_epochs=1",
            "--scan_implementation=torch",
        ]
    )
    card = ModelCard.load(out / "README.md").text
    assert "Audit of the data (`--do_audit`): leak" in card and "white space, raw text: this rule alone" in card


def test_without_matplotlib_all_but_the_plots_are_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audit_plots, "find_spec", lambda name: None)
    flags = write_posts(tmp_path / "posts", plain_posts(sizes=(("train", 60), ("test", 40))))
    run_classification.main(flags_of(flags, f"--output_dir={tmp_path / 'out'}"))
    assert 'pip install "hf-mamba[plots]"' in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["audit.json", "audit.md"]


@pytest.mark.parametrize(
    "change, expected",
    [
        (["--seeds", "1", "2"], "audit them first"),
        (["--streaming", "--dataset_name", "x"], "--streaming"),
        (["--validation_split", "0"], "--test_file"),
    ],
)
def test_what_cant_be_audited_is_refused_in_a_line(change, expected, tmp_path, monkeypatch):
    flags = write_posts(tmp_path / "posts", plain_posts(sizes=(("train", 20),)))
    message = refused(monkeypatch, flags_of(flags, f"--output_dir={tmp_path / 'out'}", *change))
    assert expected in message and "\n" not in message


def test_an_audit_is_not_overwritten_unless_asked(tmp_path, monkeypatch):
    flags = write_posts(tmp_path / "posts", plain_posts(sizes=(("train", 60), ("test", 40))))
    argv = flags_of(flags, f"--output_dir={tmp_path / 'out'}")
    run_classification.main(argv)
    assert "audit.json" in refused(monkeypatch, argv)
    run_classification.main([*argv, "--overwrite_output_dir"])


def test_the_built_in_posts_are_clean(tmp_path):
    folder = write_builtin_posts(tmp_path / "b", train=400, validation=40, test=160, image_size=32, progress=False)
    posts = load_for_audit(DataArguments(dataset_name=str(folder)), seed=0)
    assert audit_posts(posts, progress=False).findings == []


def test_noise_is_like_no_other():
    assert noise(1).tobytes() == noise(1).tobytes() != noise(2).tobytes()
