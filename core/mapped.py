"""Files that are memory-mapped: their pages are read when they are used, and can be given back."""

import mmap
import pathlib
import weakref

import numpy as np

# Memory of files that arrays still use, by its address.
_OPEN: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()


def open_bytes(path: pathlib.Path, *, writable: bool = False) -> np.ndarray:
    """Maps a file.

    Args:
      path: of a regular file.
      writable: whether the bytes may be written to, in memory: the file keeps its own.

    Returns:
      Its bytes, uint8, flat.
    """
    if not path.stat().st_size:  # The system maps no empty file.
        return np.empty(0, np.uint8)
    access = mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
    with path.open("rb") as file:
        memory = np.frombuffer(mmap.mmap(file.fileno(), 0, access=access), np.uint8)
    _OPEN[memory.ctypes.data] = memory
    return memory


def holds(address: int) -> bool:
    """Returns whether memory is that of a file that `open_bytes` has mapped, and is in use."""
    return any(0 <= address - start < array.nbytes for start, array in _OPEN.items())


def release(array: np.ndarray) -> None:
    """Gives the pages of an array back to the system, if they are those of a mapped file.

    They are read again where they are used again. An array of other memory, or one that may be
    written to, stays as it is.

    Args:
      array: what `open_bytes` returned, or a part of it that lies in one piece.
    """
    base = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    source = base.obj if isinstance(base, memoryview) else base
    if not isinstance(source, mmap.mmap) or array.flags.writeable:
        return
    whole = np.frombuffer(source, np.uint8)
    begin = array.ctypes.data - whole.ctypes.data
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE  # Pages that the array has to itself.
    end = (begin + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if begin + array.nbytes == whole.size:
        end = whole.size
    if end > first:
        source.madvise(mmap.MADV_DONTNEED, first, end - first)
