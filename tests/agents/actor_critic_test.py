"""Tests of agents/actor_critic.py, and of the agents made by it against the exact schemes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.agents import actor_critic, dcpi, dqn, md_dqn, momentum_dqn, politex_dqn, q_learning
from kullback.core import networks, types
from kullback.theory import conservative, garnet, mirror, momentum, politex, run

PERIOD = 5
LAMBDA, TAU, RATE, B = 0.5, 0.2, 0.3, 0.8
S, A = 6, 3
SPEC = types.Spec(shape=(S,), dtype=np.float32, num_actions=A)
# Adam's first step is then g / (|g| + 1), of the gradient g.
LEARNING = q_learning.Config(
    learning_rate=1.0, adam_epsilon=1.0, loss="squared", target_period=PERIOD
)
# Each state and action has one successor, so that a batch of all of them is the exact operator.
PROCESS = garnet.make(
    jax.random.key(3), garnet.Config(num_states=S, num_actions=A, branching=1, rewarded=1.0)
)


def everywhere(weights: np.ndarray | None = None) -> types.Batch:
    """Returns one transition of each state and action."""
    states = np.eye(S, dtype=np.float32)
    ones = np.ones(S * A, np.float32)
    data = types.Transition(
        observation=np.repeat(states, A, 0),
        action=np.tile(np.arange(A, dtype=np.int32), S),
        reward=np.asarray(PROCESS.reward, np.float32).reshape(-1),
        discount=np.float32(0.9) * ones,
        next_observation=states[np.asarray(PROCESS.successors).reshape(-1)],
    )
    return types.Batch(data, ones.astype(np.int32), ones, ones if weights is None else weights)


def table(q: Any, actor: Any) -> Any:
    """Returns parameters of two linear networks of one-hot states."""
    return {
        name: {"linear": {"w": jnp.asarray(w, jnp.float32), "b": jnp.zeros(A)}}
        for name, w in (("q", q), ("actor", actor))
    }


def moved(step: Any, state: types.LearnerState, online: Any, target: Any, copies: int) -> float:
    """Returns the largest change of a parameter in one learner step: about its gradient."""
    aux = state.aux if state.aux is None else jnp.asarray(copies * PERIOD, jnp.int32)
    state = state._replace(params=online, targets={"periodic": target}, aux=aux)
    after, _ = step(state, everywhere(), types.NO_CONSTANTS)
    changes = jax.tree.map(lambda a, b: np.abs(a - b).max(), online, after.params)
    return float(np.max(jax.tree.leaves(changes)))


def identity(x: jax.Array) -> jax.Array:
    return x


SCHEMES = {
    "dcpi": conservative.cpi(RATE, m=1),
    "md": mirror.md_vi(LAMBDA, TAU),
    "md-without": mirror.md_mpi(LAMBDA, TAU, regularized=False),
    "md-kl": mirror.md_vi(LAMBDA),
    "da": mirror.da_vi(LAMBDA, TAU),
    "da-without": mirror.da_mpi(LAMBDA, TAU, regularized=False),
    "da-sum": mirror.da_vi(LAMBDA),
    "politex": politex.politex(1 / LAMBDA, m=1),
    "momentum": momentum.momentum_vi(B),
}


@pytest.mark.parametrize("k", [pytest.param(0, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("name", list(SCHEMES))
def test_iterates_of_the_exact_scheme_are_where_learning_rests(name: str, k: int):
    """Targets at iterate k, parameters at iterate k + 1: the gradient of the whole loss is 0."""
    errors = 0.1 * np.random.default_rng(0).normal(size=(6, S, A))
    errors[k] = 0  # That of the step which is looked at.
    states = run.run(SCHEMES[name], PROCESS, 6, errors=errors).records.state
    q, log_policy = states.q, states.log_policy
    kind, _, _ = name.partition("-")
    agents: list[types.Agent]
    if kind == "dcpi":
        # The greedy step comes second here, with online values: pi_{k+1} is beside q_k.
        target, online = table(q[k], log_policy[k + 1]), table(q[k + 1], log_policy[k + 2])
        config = dcpi.Config(mixture_rate=RATE, learning=LEARNING)
        agents = [dcpi.make(identity, SPEC, config)]
        reverse = dataclasses.replace(config, direction="reverse")
        agents.append(dcpi.make(identity, SPEC, reverse))
    elif kind == "md":
        target, online = table(q[k], log_policy[k]), table(q[k + 1], log_policy[k + 1])
        config = md_dqn.Config(
            kl_temperature=LAMBDA,
            entropy_temperature=0.0 if name == "md-kl" else TAU,
            regularized=name != "md-without",
            greedy_values="target",
            learning=LEARNING,
        )
        other = dataclasses.replace(config, greedy="indirect")
        agents = [md_dqn.make(identity, SPEC, c) for c in (config, other)]
    elif kind == "momentum":
        h = states.point.memory
        target, online = table(q[k], h[k]), table(q[k + 1], h[k + 1])
        config = momentum_dqn.Config(momentum_max=B, momentum_copies=0.0, learning=LEARNING)
        other = dataclasses.replace(config, averaged_actions="taken")
        agents = [momentum_dqn.make(identity, SPEC, c) for c in (config, other)]
    else:
        tau = TAU if kind == "da" and name != "da-sum" else 0.0
        h = [
            mirror.average(jax.tree.map(lambda x, i=i: x[i], states), LAMBDA, tau)
            for i in range(1, 7)
        ]  # h_0, h_1, ...; the target network of the first is as it was drawn.
        before = h[k - 1] if k else np.random.default_rng(1).normal(size=(S, A))
        target, online = table(q[k], before), table(q[k + 1], h[k])
        config = politex_dqn.Config(
            kl_temperature=LAMBDA,
            entropy_temperature=tau,
            regularized=name in ("da", "da-sum"),
            greedy_values="target",
            learning=LEARNING,
        )
        agents = [politex_dqn.make(identity, SPEC, config)]
    for agent in agents:
        step, state = jax.jit(agent.learner.step), agent.learner.init(jax.random.key(0))
        assert moved(step, state, online, target, k) < 2e-6
        for part in ("q", "actor"):
            bent = jax.tree.map(jnp.copy, online)
            bent[part]["linear"]["w"] = online[part]["linear"]["w"].at[2, 1].add(0.1)
            assert moved(step, state, bent, target, k) > 1e-5


def plain_target(step: actor_critic.Step) -> jax.Array:
    return actor_critic.expected_value_target(
        step.r_t,
        step.discount_t,
        step.q_t,
        *actor_critic.softmax_policies(step.actor_t, step.target_actor_t),
        lambda_=1.0,
        tau=1.0,
    )


def agent_of(greedy_loss, target=plain_target, **fields) -> types.Agent:
    learning = q_learning.Config(torso="mlp_small", target_period=PERIOD)
    algorithm = actor_critic.Algorithm(target, greedy_loss, **fields)
    return actor_critic.make(algorithm, None, SPEC, dqn.Config(learning=learning))


def nothing(step: actor_critic.Step) -> jax.Array:
    return jnp.zeros(())


@pytest.mark.slow
def test_the_target_moves_no_actor_and_the_greedy_step_no_values():
    state = agent_of(nothing).learner.init(jax.random.key(0))
    without, _ = jax.jit(agent_of(nothing).learner.step)(state, everywhere(), types.NO_CONSTANTS)
    jax.tree.map(np.testing.assert_array_equal, without.params["actor"], state.params["actor"])
    both, feedback = agent_of(lambda step: jnp.sum(step.q_tm1 * step.actor_tm1)).learner.step(
        state, everywhere(), types.NO_CONSTANTS
    )
    jax.tree.map(np.testing.assert_array_equal, both.params["q"], without.params["q"])
    for part in ("q", "actor"):
        old, new = (jax.tree.leaves(s.params[part]) for s in (state, both))
        assert all(np.any(a != b) for a, b in zip(old, new, strict=True))
    assert set(feedback.metrics) >= {"loss", "mean_q", "action_gap", "policy_entropy", "kl"}


def test_weights_count_in_both_losses_and_both_are_of_their_networks():
    weights = np.linspace(0, 2, S * A).astype(np.float32)
    agent = agent_of(
        lambda step: jnp.sum(step.q_tm1 * step.actor_tm1) + step.target_actor_tm1[step.a_tm1]
    )
    state = agent.learner.init(jax.random.key(0))
    other = agent_of(lambda step: step.actor_tm1[0]).learner.init(jax.random.key(1)).params
    state = state._replace(targets={"periodic": other})
    _, feedback = jax.jit(agent.learner.step)(state, everywhere(weights), types.NO_CONSTANTS)

    network = networks.action_values(networks.torso("mlp_small", SPEC), A)
    t = everywhere().data

    def values(params, name, observation):
        return np.asarray(network.apply(params[name], observation), np.float64)

    def log_softmax(x):
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    rows = np.arange(S * A)
    q, actor = (values(state.params, name, t.observation) for name in ("q", "actor"))
    log_pi = log_softmax(values(state.params, "actor", t.next_observation))
    log_prior = log_softmax(values(other, "actor", t.next_observation))
    inside = values(other, "q", t.next_observation) - 2 * log_pi + log_prior
    error = t.reward + t.discount * np.sum(np.exp(log_pi) * inside, 1) - q[rows, t.action]
    huber = np.where(np.abs(error) <= 1, 0.5 * error**2, np.abs(error) - 0.5)
    greedy = np.sum(q * actor, 1) + values(other, "actor", t.observation)[rows, t.action]
    np.testing.assert_allclose(feedback.metrics["loss"], np.mean(weights * (huber + greedy)), 1e-5)
    np.testing.assert_allclose(feedback.metrics["actor_loss"], np.mean(weights * greedy), 1e-5)
    assert feedback.priorities is not None
    np.testing.assert_allclose(feedback.priorities, np.abs(error), rtol=1e-4)
    log_pi, log_prior = log_softmax(actor), log_softmax(values(other, "actor", t.observation))
    entropy = -np.mean(np.sum(np.exp(log_pi) * log_pi, 1))
    np.testing.assert_allclose(feedback.metrics["policy_entropy"], entropy, rtol=1e-5)
    kl = np.mean(np.sum(np.exp(log_pi) * (log_pi - log_prior), 1))
    np.testing.assert_allclose(feedback.metrics["kl"], kl, rtol=1e-4)


def test_networks_start_apart_or_as_copies():
    for equal in (False, True):
        agent = agent_of(nothing, starts_equal=equal)
        params = agent.learner.init(jax.random.key(0)).params
        q, actor = jax.tree.leaves(params["q"]), jax.tree.leaves(params["actor"])
        same = [np.array_equal(a, b) for a, b in zip(q, actor, strict=True)]
        assert all(same) if equal else not any(same)


def test_copies_are_counted_by_the_period_and_set_the_temperature_of_acting():
    seen = []
    schedule = actor_critic.by_copies(PERIOD, lambda k: {"k": k})
    agent = agent_of(
        lambda step: step.scalars["k"] * step.actor_tm1[0],
        target=lambda step: step.r_t,
        temperature=lambda k: 1 / (k + 1),
        schedule=schedule,
    )
    step = jax.jit(agent.learner.step)
    state = agent.learner.init(jax.random.key(0))
    for _ in range(2 * PERIOD + 1):
        acting = agent.actor_params(state, np.asarray(0), True, types.NO_CONSTANTS)
        state, feedback = step(state, everywhere(), types.NO_CONSTANTS)
        seen.append(float(feedback.metrics["k"]))
        np.testing.assert_allclose(acting["temperature"], 1 / (1 + seen[-1]))
    assert seen == [0.0] * 5 + [1.0] * 5 + [2.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dcpi", "politex"])
def test_seeds_by_vmap_equal_runs_one_by_one_over_ten_updates(name: str):
    learning = q_learning.Config(torso="mlp_small", learning_rate=1e-2, target_period=4)
    if name == "dcpi":
        agent = dcpi.make(None, SPEC, dcpi.Config(rate="normalised", learning=learning))
    else:
        config = politex_dqn.Config(entropy_temperature=0.0, learning=learning)
        agent = politex_dqn.make(None, SPEC, config)
    keys = [jax.random.key(seed) for seed in range(2)]
    axes = types.LearnerState(0, 0, 0, None, 0, 0)  # pyright: ignore[reportArgumentType]
    together = jax.jit(jax.vmap(agent.learner.step, in_axes=(axes, None, None), out_axes=(axes, 0)))
    alone = jax.jit(agent.learner.step)
    states = jax.vmap(agent.learner.init, out_axes=axes)(jnp.stack(keys))
    singles = [agent.learner.init(key) for key in keys]
    for _ in range(10):
        states, _ = together(states, everywhere(), types.NO_CONSTANTS)
        singles = [alone(single, everywhere(), types.NO_CONSTANTS)[0] for single in singles]
    for part in ("params", "aux"):
        stacked = jax.tree.map(lambda *x: np.stack(x), *[getattr(s, part) for s in singles])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), getattr(states, part), stacked
        )


def test_unknown_values_of_the_greedy_step_are_refused():
    with pytest.raises(ValueError, match="greedy_values must be online or target, got both"):
        agent_of(nothing, greedy_values="both")
