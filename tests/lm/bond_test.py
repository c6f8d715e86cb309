"""Tests of lm/bond.py: its equations on bandits whose draws are enumerated, then its learner."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import learners, types
from kullback.lm import batches, best_of_n, bond, gemma, rollouts, tuning
from kullback.lm.data import Example
from tests.states import begun, fresh_params

ARMS = 8
REWARDS = np.arange(float(ARMS))
REFERENCE = np.random.default_rng(0).normal(size=ARMS)  # Logits.
DRAWS = np.array(list(itertools.product(range(ARMS), repeat=3)))  # Of y, y_1 and y_2.


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def softmax(logits: Any) -> np.ndarray:
    p = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return p / p.sum()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(np.sum(p * (np.log(p) - np.log(q))))


def expected_step(logits: jax.Array, anchor: jax.Array, b: float, gamma: float) -> jax.Array:
    """Returns the expectation of the direction that J-BOND climbs, [A], over all its draws."""
    log_pi, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(anchor)
    y, pair = DRAWS[:, 0], DRAWS[:, 1:]
    rewards = jnp.asarray(REWARDS)
    quantiles = bond.j_bond(rewards[y], rewards[pair])
    weigh = functools.partial(bond.policy_weights, b=b, gamma=gamma, n=2)
    # One prompt a batch, which has no baseline.
    weights = jax.vmap(weigh)(quantiles[:, None], (log_pi - log_q)[y][:, None])[:, 0]
    best = pair[np.arange(len(pair)), np.argmax(REWARDS[pair], 1)]
    score = jnp.eye(ARMS) - jnp.exp(log_pi)[None]  # [y]: the gradient of log pi(y).
    steps = weights[:, None] * score[y] + (1 - b) * score[best]
    return jnp.exp(log_pi[y] + log_q[pair].sum(1)) @ steps


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("gamma", "eta", "points"),
    [
        (0.0, 0.02, {50: (4.808, 0.023), 100: (5.183, 0.079), 200: (5.800, 0.269)}),
        (1.0, 0.02, {400: (None, 0.659)}),
        *(
            pytest.param(*given, marks=pytest.mark.slow)
            for given in (
                (0.0, 0.02, {400: (6.670, 1.045)}),
                (0.0, 0.05, {400: (6.811, 1.289)}),
                (0.0, 0.1, {400: (6.840, 1.345)}),
                (-1.0, 0.02, {400: (None, 1.351)}),  # The sign that the paper prints.
            )
        ),
    ],
)
def test_a_bandit_goes_where_exact_updates_lead_it(
    gamma: float, eta: float, points: dict[int, tuple[float | None, float]]
):
    """Values of an independent enumeration in NumPy; reward and KL to the reference."""
    rule = learners.moving_average(eta)

    @jax.jit
    def step(state: tuple[jax.Array, jax.Array], number: jax.Array) -> Any:
        logits, anchor = state
        logits = logits + 0.05 * expected_step(logits, anchor, 0.5, gamma)
        return (logits, rule.update(logits, anchor, number)), logits

    start = jnp.asarray(REFERENCE)
    assert start.dtype == jnp.float64
    _, curve = jax.lax.scan(step, (start, start), jnp.arange(400))
    for at, (reward, distance) in points.items():
        p = softmax(curve[at - 1])
        assert kl(p, softmax(REFERENCE)) == pytest.approx(distance, abs=6e-4)
        assert reward is None or p @ REWARDS == pytest.approx(reward, abs=6e-4)


@pytest.mark.usefixtures("float64")
def test_an_expected_step_is_the_gradient_of_the_objective():
    """By automatic differentiation of the divergences, for another policy than its anchor."""
    policy = jnp.asarray(np.random.default_rng(1).normal(size=ARMS))
    anchor, b, gamma = jnp.asarray(REFERENCE), 0.3, 0.7
    q = softmax(REFERENCE)
    best = best_of_n.distribution(q, REWARDS, 2)
    better = np.array([q[REWARDS > r].sum() for r in REWARDS])

    def objective(logits: jax.Array) -> jax.Array:
        log_pi = jax.nn.log_softmax(logits)
        to_anchor = jnp.sum(jnp.exp(log_pi) * (log_pi - np.log(q)))
        forward = -jnp.sum(best * log_pi)
        backward = to_anchor + jnp.sum(jnp.exp(log_pi) * better**2 * np.log(16))
        return (1 - b) * forward + b * backward + gamma * to_anchor

    expected = -np.asarray(jax.jit(jax.grad(objective))(policy))
    got = jax.jit(expected_step)(policy, anchor, b, gamma)
    np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_by_exact_log_quantiles_the_backward_step_is_that_of_the_best_of_n():
    """Its direction is minus the gradient of KL(pi || best of N), with N = 4."""
    q, n = softmax(REFERENCE), 4
    logits = np.random.default_rng(2).normal(size=ARMS)
    log_pi = np.log(softmax(logits))
    rewards = best_of_n.log_quantile(q, REWARDS, n)
    weigh = functools.partial(bond.policy_weights, b=1.0, gamma=0.0, n=n)
    each = jax.jit(jax.vmap(weigh))(rewards[:, None], (log_pi - np.log(q))[:, None])
    weights = np.asarray(each)[:, 0]
    got = (np.exp(log_pi) * weights) @ (np.eye(ARMS) - np.exp(log_pi)[None])
    log_best = np.log(best_of_n.distribution(q, REWARDS, n))

    def distance(logits: jax.Array) -> jax.Array:
        log_pi = jax.nn.log_softmax(logits)
        return jnp.sum(jnp.exp(log_pi) * (log_pi - log_best))

    expected = -np.asarray(jax.jit(jax.grad(distance))(logits))
    np.testing.assert_allclose(got, expected, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_the_baseline_is_of_the_other_prompts_and_changes_no_expectation():
    rows = bond.policy_weights(jnp.array([1.0, 2.0, 6.0]), jnp.zeros(3), b=0.5, gamma=0.0, n=2)
    np.testing.assert_allclose(rows, [0.5 * (1 - 4), 0.5 * (2 - 3.5), 0.5 * (6 - 1.5)])
    alone = bond.policy_weights(jnp.array([-1.0]), jnp.array([0.5]), b=0.5, gamma=2.0, n=3)
    np.testing.assert_allclose(alone, [0.5 * 2 * (-1 - 0.5 / 2) - 2 * 0.5])
    # Two prompts of three arms each, all pairs of draws.
    p, quantiles = np.array([0.2, 0.3, 0.5]), np.array([-2.0, -0.7, -0.1])
    ratios, score = np.array([0.4, -0.2, 0.1]), np.eye(3) - p
    pairs = np.array(list(itertools.product(range(3), repeat=2)))
    weigh = functools.partial(bond.policy_weights, b=0.5, gamma=0.3, n=2)
    weigh_all = jax.jit(jax.vmap(weigh))
    both = weigh_all(quantiles[pairs], ratios[pairs])
    single = weigh_all(quantiles[:, None], ratios[:, None])
    got = np.einsum("n,nr,nra->a", p[pairs].prod(1), both, score[pairs]) / 2
    np.testing.assert_allclose(got, p @ (np.asarray(single) * score), atol=1e-12)


def test_j_bond_says_half_of_the_log_quantile_at_the_median():
    """E[r_J] = -(1 - p)^2 log 16 against log p, of a continuum of 400 rewards."""
    for p, expected in ((0.25, -1.560), (0.5, -0.693), (0.75, -0.173)):
        assert -((1 - p) ** 2) * np.log(16) == pytest.approx(expected, abs=6e-4)
        pairs = np.array(list(itertools.product(np.arange(400.0), repeat=2)), np.float32)
        rewards = jnp.full(len(pairs), 400 * p - 1, jnp.float32)
        estimates = np.asarray(bond.j_bond(rewards, jnp.asarray(pairs)), np.float64)
        assert estimates.mean() == pytest.approx(expected, abs=1e-3)


def test_estimates_by_hand():
    rewards = jnp.array([1.0, 1.0, 1.0, 0.0])
    pairs = jnp.array([[2.0, 3.0], [1.0, 2.0], [0.0, 5.0], [1.0, 1.0]])
    lost = -np.log(16)
    np.testing.assert_allclose(bond.j_bond(rewards, pairs), [lost, 0, 0, lost])  # A tie is no loss.
    # No better: none, which counts as 1 / 3; one, by a tie; one; none.
    shares = np.array([1 / 3, 1 / 2, 1 / 2, 1 / 3])
    np.testing.assert_allclose(bond.counted(rewards, pairs), np.log(shares), rtol=1e-6)
    many = jnp.array([[0.0] * 12 + [2.0] * 4])
    np.testing.assert_allclose(bond.counted(rewards[:1], many), np.log([12 / 16]), rtol=1e-6)
    with pytest.raises(AssertionError):
        bond.j_bond(rewards, many)
    with pytest.raises(AssertionError):
        bond.policy_weights(rewards, pairs, b=0.5, gamma=0.0, n=2)


P, GROUP = 2, 3
CONFIG = dataclasses.replace(
    gemma.PRESETS["tiny"], vocab_size=24, num_layers=1, embed_dim=16, hidden_dim=16, window=4
)
MODEL = gemma.make(CONFIG)
# Gradients are not clipped, so that Adam's first moment is a tenth of them.
LEARNING = tuning.Config(
    batch_size=P * GROUP,
    max_prompt_length=4,
    max_new_tokens=6,
    warmup_steps=0,
    chunk=8,
    max_grad_norm=1e9,
)
# The policy's text first: it loses to both, then ties with the worse one.
SCORES = np.array([-1.0, 0.25, 2.0, 1.0, 3.0, 1.0], np.float32)
BEST = [2, 4]


def config(**fields: Any) -> bond.Config:
    return bond.Config(**{"learning": LEARNING, **fields})


@functools.cache
def params(seed: int) -> Any:
    return fresh_params(MODEL.init, seed)


@functools.cache
def texts() -> batches.Sequences:
    rng = np.random.default_rng(0)
    examples = [
        Example(tuple(rng.integers(3, 24, p)), (*rng.integers(3, 24, c), 1))
        for p, c in ((3, 2), (3, 5), (3, 1), (2, 4), (2, 2), (2, 3))
    ]
    return jax.tree.map(jnp.asarray, batches.pad(examples, 10, 0))


MASK = np.asarray(texts().is_answer)[:, 1:]


@jax.jit
def likelihoods(of: Any) -> jax.Array:
    """Computes the log-probability of each text, [B], by the definition."""
    s = texts()
    log_p = jax.nn.log_softmax(MODEL.apply(of, s.tokens, s.positions, s.segments))
    log_p = jnp.take_along_axis(log_p[:, :-1], s.tokens[:, 1:, None], -1)[..., 0]
    return jnp.sum(jnp.where(MASK, log_p, 0), 1)


@functools.cache
def learn(c: bond.Config) -> Any:
    """Returns (state, rewards) -> (state, metrics), which is compiled, and the agent."""
    agent = bond.make(MODEL, c)
    compiled = jax.jit(agent.learner.step)

    def step(state: types.LearnerState, rewards: Any) -> Any:
        data = rollouts.Episodes(texts(), rewards, np.zeros(texts().tokens.shape, np.float32))
        constants = types.Constants(start=params(1))
        state, feedback = compiled(state, types.Batch.of(data), constants)
        return state, feedback.metrics

    return step, agent


@functools.cache
def fresh(c: bond.Config) -> types.LearnerState:
    return begun(learn(c)[1].learner, params(0))


def begin(c: bond.Config, anchor: int) -> types.LearnerState:
    state = fresh(c)
    return state._replace(targets={"anchor": params(anchor)})


def gradient(state: types.LearnerState) -> Any:
    return jax.tree.map(lambda x: 10 * x, state.opt_state[1][0].mu)


def close(a: Any, b: Any, atol: float = 1e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4), a, b)


def equal(a: Any, b: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Of the tests that may have any setting: they share its program.
ANY = config(backward_weight=0.3, regularisation=0.7, anchor_rate=1.0)


def test_the_gradient_is_that_of_the_definition_and_metrics_are_of_the_policy():
    c = ANY
    before = begin(c, anchor=2)
    state, metrics = learn(c)[0](before, SCORES)
    log_pi, log_q, log_start = (np.asarray(likelihoods(params(n)))[::GROUP] for n in (0, 2, 1))
    ratios = log_pi - log_q  # The anchor is that before the step.
    returns = np.array([-np.log(16), 0.0]) - ratios
    weights = 0.3 * (returns - returns[::-1]) - 0.7 * ratios  # Of two, the other one.

    def loss(of: Any) -> jax.Array:
        likely = likelihoods(of)
        return -(jnp.sum(weights * likely[::GROUP]) + 0.7 * jnp.sum(likely[jnp.array(BEST)])) / P

    close(gradient(state), jax.jit(jax.grad(loss))(params(0)))
    np.testing.assert_allclose(metrics["kl_anchor"], ratios, atol=1e-4)
    np.testing.assert_allclose(metrics["kl_start"], log_pi - log_start, atol=1e-4)
    np.testing.assert_array_equal(metrics["won"], [0.0, 0.25])
    np.testing.assert_array_equal(metrics["reward_best"], [2, 3])
    np.testing.assert_array_equal(metrics["reward_anchor"], [1.125, 2])
    np.testing.assert_array_equal(metrics["answer_tokens"], MASK.sum(1)[::GROUP])
    equal(state.targets["anchor"], state.params)  # eta = 1: after the step.


def test_without_the_backward_part_it_is_supervised_tuning_on_the_best_of_two():
    c = config(backward_weight=0.0)
    state, metrics = learn(c)[0](begin(c, anchor=0), SCORES)

    def loss(of: Any) -> jax.Array:
        return -jnp.mean(likelihoods(of)[jnp.array(BEST)])

    close(gradient(state), jax.jit(jax.grad(loss))(params(0)))
    equal(metrics["kl_anchor"], np.zeros(P))  # At step 0 exactly.


def test_a_monotone_change_of_the_reward_changes_no_bit():
    ends = []
    for rewards in (SCORES, np.exp(3 * SCORES) - 7, SCORES[::-1].copy()):
        state = begin(ANY, anchor=0)
        for _ in range(3):
            state, _ = learn(ANY)[0](state, rewards)
        ends.append(state)
    equal(ends[0].params, ends[1].params)
    equal(ends[0].targets, ends[1].targets)
    assert np.any(ends[0].params["embedding"] != ends[2].params["embedding"])


@pytest.mark.slow
def test_micro_batches_add_up_and_anchors_follow_as_they_are_told():
    c = config(estimator="counted", anchor="periodic", anchor_period=2)
    parts = config(learning=dataclasses.replace(LEARNING, micro_batches=2))
    whole = config()
    both = [learn(x)[0](begin(x, anchor=2), SCORES) for x in (parts, whole)]
    close(both[0][0].params, both[1][0].params, 1e-4)
    close(both[0][1], both[1][1])
    first, _ = learn(c)[0](begin(c, anchor=2), SCORES)
    equal(first.targets["anchor"], params(2))
    second, _ = learn(c)[0](first, SCORES)
    equal(second.targets["anchor"], second.params)
    fixed = config(anchor="fixed")
    state, _ = learn(fixed)[0](begin(fixed, anchor=2), SCORES)
    equal(state.targets["anchor"], params(2))


def test_who_acts():
    agent, state = learn(ANY)[1], begin(ANY, anchor=2)
    acting = agent.actor_params(state, jnp.zeros(()), False, types.NO_CONSTANTS)
    equal(acting, {"params": params(0), "anchor": params(2)})
    evaluated = agent.actor_params(state, jnp.zeros(()), True, types.NO_CONSTANTS)
    assert set(evaluated) == {"params"}
    assert agent.experience.samples_per_prompt == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"best_of": 1}, r"best_of \(N\) must lie in \[2, anchor_samples=2\], got 1"),
        ({"best_of": 4}, "must lie in .2, anchor_samples=2., got 4"),
        ({"estimator": "x"}, "unknown estimator 'x'"),
        ({"anchor_samples": 4}, "estimator=j-bond compares with two texts"),
        ({"backward_weight": 1.5}, r"backward_weight \(b\) must lie in"),
        ({"regularisation": -1.0}, r"regularisation \(gamma\) must be >= 0, got -1"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"anchor_rate": 0.0}, "rate of a moving average must lie in"),
        ({"anchor_period": 0}, "target period must be >= 1"),
        ({"anchor": "x"}, "unknown anchor 'x'"),
        (
            {"estimator": "counted", "anchor_samples": 16},
            "must be a multiple of 17, got 6; the next is 17",
        ),
        (
            {"learning": dataclasses.replace(LEARNING, micro_batches=3)},
            "micro_batches=3 must divide the 2 prompts of batch_size=6",
        ),
        ({"learning": dataclasses.replace(LEARNING, reduction="token")}, "leave pack=False"),
        (
            {"learning": dataclasses.replace(LEARNING, lora=tuning.Lora(rank=2))},
            "lora.shared_a=true",
        ),
    ],
)
def test_settings_are_checked(fields: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config(**fields)


def test_presets_are_what_the_paper_has():
    c = bond.presets("tokens")
    assert (c.backward_weight, c.anchor_rate, c.best_of, c.temperature) == (0.5, 0.02, 2, 1.0)
    assert c.learning.warmup_steps == 100
