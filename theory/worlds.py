"""Small processes whose structure one can draw: a chain, a grid, a random walk.

All of them end in a last state that returns to itself and pays nothing. They are made by NumPy
and checked by `mdp.make`; the rewards are the expected ones of a state and action.
"""

from collections.abc import Sequence

import numpy as np

from kullback.theory import mdp
from kullback.theory.mdp import MDP

LEFT, RIGHT = 0, 1  # The actions of `chain`.
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # The actions of `gridworld`: up, down, left, right.


def chain(length: int = 8, *, slip: float = 0.0, discount: float = 0.99) -> MDP:
    """Returns a corridor of `length` places: right from the last pays 1 and ends the episode.

    Left of place 0 is place 0. It begins at place 0; S is length + 1, the end included. The
    compiled environment `toy/chain` has the same dynamics.

    Args:
      length: places, at least 1.
      slip: probability in [0, 1] of a step in the other direction.
      discount: in [0, 1).
    """
    if length < 1:
        raise ValueError(f"length must be >= 1, got {length}")
    _check_probability("slip", slip)
    end = length
    places = np.arange(length + 1)
    left = np.where(places == end, end, np.maximum(places - 1, 0))
    right = np.minimum(places + 1, end)
    successors = np.stack([np.stack([left, right], -1), np.stack([right, left], -1)], 1)
    probabilities = np.broadcast_to([1 - slip, slip], successors.shape)
    reward = np.zeros((length + 1, 2))
    reward[length - 1] = slip, 1 - slip
    return mdp.make(probabilities, reward, discount, successors=successors, initial=places == 0)


def random_walk(length: int = 19, *, discount: float = 0.99) -> MDP:
    """Returns a symmetric random walk, A = 1: leaving on the right pays 1, on the left 0.

    It begins in the middle; S is length + 1, the end included. Sutton & Barto, "Reinforcement
    Learning", 2018, example 6.2, has five places. With discount d and z the larger root of
    d (1 + z^2) = 2 z, the value of place i = 1, ..., length is

        (z^i - z^-i) / (z^(length+1) - z^-(length+1))

    divided by d, as the reward for leaving is not discounted and that formula's end is.
    """
    if length < 1:
        raise ValueError(f"length must be >= 1, got {length}")
    end = length
    places = np.arange(length)
    successors = np.full((length + 1, 1, 2), end)
    successors[:length, 0, 0] = np.where(places == 0, end, places - 1)
    successors[:length, 0, 1] = places + 1
    reward = np.zeros((length + 1, 1))
    reward[length - 1] = 0.5
    initial = np.arange(length + 1) == length // 2
    return mdp.make(
        np.full(successors.shape, 0.5), reward, discount, successors=successors, initial=initial
    )


def gridworld(
    rows: Sequence[str] = ("...#...G", "...#....", ".....#..", "S..#...."),
    *,
    slip: float = 0.1,
    step_reward: float = 0.0,
    discount: float = 0.99,
) -> MDP:
    """Returns a maze: "#" is a wall, "." free, "S" the start, "G" a goal, which pays 1 and ends it.

    Moving into a wall or off the map stays. The free cells are numbered as one reads; S is their
    number plus one for the end, to which every action in a goal leads.

    Args:
      rows: the map, strings of equal length.
      slip: probability in [0, 1] that the move is one of the four at random.
      step_reward: reward of every step outside the goals; negative ones hurry.
      discount: in [0, 1).

    Raises:
      ValueError: for a map that is not a rectangle, has another letter, or has no goal.
    """
    _check_probability("slip", slip)
    if not rows or len({len(row) for row in rows}) != 1:
        raise ValueError(f"the rows of the map must be of equal length, got {list(rows)}")
    if wrong := set("".join(rows)) - set("#.SG"):
        raise ValueError(f"the map has {sorted(wrong)}; expected '#', '.', 'S' and 'G'")
    cells = {(i, j): row[j] for i, row in enumerate(rows) for j in range(len(row))}
    free = [cell for cell, letter in cells.items() if letter != "#"]
    number = {cell: n for n, cell in enumerate(free)}
    goals = [number[cell] for cell in free if cells[cell] == "G"]
    if not goals:
        raise ValueError(f"the map has no goal 'G': {list(rows)}")
    end = len(free)
    moved = np.full((end + 1, len(MOVES)), end)
    for (i, j), n in number.items():
        moved[n] = [number.get((i + di, j + dj), n) for di, dj in MOVES]
    moved[goals] = end
    # A move's own successor comes first, then those of a slip.
    slips = np.broadcast_to(moved[:, None, :], (end + 1, len(MOVES), len(MOVES)))
    successors = np.concatenate([moved[:, :, None], slips], -1)
    probabilities = np.broadcast_to([1 - slip] + [slip / len(MOVES)] * len(MOVES), successors.shape)
    reward = np.full(end + 1, step_reward)
    reward[goals], reward[end] = 1.0, 0.0
    starts = np.array([cells[cell] == "S" for cell in free] + [False])
    initial = starts / starts.sum() if starts.any() else None
    return mdp.make(probabilities, reward, discount, successors=successors, initial=initial)


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
