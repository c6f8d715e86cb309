"""Acting in another process: what makes it there, what passes between, and how it fails.

A worker that is no thread of the process that learns gets a recipe, and makes of it what acts: an
agent with environments, or a program that writes texts. Then it gets what is asked for (of games an
`acting.Ask`) with parameters as numbers, and gives arrays. How these travel is the worker's own
matter: a socket (actor_process.py), or a cluster.
"""

import dataclasses
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from kullback.core import posts, types

START_SECONDS = 300.0  # For a worker to be there.
SECONDS = 600.0  # An answer that takes longer is that of a worker that is lost.


class Acts(Protocol):
    """The acting of a worker in the process where it is."""

    def answer(self, ask: Any, version: Any) -> Any:
        """Acts what is asked for, by parameters as `numbers` returns them; returns arrays."""
        ...

    def close(self) -> None:
        """Frees what it made, such as environments."""
        ...


# Makes the acting of a worker; it must be picklable, so a function of a module, or such an object.
Recipe = Callable[[], Acts]


class Said(NamedTuple):
    """The answer of a worker, or why it cannot act."""

    answer: Any  # Arrays; None if there is none.
    error: str = ""  # Then.


def numbers(leaves: Sequence[Any]) -> list[np.ndarray]:
    """Returns parameters as other processes take them.

    Raises:
      ValueError: if acting reads a random key, which is no number.
    """
    try:
        return [np.asarray(leaf) for leaf in leaves]
    except TypeError as error:
        raise ValueError(
            "this agent acts by a random key of its learner, so it acts in the process that learns"
        ) from error


class Parted(NamedTuple):
    """Acting parameters in two: leaves that no version changes, and the places of the others."""

    numbers: Any  # The tree, where each leaf is its number.
    frozen: dict[int, Any]  # Leaves by their number, NumPy.

    def others(self, acting: Any) -> list[Any]:
        """Returns the leaves of a version that may have changed."""
        leaves = jax.tree.leaves(acting)
        return [leaf for n, leaf in enumerate(leaves) if n not in self.frozen]

    def whole(self, others: Sequence[Any]) -> Any:
        """Returns the acting parameters that have these other leaves."""
        given = iter(others)
        return jax.tree.map(
            lambda n: self.frozen[n] if n in self.frozen else next(given), self.numbers
        )


def parted(acting: Any, constants: types.Constants) -> Parted:
    """Returns acting parameters in two; leaves that are the constants' own never change."""
    leaves, structure = jax.tree.flatten(acting)
    by_id = {id(x): np.asarray(x) for x in jax.tree.leaves(constants)}  # Each is pickled once.
    frozen = {n: by_id[id(leaf)] for n, leaf in enumerate(leaves) if id(leaf) in by_id}
    return Parted(structure.unflatten(range(len(leaves))), frozen)


def sharing(
    number: int, constants: types.Constants, make: Callable[[Parted], posts.Workers]
) -> posts.Workers:
    """Returns workers that get what no version changes once, with their recipe.

    Args:
      number: of the workers.
      constants: frozen parameters of the run.
      make: (acting parameters in two) -> workers whose `publish` takes those that change.
    """
    begun: list[tuple[Parted, posts.Workers]] = []  # By the first version.

    def publish(version: int, acting: Any) -> Any:
        if not begun:
            in_two = parted(acting, constants)
            begun.append((in_two, make(in_two)))
        in_two, workers = begun[0]
        return workers.publish(version, in_two.others(acting))

    return posts.Workers(number, lambda n: begun[0][1].hire(n), publish)


def pickled(recipe: Recipe) -> bytes:
    """Returns a recipe, and where Python looks for modules here, as `Host` takes them.

    Raises:
      ValueError: if the recipe names a function that no other process can import.
    """
    path = [os.path.abspath(place) for place in sys.path]  # "" is the folder of now.
    try:
        return pickle.dumps((path, pickle.dumps(recipe)))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(
            "workers in other processes import agent and environment: hand over functions of a "
            f"module, not of a function or a notebook ({error})"
        ) from error


def late(name: str) -> str:
    """Returns why a worker that answers no more counts as lost."""
    return f"{name} gave no chunk for {SECONDS:.0f} seconds"


def answered(said: Said) -> Any:
    """Returns the answer of a worker.

    Raises:
      ValueError: for an error of the environment or the agent.
    """
    if said.error:
        raise ValueError(said.error)
    return said.answer


@dataclasses.dataclass(kw_only=True)
class Host:
    """The acting of this process for another one."""

    given: bytes  # As `pickled` returns it.
    local: Acts | None = None

    def act(self, ask: Any, leaves: Sequence[np.ndarray]) -> Said:
        """Acts what is asked for; the first time makes what acts."""
        try:
            if self.local is None:
                self.local = _made(self.given)
            return Said(self.local.answer(ask, leaves))
        except Exception as error:
            return Said(None, _described(error))

    def close(self) -> None:
        """Frees what was made."""
        if self.local is not None:
            self.local.close()


def _made(given: bytes) -> Acts:
    """Returns what the recipe of the process that learns makes."""
    path, recipe = pickle.loads(given)
    # Another machine may have its packages elsewhere.
    sys.path[:] = [*path, *(place for place in sys.path if place not in path)]
    return pickle.loads(recipe)()


def _described(error: Exception) -> str:
    """Returns an error of the environment as a line, and any other with its trace."""
    if isinstance(error, ValueError) and str(error):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()
