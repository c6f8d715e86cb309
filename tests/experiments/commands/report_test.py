"""Tests of experiments/commands/report.py: what the command line hands on."""

import argparse
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from kullback.experiments import report
from kullback.experiments.commands import report as command


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["report", *arguments])


def test_a_report_of_a_real_run(
    tmp_path: pathlib.Path, chain_run: Any, capsys: pytest.CaptureFixture[str]
):
    options = parse(str(chain_run.path), "--out", str(tmp_path / "out"), "--steps", "2_000")
    assert options.command(options) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {tmp_path / 'out' / 'index.html'}"
    # The score after 2,000 of 4,000 steps.
    score = f"{chain_run.rows[1]['recent_return']}"
    assert score in (tmp_path / "out" / "toy-scores.csv").read_text()


def test_every_option_is_handed_on(monkeypatch: pytest.MonkeyPatch):
    given: dict[str, Any] = {}

    def write(runs: Any, out: Any, **options: Any) -> None:
        given.update(options, runs=runs, out=out)

    monkeypatch.setattr(report, "write", write)
    text = (
        "a b --out c --baseline dqn --denominator human --score evaluation --steps 5e3 "
        "--published btr --compare m-dqn:al-dqn"
    )
    options = parse(*text.split())
    assert options.command(options) == 0
    assert given == {
        "runs": [pathlib.Path("a"), pathlib.Path("b")],
        "out": pathlib.Path("c"),
        "baseline": "dqn",
        "denominator": "human",
        "score": "evaluation",
        "steps": 5_000,
        "compare": ["m-dqn:al-dqn"],
        "with_published": ["btr"],
    }


def test_help_waits_for_nothing_heavy():
    program = (
        "import sys, argparse; from kullback.experiments.commands import report;"
        "report.add_parser(argparse.ArgumentParser().add_subparsers());"
        "assert not {'jax', 'numpy', 'matplotlib'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_number_of_steps_is_one(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parse("a", "--steps", "many")
    assert "expected a whole number from 1 to 2,000,000,000, got 'many'" in capsys.readouterr().err


def test_publications_are_those_of_the_report(capsys: pytest.CaptureFixture[str]):
    for name in report.PUBLICATIONS:
        assert parse("a", "--published", name).published == [name]
    with pytest.raises(SystemExit):
        parse("a", "--published", "deepmind")
    assert "munchausen, dopamine, btr" in capsys.readouterr().err.replace("'", "")
