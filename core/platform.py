"""Settings of the process that make it fast, and sparing of memory."""

import ctypes
import functools
import platform
import threading
from typing import Any

import jax
import psutil

from kullback.core import mapped

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # Of glibc's malloc.h.
_COMPILED = "/jax/core/compile/backend_compile_duration"  # What JAX says then.
_LONG_COMPILATION = 0.3  # Seconds; shorter ones leave little behind.
_RESERVE = 2**26  # Bytes.


def keep_freed_memory() -> None:
    """Keeps freed memory in the process, where the C library is glibc; else nothing.

    Otherwise glibc returns XLA's temporaries to the system after each call of a program, and the
    next call faults them in again, which is a third of the time of a gradient step on Atari. The
    process keeps its peak memory until it ends.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def run_large_programs() -> None:
    """Prepares the process for programs with large temporaries, such as language models'.

    On CPUs a call then computes in the thread that makes it. JAX otherwise hands it to its own
    threads, and two things go wrong. A call may allocate its temporaries before those of the last
    call are freed, which takes twice the memory. And those threads' arenas in glibc keep no piece
    above 64 MB, so that larger ones are mapped anew each time. Nothing is lost where calls wait
    for one another anyway. It holds for JAX's devices made after it, so call it before any other
    use of JAX.

    Memory that a compilation leaves behind, in pieces too small for the temporaries, goes back to
    the system before the program runs. And 64 MB of addresses are then kept free for small pieces:
    glibc takes the smallest free piece that fits, and a small one placed where the temporaries
    were, between two calls, would make the next call take as much memory again.
    """
    keep_freed_memory()
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    _clear_after_compilations()


@functools.cache  # Listeners add up.
def _clear_after_compilations() -> None:
    libc = _glibc()
    if libc is None:
        return
    fence, turn = None, threading.Lock()  # Two threads may compile.

    def clear(event: str, duration_secs: float, **_: str | int) -> None:
        nonlocal fence
        if event != _COMPILED or duration_secs < _LONG_COMPILATION:
            return
        with turn:
            libc.free(fence)
            libc.malloc_trim(0)
            # Pages that nobody writes to take no memory. The fence keeps the reserve apart from the
            # end of the heap, which is the last place that glibc takes from.
            reserve, fence = libc.malloc(_RESERVE), libc.malloc(_RESERVE)
            libc.free(reserve)

    jax.monitoring.register_event_duration_secs_listener(clear)


def available_memory() -> int:
    """Returns the bytes that arrays may still take: of the device, or of the host if that is it."""
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return psutil.virtual_memory().available


def mapped_bytes(arrays: Any) -> int:
    """Returns the bytes of arrays that are pages of files, which count as available memory.

    Args:
      arrays: a tree of arrays, each of them on one device.
    """
    if jax.default_backend() != "cpu":
        return 0
    return sum(
        x.nbytes
        for x in jax.tree.leaves(arrays)
        if isinstance(x, jax.Array) and mapped.holds(x.unsafe_buffer_pointer())
    )


def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes, libc.free.restype = [ctypes.c_void_p], None
    return libc
