"""Tests of experiments/reproductions/small_models.py."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core.sampling import Sampling
from kullback.experiments.reproductions import small_models
from kullback.lm import batches, completions, gemma

V, L = 3, 3  # Of a tree of which every sequence is enumerated.


class Tree:
    """Two random models of L tokens after a prompt of one, as tables of logits by prefix."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        prefixes = [p for n in range(L) for p in itertools.product(range(V), repeat=n)]
        self.tables = [{p: 2 * rng.normal(size=V) for p in prefixes} for _ in range(2)]

    def logits(self, which: int, sequences: np.ndarray) -> np.ndarray:
        """Returns logits, [N, 1 + L, V]: at n of token n + 1; the last ones mean nothing."""
        table = self.tables[which]
        rows = [[table[tuple(row[:n])] for n in range(L)] + [np.zeros(V)] for row in sequences]
        return np.array(rows)

    def log_probability(self, which: int, sequences: np.ndarray) -> np.ndarray:
        """Returns log-probabilities of whole sequences, [N]."""
        logits = self.logits(which, sequences)[:, :L]
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return np.take_along_axis(log_p, sequences[..., None], -1)[..., 0].sum(1)


def rows_of(sequences: np.ndarray) -> batches.Sequences:
    """Returns sequences as rows, after a prompt of one token, 0."""
    tokens = np.concatenate([np.zeros((len(sequences), 1), int), sequences], 1)
    at = np.broadcast_to(np.arange(1 + L), tokens.shape)
    return batches.Sequences(tokens, at > 0, at, np.ones_like(at), np.full(len(tokens), 1 + L))


def distances(tree: Tree, sequences: np.ndarray, rows: batches.Sequences) -> np.ndarray:
    """Returns KL of both models' next tokens, summed over each sequence, float64."""
    logits, reference = (jnp.asarray(tree.logits(which, sequences)) for which in (1, 0))
    return np.asarray(small_models.sequence_distance(logits, reference, rows))


def test_chain_rule_over_all_sequences():
    tree = Tree()
    every = np.array(list(itertools.product(range(V), repeat=L)))
    assert every.shape == (27, 3)
    log_p, log_q = (tree.log_probability(which, every) for which in (0, 1))
    p = np.exp(log_p)
    np.testing.assert_allclose(p.sum(), 1)
    with jax.enable_x64(True):
        each = distances(tree, every, rows_of(every))
    assert each.dtype == np.float64
    np.testing.assert_allclose((p * each).sum(), (p * (log_p - log_q)).sum(), rtol=0, atol=1e-12)


def test_the_estimate_is_unbiased_and_less_scattered_than_log_ratios():
    tree = Tree()
    every = np.array(list(itertools.product(range(V), repeat=L)))
    log_p, log_q = (tree.log_probability(which, every) for which in (0, 1))
    p = np.exp(log_p)
    drawn = np.random.default_rng(1).choice(len(every), size=20_000, p=p / p.sum())
    each = distances(tree, every, rows_of(every))[drawn]
    truth = (p * (log_p - log_q)).sum()
    error = each.std() / np.sqrt(len(each))
    assert abs(each.mean() - truth) < 4 * error
    assert each.var() < (log_p - log_q)[drawn].var()
    assert (each >= 0).all()


def test_what_is_no_answer_adds_exactly_nothing():
    tree = Tree()
    every = np.array(list(itertools.product(range(V), repeat=L)))
    rows = rows_of(every)
    shorter = rows._replace(is_answer=rows.is_answer & (np.arange(1 + L) < 3))
    noise = np.where(np.arange(1 + L) >= 2, 7.0, 0.0)[None, :, None] * np.ones((27, 1, V))
    noise[..., 0] *= -1
    reference = jnp.asarray(tree.logits(0, every), jnp.float32)
    plain = small_models.sequence_distance(reference * 0, reference, shorter)
    changed = small_models.sequence_distance(reference * 0 + noise, reference, shorter)
    np.testing.assert_array_equal(plain, changed)


def model(width: int = 8, layers: int = 2) -> gemma.Model:
    return gemma.make(small_models.decoder(6, width, layers, 7))


def test_all_layers_see_the_whole_context():
    decoder = model()
    params = jax.jit(decoder.init)(jax.random.key(0))
    tokens = np.array([[1, 2, 3, 4, 5, 1, 2]])
    other = np.array([[3, 2, 3, 4, 5, 1, 2]])
    apply = jax.jit(decoder.apply)
    last = [apply(params, rows)[0, -1] for rows in (tokens, other)]
    assert np.abs(last[0] - last[1]).max() > 1e-3
    assert not decoder.config.num_remaining and decoder.config.window == 7


@pytest.mark.slow
def test_an_untied_model():
    tokens = jax.random.randint(jax.random.key(1), (40, 7), 0, 6)
    wide = gemma.make(small_models.decoder(6, 64, 2, 7))
    random = small_models.untied(wide, scale=2.5)
    logits = random.apply(jax.jit(random.init)(jax.random.key(0)), tokens)
    assert 2 < logits.std() < 3  # Of N(0, 2.5), six heads drawn.
    # Without branches nothing but the last token counts.
    simple = small_models.untied(wide, scale=2.5, branch=0.0)
    logits = np.asarray(simple.apply(jax.jit(simple.init)(jax.random.key(0)), tokens))
    for token in range(6):
        same = logits[np.asarray(tokens) == token]
        np.testing.assert_allclose(same, np.broadcast_to(same[:1], same.shape), atol=1e-4)
    # The cache unembeds by the same head.
    acting, rows = {"params": jax.jit(random.init)(jax.random.key(0))}, np.asarray(tokens)
    greedy = completions.sampler(random, 3, sampling=Sampling(temperature=0), stop_tokens=())
    prompts = batches.Prompts(rows[:, :4], np.full(40, 4))
    written = greedy.sequences(acting, prompts, jax.random.key(2)).tokens
    best = jnp.argmax(random.apply(acting["params"], written), -1)
    np.testing.assert_array_equal(written[:, 4:], best[:, 3:-1])


def data(count: int) -> batches.Sequences:
    tokens = np.asarray(jax.random.randint(jax.random.key(5), (count, 7), 0, 6), np.int32)
    at = np.broadcast_to(np.arange(7, dtype=np.int32), tokens.shape)
    ones = np.ones_like(at)
    return batches.Sequences(tokens, at >= 4, at, ones, np.full(count, 7, np.int32))


def test_every_row_comes_once_an_epoch_and_epochs_differ_in_order_alone():
    rows = data(12)
    first, second = (small_models.take(rows, 3, 4, seed=7, first=n).tokens for n in (0, 3))
    assert first.shape == (3, 4, 7)
    as_sets = [sorted(map(tuple, np.asarray(x).reshape(12, 7).tolist())) for x in (first, second)]
    assert as_sets[0] == as_sets[1] == sorted(map(tuple, rows.tokens.tolist()))
    assert (np.asarray(first) != second).any()
