"""Pictures of coloured shapes, and questions whose answers are known: how many, and where.

A picture is a grid of 4 x 4 cells of 8 x 8 pixels, of which some have a shape: a square, a disc or
a triangle, in one of four colours. Sizes, places within a cell, shades, the background and noise
are drawn with each picture. A row has a picture and one question about it:

    colours   "how many red?", each number up to `most` as often as another
    shapes    "how many discs?", each number up to `largest` as often as another
    total     "how many in all?", 1 to 9
    relation  "what is left, red or blue?" or "above", of colours that occur once

So the best answer that needs no picture is right of 1 / (1 + most), 1 / (1 + largest), 1 / 9 and
1 / 2 of the rows. No colour or shape occurs more often than `most`, but for what is counted.

N pictures, C = 16 cells.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CELLS, CELL = 4, 8  # Cells of a side, and pixels of a cell's.
SIDE = CELLS * CELL  # Pixels of a picture's.
COLOURS = {"red": (220, 50, 40), "green": (40, 190, 80), "blue": (60, 90, 230)}
COLOURS |= {"yellow": (235, 215, 60)}
SHAPES = ("squares", "discs", "triangles")
NUM_KINDS = len(COLOURS) * len(SHAPES)
EMPTY = -1  # Kind of a cell without a shape; others are shape + 3 colour.
MOST_SHAPES = 9  # Of a picture.
WHERE, IN_ALL = ("left", "above"), "how many in all?"
ANSWERS = (*COLOURS, *map(str, range(MOST_SHAPES + 1)))
KINDS = ("colours", "shapes", "total", "relation")  # Of questions.
# Shares of the kinds in what is learnt, as one round of them: totals are learnt soonest.
ROUND = ("colours", "relation", "shapes", "colours", "relation", "shapes", "total")
RADII = (2.0, 2.5)  # Half the sides, in pixels.
SHIFTS = (-1, 0, 1)  # Of a shape's centre from its cell's, in pixels.


def questions() -> list[str]:
    """Returns all questions."""
    pairs = itertools.permutations(COLOURS, 2)
    where = [f"what is {word}, {a} or {b}?" for a, b in pairs for word in WHERE]
    return [*(f"how many {name}?" for name in (*COLOURS, *SHAPES)), IN_ALL, *where]


class Row(NamedTuple):
    """A picture and a question about it."""

    kinds: np.ndarray  # int, [C]: of each cell, from left to right, then from top to bottom.
    question: str
    answer: str
    about: str  # Name of the question's kind.
    number: int = -1  # The one that is the answer, if one is.


def count(random: np.random.Generator, numbers: Sequence[int], most: int, axis: int) -> Row:
    """Draws a picture and asks how many shapes have a colour, or how many of a shape there are.

    Args:
      random: draws.
      numbers: those that the answer is drawn from, at most `MOST_SHAPES`.
      most: of any other colour or shape.
      axis: 0 counts a colour, 1 a shape.
    """
    names = (tuple(COLOURS), SHAPES)[axis]
    which, number = int(random.integers(len(names))), int(random.choice(numbers))
    others = [n for n in range(len(names)) if n != which]
    room = min(MOST_SHAPES - number, most * len(others))
    rest = int(random.integers(number == 0, room + 1))  # A picture is not empty.
    counted = np.array([which] * number + _few(random, others, most, rest))
    rest_of = range((len(SHAPES), len(COLOURS))[axis])
    free = np.array(_few(random, rest_of, most, len(counted)))
    colours, shapes = (counted, free) if axis == 0 else (free, counted)
    kinds = _placed(random, colours, shapes)
    return Row(kinds, f"how many {names[which]}?", str(number), KINDS[axis], number)


def total(random: np.random.Generator, most: int) -> Row:
    """Draws a picture and asks how many shapes there are; `most` is of any colour or shape."""
    number = int(random.integers(1, MOST_SHAPES + 1))
    colours, shapes = (
        np.array(_few(random, range(len(names)), most, number)) for names in (COLOURS, SHAPES)
    )
    kinds = _placed(random, colours, shapes)
    return Row(kinds, IN_ALL, str(number), "total", number)


def relation(random: np.random.Generator) -> Row:
    """Draws a picture and asks which of two colours that occur once is further left or above."""
    order = random.permutation(len(COLOURS))
    rest = int(random.integers(0, 4))
    colours = np.concatenate([order[:2], random.choice(order[2:], rest)])
    shapes = random.integers(0, len(SHAPES), len(colours))
    along = int(random.integers(2))  # 0: columns, 1: rows.
    while True:
        cells = random.permutation(CELLS**2)[: len(colours)]
        one, other = (divmod(int(cell), CELLS)[1 - along] for cell in cells[:2])
        if one != other:
            break
    kinds = np.full(CELLS**2, EMPTY)
    kinds[cells] = colours * len(SHAPES) + shapes
    first, second = (list(COLOURS)[n] for n in order[:2])
    question = f"what is {WHERE[along]}, {first} or {second}?"
    return Row(kinds, question, first if one < other else second, "relation")


def question(random: np.random.Generator, about: str, most: int, largest: int) -> Row:
    """Draws a picture with a question of a kind; see this file's docstring for the numbers."""
    if about == "relation":
        return relation(random)
    if about == "total":
        return total(random, most)
    axis = KINDS.index(about)
    return count(random, range(1 + (most, largest)[axis]), most, axis)


def learnt(random: np.random.Generator, number: int, most: int, largest: int) -> list[Row]:
    """Returns so many rows of all kinds of questions, in rounds."""
    kinds = (ROUND[n % len(ROUND)] for n in range(number))
    return [question(random, about, most, largest) for about in kinds]


def counts_up_to(random: np.random.Generator, number: int, most: int, largest: int) -> list[Row]:
    """Returns so many questions of how many shapes have a colour, as often 0 as `largest`."""
    numbers = random.permutation(np.arange(number) % (largest + 1))
    return [count(random, [n], most, 0) for n in numbers]


def guessed(learnt: Sequence[Row], rows: Sequence[Row]) -> np.ndarray:
    """Returns which rows the best answer without a picture gets right, bool [N].

    It is the most frequent one of each question among those that were learnt from.
    """
    answers: dict[str, list[str]] = {}
    for row in learnt:
        answers.setdefault(row.question, []).append(row.answer)
    best = {q: max(sorted(set(given)), key=given.count) for q, given in answers.items()}
    return np.array([best.get(row.question) == row.answer for row in rows])


def _few(random: np.random.Generator, values: Sequence[int], most: int, number: int) -> list[int]:
    """Draws so many values, none more often than `most`."""
    return random.permutation(np.repeat(np.asarray(values, int), most))[:number].tolist()


def _placed(random: np.random.Generator, colours: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Returns the kinds of all cells, [C], of which random ones have these shapes."""
    kinds = np.full(CELLS**2, EMPTY)
    kinds[random.permutation(CELLS**2)[: len(colours)]] = colours * len(SHAPES) + shapes
    return kinds


def _masks() -> np.ndarray:
    """Returns which pixels a shape covers, bool, [shapes, radii, shifts, shifts, CELL, CELL]."""
    at = np.arange(CELL) - (CELL - 1) / 2
    masks = np.zeros((len(SHAPES), len(RADII), len(SHIFTS), len(SHIFTS), CELL, CELL), bool)
    for n, radius in enumerate(RADII):
        for i, down in enumerate(SHIFTS):
            for j, right in enumerate(SHIFTS):
                y, x = (at - down)[:, None], (at - right)[None]
                square = (abs(x) <= radius) & (abs(y) <= radius)
                masks[0, n, i, j] = square
                masks[1, n, i, j] = x**2 + y**2 <= (radius + 0.1) ** 2
                masks[2, n, i, j] = square & (abs(x) <= (y + radius + 1) / 2)
    return masks


MASKS = _masks()


def drawn(kinds: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Returns pictures, uint8 [N, SIDE, SIDE, 3], of kinds int [N, C]."""
    number, cells = kinds.shape
    size, down, right = (
        random.integers(0, count, (number, cells))
        for count in (len(RADII), len(SHIFTS), len(SHIFTS))
    )
    mask = MASKS[kinds % len(SHAPES), size, down, right] & (kinds != EMPTY)[..., None, None]
    palette = np.array([*COLOURS.values()], np.float32)
    shade = random.integers(-25, 26, (number, cells, 1))
    colour = palette[kinds // len(SHAPES)] + shade  # [N, C, 3]; of empty cells any.
    background = random.integers(0, 60, (number, 1, 1, 1, 1)).astype(np.float32)
    picture = np.where(mask[..., None], colour[:, :, None, None], background)
    picture = picture.reshape(number, CELLS, CELLS, CELL, CELL, 3).swapaxes(2, 3)
    picture = picture.reshape(number, SIDE, SIDE, 3)
    picture += random.normal(0, 8, picture.shape).astype(np.float32)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
