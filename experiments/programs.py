"""Compiled programs that commands keep in the cache, so that the next one need not compile them."""

import hashlib
import pathlib
import platform
from collections.abc import Iterator

import jax

from kullback.experiments import cache

LARGEST = 1 << 29  # Bytes of the folder: beyond, the programs longest unused are deleted.
LEAST_SECONDS = 0.1  # Of a compilation that is kept.


def keep() -> None:
    """Lets JAX keep the programs of this process, unless it is told of a folder already.

    XLA's programs for a CPU run only on its like, so each kind of machine has a folder of its own.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = cache.begun(cache.PROGRAMS)
    if folder is None:
        return
    _trim(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder / _machine()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def _machine() -> str:
    """Returns a name of this kind of machine, by the instructions that its CPU has."""
    facts = [platform.machine(), *_features()]
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()[:12]


def _features() -> Iterator[str]:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        yield platform.processor()
        return
    # "flags" of x86, "Features" of ARM; equal for all of a machine's cores.
    yield next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def _trim(folder: pathlib.Path) -> None:
    """Deletes the programs that were read longest ago, until the folder is half as large."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != cache.TAG]
    facts = sorted((_last_use(path), path.stat().st_size, path) for path in paths)
    total = sum(size for _, size, _ in facts)
    if total <= LARGEST:
        return
    for _, size, path in facts:
        path.unlink(missing_ok=True)
        total -= size
        if total <= LARGEST // 2:
            return


def _last_use(path: pathlib.Path) -> float:
    # Of reading, where the disk writes that down.
    return max(path.stat().st_atime, path.stat().st_mtime)
