"""The machine: what it is, and the most that it can do."""

import os
import pathlib
import platform
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from kullback.experiments.runs import run_folder

SIZE = 2_048  # Rows of the square matrices whose product is the limit.
TRIES = 10


def describe() -> dict[str, Any]:
    """Describes processor, cores, memory, load, versions and revision."""
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "load_average": psutil.getloadavg()[0],  # In the last minute; 0 if the machine was idle.
        "device": jax.devices()[0].device_kind,
        **run_folder.provenance(),
    }


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """Returns the processor's name, with family and model where the name says little."""
    wanted = {"model name": "", "cpu family": "family ", "model": "model "}
    path = pathlib.Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor()
    fields = {}
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in wanted:
            fields.setdefault(key.strip(), wanted[key.strip()] + value.strip())
    return ", ".join(fields[key] for key in wanted if key in fields) or platform.processor()


def sgemm() -> Callable[[], dict[str, float]]:
    """Makes a measurement of the fastest float32 product of 2,048 x 2,048 matrices, in FLOP/s."""
    return product("float32", "sgemm")


def product(dtype: str, name: str = "product") -> Callable[[], dict[str, float]]:
    """Makes a measurement of the fastest product of 2,048 x 2,048 matrices, in FLOP/s."""
    a = jnp.ones((SIZE, SIZE), dtype)
    return _fastest(jax.jit(jnp.matmul), (a, a), 2 * SIZE**3, name)


def bandwidth(num_bytes: int, name: str = "bandwidth") -> Callable[[], dict[str, float]]:
    """Makes a measurement of memory: bytes read and written a second by copies of `num_bytes`.

    What is read again and again lies in a cache if it fits, which is why the size matters.
    """
    x = jnp.ones(num_bytes // 4, jnp.float32)
    return _fastest(jax.jit(lambda x: x + 1), (x,), 2 * num_bytes, name)


def _fastest(
    program: Callable[..., jax.Array], given: tuple[jax.Array, ...], amount: float, name: str
) -> Callable[[], dict[str, float]]:
    """Makes a measurement of the amount of work a second, in the fastest of TRIES calls."""
    program(*given).block_until_ready()

    def measure() -> dict[str, float]:
        best = 0.0
        for _ in range(TRIES):
            start = time.perf_counter()
            program(*given).block_until_ready()
            best = max(best, amount / (time.perf_counter() - start))
        return {name: best}

    return measure


def reading(num_bytes: int, name: str = "reading") -> Callable[[], dict[str, float]]:
    """Makes a measurement of memory: bytes a second that all cores read, and write nothing.

    A copy's rate is lower where a cache fetches what is overwritten.
    """
    parts = np.array_split(np.ones(num_bytes // 4, np.float32), cores())

    def read() -> float:
        threads = [threading.Thread(target=part.max) for part in parts]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - start

    def measure() -> dict[str, float]:
        return {name: sum(part.nbytes for part in parts) / min(read() for _ in range(TRIES))}

    return measure


def peak_memory(process: int | str = "self") -> int:
    """Returns the peak memory of a process so far, in bytes.

    Only Linux reports it: getrusage's figure begins with the parent process'.

    Args:
      process: its id.

    Raises:
      RuntimeError: elsewhere, and of a process that has ended.
    """
    path = pathlib.Path("/proc") / str(process) / "status"
    for line in path.read_text().splitlines() if path.is_file() else ():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"{path} has no VmHWM: the peak of the memory needs Linux")
