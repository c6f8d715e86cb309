"""Damaged JSON: each value of a sound text in turn replaced by every other type that JSON has.

A reader of a file is right if it either takes what it finds, or says in one line of `ValueError`
which file is wrong. `check` holds one against that.
"""

import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

OTHERS: tuple[Any, ...] = (True, 5, 1.5, "x", [], {}, None)
DEEP = 400  # Levels: Python's own reader follows them, and a function that calls itself may not.
ENTRIES = 2  # Of a list, of which the others are as these.
LONGEST = 1_000  # Characters of a line that somebody reads.
_MARK = "to be replaced by what is deep"


class Damaged(NamedTuple):
    """A text with one fault."""

    where: str  # What was done, for messages.
    text: str


def variants(sound: str) -> Iterator[Damaged]:
    """Yields a JSON text with one value of another type, without one, or with one of no end.

    Args:
      sound: one value of JSON. Of its lists the first entries alone are replaced.
    """
    for place in _places(json.loads(sound)):
        dotted = ".".join(map(str, place)) or "the whole"
        old = _at(json.loads(sound), place)
        for other in OTHERS:
            if type(other) is not type(old):
                changed = _replaced(json.loads(sound), place, other)
                yield Damaged(f"{dotted} = {json.dumps(other)}", json.dumps(changed))
        nested = json.dumps(_replaced(json.loads(sound), place, _MARK))
        deep = "[" * DEEP + "]" * DEEP
        yield Damaged(f"{dotted} = [[[...", nested.replace(json.dumps(_MARK), deep))
        if place and isinstance(place[-1], str):
            whole = json.loads(sound)
            del _at(whole, place[:-1])[place[-1]]
            yield Damaged(f"no {dotted}", json.dumps(whole))


def fault_of(read: Callable[[], Any], name: str) -> str:
    """Returns what is wrong with how a reader takes a damaged file; "" if nothing.

    Args:
      read: reads it.
      name: of the file, which a complaint has to say.
    """
    try:
        read()
    except ValueError as error:
        said = str(error)
        if name not in said:
            return f"the file is not named: {said}"
        if not said.isprintable() or len(said) > LONGEST:
            return f"not one line for a reader: {said[:LONGEST]!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def check(
    path: pathlib.Path,
    read: Callable[[], Any],
    *,
    line: int | None = None,
    most: int | None = None,
) -> None:
    """Damages a file, one value at a time, and puts it back.

    Args:
      path: of a JSON file.
      read: reads it, and whatever else its user needs.
      line: of JSONL, which one is damaged; None is a file of one value.
      most: damages, spread over the file; None is all.

    Raises:
      AssertionError: with a line for each damage that is not taken as it should be.
    """
    sound = path.read_bytes()
    read()
    lines = sound.decode().splitlines()
    faults = []
    try:
        damages = [*variants(sound.decode() if line is None else lines[line])]
        for damaged in damages[:: 1 if most is None else -(-len(damages) // most)]:
            text = damaged.text
            if line is not None:
                text = "".join(f"{x}\n" for x in (*lines[:line], text, *lines[line + 1 :]))
            _rewrite(path, text.encode())
            if fault := fault_of(read, path.name):
                faults.append(f"{damaged.where}: {fault}")
    finally:
        _rewrite(path, sound)
    assert not faults, "\n".join([f"{len(faults)} faults of {path.name}", *faults])


def _rewrite(path: pathlib.Path, data: bytes) -> None:
    """Writes a file that may be a link to one which others share."""
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    with open(handle, "wb") as file:
        file.write(data)
    os.replace(temporary, path)


def _places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield place
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _places(child, (*place, key))
    if isinstance(value, list):
        for number, child in enumerate(value[:ENTRIES]):
            yield from _places(child, (*place, number))


def _at(value: Any, place: tuple[str | int, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


def _replaced(value: Any, place: tuple[str | int, ...], other: Any) -> Any:
    if not place:
        return other
    _at(value, place[:-1])[place[-1]] = other
    return value
