"""Tests that README.md's example runs; docs_test.py has its links, names and commands."""

import pathlib
import re

import pytest

from kullback import experiments


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
