"""Tests of core/checked_lines.py."""

import pathlib

import pytest

from kullback.core import checked_lines

VALUES = [{"a": 1, "text": "é\n\ud800"}, {"a": 0.1, "list": [1e-300, None]}, {}]


def test_what_is_appended_is_read(tmp_path: pathlib.Path):
    path = tmp_path / "lines.jsonl"
    assert checked_lines.begin(path) == []
    checked_lines.append(path, VALUES[:2])
    checked_lines.append(path, VALUES[2:])
    records = checked_lines.begin(path)
    assert [{k: v for k, v in r.items() if k != "crc32"} for r in records] == VALUES


def test_a_kill_at_any_byte_loses_whole_lines_only(tmp_path: pathlib.Path):
    path = tmp_path / "lines.jsonl"
    checked_lines.append(path, VALUES)
    data = path.read_bytes()
    for size in range(len(data) + 1):
        path.write_bytes(data[:size])
        assert len(checked_lines.begin(path)) == data[:size].count(b"\n")
        checked_lines.append(path, [{"b": 2}])
        assert checked_lines.begin(path)[-1].get("b", int) == 2


def test_a_changed_line_is_named(tmp_path: pathlib.Path):
    path = tmp_path / "lines.jsonl"
    checked_lines.append(path, VALUES)
    data = path.read_bytes()
    for wrong, said in {
        data.replace(b"0.1", b"0.2"): "line 2: it has changed since it was written",
        data.replace(b'"crc32"', b'"crc"', 1): "line 1: crc32 is missing",
        data.replace(b"{", b"", 1): "line 1 is no JSON",
        b"\0" * 9 + b"\n": "line 1 is filled with zeros",
    }.items():
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=said):
            checked_lines.begin(path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        checked_lines.append(path, [{"a": float("nan")}])
