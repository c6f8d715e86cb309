"""A run's folder: config.json, metrics.csv, TensorBoard events, learning_curve.png, checkpoints.

A language model's also has samples.jsonl.
"""

import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import json
import pathlib
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kullback.core import files, json_files
from kullback.experiments import checkout, plots
from kullback.experiments.runs import owner

PACKAGES = ("kullback", "jax", "jaxlib", "dm-haiku", "rlax", "optax", "distrax", "numpy")
GAMES = ("ale-py", "gymnasium", "dm-env")
CONFIG = "config.json"
DIVERGED = "diverged.json"
BASE = "base_sha256"  # Key of config.json, of the parameters of the base of a run of adapters.
_BUILDING = f"{files.TEMPORARY}run"  # In an empty folder that becomes a run.
# All other columns repeat exactly.
WALL_TIME_COLUMNS = ("steps_per_second", "wall_seconds", "wait_seconds")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The paths of a run's files, and how they are read and written."""

    path: pathlib.Path

    @property
    def config_file(self) -> pathlib.Path:
        """The run's configuration, JSON."""
        return self.path / CONFIG

    @property
    def metrics_file(self) -> pathlib.Path:
        """A row for each log interval and seed, CSV."""
        return self.path / "metrics.csv"

    @property
    def samples_file(self) -> pathlib.Path:
        """Texts that a language model wrote, a JSON object per line."""
        return self.path / "samples.jsonl"

    @property
    def diverged_file(self) -> pathlib.Path:
        """The reason why a run has diverged, JSON: what was not finite, and when."""
        return self.path / DIVERGED

    @property
    def curve_file(self) -> pathlib.Path:
        """The curve of returns over agent steps, PNG."""
        return self.path / "learning_curve.png"

    @property
    def checkpoints(self) -> pathlib.Path:
        """A folder for each checkpoint, named by its step."""
        return self.path / "checkpoints"

    @property
    def replay(self) -> pathlib.Path:
        """Segments of a host replay."""
        return self.path / "replay"

    def config(self) -> dict[str, Any]:
        """Returns the run's configuration.

        Raises:
          ValueError: if this is not the folder of a run, or its config.json is damaged.
        """
        record = self._read_config()
        if record is None:
            raise ValueError(f"{self.path} is no run: it has no config.json")
        if "plan" not in record:
            raise ValueError(f"{self.path} is no run: its config.json holds no plan")
        return _checked(record)

    def is_run(self) -> bool:
        """Returns whether this is a run: folders of weights have a config.json, too.

        Raises:
          ValueError: if it is damaged.
        """
        record = self._read_config()
        return record is not None and "plan" in record

    def _read_config(self) -> json_files.Record | None:
        if not self.config_file.is_file():
            return None
        return json_files.read(self.config_file, nan=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.json, whole or not at all."""
        files.atomic_write_text(self.config_file, json.dumps(config, indent=2) + "\n")

    def diverged(self) -> str:
        """Returns why the run, or one of its seeds, has diverged; "" if none has.

        Raises:
          ValueError: if diverged.json is damaged.
        """
        for file in (self.diverged_file, *sorted(self.path.glob(f"seed_*/{DIVERGED}"))):
            if file.is_file():
                return json_files.read(file).get("reason", str)
        return ""

    def write_diverged(self, reason: str) -> None:
        """Writes down why the run has diverged, so that a sweep does not try it again."""
        files.atomic_write_text(self.diverged_file, json.dumps({"reason": reason}) + "\n")

    def rows(self) -> list[dict[str, str]]:
        """Reads the rows of metrics.csv as texts; none if there is no such file.

        A last row without a line end is left out: it is being written, or a crash has cut it.

        Raises:
          ValueError: for a line that is no row of numbers.
        """
        if not self.metrics_file.is_file():
            return []
        text = self.metrics_file.read_text("utf-8", errors="replace")
        lines = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1].replace("\0", "?"))))
        if not lines:
            return []
        header = lines[0]
        if not {"seed", "steps"} <= {*header}:
            raise ValueError(f"{self.metrics_file} is damaged: its first line names no seed, steps")
        for number, line in enumerate(lines[1:], 2):
            if len(line) != len(header) or not _are_numbers(dict(zip(header, line, strict=True))):
                raise ValueError(
                    f"{self.metrics_file} is damaged: line {number} must be {len(header)} numbers, "
                    f"got {','.join(line)[:60]!r}"
                )
        return [dict(zip(header, line, strict=True)) for line in lines[1:]]

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rewrites metrics.csv, whole or not at all."""
        files.write_csv(self.metrics_file, rows)

    @property
    def is_curve_behind(self) -> bool:
        """Whether learning_curve.png is missing, or older than metrics.csv."""
        curve, metrics = self.curve_file, self.metrics_file
        if not curve.is_file():
            return metrics.is_file()
        return metrics.is_file() and curve.stat().st_mtime_ns < metrics.stat().st_mtime_ns

    def draw(self, title: str, axes: plots.Axes = plots.GAMES) -> None:
        """Draws learning_curve.png from metrics.csv."""
        plots.learning_curve(self.rows(), self.curve_file, title, axes)


@contextlib.contextmanager
def created(
    path: pathlib.Path,
    config: Mapping[str, Any],
    fill: Callable[[pathlib.Path], None] = lambda folder: None,
) -> Iterator[RunFolder]:
    """Makes the folder of a new run, whose lock this process holds until the block ends.

    The folder appears whole: its files are written beside it, or inside if an empty folder exists
    already (a disk's root, the current folder), and then renamed, config.json last. If the block
    raises before a checkpoint is saved, nothing is left.

    Args:
      path: of the new folder, or of an empty one.
      config: the content of config.json.
      fill: writes the other files with which this kind of run begins.

    Raises:
      ValueError: if something is there already, or it cannot be written.
    """
    check_free(path)
    existed = path.exists()
    building = path / _BUILDING if existed else path.parent / f"{files.TEMPORARY}{path.name}"
    _clean(building)
    try:
        building.mkdir(parents=True)
    except FileExistsError:
        raise ValueError(f"{path} is being begun by another process") from None
    with owner.held(building):
        try:
            RunFolder(building).write_config(config)
            fill(building)
            files.sync(building)
            if existed:
                for child in sorted(building.iterdir(), key=lambda child: child.name == CONFIG):
                    child.rename(path / child.name)
                building.rmdir()
            else:
                _rename(building, path)
        except BaseException:
            files.remove(building)
            raise
        try:
            yield RunFolder(path)
        except BaseException:
            if not any(path.glob("checkpoints/[0-9]*")) and not any(
                path.glob("seed_*/checkpoints/[0-9]*")
            ):
                with contextlib.suppress(OSError):  # Threads of a failed write may still add files.
                    for child in path.iterdir() if existed else [path]:
                        files.remove(child)
            raise


def slug(text: str) -> str:
    """Returns a text as part of a folder's name, without characters that a shell reads."""
    return re.sub(r"[^\w.,=+-]+", "-", text)


def default_path(agent: str, environment: str) -> pathlib.Path:
    """Returns the folder of a new run for which none is named: the next free one under runs/."""
    return next_free(pathlib.Path("runs") / slug(f"{agent}-{environment}"))


def next_free(stem: pathlib.Path, suffix: str = "") -> pathlib.Path:
    """Returns the first of stem-001, stem-002, ... that does not exist, with a suffix."""
    paths = (stem.with_name(f"{stem.name}-{n:03d}{suffix}") for n in range(1, 10**6))
    return next(path for path in paths if not path.exists())


def check_free(path: pathlib.Path) -> None:
    """Checks that a new run can be made at `path`.

    Raises:
      ValueError: if something is there, or it cannot be written.
    """
    files.check_writable(path)
    if not path.exists():
        return
    is_building = path.is_dir() and (path / _BUILDING).is_dir() and not (path / CONFIG).exists()
    if is_building or _has_half_a_checkpoint_alone(path):
        # Another process fills this folder, or was killed while it did; or the first checkpoint did
        # not fit on the disk, and threads went on writing after all was removed.
        _check_not_owned(path / _BUILDING, path)
        _check_not_owned(path, path)
        for child in path.iterdir():
            files.remove(child)
    if not path.is_dir() or any(path.iterdir()):
        raise ValueError(
            f"{path} exists and is not empty; runs are never overwritten: choose another --out, "
            f"or go on with it by --resume {path}"
        )


def _has_half_a_checkpoint_alone(path: pathlib.Path) -> bool:
    """Returns whether a folder has files, and all are of a checkpoint that was never whole."""
    present = [file for file in path.rglob("*") if not file.is_dir()]
    parents = (path / "checkpoints", *path.glob("seed_*/checkpoints"))
    halves = [half for parent in parents for half in parent.glob(f"{files.TEMPORARY}*")]
    return bool(present) and all(any(map(file.is_relative_to, halves)) for file in present)


def _clean(building: pathlib.Path) -> None:
    """Removes a folder that a killed process has left half-made."""
    if building.exists():
        _check_not_owned(building, building)
        files.remove(building)


def _check_not_owned(folder: pathlib.Path, path: pathlib.Path) -> None:
    if owner.is_held(folder):
        raise ValueError(f"{path} is being begun by another process")


def _rename(building: pathlib.Path, path: pathlib.Path) -> None:
    try:
        building.rename(path)
    except OSError as error:
        if path.exists():
            raise ValueError(f"{path} was begun by another process meanwhile") from error
        raise


def _checked(record: json_files.Record) -> dict[str, Any]:
    """Returns the contents of config.json; checks the types of the keys that are read later.

    The plan is checked where it is built.
    """
    record.record("plan")
    record.record("spec", {}).get("frames_per_step", int, 1)
    record.record("data", {}).get("rule", int, 1)
    record.record("versions", {})
    record.get("loop", str, "host")
    record.list_of("resumed", dict, [])
    return dict(record.items())


def _are_numbers(row: Mapping[str, str]) -> bool:
    try:
        numbers = [int(row["seed"]), int(row["steps"]), *map(float, row.values())]
    except ValueError:
        return False
    return len(numbers) > 2


def provenance() -> dict[str, Any]:
    """Returns versions, revision, machine and command, by which a run can be repeated."""
    versions = {}
    for name in (*PACKAGES, *GAMES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None  # Not installed.
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "command": _command(),
        "git_revision": checkout.revision(),
    }


def _command() -> list[str]:
    """Returns the command of this process, without the folder that it is installed in."""
    spec = sys.modules["__main__"].__spec__
    if spec is not None and spec.name.endswith(".__main__"):
        return ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    return [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
