"""Values by their declared types: read from a text, or checked as JSON and Python hand them over.

The types are those of fields of configurations and of flags of environments: bool, int, float, str,
`Literal[...]`, `X | None` and other unions, tuples of these, and `Any` where nothing is declared.
"""

import math
import numbers
import types
import typing
from collections.abc import Callable
from typing import Any

_SHOWN = 60  # Characters of a value in a message.
_WORDS = {"true": True, "false": False, "none": None}
_UNIONS = (typing.Union, types.UnionType)


def parse(name: str, hint: Any, text: str) -> Any:
    """Reads a text as a value of type `hint`.

    Booleans are "true" and "false", None is "none", in upper or lower case; whole numbers are
    digits (50_000, but not 1e4); tuples are 64,64 or (64, 64) or 64 64, and texts in them may be
    quoted. Without a declared type (`Any`) a text is read as a number if possible, else as a
    boolean or None, else as itself.

    Raises:
      ValueError: with name, type and text, if it is no such value. NaN, infinities, digits of
        other alphabets and whole numbers of more than 64 bits are refused.
    """
    try:
        return _read(hint, text.strip())
    except ValueError:
        raise ValueError(f"{name} must be {describe(hint)}, got {shown(text)}") from None


def check(name: str, hint: Any, value: Any) -> Any:
    """Checks a value's type; converts a whole number to float, and a list to a tuple, if declared.

    Raises:
      ValueError: with name, type and value, if it is of another type. NaN, whole numbers of more
        than 64 bits and texts with half a surrogate pair are refused.
    """
    try:
        return _checked(hint, value)
    except ValueError:
        raise ValueError(f"{name} must be {describe(hint)}, got {shown(value)}") from None


def is_of(hint: Any, text: str) -> bool:
    """Returns whether `parse` reads a text as a value of type `hint`."""
    try:
        _read(hint, text.strip())
    except ValueError:
        return False
    return True


def describe(hint: Any) -> str:
    """Returns a type as a person reads it: "float", "huber or squared", "int | None"."""
    if hint is Any:
        return "a number, true, false, none or a text"
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if hint is bool:
        return "True or False"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def shown(value: Any) -> str:
    """Returns a value as Python writes it, shortened where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def is_unicode(text: str) -> bool:
    """Returns whether a text can be written as UTF-8: it has no half of a surrogate pair."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _read(hint: Any, text: str) -> Any:
    """Raises ValueError, without words, as `_checked` does."""
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        # A text such as "nan", a number that is refused, is not read as a text instead.
        return _read(int | float if is_number(text) else bool | None | str, text)
    if hint in (bool, None, types.NoneType):
        return _checked(hint, _WORDS.get(text.lower(), text))
    if hint in (int, float):
        if not text.isascii() or not math.isfinite(float(text)):
            raise ValueError
        return _checked(hint, hint(text))
    if hint is str:
        return _checked(str, text)
    if origin is typing.Literal:
        return _only([member for member in members if str(member) == text])
    if origin in _UNIONS:
        return _first(_read, members, text)
    if origin is tuple:
        items = _items(text)
        return tuple(map(_read, _of_items(members, len(items)), items))
    raise ValueError


def _checked(hint: Any, value: Any) -> Any:
    origin, members = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if hint is str:
        return _only([value] if isinstance(value, str) and is_unicode(value) else [])
    if hint in (bool, None, types.NoneType):
        return _only([value] if isinstance(value, hint or types.NoneType) else [])
    if hint in (int, float):
        return _number(hint, value)
    if origin is typing.Literal:
        return _only([m for m in members if type(m) is type(value) and m == value])
    if origin in _UNIONS:
        return _first(_checked, members, value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(map(_checked, _of_items(members, len(value)), value))
    # Other types have no form in text or JSON: a Python object is taken as it is.
    kind = origin or hint
    if isinstance(kind, type) and isinstance(value, kind):
        return value
    raise ValueError


def is_number(text: str) -> bool:
    """Returns whether Python reads a text as a number; NaN and infinities are numbers."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(hint: type[int] | type[float], value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError
    if isinstance(value, numbers.Integral) and -(2**63) <= int(value) < 2**63:
        return hint(int(value))
    if hint is int or isinstance(value, numbers.Integral) or math.isnan(value):
        raise ValueError
    return float(value)


def _only(values: list[Any]) -> Any:
    if not values:
        raise ValueError
    return values[0]


def _first(read: Callable[[Any, Any], Any], members: tuple[Any, ...], value: Any) -> Any:
    """Returns the value by the first type of a union that takes it; str is tried last."""
    for member in sorted(members, key=lambda member: member is str):
        try:
            return read(member, value)
        except ValueError:
            continue
    raise ValueError


def _items(text: str) -> list[str]:
    if text[:1] == "(" or text[-1:] == ")":
        if not (text[:1] == "(" and text[-1:] == ")"):
            raise ValueError
        text = text[1:-1]
    items = text.replace(",", " ").split()
    return [w[1:-1] if len(w) > 1 and w[0] == w[-1] and w[0] in "'\"" else w for w in items]


def _of_items(members: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if members[1:] == (...,):
        return members[:1] * count
    if len(members) != count:
        raise ValueError
    return members
