"""Tests of core/typed.py."""

import math
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kullback.core import typed

Loss = Literal["huber", "squared"]
WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1).filter(
    lambda text: text.lower() != "none"
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INTEGERS = st.integers(-(2**63), 2**63 - 1)


@pytest.mark.parametrize(
    ("hint", "values"),
    [
        (bool, st.booleans()),
        (int, INTEGERS),
        (float, FLOATS),
        (str, WORDS),
        (Loss, st.sampled_from(["huber", "squared"])),
        (Literal[1, 2], st.sampled_from([1, 2])),
        (int | None, st.none() | INTEGERS),
        (float | None, st.none() | FLOATS),
        (str | None, st.none() | WORDS),
        (bool | float, st.booleans() | FLOATS),
        (tuple[int, ...], st.lists(INTEGERS).map(tuple)),
        (tuple[str, ...], st.lists(WORDS).map(tuple)),
        (tuple[int, float], st.tuples(INTEGERS, FLOATS)),
        (tuple[Loss, ...], st.lists(st.sampled_from(["huber", "squared"])).map(tuple)),
        (Any, st.none() | st.booleans() | INTEGERS | FLOATS),
    ],
)
def test_what_python_prints_is_read_as_it_was(hint: Any, values: st.SearchStrategy[Any]):
    @given(values)
    def check(value: Any):
        read = typed.parse("x", hint, f" {value} ")
        assert (type(read), read) == (type(value), value)
        assert typed.check("x", hint, value) == value

    check()


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (bool, "true", True),
        (bool, "FALSE", False),
        (int, "50_000", 50_000),
        (float, "1e-3", 1e-3),
        (int | None, "None", None),
        (str | None, "none", None),
        (str | int, "5", 5),
        (str, "two words", "two words"),
        (str, "", ""),
        (tuple[int, ...], "64 64", (64, 64)),
        (tuple[int, ...], "(64,)", (64,)),
        (tuple[int, ...], "()", ()),
        (Any, "1", 1),
        (Any, "1e3", 1000.0),
        (Any, "True", True),
        (Any, "maybe", "maybe"),
    ],
)
def test_reads(hint: Any, text: str, value: Any):
    read = typed.parse("x", hint, text)
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize(
    ("hint", "text", "expected"),
    [
        (bool, "maybe", "True or False"),
        (bool, "1", "True or False"),
        (bool, "", "True or False"),
        (bool | None, "maybe", "bool | None"),
        (int, "1e9", "int"),
        (int, "1.0", "int"),
        (int, "nan", "int"),
        (int, str(2**63), "int"),
        (int, "9" * 5_000, "int"),
        (int, "\u0663", "int"),
        (float, "abc", "float"),
        (float, "nan", "float"),
        (float, "inf", "float"),
        (float, "1e999", "float"),
        (float, "\uff11", "float"),
        (int | None, "1.5", "int | None"),
        (float | None, "nan", "float | None"),
        (Loss, "Huber", "huber or squared"),
        (tuple[int, ...], "8,x", "tuple[int, ...]"),
        (tuple[int, ...], "(8", "tuple[int, ...]"),
        (tuple[int, float], "1", "tuple[int, float]"),
        (Any, "nan", "a number, true, false, none or a text"),
        (str, "\udcff", "str"),
    ],
)
def test_refuses_a_text_in_one_line(hint: Any, text: str, expected: str):
    with pytest.raises(ValueError) as error:
        typed.parse("rate", hint, text)
    assert str(error.value).startswith(f"rate must be {expected}, got ")
    assert str(error.value).isprintable() and len(str(error.value)) < 150


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, np.int32(3), 3),
        (float, 3, 3.0),
        (float, np.float32(0.5), 0.5),
        (float, math.inf, math.inf),
        (tuple[int, ...], [1, 2], (1, 2)),
        (tuple[float, float], [1, 2], (1.0, 2.0)),
        (dict[str, int] | None, {"a": 1}, {"a": 1}),
        (list[str], ["SF", "FG"], ["SF", "FG"]),
        (Any, np, np),
    ],
)
def test_takes_what_is_of_the_type(hint: Any, value: Any, expected: Any):
    checked = typed.check("x", hint, value)
    assert (type(checked), checked) == (type(expected), expected)


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (bool, 1, "x must be True or False, got 1"),
        (bool, "no", "x must be True or False, got 'no'"),
        (int, True, "x must be int, got True"),
        (int, 1.0, "x must be int, got 1.0"),
        (int, None, "x must be int, got None"),
        (int, 2**63, f"x must be int, got {2**63}"),
        (float, math.nan, "x must be float, got nan"),
        (float, "1", "x must be float, got '1'"),
        (float, True, "x must be float, got True"),
        (str, 1, "x must be str, got 1"),
        (str, "\ud800", "x must be str, got '\\ud800'"),
        (Literal[1, 2], True, "x must be 1 or 2, got True"),
        (Loss, [], "x must be huber or squared, got []"),
        (int | None, 1.5, "x must be int | None, got 1.5"),
        (tuple[int, ...], 3, "x must be tuple[int, ...], got 3"),
        (tuple[int, ...], [3, True], "x must be tuple[int, ...], got [3, True]"),
        (tuple[int, int], [3], "x must be tuple[int, int], got [3]"),
        (dict[str, int], [3], "x must be dict[str, int], got [3]"),
        (str | int, ["a"] * 9, f"x must be str | int, got {['a'] * 9}"),
        (int, "-" * 99, f"x must be int, got '{'-' * 59}..."),
    ],
)
def test_refuses_a_value_in_one_line(hint: Any, value: Any, message: str):
    with pytest.raises(ValueError) as error:
        typed.check("x", hint, value)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (float, "float"),
        (float | None, "float | None"),
        (tuple[int, ...], "tuple[int, ...]"),
        (Loss, "huber or squared"),
        (bool, "True or False"),
    ],
)
def test_types_as_a_person_reads_them(hint: Any, expected: str):
    assert typed.describe(hint) == expected
