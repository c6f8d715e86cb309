"""Tests of report/standing.py: runs on Atari beside published curves."""

import csv
import pathlib
from collections.abc import Callable

import numpy as np
import pytest

from kullback.experiments import report
from kullback.experiments.report import (
    chapters,
    collect,
    page,
    published_curves,
    scores,
    standing,
)

WriteRun = Callable[..., pathlib.Path]
STEPS = tuple(range(1_250_000, 6_250_001, 1_250_000))  # 5 to 25 million frames.
CONFIG = {"learning": {"torso": "auto", "learning_rate": 5e-5, "replay": {"n_step": 1}}}


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(
    runs: pathlib.Path, folder: pathlib.Path, source: str, score: str = "training"
) -> tuple[pathlib.Path, str]:
    """Writes a page of the section alone, without pictures."""
    folder.mkdir()
    out = page.Page(folder, "")
    (family,) = collect.families([runs])
    standing.write(chapters.Chapter(out=out, family=family, score=score), source, is_drawn=False)
    out.write()
    return folder, (folder / page.INDEX).read_text()


def published(source: str, game: str, label: str, frames: int) -> float:
    (curve,) = (c for c in published_curves.load(source)[game] if c.label == label)
    return curve.at(frames)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, write_run: WriteRun) -> pathlib.Path:
    """Writes runs whose return is the millions of frames done, plus the seed."""
    folder = tmp_path_factory.mktemp("standing")
    for game in ("breakout", "pong", "freeway"):
        write_run(
            folder / game,
            "dqn",
            f"atari/{game}",
            lambda seed, step: 4e-6 * step + seed,
            seeds=(0, 1),
            steps=STEPS,
            config=CONFIG,
        )
    return folder


@pytest.fixture(scope="module")
def folder(runs: pathlib.Path) -> pathlib.Path:
    """Writes a whole report with both publications."""
    names = ["dopamine", "btr"]
    return report.write([runs], runs / "out", with_published=names, say=lambda _: None).parent


def test_a_run_stands_at_the_last_published_point_that_it_has_reached(folder: pathlib.Path):
    text = (folder / page.INDEX).read_text()
    by_game = {row["environment"]: row for row in rows(folder / "atari-published-dopamine.csv")}
    assert set(by_game) == {"atari/breakout", "atari/freeway", "atari/pong"}
    row = by_game["atari/breakout"]
    # 25 million frames are done; published are 10, 20, 30.
    assert (row["frames"], row["published at"], row["seeds"]) == ("20000000", "20000000", "2")
    assert float(row["score"]) == 20.5
    there = {
        name: published("dopamine", "atari/breakout", name, 20_000_000)
        for name in ("dqn, cnn", "c51, cnn", "qr-dqn, cnn", "iqn, cnn", "rainbow, cnn")
    }
    assert {name: float(row[name]) for name in there} == there
    assert row["above"] == "0 of 5" and row["had first by"] == "c51, cnn by 10M"
    assert by_game["atari/pong"]["above"] == "5 of 5"
    assert by_game["atari/pong"]["had first by"] == "none"  # Nobody has 20.5 of 21 there.
    points = rows(folder / "atari-breakout-published-dopamine.csv")
    ours = {int(p["frames"]): float(p["score"]) for p in points if p["source"] == "this report"}
    assert ours == {4 * step: 4e-6 * step + 0.5 for step in STEPS}
    assert len(points) == len(STEPS) + 5 * 20
    # Each picture and table says whose figures they are, and under which licence.
    assert text.count("5873f5494ee0c2d7c016d0ab2ad530354fec59d0 (Apache-2.0)") == 1
    # A caption is also an alternative text.
    assert text.count("5873f5494ee0c2d7c016d0ab2ad530354fec59d0, Apache-2.0)") == 3 * 2 + 1


def test_what_is_put_together_is_of_games_that_both_have(folder: pathlib.Path):
    table = {row["source"]: row for row in rows(folder / "atari-published-btr-aggregates.csv")}
    assert {row["games"] for row in table.values()} == {"2"}  # BTR has no Freeway there.
    games = ("atari/breakout", "atari/pong")
    expected = {
        "this report": [20.5, 20.5],
        "published, btr": [published("btr", g, "btr, impala-2", 20_000_000) for g in games],
    }
    for source, means in expected.items():
        normalised = [scores.human_normalised(*pair) for pair in zip(games, means, strict=True)]
        assert float(table[source]["mean"]) == pytest.approx(np.mean(normalised))
        assert float(table[source]["IQM"]) == pytest.approx(np.mean(normalised))
    assert float(table["this report"]["mean low"]) < float(table["this report"]["mean"])
    assert "2 games of Atari: breakout, pong" in (folder / page.INDEX).read_text()


def test_what_differs_between_protocols_is_named(tmp_path: pathlib.Path, write_run: WriteRun):
    flags = ("repeat_probability=0", "max_noops=30")
    write_run(
        tmp_path / "runs/dqn",
        "dqn",
        "atari/breakout",
        steps=STEPS,
        config=CONFIG,
        environment_flags=flags,
    )
    differences: dict[str, dict[tuple[str, str], tuple[str, str]]] = {}
    for source in ("dopamine", "btr"):
        folder, _ = write(tmp_path / "runs", tmp_path / source, source)
        differences[source] = {
            (row["what"], row["agent"]): (row["ours"], row["published"])
            for row in rows(folder / f"atari-published-{source}-protocol.csv")
        }
    for of_source in differences.values():
        assert of_source["repeat_probability", ""] == ("0.0", "0.25")
        of_source.pop(("the score", ""))
    dopamine, btr = differences["dopamine"], differences["btr"]
    assert dopamine["max_noops", ""] == ("30", "0") and ("max_noops", "") not in btr
    assert dopamine["learning_rate", "dqn"] == ("5e-05", "6.25e-05")
    assert ("n_step", "dqn") not in dopamine  # 1 in both.
    # Settings are compared between agents of one name.
    assert set(btr) == {("repeat_probability", ""), ("torso", "dqn")}


def test_each_torso_stands_beside_its_own(tmp_path: pathlib.Path, write_run: WriteRun):
    config = {"learning": {"torso": "impala"}}
    write_run(tmp_path / "runs", "dqn", "atari/breakout", steps=STEPS, config=config)
    folder, _ = write(tmp_path / "runs", tmp_path / "out", "dopamine")
    (row,) = rows(folder / "atari-published-dopamine.csv")
    assert "dqn, impala" in row and "dqn, cnn" not in row


def test_short_runs_and_other_games_are_said(tmp_path: pathlib.Path, write_run: WriteRun):
    write_run(tmp_path / "short", "btr", "atari/breakout", steps=(100, 200))
    folder, text = write(tmp_path / "short", tmp_path / "a", "btr")
    (row,) = rows(folder / "atari-published-btr.csv")
    assert (row["frames"], row["published at"]) == ("800", "10000000")
    assert "btr on atari/breakout: 800 frames" in text
    write_run(tmp_path / "other", "btr", "atari/freeway", steps=STEPS)
    _, text = write(tmp_path / "other", tmp_path / "b", "btr")
    assert "No run has a score on a game of BTR&#x27;s authors." in text


def test_an_evaluation_is_read_where_all_seeds_have_one(
    tmp_path: pathlib.Path, write_run: WriteRun
):
    late = STEPS[-1]  # After the last published point.
    write_run(
        *(tmp_path / "runs", "btr", "atari/breakout"),
        steps=STEPS,
        evaluation=lambda seed, step: 7.0 if step == late else float("nan"),
    )
    _, text = write(tmp_path / "runs", tmp_path / "out", "btr", score="evaluation")
    assert "No run has a score on a game of BTR" in text


def test_short_runs_are_not_put_together_and_stand_there_unasked(
    tmp_path: pathlib.Path, write_run: WriteRun
):
    write_run(tmp_path / "runs", "dqn", "atari/pooyan", steps=(100, 200))
    for names, text in (((), "dqn on atari/pooyan: 800"), (("dopamine",), "have done 800 frames")):
        index = report.write(
            [tmp_path / "runs"], tmp_path / "out", with_published=names, say=lambda _: None
        )
        assert text in index.read_text()
        assert bool(list(index.parent.glob("*pooyan-published*"))) == bool(names)


def test_an_unknown_publication_is_refused(runs: pathlib.Path, tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=r"unknown publication 'dopamin'.*dopamine"):
        report.write([runs], tmp_path / "out", with_published=["dopamin"])
    assert not (tmp_path / "out").exists()
