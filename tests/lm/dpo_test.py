"""Tests of lm/dpo.py."""

import dataclasses
import functools
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kullback.core import regularizers, types
from kullback.lm import adapters, answers, batches, dpo, gemma, lora, preferences, tuning
from kullback.lm.data import Example
from tests.states import begun, fresh_params

SIZE = 4  # Pairs of a batch.
MODEL = gemma.make(
    dataclasses.replace(
        gemma.PRESETS["tiny"], vocab_size=24, num_layers=1, embed_dim=16, hidden_dim=16, window=4
    )
)
# Gradients are not clipped, so that Adam's first moment is a tenth of them.
LEARNING = tuning.Config(
    batch_size=SIZE,
    max_prompt_length=4,
    max_new_tokens=6,
    warmup_steps=0,
    chunk=8,
    max_grad_norm=1e9,
)
DENSE = [name for name, f in regularizers.DIVERGENCES.items() if not f.is_sparse]
QUICK = {"kl", "reverse_kl", "alpha-0.5"}
SOME = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in (*DENSE, "alpha-0.5")]
# f'(u) by the definition, float64.
SLOPES = {
    "kl": np.log,
    "reverse_kl": lambda u: 1 - 1 / u,
    "jeffreys": lambda u: np.log(u) + 1 - 1 / u,
    "gan": lambda u: np.log(2 * u / (1 + u)),
    "jensen_shannon": lambda u: np.log(2 * u / (1 + u)) / 2,
    "hellinger": lambda u: 1 - u**-0.5,
    "alpha-0.5": lambda u: (u**-0.5 - 1) / -0.5,
}
numbers = hnp.arrays(np.float64, (SIZE,), elements=st.floats(-6, 6, allow_subnormal=False))


def config(objective: dict[str, Any] | None = None, **learning: Any) -> dpo.Config:
    return dpo.Config(
        objective=dpo.Objective(**(objective or {})),
        learning=dataclasses.replace(LEARNING, **learning),
    )


@functools.cache
def params(seed: int) -> Any:
    return fresh_params(MODEL.init, seed)


@functools.cache
def pairs() -> preferences.Pairs:
    """Returns pairs of prompts and answers of many lengths; id 1 ends an answer."""
    rng = np.random.default_rng(0)

    def completion(length: int) -> tuple[int, ...]:
        return (*rng.integers(3, 24, length).tolist(), 1)

    prompts = [tuple(rng.integers(3, 24, n).tolist()) for n in (1, 4, 2, 3)]
    examples = [
        preferences.Pair(Example(p, completion(a)), Example(p, completion(b)))
        for p, a, b in zip(prompts, (2, 5, 1, 4), (5, 1, 2, 3), strict=True)
    ]
    return preferences.pad(examples, 10, 0)


def log_pi(of: Any, rows: batches.Sequences) -> jax.Array:
    """Computes ln pi(y | x) of whole answers by the definition, all logits at once, [B]."""
    log_p = jax.nn.log_softmax(MODEL.apply(of, rows.tokens, rows.positions, rows.segments))
    log_p = jnp.take_along_axis(log_p[:, :-1], rows.tokens[:, 1:, None], -1)[..., 0]
    return jnp.sum(jnp.where(rows.is_answer[:, 1:], log_p, 0), 1)


@jax.jit
def both(of: Any) -> jax.Array:
    return jnp.stack([log_pi(of, rows) for rows in pairs()], 1)  # [B, 2]


def batch(reference: Any, swap: bool = False) -> types.Batch:
    ones = np.ones(SIZE, np.float32)
    data = dpo.Referred(pairs(), reference)
    if swap:
        data = dpo.Referred(preferences.Pairs(*pairs()[::-1]), reference[:, ::-1])
    return types.Batch(data, np.arange(SIZE, dtype=np.int32), ones / SIZE, ones)


@functools.cache
def learner(c: dpo.Config) -> tuple[types.LearnerState, Any]:
    """Returns a state before the first step, and the step as a program."""
    learns = dpo.make(MODEL, c).learner
    return begun(learns, params(0)), jax.jit(learns.step)


def step(
    c: dpo.Config, policy: Any, reference: Any, swap: bool = False
) -> tuple[types.LearnerState, dict[str, np.ndarray]]:
    """Returns state and metrics of one learner step of `policy`."""
    fresh, learn = learner(c)
    state, given = fresh._replace(params=policy), both(reference)
    if c.objective.targets:
        state, given = state._replace(targets={dpo.REFERENCE: reference}), None
    state, feedback = learn(state, batch(given, swap), types.NO_CONSTANTS)
    return state, {name: np.asarray(x) for name, x in feedback.metrics.items()}


def gradient(state: types.LearnerState) -> Any:
    return jax.tree.map(lambda x: 10 * x, state.opt_state[1][0].mu)


def close(a: Any, b: Any, atol: float = 2e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-3), a, b)


def oracle(d: np.ndarray, loss: str, beta: float, e: float) -> np.ndarray:
    """Computes losses of differences in float64, by the definition."""
    log_s = lambda x: -np.logaddexp(0, -x)  # noqa: E731
    right, wrong = -log_s(beta * d), -log_s(-beta * d)
    return {
        "sigmoid": (1 - e) * right + e * wrong,
        "robust": ((1 - e) * right - e * wrong) / (1 - 2 * e),
        "ipo": (d - 1 / (2 * beta)) ** 2,
        "hinge": np.maximum(0, 1 - beta * d),
    }[loss]


@functools.partial(jax.jit, static_argnums=1)
def pair_losses(d: jax.Array, loss: Any, beta: float, smoothing: float) -> jax.Array:
    return dpo.pair_losses(d, loss, beta=beta, smoothing=smoothing)


pair_slopes = jax.jit(jax.grad(lambda *given: jnp.sum(pair_losses(*given))), static_argnums=1)
differences = jax.jit(dpo.differences, static_argnums=0)


@pytest.mark.parametrize("loss", ["sigmoid", "robust", "ipo", "hinge"])
@hypothesis.settings(deadline=None)
@hypothesis.given(d=numbers, beta=st.floats(0.05, 2), e=st.floats(0, 0.4))
def test_losses_of_differences(loss: Any, d: np.ndarray, beta: float, e: float):
    with jax.enable_x64(True):
        got = np.asarray(pair_losses(jnp.asarray(d), loss, beta, e))
        np.testing.assert_allclose(got, oracle(d, loss, beta, e), rtol=1e-9, atol=1e-12)
        if loss == "robust":  # Unbiased: over labels that are swapped with probability e.
            swapped = np.asarray(pair_losses(jnp.asarray(-d), loss, beta, e))
            mean = (1 - e) * got + e * swapped
            np.testing.assert_allclose(mean, oracle(d, "sigmoid", beta, 0), rtol=1e-9)
        slope = pair_slopes(np.zeros(2), loss, beta, e)
        at_start = {"sigmoid": -beta / 2 * (1 - 2 * e), "robust": -beta / 2 / (1 - 2 * e)}
        at_start |= {"ipo": -1 / beta, "hinge": -beta}
        np.testing.assert_allclose(slope, at_start[loss], rtol=1e-9)


@pytest.mark.parametrize("name", SOME)
def test_differences_of_any_divergence(name: str):
    """By f'(pi / ref) in float64, and what is added to both log-probabilities changes nothing."""
    rng = np.random.default_rng(0)
    chosen, rejected = rng.normal(size=(2, 2, SIZE))
    counts = np.full(SIZE, 3)
    objective = dpo.Objective(divergence=name)
    with jax.enable_x64(True):
        scores = [dpo.Scores(*map(jnp.asarray, (*x, counts))) for x in (chosen, rejected)]
        got = np.asarray(differences(objective, *scores))
        h = [SLOPES[name](np.exp(x[0] - x[1])) for x in (chosen, rejected)]
        np.testing.assert_allclose(got, h[0] - h[1], rtol=1e-9)
        moved = [x._replace(log_pi=x.log_pi + 5, log_reference=x.log_reference + 5) for x in scores]
        np.testing.assert_allclose(differences(objective, *moved), got, rtol=1e-9)
        np.testing.assert_allclose(differences(objective, *scores[::-1]), -got, rtol=1e-9)
        # A constant of the prompt in the policy alone is no preference either, for log-ratios.
        moved = [x._replace(log_pi=x.log_pi + 5) for x in scores]
        if name == "kl":
            np.testing.assert_allclose(differences(objective, *moved), got, rtol=1e-9)


@pytest.mark.parametrize("name", SOME)
def test_ratios_of_long_texts(name: str):
    """Of ln u = -300 and 300, float32: finite, monotone, with a slope that brings -300 back."""
    f = regularizers.named(name)
    x = np.array([-300.0, -41, -40, -39, 0, 39, 41, 300], np.float32)
    h = np.asarray(jax.jit(lambda x: dpo.implicit_rewards(x, f))(x))
    assert np.all(np.isfinite(h)) and np.all(np.diff(h) >= 0) and h[4] == 0
    slope = np.asarray(jax.jit(jax.vmap(jax.grad(lambda x: dpo.implicit_rewards(x, f))))(x))
    inside = jax.jit(jax.vmap(jax.grad(f.derivative_of_log)))(np.clip(x, -dpo.FAR, dpo.FAR))
    np.testing.assert_allclose(slope, inside, rtol=1e-5)
    assert slope[0] > 0.4
    if name == "kl":
        np.testing.assert_allclose(h, x, rtol=1e-7)


def test_divergences_by_which_a_policy_is_no_reward_model():
    for name in ("chi_squared", "alpha-1.5"):
        with pytest.raises(ValueError, match=rf"divergence={name} has a finite f'\(0\)"):
            dpo.Objective(divergence=name)
    refused: list[tuple[dict[str, Any], str]] = [
        ({"loss": "ipo", "divergence": "gan"}, "loss=ipo is of log-ratios"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing=0.1 is of loss=sigmoid"),
        ({"label_smoothing": 0.5}, r"must lie in \[0, 1/2\)"),
        ({"beta": 0.0}, "beta must be > 0"),
        ({"nll_weight": -1.0}, "nll_weight must be >= 0"),
        ({"loss": "kto"}, "loss"),
        ({"reference_period": 0}, "period must be >= 1"),
        ({"reference_rate": 0.0}, "rate"),
    ]
    for fields, message in refused:
        with pytest.raises(ValueError, match=message):
            dpo.Objective(**fields)
    with pytest.raises(ValueError, match="pack must be False"):
        config(pack=True, reduction="token")
    moving = {"reference": "moving"}
    with pytest.raises(ValueError, match=r"--set lora.shared_a=true, or reference_rate=1"):
        config(moving, lora=lora.Config(rank=2))
    config({**moving, "reference_rate": 1.0}, lora=lora.Config(rank=2))
    with pytest.raises(ValueError, match=r"fraction of pairs to swap must lie in \[0, 1\]"):
        dpo.Config(corruption=2.0)


def test_at_the_start_the_loss_is_ln_2_and_the_gradient_that_of_the_answers():
    """-beta / 2 (grad h+ - grad h-), h the log-probability; swapped answers turn it."""
    state, metrics = step(config({"beta": 0.3}), params(0), params(0))
    np.testing.assert_allclose(metrics["loss"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(metrics["margin"], np.zeros(SIZE), atol=1e-5)

    def margin(of: Any) -> jax.Array:
        chosen, rejected = (log_pi(of, rows) for rows in pairs())
        return -0.3 / 2 * jnp.mean(chosen - rejected)

    close(gradient(state), jax.jit(jax.grad(margin))(params(0)))
    swapped, _ = step(config({"beta": 0.3}), params(0), params(0), swap=True)
    close(gradient(swapped), jax.tree.map(lambda x: -x, gradient(state)))
    tie = dpo.Scores(jnp.ones(2), jnp.ones(2), jnp.ones(2))
    value, exact = dpo.losses(dpo.Objective(), tie, tie)
    np.testing.assert_array_equal(value, np.float32(np.log(2)))
    np.testing.assert_array_equal(exact["implicit_accuracy"], [0.5, 0.5])


@pytest.mark.parametrize(
    "fields",
    [
        {"nll_weight": 0.5},
        *(
            pytest.param(fields, marks=pytest.mark.slow)  # Each compiles for seconds.
            for fields in (
                {"divergence": "jensen_shannon"},
                {"loss": "ipo-mean", "beta": 0.7},
                {"loss": "robust", "label_smoothing": 0.2, "reference": "moving"},
                {"loss": "hinge", "reference": "moving", "divergence": "hellinger"},
            )
        ),
    ],
    ids=lambda fields: "-".join(map(str, fields.values())),
)
def test_the_gradient_is_that_of_the_definition(fields: dict[str, Any]):
    """Oracle: all logits at once, so that prompts do not count, and an answer's end does."""
    c = config(fields)
    state, metrics = step(c, params(0), params(1))
    o = c.objective
    counts = [np.asarray(rows.is_answer).sum(1) for rows in pairs()]
    np.testing.assert_array_equal(counts[0], [3, 6, 2, 5])  # With the end.
    given = both(params(1))

    def loss(of: Any) -> jax.Array:
        log_p = [log_pi(of, rows) for rows in pairs()]
        h = [x - given[:, n] for n, x in enumerate(log_p)]
        if o.divergence == "jensen_shannon":
            h = [jnp.log(2 / (1 + jnp.exp(-x))) / 2 for x in h]
        if o.divergence == "hellinger":
            h = [1 - jnp.exp(-x / 2) for x in h]
        if o.loss == "ipo-mean":
            h = [x / n for x, n in zip(h, counts, strict=True)]
        d, e = h[0] - h[1], o.label_smoothing
        right, wrong = (jnp.logaddexp(0, -s * o.beta * d) for s in (1, -1))
        values = {
            "sigmoid": right,
            "robust": ((1 - e) * right - e * wrong) / (1 - 2 * e),
            "ipo-mean": (d - 1 / (2 * o.beta)) ** 2,
            "hinge": jnp.maximum(0, 1 - o.beta * d),
        }[o.loss]
        return jnp.mean(values - o.nll_weight * log_p[0] / counts[0])

    value, expected = jax.jit(jax.value_and_grad(loss))(params(0))
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-4)
    close(gradient(state), expected, atol=1e-5)
    log_p = both(params(0))
    np.testing.assert_allclose(metrics["chosen_log_probability"], log_p[:, 0], rtol=1e-4)
    np.testing.assert_allclose(metrics["rejected_log_probability"], log_p[:, 1], rtol=1e-4)
    right = np.sign(metrics["margin"])
    np.testing.assert_array_equal(metrics["implicit_accuracy"], (right + 1) / 2)


@pytest.mark.slow
def test_micro_batches_add_up_to_the_batch():
    whole, metrics = step(config(), params(0), params(1))
    cut, cut_metrics = step(config(micro_batches=2), params(0), params(1))
    close(gradient(whole), gradient(cut), atol=1e-5)
    close(metrics, cut_metrics, atol=1e-5)


def test_a_reference_that_follows_the_policy():
    """Each second step it moves by a quarter of the way; its loss is of the one before."""
    fields = {"reference": "moving", "reference_rate": 0.25, "reference_period": 2}
    fresh, learn = learner(config(fields))
    state = fresh._replace(targets={dpo.REFERENCE: params(0)})
    first, feedback = learn(state, batch(None), types.NO_CONSTANTS)
    np.testing.assert_allclose(feedback.metrics["loss"], np.log(2), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, first.targets[dpo.REFERENCE], params(0))
    second, feedback = learn(first, batch(None), types.NO_CONSTANTS)
    assert feedback.metrics["loss"] < np.log(2) - 1e-6
    mean = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, params(0), second.params)
    close(second.targets[dpo.REFERENCE], mean)


@pytest.mark.slow
def test_adapters_begin_at_their_base():
    """The reference of adapters is the base: at the start the loss is ln 2, and they learn."""
    c = config(lora=lora.Config(rank=2))
    agent = dpo.make(MODEL, c)
    constants = types.Constants(base=params(0))
    state = jax.jit(agent.learner.init)(jax.random.key(0))
    learnt, feedback = jax.jit(agent.learner.step)(state, batch(both(params(0))), constants)
    np.testing.assert_allclose(feedback.metrics["loss"], np.log(2), rtol=1e-6)
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: jnp.any(a != b), learnt.params, state.params))
    assert any(map(bool, moved))
    model = adapters.adapted(MODEL, c.learning.lora)
    whole = agent.actor_params(learnt, jnp.ones(()), True, constants)["params"]
    rows = pairs().chosen
    by_answers = jnp.sum(answers.log_probabilities(model, whole, rows), 1)
    np.testing.assert_allclose(dpo.log_probabilities(model, whole, rows, 8), by_answers)


@pytest.mark.parametrize(
    "name",
    ["kl", *(pytest.param(n, marks=pytest.mark.slow) for n in ("jensen_shannon", "reverse_kl"))],
)
def test_exact_pairs_of_a_bandit_lead_to_the_best_policy(name: str):
    """The policy that maximises E[r] - beta D_f(pi || ref), of pairs of Bradley and Terry's.

    Float64, every pair of six arms with its true probability; the oracle is the regularised greedy
    step, ref exp(r / beta) / Z for KL.
    """
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        reward, reference = rng.normal(size=6), rng.dirichlet(np.ones(6) * 3)
        beta, objective = 0.8, dpo.Objective(beta=0.8, divergence=name)
        first, second = np.triu_indices(6, 1)
        right = 1 / (1 + np.exp(reward[second] - reward[first]))
        log_reference = jnp.log(jnp.asarray(reference))

        def loss(logits: jax.Array) -> jax.Array:
            log_p = jax.nn.log_softmax(logits)
            ones = jnp.ones(len(first))
            scores = [
                dpo.Scores(log_p[arms], log_reference[arms], ones) for arms in (first, second)
            ]
            chosen, rejected = (dpo.losses(objective, *scores[::s])[0] for s in (1, -1))
            return jnp.sum(right * chosen + (1 - right) * rejected)

        optimizer = optax.adam(0.02)

        @jax.jit
        def learn(logits: jax.Array) -> jax.Array:
            def advance(carry: Any, _: None) -> Any:
                logits, state = carry
                updates, state = optimizer.update(jax.grad(loss)(logits), state)
                return (optax.apply_updates(logits, updates), state), None

            start = logits, optimizer.init(logits)
            return jax.lax.scan(advance, start, length=6_000)[0][0]

        learnt = jax.nn.softmax(learn(log_reference))
        best, _ = regularizers.greedy(jnp.asarray(reward), log_reference, beta, 0.0, objective.f)
        np.testing.assert_allclose(learnt, np.exp(best), atol=1e-4)
        if name == "kl":
            tilted = reference * np.exp(reward / beta)
            np.testing.assert_allclose(learnt, tilted / tilted.sum(), atol=1e-4)
        assert np.abs(learnt - reference).max() > 0.1
