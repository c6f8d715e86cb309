"""Tests of core/metrics.py."""

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import metrics, types


def tick(rewards, last) -> types.TimeStep:
    step_type = jnp.where(jnp.array(last), types.LAST, types.MID)
    rewards = jnp.array(rewards, jnp.float32)
    return types.TimeStep(step_type, rewards, 1.0 - jnp.array(last), None, None)  # pyright: ignore[reportArgumentType]


def test_golden_returns_belong_to_the_interval_in_which_they_end():
    m = metrics.init(2, {"loss": None})
    m = metrics.observe(m, tick([1, 10], [False, True]))
    m = metrics.observe(m, tick([2, 5], [True, False]))
    m = metrics.learn(m, types.Feedback({"loss": jnp.array([1.0, 3.0])}))
    m = metrics.learn(m, types.Feedback({"loss": jnp.array(4.0)}))
    row = metrics.row(m)
    # Returns 10 and 3; losses 2 (a mean over the batch) and 4.
    assert row["episodes"] == 2 and row["return_mean"] == 6.5
    assert (row["return_min"], row["return_max"], row["loss"]) == (3, 10, 3)

    m = metrics.next_interval(m)
    m = metrics.observe(m, tick([0, 7], [False, True]))
    row = metrics.row(m)
    assert row["episodes"] == 3 and row["return_mean"] == 12  # 5 from before, and 7.
    assert row["recent_return"] == np.mean([10, 3, 12]) and np.isnan(row["loss"])


def test_an_interval_without_an_end_says_so():
    row = metrics.row(metrics.observe(metrics.init(1, {}), tick([1], [False])))
    assert row["episodes"] == 0
    assert all(np.isnan(row[n]) for n in ("return_mean", "return_min", "recent_return"))


def test_recent_return_is_the_mean_of_the_last_hundred():
    rng = np.random.default_rng(0)
    m, running, ended = metrics.init(3, {}), np.zeros(3), []
    observe = jax.jit(metrics.observe)
    for _ in range(120):
        rewards, last = rng.normal(size=3).astype(np.float32), rng.random(3) < 0.4
        running += rewards
        ended += list(running[last])
        running[last] = 0
        m = observe(m, tick(rewards, last))
    row = metrics.row(m)
    assert row["episodes"] == len(ended) > 110
    np.testing.assert_allclose(row["recent_return"], np.mean(ended[-100:]), rtol=1e-5)
    np.testing.assert_allclose(row["return_max"], np.max(ended), rtol=1e-5)


def test_of_more_rows_than_the_ring_holds_the_last_hundred_that_end_in_one_tick_are_kept():
    rewards = np.arange(250, dtype=np.float32)
    last = np.arange(250) % 2 == 1  # 125 of them.
    m = metrics.observe(metrics.init(250, {}), tick(np.full(250, 1000.0), np.arange(250) < 7))
    m = jax.jit(metrics.observe)(m, tick(rewards, last))
    ended = np.where(np.arange(250) < 7, 0, 1000) + rewards
    assert sorted(np.asarray(m.recent)) == sorted(ended[last][-100:])
    assert metrics.row(m)["recent_return"] == np.mean(ended[last][-100:])
    # No two rows write one place: on accelerators that has no defined order.
    places = np.asarray(metrics._places(jnp.array(7), jnp.array(last)))
    assert sorted(places) == [*range(100), *[100] * 150]
    np.testing.assert_array_equal(places[last][-100:], (7 + 25 + np.arange(100)) % 100)
