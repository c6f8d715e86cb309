"""Tests of core/sampling.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import regularizers, sampling

SPARSE = regularizers.alpha(1.5)
filtered = jax.jit(sampling.filter_logits, static_argnums=(1, 2))
probabilities = jax.jit(sampling.probabilities, static_argnums=1)
log_probability = jax.jit(sampling.log_probability, static_argnums=2)
sample = jax.jit(sampling.sample, static_argnums=2)
categorical = jax.jit(sampling.categorical)
mark_present = jax.jit(sampling.mark_present)
penalise_repetition = jax.jit(sampling.penalise_repetition, static_argnums=2)


def softmax(logits):
    z = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return z / z.sum()


def of_counts(counts: jax.Array) -> np.ndarray:
    """Returns the distribution of a uniform uint32 modulo the counts' sum; float64, [..., n]."""
    widths = np.asarray(counts).astype(np.int64)
    ends = np.cumsum(widths, -1)
    starts, total = ends - widths, ends[..., -1:]
    rounds, rest = np.divmod(2**32, total)  # So many words for each value, one more below rest.
    num_words = (ends - starts) * rounds + np.minimum(ends, rest) - np.minimum(starts, rest)
    assert np.all(num_words.sum(-1) == 2**32)
    return num_words / 2**32


def induced(logits: np.ndarray) -> np.ndarray:
    """Returns the exact distribution that the two levels draw from, [V]."""
    width = sampling._block_width(len(logits))
    blocks, classes = level_counts(logits.reshape(-1, width))  # V is a multiple here.
    return (of_counts(blocks)[0][:, None] * of_counts(classes)).reshape(-1)


@jax.jit
def level_counts(logits):
    weights = jnp.exp(logits - jnp.max(logits))
    return sampling._counts(jnp.sum(weights, -1)[None]), sampling._counts(weights)


def hard_logits(kind: str, num_classes: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    logits = {
        "uniform": np.zeros(num_classes),
        "normal": 3 * rng.normal(size=num_classes),
        "zipf": -np.log(rng.permutation(num_classes) + 1.0),
        # One class has nearly all mass; the others lie about the limit of 1e-9.
        "peaked": np.where(
            np.arange(num_classes) == 5, 0, np.log(1.1e-9) - (np.arange(num_classes) % 2)
        ),
        # Single classes of 1.1e-9, each alone in its block, and one beside the peak.
        "lonely": np.where(
            np.arange(num_classes) == num_classes // 2,
            0,
            np.where(np.arange(num_classes) % 4000 == 7, np.log(1.1e-9), -60),
        ),
    }[kind]
    return logits.astype(np.float32)


@pytest.mark.parametrize("kind", ["uniform", "normal", "zipf", "peaked", "lonely"])
def test_two_levels_meet_softmax_at_the_largest_vocabulary(kind):
    logits = hard_logits(kind, 262_144)
    p, q = softmax(logits), induced(logits)
    assert np.abs(p - q).sum() / 2 < 2e-6
    assert np.all(q[p > 1e-9] > 0)
    assert (p.min() < 1.2e-9) == (kind not in ("uniform", "zipf"))


def test_two_levels_find_a_rare_class_by_the_words_that_stand_for_it():
    """Of 2^31 words 1.1e-9 is two or three; the class is alone in the last block."""
    logits = np.full(262_144, -np.inf, np.float32)
    logits[1], logits[-3] = 0.0, np.log(1.1e-9)
    draw = jax.jit(lambda bits, x: sampling._two_levels(bits, x, -jnp.inf, jnp.exp))
    rare = {}
    for word in [0, 2**31 - 1, 2**31, 2**31 + 1, 2**31 + 2, 2**31 + 3]:
        bits = jnp.array([[word], [2**32 - 1]], jnp.uint32)
        rare[word] = int(draw(bits, jnp.asarray(logits)[None])[0])
    # The sum is 2^31 + 2 (the peak's share rounds to one).
    assert rare == {
        0: 1,
        2**31 - 1: 1,
        2**31: 262_141,
        2**31 + 1: 262_141,
        2**31 + 2: 1,
        2**31 + 3: 1,
    }


def chi_square(draw, logits, calls, rows=16):
    """Standardises Pearson's statistic of calls x rows draws."""
    x = np.tile(logits[None], (rows, 1))
    keys = jax.random.split(jax.random.key(1), calls)
    drawn = jax.jit(lambda keys: jax.lax.map(lambda key: draw(key, jnp.asarray(x)), keys))(keys)
    counts = np.bincount(np.asarray(drawn).ravel(), minlength=len(logits))
    expected = softmax(logits) * calls * rows
    assert np.all(counts[expected == 0] == 0)
    common = expected >= 5
    counts, expected = (np.append(v[common], v[~common].sum()) for v in (counts, expected))
    if expected[-1] < 5:
        counts, expected = counts[:-1], expected[:-1]
    degrees = len(counts) - 1
    assert degrees > 3
    return (((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees)


@pytest.mark.slow
def test_chi_square_of_8192_tokens():
    logits = hard_logits("zipf", 8192)
    assert abs(chi_square(sampling.categorical, logits, calls=5_000)) < 4


@pytest.mark.parametrize(
    "draw",
    [
        sampling.categorical,
        sampling._gumbel,
        lambda key, x: sampling.from_probabilities(key, 3 * jax.nn.softmax(x)),
    ],
    ids=["categorical", "gumbel", "from_probabilities"],
)
def test_chi_square_of_a_vocabulary_that_is_no_multiple_of_a_block(draw):
    logits = np.random.default_rng(3).normal(size=300).astype(np.float32)
    logits[::7] = -np.inf
    assert abs(chi_square(draw, logits, calls=1_000)) < 4


@pytest.mark.parametrize("num_classes", [1, 3, 129, 300])
def test_only_classes_that_exist_are_drawn(num_classes):
    """Classes removed but for one, at either end; NaN gives an id of the vocabulary too."""
    x = np.full((3, num_classes), -np.inf, np.float32)
    x[0, 0] = x[1, -1] = -1e30
    x[2] = np.nan
    keys = jax.random.split(jax.random.key(0), 50)
    drawn = np.asarray(
        jax.jit(jax.vmap(lambda key: sampling.categorical(key, jnp.asarray(x))))(keys)
    )
    assert drawn.dtype == np.int32
    assert np.all(drawn[:, 0] == 0) and np.all(drawn[:, 1] == num_classes - 1)
    assert np.all((drawn >= 0) & (drawn < num_classes))


def test_draws_are_the_same_jitted_and_vmapped_and_rows_differ():
    x = np.zeros((64, 200), np.float32)
    keys = jax.random.split(jax.random.key(0), 2)
    alone = np.stack([categorical(key, x) for key in keys])
    together = jax.jit(jax.vmap(sampling.categorical, (0, None)))(keys, x)
    np.testing.assert_array_equal(alone, together)
    assert len(np.unique(alone[0])) > 40 and np.any(alone[0] != alone[1])


def test_the_platform_decides(monkeypatch):
    x = hard_logits("normal", 256)[None].repeat(32, 0)
    key = jax.random.key(0)
    on_cpu = categorical(key, x)
    monkeypatch.setattr(sampling, "_is_cpu", lambda: False)
    elsewhere, of_p, expected = jax.jit(
        lambda key, x: (
            sampling.categorical(key, x),
            sampling.from_probabilities(key, jax.nn.softmax(x)),
            jax.random.categorical(key, x, mode="high"),
        )
    )(key, x)
    np.testing.assert_array_equal(elsewhere, expected)
    np.testing.assert_array_equal(of_p, expected)
    assert np.any(np.asarray(on_cpu) != np.asarray(elsewhere))


# Probabilities 0.1, 0.2, 0.3, 0.4 of classes 3, 1, 0, 2.
FOUR = np.log(np.array([0.3, 0.2, 0.4, 0.1], np.float32))


@pytest.mark.parametrize(
    "settings, kept",
    [
        ({}, [1, 1, 1, 1]),
        ({"temperature": 0.0}, [0, 0, 1, 0]),
        ({"temperature": 0.0, "top_k": 3}, [0, 0, 1, 0]),
        ({"top_k": 1}, [0, 0, 1, 0]),
        ({"top_k": 3}, [1, 1, 1, 0]),
        ({"top_k": 9}, [1, 1, 1, 1]),
        ({"top_p": 0.35}, [0, 0, 1, 0]),
        ({"top_p": 0.45}, [1, 0, 1, 0]),
        ({"top_p": 0.85}, [1, 1, 1, 0]),
        ({"top_p": 0.95}, [1, 1, 1, 1]),
        # Of 0.4 and 0.3 the first has 4/7 = 0.571 of the mass.
        ({"top_k": 2, "top_p": 0.5}, [0, 0, 1, 0]),
        ({"top_k": 2, "top_p": 0.6}, [1, 0, 1, 0]),
        # Squares: 9, 4, 16, 1 of 30, so the first two have 25/30 = 0.833.
        ({"temperature": 0.5, "top_p": 0.8}, [1, 0, 1, 0]),
        # Shares of the best, 0.4: 0.75, 0.5, 1, 0.25.
        ({"min_p": 0.2}, [1, 1, 1, 1]),
        ({"min_p": 0.3}, [1, 1, 1, 0]),
        ({"min_p": 0.6}, [1, 0, 1, 0]),
        ({"min_p": 1.0}, [0, 0, 1, 0]),
        # Squares: shares 0.5625, 0.25, 1, 0.0625.
        ({"temperature": 0.5, "min_p": 0.3}, [1, 0, 1, 0]),
        ({"top_k": 3, "min_p": 0.3}, [1, 1, 1, 0]),
        ({"top_k": 2, "min_p": 0.3}, [1, 0, 1, 0]),
    ],
)
def test_filters_by_hand(settings, kept):
    settings = sampling.Sampling(**settings)
    got = softmax(filtered(FOUR, settings))
    expected = np.array([0.3, 0.2, 0.4, 0.1]) * kept
    if settings.temperature > 0:
        expected **= 1 / settings.temperature
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-5)


def test_filters_against_a_sort():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(40, 17)) * 4, jnp.float32)
    for k, mass in ((5, 1.0), (0, 0.7), (6, 0.9)):
        got = np.asarray(filtered(logits, sampling.Sampling(top_k=k, top_p=mass)))
        for row, x in zip(got, np.asarray(logits, np.float64), strict=True):
            order = np.argsort(-x)[: k or None]
            p = softmax(x[order])
            order = order[: np.searchsorted(np.cumsum(p), mass) + 1]
            expected = np.full(17, -np.inf)
            expected[order] = x[order]
            np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_min_p_against_its_definition():
    rng = np.random.default_rng(1)
    logits = (rng.normal(size=(40, 17)) * 3).astype(np.float32)
    for share in (0.01, 0.1, 0.9):
        got = np.asarray(filtered(jnp.asarray(logits), sampling.Sampling(min_p=share)))
        for row, x in zip(got, logits, strict=True):
            p = softmax(x)
            expected = [x[i] if p[i] >= share * p.max() else -np.inf for i in range(17)]
            np.testing.assert_array_equal(row, np.asarray(expected, np.float32))


def test_min_p_goes_by_the_probabilities_of_the_operator():
    x = jnp.array([[2.0, 1.0, 0.0, -1.0]])
    p = np.asarray(probabilities(x, SPARSE))[0]
    q = np.asarray(probabilities(x))[0]
    assert p[1] / p[0] < q[1] / q[0] - 0.1
    settings = sampling.Sampling(min_p=float(p[1] / p[0] + q[1] / q[0]) / 2)
    assert (np.asarray(filtered(x, settings, SPARSE)) > -np.inf).sum() == 1
    assert (np.asarray(filtered(x, settings)) > -np.inf).sum() == 2


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.2, 7.0])
def test_a_penalty_lowers_the_logits_of_tokens_that_are_present(penalty):
    rng = np.random.default_rng(2)
    logits = (rng.normal(size=(6, 11)) * 3).astype(np.float32)
    logits[0, :2] = 0, -np.inf
    texts = rng.integers(0, 11, (6, 5))
    texts[0, :2] = 0, 1
    valid = np.arange(5) >= rng.integers(0, 5, (6, 1))  # Padding on the left.
    valid[0] = True
    expected = logits.astype(np.float64)
    for b in range(6):
        for i in {int(t) for t, counts in zip(texts[b], valid[b], strict=True) if counts}:
            x = expected[b, i]
            expected[b, i] = x / penalty if x > 0 else x * penalty
    is_present = np.zeros((6, 11), bool)
    for columns in (slice(0, 3), slice(3, 5)):  # In pieces.
        is_present = mark_present(is_present, texts[:, columns], valid[:, columns])
    got = penalise_repetition(logits, is_present, penalty)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    if penalty == 1:
        np.testing.assert_array_equal(got, logits)


def test_ids_beyond_the_logits_are_not_marked():
    is_present = mark_present(np.zeros((1, 3), bool), np.array([[2, 3, 9]]), np.ones((1, 3), bool))
    np.testing.assert_array_equal(is_present, [[False, False, True]])


def test_equals_are_kept_together_but_the_greedy_token_is_one():
    x = jnp.array([[1.0, 2.0, 2.0, 0.0], [-1.0, -1.0, -3.0, -1.0]])
    for settings in (sampling.Sampling(top_k=1), sampling.Sampling(top_p=0.1)):
        kept = np.asarray(filtered(x, settings)) > -np.inf
        np.testing.assert_array_equal(kept, [[0, 1, 1, 0], [1, 1, 0, 1]])
    greedy = np.asarray(filtered(x, sampling.Sampling(temperature=0))) > -np.inf
    np.testing.assert_array_equal(greedy, [[0, 1, 0, 0], [1, 0, 0, 0]])


def test_temperature_near_zero_and_half_precision_stay_finite():
    x = jnp.array([[300.0, 200.0, -300.0]], jnp.bfloat16)
    y = filtered(x, sampling.Sampling(temperature=1e-6))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, [[0, -1e8, -6e8]], rtol=1e-6)
    assert filtered(x, sampling.Sampling()).dtype == jnp.float32


def test_top_p_counts_the_mass_of_the_operator():
    x = jnp.array([[2.0, 1.0, 0.0, -1.0]])
    p = np.asarray(probabilities(x, SPARSE))[0]
    q = np.asarray(probabilities(x))[0]
    assert p[0] > q[0] + 0.05  # The sparse operator is the sharper of the two.
    settings = sampling.Sampling(top_p=float(p[0] + q[0]) / 2)
    assert (np.asarray(filtered(x, settings, SPARSE)) > -np.inf).sum() == 1
    assert (np.asarray(filtered(x, settings)) > -np.inf).sum() == 2


@pytest.mark.parametrize("divergence", [None, regularizers.reverse_kl, SPARSE])
def test_samples_come_with_their_log_probability(divergence):
    x = np.random.default_rng(0).normal(size=(1, 6)).astype(np.float32) * 2
    x[0, 2] = -np.inf
    p = np.asarray(probabilities(x, divergence))[0]
    assert p[2] == 0
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    if divergence is None:
        np.testing.assert_allclose(p, softmax(x[0]), rtol=1e-5)
    rows = np.tile(x, (2_000, 1))
    token, log_p = sample(jax.random.key(0), rows, divergence)
    np.testing.assert_allclose(np.exp(log_p), p[np.asarray(token)], rtol=1e-5)
    again = log_probability(rows, token, divergence)
    np.testing.assert_allclose(again, log_p, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.bincount(token, minlength=6) / 2_000, p, atol=0.045)
    off = log_probability(x, np.array([2]), divergence)
    assert np.asarray(off)[0] == -np.inf


def test_a_sparse_operator_draws_in_its_support():
    x = hard_logits("normal", 300)[None]
    p = np.asarray(probabilities(x, SPARSE))[0]
    assert 1 < (p > 0).sum() < 20  # Softmax would leave 1e-3 and more outside.
    assert softmax(x[0])[p == 0].sum() > 1e-2
    token, log_p = sample(jax.random.key(2), x.repeat(5_000, 0), SPARSE)
    assert np.all(p[np.asarray(token)] > 0) and np.all(np.isfinite(log_p))
    assert len(np.unique(token)) > 1


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"temperature": -1.0}, "temperature must be 0 .* got -1"),
        ({"temperature": 1e-9}, "temperature must be 0"),
        ({"temperature": float("nan")}, "got nan"),
        ({"temperature": float("inf")}, "got inf"),
        ({"top_k": -1}, "top_k must be >= 0 .* got -1"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"top_p": 1.5}, "got 1.5"),
        ({"min_p": -0.1}, r"min_p must lie in \[0, 1\]"),
        ({"min_p": float("nan")}, "got nan"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty must lie in \[0.01, 100\]"),
        ({"repetition_penalty": float("inf")}, "got inf"),
    ],
)
def test_refuses(settings: Any, message):
    with pytest.raises(ValueError, match=message):
        sampling.Sampling(**settings)


OFF_POLICY: Any = ({"temperature": 0.9}, {"temperature": 0.0}, {"top_k": 5}, {"top_p": 0.9})
OFF_POLICY += ({"min_p": 0.1}, {"repetition_penalty": 1.1})


def test_only_the_default_is_on_policy():
    assert sampling.Sampling().is_on_policy
    for settings in OFF_POLICY:
        assert not sampling.Sampling(**settings).is_on_policy
