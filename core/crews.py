"""Who acts for a run on the host: shards of its rows, and the workers that act them.

Which parameters act which rows, and with which keys, is fixed by the plan (chunks.py): any number
of workers, threads or processes or machines, gives the same bits.

A worker that is lost takes the state of its emulators along: another begins them anew, and the
episodes that ran are cut, in its shards alone. A run is a function of its seed and of where that
happened, which is written down.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import acting, chunks, posts, types


class Restart(NamedTuple):
    """Emulators of a shard that began anew before a chunk; JSON-able."""

    shard: int
    steps: int  # Agent steps of the run before the chunk.
    cause: str


class Chunk(NamedTuple):
    """A chunk of all rows, in the order of shards."""

    ticks: list[acting.Tick]
    cut: np.ndarray | None  # bool, [B]: rows that began anew before it; None if none did.
    seconds: float  # How long the learner waited for it.


class Crew(Protocol):
    """All who act for a run, as its loop sees them."""

    def begin(self, env_steps: int, key: types.Key) -> None:
        """Begins all emulators anew with the next chunk, and versions and chunks at 0."""
        ...

    def publish(self, learner: types.LearnerState) -> None:
        """Hands out the next version of the parameters, and asks for chunks that it acts."""
        ...

    def take(self, prepare: Callable[[], None], meanwhile: Callable[[], None]) -> Chunk:
        """Returns the next chunk; calls both functions once, in order, while it may be acted."""
        ...

    def close(self) -> None:
        """Ends threads and workers."""
        ...


@dataclasses.dataclass(kw_only=True)
class Alone:
    """One shard that this thread acts, while its emulators' threads and the device work."""

    plan: chunks.Schedule  # Of one shard, without a lag: nothing can be acted ahead.
    seed: int
    program: acting.Program
    local: acting.Local
    stride: int  # B.
    keys: list[np.ndarray] = dataclasses.field(default_factory=list)
    begun: int = 0  # Agent steps when the emulators began.
    chunk: int = 0  # The next.
    leaves: list[Any] = dataclasses.field(default_factory=list)

    def begin(self, env_steps: int, key: types.Key) -> None:
        """Begins anew, see `Crew`."""
        self.keys, self.begun, self.chunk = chunks.keys(self.plan, key), env_steps, 0

    def publish(self, learner: types.LearnerState) -> None:
        """Keeps a reference: the next chunk is acted before a learner step frees the arrays."""
        self.leaves = acting.read(self.program, learner)

    def take(self, prepare: Callable[[], None], meanwhile: Callable[[], None]) -> Chunk:
        """Acts the next chunk, see `Crew`."""
        (ask,) = chunks.asks(self.plan, self.stride, self.begun, self.keys, self.chunk)
        if self.chunk == 0:
            ask = ask._replace(seed=chunks.emulator_seed(self.seed, 1, 0, self.begun))
        self.chunk += 1
        return Chunk(self.local.act(ask, self.leaves, prepare, meanwhile), None, 0.0)

    def close(self) -> None:
        """Closes nothing: the environment is the caller's."""


@dataclasses.dataclass(kw_only=True)
class _Place:
    """A post, the thread that speaks with its worker, and which of its shards begin anew."""

    post: posts.Post
    seed_of: Callable[[acting.Ask], int]
    pool: concurrent.futures.ThreadPoolExecutor
    shards: Sequence[int]  # Worker n has the shards n, n + number of workers, ..
    # By shard, why its emulators begin anew with its next chunk: "" where a run begins or goes on.
    anew: dict[int, str] = dataclasses.field(default_factory=dict)

    def begin(self) -> None:
        """Begins all shards anew; no chunk is under way."""
        self.anew = dict.fromkeys(self.shards, "")

    def act(self, ask: acting.Ask, version: Any) -> tuple[list[acting.Tick], str]:
        """Acts a chunk, by another worker if one is lost; returns why emulators began anew, too.

        Raises:
          posts.Lost: if too many are.
        """

        def begins() -> acting.Ask:
            is_anew = ask.shard in self.anew
            return ask._replace(seed=self.seed_of(ask) if is_anew else None)

        def lost(cause: str) -> None:
            for shard in self.shards:  # One that has not begun since has lost nothing more.
                self.anew.setdefault(shard, cause)

        ticks = acting.opened(self.post.act(begins, version, lost))
        return ticks, self.anew.pop(ask.shard, "")

    def close(self) -> None:
        """Ends worker and thread."""
        self.pool.shutdown(cancel_futures=True)
        self.post.close()


@dataclasses.dataclass(kw_only=True)
class Many:
    """Shards that workers act, each of which has a thread of this process."""

    plan: chunks.Schedule
    spec: types.Spec
    program: acting.Program
    workers: posts.Workers
    stride: int  # B.
    places: list[_Place]
    on_restart: Callable[[Restart], None]
    on_late: Callable[[str], None]
    keys: list[np.ndarray] = dataclasses.field(default_factory=list)
    begun: int = 0
    version: int = -1  # The newest.
    # Results of the chunks that are asked for and not yet taken, in order, of each shard.
    flights: collections.deque[list[concurrent.futures.Future[Any]]] = dataclasses.field(
        default_factory=collections.deque
    )
    taken: int = 0  # Chunks.

    def begin(self, env_steps: int, key: types.Key) -> None:
        """Begins anew, see `Crew`; what is under way is thrown away."""
        self._drop()
        self.keys, self.begun = chunks.keys(self.plan, key), env_steps
        self.version, self.taken = -1, 0
        for place in self.places:
            place.begin()

    def publish(self, learner: types.LearnerState) -> None:
        """Hands out the next version, see `Crew`."""
        self.version += 1
        version = self.workers.publish(self.version, acting.read(self.program, learner))
        while self.plan.version(chunk := self.taken + len(self.flights)) <= self.version:
            asks = chunks.asks(self.plan, self.stride, self.begun, self.keys, chunk)
            places = [self.places[ask.shard % len(self.places)] for ask in asks]
            self.flights.append(
                [
                    place.pool.submit(place.act, ask, version)
                    for place, ask in zip(places, asks, strict=True)
                ]
            )

    def take(self, prepare: Callable[[], None], meanwhile: Callable[[], None]) -> Chunk:
        """Returns the next chunk, see `Crew`."""
        prepare()
        meanwhile()
        begun = time.perf_counter()
        results = [self._awaited(*flight) for flight in enumerate(self.flights[0])]
        seconds = time.perf_counter() - begun
        self.flights.popleft()
        steps = self.begun + self.plan.ticks_before(self.taken) * self.stride
        self.taken += 1
        causes = [cause for _, cause in results]
        for shard, cause in enumerate(causes):
            if cause:
                self.on_restart(Restart(shard, steps, cause))
        rows = self.stride // self.plan.shards
        cut = np.repeat(np.array([cause != "" for cause in causes]), rows)
        ticks = [_joined(self.spec, x) for x in zip(*(ticks for ticks, _ in results), strict=True)]
        return Chunk(ticks, cut if cut.any() else None, seconds)

    def _awaited(
        self, shard: int, flight: concurrent.futures.Future[Any]
    ) -> tuple[list[acting.Tick], str]:
        """Returns what a worker acted of a shard, and says once who is late."""
        post = self.places[shard % len(self.places)].post
        return posts.awaited(flight, lambda: f"{post.name} has let shard {shard}", self.on_late)

    def _drop(self) -> None:
        """Throws away what was asked for, once each thread has done what it is at."""
        for flight in self.flights:
            for future in flight:
                future.cancel()
        for flight in self.flights:
            concurrent.futures.wait(flight)
        self.flights.clear()

    def close(self) -> None:
        """Ends threads and workers."""
        self._drop()
        for place in self.places:
            place.close()


def _joined(spec: types.Spec, parts: Sequence[acting.Tick]) -> acting.Tick:
    """Returns a tick of all rows, with the newest frames of stacks."""
    if len(parts) == 1:
        return parts[0]
    join: Callable[[Sequence[Any]], np.ndarray] = np.concatenate
    steps = [part.timestep for part in parts]
    timestep = types.TimeStep(
        step_type=join([step.step_type for step in steps]),
        reward=join([step.reward for step in steps]),
        discount=join([step.discount for step in steps]),
        observation=join([acting.newest(spec, step.observation) for step in steps]),
        next_observation=join([acting.newest(spec, step.next_observation) for step in steps]),
    )
    observation = join([acting.newest(spec, part.observation) for part in parts])
    return acting.Tick(observation, join([part.action for part in parts]), timestep)


def alone(
    plan: chunks.Schedule, acts: acting.Program, environment: types.HostEnvironment, seed: int
) -> Alone:
    """Returns the crew of a run of one shard without a lag: the thread that learns.

    Raises:
      ValueError: for another plan.
    """
    if plan.shards > 1 or plan.lag:
        raise ValueError(
            f"shards={plan.shards} and lag={plan.lag} need workers; one thread acts one shard "
            "without a lag"
        )
    local = acting.Local(program=acts, spec=environment.spec, make=lambda: environment)
    return Alone(plan=plan, seed=seed, program=acts, local=local, stride=environment.num_envs)


def check(workers: int, plan: chunks.Schedule) -> None:
    """Raises ValueError for a number of workers that a run's shards have no work for."""
    if not 1 <= workers <= plan.shards:
        raise ValueError(
            f"workers={workers} must lie in [1, {plan.shards}], the number of shards: a "
            f"shard is acted by one worker; a new run may set shards={workers}"
        )


def many(
    plan: chunks.Schedule,
    acts: acting.Program,
    workers: posts.Workers,
    spec: types.Spec,
    num_envs: int,
    seed: int,
    on_restart: Callable[[Restart], None],
    on_late: Callable[[str], None],
) -> Many:
    """Returns the crew of a run whose shards workers act.

    Args:
      plan: of the run.
      acts: the acting of its agent.
      workers: who acts.
      spec: of the environment.
      num_envs: B.
      seed: of the run.
      on_restart: is told of emulators that began anew, as their chunk is taken.
      on_late: is told who lets the learner wait for `posts.LATE_SECONDS`.

    Raises:
      ValueError: for more workers than shards.
    """
    check(workers.number, plan)
    losses = posts.Losses()

    def seed_of(ask: acting.Ask) -> int:
        return chunks.emulator_seed(seed, plan.shards, ask.shard, ask.env_steps)

    places = [
        _Place(
            post=posts.Post(number=number, hire=workers.hire, losses=losses),
            seed_of=seed_of,
            pool=concurrent.futures.ThreadPoolExecutor(1, f"actor-{number}"),
            shards=range(number, plan.shards, workers.number),
        )
        for number in range(workers.number)
    ]
    return Many(
        plan=plan,
        spec=spec,
        program=acts,
        workers=workers,
        stride=num_envs,
        places=places,
        on_restart=on_restart,
        on_late=on_late,
    )


def threads(
    count: int, acts: acting.Program, spec: types.Spec, make: Callable[[], types.HostEnvironment]
) -> posts.Workers:
    """Returns workers that are threads of this process.

    Args:
      count: of the workers.
      acts: the acting of the agent.
      spec: of the environment.
      make: makes the environment of a shard, b rows.
    """
    # Copies: learner steps free the arrays of the state that they are given.
    copied = jax.jit(functools.partial(jax.tree.map, jnp.copy))
    return posts.Workers(
        count,
        lambda number: acting.Local(program=acts, spec=spec, make=make, name=f"thread {number}"),
        lambda version, leaves: copied(leaves),
    )
