"""A worker that acts shards in a process of its own, on a CPU of this machine.

The process that learns sends what to act, one chunk at a time, and gets arrays. Both speak by
pickles over a socket that no third process has. The worker ends when the other end is closed,
however that went.
"""

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

import numpy as np

from kullback.core import acting, crews

SECONDS = 600.0  # A chunk that takes longer is that of a worker that is lost.
_MODULE = "kullback.core.actor_process"
_END_SECONDS = 5.0  # For a worker to end once it is told to.

# Makes the acting of a worker and its shards; it must be picklable, so a function of a module.
Recipe = Callable[[], acting.Local]


def published(version: int, leaves: list[Any]) -> tuple[int, list[np.ndarray]]:
    """Returns a version of the parameters as numbers that other processes take.

    Raises:
      ValueError: if acting reads a random key, which is no number.
    """
    return version, [_numbers(leaf) for leaf in leaves]


def _numbers(leaf: Any) -> np.ndarray:
    try:
        return np.asarray(leaf)
    except TypeError as error:
        raise ValueError(
            "this agent acts by a random key of its learner, so it acts in the process that learns"
        ) from error


class Remote:
    """A worker's process, as the thread that speaks with it sees it."""

    def __init__(self, number: int, recipe: Recipe):
        """Starts the process.

        Raises:
          ValueError: if the recipe names a function that no other process can import.
        """
        try:
            given = pickle.dumps((sys.path, pickle.dumps(recipe)))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                "workers in other processes import agent and environment: hand over functions of a "
                f"module, not of a function or a notebook ({error})"
            ) from error
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                start_new_session=True,  # Ctrl-C is for the process that learns.
            )
        self._number, self._version = number, -1
        self._link = connection.Connection(ours.detach())
        with contextlib.suppress(OSError):  # It is lost, as `act` will find.
            self._link.send_bytes(given)

    def act(self, ask: acting.Ask, version: tuple[int, list[np.ndarray]]) -> list[acting.Tick]:
        """Acts a chunk, see `crews.Worker`.

        Raises:
          ValueError: for an error of the environment or the agent.
        """
        count, leaves = version
        try:
            self._link.send((ask, None if count == self._version else leaves))
            self._version = count
            if not self._link.poll(SECONDS):
                raise crews.Lost(f"{self._name} gave no chunk for {SECONDS:.0f} seconds")
            kind, said = self._link.recv()
        except (EOFError, OSError) as error:
            raise crews.Lost(f"{self._name} {self._end()}") from error
        if kind == "failed":
            raise ValueError(said)
        return acting.unpacked(said)

    @property
    def _name(self) -> str:
        return f"worker {self._number} ({socket.gethostname()}, pid {self._process.pid})"

    def _end(self) -> str:
        """Returns how the process ended, which it is about to do at least."""
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return "answers no more"
        if status < 0:
            return f"was ended by {signal.Signals(-status).name}"
        return f"ended with status {status}"

    def close(self) -> None:
        """Ends the process."""
        self._link.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def workers(count: int, recipe: Recipe) -> crews.Workers:
    """Returns workers that are processes of this machine."""
    return crews.Workers(count, lambda number: Remote(number, recipe), published)


def main(descriptor: int) -> int:
    """Acts what the other end of a socket asks for, until that is closed."""
    link = connection.Connection(descriptor)
    local, leaves = None, None
    with contextlib.suppress(EOFError, OSError):  # The other end is closed.
        given = link.recv_bytes()
        while True:
            ask, newer = link.recv()
            leaves = newer or leaves
            try:
                if local is None:
                    local = _local(given)
                assert leaves is not None
                said = "done", acting.packed(local.spec, local.act(ask, leaves))
            except Exception as error:
                said = "failed", _described(error)
            link.send(said)
    if local is not None:
        local.close()
    return 0


def _local(given: bytes) -> acting.Local:
    """Returns the acting that the recipe of the process that learns makes."""
    path, recipe = pickle.loads(given)
    sys.path[:] = path
    return pickle.loads(recipe)()


def _described(error: Exception) -> str:
    """Returns an error of the environment as a line, and any other with its trace."""
    if isinstance(error, ValueError):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
