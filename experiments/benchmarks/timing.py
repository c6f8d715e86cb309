"""Rates on a machine that others use too: short windows, sides in turn, the best of each."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

from kullback.core import loops

Side = Callable[[], Mapping[str, float]]  # Measures rates, by name.
WINDOW_SECONDS = 0.5  # Disturbances last longer; the best window is the least disturbed.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How much time to spend."""

    seconds: float = 5.0  # For one measurement.
    rounds: int = 2  # Measurements of each side.

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"seconds must be > 0, got {self.seconds}")
        if self.rounds < 1:
            raise ValueError(f"rounds must be >= 1, got {self.rounds}")


def best_rate(work: Callable[[], float], seconds: float) -> float:
    """Measures the amount of work a second, in the best window out of `seconds`.

    Args:
      work: does some, waits until it is done, and returns how much it was.
      seconds: how long to measure; one call of `work` is the least.
    """
    window, best = min(WINDOW_SECONDS, seconds), 0.0
    start = end = time.perf_counter()
    while end - start < seconds:
        window_start, done = end, 0.0
        while end - window_start < window:
            done += work()
            end = time.perf_counter()
        best = max(best, done / (end - window_start))
    return best


def rates(work: Mapping[str, Callable[[], float]], seconds: float) -> Side:
    """Makes a measurement of `best_rate` of several kinds of work, by name."""
    return lambda: {name: best_rate(do, seconds) for name, do in work.items()}


def advancing(loop: loops.Loop, until: int, warm_up: int = 1) -> Callable[[], float]:
    """Makes a function that advances a loop once and returns the steps that it did, of each seed.

    Args:
      loop: of games or of sequences.
      until: steps after those that are done, for which the loop is asked; it may do fewer.
      warm_up: steps that are done first, at least.
    """
    state = loop.init()

    def work() -> float:
        nonlocal state
        before = loop.steps(state)
        state = loop.advance(state, before + until)
        return loop.steps(state) - before

    while loop.steps(state) < warm_up:
        work()
    return work


def interleave(sides: Sequence[Side], rounds: int) -> dict[str, float]:
    """Measures all sides in turn, `rounds` times; returns the best of each rate, by name."""
    best: dict[str, float] = {}
    for _ in range(rounds):
        for side in sides:
            for name, rate in side().items():
                best[name] = max(rate, best.get(name, rate))
    return best
