"""Tests of experiments/reproductions/study.py."""

import dataclasses
import pathlib
import types
from collections.abc import Iterator

import numpy as np
import pytest

from kullback.experiments import progress, reproduce
from kullback.experiments.reproductions import study


def test_rows_of_tables_come_back_by_table_and_by_column():
    rows = study.tagged("a", [{"seed": 0, "x": 1}, {"seed": 1, "x": 2}])
    rows += study.tagged("b", [{"seed": 0, "y": 3}])
    tables = study.split(rows, "b", "a", "none")
    assert list(tables) == ["b", "a", "none"] and tables["none"] == []
    assert tables["b"] == [{"seed": 0, "y": 3}]
    assert study.column(tables["a"], "x", seed=1).tolist() == [2]
    rows = [{"seed": s, "arm": a, "x": 10 * s + k} for k in range(2) for s in (7, 3) for a in "ab"]
    assert study.distinct(rows, "seed") == [7, 3]
    assert study.by_seed(rows, "x", arm="b").tolist() == [[70, 71], [30, 31]]


def test_an_interval_judges_and_one_value_does_not():
    # Of 1, 2, 3 the interval is 2 -+ 2.484.
    assert study.above("c", [1.0, 2.0, 3.0], -0.5).held is True
    assert study.above("c", [1.0, 2.0, 3.0], -0.4).held is False
    one = study.above("c", [5.0], units=("game", "games"))
    assert one == ("c", None, "5; one game has no interval")
    assert study.every("c", [True, False], "x") == ("c", False, "1 of 2 seeds; x")
    assert study.unjudged(study.above("c", [1.0, 1.0])).held is None


def test_means_are_named():
    values = {"a": [1.0, 2.0, 3.0], "b": [5.0]}
    assert study.means(values, "; ") == "a 2 [-0.4841, 4.484]; b 5 (no interval of one)"


def test_a_panel_draws_lines_bands_bounds_levels_and_notes():
    line = study.Line([1, 2], [3, 4], "a", {"color": "r"}, band=([2, 3], [4, 5]), bound=[6, 7])
    levels = [study.Level(5, {"color": "k"}), study.Level(6, {"color": "g"}, is_vertical=True)]
    notes = study.Notes([1, 2], [3, 4], ["x", "y"], {"fontsize": 7})
    panel = study.Panel(marks=[line, *levels, notes], axes={"title": "t"})
    grid = study.Grid(panels=[panel, study.Panel(), panel], columns=2, title="all")
    figure = grid.draw()
    full, empty, _, unused = figure.axes
    assert [axis.get_color() for axis in full.lines] == ["r", "r", "k", "g"]
    assert full.lines[3].get_xdata() == [6, 6]
    assert [text.get_text() for text in full.texts] == ["x", "y"]
    assert np.asarray(full.lines[1].get_ydata()).tolist() == [6, 7]
    assert len(full.collections) == 1 and full.get_title() == "t"
    assert not empty.axison and unused.axison


@pytest.mark.parametrize("x", [[0, 1, 2], [[-1, 1, 2], [1, 1, 2]]])
def test_seeds_are_thin_lines_and_their_mean_is_a_thick_one(x: list[int]):
    seeds = study.Seeds(x, [[1, 2, 3], [3, 4, 5]], "a", {"color": "r"}, {"alpha": 0.5})
    axes = study.Grid(panels=[study.Panel(marks=[seeds], legend=None)]).draw().axes[0]
    assert [np.asarray(line.get_ydata()).tolist() for line in axes.lines] == [
        [1, 2, 3],
        [3, 4, 5],
        [2, 3, 4],
    ]
    assert [line.get_alpha() for line in axes.lines] == [0.5, 0.5, None]
    x_of = [np.asarray(line.get_xdata()).tolist() for line in axes.lines]
    assert x_of == [*np.broadcast_to(x, (2, 3)).tolist(), [0, 1, 2]]
    assert axes.lines[2].get_linewidth() > axes.lines[0].get_linewidth()
    assert axes.lines[2].get_label() == "a" and axes.get_legend() is None


@pytest.mark.parametrize("horizontal", [False, True])
def test_bars_of_seeds_are_means_with_a_dot_each(horizontal: bool):
    bars = study.SeedBars([5, 6], [np.array([1, 3]), np.array([4])], horizontal=horizontal)
    axes = study.Grid(panels=[study.Panel(marks=[bars], legend=None)]).draw().axes[0]
    (rectangles,) = axes.containers
    sizes = [(r.get_width() if horizontal else r.get_height()) for r in rectangles]
    assert sizes == [2, 4]
    dots = [(line.get_xdata(), line.get_ydata()) for line in axes.lines]
    expected = [([5, 5], [1, 3]), ([6], [4])]
    for dot, (places, values) in zip(dots, expected, strict=True):
        ordered = dot[::-1] if horizontal else dot
        assert [np.asarray(x).tolist() for x in ordered] == [places, values]


def test_limits_of_fields_are_checked():
    config = types.SimpleNamespace(seeds=0, sizes=(3, 1), none=())
    study.at_least(1, config, "sizes")
    with pytest.raises(ValueError, match=r"^seeds must be >= 1, got 0$"):
        study.at_least(1, config, "sizes", "seeds")
    for name in ("sizes", "none"):
        with pytest.raises(ValueError, match=rf"^{name} must be numbers >= 2, got "):
            study.at_least(2, config, name)


@pytest.mark.parametrize(("seeds", "containers"), [(1, 0), (3, 1)])
def test_bars_are_of_more_than_one_seed(seeds: int, containers: int):
    bars = study.Bars([1.0, 2.0], [np.arange(seeds), np.arange(seeds) + 1.0], "a")
    axes = study.Grid(panels=[study.Panel(marks=[bars])]).draw().axes[0]
    assert len(axes.containers) == containers


def test_a_study_runs_its_arms_once_and_keeps_them(tmp_path: pathlib.Path):
    ran: list[int] = []

    def arm(k: int, work: reproduce.Work) -> Iterator[reproduce.Row]:
        ran.append(k)
        work.tick(1)
        yield {"k": k}

    of_two = study.Study(
        claim="c",
        source="s",
        config=2,
        arms=lambda count: [
            study.Arm(f"part-{k}", 10 * (k + 1), lambda work, k=k: arm(k, work), "t", {"arm": -k})
            for k in range(count)
        ],
        tables=lambda count, rows: study.split(rows, "t"),
        claims=lambda count, tables: [study.reported("rows", len(tables["t"]))],
        figures=lambda count, tables: {
            "f": study.Grid(panels=[study.Panel(marks=[study.Line([0], [1], "a")])])
        },
        seconds=lambda count: 1.0,
    )
    unseen = study.Arm("unseen", 0, lambda work: work.kept("part-1"), None)
    with_unseen = dataclasses.replace(of_two, arms=lambda count: [*of_two.arms(count), unseen])
    entry = with_unseen
    assert entry.steps(2) == 30
    for _ in range(2):
        work = reproduce.Work(tmp_path, progress.Progress("test", 0, 30, quiet=True))
        result = entry.run(2, work)
        assert result.tables == {"t": [{"arm": 0, "k": 0}, {"arm": -1, "k": 1}]}
        assert work.kept("part-1") == [{"k": 1}]
        assert result.checks == [("rows", None, "2")] and list(result.figures) == ["f"]
    assert ran == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "part-0.json",
        "part-1.json",
        "unseen.json",
    ]
    for name, k in (("part-0", 0), ("unseen", 1)):
        assert f'"rows": [{{"k": {k}}}]' in (tmp_path / f"{name}.json").read_text()
