"""Signals that ask a program to end: SIGINT, SIGTERM and SIGHUP, obeyed once all is saved."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP; the message says what was saved, if something was."""

    def __init__(self, message: str = "", number: int = signal.SIGINT):
        super().__init__(message)
        self.number = number

    @property
    def status(self) -> int:
        """Exit status by which a shell knows a program that its signal ended: 130, 143, 129."""
        return 128 + self.number


class Failure(Exception):
    """A failure of what a command does: a user's own code, a run, a stage of a pipeline.

    The message is one line.
    """


def as_interrupted(error: KeyboardInterrupt, message: str = "") -> Interrupted:
    """Returns the same interruption, with another message; Python's own is SIGINT's."""
    number = error.number if isinstance(error, Interrupted) else signal.SIGINT
    return Interrupted(message or str(error), number)


class Interrupts:
    """A context that keeps the first signal; a second one raises Interrupted at once.

    The first is kept in `received`, for a loop that checks it when its state can be saved. Inside
    `at_once` it raises, too, as nothing that must be kept changes there. Python runs handlers
    between two of its instructions, so that a call of a compiled program ends first.

    An exception in a handler is lost if Python happens to run code whose errors nobody can catch (a
    callback of its garbage collector). Such a signal is sent again a moment later.

    A run over several processes, of which one may be asked to end, heeds a signal only where all
    can: with `at_steps`, `at_once` does nothing.

    Outside of the main thread no signal is handled, and the caller's handlers stay. SIGHUP stays
    ignored if it was when the program began (nohup).
    """

    def __init__(self, *, raises: bool = False, at_steps: bool = False) -> None:
        """Handles no signal before the context begins; with `raises` the first one raises, too."""
        self._at_steps = at_steps
        self.received = 0  # The number of the first signal; 0 is none.
        self._raises = raises
        self._is_again = False  # Whether the next signal is one that was lost.
        self._before: dict[int, Any] = {}
        self._report: Any = None  # The previous handler of errors that nobody can catch.

    def __enter__(self) -> "Interrupts":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # Not the main thread.
                return self
        self._report, sys.unraisablehook = sys.unraisablehook, self._send_again
        return self

    def __exit__(self, *error: object) -> None:
        while self._before:
            number, handler = self._before.popitem()
            if handler is not None:  # One that was not set from Python cannot be put back.
                signal.signal(number, handler)
        if sys.unraisablehook == self._send_again:
            sys.unraisablehook = self._report

    def _handle(self, number: int, frame: FrameType | None) -> None:
        is_second = self.received != 0 and not self._is_again
        self._is_again = False
        self.received = self.received or number
        if self._raises or is_second:
            raise Interrupted(number=number)

    def _send_again(self, raised: Any) -> None:
        if not isinstance(raised.exc_value, Interrupted) or not self._before:
            self._report(raised)
            return
        self._is_again = True
        signalled = (os.getpid(), raised.exc_value.number)
        threading.Timer(0.01, os.kill, signalled).start()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a signal end the block at once, also one that was received before it.

        Raises:
          Interrupted: on a signal.
        """
        if self._at_steps:
            yield
            return
        if self.received:
            raise Interrupted(number=self.received)
        raised_before, self._raises = self._raises, True
        try:
            yield
        finally:
            self._raises = raised_before


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Puts back the handlers that are replaced within the block, as Ray does where it begins."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # One that was not set from Python cannot be put back.
                    signal.signal(number, handler)
