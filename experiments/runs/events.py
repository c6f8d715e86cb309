"""TensorBoard events of a run: a copy of metrics.csv, made anew when the run goes on.

`write` hands each event to the operating system itself: no thread could fail unnoticed.
"""

import math
import pathlib
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from typing import Any

from tensorboardX.proto import event_pb2 as _event_pb2
from tensorboardX.proto import summary_pb2 as _summary_pb2
from tensorboardX.record_writer import masked_crc32c

from kullback.core import files

event_pb2: Any = _event_pb2  # Its names are made when it is imported.
summary_pb2: Any = _summary_pb2
PATTERN = "events.out.tfevents.*"
WITHOUT_EVENT = ("seed", "steps")


class Events:
    """A file of events in a folder."""

    def __init__(self, folder: pathlib.Path, rows: Iterable[Mapping[str, Any]]):
        """Begins with the rows of a record, and removes older files of events, half ones too."""
        rows = list(rows)
        now, trained = time.time(), float(rows[-1].get("wall_seconds", 0)) if rows else 0.0
        self._origin = now - trained  # When an uninterrupted run would have begun.
        old = list(folder.glob(PATTERN))
        names = (f"events.out.tfevents.{int(now) + n}.{socket.gethostname()}" for n in range(10**6))
        self._path = next(path for name in names if not (path := folder / name).exists())
        version = event_pb2.Event(wall_time=now, file_version="brain.Event:2")
        # It makes an open TensorBoard forget the older files.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        anew = event_pb2.Event(wall_time=now, step=0, session_log=start)
        events = [version, anew, *map(self._event, rows)]
        files.atomic_write_bytes(self._path, b"".join(map(_record, events)))
        for path in old:
            files.remove(path)
        files.remove_leftovers(folder)  # Each bears the time in its name: none is written over.

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends the numbers of a row, except NaN."""
        with files.naming(self._path), self._path.open("ab") as file:
            file.write(_record(self._event(row)))

    def _event(self, row: Mapping[str, Any]) -> Any:
        numbers = {name: float(x) for name, x in row.items() if name not in WITHOUT_EVENT}
        values = [
            summary_pb2.Summary.Value(tag=f"{name}/seed_{row['seed']}", simple_value=number)
            for name, number in numbers.items()
            if not math.isnan(number)
        ]
        return event_pb2.Event(
            wall_time=self._origin + numbers.get("wall_seconds", 0.0),
            step=int(row["steps"]),
            summary=summary_pb2.Summary(value=values),
        )


def _record(event: Any) -> bytes:
    """Returns an event as a TFRecord: length, data, and a checksum of each."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
    return b"".join((length, next(checksums), data, next(checksums)))
