"""Compiled programs that commands keep in the cache, so that the next one need not compile them.

JAX writes an entry in place, so that a kill or a full disk may leave a part of one. It then warns,
in two lines and at every start, compiles the program, and leaves the entry as it is. Here damaged
entries are deleted when it warns, so that the program which it compiles is kept in their place.
"""

import contextlib
import functools
import hashlib
import pathlib
import platform
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import jax

from kullback.experiments import cache

LARGEST = 1 << 29  # Bytes of the folder: beyond, the programs longest unused are deleted.
LEAST_SECONDS = 0.1  # Of a compilation that is kept.
_COMPLAINT = "persistent compilation cache entry"  # In JAX's warnings of an entry.


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
    entries = folder / _machine()
    jax.config.update("jax_compilation_cache_dir", str(entries))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    warnings.showwarning = functools.partial(_mend, entries, warnings.showwarning)


def _mend(entries: pathlib.Path, show: Any, message: Warning | str, *details: Any) -> None:
    """Shows a warning, but for one of a damaged entry, in whose place there is room then."""
    count = 0
    if _COMPLAINT in str(message):
        for path in _files(entries):
            if not _is_whole(path):
                path.unlink(missing_ok=True)
                count += 1
    if not count:
        show(message, *details)
        return
    what = "a compiled program" if count == 1 else f"{count} compiled programs"
    cache.say(f"{what} in {entries} was cut short, and is compiled anew")


def _is_whole(path: pathlib.Path) -> bool:
    """Returns whether an entry is as it was written: zlib's data end with a checksum.

    Where zstandard is installed JAX compresses by it: such an entry is compiled anew, too.
    """
    try:
        zlib.decompress(path.read_bytes())
    except (zlib.error, OSError):
        return False
    return True


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the entries below a folder."""
    return [path for path in folder.rglob("*") if path.is_file() and path.name != cache.TAG]


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
    facts = []
    for path in _files(folder):
        with contextlib.suppress(FileNotFoundError):  # Another process trims it, too.
            facts.append((_last_use(path), path.stat().st_size, path))
    facts.sort()
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
