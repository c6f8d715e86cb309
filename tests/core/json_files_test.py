"""Tests of kullback.core.json_files."""

import dataclasses
import math
import os
import types
from typing import Literal

import pytest

from kullback.core import json_files

TEXT = """
{"n": 3, "x": 2.5, "flag": true, "name": "dqn", "none": null, "ids": [1, 2], "mixed": [1, "a"],
 "nested": {"deep": {"rate": "fast"}}, "runs": [{"seed": 1}, {"seed": "two"}]}
"""


@pytest.fixture
def record():
    return json_files.parse(TEXT, "a.json")


def test_values_come_out_by_their_type(record):
    assert record.get("n", int) == 3
    assert isinstance(record.get("n", float), float)  # An integer is a number.
    assert isinstance(record.get("n", (int, float)), int)
    assert record.get("x", float) == 2.5
    assert record.get("flag", bool) is True
    assert record.get("name", str) == "dqn"
    assert record.get("name", (int, str)) == "dqn"
    assert record.get("none", types.NoneType) is None
    assert record.get("none", int, None) is None
    assert record.get("absent", int, None) is None
    assert record.get("absent", int, 7) == 7
    assert record.list_of("ids", int) == [1, 2]
    assert record.list_of("absent", int, None) is None
    assert record.list_of("none", int, None) is None
    assert record.record("nested").record("deep").get("rate", str) == "fast"
    assert record.record("absent", {}).get("rate", str, "slow") == "slow"
    assert record.record("absent", None) is None
    assert [run.keys for run in record.records("runs")] == [("runs[0]",), ("runs[1]",)]
    assert record.records("absent", []) == []
    assert json_files.parse('{"a": "b"}', "").each(str) == {"a": "b"}
    assert dict(record.items())["ids"] == [1, 2] and "none" in record and "absent" not in record


@pytest.mark.parametrize(
    ("take", "message"),
    [
        (lambda r: r.get("name", int), 'a.json: name must be an integer, got "dqn"'),
        (lambda r: r.get("flag", int), "a.json: flag must be an integer, got true"),
        (lambda r: r.get("flag", float), "a.json: flag must be a number, got true"),
        (lambda r: r.get("n", bool), "a.json: n must be true or false, got 3"),
        (lambda r: r.get("x", int), "a.json: x must be an integer, got 2.5"),
        (lambda r: r.get("n", (str, list)), "a.json: n must be a text or a list, got 3"),
        (lambda r: r.get("none", int), "a.json: none must be an integer, got null"),
        (lambda r: r.get("none", int, 3), "a.json: none must be an integer, got null"),
        (lambda r: r.get("runs", dict), "a.json: runs must be an object, got a list of 2"),
        (lambda r: r.get("absent", int), "a.json: absent is missing; expected an integer"),
        (lambda r: r.record("absent"), "a.json: absent is missing; expected an object"),
        (lambda r: r.record("n", {}), "a.json: n must be an object, got 3"),
        (lambda r: r.list_of("n", int), "a.json: n must be a list, got 3"),
        (
            lambda r: r.list_of("mixed", int),
            'a.json: mixed[1] must be a list of integers, got "a"',
        ),
        (
            lambda r: r.record("nested").record("deep").get("rate", float),
            'a.json: nested.deep.rate must be a number, got "fast"',
        ),
        (
            lambda r: r.records("runs")[1].get("seed", int),
            'a.json: runs[1].seed must be an integer, got "two"',
        ),
        (lambda r: r.records("ids"), "a.json: ids[0] must be a list of objects, got 1"),
        (lambda r: r.record("nested").each(str), "a.json: nested.deep must be a text, got"),
        (lambda r: _raise(r.error("n", "even")), "a.json: n must be even, got 3"),
    ],
)
def test_errors_name_file_key_expected_and_found(record, take, message):
    with pytest.raises(ValueError) as caught:
        take(record)
    assert str(caught.value).startswith(message)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    layers: int
    rate: float = 0.5
    ids: tuple[int, ...] = (1,)
    dtype: Literal["float32", "bfloat16"] = "float32"
    window: int | None = 8

    def __post_init__(self):
        if self.layers < 1:
            raise ValueError(f"layers must be >= 1, got {self.layers}")


def test_a_dataclass_is_built_of_what_its_fields_are():
    def build(text):
        return json_files.parse(text, "a.json").build(Shape)

    whole = '{"layers": 2, "rate": 1, "ids": [3, 4], "dtype": "bfloat16", "window": null}'
    assert build(whole) == Shape(layers=2, rate=1.0, ids=(3, 4), dtype="bfloat16", window=None)
    assert build('{"layers": 2}') == Shape(layers=2)
    for text, message in (
        ("{}", "a.json: layers is missing"),
        ('{"layers": 2, "width": 3}', "a.json: width is unknown"),
        ('{"layers": null}', "a.json: layers must be int, got null"),
        ('{"layers": 2, "rate": "1"}', 'a.json: rate must be float, got "1"'),
        ('{"layers": 2, "ids": 3}', "a.json: ids must be tuple[int, ...], got 3"),
        ('{"layers": 2, "ids": [3, true]}', "a.json: ids must be tuple[int, ...], got [3, true]"),
        ('{"layers": 2, "dtype": "int8"}', 'a.json: dtype must be float32 or bfloat16, got "int8"'),
        ('{"layers": 2, "dtype": []}', "a.json: dtype must be float32 or bfloat16, got []"),
        ('{"layers": 2, "window": 1.5}', "a.json: window must be int | None, got 1.5"),
        ('{"layers": 0}', "a.json: layers must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError) as caught:
            build(text)
        assert str(caught.value).startswith(message)


def test_values_that_are_as_they_must_be_are_not_written_out(record, monkeypatch):
    """Lists of a tokenizer have 262,144 entries: a text for each took a second."""
    monkeypatch.setattr(json_files, "shown", None)
    assert record.list_of("ids", (int, float)) == record.list_of("ids", int) == [1, 2]
    assert record.get("name", str) == "dqn" and record.get("x", float) == 2.5
    assert record.record("nested").record("deep").each(str) == {"rate": "fast"}


def _raise(error):
    raise error


def test_long_values_are_shortened_and_control_characters_written_out():
    values = {
        "text": '"' + "a" * 10_000 + '"',
        "list": str([1] * 10_000),
        "deep": "[" * 90 + "]" * 90,
        "escape": '"\\u001b[31m"',
        "huge": "9" * 4_000,
    }
    for name, value in values.items():
        record = json_files.parse(f'{{"{name}": {value}}}', "a.json")
        with pytest.raises(ValueError) as caught:
            record.get(name, bool)
        assert len(str(caught.value)) < 200 and str(caught.value).isprintable()
    with pytest.raises(ValueError) as caught:
        json_files.parse('{"\\u001b[31m\\n": 1}', "a.json").get("\x1b[31m\n", str)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.json is empty, no JSON"),
        (b"\xef\xbb\xbf", "a.json is empty, no JSON"),
        (b"\0" * 100, "a.json is filled with zeros, no JSON"),
        (b"{", "a.json is no JSON: Expecting property name"),
        (b'{"a": 1} x', "a.json is no JSON: Extra data"),
        (b'{"a": "\xff"}', "a.json is no JSON: it must be UTF-8, byte 7 is not"),
        ('{"a": 1}'.encode("utf-16"), "a.json is no JSON: it must be UTF-8, byte 0 is not"),
        (b"[1, 2]", "a.json must hold an object, got [1, 2]"),
        (b"null", "a.json must hold an object, got null"),
        (b"5", "a.json must hold an object, got 5"),
        (b'{"a": NaN}', "a.json is no JSON: NaN is no number of JSON"),
        (b'{"a": -Infinity}', "a.json is no JSON: -Infinity is no number of JSON"),
        (b'{"a": 1e999}', "a.json is no JSON: 1e999 is too large"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', 'a.json is no JSON: key "c" stands twice'),
        (b'{"a":' * 100_000, "a.json is no JSON that we read: it is nested too deeply"),
        (
            b'{"a":' * 101 + b"1" + b"}" * 101,
            "a.json is no JSON that we read: it is nested too deeply",
        ),
        (b"[" * 1_000_000, "a.json is no JSON that we read: it is nested too deeply"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "a.json is no JSON: Exceeds the limit"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "a.json is a git-lfs pointer, not the file; fetch it by git lfs pull",
        ),
    ],
)
def test_what_is_no_json_is_refused_in_a_line(data, message):
    with pytest.raises(ValueError) as caught:
        json_files.parse(data, "a.json")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_integers_fit_64_bits_and_texts_are_unicode():
    record = json_files.parse('{"a": 9223372036854775807, "b": 9223372036854775808}', "a.json")
    assert record.get("a", int) == 2**63 - 1
    for kind in (int, float):
        with pytest.raises(ValueError, match="more than 64 bits"):
            record.get("b", kind)
    record = json_files.parse(r'{"a": "\ud83d\ude00", "b": "\ud83d"}', "a.json")
    assert record.get("a", str) == "\N{GRINNING FACE}"
    with pytest.raises(ValueError, match="half a surrogate pair"):
        record.get("b", str)


def test_a_byte_order_mark_and_what_python_writes_are_taken():
    assert json_files.parse(b'\xef\xbb\xbf{"a": 1}', "a.json").get("a", int) == 1
    ours = json_files.parse('{"a": NaN, "b": -Infinity}', "a.json", nan=True)
    assert math.isnan(ours.get("a", float)) and ours.get("b", float) == -math.inf


def test_what_is_nested_as_deep_as_we_read_is_taken():
    record = json_files.parse('{"a":' * 99 + "[1]" + "}" * 99, "a.json")
    assert "a" in record


def test_reading_files(tmp_path):
    path = tmp_path / "a.json"
    with pytest.raises(ValueError, match=r"a\.json is missing"):
        json_files.read(path)
    path.write_text('{"a": 1}')
    assert json_files.read(path).get("a", int) == 1
    with pytest.raises(ValueError, match=r"a\.json is missing"):
        json_files.read(path / "a.json")
    with pytest.raises(ValueError, match="has 8 bytes, more than the 7 we read"):
        json_files.read(path, most=7)
    with pytest.raises(ValueError, match="is no regular file"):
        json_files.read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="no regular file"):
        json_files.read(tmp_path / "pipe")
    path.write_text('[{"a": 1}, {"a": "x"}]')
    first, second = json_files.read_list(path)
    assert first.get("a", int) == 1
    with pytest.raises(ValueError, match=r'a\.json: list\[1\]\.a must be an integer, got "x"'):
        second.get("a", int)
    path.write_text("5")
    with pytest.raises(ValueError, match="list must be a list, got 5"):
        json_files.read_list(path)
