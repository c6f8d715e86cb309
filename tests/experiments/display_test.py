"""Tests of experiments/display.py: a reader that goes away ends no work."""

import io
import pathlib
import subprocess
import sys

import pytest

from kullback import experiments
from kullback.experiments import display

PROGRAM = pathlib.Path(sys.executable).with_name("kullback")


def shell(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script, "bash", PROGRAM, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "reader",
    [
        pytest.param("2>&1 | true; exit ${PIPESTATUS[0]}", id="gone", marks=pytest.mark.slow),
        pytest.param("> /dev/full 2>&1", id="full", marks=pytest.mark.slow),
        pytest.param(">&- 2>&-", id="closed", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_trained_whoever_reads(reader: str, tmp_path: pathlib.Path):
    out = tmp_path / "run"
    done = shell(f'"$@" {reader}', "train", "dqn", "toy/chain", "--steps", 1000, "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert experiments.load(out).env_steps == 1000


def test_what_only_prints_ends_as_others_do():
    done = shell('(sleep 1; "$@"; echo $? >&2) | true', "list")
    assert done.stderr == "141\n"


class Terminal(io.StringIO):
    def __init__(self, is_one: bool):
        super().__init__()
        self._is_one = is_one

    def isatty(self) -> bool:
        return self._is_one


EVIL = "\x1b]0;title\x07a\x9bb\rc\u202ed\tee\n\udcff"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_is_given_text_alone(is_terminal: bool, monkeypatch: pytest.MonkeyPatch):
    stream = Terminal(is_terminal)
    monkeypatch.setattr(sys, "stdout", stream)
    with display.plain():
        print(EVIL, end="", flush=True)
        assert sys.stdout.isatty() is is_terminal
    assert sys.stdout is stream
    spelled = "\\x1b]0;title\\x07a\\x9bb\\rc\\u202ed\tee\n\\udcff"
    assert stream.getvalue() == (spelled if is_terminal else EVIL)  # A file has what there is.


def test_words_of_any_language_are_left_as_they_are():
    text = "\N{ALEF SYMBOL} \N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{NO-BREAK SPACE}x"
    assert display.printable(text) == text
    assert display.line("a\n\tb\x1b") == "a b\\x1b"
