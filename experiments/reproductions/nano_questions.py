"""Questions of three kinds that have the same answers: to look up, to remember, and to work out.

All stand behind a picture of coloured shapes (shapes.py), and the answer is one of four colours:

    retrieval  "c2?"    the colour of the shape in that cell of the picture
    facts      "n217?"  the colour of a number, drawn once a seed; only what was learnt has it
    reasoning  "c2+3?"  the colour so many steps on from that cell's, round the ring of four

So that without knowing anything a quarter of each kind is right. Pictures are always new, and those
before a fact say nothing of it.

C = 16 cells.
"""

import dataclasses

import numpy as np

from kullback.core import ranges
from kullback.experiments.reproductions import shapes

KINDS = ("retrieval", "facts", "reasoning")
COLOURS = tuple(shapes.COLOURS)  # In the order of the ring.
CELLS = tuple(f"{column}{row}" for row in range(1, 5) for column in "abcd")  # As in a picture.
MOST_FACTS = 1_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many questions there are."""

    facts: int = 500  # Numbers that have a colour.
    terms: int = 1  # Numbers of steps that are added, 0 to 3 each.
    learnt: int = 12_000  # Rows that are learnt from, of all kinds alike.
    held_out: int = 1_000  # Of each kind; of facts, those that were learnt.

    def __post_init__(self) -> None:
        ranges.inside(f"[1, {MOST_FACTS}]", self, "facts")
        ranges.inside("[1, 4]", self, "terms")
        ranges.at_least(len(KINDS), self, "learnt")
        ranges.at_least(1, self, "held_out")


def texts() -> list[str]:
    """Returns questions and answers of every form, for a tokenizer."""
    cells = [f"{cell}{rest}" for cell in CELLS for rest in ("?", "+0?", "+1+2+3+0?")]
    return [*cells, *(f"n{n:03}?" for n in range(0, MOST_FACTS, 50)), *COLOURS]


def look_up(random: np.random.Generator, terms: int) -> shapes.Row:
    """Draws a picture and asks for a colour of it, or for one that is so many steps on.

    Args:
      random: draws.
      terms: numbers of steps that are added; 0 asks for the colour itself.
    """
    kinds = picture(random)
    cell = int(random.choice(np.flatnonzero(kinds != shapes.EMPTY)))
    steps = random.integers(0, len(COLOURS), terms)
    colour = kinds[cell] // len(shapes.SHAPES) + int(np.sum(steps))
    question = "+".join((CELLS[cell], *map(str, steps))) + "?"
    kind = "reasoning" if terms else "retrieval"
    return shapes.Row(kinds, question, COLOURS[colour % len(COLOURS)], kind)


def picture(random: np.random.Generator) -> np.ndarray:
    """Draws 4 to 9 shapes in a picture's cells, kinds int [C]."""
    kinds = np.full(shapes.CELLS**2, shapes.EMPTY)
    number = int(random.integers(4, shapes.MOST_SHAPES + 1))
    cells = random.permutation(len(kinds))[:number]
    kinds[cells] = random.integers(0, shapes.NUM_KINDS, number)
    return kinds


def world(sizes: Sizes, random: np.random.Generator) -> np.ndarray:
    """Draws the colours of numbers, int [facts]."""
    return random.integers(0, len(COLOURS), sizes.facts)


def rows(
    sizes: Sizes, colours: np.ndarray, kind: str, number: int, random: np.random.Generator
) -> list[shapes.Row]:
    """Returns so many rows of a kind; facts come in turn, in another order each time round.

    Args:
      sizes: of the questions.
      colours: of numbers, int [facts].
      kind: one of `KINDS`.
      number: of rows.
      random: draws.
    """
    if kind != "facts":
        return [look_up(random, sizes.terms * (kind == "reasoning")) for _ in range(number)]
    rounds = -(-number // len(colours))
    order = np.concatenate([random.permutation(len(colours)) for _ in range(rounds)])[:number]
    return [
        shapes.Row(picture(random), f"n{n:03}?", COLOURS[colours[n]], kind) for n in order.tolist()
    ]
