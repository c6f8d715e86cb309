"""Tests of kullback.core.modules."""

import sys

import pytest

from kullback.core import modules


def test_the_current_folder_is_searched_for_what_is_named_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "named_by_a_user.py").write_text("import beside_it\nvalue = beside_it.value\n")
    (tmp_path / "beside_it.py").write_text("value = 3\n")
    (tmp_path / "another_one.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = [*sys.path]
    assert modules.load("named_by_a_user").value == 3
    assert sys.path == before
    with pytest.raises(ImportError):
        import another_one  # noqa: F401  # pyright: ignore[reportMissingImports]
    (tmp_path / "json.py").write_text("raise SystemExit\n")
    assert modules.load("json").loads("3") == 3  # What is installed goes before.


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("1 / 0", "importing broken ends with ZeroDivisionError"),
        ("raise SystemExit(0)", "importing broken ends with SystemExit"),
        ("def (", "importing broken ends with SyntaxError"),
    ],
)
def test_what_cannot_be_imported_is_said_in_a_line(tmp_path, monkeypatch, code, message):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        modules.load("broken")
    for name in ("no_such", "", ".relative", "a b", "no.such\0"):
        with pytest.raises(ValueError):
            modules.load(name)
