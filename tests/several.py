"""Several processes of one run under test, on this machine; none outlives its test."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

from kullback.experiments.benchmarks import commands

# What is compiled in these tests runs for milliseconds.
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def free_port() -> int:
    """Returns a port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running(
    command: Sequence[str],
    count: int,
    devices: int = 1,
    inside: Sequence[Sequence[str]] = (),
    **environment: str,
) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts processes of a Python command, and kills those that are left when the block ends.

    Args:
      command: arguments of Python, in which "@PORT", "@COUNT" and "@INDEX" stand for a free port,
        the number of processes and that of each.
      count: of the processes.
      devices: of each.
      inside: words before the command of each, by which another program starts it.
      **environment: further variables.
    """
    port = str(free_port())
    variables = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FAST}",
        **environment,
    }
    lines = list[list[str]]()
    for index in range(count):
        values = {"@PORT": port, "@COUNT": str(count), "@INDEX": str(index)}
        arguments = list(command)
        for name, value in values.items():
            arguments = [argument.replace(name, value) for argument in arguments]
        lines.append([*(inside[index] if inside else ()), sys.executable, *arguments])
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with commands.together(lines, env=variables, **both) as started:
        yield started


def ended(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Waits for processes; returns the status of each, its output and its errors."""
    said = [process.communicate() for process in processes]
    return [(x.returncode, *texts) for x, texts in zip(processes, said, strict=True)]
