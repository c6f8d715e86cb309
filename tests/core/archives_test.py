"""Tests of core/archives.py."""

import io
import pathlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kullback.core import archives, files

ARRAYS = {
    "a": np.arange(6.0).reshape(2, 3).T,
    "zeros": np.zeros((100, 1_000), np.int8),
    "none": np.zeros((0, 3), np.int32),
    "number": np.asarray(0.5),
}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def packed(
    path: pathlib.Path, contents: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED
) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def with_shape(shape: tuple[int, ...]) -> bytes:
    """Returns a file of eight numbers that says another shape."""
    file = io.BytesIO()
    said: dict[str, Any] = {"shape": shape, "fortran_order": False, "descr": "<f8"}
    np.lib.format.write_array_header_1_0(file, said)
    return file.getvalue() + bytes(64)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_as_they_were_written(save: Callable[..., None], tmp_path: pathlib.Path):
    path = tmp_path / "x.npz"
    save(path, **ARRAYS)
    arrays = archives.read(path)
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and arrays[name].shape == array.shape
        np.testing.assert_array_equal(arrays[name], array)
    with pytest.raises(FileNotFoundError):
        archives.read(tmp_path / "none.npz")


@pytest.mark.parametrize("shape", [(10**12,), (8, 10**9), (9,), (-8,), (0, 10**12), (7,)])
def test_shapes_are_held_against_their_files(
    shape: tuple[int, ...], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    path = packed(tmp_path / "x.npz", {"a.npy": with_shape(shape)})
    monkeypatch.setattr(archives.npy, "read_array", None)  # Nothing is unpacked.
    with pytest.raises(
        files.CorruptError, match=r"x\.npz is no .*'a\.npy' has 64 bytes for float64"
    ):
        archives.read(path)


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_lengths_are_held_against_the_archive(
    how: int, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    path = packed(tmp_path / "x.npz", {"a.npy": npy(np.zeros(8))}, how)
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")  # Of the directory: where it says how long the file is.
    data[entry + 24 : entry + 28] = struct.pack("<I", 2**31)
    path.write_bytes(data)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    with pytest.raises(files.CorruptError, match=r"'a\.npy' claims 2147483648 bytes"):
        archives.read(path)
    data[entry + 20 : entry + 24] = struct.pack("<I", 2**31)
    path.write_bytes(data)
    with pytest.raises(files.CorruptError, match="overlap, or are longer than it is"):
        archives.read(path)


def test_what_does_not_fit_into_memory_is_not_unpacked(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.zeros(1_000_000))
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(archives.npy, "read_array", None)

    class Memory:
        available = 1_000_000

    monkeypatch.setattr(archives.psutil, "virtual_memory", Memory)
    with pytest.raises(files.CorruptError, match=r"holds 8\.00 MB of arrays, 1\.00 MB"):
        archives.read(path)


@pytest.mark.parametrize(
    "contents",
    [
        {"a.txt": b"text"},
        {"a.npy": b""},
        {"a.npy": b"\x93NUMPY\x09\x00"},
        {"a.npy": npy(np.zeros(8))[:40]},
        {"a.npy": npy(np.zeros(8)).replace(b"'<f8'", b"'|O' ")},
        {"a.npy": npy(np.zeros(8)).replace(b"'<f8'", b"'<x8'")},
        {"a.npy": npy(np.zeros(8)).replace(b"(8,)", b"(8.)")},
    ],
)
def test_what_is_no_array_is_one_line(contents: dict[str, bytes], tmp_path: pathlib.Path):
    path = packed(tmp_path / "x.npz", contents)
    with pytest.raises(files.CorruptError, match=r"x\.npz is no \.npz file of plain") as caught:
        archives.read(path)
    assert "\n" not in str(caught.value)


def test_every_byte_that_is_changed_is_noticed_or_harmless(tmp_path: pathlib.Path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.arange(20))
    whole = path.read_bytes()
    for place in range(len(whole)):
        for value in (0, 0xFF, whole[place] ^ 1):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                arrays = archives.read(path)
            except files.CorruptError as error:
                assert "\n" not in str(error)
            else:
                (array,) = arrays.values()
                np.testing.assert_array_equal(array, np.arange(20))
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(files.CorruptError):
            archives.read(path)
