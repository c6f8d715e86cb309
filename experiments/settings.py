"""`--set field=value`: the way from a command line to the fields of nested frozen dataclasses."""

import contextlib
import dataclasses
import io
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import tyro

from kullback.core import names

Config = TypeVar("Config")


def fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name, type and value of each leaf field of a nested dataclass."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, name + ".")
        else:
            yield name, hints[field.name], value


def apply(config: Config, assignments: Iterable[str]) -> Config:
    """The configuration with some fields changed.

    Args:
      config: a frozen dataclass, whose fields may be such dataclasses.
      assignments: each "field=value", the field dotted ("learning.replay.capacity") or bare
        where only one has that name ("capacity").

    Raises:
      ValueError: for an unknown or ambiguous field, a value of another type, or a value that
        the configuration itself refuses.
    """
    changes: dict[str, Any] = {}
    leaves = {name: hint for name, hint, _ in fields(config)}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"expected field=value, got {assignment!r}; e.g. temperature=0.1")
        full = _resolve(name.strip(), leaves)
        changes[full] = parse(full, leaves[full], text.strip())
    return replace(config, changes)


def replace(config: Config, changes: dict[str, Any]) -> Config:
    """The configuration with leaf fields replaced, by dotted name, all at once."""
    own: dict[str, Any] = {}
    nested: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        if rest:
            nested.setdefault(head, {})[rest] = value
        else:
            own[head] = value
    for head, inner in nested.items():
        own[head] = replace(getattr(config, head), inner)
    return dataclasses.replace(config, **own)  # pyright: ignore[reportArgumentType]  # Checked above.


def parse(name: str, hint: Any, text: str) -> Any:
    """`text` as a value of type `hint`; ValueError names the field, the value and the type."""
    given = [text]
    if hint is bool or (text.lower() == "none" and type(None) in typing.get_args(hint)):
        given = [text.capitalize()]
    elif typing.get_origin(hint) is tuple:  # 64,64 and (64, 64) and 64 64.
        given = text.strip("()").replace(",", " ").split()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(hint, args=given)
    except SystemExit as error:  # tyro exits where argparse would.
        raise ValueError(f"{name} must be {describe(hint)}, got {text!r}") from error


def describe(hint: Any) -> str:
    """A type as a person reads it: "float", "huber or squared", "int | None"."""
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if hint is bool:
        return "True or False"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _resolve(name: str, leaves: dict[str, Any]) -> str:
    if name in leaves:
        return name
    same = [full for full in leaves if full.split(".")[-1] == name or full.endswith("." + name)]
    if len(same) == 1:
        return same[0]
    if same:
        raise ValueError(f"field {name!r} is ambiguous: write one of {', '.join(sorted(same))}")
    bare = {full.split(".")[-1] for full in leaves}
    raise ValueError(names.unknown("field", name.split(".")[-1], bare))
