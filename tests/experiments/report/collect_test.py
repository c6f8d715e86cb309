"""Tests of experiments/report/collect.py: what is found, what is one agent, what is refused."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from kullback.experiments import report
from kullback.experiments.report import collect
from kullback.experiments.runs import plans
from kullback.experiments.sweeps import sweeping

WriteRun = Callable[..., pathlib.Path]
BREAKOUT = "minatar/breakout"


def test_runs_are_found_in_folders_of_runs_and_not_within_a_run(
    tmp_path: pathlib.Path, write_run: WriteRun
):
    one = write_run(tmp_path / "sweep" / "a", "dqn", BREAKOUT)
    two = write_run(tmp_path / "sweep" / "deep" / "b", "m-dqn", BREAKOUT)
    write_run(one / "seed_0", "dqn", BREAKOUT)  # Of a host loop: it is the run's own.
    (tmp_path / "sweep" / "reproduction").mkdir()
    (tmp_path / "sweep" / "reproduction" / "config.json").write_text('{"reproduction": "gkd"}')
    (tmp_path / "sweep" / "deep" / "round").symlink_to(tmp_path / "sweep")
    assert collect.find(tmp_path / "sweep") == [one, two]
    assert collect.find(two) == [two]
    (family,) = collect.families([tmp_path, one])  # One of them is given twice.
    assert family.labels == ("dqn", "m-dqn") and len(family.series) == 6


def test_a_link_leads_to_a_run_or_nowhere(
    tmp_path: pathlib.Path, write_run: WriteRun, caplog: pytest.LogCaptureFixture
):
    one = write_run(tmp_path / "home" / "a", "dqn", BREAKOUT)
    two = write_run(tmp_path / "elsewhere" / "b", "dqn", BREAKOUT)
    (tmp_path / "home" / "b").symlink_to(two)
    (tmp_path / "home" / "all").symlink_to(tmp_path / "elsewhere")
    assert collect.find(tmp_path / "home") == sorted([one, two])
    assert f"{tmp_path / 'home' / 'all'} is a link out of" in caplog.text
    assert "home/b" not in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({"name": n}, "name must be") for n in ("../elsewhere", "/tmp", "..", "", "a\n", "a/b")),
        *(({"threads": n}, r"threads must be in \[1, 1024\]") for n in (0, 10**18)),
    ],
)
def test_what_a_record_of_a_sweep_names_is_in_its_folder(
    change: dict[str, Any], message: str, tmp_path: pathlib.Path
):
    planned = plans.Plan(agent="m-dqn", environment="minatar/asterix").to_json()
    record = {"runs": [{"name": "a", "plan": planned, "threads": 1, **change}]}
    (tmp_path / sweeping.RECORD).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"sweep\.json: runs\[0\]\.{message}"):
        collect.not_begun(tmp_path)


@pytest.mark.parametrize("make", [True, False])
def test_where_no_run_is_one_line_says_so(tmp_path: pathlib.Path, make: bool):
    path = tmp_path / "nothing"
    if make:
        path.mkdir()
    with pytest.raises(ValueError, match=r"nothing (holds no run|is no folder)"):
        collect.families([path])


def test_seeds_in_turn_are_read_where_they_are(tmp_path: pathlib.Path, write_run: WriteRun):
    run = write_run(tmp_path / "run", "dqn", BREAKOUT, loop="host", seeds=(0, 1), steps=(100,))
    for seed, steps in ((0, (100, 200)), (1, (100,))):  # Further than the folder's own rows.
        write_run(run / f"seed_{seed}", "dqn", BREAKOUT, seeds=(seed,), steps=steps)
    (family,) = collect.families([run])
    assert [(s.seed, s.last) for s in family.series] == [(0, 200), (1, 100)]


def test_a_row_that_is_being_written_is_not_read(tmp_path: pathlib.Path, write_run: WriteRun):
    run = write_run(tmp_path / "run", "dqn", BREAKOUT, seeds=(0,))
    text = (run / "metrics.csv").read_text()
    (run / "metrics.csv").write_text(text[:-4])  # A number that lacks its end looks like one.
    (family,) = collect.families([run])
    assert family.series[0].last == 300


def test_missing_seeds_are_named(tmp_path: pathlib.Path, write_run: WriteRun):
    write_run(tmp_path / "a", "dqn", BREAKOUT, seeds=(0, 1, 2))
    write_run(tmp_path / "b", "m-dqn", BREAKOUT, seeds=(0,))
    write_run(tmp_path / "c", "dqn", "minatar/asterix", seeds=(1, 2))
    begun = write_run(tmp_path / "d", "m-dqn", "minatar/asterix", seeds=(3, 4))
    (begun / "metrics.csv").unlink()
    (family,) = collect.families([tmp_path])
    assert {(row.label, row.environment): row.missing for row in family.seeds} == {
        ("dqn", "minatar/asterix"): (0, 3, 4),
        ("dqn", BREAKOUT): (3, 4),
        ("m-dqn", "minatar/asterix"): (0, 1, 2, 3, 4),
        ("m-dqn", BREAKOUT): (1, 2, 3, 4),
    }


def test_runs_of_a_sweep_that_are_to_come_are_named(tmp_path: pathlib.Path, write_run: WriteRun):
    write_run(tmp_path / "sweep" / "a", "dqn", BREAKOUT)
    planned = plans.Plan(
        agent="m-dqn", environment="minatar/asterix", seed=2, num_seeds=3
    ).to_json()
    begun = json.loads((tmp_path / "sweep" / "a" / "config.json").read_text())["plan"]
    record = {"runs": [{"name": "a", "plan": begun}, {"name": "b", "plan": planned}]}
    (tmp_path / "sweep" / sweeping.RECORD).write_text(json.dumps(record))
    expected = ["b (m-dqn on minatar/asterix, seeds 2-4)"]
    assert collect.not_begun(tmp_path / "sweep") == collect.not_begun(tmp_path) == expected
    said: list[str] = []
    index = report.write([tmp_path / "sweep"], tmp_path / "out", say=said.append)
    assert f"not begun: {expected[0]}" in said and expected[0] in index.read_text()


def test_numbers_are_written_as_spans():
    assert collect.spans([0, 1, 2, 5, 7, 8]) == "0-2 5 7-8"
    assert collect.spans(()) == ""


def test_runs_of_other_settings_are_other_agents(tmp_path: pathlib.Path, write_run: WriteRun):
    for name, config in (
        ("a", {"learning": {"lr": 0.1}, "n": 1}),
        ("b", {"learning": {"lr": 0.2}, "n": 1}),
    ):
        write_run(tmp_path / name, "dqn", BREAKOUT, config=config)
    write_run(tmp_path / "c", "m-dqn", BREAKOUT, config={"temperature": 0.03})
    (family,) = collect.families([tmp_path])
    assert family.labels == ("dqn lr=0.1", "dqn lr=0.2", "m-dqn")
    many = {f"field_{n}": n for n in range(5)}
    write_run(tmp_path / "d", "m-dqn", BREAKOUT, config=many)
    (family,) = collect.families([tmp_path])
    assert family.labels[2:] == ("m-dqn (1)", "m-dqn (2)")


def test_a_seed_that_is_there_twice_is_refused(tmp_path: pathlib.Path, write_run: WriteRun):
    write_run(tmp_path / "a", "dqn", BREAKOUT, seeds=(0, 1))
    write_run(tmp_path / "b", "dqn", BREAKOUT, seeds=(1, 2))
    with pytest.raises(
        ValueError, match=r"seed 1 of dqn on minatar/breakout is in .*/a and in .*/b"
    ):
        collect.families([tmp_path])


@pytest.mark.parametrize(
    "environment, other, flags",
    [
        ("atari/pong", "atari/pong", ("max_noops=30",)),
        ("atari/pong", "atari/breakout", ("max_frames=18000",)),  # Of one aggregate.
        (BREAKOUT, "minatar/asterix", ("sticky_action_prob=0.5",)),
        ("toy/chain", "toy/chain", ("length=4",)),
    ],
)
def test_mixed_protocols_are_refused(
    tmp_path: pathlib.Path,
    write_run: WriteRun,
    environment: str,
    other: str,
    flags: tuple[str, ...],
):
    write_run(tmp_path / "a", "dqn", environment)
    write_run(tmp_path / "b", "m-dqn", other, environment_flags=flags)
    with pytest.raises(ValueError, match=f"mixed protocols .*default.* {flags[0]};"):
        collect.families([tmp_path])


@pytest.mark.parametrize(
    "environment, flags",
    [
        ("atari/pong", ("protocol=sticky", "num_threads=4", "max_frames=108000")),
        ("atari/pong", ("life_loss=false", "repeat_probability=0.250")),
        (BREAKOUT, ("sticky_action_prob=0.10", "difficulty_ramping=true")),
        ("toy/chain", ("length=8", "slip=0e0")),
    ],
)
def test_what_is_the_default_or_without_effect_is_no_other_protocol(
    tmp_path: pathlib.Path, write_run: WriteRun, environment: str, flags: tuple[str, ...]
):
    write_run(tmp_path / "a", "dqn", environment)
    write_run(tmp_path / "b", "m-dqn", environment, environment_flags=flags)
    (family,) = collect.families([tmp_path])
    assert len(family.series) == 6


def test_other_numbers_of_actions_are_refused_in_one_game_alone(
    tmp_path: pathlib.Path, write_run: WriteRun
):
    write_run(tmp_path / "a", "dqn", "atari/pong", num_actions=6)
    write_run(tmp_path / "b", "dqn", "atari/alien", num_actions=18)
    collect.families([tmp_path])
    write_run(tmp_path / "c", "m-dqn", "atari/pong", num_actions=18)
    with pytest.raises(ValueError, match=r"mixed protocols on atari/pong: .*num_actions=6.*=18"):
        collect.families([tmp_path])
