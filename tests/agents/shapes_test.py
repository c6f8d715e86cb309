"""Tests that the equations of agents/ take one transition: without `vmap` a batch is refused."""

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from kullback import agents
from kullback.agents import (
    actor_critic,
    advantage_learning,
    categorical,
    dcpi,
    double_dqn,
    dqn,
    iqn,
    md_dqn,
    momentum_dqn,
    munchausen,
    munchausen_iqn,
    politex_dqn,
    q_learning,
    quantile,
)

# All sizes are one number, of actions, quantiles, atoms and items: any two axes would broadcast.
SIZE = 3
NUMBER, VECTOR, TABLE = (jax.ShapeDtypeStruct((SIZE,) * rank, jnp.float32) for rank in range(3))
ACTION = jax.ShapeDtypeStruct((), jnp.int32)
TRANSITION = (VECTOR, ACTION, NUMBER, NUMBER, VECTOR)
BONUS = {"tau": 0.03, "alpha": 0.9, "l_0": -1.0}
PULLS = {"lambda_": 0.1, "tau": 0.1}

EQUATIONS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (actor_critic.expected_value_target, (NUMBER, NUMBER, VECTOR, VECTOR, VECTOR), PULLS),
    (actor_critic.regularized_value, (VECTOR, VECTOR, VECTOR), PULLS),
    (advantage_learning.advantage_learning_target, TRANSITION, {"alpha": 0.9}),
    (categorical.categorical_target, (TABLE, VECTOR, NUMBER, NUMBER, VECTOR), {}),
    (categorical.cross_entropy, (VECTOR, VECTOR), {}),
    (categorical.divergence, (VECTOR, VECTOR), {}),
    (dcpi.conservative_target, (NUMBER, NUMBER, VECTOR, VECTOR), {}),
    (dcpi.conservative_loss, (VECTOR, VECTOR), {"direction": "forward"}),
    (dcpi.greedy_gain, (VECTOR, VECTOR), {}),
    (dcpi.mixture, (VECTOR, VECTOR, NUMBER), {}),
    (double_dqn.double_dqn_target, (*TRANSITION, VECTOR), {}),
    (dqn.dqn_target, TRANSITION, {}),
    (iqn.iqn_target, (TABLE, *TRANSITION), {}),
    (md_dqn.direct_loss, (VECTOR, VECTOR, VECTOR), PULLS),
    (md_dqn.indirect_loss, (VECTOR, VECTOR, VECTOR), PULLS),
    (momentum_dqn.averaging_loss, (VECTOR, VECTOR, VECTOR, NUMBER), {}),
    (momentum_dqn.momentum_target, (NUMBER, NUMBER, VECTOR, VECTOR), {}),
    (munchausen.munchausen_target, TRANSITION, BONUS),
    (munchausen.policy_entropy, (VECTOR,), {"tau": 0.03}),
    (munchausen.scaled_log_policy, (VECTOR,), {"tau": 0.03}),
    (munchausen.soft_value, (VECTOR,), {"tau": 0.03}),
    (munchausen_iqn.munchausen_iqn_target, (TABLE, *TRANSITION), BONUS),
    (politex_dqn.averaging_loss, (VECTOR, VECTOR, VECTOR, NUMBER), PULLS),
    (politex_dqn.log_policy, (VECTOR, NUMBER), PULLS),
    (q_learning.action_gap, (VECTOR,), {}),
    (quantile.absolute_error, (VECTOR, VECTOR), {}),
    (quantile.quantile_loss, (VECTOR, VECTOR, VECTOR), {"kappa": 1.0}),
]


def batched(item: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((SIZE, *item.shape), item.dtype)


@pytest.mark.parametrize(
    ("equation", "items", "scalars"),
    [pytest.param(*case, id=f"{case[0].__module__}.{case[0].__name__}") for case in EQUATIONS],
)
def test_an_equation_takes_one_item_and_refuses_a_batch(
    equation: Callable[..., Any], items: tuple[Any, ...], scalars: dict[str, Any]
):
    equation = functools.partial(equation, **scalars)
    single = jax.eval_shape(equation, *items)
    many = jax.eval_shape(jax.vmap(equation), *map(batched, items))
    assert many.shape == (SIZE, *single.shape)
    with pytest.raises(AssertionError):
        jax.eval_shape(equation, *map(batched, items))
    for at, item in enumerate(items):
        with pytest.raises(AssertionError):
            jax.eval_shape(equation, *items[:at], batched(item), *items[at + 1 :])


def test_actions_are_integers():
    with pytest.raises(AssertionError, match="type"):
        jax.eval_shape(dqn.dqn_target, VECTOR, NUMBER, NUMBER, NUMBER, VECTOR)


def test_no_target_or_loss_is_left_out():
    tested = {case[0] for case in EQUATIONS}
    for file in pkgutil.iter_modules(agents.__path__):
        module = importlib.import_module(f"{agents.__name__}.{file.name}")
        for name, value in inspect.getmembers(module, inspect.isfunction):
            if name.endswith(("_target", "_loss")) and not name.startswith("_"):
                assert value in tested, f"add {file.name}.{name} to EQUATIONS"
