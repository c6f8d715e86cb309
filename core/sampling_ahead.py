"""Rows that the policy samples beside learning: by parameters some steps old, by workers.

The rows of learner step n are made by the parameters of step max(n - D, 0), D the lag. So those of
the next D steps can be made while this one is learnt from. Where parameters begin anew from others
every T steps, a step has no rows of those before: the first D of each such period are made by the
parameters that it begins with. Which parameters make a row, and by which key, is a function of the
step and of the row's shard, never of a clock: any number of workers, threads or processes or
machines (posts.py), gives the same bits, and rows that a kill has lost are made again.
"""

import concurrent.futures
import dataclasses
import queue
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import posts, types


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


class Parts(NamedTuple):
    """Sampling in three parts, of which the second reads parameters, and may be done elsewhere."""

    arrays: Callable[[Sequence[Any]], Any]  # Prompts -> what is sampled from, NumPy.
    # (acting params, those arrays, key) -> what is sampled, NumPy; called on several threads.
    write: Callable[[Any, Any, types.Key], Any]
    # (those arrays, what was sampled) -> rows, those of a prompt adjacent.
    rows: Callable[[Any, Any], Any]
    # Acting params -> what `write` reads of them, which alone goes out to workers.
    reads: Callable[[Any], Any] = lambda acting: acting


class Ask(NamedTuple):
    """A shard of a step, as a worker is asked for it."""

    arrays: Any  # See `Parts`.
    key: np.ndarray  # Key data.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thread:
    """A worker that is a thread of this process."""

    name: str
    write: Callable[[Any, Any, types.Key], Any]  # See `Parts`.

    def act(self, ask: Ask, version: Any) -> Any:
        """Samples a shard by acting parameters."""
        return self.write(version, ask.arrays, jax.random.wrap_key_data(jnp.asarray(ask.key)))

    def close(self) -> None:
        """Frees nothing."""


class Taken(NamedTuple):
    """The rows of a step."""

    rows: Any  # NumPy, in the order of the prompts.
    prompts: Sequence[Any]
    seconds: float  # How long the caller waited for them.


@dataclasses.dataclass(kw_only=True)
class Sampler:
    """Workers that sample the rows of coming steps, each of which has a thread of this process."""

    ahead: Ahead
    # Of a step; the shards divide their number. None are no rows.
    prompts: Callable[[int], Sequence[Any]]
    parts: Parts
    workers: posts.Workers
    tell: Callable[[str], None]  # Who was lost, or is late.
    pool: concurrent.futures.ThreadPoolExecutor
    places: list[posts.Post]
    idle: queue.SimpleQueue[posts.Post]  # Those that nobody asks.
    flights: dict[int, list[concurrent.futures.Future[Any]]] = dataclasses.field(
        default_factory=dict
    )
    # Who was asked for a shard last, by step and shard.
    busy: dict[tuple[int, int], posts.Post] = dataclasses.field(default_factory=dict)
    # The learner step of the newest parameters that were handed out, and how workers take them.
    published: tuple[int, Any] | None = None

    def begin(self, step: int, acting: Callable[[], Any], key: types.Key) -> None:
        """Begins to sample the rows of a step, unless that has been done.

        Args:
          step: of the learner.
          acting: () -> the parameters that act; nothing changes or frees them meanwhile. They are
            asked for once for all steps in turn that have the same version.
          key: of sampling.
        """
        prompts = self.prompts(step)
        if step in self.flights or not prompts:
            return
        count = self.ahead.shards
        if len(prompts) % count:
            raise ValueError(f"shards={count} must divide the {len(prompts)} prompts of a step")
        version, size = self._version(step, acting), len(prompts) // count
        of_step = jax.random.fold_in(key, step)
        self.flights[step] = [
            self.pool.submit(
                self._sampled,
                (step, n),
                prompts[n * size : (n + 1) * size],
                np.asarray(jax.random.key_data(jax.random.fold_in(of_step, n))),
                version,
            )
            for n in range(count)
        ]

    def _version(self, step: int, acting: Callable[[], Any]) -> Any:
        """Returns the parameters of a step as workers take them; each goes out once."""
        number = self.ahead.version(step)
        if self.published is None or self.published[0] != number:
            acts = self.parts.reads(acting())
            self.published = number, self.workers.publish(number, acts)
        return self.published[1]

    def _sampled(
        self, place: tuple[int, int], prompts: Sequence[Any], key: np.ndarray, version: Any
    ) -> Any:
        """Returns the rows of a place, a step and a shard; whichever worker is idle samples."""
        arrays, causes = self.parts.arrays(prompts), list[str]()
        self.busy[place] = post = self.idle.get()
        try:
            sampled = post.act(lambda: Ask(arrays, key), version, causes.append)
        finally:
            self.idle.put(post)
        for cause in causes:
            self.tell(f"{cause}: what it was to sample was sampled again, the same")
        return self.parts.rows(arrays, sampled)

    def take(self, step: int) -> Taken:
        """Returns the rows of a step that was begun, once they are there.

        Raises:
          posts.Lost: if too many workers are lost.
          Exception: what sampling raised.
        """
        begun = time.perf_counter()
        parts = [self._awaited((step, n), x) for n, x in enumerate(self.flights[step])]
        seconds = time.perf_counter() - begun
        del self.flights[step]
        rows = jax.tree.map(lambda *x: np.concatenate([*map(np.asarray, x)]), *parts)
        return Taken(rows, self.prompts(step), seconds)

    def _awaited(self, place: tuple[int, int], flight: concurrent.futures.Future[Any]) -> Any:
        """Returns the rows of a place, and says once who is late."""

        def who() -> str:
            post = self.busy.get(place)
            name = "what waits for a worker" if post is None else post.name
            return f"{name} has let shard {place[1]} of step {place[0]:,}"

        rows = posts.awaited(flight, who, self.tell)
        del self.busy[place]
        return rows

    def forget(self) -> None:
        """Drops rows that were begun, as of another state of the run."""
        for flights in self.flights.values():
            for flight in flights:
                flight.cancel()
        self.flights.clear()
        self.published = None

    def close(self) -> None:
        """Ends threads and workers, once each has done what it is at."""
        self.forget()
        self.pool.shutdown()
        for post in self.places:
            post.close()


def threads(count: int, write: Callable[[Any, Any, types.Key], Any]) -> posts.Workers:
    """Returns workers that are threads of this process; `write` is that of `Parts`."""
    return posts.Workers(
        count,
        lambda number: Thread(name=f"thread {number}", write=write),
        lambda version, acting: acting,
    )


def check(workers: int, ahead: Ahead) -> None:
    """Raises ValueError for a number of workers that a run has no work for at a time."""
    most = ahead.shards * ahead.lag
    if not 1 <= workers <= most:
        raise ValueError(
            f"workers={workers} must lie in [1, {most}], shards={ahead.shards} of each of the next "
            f"lag={ahead.lag} steps: a shard is written by one worker; a new run may set more"
        )


def sampler(
    ahead: Ahead,
    prompts: Callable[[int], Sequence[Any]],
    parts: Parts,
    workers: posts.Workers | int | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> Sampler:
    """Returns a sampler.

    Args:
      ahead: how far ahead of learning.
      prompts: of a step; the shards divide their number.
      parts: of sampling.
      workers: who samples: so many threads, one for each shard if None, or others.
      tell: is told who was lost, or lets the learner wait for `posts.LATE_SECONDS`.
    """
    if not isinstance(workers, posts.Workers):
        workers = threads(workers or ahead.shards, parts.write)
    losses, idle = posts.Losses(), queue.SimpleQueue[posts.Post]()
    places = [
        posts.Post(number=number, hire=workers.hire, losses=losses)
        for number in range(workers.number)
    ]
    for post in places:
        idle.put(post)
    return Sampler(
        ahead=ahead,
        prompts=prompts,
        parts=parts,
        workers=workers,
        tell=tell,
        pool=concurrent.futures.ThreadPoolExecutor(workers.number, "sampler"),
        places=places,
        idle=idle,
    )
