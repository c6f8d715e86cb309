"""What a machine needs to run fast."""

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # Of glibc's malloc.h.


def keep_freed_memory() -> None:
    """Keeps freed memory in the process, where the C library is glibc; else nothing.

    Otherwise glibc hands XLA's temporaries back to the system at each call of a program and the
    next call faults them in again, a third of the time of a gradient step on Atari. What the
    process took at its peak stays with it.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
