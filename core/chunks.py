"""How a run on the host is cut into chunks: which shard acts how long, by which parameters.

The plan cuts the B rows of a run into S shards, each acted by one compiled program in an
environment of its own. The learner takes the chunks of all shards in order. Chunk k of a shard is
acted by version max(k - D, 0) of the parameters, D the lag, counted from where the run began or
went on. So which parameters acted which rows, and with which keys, is fixed by the plan, whoever
acts (crews.py). At most D + 1 chunks of a shard are asked for at a time, and one more where an
iteration has two.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from kullback.core import acting, loops, replay, types


class Schedule(NamedTuple):
    """How an iteration is cut into chunks, and by which parameters each is acted."""

    shards: int  # S.
    lag: int  # D.
    # Ticks of each chunk of an iteration. The learner steps of an iteration run during the first.
    parts: tuple[int, ...]
    calls: int  # Of the learner's program, each of which takes the learner steps of a pace.

    @property
    def ticks(self) -> int:
        """Ticks of an iteration."""
        return sum(self.parts)

    @property
    def is_plain(self) -> bool:
        """Whether the thread that learns acts, so that nobody is waited for."""
        return self.shards == 1 and self.lag == 0

    def version(self, chunk: int) -> int:
        """Returns the version of the parameters that acts a chunk, both counted from 0.

        Version n has the learner steps of n iterations.
        """
        iteration, part = divmod(chunk, len(self.parts))
        return max(iteration + part - self.lag, 0)

    def ticks_before(self, chunk: int) -> int:
        """Returns the ticks of all chunks before one."""
        iteration, part = divmod(chunk, len(self.parts))
        return iteration * self.ticks + sum(self.parts[:part])


def schedule(config: replay.Config, num_envs: int) -> Schedule:
    """Returns the schedule of a run of B rows.

    With `chunk_ticks` 0 an iteration is that of `loops.pace`, whose first tick is acted before its
    learner steps, and the others after.

    Raises:
      ValueError: for shards that do not divide the rows, or ticks of no whole iterations.
    """
    pace = loops.pace(config, num_envs)
    if num_envs % config.shards:
        raise ValueError(f"shards={config.shards} must divide num_envs={num_envs}")
    if config.chunk_ticks % pace.ticks:
        raise ValueError(
            f"chunk_ticks={config.chunk_ticks} must be a multiple of {pace.ticks}, the ticks "
            f"of samples_per_update={config.samples_per_update} with num_envs={num_envs}"
        )
    parts = (1, pace.ticks - 1) if pace.ticks > 1 else (1,)
    if config.chunk_ticks:
        parts = (config.chunk_ticks,)
    return Schedule(config.shards, config.lag, parts, max(config.chunk_ticks // pace.ticks, 1))


def emulator_seed(seed: int, shards: int, shard: int, env_steps: int) -> int:
    """Returns the seed of emulators that begin after `env_steps` agent steps of a run."""
    if shards == 1:
        return seed + env_steps  # As before there were shards.
    return int(np.random.SeedSequence([seed, env_steps, shard]).generate_state(1)[0] >> 1)


def asks(
    plan: Schedule, stride: int, begun: int, key_data: list[Any], chunk: int
) -> list[acting.Ask]:
    """Returns what is asked of each shard for a chunk; emulators go on."""
    env_steps = begun + plan.ticks_before(chunk) * stride
    ticks = plan.parts[chunk % len(plan.parts)]
    return [acting.Ask(n, ticks, env_steps, stride, key) for n, key in enumerate(key_data)]


def keys(plan: Schedule, key: types.Key) -> list[np.ndarray]:
    """Returns the key of each shard, as data; one shard has the run's own."""
    shards = [key] if plan.shards == 1 else [jax.random.fold_in(key, n) for n in range(plan.shards)]
    return [np.asarray(jax.random.key_data(k)) for k in shards]
