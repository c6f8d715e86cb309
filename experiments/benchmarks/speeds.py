"""The speed of runs as commands train them, read from what they log."""

import os
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

from kullback.core import replayed
from kullback.experiments.benchmarks import commands, peer
from kullback.experiments.runs import run_folder


class _Rated(Protocol):
    @property
    def rate(self) -> float:
        """Steps a second."""
        ...


T = TypeVar("T")
Rated = TypeVar("Rated", bound=_Rated)


class Speed(NamedTuple):
    """Speed of a run between its middle and its end."""

    rate: float  # Steps a second.
    wait_seconds: float  # Of an iteration, for those that act; 0 where nobody does.


def trained(
    read: Callable[[pathlib.Path], T],
    arguments: Sequence[str],
    processes: Sequence[Sequence[str]] = ((),),
    environment: Mapping[str, str] | None = None,
) -> T:
    """Trains a run by `kullback train` in a folder that goes afterwards, and returns what is read.

    Args:
      read: of the folder.
      arguments: of all processes.
      processes: further ones of each.
      environment: further variables.

    Raises:
      PeerError: if one of them fails.
    """
    variables = {**os.environ, **(environment or {})}
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "run"
        whole = [commands.path(), "train", *arguments, "--out", str(out)]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        with commands.together(
            [[*whole, *more] for more in processes], env=variables, **quiet
        ) as run:
            for process in run:
                _, complaints = process.communicate()
                if process.returncode:
                    called = ["kullback", "train", *arguments]
                    raise peer.failed(called, process.returncode, complaints)
        return read(out)


def in_turn(measures: Mapping[str, Callable[[], Rated]], rounds: int) -> dict[str, Rated]:
    """Measures runs in turn, `rounds` times; returns the fastest of each, by name."""
    best: dict[str, Rated] = {}
    for _ in range(rounds):
        for name, measure in measures.items():
            measured = measure()
            best[name] = max(measured, best.get(name, measured), key=lambda x: x.rate)
    return best


def of_folder(path: pathlib.Path) -> Speed:
    """Returns the speed of a run."""
    return of_rows(run_folder.RunFolder(path).rows())


def of_rows(rows: Sequence[Mapping[str, str]]) -> Speed:
    """Returns the speed between the middle row of metrics.csv and the last one."""
    later = rows[len(rows) // 2 - 1 :]
    steps, seconds = (
        float(later[-1][name]) - float(later[0][name]) for name in ("steps", "wall_seconds")
    )
    waits = [float(row.get(replayed.WAITED) or 0) for row in later[1:]]
    return Speed(steps / seconds, sum(waits) / len(waits))
