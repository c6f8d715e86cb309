"""Tests of core/acting_elsewhere.py: what travels once, and what with every version."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import acting_elsewhere, posts, types

BASE = {"a": jnp.arange(3.0), "b": {"c": jnp.ones((2, 2))}}
CONSTANTS = types.Constants(base=BASE, start={"unread": jnp.zeros(5)})


def acting(value: float) -> Any:
    return {"params": {**BASE, "d": jnp.full(2, value)}, "epsilon": jnp.asarray(value)}


def test_what_no_version_changes_travels_once():
    parted = pickle.loads(pickle.dumps(acting_elsewhere.parted(acting(1.0), CONSTANTS)))
    assert len(parted.frozen) == 2
    others = acting_elsewhere.numbers(parted.others(acting(2.0)))
    assert sorted(x.size for x in others) == [1, 2]
    jax.tree.map(np.testing.assert_array_equal, parted.whole(others), acting(2.0))


def test_equal_leaves_that_are_not_the_constants_own_travel_each_time():
    copied = jax.tree.map(jnp.copy, acting(1.0))
    assert acting_elsewhere.parted(copied, CONSTANTS).frozen == {}


def test_workers_are_made_by_the_first_version():
    recipes: list[acting_elsewhere.Parted] = []

    def make(parted: acting_elsewhere.Parted) -> posts.Workers:
        recipes.append(parted)
        return posts.Workers(7, lambda n: n, lambda version, leaves: (version, len(leaves)))  # pyright: ignore[reportArgumentType]

    workers = acting_elsewhere.sharing(3, CONSTANTS, make)
    assert not recipes and workers.number == 3
    assert [workers.publish(n, acting(n)) for n in (1, 2)] == [(1, 2), (2, 2)]
    assert len(recipes) == 1 and workers.hire(2) == 2


def test_an_error_there_is_one_here():
    assert acting_elsewhere.answered(acting_elsewhere.Said(3)) == 3
    with pytest.raises(ValueError, match="it broke"):
        acting_elsewhere.answered(acting_elsewhere.Said(None, "it broke"))
