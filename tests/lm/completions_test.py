"""Tests of lm/completions.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import rollout
from kullback.core.sampling import Sampling
from kullback.lm import batches, completions, gemma, layers
from tests import small_models
from tests.states import fresh_params

MODEL = gemma.make(
    small_models.shape(
        7, num_layers=1, pattern=6, num_heads=1, embed_dim=8, hidden_dim=8, eos_ids=(1,)
    )
)
ACTING = {"params": fresh_params(MODEL.init)}
PROMPTS = batches.pad_prompts([[2, 3], [4], [5, 6, 2]], 3, pad_id=0)
KEY, T = jax.random.key(1), 5


def test_samples_of_a_prompt_stand_together_after_it():
    sampler = completions.sampler(MODEL, T, samples_per_prompt=2)
    rows, written = jax.tree.map(  # In NumPy: what is read of them below compiles nothing.
        np.asarray,
        [jax.jit(f)(ACTING, PROMPTS, KEY) for f in (sampler.sequences, sampler.completions)],
    )
    assert rows.tokens.shape == (6, 3 + T) and written.tokens.shape == (6, T)
    prompts = jax.tree.map(np.asarray, PROMPTS)
    for n, (ids, is_answer) in enumerate(zip(rows.tokens, rows.is_answer, strict=True)):
        length = prompts.lengths[n // 2]
        np.testing.assert_array_equal(ids[:length], prompts.tokens[n // 2, -length:])
        np.testing.assert_array_equal(ids[is_answer], written.tokens[n, : written.length[n]])
    assert (written.tokens[::2] != written.tokens[1::2]).any(), "samples of a prompt differ"
    stopped = [1 in row for row in np.asarray(written.tokens).tolist()]
    np.testing.assert_array_equal(written.truncated, np.logical_not(stopped))


@pytest.mark.slow
def test_pieces_are_the_whole():
    sampler = completions.sampler(MODEL, T, stop_tokens=())
    whole = jax.jit(sampler.completions)(ACTING, PROMPTS, KEY)
    state = jax.jit(sampler.start)(ACTING, PROMPTS, KEY)
    traces, parts = [], []

    @jax.jit
    def proceed(state: rollout.ActorState, tick: jax.Array, limit: jax.Array):
        traces.append(limit)
        return sampler.proceed(ACTING, PROMPTS, state, KEY, 3, tick, limit)

    for tick, limit in ((0, 1), (1, 3), (4, 3)):  # The last one goes on beyond the horizon.
        part, state = proceed(state, tick, limit)
        assert not part.valid[limit:].any()
        parts.append(part.action[:limit].T)
    assert len(traces) == 1
    np.testing.assert_array_equal(jnp.concatenate(parts, 1)[:, :T], whole.tokens)
    assert np.asarray(whole.length).tolist() == [T] * 3 and np.asarray(whole.truncated).all()


def test_how_tokens_are_drawn_is_an_option():
    greedy = jax.jit(completions.sampler(MODEL, T, sampling=Sampling(temperature=0)).completions)
    one, other = (greedy(ACTING, PROMPTS, jax.random.key(n)) for n in (1, 2))
    np.testing.assert_array_equal(one.tokens, other.tokens)


def test_ids_that_are_none_are_refused():
    sampler = completions.sampler(MODEL, T)
    wrong = PROMPTS._replace(tokens=np.where(PROMPTS.tokens == 6, 7, PROMPTS.tokens))
    with pytest.raises(ValueError, match=r"must lie in \[0, vocab_size=7\), got 7 in row 2"):
        sampler.environment(wrong)


@pytest.mark.slow
def test_layers_of_large_models_are_decoded_apart(monkeypatch: pytest.MonkeyPatch):
    """The texts are the same; of two periods and a layer after them all are apart."""
    monkeypatch.setattr(layers, "LARGE", 0)
    deep = gemma.make(dataclasses.replace(MODEL.config, num_layers=5, pattern=2))
    apart = gemma.apart(fresh_params(deep.init))
    assert [len(apart[name]) for name in ("periods", "remainder")] == [2, 1]
    model = gemma.make(dataclasses.replace(MODEL.config, num_layers=2, pattern=1))
    params = fresh_params(model.init)
    sampler = completions.sampler(model, T)
    whole = jax.jit(sampler.completions)({"params": params}, PROMPTS, KEY)
    got = completions.compiled(sampler.completions)({"params": params}, PROMPTS, KEY)
    np.testing.assert_array_equal(got.tokens, whole.tokens)
    np.testing.assert_allclose(got.log_probability, whole.log_probability, atol=1e-5)
    monkeypatch.setattr(layers, "LARGE", 10**9)
    assert gemma.apart(params) is params


def test_layers_apart_may_share_the_memory_of_their_stack():
    stack = {"w": jnp.arange(64.0).reshape(4, 16)}  # Each item begins at a multiple of 64 bytes.
    begin = stack["w"].unsafe_buffer_pointer()
    for shared in (False, True):
        items = layers.unstacked(stack, shared=shared)
        np.testing.assert_array_equal([item["w"] for item in items], stack["w"])
        offsets = [item["w"].unsafe_buffer_pointer() - begin for item in items]
        assert (offsets == [0, 64, 128, 192]) == shared
