"""Tests that README.md's example runs, and that its names and links exist."""

import pathlib
import re

import pytest

from kullback import experiments
from kullback.experiments import catalog


def test_the_example_runs(
    root: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """In an environment that takes seconds, and for fewer steps."""
    (code,) = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)
    assert "minatar/breakout" in code and "300_000" in code
    code = code.replace("minatar/breakout", "toy/chain").replace("300_000", "1_000")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"experiments": experiments})
    shown = capsys.readouterr().out.splitlines()
    assert any(line.startswith("500 ") for line in shown), shown
    assert (tmp_path / "breakout.safetensors").is_file()


def test_the_commands_name_what_there_is(root: pathlib.Path):
    text = (root / "README.md").read_text()
    named = re.findall(r"kullback train ([a-z][a-z-]*) ([a-z]+/[\w-]+)", text)
    assert len(named) >= 6
    for agent, environment in named:
        catalog.check(agent, environment)
