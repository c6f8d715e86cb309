"""The outputs of stages: where they are, what they follow from, and whether they are still that.

    OUT/NAME-KEY          what a stage has made: a run, a folder or a file
    OUT/stages/NAME-KEY.json    its record, written when it is whole

The key is a hash of the stage's command, of the content of each file from outside that it names,
and of the keys of the stages that it needs. So a changed field gives new keys to the stages that
depend on it, and to no other; what was made before stays where it is.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from kullback.core import files, json_files
from kullback.experiments.pipelines.stages import Pipeline, Stage
from kullback.experiments.runs import run_folder

RECORDS = "stages"  # The folder of records.
_HEX = 12  # Characters of a key.
_BLOCK = 2**22  # Bytes that are read at a time.


class Planned(NamedTuple):
    """A stage, and what it makes where."""

    stage: Stage
    key: str
    path: pathlib.Path  # Of what it makes.
    record_file: pathlib.Path
    arguments: tuple[str, ...]  # Of `kullback`.
    inputs: Mapping[str, str]  # Files from outside that it names -> SHA-256.
    parents: Mapping[str, "Planned"]  # Stages that it needs, by name.

    @property
    def label(self) -> str:
        """Name and key."""
        return f"{self.stage.name}-{self.key}"


class Record(NamedTuple):
    """The record of a finished stage."""

    sha256: str  # Of what it made.
    parents: Mapping[str, str]  # SHA-256 of what it was made from, by stage.
    seconds: float


def plan(pipeline: Pipeline, out: pathlib.Path) -> dict[str, Planned]:
    """Returns the stages with their keys and paths, in their order.

    Raises:
      ValueError: for a file from outside that cannot be read.
    """
    planned: dict[str, Planned] = {}
    hashed = functools.cache(fingerprint)  # Several stages may name one file.
    for name, stage in pipeline.stages.items():
        inputs = {
            path: hashed(pathlib.Path(path))
            for text in stage.named_paths(lambda name: f"{{{name}}}")
            for path in _paths_in(text)
        }
        keyed = stage.arguments(lambda n: f"{{{planned[n].key}}}", "")
        content = json.dumps([keyed, sorted(inputs.items())])
        key = hashlib.sha256(content.encode()).hexdigest()[:_HEX]
        path = out / f"{name}-{key}{stage.ending}"
        planned[name] = Planned(
            stage=stage,
            key=key,
            path=path,
            record_file=out / RECORDS / f"{name}-{key}.json",
            arguments=(*stage.arguments(lambda n: str(planned[n].path), str(path)),),
            inputs=inputs,
            parents={n: planned[n] for n in stage.needs},
        )
    return planned


def read(planned: Planned) -> Record | None:
    """Returns the record of a stage as it was written; None if it is not finished."""
    if not planned.record_file.is_file():
        return None
    saved = json_files.read(planned.record_file)
    parents = saved.record("parents").each(str)
    return Record(saved.get("sha256", str), parents, saved.get("seconds", float))


def recorded(planned: Planned) -> Record | None:
    """Returns the record of a stage, held against the bytes that are there; None without one.

    Raises:
      ValueError: if what it made, or was made from, is not what it was.
    """
    record = read(planned)
    if record is None:
        return None
    again = f"remove {planned.record_file} and {planned.path} to make it again"
    if not planned.path.exists():
        raise ValueError(f"stage {planned.stage.name}: {planned.path} is gone; {again}")
    if fingerprint(planned.path) != record.sha256:
        raise ValueError(
            f"stage {planned.stage.name}: {planned.path} is not what it was when it was made; put "
            f"it back, or {again}"
        )
    for name, parent in planned.parents.items():
        record_of_parent = read(parent)
        if record_of_parent is not None and record_of_parent.sha256 != record.parents.get(name):
            raise ValueError(
                f"stage {planned.stage.name} was made from another {parent.path} than is there "
                f"now; {again}"
            )
    return record


def write_record(planned: Planned, seconds: float) -> None:
    """Writes down that a stage is finished, and what it made from what."""
    records = {name: read(parent) for name, parent in planned.parents.items()}
    record = {
        "stage": planned.stage.name,
        "key": planned.key,
        "command": ["kullback", *planned.arguments],
        "inputs": dict(planned.inputs),
        "parents": {name: record.sha256 for name, record in records.items() if record is not None},
        "sha256": fingerprint(planned.path),
        "seconds": round(seconds, 1),
    }
    planned.record_file.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write_text(planned.record_file, json.dumps(record, indent=2) + "\n")


def fingerprint(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, or of a folder's files and their names.

    Of a run it is that of its checkpoints' manifests, which have a checksum of each file: what a
    run writes when it is read, an evaluation say, changes nothing.

    Raises:
      ValueError: for what is neither file nor folder.
    """
    digest = hashlib.sha256()
    for name, file in _content(path):
        digest.update(name.encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _content(path: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """Yields names and paths of the files that decide what is at a path, in a fixed order."""
    if path.is_file():
        yield "", path
        return
    if not path.is_dir():
        raise ValueError(f"no file or folder at {path}")
    pattern = "**/*"
    if run_folder.RunFolder(path).is_run():
        pattern = "**/checkpoints/*/manifest.json"
    for file in sorted(path.glob(pattern)):
        if file.is_file() and not file.is_symlink():
            yield str(file.relative_to(path)), file


def _paths_in(text: str) -> Iterator[str]:
    """Yields the paths of files and folders that exist, of those that a value may name.

    Values are paths, or have some after a name and a colon: "tokens/preferences:pairs.jsonl",
    "0.5*reward-model:runs/rm+exact". A mixture's file names further ones.

    Raises:
      ValueError: for a mixture that cannot be read.
    """
    from kullback.experiments.runs import rewards
    from kullback.lm import task_mixtures

    path = text.partition(":")[2]
    candidates = [text, path, *rewards.named_folders(text)]
    if text.startswith(task_mixtures.MIXTURE) and pathlib.Path(path).exists():
        candidates += [x.task.partition(":")[2] for x in task_mixtures.read(path).parts]
    for candidate in dict.fromkeys(candidates):
        if candidate and pathlib.Path(candidate).exists():
            yield candidate


def state(planned: Planned) -> str:
    """Returns how far a stage is, for a reader.

    Raises:
      ValueError: as `recorded` does.
    """
    record = recorded(planned)
    if record is not None:
        return f"finished, {record.seconds:,.0f} s"
    return "begun" if planned.path.exists() else "new"
