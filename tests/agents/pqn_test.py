"""Tests of agents/pqn.py."""

from typing import Any

import jax
import numpy as np
import pytest
import rlax

from kullback.agents import pqn
from kullback.core import compiled, loops, online, rollout, types
from kullback.environments import toy
from tests.states import begun, random_params

# By hand, gamma 0.9 and lambda 0.5: see `hand`.
Q = np.array([[1, 0], [2, 1.5], [0.5, 3], [4, 1]], np.float32)  # q(s_0) to q(s_3).
R = np.array([1, 0, 2], np.float32)
ALIVE, NO_END = np.full(3, 0.9, np.float32), np.zeros(3, bool)
END = np.array([False, True, False])

plain: Any = pqn.q_lambda_returns
returns = jax.jit(plain)


def test_returns_by_hand():
    # 5.6 = 2 + .9 * 4; 3.87 = .9 (.5 * 3 + .5 * 5.6); 3.6415 = 1 + .9 (.5 * 2 + .5 * 3.87).
    np.testing.assert_allclose(returns(R, ALIVE, NO_END, Q[1:], 0.5), [3.6415, 3.87, 5.6], 1e-6)


def test_a_true_end_has_no_bootstrap():
    discount = np.array([0.9, 0, 0.9], np.float32)
    np.testing.assert_allclose(returns(R, discount, END, Q[1:], 0.5), [1.9, 0, 5.6], 1e-6)


def test_a_cut_bootstraps_from_the_state_that_it_was_cut_in():
    q_t = np.array([Q[1], [2.5, 0], Q[3]])
    np.testing.assert_allclose(returns(R, ALIVE, END, q_t, 0.5), [2.9125, 2.25, 5.6], 1e-6)


@pytest.mark.parametrize("trace_decay", [0.0, 0.7, 1.0])
def test_without_ends_it_is_rlaxs_lambda_return(trace_decay: float):
    rng = np.random.default_rng(0)
    r, d = rng.normal(size=(2, 7)).astype(np.float32)
    q = rng.normal(size=(7, 3)).astype(np.float32)
    expected, following = np.empty(7), q[-1].max()
    for t in reversed(range(7)):
        best = q[t].max()
        following = r[t] + d[t] * ((1 - trace_decay) * best + trace_decay * following)
        expected[t] = following
    result = returns(r, d, np.zeros(7, bool), q, trace_decay)
    np.testing.assert_allclose(result, expected, 1e-5)
    np.testing.assert_allclose(result, rlax.lambda_returns(r, d, q.max(-1), trace_decay), 1e-5)


def test_a_batch_without_vmap_is_refused():
    with pytest.raises(AssertionError):
        plain(R[None], ALIVE[None], NO_END[None], Q[None, 1:], 0.5)


CONFIG = pqn.Config(
    torso="mlp_ln",
    epsilon_decay_env_steps=10,
    iteration=online.Config(length=3, epochs=1, batch_size=2, discount=0.9, reward_clip=1.0),
)


def test_labels_are_those_of_the_acting_parameters_and_clipped_rewards():
    environment = toy.chain(2)
    agent = pqn.make(None, environment.spec, CONFIG)
    params = random_params(lambda key: agent.learner.init(key).params, jax.random.key(0))
    state = begun(agent.learner, params)
    acting = agent.actor_params(state, loops.count(0), False, types.NO_CONSTANTS)

    @jax.jit
    def act(key: types.Key):
        actor = rollout.start(agent.policy, environment, acting, key)
        return rollout.rollout(agent.policy, environment, acting, actor, key, 3)[0]

    trajectory = act(jax.random.key(1))
    timestep = trajectory.timestep._replace(
        reward=np.array([[5, 0], [-9, 0.5], [0, 2]], np.float32),
        discount=np.array([[1, 1], [1, 0], [1, 1]], np.float32),
        step_type=np.array([[1, 1], [1, 2], [1, 1]], np.int8),
    )
    items = jax.jit(agent.experience.label)(acting, trajectory._replace(timestep=timestep))
    seen = np.asarray(timestep.next_observation)
    step = jax.jit(agent.policy.step)
    q = np.stack([step(acting, x, None, jax.random.key(0))[2]["action_values"] for x in seen])
    for row in range(2):
        expected = plain(
            np.clip(timestep.reward[:, row], -1, 1),
            0.9 * timestep.discount[:, row],
            timestep.step_type[:, row] == types.LAST,
            q[:, row],
            0.65,
        )
        np.testing.assert_allclose(items.labels.target[:, row], expected, 1e-5, 1e-6)


def test_epsilon_is_annealed_over_agent_steps():
    agent = pqn.make(None, toy.chain(1).spec, CONFIG)
    state = agent.learner.init(jax.random.key(0))
    values = [
        float(agent.actor_params(state, loops.count(steps), False, types.NO_CONSTANTS)["epsilon"])
        for steps in (0, 5, 10, 99)
    ]
    np.testing.assert_allclose(values, [1, 0.5005, 0.001, 0.001], 1e-5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trace_decay": 1.5}, "trace_decay must lie in"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"max_gradient_norm": 0.0}, "max_gradient_norm must be > 0"),
        ({"decay_learner_steps": -1}, "decay_learner_steps must be >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(changed: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        pqn.Config(**changed)  # pyright: ignore[reportArgumentType]


def test_rows_that_make_no_whole_batches_are_refused():
    environment = toy.chain(3)
    agent = pqn.make(None, environment.spec, CONFIG)
    with pytest.raises(ValueError, match="are 9 items, not a multiple of batch_size=2"):
        compiled.make(agent, environment, (0,))
