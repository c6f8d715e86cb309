"""Metrics of a run: sums kept beside the state, read and emptied at each log interval.

They are part of the run's state, so that an interrupted interval is reported as if the run had gone
on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types

RECENT_EPISODES = 100  # Episodes that `recent_return` averages.


class Metrics(NamedTuple):
    """Sums since the last row, for one seed; B rows."""

    running_return: jax.Array  # float32, [B]: raw return so far of the episodes under way.
    episodes: jax.Array  # int32, []: episodes finished since the run began.
    finished: jax.Array  # int32, []: episodes finished in this interval.
    return_sum: jax.Array  # float32, []: returns of this interval's episodes.
    return_min: jax.Array
    return_max: jax.Array
    recent: jax.Array  # float32, [100]: returns of the last episodes, a ring.
    updates: jax.Array  # int32, []: learner steps in this interval.
    learner: dict[str, jax.Array]  # Sums over them of each scalar that the learner reports.


def init(num_envs: int, learner_metrics: dict[str, Any]) -> Metrics:
    """Returns empty sums; `learner_metrics` has the names that the learner reports."""
    zero = jnp.zeros((), jnp.float32)
    count = jnp.zeros((), jnp.int32)
    return Metrics(
        running_return=jnp.zeros(num_envs, jnp.float32),
        episodes=count,
        finished=count,
        return_sum=zero,
        return_min=zero + jnp.inf,
        return_max=zero - jnp.inf,
        recent=jnp.zeros(RECENT_EPISODES, jnp.float32),
        updates=count,
        learner={name: zero for name in learner_metrics},
    )


def observe(metrics: Metrics, timestep: types.TimeStep) -> Metrics:
    """Adds one tick of B rows."""
    total = metrics.running_return + timestep.reward
    last = timestep.last()
    finished = jnp.sum(last, dtype=jnp.int32)
    return metrics._replace(
        running_return=jnp.where(last, 0.0, total),
        episodes=metrics.episodes + finished,
        finished=metrics.finished + finished,
        return_sum=metrics.return_sum + jnp.sum(jnp.where(last, total, 0.0)),
        return_min=jnp.minimum(metrics.return_min, jnp.min(jnp.where(last, total, jnp.inf))),
        return_max=jnp.maximum(metrics.return_max, jnp.max(jnp.where(last, total, -jnp.inf))),
        recent=metrics.recent.at[_places(metrics.episodes, last)].set(total, mode="drop"),
    )


def _places(episodes: jax.Array, last: jax.Array) -> jax.Array:
    """Returns the ring's index for the return of each row that ends, [B]; out of range for others.

    The j-th row that ends in a tick takes the j-th place; if more end than the ring holds, the last
    are kept. No two rows write one place, as the order of such writes is undefined on accelerators.
    """
    rank = jnp.cumsum(last, dtype=jnp.int32) - 1
    kept = last & (rank >= jnp.sum(last, dtype=jnp.int32) - RECENT_EPISODES)
    return jnp.where(kept, (episodes + rank) % RECENT_EPISODES, RECENT_EPISODES)


def learn(metrics: Metrics, feedback: types.Feedback) -> Metrics:
    """Adds one learner step."""
    return metrics._replace(
        updates=metrics.updates + 1,
        learner={
            name: total + jnp.mean(feedback.metrics[name]).astype(jnp.float32)
            for name, total in metrics.learner.items()
        },
    )


def next_interval(metrics: Metrics) -> Metrics:
    """Empties the sums of the interval, but not those of episodes under way."""
    empty = init(metrics.running_return.shape[0], metrics.learner)
    return empty._replace(
        running_return=metrics.running_return, episodes=metrics.episodes, recent=metrics.recent
    )


def row(metrics: Metrics) -> dict[str, float]:
    """Returns the interval as a row, for one seed; NaN where nothing finished or was learnt.

    `recent_return` is the mean over the last 100 episodes, whatever the interval.
    """
    m = jax.tree.map(np.asarray, metrics)
    finished, updates, episodes = int(m.finished), int(m.updates), int(m.episodes)
    recent = m.recent[: min(episodes, RECENT_EPISODES)]
    nan = float("nan")
    return {
        "episodes": episodes,
        "return_mean": float(m.return_sum) / finished if finished else nan,
        "return_min": float(m.return_min) if finished else nan,
        "return_max": float(m.return_max) if finished else nan,
        "recent_return": float(np.mean(recent, dtype=np.float64)) if episodes else nan,
        **{
            name: float(total) / updates if updates else nan
            for name, total in sorted(m.learner.items())
        },
    }
