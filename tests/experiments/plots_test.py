"""Tests of experiments/plots.py: what is drawn, and that a PNG is whole."""

import math
import pathlib

import matplotlib.figure
import numpy as np
import PIL.Image
import pytest

from kullback.experiments import plots


def rows(num_seeds: int, count: int, evaluated: bool = False) -> list[dict[str, str]]:
    """Returns rows of metrics.csv; the return of seed s after i intervals is i + s."""
    return [
        {
            "seed": str(seed),
            "steps": str(100 * i),
            # No episode ends in the first interval.
            "return_mean": str(float(i + seed)) if i > 1 else "nan",
            "evaluation": str(float(i)) if evaluated and i % 2 == 0 else "nan",
        }
        for i in range(1, count + 1)
        for seed in range(num_seeds)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Returns lines by label, [2, points], of the picture that is saved next."""
    lines: dict[str, np.ndarray] = {}
    save = matplotlib.figure.Figure.savefig

    def spy(self: matplotlib.figure.Figure, *arguments: object, **options: object) -> None:
        for line in self.axes[0].get_lines():
            lines[str(line.get_label())] = np.asarray(line.get_data())
        save(self, *arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    return lines


def draw(tmp_path: pathlib.Path, of: list[dict[str, str]]) -> None:
    path = tmp_path / "curve.png"
    plots.learning_curve(of, path, "m-dqn on toy/chain")
    with PIL.Image.open(path) as picture:
        picture.load()  # All of it can be read.
        assert picture.format == "PNG" and picture.size == (768, 480)
    assert [file.name for file in tmp_path.iterdir()] == ["curve.png"]


def test_one_seed_is_drawn_as_it_is_and_smooth(tmp_path: pathlib.Path, drawn: dict):
    draw(tmp_path, rows(1, 4))
    np.testing.assert_array_equal(drawn["each interval"][1], [math.nan, 2, 3, 4])
    # Means of what is known so far: 2, (2 + 3) / 2, (2 + 3 + 4) / 3.
    np.testing.assert_array_equal(drawn["mean of ten"][1], [math.nan, 2, 2.5, 3])
    np.testing.assert_array_equal(drawn["mean of ten"][0], [100, 200, 300, 400])
    assert "evaluation" not in drawn


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_one_interval_is_a_point_that_can_be_seen(num_seeds: int, tmp_path: pathlib.Path):
    colours = []
    for count in (1, 2):  # In the first no episode ends.
        plots.learning_curve(rows(num_seeds, count), tmp_path / "curve.png", "m-dqn")
        with PIL.Image.open(tmp_path / "curve.png") as picture:
            inside = np.asarray(picture.convert("RGB").crop((100, 60, 480, 400)), int)
        colours.append(np.any(inside[..., 2] - inside[..., 0] > 100))
    assert colours == [False, True]


def test_several_seeds_have_a_mean_and_evaluations_are_points(tmp_path: pathlib.Path, drawn: dict):
    draw(tmp_path, rows(3, 5, evaluated=True))
    np.testing.assert_array_equal(drawn["one seed"][1], [math.nan, 2, 3, 4, 5])
    # Seeds 0, 1, 2 are one apart; where none has a return there is no mean.
    np.testing.assert_array_equal(drawn["mean of seeds"], [[200, 300, 400, 500], [3, 4, 5, 6]])
    np.testing.assert_array_equal(drawn["evaluation"], [[200, 400], [2, 4]])


def test_a_seed_without_episodes_counts_by_its_last_return(tmp_path: pathlib.Path, drawn: dict):
    of = rows(2, 4)  # Returns n + seed, from the second row on.
    for row in of:
        if (row["seed"], row["steps"]) == ("0", "300"):
            row["return_mean"] = "nan"
    draw(tmp_path, of)
    # At 300 the mean of seed 0's last return, 2, and seed 1's, 4.
    np.testing.assert_array_equal(drawn["mean of seeds"][1], [2.5, 3, 4.5])


def test_a_language_model_has_scores_or_else_its_loss(tmp_path: pathlib.Path, drawn: dict):
    path, of = tmp_path / "curve.png", rows(1, 4)
    of = [{**row, "loss": str(9 - n)} for n, row in enumerate(of)]
    plots.learning_curve(of, path, "gkd", plots.TEXTS)
    np.testing.assert_array_equal(drawn["each interval"][1], [math.nan, 2, 3, 4])
    plots.learning_curve([{**row, "return_mean": "nan"} for row in of], path, "sft", plots.TEXTS)
    np.testing.assert_array_equal(drawn["each interval"][1], [9, 8, 7, 6])


def test_a_policy_that_learns_from_rewards_has_its_kl_below(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    pictures: list[matplotlib.figure.Figure] = []
    save = matplotlib.figure.Figure.savefig

    def spy(self: matplotlib.figure.Figure, *arguments: object, **options: object) -> None:
        pictures.append(self)
        save(self, *arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", spy)
    columns = [{"kl_start": str(3.0 * n), "kl_runaway": str(float(n > 1))} for n in range(4)]
    of = [{**row, **more} for row, more in zip(rows(1, 4), columns, strict=True)]
    old = [{name: x for name, x in row.items() if name != "kl_runaway"} for row in of]
    for table in (of, old, rows(1, 4), []):
        plots.learning_curve(table, tmp_path / "curve.png", "rlhf", plots.REWARDED)
    new, without_marks, without_kl, empty = ([*figure.axes] for figure in pictures)
    assert [len(x) for x in (new, without_marks, without_kl, empty)] == [2, 2, 1, 1]
    assert new[1].get_ylabel() == "KL to the start, nats a text" and not new[0].get_xlabel()
    lines = {line.get_label(): np.asarray(line.get_data()) for line in new[1].get_lines()}
    np.testing.assert_array_equal(lines["each interval"], [[100, 200, 300, 400], [0, 3, 6, 9]])
    np.testing.assert_array_equal(lines["runs away"], [[300, 400], [6, 9]])
    assert "runs away" not in {line.get_label() for line in without_marks[1].get_lines()}
    with PIL.Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (768, 480)


def test_seeds_of_which_one_is_still_running_are_drawn_without_a_mean(
    tmp_path: pathlib.Path, drawn: dict
):
    draw(tmp_path, [*rows(1, 4), {**rows(1, 4)[0], "seed": "1"}])
    assert "one seed" in drawn and "mean of seeds" not in drawn


def test_nothing_yet(tmp_path: pathlib.Path, drawn: dict):
    draw(tmp_path, [])
    assert not drawn
    draw(tmp_path, rows(2, 1))  # No episode has ended.


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_same_rows_are_the_same_file(ending: str, tmp_path: pathlib.Path):
    paths = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for path in paths:
        drawn = plots.grid()
        drawn.axes[0].plot([0, 1], [2, 3], marker="o")
        plots.save(drawn, path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second


def test_a_drawing_that_fails_leaves_the_one_before(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    draw(tmp_path, rows(1, 4))
    before = (tmp_path / "curve.png").read_bytes()

    def full(self: object, path: pathlib.Path, **options: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", full)
    with pytest.raises(OSError, match="no space"):
        plots.learning_curve(rows(1, 5), tmp_path / "curve.png", "")
    assert (tmp_path / "curve.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_name_is_no_mathematics(drawn: dict[str, np.ndarray], tmp_path: pathlib.Path):
    path = tmp_path / "curve.png"
    plots.learning_curve(rows(1, 3), path, r"sft on tokens/jsonl:$\frac$.jsonl")
    with PIL.Image.open(path) as picture:
        assert picture.size == (768, 480) and drawn
