"""Attempts, their outcomes, and the file that adds these up over the pieces of a soak."""

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from tests.soak import server

# lost: work is gone, cannot go on, or a command has no end, takes too much memory, or leaves behind
# what it must not. wrong: success and another result, nothing said. traceback: of Python, or of a
# library's own. unclear: refused in other than one line. untried: the machine does not allow it.
Fault = Literal["", "lost", "wrong", "traceback", "unclear", "untried"]
FAULTS: tuple[Fault, ...] = ("lost", "wrong", "traceback", "unclear")
REPORTS = (
    "Traceback (most recent call last)",
    "Fatal Python error",
    "Exception ignored in",
    "panicked at",
    "terminate called",
)
# Lines of stderr that are no complaint: progress of runs and sweeps, and a notice.
PROGRESS = re.compile(r": step |^\d+ of \d+: |keys and values of")


class Untried(Exception):
    """The machine does not allow an attempt; the message says what is missing."""


class Failed(Exception):
    """Work that nothing disturbed has failed; the message says of which kind, and how."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """One thing that was tried."""

    what: str
    fault: Fault = ""
    said: str = ""  # Why it is a fault.


@dataclasses.dataclass(frozen=True)
class Workshop:
    """Folders of commands: one of material that all may read, and one for each attempt."""

    home: pathlib.Path
    compiled: pathlib.Path  # Programs that JAX keeps.

    def scratch(self) -> pathlib.Path:
        """Returns an empty folder, the same each time, so that what commands print is the same.

        What the attempt before has left there goes; after a fault one may look at it.
        """
        path = self.home / "scratch"
        remove(path)
        path.mkdir(parents=True)
        return path

    def call(self, home: pathlib.Path, *arguments: str, **fields: object) -> server.Call:
        """Returns a command to be run in a folder; it reads compiled programs and keeps none."""
        keeps = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1e9"}
        call = server.Call(arguments=arguments, home=home, log=self.home / "log", environment=keeps)
        return dataclasses.replace(call, **fields)  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass(frozen=True)
class Category:
    """A kind of things to be tried."""

    name: str
    count: int  # In a whole soak.
    attempt: Callable[[Workshop, np.random.Generator, int], Attempt]


def judged(
    what: str, outcome: server.Outcome, statuses: Sequence[int], *, names: Sequence[str] = ()
) -> Attempt:
    """Judges how a command ended: within its limits, and if it refused, in one line.

    Args:
      what: what was tried.
      outcome: of the command.
      statuses: those of exit that it may have; a command that may have 0 alone has to succeed.
      names: of which the line of a refusal has to hold one; none: any line will do.
    """

    def fault(kind: Fault, said: str) -> Attempt:
        said = f"{said}; stdout: {outcome.out[-200:]!r}, stderr: {outcome.err[-600:]!r}"
        return Attempt(what=what, fault=kind, said=said)

    if any(report in outcome.err + outcome.out for report in REPORTS):
        return fault("traceback", f"status {outcome.status}")
    if outcome.exceeded:
        at = f"{outcome.seconds:.0f} s, {outcome.megabytes:.0f} MB"
        return fault("lost", f"killed for its {outcome.exceeded} at {at}")
    if outcome.status not in statuses:
        said = f"status {outcome.status}, expected one of {tuple(statuses)}"
        if outcome.status == 0:
            return fault("wrong", said)
        return fault("lost" if 0 in statuses or outcome.status < 0 else "unclear", said)
    if outcome.status <= 0:
        return Attempt(what=what)
    said = complaint(outcome)
    if not said or not said[-1].startswith("kullback: "):
        return fault("unclear", "its last line does not begin with kullback:")
    if sum(line.startswith(("kullback: ", " ")) for line in said) > 1 or len(said) > 3:
        return fault("unclear", f"{len(said)} lines")
    if names and not any(name in said[-1] for name in names):
        return fault("unclear", f"names none of {tuple(names)}")
    return Attempt(what=what)


def complaint(outcome: server.Outcome) -> list[str]:
    """Returns the lines of stderr that are not progress of a run or a sweep."""
    lines = [line for line in outcome.err.splitlines() if line.strip()]
    return [line for line in lines if not PROGRESS.search(line)]


def left_behind(before: frozenset[str], folder: pathlib.Path) -> list[str]:
    """Returns what is new in a folder since `contents` was called."""
    return sorted(contents(folder) - before)


def contents(folder: pathlib.Path) -> frozenset[str]:
    """Returns the names of all that is in a folder, but for the locks of runs."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*"))
    return frozenset(name for name in names if pathlib.Path(name).name != ".lock")


def remove(path: pathlib.Path) -> None:
    """Removes a folder, also one that was made read-only."""
    if path.is_dir():
        for folder in (path, *path.rglob("*")):
            if folder.is_dir() and not folder.is_symlink():
                folder.chmod(0o755)
        shutil.rmtree(path)


class Ledger:
    """A file of attempts, one a line: each piece of a soak adds its own."""

    def __init__(self, path: pathlib.Path, seed: int, revision: str):
        """Reads what was tried with this seed, whatever the library was then."""
        self._path, self._seed, self._revision = path, seed, revision
        lines = path.read_text().splitlines() if path.is_file() else []
        rows = [json.loads(line) for line in lines]
        # What is tried again replaces what came of it before.
        self._rows = {(r["category"], r["number"]): r for r in rows if r["seed"] == seed}

    def has(self, category: str, number: int) -> bool:
        """Returns whether an attempt was made already."""
        return (category, number) in self._rows

    def add(self, category: str, number: int, attempt: Attempt) -> None:
        """Writes an attempt down."""
        row = {"seed": self._seed, "category": category, "number": number}
        row |= {"revision": self._revision, **dataclasses.asdict(attempt)}
        self._rows[category, number] = row
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    @property
    def revisions(self) -> int:
        """How many states of the library the attempts are of."""
        return len({row["revision"] for row in self._rows.values()})

    def counts(self, names: Sequence[str]) -> dict[str, dict[str, int]]:
        """Returns for each category: tried, each fault, untried."""
        table = {}
        for name in names:
            all_faults = [row["fault"] for row in self._rows.values() if row["category"] == name]
            untried = all_faults.count("untried")
            faults = {fault: all_faults.count(fault) for fault in FAULTS}
            table[name] = {"tried": len(all_faults) - untried, **faults, "untried": untried}
        return table


def shown(table: dict[str, dict[str, int]], wanted: dict[str, int]) -> str:
    """Returns counts as a table of text, with how many of each are wanted in a whole soak."""
    columns = ("tried", "of", *FAULTS, "untried")
    lines = ["".join([f"{'':<12}", *(f"{name:>11}" for name in columns)])]
    rows = {name: {**counts, "of": wanted[name]} for name, counts in table.items()}
    rows["all"] = {name: sum(row[name] for row in rows.values()) for name in columns}
    for name, row in rows.items():
        lines.append("".join([f"{name:<12}", *(f"{row[column]:>11}" for column in columns)]))
    return "\n".join(lines)
