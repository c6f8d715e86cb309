"""Files of JSON lines that only grow, each with its checksum, for work that goes on after a kill.

A process that is killed leaves a part of a line at most, which is cut off when work goes on. A line
that was changed is an error, with its number.
"""

import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from kullback.core import files, folders, json_files

CHECKSUM = "crc32"  # The last key of each line: of the line without it.
MOST_BYTES = 1 << 32  # Of a file that is read.


def append(path: files.Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Appends JSON-able objects, a line each, on disk once this returns.

    Raises:
      ValueError: for numbers that are not finite.
    """
    lines = []
    for value in values:
        text = _dumped(value)
        lines.append(_dumped({**value, CHECKSUM: zlib.crc32(text.encode())}) + "\n")
    with files.naming(path), open(path, "ab") as file:
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())


def begin(path: files.Path) -> list[json_files.Record]:
    """Returns the objects of a file, none without one, and cuts a last line that has no end.

    Raises:
      ValueError: for a file of more than `MOST_BYTES`, or a line that is not as it was written.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return []
    folders.check_regular(path)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has more than {files.size(MOST_BYTES)}, which nothing here wrote")
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    records = [_checked(path, n, line) for n, line in enumerate(whole.split(b"\n")[:-1], 1)]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    return records


def _checked(path: pathlib.Path, number: int, line: bytes) -> json_files.Record:
    place = f"{path}, line {number}"
    record = json_files.parse(line, place)
    text = _dumped({key: value for key, value in record.items() if key != CHECKSUM})
    if zlib.crc32(text.encode()) != record.get(CHECKSUM, int):
        raise ValueError(
            f"{place}: it has changed since it was written; put it back, or delete the file to do "
            "all of its work again"
        )
    return record


def _dumped(value: Mapping[str, Any]) -> str:
    return json.dumps(value, allow_nan=False)
