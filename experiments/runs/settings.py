"""Assignments "field=value", as in `--set`, to the fields of nested frozen dataclasses.

Flags of environments and of models are read likewise; `core.typed` reads the values.
"""

import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from kullback.core import names, typed

Config = TypeVar("Config")

# Key of a field's metadata: rows of values for the fields beside it, by the value of the field.
ROWS = "rows"


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields dotted name, type and value of each leaf field of a nested dataclass."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, name + ".")
        else:
            yield name, hints[field.name], value


def apply(config: Config, assignments: Iterable[str]) -> Config:
    """Returns the configuration with some fields changed.

    Args:
      config: a frozen dataclass, whose fields may be such dataclasses.
      assignments: each "field=value", the field dotted ("learning.replay.capacity") or bare
        where only one has that name ("capacity"). One whose value names a row of others, such as
        `variant` of rlhf, gives these too, but for those that are assigned themselves.

    Raises:
      ValueError: for an unknown or ambiguous field, a value of a wrong type, or one that the
        configuration itself refuses.
    """
    leaves = {name: hint for name, hint, _ in fields(config)}
    values = read(leaves, assignments)
    return replace(config, {**dict(_of_rows(config, values)), **values})


def _of_rows(config: Any, values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted names and values of the rows that values name."""
    for field in dataclasses.fields(config):
        name, inner = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(inner):
            yield from _of_rows(inner, values, name + ".")
        elif ROWS in field.metadata and name in values:
            yield from ((prefix + n, x) for n, x in field.metadata[ROWS][values[name]].items())


def read(
    hints: Mapping[str, Any], assignments: Iterable[str], *, noun: str = "field", where: str = ""
) -> dict[str, Any]:
    """Returns the values that assignments give, by full name; the last one for a name wins.

    Args:
      hints: types by full name.
      assignments: each "name=value", the name dotted, or bare where only one ends with it.
      noun: the noun for a name in messages.
      where: a prefix of names in messages.

    Raises:
      ValueError: for an unknown or ambiguous name, or a value of a wrong type.
    """
    values: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            example = ", e.g. temperature=0.1" if noun == "field" else ""
            raise ValueError(
                f"{where}expected {noun}=value, got {typed.shown(assignment)}{example}"
            )
        full = _resolve(name.strip(), hints, noun, where)
        value = values[full] = typed.parse(where + full, hints[full], text)
        if isinstance(value, int) and abs(value) >= 2**31:  # XLA's integers have 32 bits.
            raise ValueError(f"{where}{full} must lie below 2^31, got {text.strip()}")
    return values


def replace(config: Config, changes: dict[str, Any]) -> Config:
    """Returns the configuration with leaf fields replaced, by dotted name, all at once."""
    leaves: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        if rest:
            nested.setdefault(head, {})[rest] = value
        else:
            leaves[head] = value
    inner = {head: replace(getattr(config, head), fields) for head, fields in nested.items()}
    return dataclasses.replace(config, **leaves, **inner)  # pyright: ignore[reportArgumentType]


def shown(values: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Returns some of the values as assignments for a message; "none" where there is no value."""
    return ", ".join(f"{name}={values.get(name, 'none')}" for name in keys)


def _resolve(name: str, hints: Mapping[str, Any], noun: str, where: str) -> str:
    if name in hints:
        return name
    same = [full for full in hints if full.split(".")[-1] == name or full.endswith("." + name)]
    if len(same) == 1:
        return same[0]
    if same:
        raise ValueError(
            f"{where}{noun} {name!r} is ambiguous: write one of {', '.join(sorted(same))}"
        )
    bare = {full.split(".")[-1] for full in hints}
    raise ValueError(where + names.unknown(noun, name.split(".")[-1], bare))
