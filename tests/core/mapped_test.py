"""Tests of core/mapped.py."""

import pathlib
import re

import numpy as np

from kullback.core import mapped


def resident() -> int:
    """Returns the kilobytes of this process' pages that are those of files, on disk or not."""
    status = pathlib.Path("/proc/self/status").read_text()
    return sum(map(int, re.findall(r"Rss(?:File|Shmem):\s+(\d+)", status)))


def test_pages_are_given_back_and_read_again(tmp_path: pathlib.Path):
    path = tmp_path / "x"
    path.write_bytes(bytes(range(256)) * 2**16)  # 16 MB.
    array = mapped.open_bytes(path)
    before = resident()
    total = array.sum(dtype=np.int64)
    assert resident() > before + 15_000
    part = array[4:-4].view(np.uint32)[: 2**20].reshape(4, -1)  # A quarter.
    mapped.release(part)
    assert before + 11_000 < resident() < before + 13_000
    mapped.release(array)
    assert resident() < before + 1_000
    assert array.sum(dtype=np.int64) == total and not array.flags.writeable


def test_what_was_written_to_memory_is_kept(tmp_path: pathlib.Path):
    path = tmp_path / "x"
    path.write_bytes(bytes(2**16))
    array, ours = mapped.open_bytes(path, writable=True), np.zeros(2**16, np.uint8)
    array[:], ours[:] = 1, 1
    for x in (array, ours):
        mapped.release(x)
        assert x.all()
    assert not any(path.read_bytes())
    (tmp_path / "empty").touch()
    assert mapped.open_bytes(tmp_path / "empty").size == 0


def test_memory_of_files_is_known_while_it_is_used(tmp_path: pathlib.Path):
    path = tmp_path / "x"
    path.write_bytes(bytes(2**16))
    array, ours = mapped.open_bytes(path), np.zeros(2**16, np.uint8)
    first = array.ctypes.data
    part = array[8:]
    del array
    assert mapped.holds(part.ctypes.data) and mapped.holds(first + 2**16 - 1)
    assert not mapped.holds(first + 2**16) and not mapped.holds(ours.ctypes.data)
    del part
    assert not mapped.holds(first)
