"""Ranges of fields of configurations, checked as one is made."""

from typing import Any

import numpy as np


def at_least(least: int, config: Any, *names: str) -> None:
    """Checks fields of a configuration, or each entry of those that are tuples.

    Raises:
      ValueError: if one is less than `least`, or an empty tuple.
    """
    for name in names:
        value = getattr(config, name)
        if not np.size(value) or not np.min(value) >= least:
            numbers = "numbers " if np.ndim(value) else ""
            raise ValueError(f"{name} must be {numbers}>= {least}, got {value}")


def inside(interval: str, config: Any, *names: str, may_be_empty: bool = False) -> None:
    """Checks that fields, or each entry of those that are tuples, lie in an interval.

    Args:
      interval: such as "(0, 1]", "[0, inf]", or "[1, members]", up to another field.
      config: of the fields.
      *names: theirs.
      may_be_empty: whether tuples may be.

    Raises:
      ValueError: if one does not, or is nan.
    """
    ends = interval[1:-1].split(", ")
    known = {end: getattr(config, end) for end in ends if hasattr(config, end)}
    low, high = (float(known.get(end, end)) for end in ends)
    said = ", ".join(f"{end}={known[end]}" if end in known else end for end in ends)
    for name in names:
        values = np.asarray(getattr(config, name), np.float64)
        is_above = values > low if interval[0] == "(" else values >= low
        is_below = values < high if interval[-1] == ")" else values <= high
        if not np.all(is_above & is_below) or not (values.size or may_be_empty):
            raise ValueError(f"{name} must {_said(interval, said)}, got {getattr(config, name)}")


def _said(interval: str, ends: str) -> str:
    """Returns an interval as a message has it: "be > 0" where there is no upper end."""
    low, high = ends.split(", ")
    if high != "inf":
        return f"lie in {interval[0]}{ends}{interval[-1]}"
    finite = " and finite" if interval[-1] == ")" else ""
    return f"be {'>' if interval[0] == '(' else '>='} {low}{finite}"


def multiples(of: str | int, config: Any, *names: str) -> None:
    """Checks that fields are multiples of a number, or of another field.

    Raises:
      ValueError: if one is not.
    """
    number, said = (getattr(config, of), f"{of}=") if isinstance(of, str) else (of, "")
    for name in names:
        if (value := getattr(config, name)) % number:
            raise ValueError(f"{name} must be a multiple of {said}{number}, got {value}")
