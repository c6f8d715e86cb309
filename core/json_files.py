"""The one reader of JSON: every complaint names the file, the key, what was expected and found.

A file may be a stranger's, damaged, or no JSON at all. `read` and `parse` return a `Record`, an
object whose values are taken out by the type that they must have:

    config = json_files.read(folder / "config.json")
    layers = config.get("num_hidden_layers", int)
    scale = config.get("query_pre_attn_scalar", float, 256.0)
    theta = config.record("rope_parameters").get("rope_theta", float)

All of them raise `ValueError` with one line. They refuse files beyond a stated size, text that is
not UTF-8 (a byte order mark is skipped), keys that stand twice, nesting deep enough to overflow a
recursive reader's stack, numbers that are not finite (unless a file of ours may hold them) and
integers beyond 64 bits.
"""

import dataclasses
import json
import math
import os
import pathlib
import typing
from collections.abc import Collection, Container, Iterator, Mapping
from typing import Any, Final, TypeVar, cast, overload

from kullback.core import folders, typed

MAX_BYTES = 1 << 28  # 256 MiB: eight times the largest tokenizer.json of Gemma.
MAX_DEPTH = 100  # Lists and objects within each other; no file that we know has ten.
LFS = "version https://git-lfs.github.com/spec/"  # Begins what stands in place of a large file.
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_SHOWN = 60  # Characters of a value in a message.
# Singular and plural of each type that JSON has, for messages.
_NAMES: dict[type, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    list: ("a list", "lists"),
    dict: ("an object", "objects"),
    type(None): ("null", "null"),
}

T = TypeVar("T")
D = TypeVar("D")
Kind = type[T] | tuple[type[T], ...]  # One of JSON's types, or those of which a value may be.


class Required:
    """The type of `REQUIRED`, which stands for no default."""


REQUIRED: Final = Required()


@dataclasses.dataclass(frozen=True)
class Record:
    """An object of a JSON file."""

    file: str  # Name of the file, as messages say it.
    keys: tuple[str, ...]  # Where in the file the object stands; () is the whole file.
    values: Mapping[str, Any]  # As `json` gives them.

    def __contains__(self, key: str) -> bool:
        """Returns whether the object has a key, null or not."""
        return key in self.values

    def items(self) -> Iterator[tuple[str, Any]]:
        """Returns pairs of key and value, unchecked, in the file's order."""
        return iter(self.values.items())

    @overload
    def get(self, key: str, kind: Kind[T]) -> T: ...
    @overload
    def get(self, key: str, kind: Kind[T], default: D) -> T | D: ...
    def get(self, key: str, kind: Any, default: Any = REQUIRED) -> Any:
        """Returns the value of a key.

        Args:
          key: of this object.
          kind: bool, int, float (which takes integers and gives floats), str, list or dict, or a
            tuple of those and `types.NoneType`.
          default: value of an absent key. If it is None, null is None too.

        Raises:
          ValueError: if the key is absent and has no default, or its value is of another type.
        """
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if key not in self.values:
            if default is REQUIRED:
                raise ValueError(f"{self._place(key)} is missing; expected {_expected(kinds)}")
            return default
        if self.values[key] is None and default is None:
            return None
        return self._checked(key, self.values[key], kinds, _expected(kinds))

    def list_of(self, key: str, kind: Kind[T], default: D | Required = REQUIRED) -> list[T] | D:
        """Returns a list whose entries are all of a kind; otherwise as `get`."""
        value = (
            self.get(key, list) if isinstance(default, Required) else self.get(key, list, default)
        )
        if key not in self.values or not isinstance(value, list):
            return cast(D, value)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = f"a list of {' or '.join(_NAMES[kind][1] for kind in kinds)}"
        return [self._checked(f"{key}[{n}]", x, kinds, expected) for n, x in enumerate(value)]

    def each(self, kind: Kind[T]) -> dict[str, T]:
        """Returns all values by key, each of them of a kind."""
        kinds = kind if isinstance(kind, tuple) else (kind,)
        expected = _expected(kinds)
        return {k: self._checked(k, x, kinds, expected) for k, x in self.items()}

    @overload
    def record(self, key: str) -> "Record": ...
    @overload
    def record(self, key: str, default: Mapping[str, Any]) -> "Record": ...
    @overload
    def record(self, key: str, default: D) -> "Record | D": ...
    def record(self, key: str, default: Any = REQUIRED) -> Any:
        """Returns an object inside this one; `default` is as of `get`, `{}` is an empty record."""
        value = self.get(key, dict, default)
        return Record(self.file, (*self.keys, key), value) if isinstance(value, dict) else value

    def records(self, key: str, default: list["Record"] | Required = REQUIRED) -> list["Record"]:
        """Returns a list of objects inside this one."""
        if key not in self.values and not isinstance(default, Required):
            return default
        entries = self.list_of(key, dict)
        return [
            Record(self.file, (*self.keys, f"{key}[{n}]"), entry) for n, entry in enumerate(entries)
        ]

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Raises ValueError for a key that is none of these."""
        if unknown := [key for key in self.values if key not in known]:
            raise ValueError(f"{self._place(unknown[0])} is unknown; known are {', '.join(known)}")

    def build(self, cls: type[T]) -> T:
        """Returns a dataclass of the object's values, which are checked by the fields' types.

        Fields are of the types that `typed` knows; a tuple is a list in the file. A field with a
        default may be absent.

        Raises:
          ValueError: for a key that is no field, a field that is missing or of another type, and
            for what the class itself refuses.
        """
        declared: Any = cls
        fields = {field.name: field for field in dataclasses.fields(declared)}
        self.refuse_unknown(fields)
        values = {}
        for name, hint in typing.get_type_hints(cls).items():
            if name not in fields:
                continue
            if name in self.values:
                values[name] = self._typed(name, hint)
            elif fields[name].default is dataclasses.MISSING:
                raise ValueError(f"{self._place(name)} is missing")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{self.file}: {error}") from error

    def _typed(self, key: str, hint: Any) -> Any:
        try:
            return typed.check(key, hint, self.values[key])
        except ValueError:
            raise self.error(key, typed.describe(hint)) from None

    def error(self, key: str, expected: str) -> ValueError:
        """Makes the complaint about a value that is of its type and yet not as `expected`."""
        problem = f"got {shown(self.values[key])}" if key in self.values else "which is missing"
        return ValueError(f"{self._place(key)} must be {expected}, {problem}")

    def _place(self, key: str) -> str:
        dotted = ".".join((*self.keys, key))
        return f"{self.file}: {dotted if dotted.isprintable() else ascii(dotted)}"

    def _checked(self, key: str, value: Any, kinds: tuple[type, ...], expected: str) -> Any:
        problem = ""
        if type(value) is int and (int in kinds or float in kinds):
            if -(2**63) <= value < 2**63:
                return value if int in kinds else float(value)
            problem = ", which needs more than 64 bits"
        elif type(value) is str and str in kinds:
            if typed.is_unicode(value):
                return value
            problem = ", with half a surrogate pair"
        elif type(value) in kinds:
            return value
        # Only now: a list may have a quarter of a million entries.
        raise ValueError(f"{self._place(key)} must be {expected}, got {shown(value)}{problem}")


def read(path: str | os.PathLike[str], *, nan: bool = False, most: int = MAX_BYTES) -> Record:
    """Reads the object that a JSON file holds.

    Args:
      path: of the file; links are followed. A path from a stranger goes through `folders.inside`.
      nan: whether NaN and infinities are accepted, which Python writes and JSON does not have.
      most: bytes; a larger file is refused unread.

    Raises:
      ValueError: if there is no such file, it is too large, no JSON, or holds no object.
    """
    return parse(_read(pathlib.Path(path), most), os.fspath(path), nan=nan)


def read_list(
    path: str | os.PathLike[str], *, nan: bool = False, most: int = MAX_BYTES
) -> list[Record]:
    """Reads the list of objects that a JSON file holds; otherwise as `read`."""
    name = os.fspath(path)
    value = parse_value(_read(pathlib.Path(path), most), name, nan=nan)
    return Record(name, (), {"list": value}).records("list")


def parse(text: str | bytes, name: str, *, nan: bool = False) -> Record:
    """Parses a JSON text, which must be an object.

    Args:
      text: all of it; bytes are UTF-8.
      name: of its file, for messages; for a line "samples.jsonl, line 3", for example.
      nan: as for `read`.

    Raises:
      ValueError: if it is no JSON, or no object.
    """
    value = parse_value(text, name, nan=nan)
    if not isinstance(value, dict):
        raise ValueError(f"{name} must hold an object, got {shown(value)}")
    return Record(name, (), value)


def parse_value(text: str | bytes, name: str, *, nan: bool = False) -> Any:
    """Returns any value that a JSON text is; otherwise as `parse`."""
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name} is no JSON: it must be UTF-8, byte {error.start} is not"
            ) from None
    text = text.removeprefix(_BOM)
    if not text.strip("\0 \t\r\n"):
        raise ValueError(f"{name} is {'filled with zeros' if text.strip() else 'empty'}, no JSON")
    if text.startswith(LFS):
        raise ValueError(f"{name} is a git-lfs pointer, not the file; fetch it by git lfs pull")

    def constant(word: str) -> float:
        if nan:
            return float(word)
        raise ValueError(f"{word} is no number of JSON")

    def real(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else constant(f"{digits[:_SHOWN]} is too large:")

    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=constant, parse_float=real
        )
    except RecursionError:
        value, is_deep = None, True
    except ValueError as error:
        raise ValueError(f"{name} is no JSON: {error}") from None
    else:
        is_deep = _is_deep(value)
    if is_deep:
        raise ValueError(f"{name} is no JSON that we read: it is nested too deeply")
    return value


def leaves(value: Any, stop: Container[str] = (), prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted names and values of nested objects; an empty one is a value.

    Args:
      value: of JSON.
      stop: names whose values are taken as they are, objects too.
      prefix: name of the value itself.
    """
    if isinstance(value, Mapping) and value and prefix not in stop:
        for name, child in value.items():
            yield from leaves(child, stop, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value


def shown(value: Any) -> str:
    """Returns a value as JSON on one line, shortened where it is long."""
    # A list of a million entries, or nested ones, need not be written out to be cut.
    if isinstance(value, (list, dict)) and (len(value) > _SHOWN or _is_nested(value)):
        return f"{_NAMES[type(value)][0]} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 4 * _SHOWN:
        return f"an integer of {value.bit_length()} bits"
    text = json.dumps(value[:_SHOWN] if isinstance(value, str) else value)
    if isinstance(value, str) and len(value) > _SHOWN:
        return f"{text[:_SHOWN]}... of {len(value)} characters"
    return text if len(text) <= 2 * _SHOWN else f"{text[:_SHOWN]}..."


def _is_deep(value: Any) -> bool:
    """Returns whether a value has more than `MAX_DEPTH` levels; it is walked level by level."""
    level = [value] if isinstance(value, (list, dict)) else []
    for _ in range(MAX_DEPTH):
        level = [
            entry
            for one in level
            for entry in (one.values() if isinstance(one, dict) else one)
            if isinstance(entry, (list, dict))
        ]
        if not level:
            return False
    return True


def _is_nested(value: list[Any] | dict[str, Any]) -> bool:
    entries = value.values() if isinstance(value, dict) else value
    return any(isinstance(entry, (list, dict)) and entry for entry in entries)


def _expected(kinds: tuple[type, ...]) -> str:
    return " or ".join(_NAMES[kind][0] for kind in kinds)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object, whose keys must differ."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {shown(key)} stands twice in one object")
            seen.add(key)
    return values


def _read(path: pathlib.Path, most: int) -> bytes:
    try:
        folders.check_regular(path)
        if (size := path.stat().st_size) > most:
            raise ValueError(f"{path} has {size} bytes, more than the {most} we read")
        with path.open("rb") as file:
            return file.read(most)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
