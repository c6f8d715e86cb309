"""Noticing that another process of a run has ended, and saying which and why.

A collective with a process that is gone fails, or waits for ever; and JAX aborts a process that
has lost its coordinator. In each case the process ends with status 1 and one line.
"""

import contextlib
import ctypes
import dataclasses
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax

# Without a sign of life for so long a process counts as gone. One that was killed is known of at
# the next step, as its connections break; this is for machines and networks that are cut off.
HEARTBEAT_SECONDS = 15
_LOOK_SECONDS = 0.5  # Between two looks at who is there.
_GRACE_SECONDS = 20.0  # In which a process may end by itself once another is gone.
_HEARD_SECONDS = 10.0  # In which the others hear why the first one ends.
_END_SECONDS = 60.0  # For the others to leave, once all is done.
_LONG = 2**31 - 1  # Milliseconds.
_LEFT = "kullback/left"


@dataclasses.dataclass(kw_only=True)
class Watch:
    """A thread that looks for processes that are gone, and what is said of them."""

    client: Any  # Of the coordination service, which process 0 has.
    coordinator: str  # Its address.
    index: int  # Of this process.
    who: list[str]  # By process: its machine and process id.
    going_on: str = ""  # A command, for the message.
    verdict: str = ""  # Who is gone, once known.
    answered: float = 0.0  # When the service last answered, by the monotonic clock.
    # Set once the main thread ends this process by itself.
    is_ending: threading.Event = dataclasses.field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def begin(self) -> None:
        """Starts the thread."""
        self.answered = time.monotonic()
        on_abort(self._last_words)
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def named(self, index: int) -> str:
        """Returns a process by its number, machine and id."""
        return f"process {index} ({self.who[index]})"

    def await_verdict(self) -> str:
        """Returns who is gone, once that is known; "" if nobody is. The watch is over then."""
        deadline = time.monotonic() + HEARTBEAT_SECONDS + 5
        while not self.verdict and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS / 5)
        self._end()
        return self.verdict

    def leave(self, how: str) -> None:
        """Tells the others how this process ends; the first waits until they have heard it."""
        self._end()
        with contextlib.suppress(RuntimeError):
            self.client.key_value_set(f"{_LEFT}/{self.index}", " ".join(how.split()))
            if self.index == 0:
                self._await_others(_HEARD_SECONDS)

    def finish(self) -> None:
        """Departs when all is done: the first process last, as the service ends with it."""
        self.client.wait_at_barrier("kullback/end", _LONG)
        self._end()
        if self.index == 0:
            self._await_others(_END_SECONDS)
        jax.distributed.shutdown()

    def _end(self) -> None:
        """Stops the thread: one that calls the service as Python ends would abort the process."""
        self.is_ending.set()
        if self.thread is not None:
            self.thread.join(HEARTBEAT_SECONDS)

    def _gone(self, index: int, how: str) -> str:
        again = f"; start all {len(self.who)} processes again with: {self.going_on}"
        return f"{self.named(index)} {how}{again if self.going_on else ''}"

    def _there(self) -> set[int]:
        return {*self.client.get_live_nodes([*range(len(self.who))])}

    def _look(self) -> None:
        """Looks until somebody is gone or the run is over; then ends this process, in time.

        The main thread may wait for a process that will never answer, so that it cannot do so.
        """
        while not self.verdict:
            if self.is_ending.wait(_LOOK_SECONDS):
                return
            try:
                left = dict(self.client.key_value_dir_get(_LEFT))
                there = self._there()
                self.answered = time.monotonic()
            except RuntimeError:  # The service is gone: JAX aborts this process, see `_last_words`.
                continue
            for index in {*range(len(self.who))} - {self.index}:
                how = left.get(f"{_LEFT}/{index}")
                if how is not None or index not in there:
                    self.verdict = self.verdict or self._gone(index, how or "is gone")
        if not self.is_ending.wait(_GRACE_SECONDS):
            _end_now(self.verdict)

    def _await_others(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._there() > {self.index} and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS / 5)

    def _last_words(self) -> str:
        """Returns why this process is aborted: the coordinator is gone, or something else."""
        host, _, port = self.coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=3).close()
        except OSError:
            return self.verdict or self._gone(0, "is gone")
        if self.index > 0 and time.monotonic() - self.answered > HEARTBEAT_SECONDS / 2:
            return self.verdict or self._gone(0, "answers no more")
        return "this process was aborted, see the lines above"


def is_of_communication(error: BaseException) -> bool:
    """Returns whether an error says that another process did not answer."""
    signs = ("Gloo", "NCCL", "UNAVAILABLE", "coordination service")
    is_of_jax = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
    return is_of_jax and any(sign in str(error) for sign in signs)


def on_abort(message: Callable[[], str]) -> None:
    """Ends this process with a message where a library would abort it, from whatever thread.

    JAX does if processes do not meet, and if the coordinator is gone; its own callback for that
    fails (std::bad_cast, jaxlib 0.10).
    """

    def handle(number: int) -> None:
        del number
        _end_now(message())

    _handlers.append(ctypes.CFUNCTYPE(None, ctypes.c_int)(handle))
    ctypes.CDLL(None).signal(signal.SIGABRT, _handlers[-1])


_handlers: list[Any] = []  # Which C calls, so that they must not be freed.


def _end_now(message: str) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, f"kullback: {message}\n".encode())
    os._exit(1)
