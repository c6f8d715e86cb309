"""Results of benchmarks: rows, their table, and the file that keeps them."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import rich.table

from kullback.core import files, json_files


class Skipped(Exception):
    """Nothing can be measured here, through nobody's fault; one line says what is missing."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One figure, what a peer reached at the same work, and what was aimed at."""

    name: str
    ours: float
    unit: str
    lower_is_better: bool = False  # For `ours` and `peer_value`, as for seconds.
    peer: str = ""
    peer_value: float | None = None  # In `unit`; None if there is no peer, or it did not run.
    target: float | None = None  # For `ours`.
    target_ratio: float | None = None
    limit_share: float | None = None  # The share of the machine's limit, in [0, 1].
    target_limit_share: float | None = None
    details: Mapping[str, float] = dataclasses.field(default_factory=dict)
    failure: str = ""  # Why the peer has no value although it was to have one, in one line.
    benchmark: str = ""  # The name of the benchmark that measured it.

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the peer's; None without a peer."""
        if self.peer_value is None:
            return None
        over, under = self.ours, self.peer_value
        if self.lower_is_better:
            over, under = under, over
        return over / under

    @property
    def met(self) -> bool | None:
        """Whether all targets that can be judged are met; None if there is none."""
        sign = -1 if self.lower_is_better else 1
        judged = [
            sign * (value - target) >= 0
            for value, target, sign in (
                (self.ours, self.target, sign),
                (self.ratio, self.target_ratio, 1),
                (self.limit_share, self.target_limit_share, 1),
            )
            if value is not None and target is not None
        ]
        return all(judged) if judged else None

    def to_json(self) -> dict[str, Any]:
        """Returns all fields, the ratio and whether the targets are met."""
        return {**dataclasses.asdict(self), "ratio": self.ratio, "met": self.met}


def of_peer(rates: Mapping[str, float], key: str, name: str = "") -> dict[str, Any]:
    """Returns the fields of a row that are a peer's: none if it did not run."""
    return {"peer": name or key, "peer_value": rates[key]} if key in rates else {}


def beside_transformers(
    row: Row, rates: Mapping[str, float], kind: str, target_ratio: float
) -> list[Row]:
    """Returns a row of ours beside transformers as it is, which has the target, and at best.

    Args:
      row: of ours.
      rates: by name; the peer's are `peer, KIND` and, of one that keeps freed memory, `peer,
        kept_KIND`.
      kind: of the work, such as "images".
      target_ratio: that is wanted.
    """
    return [
        dataclasses.replace(row, **of_peer(rates, key, name), target_ratio=wanted)
        for key, name, wanted in (
            (f"peer, {kind}", "transformers", target_ratio),
            (f"peer, kept_{kind}", "transformers that keeps freed memory", None),
        )
    ]


_COLUMNS = ("benchmark", "ours", "peer", "ratio", "of the limit", "target", "met")


def table(rows: Sequence[Row]) -> rich.table.Table:
    """Formats rows as a table for a terminal."""
    shown = rich.table.Table(title="Ours, the peer's and the ratio (above 1: ours is better)")
    for column in _COLUMNS:
        is_number = column in ("ours", "peer", "ratio", "of the limit")
        shown.add_column(column, justify="right" if is_number else "left")
    for row in rows:
        shown.add_row(*_cells(row))
    return shown


def markdown(rows: Sequence[Row]) -> str:
    """Formats rows as a table in Markdown; a ratio above 1 says that ours is better."""
    lines = [_COLUMNS, ["---"] * len(_COLUMNS), *map(_cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        f"{_number(row.ours)} {row.unit}",
        f"{_number(row.peer_value)} {row.peer}" if row.peer else "",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if row.limit_share is None else f"{row.limit_share:.1%}",
        _targets(row),
        {None: "", True: "yes", False: "no"}[row.met],
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "n/a"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def _targets(row: Row) -> str:
    bound = "<=" if row.lower_is_better else ">="
    parts = [] if row.target is None else [f"{bound} {_number(row.target)}"]
    if row.target_ratio is not None:
        parts.append(f"ratio >= {row.target_ratio:g}")
    if row.target_limit_share is not None:
        parts.append(f"limit >= {row.target_limit_share:.0%}")
    return ", ".join(parts)


def write(path: pathlib.Path, rows: Sequence[Row], **described: Any) -> None:
    """Writes rows and what describes their run as JSON, whole or not at all."""
    contents = {**described, "rows": [row.to_json() for row in rows]}
    files.atomic_write_text(path, json.dumps(contents, indent=2) + "\n")


def read(path: pathlib.Path) -> list[Row]:
    """Reads the rows that `write` wrote.

    Raises:
      ValueError: if the file is damaged.
    """
    names = {field.name for field in dataclasses.fields(Row)}
    return [
        Row(**{name: value for name, value in record.items() if name in names})
        for record in json_files.read(path).records("rows")
    ]
