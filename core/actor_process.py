"""A worker that acts in a process of its own, on a CPU of this machine.

The process that learns sends what to act, one piece at a time, and gets arrays. Both speak by
pickles over a socket that no third process has. The worker ends when the other end is closed,
however that went.
"""

import contextlib
import itertools
import os
import signal
import socket
import struct
import subprocess
import sys
from multiprocessing import connection
from typing import Any

import numpy as np

from kullback.core import acting_elsewhere, posts

_MODULE = "kullback.core.actor_process"
_END_SECONDS = 5.0  # For a worker to end once it is told to.


class Remote:
    """A worker's process, as the thread that speaks with it sees it."""

    def __init__(self, number: int, recipe: acting_elsewhere.Recipe):
        """Starts the process.

        Raises:
          ValueError: if the recipe names a function that no other process can import.
        """
        given = acting_elsewhere.pickled(recipe)
        ours, theirs = socket.socketpair()
        limit = struct.pack("ll", int(acting_elsewhere.SECONDS), 0)
        for way in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):  # A worker that hangs reads nothing.
            ours.setsockopt(socket.SOL_SOCKET, way, limit)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                start_new_session=True,  # Ctrl-C is for the process that learns.
            )
        self.name = f"worker {number} ({socket.gethostname()}, pid {self._process.pid})"
        self._version = -1
        self._link = connection.Connection(ours.detach())
        with contextlib.suppress(OSError):  # It is lost, as `act` will find.
            self._link.send_bytes(given)

    def act(self, ask: Any, version: tuple[int, list[np.ndarray]]) -> Any:
        """Returns the answer, see `posts.Worker`.

        Raises:
          ValueError: for an error of the environment or the agent.
        """
        count, leaves = version
        try:
            self._link.send((ask, None if count == self._version else leaves))
            self._version = count
            if not self._link.poll(acting_elsewhere.SECONDS):
                raise TimeoutError
            said = self._link.recv()
        except (TimeoutError, BlockingIOError) as error:
            raise posts.Lost(acting_elsewhere.late(self.name)) from error
        except (EOFError, OSError) as error:
            raise posts.Lost(f"{self.name} {self._end()}") from error
        return acting_elsewhere.answered(said)

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


def workers(count: int, recipe: acting_elsewhere.Recipe) -> posts.Workers:
    """Returns workers that are processes of this machine."""
    # Versions are counted anew where a run goes back to another state, and these never.
    counts = itertools.count()
    return posts.Workers(
        count,
        lambda number: Remote(number, recipe),
        lambda version, leaves: (next(counts), acting_elsewhere.numbers(leaves)),
    )


def main(descriptor: int) -> int:
    """Acts what the other end of a socket asks for, until that is closed."""
    link = connection.Connection(descriptor)
    leaves = None
    with (
        contextlib.suppress(EOFError, OSError),  # The other end is closed.
        contextlib.closing(acting_elsewhere.Host(given=link.recv_bytes())) as host,
    ):
        while True:
            ask, newer = link.recv()
            leaves = newer or leaves
            assert leaves is not None
            link.send(host.act(ask, leaves))
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
