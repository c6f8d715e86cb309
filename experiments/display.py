"""Output of commands: text that no terminal obeys, and that outlives its reader.

If a pipe is closed, the work goes on unseen. Names and texts from outside may hold control
characters, which move a terminal's cursor, rewrite lines or set its title: on a terminal they are
spelled out. Files and pipes get them unchanged.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import TextIO

# Control characters but for ends of lines and tabs, what turns the direction of writing, and halves
# of surrogate pairs, which no terminal takes.
_OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Returns a text as a terminal may have it: an escape character becomes "\x1b"."""
    return _OBEYED.sub(lambda match: ascii(match[0])[1:-1], text)


def line(text: str) -> str:
    """Returns a text on one line, as a terminal may have it."""
    return printable(" ".join(text.split()))


class _Through(io.TextIOBase):
    """A stream of text that hands everything to another."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.errors  # Without it, input() edits no line.

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, s: str) -> int:
        return self._stream.write(s)

    def flush(self) -> None:
        self._stream.flush()


class _Outliving(_Through):
    """Turns into the null device once nobody takes what is written."""

    def write(self, s: str) -> int:
        try:
            return super().write(s)
        except OSError:
            drop(self._stream)
            return len(s)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            drop(self._stream)


class _Plain(_Through):
    """A terminal that is given text alone."""

    def write(self, s: str) -> int:
        super().write(printable(s))
        return len(s)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Lets a block print to a terminal only what it does not obey; errors have their own line."""
    before = sys.stdout
    if before is not None and before.isatty():
        sys.stdout = _Plain(before)
    try:
        yield
    finally:
        sys.stdout = before


@contextlib.contextmanager
def outliving() -> Iterator[None]:
    """Lets the work of a block go on where its reader has gone, or the disk of a log is full."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:  # In place of a closed stream.
        streams = [_Outliving(stream or nowhere) for stream in before]
        sys.stdout, sys.stderr = streams
        try:
            yield
        finally:
            for stream in streams:
                stream.flush()
            sys.stdout, sys.stderr = before


def drop(stream: TextIO | None) -> None:
    """Leads what a stream still holds, and what is written from now on, to the null device."""
    if stream is None:
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, stream.fileno())
    finally:
        os.close(nowhere)
