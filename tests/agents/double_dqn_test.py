"""Tests of agents/double_dqn.py."""

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import numpy as np
import rlax
from hypothesis import strategies as st

from kullback.agents import double_dqn, dqn, q_learning
from kullback.core import networks, types
from tests.states import random_params

target = jax.jit(double_dqn.double_dqn_target)
peer = jax.jit(rlax.double_q_learning)
plain = jax.jit(dqn.dqn_target)
q_values = hnp.arrays(np.float32, (3,), elements=st.floats(-9, 9, width=32, allow_subnormal=False))


def test_golden():
    # Online values choose action 1, whose target value is 5, though the target's best is 7.
    online, q = np.array([1, 2, 0], np.float32), np.array([3, 5, 7], np.float32)
    assert target(q, 0, 1.0, 0.5, q, online) == 1 + 0.5 * 5


@hypothesis.settings(deadline=None)
@hypothesis.given(q_tm1=q_values, q_t=q_values, online=q_values, action=st.integers(0, 2))
def test_it_is_the_target_of_rlax_and_never_above_that_of_dqn(q_tm1, q_t, online, action):
    got = target(q_tm1, action, 0.7, 0.9, q_t, online)
    np.testing.assert_allclose(
        got - q_tm1[action], peer(q_tm1, action, 0.7, 0.9, q_t, online), atol=1e-5
    )
    assert got <= plain(q_tm1, action, 0.7, 0.9, q_t) + 1e-6
    # Where online and target values are the same it is DQN's.
    same = target(q_tm1, action, 0.7, 0.9, q_t, q_t)
    assert same == plain(q_tm1, action, 0.7, 0.9, q_t)


def test_the_learner_selects_by_online_values_of_the_next_observation_without_a_gradient():
    spec = types.Spec(shape=(3,), dtype=np.float32, num_actions=4)
    learning = q_learning.Config(torso="mlp_small", loss="squared", learning_rate=1e-2)
    agent = double_dqn.make(None, spec, double_dqn.Config(learning=learning))
    network = networks.action_values(networks.torso("mlp_small", spec), 4)
    rng = np.random.default_rng(0)
    t = types.Transition(
        rng.normal(size=(8, 3)).astype(np.float32),
        rng.integers(0, 4, 8).astype(np.int32),
        rng.normal(size=8).astype(np.float32),
        np.full(8, 0.9, np.float32),
        rng.normal(size=(8, 3)).astype(np.float32),
    )
    ones = np.ones(8, np.float32)
    state = agent.learner.init(jax.random.key(0))
    other = random_params(network.init, jax.random.key(1), spec.zeros())
    state = state._replace(targets={"periodic": other})
    apply = jax.jit(network.apply)

    online, q_t = (np.asarray(apply(p, t.next_observation)) for p in (state.params, other))
    assert np.any(online.argmax(1) != q_t.argmax(1))
    y = t.reward + t.discount * q_t[np.arange(8), online.argmax(1)]

    @jax.jit
    @jax.value_and_grad
    def expected(params):
        q = network.apply(params, t.observation)[np.arange(8), t.action]
        return 0.5 * ((y - q) ** 2).mean()

    batch = types.Batch(t, ones.astype(np.int32), ones, ones)
    step = jax.jit(agent.learner.step)
    _, feedback = step(state, batch, types.NO_CONSTANTS)
    loss, grads = expected(state.params)
    np.testing.assert_allclose(feedback.metrics["loss"], loss, rtol=1e-5)
    # The first step of Adam is the sign of the gradient: all of it that of the regression.
    after, _ = step(state, batch, types.NO_CONSTANTS)
    ends = (map(np.asarray, jax.tree.leaves(x)) for x in (grads, state.params, after.params))
    for gradient, before, moved in zip(*ends, strict=True):
        large = np.abs(gradient) > 1e-3
        np.testing.assert_array_equal(np.sign((moved - before)[large]), -np.sign(gradient[large]))
