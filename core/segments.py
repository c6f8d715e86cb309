"""An append-only store for a replay too big to save whole: new data is written once.

Checkpoints list the segments that they need (`meta["segments"]`); the rest is pruned.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kullback.core import archives, files

Entry = dict[str, Any]  # JSON-able: "file", "span" (the caller's), "bytes", "crc".

_NAME = re.compile(r"segment-(\d+)\.npz")


class SegmentStore:
    """Segments of named arrays in one folder that no other process writes to.

    Making one, verifying and loading change nothing on disk, as the run may be under way.
    """

    def __init__(self, folder: files.Path):
        self._folder = pathlib.Path(folder)

    def append(self, arrays: Mapping[str, np.ndarray], span: Any) -> Entry:
        """Writes a segment, whole or not at all, and returns the entry that `load` takes.

        Args:
          arrays: of plain NumPy dtypes; the file is an uncompressed .npz without pickles.
          span: describes the part of the replay, JSON-able; the store does not read it.

        Raises:
          ValueError: for an array that .npy cannot hold without pickling or losing its dtype.
        """
        for name, array in arrays.items():
            if array.dtype.kind not in "biufc":
                raise ValueError(f"segments hold plain numbers, got {array.dtype} in {name!r}")
        number = 1 + max((number for number, _ in self._segments()), default=-1)
        path = self._folder / f"segment-{number:08d}.npz"
        with files.atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        return {
            "file": path.name,
            "span": span,
            "bytes": path.stat().st_size,
            "crc": files.crc32(path),
        }

    def verify(self, entries: Iterable[Entry]) -> None:
        """Compares the segments of a checkpoint with what was written.

        Raises:
          CorruptError: for the first that is missing, truncated or changed.
        """
        for entry in entries:
            match entry:
                case {"file": str(name), "bytes": int(size), "crc": int(crc)} if _NAME.fullmatch(
                    name
                ):
                    files.check_file(files.inside(self._folder, name), size, crc)
                case _:
                    raise files.CorruptError(
                        f"a segment of {self._folder} has a file, bytes and a crc, got {entry!r}"
                    )

    def load(self, entry: Entry) -> dict[str, np.ndarray]:
        """Loads the arrays of a segment.

        Raises:
          CorruptError: if the file is missing, truncated or changed.
        """
        self.verify([entry])
        return archives.read(self._folder / entry["file"])

    def prune(self, live_entries: Iterable[Entry]) -> None:
        """Deletes segments that no retained checkpoint lists, and what was left half written."""
        files.remove_leftovers(self._folder)
        live = {entry.get("file") for entry in live_entries}
        for _, path in self._segments():
            if path.name not in live:
                files.remove(path)

    def _segments(self) -> list[tuple[int, pathlib.Path]]:
        matches = [(_NAME.fullmatch(path.name), path) for path in self._folder.glob("segment-*")]
        return [(int(match[1]), path) for match, path in matches if match]
