"""Runs on the host that workers act, for tests: with workers who are lost, to the last bit."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kullback.core import acting, crews, host, loops, posts, replayed, trees
from tests import on_host

SEED, ROWS, STEPS = 3, 4, 64
SHARDED: dict[str, Any] = {"shards": 4, "lag": 1}


Places = list[tuple[int, int]]  # Chunks, by shard and agent steps before.


class Lossy:
    """A worker that is lost before it acts some chunks, each once."""

    def __init__(self, worker: posts.Worker, lost: Places, lose: Callable[..., None]):
        self.worker, self._lost, self._lose = worker, lost, lose

    def act(self, ask: acting.Ask, version: Any) -> list[acting.Tick]:
        if (ask.shard, ask.env_steps) in self._lost:
            self._lost.remove((ask.shard, ask.env_steps))
            self._lose(self.worker)
        return self.worker.act(ask, version)

    @property
    def name(self) -> str:
        return self.worker.name

    def close(self) -> None:
        self.worker.close()


def gone(worker: posts.Worker) -> None:
    raise posts.Lost("it is gone")


def threads(count: int, rows: int = ROWS, **more: Any) -> Any:
    """Returns what `host.make` takes of threads."""
    return lambda program: crews.threads(
        count, program, on_host.SPEC, lambda: on_host.recipe(rows, **more).make()
    )


def losing(workers: Any, lost: Places, lose: Callable[..., None]) -> Any:
    """Returns workers who are lost before they act chunks of (shard, agent steps)."""
    left = [*lost]

    def of(program: acting.Program) -> posts.Workers:
        given = workers(program)
        return given._replace(hire=lambda number: Lossy(given.hire(number), left, lose))

    return of


@contextlib.contextmanager
def making(
    workers: Any = None,
    on_restart: Callable[..., None] = print,
    on_late: Callable[[str], None] = print,
    **changes: Any,
) -> Iterator[loops.Loop]:
    """Makes the loop of an agent with some settings of the replay."""
    agent, environment = on_host.agent(**changes), on_host.Walk(ROWS)
    told = {"on_restart": on_restart, "on_late": on_late}
    loop = host.make(agent, environment, SEED, workers=workers, **told)
    try:
        yield loop
    finally:
        loop.close()


def run(loop: loops.Loop, state: Any, until: int = STEPS) -> Any:
    while state.env_steps < until:
        state = loop.advance(state, until)
    return state


def done(**more: Any) -> host.RunState:
    with making(**more) as loop:
        return run(loop, loop.init())


def digest(state: host.RunState) -> str:
    """Returns a hash of all that a run computed, but for seconds."""
    learner = {k: x for k, x in state.metrics.learner.items() if k != replayed.WAITED}
    sums = state.metrics._replace(learner=learner)
    return trees.fingerprint(state._replace(metrics=sums, env_steps=np.int64(state.env_steps)))
