"""Studies: what every reproduction is made of, as data.

A study has arms, which are computed once and kept as parts; tables of their rows; claims, judged by
intervals over seeds or processes (never by one alone); and panels, grids of lines with their bands.
"""

import dataclasses
import json
import pathlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib.figure import Figure

from kullback.core import files, json_files
from kullback.experiments import progress
from kullback.experiments.reproductions import charts, judging

Row = dict[str, Any]  # A row of a table by column; values are numbers and texts.
Rows = list[Row]
Tables = Mapping[str, Rows]


class Results(NamedTuple):
    """Results of a reproduction."""

    tables: Mapping[str, Rows]  # By name, a CSV each.
    figures: Mapping[str, Figure]  # By name, a PNG and an SVG each.
    checks: Sequence[judging.Check]
    films: Mapping[str, pathlib.Path] = {}  # By name, a GIF each, as an arm wrote it.


class Journal:
    """Journal of a study: keeps the parts that are done, and shows progress."""

    def __init__(self, folder: pathlib.Path, bar: progress.Progress):
        self._folder, self._bar = folder, bar
        self._done, self._running = (
            0,
            0,
        )  # Steps of the parts that are done, and of the running one.

    def part(self, name: str, steps: int, compute: Callable[[], Iterable[Row]]) -> Rows:
        """Returns the rows of one part, from the folder if they are there.

        Args:
          name: of the part; its file bears it.
          steps: its amount of work.
          compute: makes the rows.

        Raises:
          ValueError: if the part is in the folder, and is not as it was written.
        """
        self._running = steps
        rows = self.step(name, compute)
        self._done += steps
        self._bar.update(self._done)
        return rows

    def step(self, name: str, compute: Callable[[], Iterable[Row]]) -> Rows:
        """Returns the rows of a step of the running part, see `part`."""
        path = self._folder / f"{name}.json"
        if not path.is_file():
            rows = list(compute())
            kept = {"rows": rows, "crc32": _crc32(rows)}
            files.atomic_write_text(path, json.dumps(kept))
        return _kept_rows(path)  # The same numbers, whether kept or fresh.

    def kept(self, name: str) -> Rows:
        """Returns the rows of a part that is done, for those that build on it."""
        return _kept_rows(self._folder / f"{name}.json")

    def path(self, name: str) -> pathlib.Path:
        """Returns a path for the running part's state, which outlives an interruption."""
        return self._folder / name

    def tick(self, steps: int, value: float | None = None, metric: str = "loss") -> None:
        """Shows that `steps` of the running part are done, and the metric that matters.

        A part that takes more steps than were estimated stands at all of them until it is done.
        """
        self._bar.update(self._done + min(steps, self._running), value, metric)

    def say(self, text: str) -> None:
        """Prints a line."""
        self._bar.say(text)


def _kept_rows(path: pathlib.Path) -> Rows:
    """Reads a part; those of version 0.1 are a list of rows, without a checksum."""
    try:
        if path.read_bytes().startswith(b"["):
            return [dict(row.items()) for row in json_files.read_list(path, nan=True)]
        part = json_files.read(path, nan=True)
        rows = [dict(row.items()) for row in part.records("rows")]
        if _crc32(rows) != part.get("crc32", int):
            raise ValueError(f"{path} has changed since it was written (its CRC-32 differs)")
    except ValueError as error:
        raise ValueError(f"{error}; remove it, and the part is computed again") from error
    return rows


def _crc32(rows: Rows) -> int:
    return zlib.crc32(json.dumps(rows).encode())


class Arm(NamedTuple):
    """One part of a study: a scheme, a model or an agent, with one seed or all of them."""

    part: str  # Its file's name.
    steps: int  # Amount of work.
    compute: Callable[[Journal], Iterable[Row]]
    # To which its rows go; "": they say so themselves, see `split`, or there is one. None: to none,
    # but later arms read them.
    table: str | None = ""
    columns: Mapping[str, Any] = {}  # That its rows have besides; they stand in front.
    scratch: str = ""  # A folder beside the parts, which goes once the part is kept; "" is none.


# Fields that came after results were committed, and what these had.
EARLIER: Mapping[str, Any] = {"first_seed": 0}


class Seeded(Protocol):
    """Configuration of a study over seeds."""

    @property
    def first_seed(self) -> int:
        """The lowest seed."""
        ...

    @property
    def seeds(self) -> int:
        """How many there are."""
        ...


def seeds_of(config: Seeded) -> range:
    """Returns the seeds of a configuration."""
    return range(config.first_seed, config.first_seed + config.seeds)


# Tables.


def run(arms: Iterable[Arm], journal: Journal) -> Rows:
    """Returns the rows of all arms, in their order; those that are kept are not computed again."""
    rows: Rows = []
    for arm in arms:
        part = journal.part(arm.part, arm.steps, lambda arm=arm: arm.compute(journal))
        if arm.scratch:
            files.remove(journal.path(arm.scratch))
        if arm.table is not None:
            part = [{**arm.columns, **row} for row in part]
            rows += tagged(arm.table, part) if arm.table else part
    return rows


def tagged(table: str, rows: Iterable[Mapping[str, Any]]) -> Rows:
    """Returns rows that say to which table they go; `split` sorts them."""
    return [{"table": table, **row} for row in rows]


def split(rows: Rows, *tables: str) -> dict[str, Rows]:
    """Sorts `tagged` rows of several tables into those."""
    by_table: dict[str, Rows] = {name: [] for name in tables}
    for row in rows:
        by_table[row["table"]].append({k: v for k, v in row.items() if k != "table"})
    return by_table


def even(rows: Rows, *columns: str) -> Rows:
    """Returns rows with these columns each, or with all that any has; None where one has none."""
    names = columns or dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name) for name in names} for row in rows]


def where(rows: Rows, **columns: Any) -> Rows:
    """Returns the rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in columns.items())]


def column(rows: Rows, name: str, **columns: Any) -> np.ndarray:
    """Returns a column of the rows with these values, [rows]: a number a seed or a process."""
    return np.array([row[name] for row in where(rows, **columns)])


def distinct(rows: Rows, name: str) -> list[Any]:
    """Returns a column's values, each once, in their order."""
    return list(dict.fromkeys(row[name] for row in rows))


def by_seed(rows: Rows, name: str, **columns: Any) -> np.ndarray:
    """Returns a column of the rows with these values, [seeds, n]; each seed has as many."""
    rows = where(rows, **columns)
    return np.array([column(rows, name, seed=seed) for seed in distinct(rows, "seed")])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A paper's claim, and all that is needed to run it again; C is the class of `config`."""

    claim: str  # A sentence.
    source: str  # The paper.
    config: Any  # A frozen dataclass with the default size; `--set` changes its fields.
    arms: Callable[[Any], Iterable[Arm]]  # C -> what is run.
    tables: Callable[[Any, Rows], Tables]  # (C, rows of all arms) -> a CSV each.
    claims: Callable[[Any, Tables], Iterable[judging.Check]]
    figures: Callable[[Any, Tables], Mapping[str, charts.Grid]]  # By the name of its files.
    seconds: Callable[[Any], float]  # C -> estimate, on 2 CPU cores.
    # C -> what is said before work: memory, disk, what can be shown. Raises ValueError where
    # something is not there that it needs.
    before: Callable[[Any], Iterable[str]] = lambda config: ()
    # C -> names of films, which an arm writes to `Journal.path("NAME.gif")`.
    films: Callable[[Any], Iterable[str]] = lambda config: ()

    def steps(self, config: Any) -> int:
        """Returns the amount of work of all arms."""
        return sum(arm.steps for arm in self.arms(config))

    def run(self, config: Any, journal: Journal) -> Results:
        """Runs all arms, then judges and draws what they show."""
        tables = self.tables(config, run(self.arms(config), journal))
        checks = list(self.claims(config, tables))
        figures = {name: grid.draw() for name, grid in self.figures(config, tables).items()}
        films = {name: journal.path(f"{name}.gif") for name in self.films(config)}
        return Results(tables, figures, checks, films)
