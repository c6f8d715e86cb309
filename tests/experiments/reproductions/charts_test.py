"""Tests of experiments/reproductions/charts.py: what marks draw."""

import numpy as np
import pytest

from kullback.experiments.reproductions import charts


def test_a_panel_draws_lines_bands_bounds_levels_and_notes():
    line = charts.Line([1, 2], [3, 4], "a", {"color": "r"}, band=([2, 3], [4, 5]), bound=[6, 7])
    levels = [charts.Level(5, {"color": "k"}), charts.Level(6, {"color": "g"}, is_vertical=True)]
    notes = charts.Notes([1, 2], [3, 4], ["x", "y"], {"fontsize": 7})
    panel = charts.Panel(marks=[line, *levels, notes], axes={"title": "t"})
    grid = charts.Grid(panels=[panel, charts.Panel(), panel], columns=2, title="all")
    figure = grid.draw()
    full, empty, _ = figure.axes
    assert [axis.get_color() for axis in full.lines] == ["r", "r", "k", "g"]
    assert full.lines[3].get_xdata() == [6, 6]
    assert [text.get_text() for text in full.texts] == ["x", "y"]
    assert np.asarray(full.lines[1].get_ydata()).tolist() == [6, 7]
    assert len(full.collections) == 1 and full.get_title() == "t"
    assert not empty.axison


@pytest.mark.parametrize("x", [[0, 1, 2], [[-1, 1, 2], [1, 1, 2]]])
def test_seeds_are_thin_lines_and_their_mean_is_a_thick_one(x: list[int]):
    seeds = charts.Seeds(x, [[1, 2, 3], [3, 4, 5]], "a", {"color": "r"}, {"alpha": 0.5})
    axes = charts.Grid(panels=[charts.Panel(marks=[seeds], legend=None)]).draw().axes[0]
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
    bars = charts.SeedBars([5, 6], [np.array([1, 3]), np.array([4])], horizontal=horizontal)
    axes = charts.Grid(panels=[charts.Panel(marks=[bars], legend=None)]).draw().axes[0]
    (rectangles,) = axes.containers
    sizes = [(r.get_width() if horizontal else r.get_height()) for r in rectangles]
    assert sizes == [2, 4]
    dots = [(line.get_xdata(), line.get_ydata()) for line in axes.lines]
    expected = [([5, 5], [1, 3]), ([6], [4])]
    for dot, (places, values) in zip(dots, expected, strict=True):
        ordered = dot[::-1] if horizontal else dot
        assert [np.asarray(x).tolist() for x in ordered] == [places, values]


def test_bars_of_arms_stand_side_by_side_around_their_places():
    samples = [np.array([1.0, 3.0]), np.array([2.0])]
    left, right = (charts.beside(n, 2, samples, span=0.8) for n in range(2))
    np.testing.assert_allclose(left.x, [-0.2, 0.8])
    np.testing.assert_allclose(right.x, [0.2, 1.2])
    assert (left.style, right.style) == (
        {"width": 0.4, "color": "C0"},
        {"width": 0.4, "color": "C1"},
    )
    (alone,) = np.asarray(charts.beside(1, 3, samples[:1], at=np.array([5]), span=0.81).x)
    assert alone == 5  # The one in the middle.


@pytest.mark.parametrize(("seeds", "containers"), [(1, 0), (3, 1)])
def test_bars_are_of_more_than_one_seed(seeds: int, containers: int):
    bars = charts.Bars([1.0, 2.0], [np.arange(seeds), np.arange(seeds) + 1.0], "a")
    axes = charts.Grid(panels=[charts.Panel(marks=[bars])]).draw().axes[0]
    assert len(axes.containers) == containers
