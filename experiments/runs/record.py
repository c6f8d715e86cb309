"""The record of a run: metrics.csv, a copy of it as events, and samples.jsonl of texts.

A checkpoint holds the configuration, and size and CRC-32 of each file of the record at that step
(`marks`). When a run goes on, they are compared first (`complaints`); what was written after the
checkpoint is dropped, and made again, but for what servers said of texts (rewards.jsonl): they are
not asked again. Checkpoints of older versions have no marks: rows are kept by their step.
"""

import csv
import io
import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from kullback.core import checkpoints, files, json_files, processes, typed
from kullback.experiments.runs import events
from kullback.experiments.runs.run_folder import BASE, RunFolder

METRICS, SAMPLES, CONFIG = "metrics.csv", "samples.jsonl", "config"

REWARDS = "rewards.jsonl"  # What a server said of texts: remote_rewards.py writes it.

Marks = Mapping[str, Any]  # JSON-able; under `META` of a checkpoint's meta.

META = "record"
HISTORY = "resumed"  # A key of config.json: the changes that were accepted when the run went on.
_MISSING = object()


class Record:
    """Appends rows to metrics.csv and to events, and texts to samples.jsonl."""

    def __init__(self, folder: RunFolder, *, has_texts: bool = False):
        """Changes nothing before `begin`."""
        self._folder = folder
        self._config = {k: v for k, v in folder.config().items() if k != HISTORY}
        self._metrics = _Lines(folder.metrics_file)
        self._texts = _Lines(folder.samples_file) if has_texts else None
        self._columns: list[str] | None = None
        self._events: events.Events | None = None

    def begin(self, steps: int, marks: Marks | None = None) -> None:
        """Keeps the record up to a checkpoint, and drops what comes after it.

        Args:
          steps: of the checkpoint; 0 for a new run.
          marks: of the checkpoint. Rows up to `steps` are kept without them, or if a file differs
            from them, which the user has accepted then.
        """
        marks = _checked(marks, self._folder) or {}
        data = _prefix(self._folder.metrics_file, marks.get(METRICS))
        self._metrics.begin(_rows_until(self._folder, steps) if data is None else data)
        rows = self._folder.rows()
        self._columns = list(rows[0]) if rows else None
        self._events = events.Events(self._folder.path / "tensorboard", rows)
        if self._texts is not None:
            path = self._folder.samples_file
            data = _prefix(path, marks.get(SAMPLES))
            if data is None:
                data = path.read_bytes() if path.is_file() else b""
            # An abandoned step may have written its texts before the checkpoint was saved.
            self._texts.begin(_lines_until(data, steps))

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row of one seed; floats are written with all their digits.

        A run that began before there was a column goes on without it.
        """
        if self._columns is not None:
            row = {name: x for name, x in row.items() if name in self._columns}
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns or list(row), lineterminator="\n")
        if self._columns is None:
            writer.writeheader()
        writer.writerow(row)
        self._metrics.append(text.getvalue())
        self._columns = self._columns or list(row)
        if self._events is not None:
            self._events.write(row)

    def write_texts(self, steps: int, seed: int, texts: Sequence[Mapping[str, Any]]) -> None:
        """Appends JSON-able texts that were written after `steps` steps."""
        if self._texts is None:
            raise ValueError(f"{self._folder.path} is of a run without texts")
        lines = [{"step": steps, "seed": seed, **text} for text in texts]
        self._texts.append("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def marks(self) -> Marks:
        """Returns the marks of the record as it is now, for a checkpoint."""
        texts = {} if self._texts is None else {SAMPLES: self._texts.mark}
        path, told = self._folder.path / REWARDS, {}
        if path.is_file():
            data = path.read_bytes()
            told = {REWARDS: {"bytes": len(data), "crc32": zlib.crc32(data)}}
        return {CONFIG: self._config, METRICS: self._metrics.mark, **texts, **told}


class Silent:
    """The record in a process beside the first, which writes it."""

    def begin(self, steps: int, marks: Marks | None = None) -> None:
        """Does nothing."""

    def write(self, row: Mapping[str, Any]) -> None:
        """Does nothing."""

    def write_texts(self, steps: int, seed: int, texts: Sequence[Mapping[str, Any]]) -> None:
        """Does nothing."""

    def marks(self) -> Marks:
        """Returns none."""
        return {}


def of(folder: RunFolder, *, has_texts: bool) -> Record | Silent:
    """Returns the record of a run, as this process keeps it."""
    return Record(folder, has_texts=has_texts) if processes.is_first() else Silent()


class _Lines:
    """A file that grows by whole lines."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.mark = {"bytes": 0, "crc32": 0}

    def begin(self, data: bytes) -> None:
        if not self._path.is_file() or self._path.read_bytes() != data:
            files.atomic_write_bytes(self._path, data)
        self.mark = {"bytes": len(data), "crc32": zlib.crc32(data)}

    def append(self, text: str) -> None:
        data, before = text.encode("utf-8", "backslashreplace"), self.mark
        with files.naming(self._path), self._path.open("ab") as file:
            file.write(data)
        crc = zlib.crc32(data, before["crc32"])
        self.mark = {"bytes": before["bytes"] + len(data), "crc32": crc}


def standing(folder: RunFolder, steps: int) -> Literal["saved", "new", "finished"]:
    """Returns the state of a run, or of one seed: "saved" has a checkpoint to go on from.

    A finished run may lack its checkpoints: a user may delete them.

    Args:
      folder: of the run, or the seed.
      steps: that it is to do.

    Raises:
      ValueError: if it has rows and no checkpoint: a new start would overwrite them.
    """
    if checkpoints.steps(folder.checkpoints):
        return "saved"
    rows = folder.rows()
    last = max((int(row["steps"]) for row in rows), default=0)
    if rows and last >= steps:
        return "finished"
    has_texts = folder.samples_file.is_file() and folder.samples_file.stat().st_size > 0
    # Killed while it saved its first checkpoint, a run has one segment: of a replay without steps.
    segments = list(folder.replay.glob("segment-*"))
    if not (rows or has_texts or len(segments) > 1):
        return "new"
    raise ValueError(
        f"{folder.checkpoints} is missing or empty, and {folder.path} has a record up to step "
        f"{last:,} of {steps:,}: it cannot go on, and begun anew it would be overwritten; put the "
        "checkpoints back, or start a new run elsewhere"
    )


def complaints(folder: RunFolder, config: Mapping[str, Any], log_every: int) -> list[str]:
    """Returns a line for each thing that has changed since the newest checkpoint was saved.

    Args:
      folder: of the run, or of one seed.
      config: the expected content of its config.json.
      log_every: steps between two rows, for checkpoints of older versions.
    """
    meta = checkpoints.newest_meta(folder.checkpoints)
    if meta is None:
        return []
    marks = _checked(meta.get(META), folder)
    if marks is None:
        try:
            rows = folder.rows()
        except ValueError as error:
            return [str(error)]
        saved = checkpoints.steps(folder.checkpoints)[-1]
        if not rows and saved >= log_every:
            return [f"{folder.metrics_file} has no rows, and step {saved:,} was saved"]
        return []
    lines = [f"{folder.config_file}: {text}" for text in config_changes(marks[CONFIG], config)]
    for path, mark in (
        (folder.metrics_file, METRICS),
        (folder.samples_file, SAMPLES),
        (folder.path / REWARDS, REWARDS),
    ):
        if mark in marks and _prefix(path, marks[mark]) is None:
            lines.append(_difference(path, marks[mark]["bytes"]))
    return lines


def _checked(marks: Any, folder: RunFolder) -> Marks | None:
    """Returns a checkpoint's marks; None for a checkpoint of an older version.

    Raises:
      ValueError: if they are not as `Record.marks` gives them.
    """
    if marks is None:
        return None
    file = f"{folder.checkpoints}: contents.json"
    record = json_files.Record(file, ("meta",), {META: marks}).record(META)
    record.record(CONFIG).record("plan", {}).get("steps", int, 0)
    for name in (METRICS, SAMPLES, REWARDS):
        mark = record.record(name, {})
        if name in record and mark.get("bytes", int) + mark.get("crc32", int) < 0:
            raise record.error(name, "of numbers >= 0")
    return marks


def config_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns the differences between two contents of config.json.

    Steps may grow, and the base of adapters may move: it is known by its hash.
    """
    old, new = (dict(json_files.leaves(config)) for config in (before, now))
    steps = "plan.steps"
    if isinstance(new.get(steps), int) and new[steps] >= old.get(steps, 0):
        old[steps] = new[steps]
    if BASE in new and old.get(BASE) == new[BASE]:
        old["plan.model"] = new.get("plan.model", _MISSING)
    return [
        f"{key} was {_shown(old.get(key, _MISSING))} and is {_shown(new.get(key, _MISSING))}"
        for key in dict.fromkeys((*old, *new))
        if _shown(old.get(key, _MISSING)) != _shown(new.get(key, _MISSING))
        and key.split(".")[0] != HISTORY
    ]


def _shown(value: Any) -> str:
    return "missing" if value is _MISSING else json_files.shown(value)


def _prefix(path: pathlib.Path, mark: Mapping[str, int] | None) -> bytes | None:
    """Returns the bytes that a mark describes; None without a mark, or if they have changed."""
    if mark is None:
        return None
    data = path.read_bytes()[: mark["bytes"]] if path.is_file() else b""
    return data if (len(data), zlib.crc32(data)) == (mark["bytes"], mark["crc32"]) else None


def _difference(path: pathlib.Path, size: int) -> str:
    if not path.is_file():
        return f"{path} is missing, {size:,} bytes were written"
    if path.stat().st_size < size:
        return f"{path} has {path.stat().st_size:,} bytes, {size:,} were written"
    return f"{path} has changed in the {size:,} bytes that were written"


def _rows_until(folder: RunFolder, steps: int) -> bytes:
    """Returns header and whole rows of metrics.csv up to a step."""
    if not folder.metrics_file.is_file():
        return b""
    lines = folder.metrics_file.read_text("utf-8", errors="replace").split("\n")[:-1]
    if not lines:
        return b""
    header, columns = lines[0], lines[0].split(",")
    index = columns.index("steps") if "steps" in columns else None
    kept = [
        line
        for line in lines[1:]
        if index is not None
        and all(map(typed.is_number, line.split(",")))
        and line.count(",") == header.count(",")
        and float(line.split(",")[index]) <= steps
    ]
    return "".join(f"{line}\n" for line in (header, *kept)).encode() if kept else b""


def _lines_until(data: bytes, steps: int) -> bytes:
    """Returns whole lines of a samples.jsonl up to a step, without those that are not JSON."""
    lines = data.split(b"\n")[:-1]
    return b"".join(line + b"\n" for line in lines if 0 <= _step(line) <= steps)


def _step(line: bytes) -> int:
    """Returns the step of a line of samples.jsonl; -1 if it has none."""
    try:
        return json_files.parse(line, SAMPLES, nan=True).get("step", int)
    except ValueError:
        return -1
