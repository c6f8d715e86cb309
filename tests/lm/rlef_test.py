"""Tests of lm/rlef.py; rlhf_test.py has those of the objective that it shares."""

import dataclasses
import functools
import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import checkpoints, learners, types
from kullback.lm import batches, gemma, rlef, rollouts, tuning, value_network
from kullback.lm.data import Example
from tests.states import fresh_params

pytestmark = pytest.mark.slow  # Most of it is compilation.

V, HORIZON, STOP = 6, 2, 1
MODEL = gemma.make(
    dataclasses.replace(
        gemma.PRESETS["tiny"], vocab_size=V, num_layers=1, embed_dim=16, hidden_dim=16, window=4
    )
)
# Every text that there is: a stop, a token and a stop, or two tokens that the horizon cuts.
OTHERS = [token for token in range(V) if token != STOP]
TEXTS = [(STOP,), *((token, STOP) for token in OTHERS), *itertools.product(OTHERS, OTHERS)]
SIZE = len(TEXTS)
LEARNING = tuning.Config(
    batch_size=SIZE,
    max_prompt_length=2,
    max_new_tokens=HORIZON,
    warmup_steps=0,
    chunk=64,
    max_grad_norm=1e9,  # Gradients are not clipped: Adam's first moment is a tenth of them.
)
ONES = np.ones(SIZE, np.float32)
REWARDS = np.log(np.random.default_rng(0).uniform(0.05, 1.0, SIZE)).astype(np.float32)


@functools.cache
def rows() -> batches.Sequences:
    examples = [Example((3, 4), text) for text in TEXTS]
    return batches.pad(examples, 2 + HORIZON, 0)


@functools.cache
def params(seed: int) -> Any:
    return fresh_params(MODEL.init, seed)


@jax.jit
def log_probabilities(of: Any) -> jax.Array:
    """Returns log-probabilities of the answers' tokens, [B, T - 1]."""
    s = rows()
    log_p = jax.nn.log_softmax(MODEL.apply(of, s.tokens, s.positions, s.segments))
    log_p = jnp.take_along_axis(log_p[:, :-1], jnp.asarray(s.tokens)[:, 1:, None], -1)[..., 0]
    return jnp.where(s.is_answer[:, 1:], log_p, 0)


def config(alpha: float, **fields: Any) -> rlef.Config:
    return rlef.Config(**{"regularisation": alpha, "learning": LEARNING, **fields})


def batch(of: Any, rewards: np.ndarray, weights: types.Array = ONES) -> types.Batch:
    """Returns all texts as samples of the parameters `of`."""
    log_probability = jnp.pad(log_probabilities(of), ((0, 0), (1, 0)))
    data = rollouts.Episodes(rows(), rewards, log_probability)
    return types.Batch(data, np.arange(SIZE, dtype=np.int32), ONES / SIZE, weights)


@functools.cache
def program(c: rlef.Config) -> tuple[types.Learner, Any]:
    learner = rlef.make(MODEL, c).learner
    return learner, jax.jit(learner.step)


def stepped(
    c: rlef.Config, start: int = 1, rewards: np.ndarray = REWARDS
) -> tuple[types.LearnerState, dict[str, np.ndarray]]:
    """Takes a step from `params(0)`, of which the texts are samples."""
    learner, step = program(c)
    state = learner.init(jax.random.key(0))
    state = learners.with_params(state, value_network.with_value(params(0)))
    state, feedback = step(state, batch(params(0), rewards), types.Constants(start=params(start)))
    return state, {name: np.asarray(x) for name, x in feedback.metrics.items()}


def gradient(state: types.LearnerState) -> Any:
    """Returns the policy's gradient, without the value network's."""
    mu = state.opt_state.inner_states["policy"].inner_state[1][0].mu
    return {name: jax.tree.map(lambda x: 10 * x, mu[name]) for name in params(0)}


def of_returns(returns: np.ndarray | jax.Array) -> Any:
    """Computes the gradient of - mean_b sum_n G_n log pi(y_n), of given G [B, T - 1]."""
    return jax.grad(lambda of: -jnp.mean(jnp.sum(returns * log_probabilities(of), 1)))(params(0))


def close(a: Any, b: Any, atol: float = 1e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4), a, b)


def at_end() -> np.ndarray:
    """Returns 1 at the last token of each text, else 0, [B, T - 1]."""
    is_last = np.zeros((SIZE, 1 + HORIZON))
    is_last[np.arange(SIZE), [len(text) for text in TEXTS]] = 1
    return is_last


def test_the_reward_is_0_before_the_end_and_the_score_there():
    """Without a bootstrapped future, the return of a token is its own reward: V is 0 yet."""
    state, _ = stepped(config(0.25, return_lambda=0.0), start=0)
    close(gradient(state), of_returns(0.75 * REWARDS[:, None] * at_end()))


def test_the_return_is_the_score_and_the_log_ratios_to_come():
    state, metrics = stepped(config(0.25))
    ratio = np.asarray(log_probabilities(params(0)) - log_probabilities(params(1)))
    rewards = 0.75 * REWARDS[:, None] * at_end() - 0.25 * ratio
    returns = np.cumsum(rewards[:, ::-1], 1)[:, ::-1]
    close(gradient(state), of_returns(returns))
    np.testing.assert_allclose(metrics["kl_start"], ratio.sum(1), atol=1e-5)


def test_where_the_policy_is_the_start_there_is_the_score_alone():
    state, metrics = stepped(config(0.25), start=0)
    np.testing.assert_allclose(metrics["kl_start"], np.zeros(SIZE), atol=1e-6)
    alone, _ = stepped(config(0.0), start=1)
    close(gradient(state), jax.tree.map(lambda x: 0.75 * x, gradient(alone)))


def test_alpha_1_imitates_the_start_and_alpha_0_forgets_it():
    other = REWARDS[::-1].copy()
    imitating = [stepped(config(1.0), rewards=r)[0].params for r in (REWARDS, other)]
    close(*imitating, atol=0)
    free = [stepped(config(0.0), start=start)[0].params for start in (1, 2)]
    close(*free, atol=0)
    moved = [stepped(config(0.5), rewards=r)[0].params for r in (REWARDS, other)]
    assert np.any(moved[0]["embedding"] != moved[1]["embedding"])
    moved = [stepped(config(0.5), start=start)[0].params for start in (1, 2)]
    assert np.any(moved[0]["embedding"] != moved[1]["embedding"])


def test_a_cut_text_costs_what_is_said_and_is_scored_else():
    state, metrics = stepped(config(0.5, return_lambda=0.0, truncation_penalty=0.3), start=0)
    is_cut = np.array([text[-1] != STOP for text in TEXTS])
    np.testing.assert_array_equal(metrics["truncated"], is_cut)
    scores = 0.5 * REWARDS - 0.3 * is_cut
    close(gradient(state), of_returns(scores[:, None] * at_end()))


@pytest.mark.parametrize("alpha", [0.2, 0.5])
def test_the_optimum_is_the_start_times_a_power_of_the_probability(alpha: float):
    """Exact gradients: each text counts by its probability, in place of draws.

    The value is a baseline of prefixes, which changes no expectation, whatever it has learnt.
    """
    learning = dataclasses.replace(LEARNING, learning_rate=1e-2)
    learner, step = program(config(alpha, learning=learning))
    state = learner.init(jax.random.key(0))
    state = learners.with_params(state, value_network.with_value(params(1)))

    def log_p(of: Any) -> jax.Array:
        return jnp.sum(log_probabilities(of), 1)

    for _ in range(600):
        of = {name: state.params[name] for name in params(0)}
        weights = SIZE * jnp.exp(log_p(of))
        state, _ = step(state, batch(of, REWARDS, weights), types.Constants(start=params(1)))
    beta = alpha / (1 - alpha)
    best = jax.nn.log_softmax(log_p(params(1)) + REWARDS / beta)
    learnt = log_p({name: state.params[name] for name in params(0)})
    assert abs(float(jnp.sum(jnp.exp(learnt))) - 1) < 1e-4, "these are all texts"
    distances = [float(jnp.sum(jnp.exp(x) * (x - best))) for x in (log_p(params(1)), learnt)]
    assert distances[1] < 1e-3 < 0.05 < distances[0], distances


def test_it_resumes_with_the_same_bits(tmp_path: pathlib.Path):
    c = config(0.1)
    learner, step = program(c)
    state = learners.with_params(
        learner.init(jax.random.key(0)), value_network.with_value(params(0))
    )
    given = batch(params(0), REWARDS), types.Constants(start=params(1))
    once, _ = step(state, *given)
    checkpoints.save(tmp_path, 1, once, {})
    back, _ = checkpoints.restore(tmp_path, 1, learner.init(jax.random.key(7)))
    (twice, _), (resumed, _) = step(once, *given), step(back, *given)
    close(twice.params, resumed.params, atol=0)
    close(twice.opt_state, resumed.opt_state, atol=0)
    assert int(resumed.steps) == 2 and np.any(once.params["embedding"] != twice.params["embedding"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rlef.Config(regularisation=-0.1), "must lie in .0, 1., got -0.1; 0 is the"),
        (lambda: rlef.Config(value_lambda=2.0), "value_lambda must lie in"),
        (lambda: rlef.Config(truncation_penalty=-1.0), "truncation_penalty must be >= 0"),
    ],
)
def test_settings_are_checked(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
