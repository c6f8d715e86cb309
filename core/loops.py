"""The interface between a loop and its caller, and the pace of acting to learning."""

import contextlib
import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from kullback.core import metrics, replay, types

CHUNK_SECONDS = 0.5  # A call of `advance` returns after about this long, so that Ctrl-C answers.
# Agent steps after which an episode of evaluation is cut by default: 108,000 frames, as on Atari.
EVALUATION_LIMIT = 27_000


class Episodes(NamedTuple):
    """Episodes of an evaluation, n of each of K seeds."""

    returns: np.ndarray  # float, [K, n] or [n]: undiscounted; of a cut episode, until the cut.
    cut: np.ndarray  # bool, the same shape: whether it was cut at the limit of steps.

    @property
    def num_cut(self) -> int:
        """Number of episodes that were cut, over all seeds."""
        return int(np.sum(self.cut))


class Abandoned(Exception):
    """An iteration that failed before it changed anything; `state` is the state before it."""

    def __init__(self, state: Any):
        super().__init__("an iteration was abandoned")
        self.state = state


class HostReplay(NamedTuple):
    """A replay of B rings in the host's memory, saved span by span beside the snapshots."""

    num_bytes: int  # Size of its arrays.
    num_envs: int  # B.
    # (state, cursors at which the last span ended, None for all) -> the slots added since.
    span: Callable[[Any, replay.Cursors | None], dict[str, np.ndarray]]
    # state -> int, [B]: a span that ends at or before these positions is overwritten.
    live_after: Callable[[Any], np.ndarray]
    cursors: Callable[[Any], replay.Cursors]  # snapshot -> the end of the span saved with it.


class Loop(NamedTuple):
    """A run of K seeds as functions of its state, a pytree.

    Host loops hold the environment itself outside of the state.
    """

    seeds: tuple[int, ...]  # [K].
    init: Callable[[], Any]  # () -> the state before step 0.
    # (state, steps) -> a later state, of that many steps at most or just beyond; raises Abandoned
    # where a function of the caller (a reward) failed.
    advance: Callable[[Any, int], Any]
    # state -> steps of each seed: agent steps over all environments, or learner steps on sequences.
    steps: Callable[[Any], int]
    # state -> (the state with metrics reset, a row of metrics by name for each seed).
    rows: Callable[[Any], tuple[Any, list[dict[str, float]]]]
    evaluate: Callable[[Any, int], Episodes]  # (state, episodes) -> [K, episodes].
    snapshot: Callable[[Any], Any]  # state -> a checkpoint's contents, without a host replay.
    template: Callable[[], Any]  # () -> shapes and dtypes of a snapshot.
    # (snapshot, spans of a host replay in order, or None to start with an empty one) -> state.
    restore: Callable[..., Any]
    host_replay: HostReplay | None = None  # None where the snapshot holds everything.
    close: Callable[[], None] = lambda: None  # Frees the environments of evaluation.


@dataclasses.dataclass
class ChunkSize:
    """The number of iterations of the next compiled call, aimed at CHUNK_SECONDS.

    The results of a run do not depend on it.
    """

    size: int  # Iterations of the first call.

    @contextlib.contextmanager
    def timed(self, count: int) -> Iterator[None]:
        """Measures a call of `count` iterations, and sets the size of the next."""
        start = time.perf_counter()
        yield
        per_second = count / max(time.perf_counter() - start, 1e-3)
        # Grow slowly: the first call of a program pays for its compilation.
        self.size = max(1, min(2 * self.size, int(per_second * CHUNK_SECONDS)))


class Pace(NamedTuple):
    """The schedule of one iteration: ticks of the environment, then learner steps."""

    ticks: int
    updates: int  # Learner steps.

    def env_steps(self, num_envs: int) -> int:
        """Returns the agent steps of an iteration."""
        return self.ticks * num_envs


def pace(config: replay.Config, num_envs: int) -> Pace:
    """Returns ticks and updates of an iteration.

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
    near = (n for d in itertools.count(1) for n in (num_envs - d, num_envs + d) if n > 0)
    nearest = next(n for n in near if period % n == 0 or n % period == 0)
    raise ValueError(
        f"samples_per_update={period} must divide or be divided by num_envs={num_envs}; "
        f"the nearest valid num_envs is {nearest}"
    )


def evaluation_limit(spec: types.Spec, limit: int = 0) -> int:
    """Returns the agent steps after which an episode of evaluation is cut.

    Args:
      spec: of the environment.
      limit: the caller's, used as it is unless 0. 0 is EVALUATION_LIMIT, or the environment's own
        `max_episode_steps` if that is more.
    """
    return limit or max(EVALUATION_LIMIT, spec.max_episode_steps or 0)


def evaluation_key(key: types.Key, env_steps: types.Array | int) -> types.Key:
    """Returns the key of an evaluation after so many steps.

    It differs from all keys of training, which are split from the seed or fold in a step alone.
    """
    return jax.random.fold_in(jax.random.fold_in(key, 0xE7A1), env_steps)


def count(steps: int) -> np.ndarray:
    """Returns a number of steps as an array, int32, [], as `Agent.actor_params` takes it."""
    return np.asarray(steps, np.int32)


def row(
    agent: types.Agent,
    learner: types.LearnerState,
    env_steps: types.Array,
    constants: types.Constants,
    sums: metrics.Metrics,
) -> dict[str, float]:
    """Returns the metrics of an interval by name, and the policy's epsilon if it has one."""
    acting = agent.actor_params(learner, env_steps, False, constants)
    epsilon = {"epsilon": float(acting["epsilon"])} if "epsilon" in acting else {}
    return metrics.row(sums) | epsilon


def learning_begins(config: replay.Config, num_envs: int, *, sees_own_ticks: bool) -> int:
    """Returns the agent steps after which iterations learn, as a batch can be drawn from then on.

    Each environment must have taken n steps before any of its n-step transitions is complete.

    Args:
      config: settings of the replay.
      num_envs: B.
      sees_own_ticks: whether an iteration draws its batches after its own ticks, not before.

    Raises:
      ValueError: if an environment's share of the capacity is less than n steps, so that there may
        never be a transition to draw.
    """
    share = -(-config.capacity // num_envs)
    if share < config.n_step:
        raise ValueError(
            f"capacity={config.capacity} is {share} a row of num_envs={num_envs}, and n_step="
            f"{config.n_step} needs as many at least; set capacity={config.n_step * num_envs}"
        )
    ahead = pace(config, num_envs).env_steps(num_envs) if sees_own_ticks else 0
    return max(config.min_replay_size, config.n_step * num_envs - ahead)


def feedback_names(
    agent: types.Agent, spec: types.Spec, constants: types.Constants
) -> dict[str, Any]:
    """Returns names of the learner's metrics, as keys, by tracing alone."""
    sample = jax.eval_shape(functools.partial(_example, agent, spec), constants).metrics
    return dict.fromkeys(sample)


def _example(agent: types.Agent, spec: types.Spec, constants: types.Constants) -> types.Feedback:
    store = replay.device(
        spec, replay.Config(capacity=1, min_replay_size=1, batch_size=1, n_step=1), 1
    )
    batch = store.sample(store.init(), jax.random.key(0))
    return agent.learner.step(agent.learner.init(jax.random.key(0)), batch, constants)[1]


def iterations(env_steps: int, until: int, per_iteration: int) -> int:
    """Returns the number of whole iterations from `env_steps` to `until` or just beyond."""
    return max(0, math.ceil((until - env_steps) / per_iteration))
