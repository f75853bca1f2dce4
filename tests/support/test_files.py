"""Small files are written whole or not at all, and what can't be read or written is named with the fix."""

import errno
import json
import os
import stat

import pytest
import yaml

from hf_mamba.classification.support import files
from hf_mamba.classification.support.files import read_mapping, read_text, write_json, write_text, write_yaml


@pytest.fixture
def file(tmp_path):
    """A file that holds something already, alone in its folder."""
    path = tmp_path / "notes.txt"
    path.write_text("earlier", encoding="utf-8")
    return path


def fail(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device", "/some/temporary.tmp")


@pytest.mark.parametrize("step", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("error", [fail, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)])
def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(file, monkeypatch, step, error):
    monkeypatch.setattr(files.os, step, error)
    with pytest.raises((OSError, KeyboardInterrupt)):
        write_text(file, "later")
    assert file.read_text() == "earlier" and [*file.parent.iterdir()] == [file]


def test_a_first_write_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "new.txt", "half a surrogate pair \ud83d")
    assert not [*tmp_path.iterdir()]


def test_what_can_not_be_written_is_named_and_not_the_temporary_file(file, monkeypatch):
    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError) as error:
        write_text(file, "later")
    assert error.value.filename == str(file) and error.value.errno == errno.ENOSPC
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere\. Make it"):
        write_text(file.parent / "nowhere" / "notes.txt", "later")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_a_file_keeps_its_permissions(file, mode):
    file.chmod(mode)
    write_text(file, "later")
    assert stat.S_IMODE(file.stat().st_mode) == mode and file.read_text() == "later"


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    write_text(tmp_path / "ours", "")
    (tmp_path / "other").touch()
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_link_stays_a_link(file):
    (link := file.with_name("link")).symlink_to(file)
    write_text(link, "later")
    assert link.is_symlink() and file.read_text() == "later"


def test_what_was_written_is_read(tmp_path):
    content = {"b": 1, "a": ["ä", None], "text": "two\nlines"}
    write_json(tmp_path / "x.json", content)
    write_yaml(tmp_path / "x.yaml", content)
    for path in (tmp_path / "x.json", tmp_path / "x.yaml"):
        assert read_mapping(path) == content and [*read_mapping(path)] == [*content]
        assert "ä" in read_text(path) and read_text(path).endswith("\n")
    assert json.loads(read_text(tmp_path / "x.json")) == yaml.safe_load(read_text(tmp_path / "x.yaml"))
    assert os.listdir(tmp_path)[0].startswith("x")
    (tmp_path / "empty.yaml").touch()
    assert read_mapping(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("a.json", b"{", "can't be read: .*line 1"),
        ("a.json", b"", "can't be read: .*line 1"),
        ("a.json", b"[" * 100_000, "can't be read"),
        ("a.json", b"[1]", "holds a list, but must hold a mapping"),
        ("a.yaml", b"a: [1\nb: 2", "can't be read: .*line 2"),
        ("a.yaml", b"words", "holds a str, but must hold a mapping"),
        ("a.yaml", b"\xff", "can't be read: it isn't UTF-8 text .*Save it as UTF-8"),
    ],
)
def test_what_can_not_be_read_is_named_with_the_fix(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)^Recipe \S*{name} {reason}") as error:
        read_mapping(tmp_path / name, "Recipe", fix="Write it anew.")
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("Write it anew.") or b"\xff" in content


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^Recipe \S*a.yaml: there is no such file\.$"):
        read_mapping(tmp_path / "a.yaml", "Recipe")
