"""Workers that answer what a run asks for: hired, lost, and replaced.

A worker is a thread, a process or a machine. One that is lost gives no answer, and another is asked
in its place; what that means for the run is its caller's matter (crews.py, sampling_ahead.py).
"""

import collections
import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

LOSSES, LOSS_SECONDS = 5, 60.0  # So many lost workers within so long a time end a run.
LATE_SECONDS = 60.0  # Who lets the learner wait for longer is named, once an answer.


class Lost(Exception):
    """A worker is gone, or so many of them that the run cannot go on; the message says who."""


class Worker(Protocol):
    """Answers, here or elsewhere; one thread at a time calls it."""

    @property
    def name(self) -> str:
        """Who it is and where, for messages."""
        ...

    def act(self, ask: Any, version: Any) -> Any:
        """Returns the answer, by what `Workers.publish` returned.

        Raises:
          Lost: if the worker is gone, with all that it had.
        """
        ...

    def close(self) -> None:
        """Frees what it has, such as a process."""
        ...


class Workers(NamedTuple):
    """The workers of a run: threads, processes, or machines."""

    number: int
    hire: Callable[[int], Worker]  # Number of the worker -> a new one, in place of a lost one too.
    publish: Callable[[int, Any], Any]  # (version, its parameters) -> what `Worker.act` takes.


@dataclasses.dataclass(kw_only=True)
class Losses:
    """The times at which workers of a run were lost, whichever thread saw it."""

    times: collections.deque[float] = dataclasses.field(
        default_factory=lambda: collections.deque(maxlen=LOSSES)
    )
    lock: Any = dataclasses.field(default_factory=threading.Lock)

    def count(self, cause: str) -> None:
        """Counts one.

        Raises:
          Lost: if it is one too many within LOSS_SECONDS.
        """
        with self.lock:
            self.times.append(time.monotonic())
            if len(self.times) == LOSSES and self.times[-1] - self.times[0] < LOSS_SECONDS:
                raise Lost(f"{LOSSES} workers were lost within a minute, the last: {cause}")


@dataclasses.dataclass(kw_only=True)
class Post:
    """The place of a worker, which another takes if it is lost; one thread at a time asks it."""

    number: int
    hire: Callable[[int], Worker]
    losses: Losses
    worker: Worker | None = None

    @property
    def name(self) -> str:
        """Who is here, for messages."""
        worker = self.worker
        return f"worker {self.number}, which begins," if worker is None else worker.name

    def act(self, ask: Callable[[], Any], version: Any, on_lost: Callable[[str], None]) -> Any:
        """Returns the answer of the worker, or of the first in its place that is not lost.

        Args:
          ask: () -> what is asked for, of each worker anew.
          version: as `Workers.publish` returned it.
          on_lost: is told why a worker is lost, before another is asked.

        Raises:
          Lost: if too many are.
        """
        losses = 0
        while True:
            try:
                if self.worker is None:
                    self.worker = self.hire(self.number)
                return self.worker.act(ask(), version)
            except Lost as error:
                self.close()
                on_lost(str(error))
                self.losses.count(str(error))
                losses += 1
                if losses == LOSSES:  # However long each of them took to begin.
                    raise Lost(
                        f"{LOSSES} workers were lost over the same chunk, the last: {error}"
                    ) from error

    def close(self) -> None:
        """Ends the worker."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None


def awaited(
    answer: concurrent.futures.Future[Any], who: Callable[[], str], on_late: Callable[[str], None]
) -> Any:
    """Returns an answer, and says once if it comes late.

    Args:
      answer: that a thread gets.
      who: () -> the worker that is asked, and what for.
      on_late: is told who it is if it takes LATE_SECONDS.
    """
    if concurrent.futures.wait([answer], LATE_SECONDS).not_done:
        on_late(f"{who()} wait for {LATE_SECONDS:.0f} seconds")
    return answer.result()
