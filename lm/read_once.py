"""Data sets that are read once, though each seed of a run and each point of a sweep asks for them.

What was read last is kept in the process, by all that it depends on: the file as it stands, the
tokenizer, and the limits of examples.
"""

import hashlib
import pathlib
from collections.abc import Callable, Hashable
from typing import TypeVar

from kullback.core import files
from kullback.lm.tokenizer import Tokenizer

MOST = 4  # Splits of data sets that are kept.
_KEPT: dict[Hashable, tuple[tuple, object]] = {}

Item = TypeVar("Item")
Report = TypeVar("Report")


def once(key: Hashable, read: Callable[[], tuple[list[Item], Report]]) -> tuple[list[Item], Report]:
    """Returns items and report that `read` gives, or gave for an equal key.

    Args:
      key: all that they depend on.
      read: called if they are not kept; items and report must be immutable.
    """
    if key not in _KEPT:
        items, report = read()
        _KEPT[key] = (tuple(items), report)
        while len(_KEPT) > MOST:
            del _KEPT[next(iter(_KEPT))]
    kept: tuple = _KEPT[key]
    return [*kept[0]], kept[1]


def reading(tokenizer: Tokenizer) -> Hashable:
    """Returns all that decides which ids a tokenizer makes of a text."""
    digests = {name: hashlib.sha256(x).digest() for name, x in tokenizer.sources.items()}
    return frozenset(digests.items()), tokenizer.reads_controls


def stamp(path: files.Path) -> Hashable:
    """Returns facts that change when a file, or a folder's train.jsonl or test.jsonl, is written.

    Raises:
      OSError: if it is not there.
    """
    path = pathlib.Path(path)
    parts = (path / "train.jsonl", path / "test.jsonl") if path.is_dir() else (path,)
    facts = [(part, part.stat()) for part in parts]
    return tuple((part, x.st_ino, x.st_size, x.st_mtime_ns, x.st_ctime_ns) for part, x in facts)
