"""A run's folder: config.json, metrics.csv, TensorBoard events, learning_curve.png, checkpoints.

That of a language model has samples.jsonl beside metrics.csv.
"""

import csv
import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import tensorboardX

from kullback.core import checkpoints, files
from kullback.experiments import plots

PACKAGES = ("kullback", "jax", "jaxlib", "dm-haiku", "rlax", "optax", "distrax", "numpy")
GAMES = ("ale-py", "gymnasium", "dm-env")
WALL_TIME_COLUMNS = ("steps_per_second", "wall_seconds")  # All else repeats exactly.


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and what is read from and written to them."""

    path: pathlib.Path

    @property
    def config_file(self) -> pathlib.Path:
        """What the run was started with, JSON."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> pathlib.Path:
        """A row a log interval and seed, CSV."""
        return self.path / "metrics.csv"

    @property
    def samples_file(self) -> pathlib.Path:
        """What a language model wrote, JSON, a text a line."""
        return self.path / "samples.jsonl"

    @property
    def curve_file(self) -> pathlib.Path:
        """Return against agent steps, PNG."""
        return self.path / "learning_curve.png"

    @property
    def checkpoints(self) -> pathlib.Path:
        """A folder a checkpoint, by step."""
        return self.path / "checkpoints"

    @property
    def replay(self) -> pathlib.Path:
        """Segments of a host replay."""
        return self.path / "replay"

    @property
    def videos(self) -> pathlib.Path:
        """Recorded episodes."""
        return self.path / "videos"

    def config(self) -> dict[str, Any]:
        """Returns what the run was started with.

        Raises:
          ValueError: if this is not the folder of a run, or its config.json is damaged.
        """
        if not self.config_file.is_file():
            raise ValueError(f"{self.path} is no run: it has no config.json")
        config = self._read_config()
        if not isinstance(config, dict) or "plan" not in config:
            raise ValueError(f"{self.path} is no run: its config.json holds no plan")
        return config

    def is_run(self) -> bool:
        """Returns whether config.json is that of a run: a folder of weights has one too.

        Raises:
          ValueError: if it is damaged.
        """
        if not self.config_file.is_file():
            return False
        config = self._read_config()
        return isinstance(config, dict) and "plan" in config

    def _read_config(self) -> Any:
        try:
            return json.loads(self.config_file.read_text())
        except ValueError as error:
            raise ValueError(f"{self.config_file} is damaged: {error}") from error

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Writes config.json, whole or not at all."""
        checkpoints.atomic_write_text(self.config_file, json.dumps(config, indent=2) + "\n")

    def rows(self) -> list[dict[str, str]]:
        """Rows of metrics.csv as they are written; none if there is no such file."""
        if not self.metrics_file.is_file():
            return []
        with self.metrics_file.open(newline="") as file:
            return list(csv.DictReader(file))

    def write_rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rewrites metrics.csv, whole or not at all."""
        files.write_csv(self.metrics_file, rows)

    def draw(self, title: str, *, of_language: bool = False) -> None:
        """Draws learning_curve.png from metrics.csv."""
        plots.learning_curve(self.rows(), self.curve_file, title, of_language=of_language)


def create(path: pathlib.Path, config: Mapping[str, Any]) -> RunFolder:
    """Makes the folder of a new run.

    Raises:
      ValueError: if something is there already.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            f"{path} exists and is not empty; runs are never overwritten: choose another --out, "
            f"or go on with it by --resume {path}"
        )
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(path)
    folder.write_config(config)
    return folder


class Log:
    """Appends rows to metrics.csv and TensorBoard events."""

    def __init__(self, folder: RunFolder, env_steps: int):
        """Goes on at `env_steps`: rows after it are dropped, to be made again."""
        self._folder = folder
        kept = [row for row in folder.rows() if int(row["steps"]) <= env_steps]
        self._columns = list(kept[0]) if kept else None
        folder.write_rows(kept)
        self._events = tensorboardX.SummaryWriter(
            str(folder.path / "tensorboard"),
            purge_step=env_steps + 1 if env_steps else None,
            write_to_disk=True,
        )

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row of one seed; floats are written so that they read back the same."""
        new = self._columns is None
        self._columns = self._columns or list(row)
        with self._folder.metrics_file.open("a", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        for name, value in row.items():
            if name not in ("seed", "steps") and value == value:
                self._events.add_scalar(f"{name}/seed_{row['seed']}", value, row["steps"])

    def flush(self) -> None:
        """Hands what was written to the operating system."""
        self._events.flush()

    def close(self) -> None:
        """Flushes, and closes the files."""
        self._events.close()


class Texts:
    """Appends texts of one seed to samples.jsonl."""

    def __init__(self, folder: RunFolder, seed: int):
        self._file, self._seed = folder.samples_file, seed

    def begin(self, steps: int) -> None:
        """Goes on at `steps`: lines after it are dropped, to be made again."""
        text = self._file.read_text("utf-8") if self._file.is_file() else ""
        *lines, _ = text.split("\n")  # What a crash cut has no end.
        kept = [f"{line}\n" for line in lines if json.loads(line)["step"] <= steps]
        checkpoints.atomic_write_text(self._file, "".join(kept))

    def write(self, steps: int, texts: Sequence[Mapping[str, Any]]) -> None:
        """Appends texts, JSON-able, that were made when so many steps were done."""
        lines = [{"step": steps, "seed": self._seed, **text} for text in texts]
        with self._file.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def provenance() -> dict[str, Any]:
    """Versions, revision and machine, to repeat a run with."""
    versions = {}
    for name in (*PACKAGES, *GAMES):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None  # A package that this run did without.
    return {
        "versions": versions,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "command": _command(),
        "git_revision": _git_revision(),
    }


def _command() -> list[str]:
    """What was called, without where on the machine it is installed."""
    spec = sys.modules["__main__"].__spec__
    if spec is not None and spec.name.endswith(".__main__"):
        return ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]
    return [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]


def _git_revision() -> str | None:
    """Revision of the checkout that this file is in, "-dirty" if changed; None outside of one."""

    def git(*arguments: str) -> str:
        here = pathlib.Path(__file__).resolve().parent
        return subprocess.run(
            ["git", "-C", str(here), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        if not git("ls-files", "run_folder.py"):
            return None  # Installed into somebody else's checkout.
        dirty = "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return None
