"""The converters of the paper's data sets, on made-up raw files and, where $HF_MAMBA_DATA is set, real ones."""

import json
import os
import shlex
from pathlib import Path

import pytest
from documented import load, make_image

from hf_mamba.classification import prepare
from hf_mamba.classification.data.sets import conversion, mmsd2, twitter_sarcasm, yelp_sentiment


PAGE = Path(__file__).parents[2] / "docs" / "paper_data.md"
SPLITS = ("train", "validation", "test")

TWEETS = {
    "train.txt": [["1", "so  much fun  ", 1], ["2", "a <url> here", 1], ["3", "sarcastically calm\u2028", 0]],
    "valid2.txt": [["4", "what a joke", 1, 1], ["5", "nice # day", 1, 0], ["9", "oh", 0, 1]],
    "test2.txt": [["6", "jokes", 0, 0], ["7", "it 's\training", 0, 1], ["8", "half \ud83d of it", 1, 0]],
}


def review(name, rating=3, city="Boston", photos=("p",), **more):
    photos = [{"Caption": "x", "_id": f"{name}-{photo}"} for photo in photos]
    return {"_id": name, "Text": "good .|||bad .", "City": city, "Photos": photos, "Rating": rating} | more


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\r\n" for line in lines))
    return path


def draw(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image().convert("RGB").save(path, format="JPEG")


def written(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text("utf-8").split("\n")[:-1]]


def refused(name, *args):
    with pytest.raises((ValueError, OSError)) as error:
        prepare.main([name, *map(str, args)])
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def tweets(raw, monkeypatch):
    """A tiny Twitter Sarcasm of 2 + 2 + 2 posts; its counts are the expected ones."""
    counts = {"train": ("train.txt", 2, 1), "validation": ("valid2.txt", 2, 1), "test": ("test2.txt", 2, 1)}
    monkeypatch.setattr(twitter_sarcasm, "FILES", counts)
    for name, rows in TWEETS.items():
        write_lines(raw / "text" / name, [ascii(row) for row in rows])
    return raw


@pytest.fixture
def entries(raw, monkeypatch):
    """A tiny MMSD2.0 of two posts per split."""
    files = {"train": ("train.json", 2), "validation": ("valid.json", 2), "test": ("test.json", 2)}
    monkeypatch.setattr(mmsd2, "FILES", files)
    for number, (name, _) in enumerate(files.values()):
        rows = [{"image_id": 9**20 + number, "text": f"text {number}", "label": 1}]
        rows += [{"image_id": f"s{number}", "text": "other", "label": 0}]
        write_lines(raw / "text_json_final" / name, [json.dumps(rows, indent=1)])
    return raw


@pytest.fixture
def reviews(raw, monkeypatch):
    """A tiny Yelp Sentiment: 5 training and 5 validation reviews, and one per rating and city."""
    monkeypatch.setattr(yelp_sentiment, "CITIES", {k: (name, 5) for k, (name, _) in yelp_sentiment.CITIES.items()})
    monkeypatch.setattr(yelp_sentiment, "PUBLISHED", {"train": ("train.json", 5), "validation": ("valid.json", 5)})
    for key, (name, _) in yelp_sentiment.CITIES.items():
        rows = [review(f"{key}{rating}", rating, name, "abcd") for rating in range(1, 6)]
        write_lines(raw / "test" / f"{name}_test.json", map(json.dumps, rows))
    for name in ("train", "valid"):
        write_lines(raw / f"{name}.json", [json.dumps(review(f"{name}{rating}", rating)) for rating in range(1, 6)])
    return raw


def test_tweets_become_posts(tweets, out):
    prepare.main(["twitter_sarcasm", str(tweets), str(out)])
    assert sorted(os.listdir(out)) == ["test.jsonl", "train.jsonl", "validation.jsonl"]
    posts = [(post["id"], post["text"], post["label"]) for split in SPLITS for post in written(out, split)]
    assert posts == [  # dropped: those with a whole word of the list; the human label counts; no text is touched
        ("1", "so  much fun  ", "sarcastic"),
        ("3", "sarcastically calm\u2028", "not_sarcastic"),
        ("5", "nice # day", "not_sarcastic"),
        ("9", "oh", "sarcastic"),
        ("7", "it 's\training", "sarcastic"),
        ("8", "half \ud83d of it", "not_sarcastic"),
    ]


def test_the_script_reads_tweets_and_images(tweets, out, capsys, tmp_path, monkeypatch):
    """From wherever it runs, in folders of folders; a missing image is counted, the text stays."""
    images = tweets / "dataset_image"
    draw(
        images / "1.jpg",
        images / "more" / "5.JPG",
        images / "7.jpg",
        images / ".3.jpg",
        images / "._3.jpg",
        images / "2.jpg",
    )
    monkeypatch.chdir(tmp_path)
    prepare.main(["twitter_sarcasm", "raw", "out"])
    message = capsys.readouterr().out
    assert "3 of 6 images are not in raw/dataset_image (3, 9, 8, ...)" in message
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    posts = load(dataset_name=str(out))
    assert posts.num_images == {"train": [1, 0], "validation": [1, 0], "test": [1, 0]}
    paths = [path for split in SPLITS for images in posts.splits[split]["images"] for path in images]
    assert [os.path.basename(path) for path in paths] == ["1.jpg", "5.JPG", "7.jpg"]
    assert all(map(os.path.isfile, paths))
    assert posts.label_names == ["not_sarcastic", "sarcastic"]
    assert posts.splits["train"]["text"][0] == "so  much fun  "


def test_raw_data_and_posts_can_move_together(tweets, tmp_path):
    draw(tweets / "dataset_image" / "1.jpg")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    prepare.main(["twitter_sarcasm", str(tweets), str(tmp_path / "link" / "out")])
    tmp_path.rename(tmp_path.with_name("moved"))
    path = tmp_path.with_name("moved") / "deep" / "er" / "out"
    (found,) = load(dataset_name=str(path)).splits["train"]["images"][0]
    assert os.path.isfile(found)


def test_images_elsewhere(tweets, out, tmp_path):
    draw(tmp_path / "photos" / "1.jpg")
    prepare.main(["twitter_sarcasm", str(tweets), str(out), "--pictures", str(tmp_path / "photos")])
    assert [bool(post["images"]) for post in written(out, "train")] == [True, False]
    message = refused("twitter_sarcasm", tweets, out, "--overwrite", "--pictures", tmp_path / "fotos")
    assert "--pictures" in message and "fotos" in message


def test_without_images_it_says_so(tweets, out, capsys):
    prepare.main(["twitter_sarcasm", str(tweets), str(out)])
    assert "there is no folder dataset_image" in capsys.readouterr().out
    assert load(dataset_name=str(out)).num_images["test"] == [0, 0]


BAD_LINES = {
    "['n', 'unended": "not a Python literal",
    "['n', 'sum', 1 + 1]": "not a Python literal",
    "{[]: 1}": "not a Python literal",
    "(" * 500: "not a Python literal",
    "['n', 'too few']": "2 fields, not 3",
    "['n', 'too many', 1, 1]": "4 fields, not 3",
    "('n', 'tuple', 1)": "a Python tuple, not a list",
    "['n', 'label', 2]": "0 or 1, not 2",
    "['n', 'label', True]": "0 or 1, not a bool",
    "['n', 'label', '1']": "0 or 1, not a str",
    "[9, 'number', 1]": "must be strings",
    "['n', None, 1]": "must be strings",
    "['1', 'twice', 1]": "its id is that of",
    b"['n', '\xe9', 1]": "not UTF-8 (byte 0xe9)",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=str)
def test_bad_lines_are_named_and_stop_it(tweets, out, capsys, line):
    good = [ascii(row) for row in TWEETS["train.txt"]]
    write_lines(tweets / "text" / "train.txt", [good[0], "", line, *good[1:]])
    message = refused("twitter_sarcasm", tweets, out)
    assert "1 rows can't be understood" in message and "--allow_partial" in message
    assert not out.exists()
    (listed,) = (message for message in capsys.readouterr().out.split("\n") if "train.txt, line 3: " in message)
    assert BAD_LINES[line] in listed
    prepare.main(["twitter_sarcasm", str(tweets), str(out), "--allow_partial"])
    assert [post["id"] for post in written(out, "train")] == ["1", "3"]


def test_a_hostile_line_is_not_run(tweets, out, tmp_path):
    victim = tmp_path / "was_run"
    calls = [f"__import__('pathlib').Path({str(victim)!r}).touch()", f"['9', open({str(victim)!r}, 'w').name, 1]"]
    write_lines(tweets / "text" / "test2.txt", calls)
    assert "2 rows can't be understood" in refused("twitter_sarcasm", tweets, out)
    assert not victim.exists()


def test_an_endless_line_is_not_parsed(tweets, out, monkeypatch, capsys):
    monkeypatch.setattr(conversion, "MAX_LINE", 100)
    monkeypatch.setattr(twitter_sarcasm, "parse_line", lambda line: pytest.fail("parsed") if len(line) > 100 else [])
    write_lines(tweets / "text" / "train.txt", ["['n', '" + "x" * 100 + "', 1]"])
    refused("twitter_sarcasm", tweets, out)
    assert "train.txt, line 1: longer than 100 bytes" in capsys.readouterr().out


def test_the_first_ten_bad_lines_are_listed(tweets, out, capsys):
    write_lines(tweets / "text" / "valid2.txt", ["?"] * 25)
    assert "25 rows can't be understood" in refused("twitter_sarcasm", tweets, out, "--allow_partial")
    message = capsys.readouterr().out
    assert message.count("not a Python literal") == 10 and "15 more" in message


def test_messages_quote_no_post(tweets, out, capsys):
    write_lines(tweets / "text" / "train.txt", ["['9', 'secret words', 'secret label']", "['secret id', 'secret'"])
    assert "secret" not in refused("twitter_sarcasm", tweets, out) + capsys.readouterr().out


def test_an_id_of_another_split_is_a_bad_line(tweets, out, capsys):
    write_lines(tweets / "text" / "test2.txt", ["['1', 'of train', 0, 0]"])
    refused("twitter_sarcasm", tweets, out)
    message = capsys.readouterr().out
    assert "test2.txt, line 1: its id is that of" in message and "train.txt, line 1" in message


def test_wrong_counts_stop_it_and_leave_nothing(tweets, out, capsys):
    write_lines(tweets / "text" / "train.txt", [ascii(row) for row in (["1", "a", 0], ["2", "b", 0], ["3", "c", 0])])
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    message = refused("twitter_sarcasm", tweets, out)
    assert (
        "2 posts expected, 3 found" in message
        and "1 sarcastic expected, 0 found" in message
        and "train.txt" in message
    )
    assert os.listdir(out) == ["notes.txt"]
    prepare.main(["twitter_sarcasm", str(tweets), str(out), "--allow_partial"])
    assert "note: " in capsys.readouterr().out and len(written(out, "train")) == 3


def test_missing_raw_files_are_named(tweets, out, tmp_path):
    assert "no such folder" in refused("twitter_sarcasm", tmp_path / "nowhere", out)
    (tweets / "text" / "train.txt").unlink()
    message = refused("twitter_sarcasm", tweets, out)
    assert f"1 of 3 raw files are missing: {tweets / 'text' / 'train.txt'} (train, 2 posts)" in message
    assert not out.exists()
    prepare.main(["twitter_sarcasm", str(tweets), str(out), "--allow_partial"])
    assert sorted(os.listdir(out)) == ["test.jsonl", "validation.jsonl"]
    for name in ("valid2.txt", "test2.txt"):
        (tweets / "text" / name).unlink()
    assert "3 of 3" in refused("twitter_sarcasm", tweets, tmp_path / "other", "--allow_partial")


def test_an_earlier_conversion_is_replaced_only_when_asked_and_only_as_a_whole(tweets, out):
    prepare.main(["twitter_sarcasm", str(tweets), str(out)])
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "--overwrite" in refused("twitter_sarcasm", tweets, out)
    write_lines(tweets / "text" / "valid2.txt", ["['5', 'new', 0, 0]", "?"])
    refused("twitter_sarcasm", tweets, out, "--overwrite")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tweets / "text" / "train.txt").unlink()
    prepare.main(["twitter_sarcasm", str(tweets), str(out), "--overwrite", "--allow_partial"])
    assert sorted(os.listdir(out)) == ["test.jsonl", "validation.jsonl"]
    assert written(out, "validation")[0]["text"] == "new"


def test_the_output_folder_is_not_the_raw_one_nor_a_file(tweets, tmp_path):
    assert "folder of the raw files" in refused("twitter_sarcasm", tweets, tweets / ".." / "raw")
    (tmp_path / "file").touch()
    assert "is a file" in refused("twitter_sarcasm", tweets, tmp_path / "file")


@pytest.mark.parametrize("repository", [False, True])
def test_mmsd2(entries, out, capsys, repository):
    """Given the folder `data` of its repository, or the repository; image ids are numbers or strings."""
    if repository:
        entries = entries.rename(entries.with_name("data")).parent
    number = str(9**20 + 1)
    draw((entries / "data" if repository else entries) / "dataset_image" / f"{number}.jpg")
    prepare.main(["mmsd2", str(entries), str(out)])
    assert "5 of 6 images" in capsys.readouterr().out
    post, _ = written(out, "validation")
    assert (post["id"], post["text"], post["label"]) == (number, "text 1", "sarcastic")
    posts = load(dataset_name=str(out))
    assert os.path.isfile(posts.splits["validation"]["images"][0][0])


BAD_ENTRIES = {
    "{}": "image_id",
    '{"image_id": 1.5, "text": "t", "label": 0}': "image_id",
    '{"image_id": "", "text": "t", "label": 0}': "image_id",
    '{"image_id": 1, "text": null, "label": 0}': "text",
    '{"image_id": 1, "text": "t"}': "not a NoneType",
    '{"image_id": 1, "text": "t", "label": true}': "not a bool",
    '{"image_id": 1, "text": "t", "label": 3}': "not 3",
}


@pytest.mark.parametrize("entry", BAD_ENTRIES)
def test_bad_entries_of_mmsd2(entries, out, capsys, entry):
    (entries / "text_json_final" / "test.json").write_text(f'[{{"image_id": 5, "text": "t", "label": 1}},\n{entry}]')
    assert "1 rows can't be understood" in refused("mmsd2", entries, out)
    message = capsys.readouterr().out
    assert "test.json, entry 2 (line 2): " in message and BAD_ENTRIES[entry] in message
    assert not out.exists()


def test_broken_json_and_wrong_counts_of_mmsd2(entries, out):
    path = entries / "text_json_final" / "train.json"
    path.write_text('[{"image_id": 5,\n')
    assert "train.json, line" in refused("mmsd2", entries, out) and not out.exists()
    path.write_text(json.dumps([{"image_id": number, "text": "t", "label": 1} for number in range(3)]))
    assert "2 posts expected, 3 found" in refused("mmsd2", entries, out)


def test_yelp(reviews, out):
    draw(
        *(
            reviews / "photos" / f"{key}{rating}-{photo}.jpg"
            for key in ("BO", "SF")
            for rating in (1, 5)
            for photo in "abd"
        )
    )
    prepare.main(["yelp_sentiment", str(reviews), str(out)])
    posts = load(dataset_name=str(out), group_column_name="city")
    assert posts.problem_type == "single_label_classification" and posts.label_names == ["1", "2", "3", "4", "5"]
    assert posts.counts() == "5 train, 5 validation, 25 test"
    assert posts.splits["test"]["text"][0] == "good . bad ."
    assert sorted(set(posts.column("test", "group"))) == sorted(name for name, _ in yelp_sentiment.CITIES.values())
    by_id = {post["id"]: post for post in written(out, "test")}
    assert [os.path.basename(path) for path in by_id["BO5"]["images"]] == ["BO5-a.jpg", "BO5-b.jpg"]  # of a, b and c
    assert by_id["BO2"]["images"] == [] and set(by_id["BO2"]) == {"id", "text", "images", "label", "city"}
    assert os.path.isfile(posts.splits["test"]["images"][0][1])


@pytest.mark.parametrize("flag, photos", [("0", "abcd"), ("1", "a"), ("9", "abcd")])
def test_photos_of_a_review(reviews, out, flag, photos):
    draw(*(reviews / "photos" / f"NY1-{photo}.jpg" for photo in "abcd"))
    prepare.main(["yelp_sentiment", str(reviews), str(out), "--max_photos", flag])
    (post,) = (post for post in written(out, "test") if post["id"] == "NY1")
    assert [Path(path).stem for path in post["images"]] == [f"NY1-{photo}" for photo in photos]


def test_splits_of_the_cities_that_are_there(reviews, out, tmp_path):
    """Also where the files of the cities lie in no folder of their own."""
    for name in ("train.json", "valid.json", "test/Los Angeles_test.json", "test/San Francisco_test.json"):
        (reviews / name).unlink()
    message = refused("yelp_sentiment", reviews, out)
    assert "4 of 7" in message and "Los Angeles_test.json (test, 5 posts)" in message and "--train_city" in message
    flags = ["--train_city", "NY", "--validation_city", "CH", "--test_city", "BO"]
    prepare.main(["yelp_sentiment", str(reviews / "test"), str(out), *flags])
    cities = [{post["city"] for post in written(out, split)} for split in SPLITS]
    assert cities == [{"New York"}, {"Chicago"}, {"Boston"}]
    assert "in train and in test" in refused("yelp_sentiment", reviews, tmp_path / "x", "--train_city", "NY")
    prepare.main(["yelp_sentiment", str(reviews), str(tmp_path / "part"), "--allow_partial"])
    assert len(written(tmp_path / "part", "test")) == 15


BAD_REVIEWS = {
    "{": "not valid JSON",
    "[" * 100_000: "not valid JSON",
    "[]": "a JSON list, not an object",
    json.dumps(review("x", 6)): "Rating",
    json.dumps(review("x", 4.0)): "Rating",
    json.dumps(review("x", "4")): "Rating",
    json.dumps(review("x", Text=None)): "Text",
    json.dumps(review("x", City=1)): "City",
    json.dumps(review("x", Photos="a")): "Photos",
    json.dumps(review("x", Photos=[{"Caption": ""}])): "Photos",
    json.dumps(review("BO1")): "its id is that of",
}


@pytest.mark.parametrize("number", range(len(BAD_REVIEWS)))
def test_bad_reviews(reviews, out, capsys, number):
    line, reason = list(BAD_REVIEWS.items())[number]
    path = reviews / "test" / "Boston_test.json"
    path.write_text(path.read_text() + line + "\n")
    assert "1 rows can't be understood" in refused("yelp_sentiment", reviews, out)
    assert f"Boston_test.json, line 6: {reason}" in capsys.readouterr().out
    assert not out.exists()
    prepare.main(["yelp_sentiment", str(reviews), str(out), "--allow_partial"])
    assert len(written(out, "test")) == 25


def test_a_cities_file_is_of_that_city(reviews, out, capsys):
    write_lines(reviews / "test" / "Boston_test.json", [json.dumps(review(f"x{i}", city="Chicago")) for i in range(5)])
    refused("yelp_sentiment", reviews, out)
    assert "Boston_test.json, line 1: City" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["twitter_sarcasm", "mmsd2", "yelp_sentiment"])
def test_help_lists_the_flags(capsys, name):
    with pytest.raises(SystemExit):
        prepare.main([name, "--help"])
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("raw_dir", "output_dir", "--pictures", "--allow_partial", "--overwrite"))


def documented_conversions():
    """The commands of the page that are followed by what they print, and that."""
    blocks = PAGE.read_text("utf-8").split("```")[1::2]
    pairs = zip(blocks, blocks[1:])
    return [(bash, text) for bash, text in pairs if bash.startswith("bash\npython -m") and text.startswith("text\n")]


@pytest.mark.skipif("HF_MAMBA_DATA" not in os.environ, reason="the real data are not here")
@pytest.mark.parametrize("number", range(len(documented_conversions())))
def test_the_real_data_as_the_page_says(tmp_path, monkeypatch, capsys, number):
    command, printed = documented_conversions()[number]
    words = shlex.split(os.path.expandvars(command.removeprefix("bash\n").replace("\\\n", " ")))
    monkeypatch.chdir(tmp_path)
    assert words[:3] == ["python", "-m", "hf_mamba.classification.prepare"]
    prepare.main(words[3:])
    assert capsys.readouterr().out == printed.removeprefix("text\n")


@pytest.mark.skipif("HF_MAMBA_DATA" not in os.environ, reason="the real data are not here")
def test_counts_of_the_real_data(tmp_path):
    raw = Path(os.environ["HF_MAMBA_DATA"])
    prepare.main(["twitter_sarcasm", str(raw / "twitter_sarcasm_raw"), str(tmp_path / "tweets")])
    posts = load(dataset_name=str(tmp_path / "tweets"))
    counts = {split: (len(rows), sum(rows["label"])) for split, rows in posts.splits.items()}
    assert counts == {"train": (19816, 8642), "validation": (2410, 959), "test": (2409, 959)}
    flags = ["--train_city", "NY", "--validation_city", "CH", "--test_city", "BO"]
    prepare.main(["yelp_sentiment", str(raw / "yelp_raw"), str(tmp_path / "reviews"), *flags])
    assert load(dataset_name=str(tmp_path / "reviews")).counts() == "1,715 train, 325 validation, 315 test"


@pytest.mark.skipif("HF_MAMBA_DATA" not in os.environ, reason="the real data are not here")
def test_the_leak_that_the_page_reports(tmp_path):
    prepare.main(
        ["twitter_sarcasm", os.path.join(os.environ["HF_MAMBA_DATA"], "twitter_sarcasm_raw"), str(tmp_path / "out")]
    )
    for split, accuracy in {"train": ".984", "validation": ".954", "test": ".937"}.items():
        posts = written(tmp_path / "out", split)
        right = sum(
            ("  " in post["text"] or post["text"].endswith(" ")) == (post["label"] == "sarcastic") for post in posts
        )
        assert f"{right / len(posts):.3f}"[1:] == accuracy and accuracy in PAGE.read_text("utf-8")
