"""Tests of experiments/reproductions/nano_questions.py."""

import numpy as np
import pytest

from kullback.experiments.reproductions import nano_questions, shapes

SIZES = nano_questions.Sizes(facts=7, terms=2, learnt=60, held_out=40)
WORLD = nano_questions.world(SIZES, np.random.default_rng(0))
NAMES = [*shapes.COLOURS]


def rows(kind: str, number: int) -> list[shapes.Row]:
    return nano_questions.rows(SIZES, WORLD, kind, number, np.random.default_rng(1))


def seen(given: list[shapes.Row]) -> list[int]:
    """Returns the colours that most pixels of the named cells have."""
    pixels = shapes.drawn(np.stack([row.kinds for row in given]), np.random.default_rng(2))
    palette, colours = np.array([*shapes.COLOURS.values()], float), list[int]()
    for row, picture in zip(given, pixels, strict=True):
        column, line = "abcd".index(row.question[0]), int(row.question[1]) - 1
        cell = picture[8 * line : 8 * line + 8, 8 * column : 8 * column + 8].reshape(-1, 3)
        shape = cell[cell.max(1) > 120].astype(float)  # The background is darker.
        colours.append(int(((shape.mean(0) - palette) ** 2).sum(1).argmin()))
    return colours


def test_what_is_looked_up_stands_in_its_cell():
    given = rows("retrieval", 60)
    assert [NAMES[colour] for colour in seen(given)] == [row.answer for row in given]
    assert {row.answer for row in given} == set(NAMES)
    assert all(len(row.question) == 3 and row.about == "retrieval" for row in given)


def test_what_is_worked_out_is_so_many_steps_on():
    given = rows("reasoning", 60)
    for row, colour in zip(given, seen(given), strict=True):
        steps = [int(digit) for digit in row.question[3:-1].split("+")]
        assert len(steps) == SIZES.terms and max(steps) <= 3
        assert row.answer == NAMES[(colour + sum(steps)) % 4]


def test_facts_are_of_the_world_whatever_the_picture():
    given = rows("facts", 21)
    by_question = {row.question: row.answer for row in given}
    assert sorted(by_question) == [f"n{n:03}?" for n in range(7)]
    assert len(given) == 3 * len(by_question), "each comes as often as another"
    for row in given:
        assert row.answer == NAMES[WORLD[int(row.question[1:4])]]
    assert len({row.kinds.tobytes() for row in given}) == 21


def test_all_forms_are_among_the_texts_of_a_tokenizer():
    texts = nano_questions.texts()
    assert set(shapes.COLOURS) <= set(texts)
    assert any(text.startswith("n") for text in texts) and any("+" in text for text in texts)
    assert {f"{cell}?" for cell in nano_questions.CELLS} <= set(texts)


@pytest.mark.parametrize(
    ("field", "value"), [("facts", 1_001), ("terms", 0), ("learnt", 2), ("held_out", 0)]
)
def test_sizes_that_cannot_be_are_refused(field: str, value: int):
    with pytest.raises(ValueError, match=field):
        nano_questions.Sizes(**{field: value})
