"""What a machine needs to run fast."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # Of glibc's malloc.h.


def keep_freed_memory(*, one_arena: bool = False) -> None:
    """Keeps freed memory in the process, where the C library is glibc; else nothing.

    Otherwise glibc hands XLA's temporaries back to the system at each call of a program and the
    next call faults them in again, a third of the time of a gradient step on Atari. What the
    process took at its peak stays with it.

    Args:
      one_arena: of all threads. Threads that have an arena of their own, as XLA's have, can keep no
        more than 64 MB in one piece: what is larger is mapped anew each time. Small pieces then
        wait for one another, so that this is for programs of large temporaries, as those of
        language models are. It holds for threads that start after it, so call it before JAX does
        anything.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    if one_arena:
        libc.mallopt(_M_ARENA_MAX, 1)
