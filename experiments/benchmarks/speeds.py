"""The speed of runs as commands train them, read from what they log."""

import contextlib
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from kullback.core import replayed
from kullback.experiments.benchmarks import commands, peer
from kullback.experiments.runs import run_folder

T = TypeVar("T")


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
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        out, started = pathlib.Path(folder) / "run", list[subprocess.Popen[str]]()
        for more in processes:
            process = subprocess.Popen(
                [commands.path(), "train", *arguments, *more, "--out", str(out)],
                env=variables,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(stack.enter_context(process))
            stack.callback(process.kill)  # Before the wait of its own exit.
        for process in started:
            said = process.communicate()[1].strip().splitlines() or ["no message"]
            if process.returncode:
                called = " ".join(["kullback train", *arguments])
                raise peer.PeerError(f"{called} ended with {process.returncode}: {said[-1]}")
        return read(out)


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
