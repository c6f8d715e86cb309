"""Tests of lm/policy.py."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import regularizers, rollout
from kullback.core.sampling import Sampling
from kullback.environments import dm, tokens
from kullback.lm import batches, gemma, policy
from tests import small_models
from tests.states import fresh_params

# A local layer, whose window is shorter than the prompts, and a global one.
MODEL = gemma.make(small_models.shape(37))
PARAMS = {"params": fresh_params(MODEL.init, 7)}
STOP = (1, 2)
P, T = 9, 12
LENGTHS = np.array([1, 9, 4, 6], np.int32)
GREEDY = Sampling(temperature=0)
SPARSE = regularizers.alpha(1.5)
apply = jax.jit(MODEL.apply)


def make_prompts(seed: int, lengths: np.ndarray = LENGTHS, width: int = P) -> batches.Prompts:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(3, 37, n).tolist() for n in lengths]
    return batches.pad_prompts(rows, width, pad_id=5)  # An id of the prompts' own.


@functools.cache  # Of compiled programs.
def generator(
    settings: Sampling | None = None,
    divergence: regularizers.Divergence = regularizers.kl,
    stop_tokens: tuple[int, ...] = STOP,
):
    """Returns (prompts, key, length, start_tick, state or None) -> (trajectory, state)."""
    language_model = policy.language_model(MODEL, settings, divergence)

    def environment(prompts):
        return tokens.make_batch(*prompts[:2], horizon=T, vocab_size=37, stop_tokens=stop_tokens)

    @jax.jit
    def start(prompts):
        key = jax.random.key(0)  # The environment has no use for it.
        return rollout.start(language_model, environment(prompts), PARAMS, key, prompts, P + T)

    @functools.partial(jax.jit, static_argnames="length")
    def run(prompts, state, key, start_tick, length):
        return rollout.rollout(
            language_model, environment(prompts), PARAMS, state, key, length, start_tick
        )

    def generate(prompts, key, length=T, start_tick=0, state=None):
        state = start(prompts) if state is None else state
        return run(prompts, state, key, start_tick, length)

    return generate


def teacher_forced(prompts: batches.Prompts, trajectory: rollout.Trajectory) -> list[np.ndarray]:
    """Returns unfiltered logits of each completion by one causal pass; float64, [length, V]."""
    completion = tokens.completions(trajectory, STOP)
    joined = batches.join(prompts, completion.tokens, completion.is_answer)
    logits = np.asarray(apply(PARAMS["params"], joined.tokens), np.float64)
    is_answer = np.asarray(joined.is_answer)
    return [logits[b, :-1][is_answer[b, 1:]] for b in range(len(logits))]


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


def log_sparse(x: np.ndarray) -> np.ndarray:
    """Computes ln of 1.5-entmax, p = max(x / 2 - tau, 0)^2, tau by bisection; of x [V]."""
    low, high = x.max() / 2 - 1, x.max() / 2
    for _ in range(100):
        tau = (low + high) / 2
        total = (np.maximum(x / 2 - tau, 0) ** 2).sum()
        low, high = (tau, high) if total > 1 else (low, tau)
    with np.errstate(divide="ignore"):
        return np.log(np.maximum(x / 2 - low, 0) ** 2)


def log_filtered(x: np.ndarray) -> np.ndarray:
    """Computes ln of softmax(x / 0.7) of the top 9, of which those that hold 0.8 (top p)."""
    order = np.argsort(-x)[:9]
    p = np.exp(log_softmax(x[order] / 0.7))
    order = order[: np.searchsorted(np.cumsum(p), 0.8) + 1]
    result = np.full(len(x), -np.inf)
    result[order] = log_softmax(x[order] / 0.7)
    return result


@pytest.mark.parametrize(
    "settings, divergence, log_drawn, log_model",
    [
        (None, regularizers.kl, log_softmax, log_softmax),
        pytest.param(
            *(Sampling(temperature=0.7, top_k=9, top_p=0.8), regularizers.kl),
            *(log_filtered, log_softmax),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(Sampling(temperature=0.5), SPARSE, lambda x: log_sparse(x / 0.5), log_sparse),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["model", "filtered", "sparse"],
)
def test_a_teacher_forced_pass_gives_the_same_log_probabilities(
    settings, divergence, log_drawn, log_model
):
    generate = generator(settings, divergence)
    lengths_seen = set()
    for seed in range(4):
        # Other lengths each time, hence other paddings.
        prompts = make_prompts(seed, np.random.default_rng(seed).integers(1, P + 1, 4))
        trajectory, _ = generate(prompts, jax.random.key(seed))
        logits = teacher_forced(prompts, trajectory)
        for b, row in enumerate(logits):
            n = len(row)
            drawn = np.asarray(trajectory.action)[:n, b]
            for name, log_of in (
                ("log_probability", log_drawn),
                ("model_log_probability", log_model),
            ):
                got = np.asarray(trajectory.extras[name])[:n, b]
                expected = np.array([log_of(x)[a] for x, a in zip(row, drawn, strict=True)])
                assert np.all(np.isfinite(got))  # Nothing off the support was drawn.
                np.testing.assert_allclose(got, expected, atol=1e-4)
            lengths_seen.add(n)
    assert len(lengths_seen) > 1 or settings is not None  # Some rows stopped, others did not.


@pytest.mark.slow
def test_temperature_zero_is_the_argmax_of_the_full_pass():
    generate = generator(GREEDY)
    prompts = make_prompts(0)
    trajectory, _ = generate(prompts, jax.random.key(0))
    for b, row in enumerate(teacher_forced(prompts, trajectory)):
        assert len(row) > 0
        np.testing.assert_array_equal(trajectory.action[: len(row), b], row.argmax(-1))
        np.testing.assert_array_equal(trajectory.extras["log_probability"][: len(row), b], 0)
    again, _ = generate(prompts, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, trajectory, again)  # Whatever the key.


def test_a_repetition_penalty_counts_prompt_and_answer_but_no_padding():
    """Greedily, against the full pass: the penalty decides where the model repeats itself."""
    penalty = 1.7
    prompts = make_prompts(0)
    trajectory, _ = generator(Sampling(temperature=0, repetition_penalty=penalty))(
        prompts, jax.random.key(0)
    )
    changed = 0
    for b, row in enumerate(teacher_forced(prompts, trajectory)):
        drawn = np.asarray(trajectory.action)[: len(row), b].tolist()
        text = np.asarray(prompts.tokens)[b, P - LENGTHS[b] :].tolist()
        for x, token in zip(row, drawn, strict=True):
            penalised = x.copy()
            for i in set(text):
                penalised[i] = x[i] / penalty if x[i] > 0 else x[i] * penalty
            assert token == penalised.argmax()
            changed += token != x.argmax()
            text.append(token)
        log_model = [log_softmax(x)[a] for x, a in zip(row, drawn, strict=True)]
        got = np.asarray(trajectory.extras["model_log_probability"])[: len(row), b]
        np.testing.assert_allclose(got, log_model, atol=1e-4)
    assert changed > 4


def test_samples_of_a_prompt_share_what_it_says():
    settings = Sampling(temperature=0, repetition_penalty=1.7)
    one = policy.language_model(MODEL, settings, samples_per_prompt=2)
    prompts = make_prompts(0)
    twice = jax.jit(one.initial_state, static_argnums=2)(PARAMS, prompts, 20)
    alone = jax.jit(policy.language_model(MODEL, settings).initial_state, static_argnums=2)(
        PARAMS, prompts, 20
    )
    np.testing.assert_array_equal(twice.is_present, np.repeat(alone.is_present, 2, 0))


@pytest.mark.slow
def test_it_stops_when_every_row_has_stopped():
    stop_tokens = tuple(range(1, 37, 2))
    generate = generator(stop_tokens=stop_tokens)
    trajectory, state = generate(make_prompts(0), jax.random.key(0))
    completion = tokens.completions(trajectory, stop_tokens)
    ticks = int(completion.length.max())
    assert 1 < ticks < T and len(np.unique(completion.length)) > 1
    assert not np.any(completion.truncated) and np.all(state.done)
    assert (
        int(state.policy.cache.slot) == P - 1 + ticks
    )  # No step was computed after the last stop.
    np.testing.assert_array_equal(trajectory.extras["log_probability"][ticks:], 0)


@pytest.mark.slow
def test_pieces_are_the_whole_text():
    prompts, key = make_prompts(2), jax.random.key(5)
    whole, end = generator()(prompts, key)
    state, pieces = None, []
    for start_tick in range(0, T, 4):
        piece, state = generator()(prompts, key, 4, start_tick, state)
        pieces.append(piece)
    pieces = jax.tree.map(lambda *x: jnp.concatenate(x), *pieces)
    jax.tree.map(
        np.testing.assert_array_equal, whole._replace(extras={}), pieces._replace(extras={})
    )
    for name, values in whole.extras.items():
        np.testing.assert_allclose(values, pieces.extras[name], atol=1e-5)
    assert state is not None and int(state.policy.cache.slot) == int(end.policy.cache.slot)
    assert len(np.unique(whole.action)) > 5


@pytest.mark.slow
def test_chunks_of_the_prefill_do_not_matter():
    """In one call, and in chunks with a rest."""
    prompts = make_prompts(0)
    extras = []
    step = jax.jit(policy.language_model(MODEL).step)
    for chunk in (100, 3):
        language_model = policy.language_model(MODEL, prefill_chunk=chunk)
        state = jax.jit(language_model.initial_state, static_argnums=2)(PARAMS, prompts, 20)
        assert int(state.cache.slot) == P - 1
        extras.append(step(PARAMS, prompts.tokens[:, -1], state, jax.random.key(0))[2])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), *extras)


def test_a_prompt_of_one_token_needs_no_prefill():
    prompts = make_prompts(0, np.ones(4, np.int32), width=1)
    state = policy.language_model(MODEL).initial_state(PARAMS, prompts, 5)
    assert int(state.cache.slot) == 0


@pytest.mark.slow
def test_stepped_by_hand_through_dm_env_a_row_is_what_it_is_in_a_batch():
    """It depends neither on its neighbours nor on its padding; the loop is dm_env's own."""
    all_ = make_prompts(1)
    expected, _ = generator(GREEDY)(all_, jax.random.key(0))
    n = int(LENGTHS[2])
    prompts = batches.Prompts(all_.tokens[2:3, P - n :], all_.lengths[2:3])
    language_model = policy.language_model(MODEL, GREEDY)
    view = dm.as_dm_env(tokens.make_batch(*prompts[:2], horizon=T, vocab_size=37, stop_tokens=STOP))
    state = jax.jit(language_model.initial_state, static_argnums=2)(PARAMS, prompts, n + T)
    step = jax.jit(language_model.step)
    timestep, written, log_probability = view.reset(), [], []
    while not timestep.last():
        observation: Any = timestep.observation
        action, state, extras = step(PARAMS, observation[None], state, jax.random.key(0))
        written.append(int(action[0]))
        log_probability.append(float(extras["model_log_probability"][0]))
        timestep = view.step(action[0])
    length = int(tokens.completions(expected, STOP).length[2])
    assert length > 1
    np.testing.assert_array_equal(written, expected.action[:length, 2])
    np.testing.assert_allclose(
        log_probability, expected.extras["model_log_probability"][:length, 2], atol=1e-4
    )


def test_refuses():
    language_model = policy.language_model(MODEL)
    with pytest.raises(ValueError, match="prefill_chunk must be >= 1 token, got 0"):
        policy.language_model(MODEL, prefill_chunk=0)
    with pytest.raises(ValueError, match=r"starts from batches\.Prompts, got NoneType"):
        language_model.initial_state(PARAMS, None, 20)
    with pytest.raises(ValueError, match="got max_length=9 and width=9"):
        language_model.initial_state(PARAMS, make_prompts(0), P)


@pytest.mark.slow
def test_several_parameters_write_to_one_prompt():
    """Each row is what its own parameters write alone, in the order of the draws."""
    given = {"params": PARAMS["params"], "anchor": fresh_params(MODEL.init, 8)}
    draws = (policy.Draws(1), policy.Draws(2, "anchor"))
    prompts = make_prompts(3)

    def write(acts, acting, samples):
        repeated = policy.repeat_prompts(prompts, samples)
        environment = tokens.make_batch(*repeated[:2], horizon=T, vocab_size=37, stop_tokens=STOP)
        state = rollout.start(acts, environment, acting, jax.random.key(0), prompts, P + T)
        trajectory, _ = rollout.rollout(acts, environment, acting, state, jax.random.key(0), T)
        completion = tokens.completions(trajectory, STOP)
        return completion.tokens, completion.log_probability

    together = write(policy.of_sets(MODEL, draws, GREEDY), given, 3)
    alone = [
        write(policy.language_model(MODEL, GREEDY, samples_per_prompt=n), {"params": given[x]}, n)
        for n, x in draws
    ]
    for both, of_policy, of_anchor in zip(together, *alone, strict=True):
        by_prompt = both.reshape(len(LENGTHS), 3, T)
        np.testing.assert_allclose(by_prompt[:, 0], of_policy, atol=1e-5)
        np.testing.assert_allclose(by_prompt[:, 1:].reshape(-1, T), of_anchor, atol=1e-5)
    assert np.any(alone[0][0] != alone[1][0][::2]), "the two models differ"
    texts = write(policy.of_sets(MODEL, draws), given, 3)[0].reshape(-1, 3, T)
    assert np.any(texts[:, 1] != texts[:, 2]), "samples differ"
