"""`prepare` has one command for every data set, and lists them where none or a wrong one is named."""

from pathlib import Path

import pytest

from hf_mamba.classification import prepare
from hf_mamba.classification.data import sets


def refused(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        prepare.main([*argv])
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["twiter_sarcasm"], ["twitter-sarcasm", "raw", "out"], ["imagenet"]])
def test_a_missing_or_wrong_name_lists_what_there_is(capsys, argv):
    message = refused(capsys, *argv)
    assert all(f"\n  {name} " in message for name in prepare.DATA_SETS)
    assert ("Did you mean 'twitter_sarcasm'?" in message) == bool(argv and argv[0].startswith("twit"))


def test_every_data_set_of_the_folder_is_offered_with_a_description(capsys):
    parts = ("conversion", "builtin_scenes", "__init__")
    modules = {path.stem for folder in sets.__path__ for path in Path(folder).glob("*.py")} - {*parts}
    assert modules == {*prepare.DATA_SETS}
    with pytest.raises(SystemExit) as stop:
        prepare.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0
    assert all(prepare.in_words(module)[:30] in text for module in prepare.DATA_SETS.values())


def test_a_flag_with_an_impossible_value_is_a_usage_error(capsys):
    assert "--max_photos" in refused(capsys, "yelp_sentiment", "raw", "out", "--max_photos", "-1")
