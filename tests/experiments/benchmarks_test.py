"""Tests of experiments/benchmarks/: what they measure is theirs to say, how they say it is not."""

import json
import pathlib

import pytest

from kullback.agents import munchausen
from kullback.experiments.benchmarks import __main__ as benchmarks
from kullback.experiments.benchmarks import (
    flops,
    gradient_step,
    minatar,
    peer,
    replay,
    rows,
    timing,
)

PROGRAMS = sorted(peer.FOLDER.glob("*.py"))


def test_a_row_compares():
    speed = rows.Row(name="a", ours=30.0, unit="steps/s", peer="b", peer_value=20.0)
    assert speed.ratio == 1.5 and speed.met is None
    wait = rows.Row(name="a", ours=2.0, unit="s", peer_value=6.0, lower_is_better=True, target=3.0)
    assert wait.ratio == 3.0 and wait.met is True
    assert rows.Row(name="a", ours=2.0, unit="s").ratio is None


@pytest.mark.parametrize(
    ("fields", "met"),
    [
        ({"target": 30.0}, True),
        ({"target": 31.0}, False),
        ({"target": 31.0, "lower_is_better": True}, True),
        ({"target_ratio": 1.5}, True),
        ({"target_ratio": 1.6}, False),
        ({"target_ratio": 1.5, "target_limit_share": 0.5}, False),
        ({"target_ratio": 1.5, "target_limit_share": 0.4}, True),
        ({}, None),
    ],
)
def test_all_targets_must_be_met(fields: dict[str, float], met: bool | None):
    fields = {"peer_value": 45.0 if fields.get("lower_is_better") else 20.0, **fields}
    assert rows.Row(name="a", ours=30.0, unit="u", limit_share=0.45, **fields).met is met  # pyright: ignore[reportArgumentType]


def test_flops_of_a_step_are_those_of_the_specification():
    step = flops.gradient_step(flops.nature(6), 32, gradient_step.FORWARDS["m-dqn"])
    assert step / 1e9 == pytest.approx(2.78, abs=0.01)


def test_the_best_window_counts_and_each_side_has_its_turn():
    order = []

    def side(name: str, rates: list[float]):
        def measure() -> dict[str, float]:
            order.append(name)
            return {name: rates.pop(0)}

        return measure

    best = timing.interleave([side("a", [1.0, 3.0]), side("b", [4.0, 2.0])], 2)
    assert best == {"a": 3.0, "b": 4.0} and order == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replya"], "unknown benchmark 'replya'; expected one of atari, gradient_step, minatar"),
        (["replay", "--seconds", "0"], "seconds must be > 0, got 0.0"),
        (["replay", "--rounds", "0"], "rounds must be >= 1, got 0"),
    ],
)
def test_a_wrong_request_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert benchmarks.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_names_are_listed(capsys: pytest.CaptureFixture[str]):
    assert benchmarks.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(benchmarks.BENCHMARKS)


def test_a_run_prints_a_table_and_keeps_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(replay.run, "__defaults__", (500,))
    out = tmp_path / "kept" / "found.json"
    request = ["replay", "--no-peers", "--seconds", "0.05", "--rounds", "1", "--out", str(out)]
    assert benchmarks.main(request) == 0
    assert "batches/s" in capsys.readouterr().out
    kept = json.loads(out.read_text())
    assert {"date", "cpu", "cores", "git_revision", "versions"} <= set(kept)
    assert len(kept["rows"]) == len(replay.PEERS) and kept["rows"][0]["ours"] > 0
    assert kept["rows"][0]["peer_value"] is None


def test_a_peer_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*arguments: object) -> dict[str, float]:
        raise peer.PeerError("no wheel of it")

    monkeypatch.setattr(peer, "run", fail)
    monkeypatch.setattr(replay.run, "__defaults__", (500,))
    assert benchmarks.main(["replay", "--seconds", "0.05", "--rounds", "1"]) == 1
    assert capsys.readouterr().err == "benchmarks: no wheel of it\n"


def test_our_sides_do_the_work_they_say(monkeypatch: pytest.MonkeyPatch):
    assert gradient_step.stepper("m-dqn")() == 1
    monkeypatch.setattr(minatar, "WARM_UP", 64)
    steps = minatar.runner(1)()
    assert steps > 0 and steps % minatar.NUM_ENVS == 0
    # The preset is what users run: 4 agent steps a learner step, batches of 32.
    learning = munchausen.presets("minatar").learning
    assert (learning.replay.samples_per_update, learning.replay.batch_size) == (4, 32)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_programs_of_peers_compile_and_never_import_ours(program: pathlib.Path):
    source = program.read_text()
    compile(source, program.name, "exec")
    assert "kullback" not in source


@pytest.mark.parametrize("requirements", sorted(peer.FOLDER.glob("*.txt")), ids=lambda p: p.name)
def test_versions_of_peers_are_pinned(requirements: pathlib.Path):
    lines = requirements.read_text().split()
    assert lines and all(line.count("==") == 1 for line in lines)
