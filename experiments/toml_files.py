"""TOML files of users: their contents, tables in them, and keys that are known."""

import pathlib
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from kullback.core import folders, names


def read(source: str | pathlib.Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Returns the contents of a file and its name; those of a mapping are itself and "".

    Raises:
      ValueError: if it is no TOML, or no regular file.
    """
    if isinstance(source, Mapping):
        return source, ""
    folders.check_regular(source)
    try:
        return tomllib.loads(pathlib.Path(source).read_text("utf-8")), str(source)
    except ValueError as error:  # Not TOML, or not UTF-8.
        raise ValueError(f"{source} is no TOML file: {error}") from error


def table(tables: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Returns the table of a key; an empty one if there is none.

    Raises:
      ValueError: for something else than a table.
    """
    return mapping(key, tables.get(key, {}))


def mapping(key: str, given: Any) -> Mapping[str, Any]:
    """Returns what was given for a key.

    Raises:
      ValueError: unless it is a table.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{key} must be a table of fields, got {given!r}")
    return given


def check_known(kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError, with the nearest ones, for names that are not known.

    Args:
      kind: of the names, for the message.
      given: names.
      known: all that there are.
    """
    for name in given:
        if name not in known:
            raise ValueError(names.unknown(kind, name, known))
