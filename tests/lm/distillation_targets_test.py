"""Tests of targets that hold a few of a teacher's tokens."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import regularizers
from kullback.lm import distillation, distillation_targets

DIVERGENCES = {
    "kl": regularizers.kl,
    "reverse_kl": regularizers.reverse_kl,
    "total_variation": distillation.total_variation,
    "jsd-0.1": distillation.generalised_jsd(0.1),
}


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def random_logits(seed: int, *shape: int) -> np.ndarray:
    return 2 * np.random.default_rng(seed).normal(size=shape)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - np.logaddexp.reduce(x, axis=-1, keepdims=True))


sampled_targets = jax.jit(distillation_targets.sampled_targets, static_argnums=(2, 3, 4))
sparse_cross_entropy = jax.jit(distillation_targets.sparse_cross_entropy)


def numpy(targets: Any) -> Any:
    return jax.tree.map(np.asarray, targets)


def dense(targets: distillation_targets.SparseTargets, vocab_size: int) -> np.ndarray:
    """Returns the distributions of N rows as [N, V]."""
    result = np.zeros((len(targets.ids), vocab_size))
    rows = np.arange(len(result))[:, None]
    np.add.at(result, (rows, np.asarray(targets.ids)), np.asarray(targets.probabilities))
    return result


@pytest.mark.slow
def test_sampled_targets_of_counts_are_unbiased_and_the_others_are_not():
    vocab_size, num_samples, draws = 50, 8, 20_000
    student, teacher = 1.5 * np.random.default_rng(2).normal(size=(2, vocab_size))
    log_p, log_q = np.log(softmax(teacher)), np.log(softmax(student))
    full = -np.sum(np.exp(log_p) * log_q)

    def sample(*arguments):
        many = np.broadcast_to(log_p, (draws, vocab_size))
        targets = numpy(sampled_targets(jax.random.key(1), many, num_samples, *arguments))
        losses = sparse_cross_entropy(np.broadcast_to(student, many.shape), targets)
        return targets, np.asarray(losses)

    def bias(losses):
        return np.mean(losses) - full, np.std(losses) / math.sqrt(draws)

    targets, losses = sample("counts")
    error, standard_error = bias(losses)
    assert abs(error) < 4 * standard_error
    # The gradient is softmax(z) - t: unbiased as the mean target is the teacher, token by token.
    mean, p = np.mean(dense(targets, vocab_size), 0), np.exp(log_p)
    z_scores = (mean - p) / np.sqrt(p * (1 - p) / (draws * num_samples))
    assert np.max(abs(z_scores)) < 4.5 and 0.5 < np.mean(z_scores**2) < 1.6
    for arguments in (("set",), ("set", False)):
        targets, losses = sample(*arguments)
        np.testing.assert_allclose(np.sum(targets.probabilities, -1), 1)
        error, standard_error = bias(losses)
        assert abs(error) > 10 * standard_error
        # Sharper than the teacher: the best token has too much.
        assert np.mean(dense(targets, vocab_size), 0)[np.argmax(p)] > 1.2 * np.max(p)


def test_sets_are_merged_and_renormalised():
    log_p = np.log(softmax(2 * random_logits(13, 40, 9)))
    targets = numpy(sampled_targets(jax.random.key(0), log_p, 6))
    merged = 0
    for ids, p, t in zip(targets.ids, np.exp(log_p), dense(targets, 9), strict=True):
        drawn = np.isin(np.arange(9), ids)
        merged += len(ids) - np.sum(drawn)
        np.testing.assert_allclose(t, np.where(drawn, p, 0) / np.sum(p[drawn]), rtol=1e-12)
    assert merged > 40
    # Without replacement there is nothing to merge.
    ids = numpy(sampled_targets(jax.random.key(0), log_p, 6, "set", False)).ids
    assert all(len(np.unique(row)) == 6 for row in ids)


def test_all_tokens_without_replacement_are_full_cross_entropy():
    student, teacher = random_logits(14, 2, 7, 9)
    log_p = np.log(softmax(teacher))
    targets = sampled_targets(jax.random.key(0), log_p, 9, "set", False)
    got = sparse_cross_entropy(student, targets)
    expected = -np.sum(np.exp(log_p) * np.log(softmax(student)), -1)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("reading", ["set", "counts"])
def test_a_certain_teacher_is_a_label(reading: distillation_targets.Reading):
    student, label = random_logits(15, 9), 4
    log_p = np.where(np.arange(9) == label, 0.0, -np.inf)
    targets = sampled_targets(jax.random.key(0), log_p, 5, reading)
    value, gradient = jax.jit(jax.value_and_grad(distillation_targets.sparse_cross_entropy))(
        student, targets
    )
    np.testing.assert_allclose(value, -np.log(softmax(student))[label], rtol=1e-12)
    np.testing.assert_allclose(gradient, softmax(student) - np.exp(log_p), atol=1e-12)


@pytest.mark.parametrize("vocab_size", [1, 7, 1000])
def test_draws_follow_the_teacher_and_leave_out_what_it_excludes(vocab_size: int):
    rng = np.random.default_rng(vocab_size)
    teacher = 2 * rng.normal(size=vocab_size)
    # Holes everywhere: single, in rows as long as a block, at both ends.
    teacher[rng.random(vocab_size) < 0.3] = -np.inf
    teacher[: vocab_size // 10] = teacher[vocab_size - vocab_size // 7 :] = -np.inf
    teacher[vocab_size // 2] = 1.0
    draws = 200_000
    with jax.enable_x64(False):
        log_p = np.float32(teacher - np.logaddexp.reduce(teacher))
        targets = sampled_targets(jax.random.key(2), log_p, draws, "counts")
        counts = np.bincount(targets.ids, minlength=vocab_size)
    assert len(counts) == vocab_size
    expected = draws * np.exp(np.float64(log_p))
    assert not np.any(counts[expected == 0])
    often = expected > 5
    square = np.sum((counts - expected)[often] ** 2 / expected[often])
    degrees = max(np.sum(often) - 1, 1)
    assert square < degrees + 5 * math.sqrt(2 * degrees)


def test_cumulative_sums_never_fall_and_are_level_where_there_is_nothing():
    rng = np.random.default_rng(0)
    p = np.exp(2 * rng.normal(size=(64, 512))).astype(np.float32)
    p[rng.random(p.shape) < 0.3] = 0  # Plain sums fall at 33 places of these, by a digit.
    sums = np.asarray(distillation_targets._cumulative(jnp.asarray(p)))
    steps = np.diff(sums, axis=-1)
    assert np.all(steps >= 0) and np.all(steps[p[:, 1:] == 0] == 0)
    np.testing.assert_allclose(sums, np.cumsum(p, -1, np.float64), rtol=1e-5)


def test_rows_draw_independently():
    log_p = np.full((2, 3, 100), -math.log(100))
    ids = np.reshape(sampled_targets(jax.random.key(3), log_p, 50, "counts").ids, (6, 50))
    agreement = np.mean(ids[:, None] == ids[None], -1) - np.eye(6)
    assert np.max(agreement) < 0.15


def test_wrong_samples_are_refused():
    log_p, key = jnp.zeros(4), jax.random.key(0)
    with pytest.raises(ValueError, match="num_samples must be >= 1, got 0"):
        distillation_targets.sampled_targets(key, log_p, 0)
    with pytest.raises(ValueError, match="<= 4 without replacement, got 5"):
        distillation_targets.sampled_targets(key, log_p, 5, replacement=False)
    with pytest.raises(ValueError, match="draws with replacement"):
        distillation_targets.sampled_targets(key, log_p, 3, "counts", replacement=False)
    with pytest.raises(ValueError, match="counts, set"):
        distillation_targets.sampled_targets(key, log_p, 3, "all")  # pyright: ignore[reportArgumentType]
    for k in (0, 4):
        with pytest.raises(ValueError, match=f"k must be >= 1 and < 4, got {k}"):
            distillation_targets.top_k_targets(log_p, k)


@pytest.mark.parametrize("name", list(DIVERGENCES))
def test_top_k_with_a_tail(name: str):
    student, teacher = random_logits(16, 2, 6, 9)
    targets = distillation_targets.top_k_targets(jnp.log(softmax(teacher)), 3)
    loss = distillation_targets.top_k_loss(DIVERGENCES[name])

    @jax.jit
    def value_and_gradient(student):
        value, pull_back = jax.vjp(lambda student: loss(student, targets), student)
        return value, pull_back(jnp.ones(6))[0]

    value, gradient = value_and_gradient(student)
    # By hand: the three best of the teacher and all others as one.
    best = np.argsort(-teacher, -1)[:, :3]
    p, q = (np.take_along_axis(softmax(x), best, -1) for x in (teacher, student))
    p, q = (np.c_[x, 1 - np.sum(x, -1)] for x in (p, q))
    np.testing.assert_allclose(value, DIVERGENCES[name](jnp.log(p), jnp.log(q)), rtol=1e-9)
    full = DIVERGENCES[name](jnp.log(softmax(teacher)), jnp.log(softmax(student)))
    assert np.all(value >= 0) and np.all(value < full + 1e-12) and np.mean(value) < np.mean(full)
    step = 1e-6 * random_logits(17, 6, 9)
    slope = (value_and_gradient(student + step)[0] - value_and_gradient(student - step)[0]) / 2
    np.testing.assert_allclose(np.sum(gradient * step, -1), slope, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jsd-0.1"])
def test_a_tail_below_rounding_stays_finite(name: str):
    teacher, student = np.array([[30.0, 29.0, 0, 0], [0.0, 1.0, 1, 40]], np.float32)
    with jax.enable_x64(False):
        targets = distillation_targets.top_k_targets(jnp.log(softmax(teacher)), 2)
        evaluate = jax.jit(jax.value_and_grad(distillation_targets.top_k_loss(DIVERGENCES[name])))
        for logits in (teacher, student):
            value, gradient = evaluate(logits, targets)
            assert np.isfinite(value) and np.all(np.isfinite(gradient))
    assert value > 0.1
