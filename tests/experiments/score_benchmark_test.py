"""Tests of experiments/benchmarks/score.py: what it reads, and when."""

import math
import pathlib

import pytest

from kullback.experiments.benchmarks import commands, peer, score
from kullback.experiments.runs import run_folder

# Stands for the command: it writes a row at once, another after a second, and waits for its signal.
TRAINS = """#!/bin/sh
test "$1 $2 $3 $4" = "train dqn toy/chain --out" || exit 9
trap 'touch "$5.ended"; exit 143' TERM
mkdir -p "$5"
echo seed,steps,recent_return > "$5/metrics.csv"
echo 0,2000,{first} >> "$5/metrics.csv"
sleep 1
echo 0,4000,2.5 >> "$5/metrics.csv"
while true; do sleep 0.1; done
"""


@pytest.fixture(name="install")
def install_fixture(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    def install(program: str) -> None:
        path = tmp_path / "kullback"
        path.write_text(program)
        path.chmod(0o755)
        monkeypatch.setattr(commands, "path", lambda: str(path))
        monkeypatch.setattr(score.tempfile, "tempdir", str(tmp_path))

    return install


@pytest.mark.slow
def test_a_score_is_the_last_that_is_there_by_then(install, tmp_path: pathlib.Path):
    install(TRAINS.format(first="1.5"))
    assert score.after(0.6, "dqn", environment="toy/chain") == score.Score(1.5, 2_000)
    assert score.after(2.5, "dqn", environment="toy/chain") == score.Score(2.5, 4_000)
    # Runs are told to end, and nothing of them is left.
    assert [path.name for path in tmp_path.iterdir()] == ["kullback"]


def test_what_has_no_score_is_an_error(install, tmp_path: pathlib.Path):
    install(TRAINS.format(first="nan"))
    with pytest.raises(
        peer.PeerError, match=r"dqn on toy/chain after 0\.5 s: no episode has ended"
    ):
        score.after(0.5, "dqn", environment="toy/chain")
    install("#!/bin/sh\necho nonsense >&2\nexit 2\n")
    with pytest.raises(peer.PeerError, match="kullback train dqn ended with 2: nonsense"):
        score.after(5, "dqn", environment="toy/chain")
    nothing = score.last(tmp_path / "none")
    assert math.isnan(nothing.value) and nothing.steps == 0


def test_each_agent_has_a_row_and_the_best_has_the_target(monkeypatch: pytest.MonkeyPatch):
    values = {"dqn": 3.0, "m-dqn": 21.0, "pqn": 7.0, "m-pqn": 1.0}
    calls = {}

    def after(seconds: float, agent: str, settings: tuple[str, ...]) -> score.Score:
        calls[agent] = (seconds, settings)
        return score.Score(values[agent], 10)

    monkeypatch.setattr(score, "after", after)
    rows = score.run(score.timing.Budget(), peer.none)
    assert [row.ours for row in rows] == [3.0, 21.0, 7.0, 1.0, 21.0]
    assert [row.met for row in rows] == [None] * 4 + [True]
    assert {seconds for seconds, _ in calls.values()} == {120.0}
    assert "m-pqn" in rows[3].name and "after 120 s" in rows[3].name


@pytest.mark.slow
def test_the_command_itself_has_a_score_soon():
    value, steps = score.after(90, "dqn", environment="toy/chain")
    assert 0 <= value <= 1 and steps >= 2_000


def test_a_run_under_way_is_read_without_its_torn_line(tmp_path: pathlib.Path):
    text = "seed,steps,recent_return\n0,10,1.0\n0,20,2.0\n0,30,3"
    run_folder.RunFolder(tmp_path).metrics_file.write_text(text)
    assert score.last(tmp_path) == score.Score(2.0, 20)
