"""Tests of agents/btr.py: what it is without its parts, and its torso while it learns."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest

from kullback.agents import btr, distributional, dqn, iqn, munchausen_iqn, q_learning, quantile
from kullback.core import checkpoints, impala, spectral, trees, types

SPEC = types.Spec(shape=(3,), dtype=np.float32, num_actions=4)
GRID = types.Spec(shape=(4, 5, 2), dtype=np.bool_, num_actions=3)
LEARNING = distributional.Config(torso="mlp_small", learning_rate=1e-2)
# All parts off, but for the bonus; what is left are IQN's settings.
PLAIN = btr.Config(
    log_policy_of="target",
    shares_samples=False,
    network=quantile.Implicit(hidden=8),
    dueling=False,
    noise=0.0,
    priority="loss",
    learning=LEARNING,
)
SHARED: dict[str, Any] = {
    "samples": PLAIN.samples,
    "network": PLAIN.network,
    "learning": LEARNING,
}


def batch(spec: types.Spec, seed: int = 0, size: int = 8) -> types.Batch:
    rng = np.random.default_rng(seed)
    data = types.Transition(
        rng.normal(size=(size, *spec.shape)).astype(spec.dtype),
        rng.integers(0, spec.num_actions, size).astype(np.int32),
        2 * rng.normal(size=size).astype(np.float32),
        np.float32(0.9) * rng.integers(0, 2, size).astype(np.float32),
        rng.normal(size=(size, *spec.shape)).astype(spec.dtype),
    )
    return types.Batch.of(data)


def differing(one: Any, other: Any) -> list[str]:
    """Returns the names of leaves, arrays or keys, of which any bit differs."""
    ones, others = trees.named_leaves(one), trees.named_leaves(other)
    assert ones.keys() == others.keys()
    return [
        name
        for name in ones
        if not np.array_equal(trees.to_numpy(ones[name]), trees.to_numpy(others[name]))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("bonus", [True, False], ids=["m-iqn", "iqn"])
def test_without_its_parts_it_is_m_iqn_and_without_the_bonus_iqn(bonus):
    ours = btr.make(None, SPEC, dataclasses.replace(PLAIN, munchausen_bonus=bonus))
    if bonus:
        simpler = munchausen_iqn.make(None, SPEC, munchausen_iqn.Config(**SHARED))
    else:
        simpler = iqn.make(None, SPEC, iqn.Config(**SHARED))
    results = []
    for agent in (ours, simpler):
        state, step = agent.learner.init(jax.random.key(0)), jax.jit(agent.learner.step)
        state, _ = step(state, batch(SPEC, 0), types.NO_CONSTANTS)
        state, feedback = step(state, batch(SPEC, 1), types.NO_CONSTANTS)
        acting = agent.actor_params(state, np.asarray(9), False, types.NO_CONSTANTS)
        observation = batch(SPEC).data.observation
        action, _, _ = jax.jit(agent.policy.step)(acting, observation, None, jax.random.key(0))
        results.append((state, feedback, action))
    assert differing(*results) == []


def test_without_bonus_and_quantiles_its_loss_is_half_of_dqns():
    config = dataclasses.replace(
        PLAIN,
        munchausen_bonus=False,
        implicit_quantiles=False,
        network=quantile.Implicit(hidden=0),
    )
    ours = btr.make(None, SPEC, config)
    plain = dqn.make(None, SPEC, dqn.Config(learning=q_learning.Config(**vars(LEARNING))))
    state = plain.learner.init(jax.random.key(0))
    assert differing(ours.learner.init(jax.random.key(0)), state) == []
    state = state._replace(params=jax.tree.map(lambda x: x + 0.01, state.params))
    losses, moments = [], []
    for agent in (ours, plain):
        after, feedback = jax.jit(agent.learner.step)(state, batch(SPEC), types.NO_CONSTANTS)
        losses.append(feedback.metrics["loss"])
        moments.append(after.opt_state[0].mu)
    np.testing.assert_allclose(2 * losses[0], losses[1], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(2 * a, b, atol=1e-7), *moments)


@pytest.mark.slow
def test_the_torso_stays_normalised_follows_to_the_target_and_goes_on_from_a_checkpoint(tmp_path):
    """The vectors of the power iteration are parameters; here of one block of the torso."""
    learning = dataclasses.replace(btr.presets("minatar").learning, target_period=10)
    config = dataclasses.replace(PLAIN, implicit_quantiles=False, learning=learning)
    block = impala.Block(4, halves=True)
    torso = functools.partial(impala.features, config=impala.SMALL, blocks=[block], hidden=0)
    agent = btr.make(torso, GRID, config)
    step = jax.jit(agent.learner.step)
    begun = state = jax.jit(agent.learner.init)(jax.random.key(0))
    states = [state]
    for number in range(1, 21):
        state, feedback = step(state, batch(GRID, number, 4), types.NO_CONSTANTS)
        assert np.isfinite(feedback.metrics["loss"])
        states.append(state)
    for number in (13, 20):
        state = states[number]
        assert bool(differing(state.params, state.targets["periodic"])) == (number % 10 > 0)
    modules = [m for m, leaves in state.params.items() if spectral.VECTOR in leaves]
    assert len(modules) == 4
    for module in modules:
        w, u = state.params[module]["w"], state.params[module][spectral.VECTOR]
        assert np.any(u != begun.params[module][spectral.VECTOR])
        normal = np.asarray(spectral.normalised(w, u)).reshape(-1, w.shape[-1])
        assert 0.95 < np.linalg.svd(normal)[1][0] < 1.05
        # Adam has seen no gradient of the vector, and saw some of the weights.
        moments = state.opt_state[1][0].mu[module]
        assert not np.any(moments[spectral.VECTOR]) and np.any(moments["w"])
    checkpoints.save(tmp_path, 13, states[13], {})
    again, _, _ = checkpoints.restore_latest(
        tmp_path, jax.eval_shape(agent.learner.init, jax.random.key(0))
    )
    for number in range(14, 21):
        again, _ = step(again, batch(GRID, number, 4), types.NO_CONSTANTS)
    assert differing(again, state) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"log_policy_of": "both"}, "log_policy_of must be online or target, got both"),
        ({"priority": "rank"}, "priority must be error or loss, got rank"),
        ({"noise": -0.5}, "noise must be >= 0, got -0.5"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"huber_threshold": 0.0}, "huber_threshold must be > 0"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        btr.Config(**fields)
