"""Tests of experiments/reproductions/study.py."""

import dataclasses
import pathlib
from collections.abc import Iterator

import pytest

from kullback.experiments import progress
from kullback.experiments.reproductions import charts, judging, study


def test_rows_of_tables_come_back_by_table_and_by_column():
    rows = study.tagged("a", [{"seed": 0, "x": 1}, {"seed": 1, "x": 2}])
    rows += study.tagged("b", [{"seed": 0, "y": 3}])
    tables = study.split(rows, "b", "a", "none")
    assert list(tables) == ["b", "a", "none"] and tables["none"] == []
    assert tables["b"] == [{"seed": 0, "y": 3}]
    assert study.column(tables["a"], "x", seed=1).tolist() == [2]
    rows = [{"seed": s, "arm": a, "x": 10 * s + k} for k in range(2) for s in (7, 3) for a in "ab"]
    assert study.even([{"x": 1}, {"y": 2}]) == [{"x": 1, "y": None}, {"x": None, "y": 2}]
    assert study.even([{"x": 1}, {"y": 2}], "y") == [{"y": None}, {"y": 2}]
    assert study.distinct(rows, "seed") == [7, 3]
    assert study.by_seed(rows, "x", arm="b").tolist() == [[70, 71], [30, 31]]


def test_a_step_of_a_part_is_kept(tmp_path: pathlib.Path):
    journal = study.Journal(tmp_path, progress.Progress("test", 0, 30, quiet=True))
    ran: list[int] = []

    def learn() -> study.Rows:
        step = lambda n: ran.append(n) or [{"n": n}]  # noqa: E731
        rows = [journal.step(f"step-{n}", lambda n=n: step(n)) for n in range(3)]
        if len(ran) < 4:
            raise KeyboardInterrupt
        return [row for (row,) in rows]

    with pytest.raises(KeyboardInterrupt):
        journal.part("part", 10, learn)
    (tmp_path / "step-1.json").unlink()
    assert journal.part("part", 10, learn) == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert ran == [0, 1, 2, 1]


def test_what_runs_is_shown_and_never_as_more_than_its_part(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    shown: list[tuple[int, float | None, str]] = []
    bar = progress.Progress("test", 0, 30, quiet=True)
    monkeypatch.setattr(bar, "update", lambda done, *of: shown.append((done, *of)))
    journal = study.Journal(tmp_path, bar)

    def learn() -> study.Rows:
        journal.tick(4, 0.5, "loss")
        journal.tick(25, 0.25, "loss")  # It takes longer than was thought.
        return []

    for name in ("first", "second", "first"):
        journal.part(name, 10, learn)
    one, two = [(4, 0.5, "loss"), (10, 0.25, "loss")], [(14, 0.5, "loss"), (20, 0.25, "loss")]
    assert shown == [*one, (10,), *two, (20,), (30,)]


def test_a_study_runs_its_arms_once_and_keeps_them(tmp_path: pathlib.Path):
    ran: list[int] = []

    def arm(k: int, journal: study.Journal) -> Iterator[study.Row]:
        ran.append(k)
        journal.tick(1)
        journal.path("scratch").mkdir()
        yield {"k": k}

    of_two = study.Study(
        claim="c",
        source="s",
        config=2,
        arms=lambda count: [
            study.Arm(
                f"part-{k}",
                10 * (k + 1),
                lambda journal, k=k: arm(k, journal),
                "t",
                *({"arm": -k}, "scratch"),
            )
            for k in range(count)
        ],
        tables=lambda count, rows: study.split(rows, "t"),
        claims=lambda count, tables: [judging.reported("rows", len(tables["t"]))],
        figures=lambda count, tables: {
            "f": charts.Grid(panels=[charts.Panel(marks=[charts.Line([0], [1], "a")])])
        },
        seconds=lambda count: 1.0,
    )
    unseen = study.Arm("unseen", 0, lambda journal: journal.kept("part-1"), None)
    with_unseen = dataclasses.replace(of_two, arms=lambda count: [*of_two.arms(count), unseen])
    entry = with_unseen
    assert entry.steps(2) == 30
    for _ in range(2):
        journal = study.Journal(tmp_path, progress.Progress("test", 0, 30, quiet=True))
        result = entry.run(2, journal)
        assert result.tables == {"t": [{"arm": 0, "k": 0}, {"arm": -1, "k": 1}]}
        assert journal.kept("part-1") == [{"k": 1}]
        assert result.checks == [judging.reported("rows", 2)] and list(result.figures) == ["f"]
    assert ran == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "part-0.json",
        "part-1.json",
        "unseen.json",
    ]
    for name, k in (("part-0", 0), ("unseen", 1)):
        assert f'"rows": [{{"k": {k}}}]' in (tmp_path / f"{name}.json").read_text()
