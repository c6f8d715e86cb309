"""Tests of core/segments.py."""

import os
import pathlib
import zipfile
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import files, segments


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "frames": rng.integers(0, 256, (20, 4, 4), np.uint8),
        "last": rng.random(20) < 0.5,
        "reward": rng.normal(size=20).astype(np.float32),
        "none": np.zeros((0, 3), np.int32),
    }


def assert_equal(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


def test_round_trip(tmp_path: pathlib.Path):
    store = segments.SegmentStore(tmp_path / "replay")
    entries = [store.append(arrays(seed), {"first": seed}) for seed in range(3)]
    assert [entry["span"] for entry in entries] == [{"first": seed} for seed in range(3)]
    reopened = segments.SegmentStore(tmp_path / "replay")
    for seed, entry in enumerate(entries):
        assert_equal(reopened.load(entry), arrays(seed))
    with zipfile.ZipFile(tmp_path / "replay" / entries[0]["file"]) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [flip, truncate, pathlib.Path.unlink])
def test_damage_is_one_line_that_names_the_file(tmp_path: pathlib.Path, damage: Any):
    store = segments.SegmentStore(tmp_path)
    entries = [store.append(arrays(seed), None) for seed in range(2)]
    damage(tmp_path / entries[1]["file"])
    store.load(entries[0])
    for read in (lambda: store.load(entries[1]), lambda: store.verify(entries)):
        with pytest.raises(files.CorruptError, match=entries[1]["file"]) as raised:
            read()
        assert "\n" not in str(raised.value)


def test_what_is_no_archive_is_refused_though_its_checksum_fits(tmp_path: pathlib.Path):
    path = tmp_path / "segment-00000000.npz"
    path.write_bytes(b"not an archive")
    entry = {"file": path.name, "bytes": 14, "crc": files.crc32(path)}
    with pytest.raises(files.CorruptError, match=r"is no \.npz file of plain arrays"):
        segments.SegmentStore(tmp_path).load(entry)


def test_a_segment_is_a_file_of_its_folder(tmp_path: pathlib.Path):
    store = segments.SegmentStore(tmp_path / "replay")
    entry = store.append(arrays(0), None)
    path = tmp_path / "replay" / entry["file"]
    path.rename(tmp_path / "elsewhere.npz")
    path.symlink_to("../elsewhere.npz")
    for read in (lambda: store.load(entry), lambda: store.verify([entry])):
        with pytest.raises(files.CorruptError, match="is a link out of the folder"):
            read()


def test_only_what_is_listed_survives_a_prune(tmp_path: pathlib.Path):
    store = segments.SegmentStore(tmp_path)
    entries = [store.append(arrays(seed), None) for seed in range(4)]
    (tmp_path / "notes.txt").write_text("not ours")
    store.prune([entries[1], entries[3], entries[3]])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes.txt",
        entries[1]["file"],
        entries[3]["file"],
    ]
    added = store.append(arrays(9), None)
    assert added["file"] not in {entry["file"] for entry in entries}
    assert_equal(store.load(entries[3]), arrays(3))


@pytest.mark.parametrize("array", [np.array([None]), np.array(["a"]), np.ones(2, jnp.bfloat16)])
def test_what_npy_cannot_hold_is_refused(tmp_path: pathlib.Path, array: np.ndarray):
    with pytest.raises(ValueError, match="'x'"):
        segments.SegmentStore(tmp_path).append({"x": array}, None)
    assert not list(tmp_path.iterdir())


def test_who_reads_deletes_nothing_and_who_writes_cleans_up(tmp_path: pathlib.Path):
    writer = segments.SegmentStore(tmp_path)
    entry = writer.append(arrays(0), None)
    half = tmp_path / ".tmp-segment-00000001.npz"  # The writer is at it.
    half.write_bytes(b"half")
    reader = segments.SegmentStore(tmp_path)
    reader.verify([entry])
    assert_equal(reader.load(entry), arrays(0))
    assert half.exists()
    writer.prune([entry])  # It writes nothing now: a process before it was killed.
    assert [path.name for path in tmp_path.iterdir()] == [entry["file"]]


@pytest.mark.parametrize(
    "change", [{"file": 5}, {"file": "../segment-00000000.npz"}, {"bytes": "1"}, {"crc": None}]
)
def test_an_entry_that_cannot_be(change: dict[str, Any], tmp_path: pathlib.Path):
    store = segments.SegmentStore(tmp_path)
    entry = store.append(arrays(0), None)
    for bad in ({**entry, **change}, {}):
        with pytest.raises(
            files.CorruptError, match=r"a segment of .* has a file, bytes and a crc"
        ):
            store.verify([bad])
