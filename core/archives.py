"""Readers of NumPy's .npz archives, which check each claimed size before reading.

An archive states the length of each of its files, and a file the shape of its array. NumPy trusts
both and allocates the memory first. Here they are compared with the length of the archive, with
each other, and with the available memory before anything is unpacked.
"""

import math
import pathlib
import struct
import zipfile
import zlib
from typing import IO

import numpy as np
import psutil
from numpy.lib import format as npy

from kullback.core import files, folders

DEFLATED = (
    1040  # Largest ratio of a deflated file's unpacked to packed length: 1032, and some bytes.
)
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_FAULTS = (  # Errors of a damaged archive; NotImplementedError is a RuntimeError.
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, SyntaxError, ValueError),
    *(AttributeError, TypeError, RuntimeError, OverflowError, OSError),
)


def read(path: files.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an archive by name; nothing is unpickled.

    Args:
      path: a file that `numpy.savez` or `numpy.savez_compressed` wrote.

    Raises:
      CorruptError: if it is no archive, claims more than it holds, or does not fit into memory.
      FileNotFoundError: if there is no such file.
    """
    path = pathlib.Path(path)
    folders.check_regular(path)
    with path.open("rb") as file:
        try:
            return _arrays(file, path)
        except files.CorruptError:
            raise
        except _FAULTS as error:
            raise files.CorruptError(f"{path} is no .npz file of plain arrays: {error}") from error


def _arrays(file: IO[bytes], path: pathlib.Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        _check_lengths(members, path.stat().st_size)
        for member in members:
            _check_shape(archive, member)
        needed = sum(member.file_size for member in members)
        available = psutil.virtual_memory().available
        if needed > available:
            raise files.CorruptError(
                f"{path} holds {files.size(needed)} of arrays, {files.size(available)} of memory "
                "are available"
            )
        return {m.filename.removesuffix(".npy"): _array(archive, m) for m in members}


def _check_lengths(members: list[zipfile.ZipInfo], size: int) -> None:
    """Raises ValueError unless files so long can be packed into an archive of `size` bytes."""
    if not members:
        raise ValueError("it holds nothing")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ValueError("two of its files have one name")
    if sum(member.compress_size for member in members) > size:
        raise ValueError("its files overlap, or are longer than it is")
    for member in members:
        packed = member.compress_size
        most = packed if member.compress_type == zipfile.ZIP_STORED else DEFLATED * packed
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename!a} is packed in a way that NumPy does not use")
        if member.file_size > most:
            raise ValueError(f"{member.filename!a} claims {member.file_size} bytes, of {packed}")


def _check_shape(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Raises ValueError unless a file is of numbers, and as long as its header says."""
    name = member.filename
    if not name.endswith(".npy"):
        raise ValueError(f"{name!a} is no .npy file")
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name!a} is of version {version} of .npy, expected {[*_HEADERS]}")
        shape, _, dtype = _HEADERS[version](file)
        begin = file.tell()
    if dtype.hasobject:
        raise ValueError(f"{name!a} holds objects, which are not unpickled")
    if min(shape, default=0) < 0 or begin + math.prod(shape) * dtype.itemsize != member.file_size:
        raise ValueError(f"{name!a} has {member.file_size - begin} bytes for {dtype}{[*shape]}")


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as file:
        array = npy.read_array(file, allow_pickle=False)
        file.read()  # Read to the end, where zipfile compares the checksum.
    return array
