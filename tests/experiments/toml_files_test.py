"""Tests of experiments/toml_files.py: files that sweeps and pipelines read."""

import pathlib

import pytest

from kullback.experiments import toml_files


def test_a_file_and_a_mapping_are_read(tmp_path: pathlib.Path):
    file = tmp_path / "a.toml"
    file.write_text("[stage.a]\nsteps = 3\n")
    assert toml_files.read(file) == ({"stage": {"a": {"steps": 3}}}, str(file))
    assert toml_files.read({"a": 1}) == ({"a": 1}, "")


def test_what_is_no_file_of_tables_is_refused(tmp_path: pathlib.Path):
    file = tmp_path / "a.toml"
    for content in (b"a = ", b"\xff"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.toml is no TOML file"):
            toml_files.read(file)
    assert toml_files.table({}, "stage") == {}
    with pytest.raises(ValueError, match="stage must be a table of fields, got 3"):
        toml_files.table({"stage": 3}, "stage")


def test_an_unknown_name_is_refused_with_its_neighbours():
    toml_files.check_known("key", ["out"], ("out", "stage"))
    with pytest.raises(ValueError, match=r"key 'stagee'.*stage"):
        toml_files.check_known("key", ["out", "stagee"], ("out", "stage"))
