"""What both loops share: the interface to who drives a run, and the pace of acting to learning."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from kullback.core import replay, types

CHUNK_SECONDS = 0.5  # A call of `advance` returns after about this long, so that Ctrl-C answers.


class Loop(NamedTuple):
    """A run of K seeds as functions of its state; `state` is a pytree that a checkpoint can hold.

    Host loops hold the environment itself outside of the state.
    """

    seeds: tuple[int, ...]  # K of them.
    init: Callable[[], Any]  # () -> state before step 0.
    advance: Callable[[Any, int], Any]  # (state, env_steps) -> later state, at most about there.
    env_steps: Callable[[Any], int]  # Agent steps done over all rows, of each seed.
    rows: Callable[[Any], tuple[Any, list[dict[str, float]]]]  # A row a seed; empties the sums.
    evaluate: Callable[[Any, int], np.ndarray]  # (state, episodes) -> returns [K, episodes].
    snapshot: Callable[[Any], Any]  # state -> what a checkpoint holds (no large host arrays).
    template: Callable[[], Any]  # Shapes and dtypes of a snapshot.
    restore: Callable[..., Any]  # (snapshot, spans of a host replay in order) -> state.
    host_replay_bytes: int = 0  # Of a replay that is not in the snapshot.


class Pace(NamedTuple):
    """One iteration: so many ticks of the environment, then so many learner steps."""

    ticks: int
    updates: int

    def env_steps(self, num_envs: int) -> int:
        """Agent steps in an iteration."""
        return self.ticks * num_envs


def pace(config: replay.Config, num_envs: int) -> Pace:
    """Ticks and updates of an iteration.

    Raises:
      ValueError: unless samples_per_update divides or is divided by the number of environments.
    """
    period = config.samples_per_update
    if num_envs < 1:
        raise ValueError(f"num_envs must be >= 1, got {num_envs}")
    if period % num_envs == 0:
        return Pace(ticks=period // num_envs, updates=1)
    if num_envs % period == 0:
        return Pace(ticks=1, updates=num_envs // period)
    valid = [n for n in range(1, 2 * num_envs + period) if period % n == 0 or n % period == 0]
    nearest = min(valid, key=lambda n: abs(n - num_envs))
    raise ValueError(
        f"samples_per_update={period} must divide or be divided by num_envs={num_envs}; "
        f"the nearest valid num_envs is {nearest}"
    )


def feedback_names(agent: types.Agent, spec: types.Spec) -> dict[str, Any]:
    """Names of the scalars that the agent's learner reports, found without computing anything."""
    sample = jax.eval_shape(lambda: _example(agent, spec)).metrics
    return dict.fromkeys(sample)


def _example(agent: types.Agent, spec: types.Spec) -> types.Feedback:
    store = replay.device(
        spec, replay.Config(capacity=1, min_replay_size=1, batch_size=1, n_step=1), 1
    )
    batch = store.sample(store.init(), jax.random.key(0))
    return agent.learner.step(agent.learner.init(jax.random.key(0)), batch, None)[1]


def iterations(env_steps: int, until: int, per_iteration: int) -> int:
    """Whole iterations from `env_steps` to `until` or just beyond."""
    return max(0, math.ceil((until - env_steps) / per_iteration))
