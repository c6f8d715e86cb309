"""Rows that the policy samples beside learning: by parameters some steps old, on threads.

The rows of learner step n are made by the parameters of step max(n - D, 0), D the lag. So those of
the next D steps can be made while this one is learnt from. Where parameters begin anew from others
every T steps, a step has no rows of those before: the first D of each such period are made by the
parameters that it begins with. Which parameters make a row, and by which key, is a function of the
step and of the row's shard, never of a clock: any number of threads gives the same bits, and rows
that a kill has lost are made again.
"""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kullback.core import types


class Ahead(NamedTuple):
    """How far ahead of learning rows are sampled, and in how many parts."""

    lag: int = 0  # D >= 0, in learner steps; 0: rows are sampled when they are learnt from.
    # Parts of a step's prompts, of one size, that are sampled apart: at most so many at a time. A
    # run's numbers depend on it, as each has its own key.
    shards: int = 1
    period: int = 0  # T, learner steps after which parameters begin anew; 0: they never do.

    def version(self, step: int) -> int:
        """Returns the learner step whose parameters make the rows of a step."""
        return max(step - self.lag, step - step % self.period if self.period else 0)

    def check(self, num_prompts: int) -> None:
        """Checks the settings.

        Args:
          num_prompts: of a learner step.

        Raises:
          ValueError: for a negative lag, or shards that are not asked for or do not divide.
        """
        if self.lag < 0:
            raise ValueError(f"lag must be >= 0, got {self.lag}; 1 overlaps sampling and learning")
        if self.shards < 1 or num_prompts % self.shards:
            raise ValueError(
                f"shards must be >= 1 and divide the {num_prompts} prompts of a batch, got "
                f"{self.shards}"
            )
        if self.shards > 1 and not self.lag:
            raise ValueError(f"shards={self.shards} are of texts that are written ahead: set lag=1")

    def check_mesh(self, mesh: str) -> None:
        """Raises ValueError if there is a lag, as a run over a mesh cannot have one."""
        if self.lag:
            raise ValueError(
                f"lag={self.lag} does not go with {mesh}: programs that run beside the learner's "
                "could begin in another order on each device, and those that wait for one another "
                "would do so for ever; leave one out"
            )


NONE = Ahead()


class Taken(NamedTuple):
    """The rows of a step."""

    rows: Any  # NumPy, in the order of the prompts.
    prompts: Sequence[Any]
    seconds: float  # How long the caller waited for them.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampler:
    """Threads that sample the rows of coming steps."""

    ahead: Ahead
    # Of a step; the shards divide their number. None are no rows.
    prompts: Callable[[int], Sequence[Any]]
    # (acting params, prompts, key) -> rows, those of a prompt adjacent; called on several threads.
    sample: Callable[[Any, Sequence[Any], types.Key], Any]
    pool: concurrent.futures.ThreadPoolExecutor
    flights: dict[int, list[concurrent.futures.Future[Any]]] = dataclasses.field(
        default_factory=dict
    )

    def begin(self, step: int, acting: Callable[[], Any], key: types.Key) -> None:
        """Begins to sample the rows of a step, unless that has been done.

        Args:
          step: of the learner.
          acting: () -> the parameters that act; nothing changes or frees them meanwhile.
          key: of sampling.
        """
        prompts = self.prompts(step)
        if step in self.flights or not prompts:
            return
        params, count = acting(), self.ahead.shards
        if len(prompts) % count:
            raise ValueError(f"shards={count} must divide the {len(prompts)} prompts of a step")
        size, of_step = len(prompts) // count, jax.random.fold_in(key, step)
        self.flights[step] = [
            self.pool.submit(
                self.sample,
                params,
                prompts[n * size : (n + 1) * size],
                jax.random.fold_in(of_step, n),
            )
            for n in range(count)
        ]

    def take(self, step: int) -> Taken:
        """Returns the rows of a step that was begun, once they are there.

        Raises:
          Exception: what sampling raised.
        """
        begun = time.perf_counter()
        parts = [flight.result() for flight in self.flights[step]]
        seconds = time.perf_counter() - begun
        del self.flights[step]
        rows = jax.tree.map(lambda *x: np.concatenate([*map(np.asarray, x)]), *parts)
        return Taken(rows, self.prompts(step), seconds)

    def forget(self) -> None:
        """Drops rows that were begun, as of another state of the run."""
        for flights in self.flights.values():
            for flight in flights:
                flight.cancel()
        self.flights.clear()

    def close(self) -> None:
        """Ends the threads, once each has done what it is at."""
        self.forget()
        self.pool.shutdown()


def sampler(
    ahead: Ahead,
    prompts: Callable[[int], Sequence[Any]],
    sample: Callable[[Any, Sequence[Any], types.Key], Any],
    workers: int | None = None,
) -> Sampler:
    """Returns a sampler with so many threads; None is one for each shard."""
    pool = concurrent.futures.ThreadPoolExecutor(workers or ahead.shards, "sampler")
    return Sampler(ahead=ahead, prompts=prompts, sample=sample, pool=pool)
