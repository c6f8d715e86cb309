"""The command as a user runs it, watched from outside."""

import contextlib
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from kullback.experiments.benchmarks import machine, peer

POLL_SECONDS = 0.02


class Watched(NamedTuple):
    """A command that has ended."""

    first_seconds: float  # From its start until it printed something; all of them if it did not.
    seconds: float  # Until its end.
    peak_bytes: int  # Of its resident memory.


def path() -> str:
    """Returns the path of the command of this Python.

    Raises:
      FileNotFoundError: if it is not installed.
    """
    command = shutil.which("kullback", path=pathlib.Path(sys.executable).parent)
    if command is None:
        raise FileNotFoundError("the kullback command is not installed beside this Python")
    return command


@contextlib.contextmanager
def together(lines: Sequence[Sequence[str]], **how: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts processes, and kills those that are left when the block ends.

    Args:
      lines: command line of each.
      **how: further arguments of `subprocess.Popen`.
    """
    with contextlib.ExitStack() as stack:
        started = list[subprocess.Popen[str]]()
        for line in lines:
            process = subprocess.Popen(line, text=True, **how)
            started.append(stack.enter_context(process))
            stack.callback(process.kill)  # Before the wait of its own exit.
        yield started


def watch(arguments: Sequence[str]) -> Watched:
    """Runs the command.

    Raises:
      PeerError: if it fails.
    """
    peak, firsts = 0, list[float]()
    with tempfile.TemporaryFile("w+") as complaints:
        start = time.perf_counter()
        command = [path(), *arguments]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=complaints, bufsize=0
        ) as process:

            def read() -> None:
                while process.stdout and process.stdout.read(4_096):
                    firsts.append(time.perf_counter() - start)

            reader = threading.Thread(target=read)
            reader.start()
            while process.poll() is None:
                with contextlib.suppress(RuntimeError, OSError):  # It has just ended.
                    peak = max(peak, machine.peak_memory(process.pid))
                time.sleep(POLL_SECONDS)
            seconds = time.perf_counter() - start
            reader.join()
        complaints.seek(0)
        said = complaints.read()
    if process.returncode:
        raise peer.failed(["kullback", *arguments], process.returncode, said)
    return Watched(min(firsts, default=seconds), seconds, peak)
