"""Tests of experiments/reproductions/shapes.py."""

import collections
import re

import numpy as np
import pytest

from kullback.experiments.reproductions import shapes

MOST, LARGEST = 4, 7


@pytest.fixture(scope="module")
def learnt() -> list[shapes.Row]:
    return shapes.learnt(np.random.default_rng(0), 3_500, MOST, LARGEST)


@pytest.fixture(scope="module")
def further() -> list[shapes.Row]:
    return shapes.counts_up_to(np.random.default_rng(1), 800, MOST, LARGEST)


def objects(row: shapes.Row) -> list[tuple[str, str, int, int]]:
    """Returns colour, shape, row and column of each shape of a picture."""
    colours = list(shapes.COLOURS)
    return [
        (colours[kind // 3], shapes.SHAPES[kind % 3], cell // 4, cell % 4)
        for cell, kind in enumerate(row.kinds)
        if kind != shapes.EMPTY
    ]


def answer(row: shapes.Row) -> str:
    """Returns the answer, from the question's text and what stands in the picture."""
    present = objects(row)
    if row.question == "how many in all?":
        return str(len(present))
    if counted := re.fullmatch(r"how many (\w+)\?", row.question):
        return str(sum(counted[1] in (colour, shape) for colour, shape, *_ in present))
    placed = re.fullmatch(r"what is (left|above), (\w+) or (\w+)\?", row.question)
    assert placed
    where, one, other = placed.groups()
    ((a,), (b,)) = ([x for x in present if x[0] == colour] for colour in (one, other))
    return one if (a[3] < b[3] if where == "left" else a[2] < b[2]) else other


def test_answers_are_those_of_the_pictures(learnt: list[shapes.Row], further: list[shapes.Row]):
    for row in [*learnt, *further]:
        assert row.answer == answer(row), row
        assert row.question in shapes.questions() and row.answer in shapes.ANSWERS
        assert 1 <= len(objects(row)) <= shapes.MOST_SHAPES
        assert row.kinds.shape == (16,) and row.kinds.max() < shapes.NUM_KINDS
        assert row.about == "relation" or row.number == int(row.answer)
    assert len(set(shapes.questions())) == len(shapes.questions()) == 7 + 1 + 24


def test_nothing_is_frequent_but_the_colour_that_is_counted_beyond(
    learnt: list[shapes.Row], further: list[shapes.Row]
):
    def counts(row: shapes.Row) -> collections.Counter[str]:
        return collections.Counter(name for shape in objects(row) for name in shape[:2])

    for row in [*learnt, *further]:
        others = counts(row)
        if row.about in ("colours", "shapes"):
            assert others.pop(row.question.split()[2][:-1], 0) == row.number
        assert row.about == "relation" or max(others.values(), default=0) <= MOST
    colours, shapes_ = ({row.number for row in learnt if row.about == k} for k in shapes.KINDS[:2])
    assert colours == set(range(MOST + 1)) and shapes_ == set(range(LARGEST + 1))
    numbers = collections.Counter(row.number for row in further)
    assert numbers == {n: 100 for n in range(LARGEST + 1)}


def test_what_can_be_guessed_without_a_picture(learnt: list[shapes.Row]):
    shares = {"colours": 1 / (1 + MOST), "shapes": 1 / (1 + LARGEST), "total": 1 / 9}
    for about, share in {**shares, "relation": 1 / 2}.items():
        rows = [row for row in learnt if row.about == about]
        assert len(rows) == len(learnt) // 7 * shapes.ROUND.count(about)
        shown, new = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        right = shapes.guessed(shown, new)
        error = np.sqrt(share * (1 - share) / len(new))
        assert abs(right.mean() - share) < 4 * error, about
    assert {row.question for row in learnt} == set(shapes.questions())


def test_golden_guesses():
    def row(question: str, answer: str) -> shapes.Row:
        return shapes.Row(np.full(16, shapes.EMPTY), question, answer, "count")

    learnt = [row("a", "1"), row("a", "2"), row("a", "2"), row("b", "3")]
    rows = [row("a", "2"), row("a", "1"), row("b", "3"), row("c", "1")]
    assert shapes.guessed(learnt, rows).tolist() == [True, False, True, False]


def test_shapes_can_be_told_apart_wherever_they_stand():
    masks = shapes.MASKS.reshape(3, -1, 64)
    assert len(np.unique(masks.reshape(-1, 64), axis=0)) == 3 * masks.shape[1]
    assert masks.sum(-1).min() >= 8, "each has some pixels"
    square, disc, triangle = shapes.MASKS[:, 1, 1, 1]
    assert square.sum() == 36 and disc.sum() == 24 and triangle.sum() == 24
    # A disc is its own mirror, up and down; a triangle stands on its base.
    assert np.array_equal(disc, disc[::-1]) and not np.array_equal(triangle, triangle[::-1])
    assert triangle[1].sum() == 2 and triangle[6].sum() == 6


def test_pixels_are_those_of_the_kinds():
    """Each cell is read back from its bright pixels: their colour, and how many there are."""
    random = np.random.default_rng(2)
    kinds = np.stack([row.kinds for row in shapes.learnt(random, 60, MOST, LARGEST)])
    pixels = shapes.drawn(kinds, random)
    assert pixels.shape == (60, 32, 32, 3) and pixels.dtype == np.uint8
    palette = np.array([*shapes.COLOURS.values()], float)
    for picture, of_picture in zip(pixels, kinds, strict=True):
        for cell, kind in enumerate(of_picture):
            top, left = 8 * (cell // 4), 8 * (cell % 4)
            part = picture[top : top + 8, left : left + 8].reshape(-1, 3).astype(float)
            is_bright = part.max(1) > 110
            if kind == shapes.EMPTY:
                assert not is_bright.any()
                continue
            assert 8 <= is_bright.sum() <= 36
            mean = part[is_bright].mean(0)
            assert np.argmin(((palette - mean) ** 2).sum(1)) == kind // 3
    again = shapes.drawn(kinds, np.random.default_rng(3))
    assert not np.array_equal(pixels, again), "sizes, places and noise are drawn anew"
