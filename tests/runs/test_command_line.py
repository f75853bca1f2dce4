"""Commands tell what a user can mend in a line, and hide nothing else."""

import pytest

from hf_mamba.classification.support.command_line import run_command


def fails_with(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize("error", [ValueError("no such label"), FileNotFoundError("no such file")])
def test_a_mistake_is_a_line_and_with_the_variable_set_a_traceback(error, monkeypatch):
    monkeypatch.delenv("HF_MAMBA_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as told:
        run_command(fails_with(error))
    assert told.value.code == f"error: {error}"
    monkeypatch.setenv("HF_MAMBA_TRACEBACK", "1")
    with pytest.raises(type(error)):
        run_command(fails_with(error))


def test_a_fault_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.delenv("HF_MAMBA_TRACEBACK", raising=False)
    with pytest.raises(KeyError):
        run_command(fails_with(KeyError("ours")))
