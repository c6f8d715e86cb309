"""Tests of experiments/report/comparisons.py."""

import csv
import pathlib

import numpy as np
import pytest

from kullback.experiments import report
from kullback.experiments.report import comparisons
from tests.experiments.report.conftest import WriteRun

BREAKOUT, ASTERIX, FREEWAY = (f"minatar/{name}" for name in ("breakout", "asterix", "freeway"))


@pytest.fixture
def sweep(tmp_path: pathlib.Path, write_run: WriteRun) -> pathlib.Path:
    """Makes a sweep under way: dqn on three games, m-dqn on two, one of which is not done."""
    values = {"dqn": 10.0, "m-dqn": 15.0, "iqn": 5.0}
    for agent, games in (
        ("dqn", (BREAKOUT, ASTERIX, FREEWAY)),
        ("m-dqn", (BREAKOUT, ASTERIX)),
        ("iqn", (FREEWAY,)),
    ):
        for number, game in enumerate(games):
            write_run(
                tmp_path / f"{agent}-{number}",
                agent,
                game,
                lambda seed, step, v=values[agent], n=number: (v + seed - 1) * 10**n * step / 400,
                steps=(100, 200) if (agent, game) == ("m-dqn", ASTERIX) else (100, 200, 300, 400),
                planned_steps=200 if agent == "iqn" else 400,
            )
    return tmp_path


def rows_of(index: pathlib.Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(index.parent / "minatar-comparisons.csv", encoding="utf-8") as file:
        return {(row["agent"], row["over"]): row for row in csv.DictReader(file)}


def test_each_pair_has_its_games_and_its_steps(sweep: pathlib.Path, tmp_path: pathlib.Path):
    said: list[str] = []
    index = report.write(
        [sweep], tmp_path / "out", baseline="dqn", compare=["iqn:m-dqn", "c51:dqn"], say=said.append
    )
    rows = rows_of(index)
    assert list(rows) == [("iqn", "dqn"), ("m-dqn", "dqn")]
    # On Breakout alone both are whole: 1.4, 1.5, 1.6 over 0.9, 1, 1.1.
    row = rows["m-dqn", "dqn"]
    assert (row["games"], row["runs"], row["steps"]) == ("1", "3 and 3", "400")
    assert float(row["difference of IQM"]) == pytest.approx(0.5)
    low, high = float(row["difference of IQM low"]), float(row["difference of IQM high"])
    assert 0.3 < low < 0.5 < high < 0.7 and row["verdict"] == "above"
    assert float(row["seen from"]) == pytest.approx(2.80 / 1.96 * (high - low) / 2)
    assert float(row["probability of improvement"]) == 1
    # Half-way, where iqn ends.
    row = rows["iqn", "dqn"]
    assert (row["games"], row["steps"], row["verdict"]) == ("1", "200", "below")
    assert float(row["difference of IQM"]) == pytest.approx(5 / 1_000 - 1)
    for pair in ("iqn over m-dqn", "c51 over dqn"):
        assert f"not compared: {pair}: no game on which runs of both are whole" in said


def test_scores_are_in_units_of_the_baseline_or_of_the_other(
    sweep: pathlib.Path, tmp_path: pathlib.Path
):
    index = report.write(
        [sweep], tmp_path / "out", compare=["m-dqn:dqn"], steps=200, say=lambda line: None
    )
    row = rows_of(index)["m-dqn", "dqn"]
    assert (row["games"], row["runs"], row["steps"]) == ("2", "6 and 6", "200")
    assert float(row["difference of IQM"]) == pytest.approx(0.5)


def test_pairs_that_are_asked_for_come_first_and_each_once():
    declared = [comparisons.parse("m-iqn:iqn"), comparisons.parse("iqn:dqn")]
    pairs = comparisons.pairs(["dqn", "iqn", "m-iqn"], "dqn", declared)
    assert [str(pair) for pair in pairs] == ["m-iqn over iqn", "iqn over dqn", "m-iqn over dqn"]
    assert comparisons.pairs(["iqn"], "dqn", declared[:1]) == declared[:1]
    for text in ("dqn", "dqn:", ":dqn", "dqn:dqn"):
        with pytest.raises(ValueError, match="AGENT:AGENT"):
            comparisons.parse(text)


def test_runs_that_differ_by_chance_are_undecided(tmp_path: pathlib.Path, write_run: WriteRun):
    rng = np.random.default_rng(0)
    for agent in ("dqn", "m-dqn"):
        noise = rng.normal(10, 2, 5)
        write_run(
            tmp_path / agent, agent, BREAKOUT, lambda seed, step, x=noise: x[seed], seeds=range(5)
        )
    write_run(tmp_path / "one", "iqn", BREAKOUT, lambda seed, step: 99.0, seeds=(0,))
    index = report.write([tmp_path], tmp_path / "out", baseline="dqn", say=lambda line: None)
    rows = rows_of(index)
    assert rows["m-dqn", "dqn"]["verdict"] == "undecided"
    # However far above, of one run nothing is known.
    assert (rows["iqn", "dqn"]["runs"], rows["iqn", "dqn"]["verdict"]) == ("1 and 5", "undecided")
