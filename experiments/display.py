"""What a command prints outlives its reader: where a pipe is closed, the work goes on unseen."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


class _Outliving(io.TextIOBase):
    """A stream of text that turns into the null device once nobody takes what is written."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.encoding

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, s: str) -> int:
        try:
            return self._stream.write(s)
        except OSError:
            drop(self._stream)
            return len(s)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            drop(self._stream)


@contextlib.contextmanager
def outliving() -> Iterator[None]:
    """Lets the work of a block go on where its reader has gone, or the disk of a log is full."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:  # Of a program that was started with a stream closed.
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
