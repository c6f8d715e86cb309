"""Tests of lm/rlhf.py, lm/rlef.py and the several samples of lm/policy.py."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import rollout, types
from kullback.environments import tokens
from kullback.lm import (
    batches,
    gemma,
    policy,
    policy_gradient,
    rlef,
    rlhf,
    rollouts,
    tuning,
    value_network,
)
from kullback.lm.data import Example
from tests.states import begun, fresh_params

SIZE, GROUP = 4, 2
CONFIG = dataclasses.replace(
    gemma.PRESETS["tiny"], vocab_size=24, num_layers=1, embed_dim=16, hidden_dim=16, window=4
)
MODEL = gemma.make(CONFIG)
# Gradients are not clipped, so that Adam's first moment is a tenth of them.
LEARNING = tuning.Config(
    batch_size=SIZE,
    max_prompt_length=4,
    max_new_tokens=6,
    warmup_steps=0,
    chunk=8,
    max_grad_norm=1e9,
)
REWARDS = np.array([1.0, -0.5, 0.25, 2.0], np.float32)


def config(**fields: Any) -> rlhf.Config:
    return rlhf.Config(**{"samples_per_prompt": GROUP, "learning": LEARNING, **fields})


@functools.cache
def params(seed: int) -> Any:
    return fresh_params(MODEL.init, seed)


@functools.cache
def texts() -> batches.Sequences:
    rng = np.random.default_rng(0)
    examples = [
        Example(tuple(rng.integers(3, 24, p)), (*rng.integers(3, 24, c), 1))
        for p, c in ((3, 2), (3, 5), (2, 1), (2, 4))
    ]
    return jax.tree.map(jnp.asarray, batches.pad(examples, 10, 0))


@jax.jit
def log_probabilities(of: Any) -> jax.Array:
    """Computes log-probabilities of all tokens but the first, [B, T - 1], by the definition."""
    s = texts()
    log_p = jax.nn.log_softmax(MODEL.apply(of, s.tokens, s.positions, s.segments))
    return jnp.take_along_axis(log_p[:, :-1], s.tokens[:, 1:, None], -1)[..., 0]


MASK = np.asarray(texts().is_answer)[:, 1:]
LENGTHS = MASK.sum(1)


def drawn(seed: int) -> np.ndarray:
    """Returns log-probabilities of the texts under `params(seed)`, [B, T]."""
    log_p = np.zeros(texts().tokens.shape, np.float32)
    log_p[:, 1:] = np.where(MASK, log_probabilities(params(seed)), 0)
    return log_p


def step(
    c: rlhf.Config | rlef.Config, start: int = 1, seed: int = 0, anchor: int = 2, **kwargs: Any
) -> tuple[types.LearnerState, dict[str, np.ndarray]]:
    """Returns state and metrics of a step from `params(seed)`, of which the texts are samples."""
    make: Any = rlef.make if isinstance(c, rlef.Config) else rlhf.make
    teacher = {"teacher": MODEL} if kwargs else {}
    agent = make(MODEL, config=c, **teacher)
    initial = params(seed)
    if agent.experience.has_value:
        initial = value_network.with_value(initial)
    state = begun(agent.learner, initial)
    state = state._replace(targets={name: params(anchor) for name in state.targets})
    ones = np.ones(SIZE, np.float32)
    data = rollouts.Episodes(texts(), REWARDS, drawn(seed))
    batch = types.Batch(data, np.arange(SIZE, dtype=np.int32), ones / SIZE, ones)
    constants = types.Constants(start=params(start), **kwargs)
    state, feedback = jax.jit(agent.learner.step)(state, batch, constants)
    return state, {name: np.asarray(x) for name, x in feedback.metrics.items()}


def gradient(state: types.LearnerState) -> Any:
    return jax.tree.map(lambda x: 10 * x, state.opt_state[1][0].mu)


def close(a: Any, b: Any, atol: float = 1e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4), a, b)


def ratios(reference: int) -> np.ndarray:
    return np.where(MASK, log_probabilities(params(0)) - log_probabilities(params(reference)), 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"kl_coefficient": 0.3},
        *(
            pytest.param(fields, marks=pytest.mark.slow)  # Each compiles for seconds.
            for fields in (
                {"kl_coefficient": 0.3, "kl_estimator": "k3", "reference": "moving-average"},
                {"kl_coefficient": 0.3, "kl_placement": "loss", "kl_estimator": "k2"},
                {"baseline": "group", "normalisation": "length", "length_penalty": 0.1},
                {"temperature": 2.0, "normalisation": "tokens", "kl_coefficient": 0.0},
            )
        ),
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_the_gradient_is_that_of_the_definition(fields: dict[str, Any]):
    """Oracle: all logits at once, the advantages in NumPy."""
    c = config(**fields)
    state, _ = step(c)
    log_ratio = ratios(2 if c.reference == "moving-average" else 1)
    returns = REWARDS - c.length_penalty * LENGTHS
    if c.kl_placement == "reward":
        estimate = np.asarray(policy_gradient.kl_estimate(jnp.asarray(log_ratio), c.kl_estimator))
        returns = returns - c.kl_coefficient * np.where(MASK, estimate, 0).sum(1)
    groups = returns.reshape(-1, GROUP)
    if c.baseline == "group":
        spread = groups.std(1, ddof=1, keepdims=True) + 1e-4
        advantages = (groups - groups.mean(1, keepdims=True)) / spread
    else:
        advantages = groups - groups[:, ::-1]  # Of two, the other one.
    divisors = {"none": SIZE, "length": SIZE * LENGTHS[:, None], "tokens": MASK.sum()}
    weights = np.where(MASK, 1 / divisors[c.normalisation], 0)

    def loss(of: Any) -> jax.Array:
        s = texts()
        logits = MODEL.apply(of, s.tokens, s.positions, s.segments) / c.temperature
        log_p = jax.nn.log_softmax(logits)[:, :-1]
        log_p = jnp.take_along_axis(log_p, s.tokens[:, 1:, None], -1)[..., 0]
        total = -advantages.reshape(-1, 1) * log_p
        if c.kl_placement == "loss":
            reference_log_p = log_probabilities(params(1))
            total += c.kl_coefficient * policy_gradient.kl_estimate(
                log_p - reference_log_p, c.kl_estimator
            )
        return jnp.sum(weights * total)

    close(gradient(state), jax.jit(jax.grad(loss))(params(0)))


def test_what_is_logged_of_the_kl():
    """To the start, whatever the anchor; and to the anchor as it was before the step."""
    _, metrics = step(config(reference="moving-average", anchor_rate=1.0))
    np.testing.assert_allclose(metrics["kl_start"], ratios(1).sum(1), atol=1e-4)
    np.testing.assert_allclose(metrics["kl_reference"], ratios(2).sum(1), atol=1e-4)
    np.testing.assert_array_equal(metrics["answer_tokens"], LENGTHS)
    np.testing.assert_array_equal(metrics["truncated"], np.zeros(SIZE))


@pytest.mark.slow
def test_an_anchor_that_is_the_policy_makes_the_penalty_vanish():
    """mu = 1: after a step, and before the first one, the anchor is the policy itself."""
    c = config(reference="moving-average", anchor_rate=1.0, kl_coefficient=5.0)
    state, metrics = step(c, anchor=0)
    np.testing.assert_allclose(metrics["kl_reference"], np.zeros(SIZE), atol=1e-5)
    close(state.targets["anchor"], state.params, atol=0)
    free, _ = step(config(kl_coefficient=0.0))
    close(gradient(state), gradient(free))


@pytest.mark.slow
def test_at_the_start_there_is_no_penalty_and_without_a_coefficient_no_reference():
    at_start, metrics = step(config(kl_coefficient=5.0), start=0)
    np.testing.assert_allclose(metrics["kl_start"], np.zeros(SIZE), atol=1e-5)
    free, _ = step(config(kl_coefficient=0.0), start=1)
    close(gradient(at_start), gradient(free))
    bound, _ = step(config(kl_coefficient=5.0), start=1)
    difference = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), bound.params, free.params)
    assert max(map(float, jax.tree.leaves(difference))) > 1e-6


@pytest.mark.slow
def test_micro_batches_add_up_to_the_batch():
    learning = dataclasses.replace(LEARNING, micro_batches=4)
    for fields in ({}, {"baseline": "value"}):
        c = config(**fields)
        whole, plain = step(c)
        parts, cut = step(dataclasses.replace(c, learning=learning))
        close(cut, plain)
        close(parts.params, whole.params, 1e-4)


@pytest.mark.slow
def test_the_combined_objective_is_the_weighted_sum_of_both():
    both, metrics = step(config(distillation_weight=0.25), teacher=params(3))
    alone, _ = step(config())

    def distance(of: Any) -> jax.Array:
        s = texts()
        inputs = s.tokens, s.positions, s.segments
        log_q = jax.nn.log_softmax(MODEL.apply(of, *inputs))[:, :-1]
        log_p = jax.nn.log_softmax(MODEL.apply(params(3), *inputs))[:, :-1]
        return jnp.sum(jnp.where(MASK, jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1), 0)) / SIZE

    teacher_gradient = jax.jit(jax.grad(distance))(params(0))
    expected = jax.tree.map(lambda x, y: 0.75 * x + 0.25 * y, gradient(alone), teacher_gradient)
    close(gradient(both), expected)
    mean = np.sum(metrics["distance"] * LENGTHS) / SIZE
    np.testing.assert_allclose(mean, float(distance(params(0))), rtol=1e-4)


@pytest.mark.slow
def test_an_actor_and_its_critic():
    """At the start V = 0 and the KL is 0: by one step only the last token has an error."""
    state, metrics = step(rlef.Config(regularisation=0.25, learning=LEARNING), start=0)
    np.testing.assert_allclose(metrics["value_error"], (0.75 * REWARDS) ** 2 / LENGTHS, rtol=1e-4)
    _, sums = step(rlef.Config(regularisation=0.25, value_lambda=1.0, learning=LEARNING), start=0)
    np.testing.assert_allclose(sums["value_error"], (0.75 * REWARDS) ** 2, rtol=1e-4)
    assert float(jnp.max(jnp.abs(state.params["value"]["head"]))) > 0
    # The value begins as the policy, and each is moved by its own loss alone.
    same = jax.tree.map(
        lambda x, y: bool(jnp.all(x == y)), state.params["value"]["decoder"], params(0)
    )
    assert all(jax.tree.leaves(same)), "a head of zeros lets no gradient through yet"
    assert bool(jnp.any(state.params["embedding"] != params(0)["embedding"]))


@pytest.mark.slow
def test_a_critic_learns_what_its_texts_are_worth():
    c = rlef.Config(regularisation=0.0, value_learning_rate=1e-2, learning=LEARNING)
    agent = rlef.make(MODEL, c)
    state = agent.learner.init(jax.random.key(0))
    ones = np.ones(SIZE, np.float32)
    data = rollouts.Episodes(texts(), REWARDS, drawn(0))
    batch = types.Batch(data, np.arange(SIZE, dtype=np.int32), ones / SIZE, ones)
    learn, errors = jax.jit(agent.learner.step), []
    for _ in range(60):
        state, feedback = learn(state, batch, types.Constants(start=params(0)))
        errors.append(float(jnp.mean(feedback.metrics["value_error"])))
    assert errors[-1] < errors[0] / 10, errors[::10]


@pytest.mark.slow
def test_several_samples_prefill_a_prompt_once_and_are_those_of_repeated_prompts():
    prompts = batches.pad_prompts([(3, 4, 5), (7,)], 4, 0)
    repeated = policy.repeat_prompts(prompts, 3)
    np.testing.assert_array_equal(repeated.tokens[:3], np.repeat(prompts.tokens[:1], 3, 0))
    completions = []
    for context, samples in ((prompts, 3), (repeated, 1)):
        acts = policy.language_model(MODEL, samples_per_prompt=samples)
        environment = tokens.make_batch(*repeated[:2], horizon=6, vocab_size=24, stop_tokens=(1,))
        acting, key = {"params": params(0)}, jax.random.key(5)
        state = rollout.start(acts, environment, acting, key, context, 10)
        assert state.policy.cache.start.shape == (6,)
        trajectory, _ = rollout.rollout(acts, environment, acting, state, key, 6)
        completions.append(tokens.completions(trajectory, (1,)))
    once, repeatedly = completions
    np.testing.assert_array_equal(once.tokens, repeatedly.tokens)
    np.testing.assert_allclose(once.log_probability, repeatedly.log_probability, atol=1e-5)
    assert len({tuple(row) for row in np.asarray(once.tokens)}) > 2, "samples differ"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: config(samples_per_prompt=3), "must be >= 1 and divide batch_size=4, got 3"),
        (
            lambda: rlhf.Config(samples_per_prompt=1, learning=LEARNING),
            "leave-one-out needs samples_per_prompt >= 2",
        ),
        (lambda: config(kl_coefficient=-1.0), "kl_coefficient must be >= 0, got -1.0"),
        (lambda: config(temperature=0.0), "temperature must be > 0, got 0.0"),
        (lambda: config(kl_estimator="k5"), "unknown KL estimator 'k5'"),
        (lambda: config(anchor_rate=0.0), "rate of a moving average must lie in"),
        (lambda: config(return_lambda=2.0), "return_lambda must lie in"),
        (lambda: config(distillation_weight=1.0), "distillation_weight must lie in"),
        (lambda: config(divergence="x"), "unknown distillation loss 'x'"),
        (lambda: rlef.Config(regularisation=2.0), "regularisation .alpha. must lie in"),
        (lambda: rlhf.make(MODEL, MODEL, config()), "has no use for a teacher"),
        (
            lambda: rlhf.make(MODEL, None, config(distillation_weight=0.5)),
            "0.5 > 0 needs a teacher",
        ),
        (
            lambda: rlhf.Config(learning=dataclasses.replace(LEARNING, reduction="token")),
            "here normalisation says how tokens count",
        ),
        (
            lambda: policy.language_model(MODEL, samples_per_prompt=0),
            "samples_per_prompt must be >= 1, got 0",
        ),
    ],
)
def test_settings_are_checked(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
