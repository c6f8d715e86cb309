"""Tests of lm/mixtures.py."""

import collections
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.lm import batches
from kullback.lm.data import Example
from kullback.lm.mixtures import Mixture

MIXTURE = Mixture(
    sizes=(7, 3, 5), start=(3, 1, 0), end=(0.5, 0.25, 0.25), num_steps=40, batch_size=8, seed=5
)
WEIGHTS = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.01)


def test_weights_move_on_a_line():
    got = MIXTURE.weights(np.array([0, 20, 40, 1000]))
    expected = [[0.75, 0.25, 0], [0.625, 0.25, 0.125], [0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(WEIGHTS, WEIGHTS, st.integers(1, 9), st.integers(0, 99))
def test_counts_are_the_weights_rounded(start: Any, end: Any, batch_size: int, seed: int):
    mixture = Mixture(
        sizes=(4, 4, 4),
        start=tuple(start),
        end=tuple(end),
        num_steps=10,
        batch_size=batch_size,
        seed=seed,
    )
    counts = mixture.counts(32)
    expected = batch_size * mixture.weights(np.arange(32))
    np.testing.assert_array_equal(counts.sum(1), batch_size)
    assert (counts >= np.floor(expected - 1e-9)).all() and (
        counts <= np.ceil(expected + 1e-9)
    ).all()
    assert not counts[expected == 0].any()
    # More steps say nothing else of the first.
    np.testing.assert_array_equal(mixture.counts(40)[:32], counts)


def test_counts_are_the_weights_on_average():
    counts = MIXTURE.counts(4000)[40:]
    np.testing.assert_allclose(counts.mean(0), [4, 2, 2])
    odd = Mixture(sizes=(1, 1), start=(0.3, 0.7), end=(0.3, 0.7), num_steps=1, batch_size=1, seed=2)
    # 4,000 coins: five standard deviations are 0.036.
    assert abs(odd.counts(4000)[:, 0].mean() - 0.3) < 0.036


def test_items_come_once_an_epoch():
    seen: list[list[int]] = [[], [], []]
    for step in range(50):
        sources, items = MIXTURE.draw(step)
        assert sources.shape == items.shape == (8,)
        for source, item in zip(sources.tolist(), items.tolist(), strict=True):
            seen[source].append(item)
    np.testing.assert_array_equal([len(x) for x in seen], MIXTURE.counts(50).sum(0))
    for items, size in zip(seen, MIXTURE.sizes, strict=True):
        whole = len(items) // size
        counts = collections.Counter(items[: whole * size])
        # Rows of a batch are shuffled, so that its epochs may overlap, but no more.
        assert whole > 1 and max(counts.values()) - min(counts.values()) <= 2
        counts = collections.Counter(items)
        assert set(counts) == set(range(size))


def test_a_draw_depends_on_seed_and_step_alone():
    fresh = Mixture(**{**vars(MIXTURE)})
    later = [MIXTURE.rows(step).tolist() for step in (77, 3, 78)]
    assert [fresh.rows(step).tolist() for step in (77, 3, 78)] == later
    other = Mixture(**{**vars(MIXTURE), "seed": 6})
    assert [other.rows(step).tolist() for step in (77, 3, 78)] != later
    orders = {tuple(MIXTURE.draw(step).sources.tolist()) for step in range(100, 120)}
    assert len(orders) > 10
    with pytest.raises(ValueError, match="step must be >= 0, got -1"):
        MIXTURE.draw(-1)


def test_batches_are_of_the_mixture():
    examples = [Example((2, 10 + n), (50 + n, 1)) for n in range(15)]
    sampler = batches.make(examples, batches.Config(batch_size=8), 0, MIXTURE.rows)
    for step in (0, 41):
        rows, batch = MIXTURE.rows(step), sampler.sequences(step)
        np.testing.assert_array_equal(batch.indices, rows)
        np.testing.assert_array_equal(batch.data.tokens[:, 1], 10 + rows)
        np.testing.assert_array_equal(sampler.prompts(step).tokens[:, -1], 10 + rows)
    with pytest.raises(ValueError, match="a mixture's rows are drawn one by one"):
        batches.make(examples, batches.Config(pack=True), 0, MIXTURE.rows)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"sizes": (7, 0, 5)}, "needs at least one example"),
        ({"start": (1, 1)}, "start must be 3 finite weights"),
        ({"end": (0, 0, 0)}, "end must be 3 finite weights >= 0, .* not all 0"),
        ({"end": (1, -1, 1)}, "end must be"),
        ({"num_steps": 0}, "num_steps must be >= 1"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"seed": -1}, "seed must lie in"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Mixture(**{**vars(MIXTURE), **settings})
