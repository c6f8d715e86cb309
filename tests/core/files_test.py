"""Tests of core/files.py."""

import csv
import errno
import math
import pathlib
from typing import Any

import pytest

from kullback.core import files


def test_a_file_is_replaced_whole(tmp_path: pathlib.Path):
    path = tmp_path / "deep" / "config.json"
    for text in ("first", "é\n"):
        files.atomic_write_text(path, text)
        assert path.read_bytes() == text.encode()
    assert list(path.parent.iterdir()) == [path]


def test_what_raises_leaves_the_old(tmp_path: pathlib.Path):
    path = tmp_path / "a"
    files.atomic_write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), files.atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_stands_until_the_rename(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    def dies(old: pathlib.Path, new: pathlib.Path) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "a"
    files.atomic_write_text(path, "old")
    monkeypatch.setattr(files.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        files.atomic_write_text(path, "new")
    assert path.read_text() == "old"


def test_all_is_synced_before_the_rename_and_the_name_after(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    order: list[str] = []
    sync, replace = files._sync, files.os.replace
    monkeypatch.setattr(files, "_sync", lambda path: (order.append(path.name), sync(path)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (order.append("rename"), replace(a, b)))
    with files.atomic_path(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir(parents=True)
        (temporary / "inner" / "file").write_text("x")
    assert order == ["file", "inner", ".tmp-folder", "rename", tmp_path.name]


def test_leftovers_are_overwritten_or_removed(tmp_path: pathlib.Path):
    (tmp_path / ".tmp-a").mkdir()
    (tmp_path / ".tmp-a" / "half").write_text("x")
    files.atomic_write_text(tmp_path / "a", "whole")
    (tmp_path / ".tmp-b").write_text("half")
    files.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_manifest_knows_every_file(tmp_path: pathlib.Path):
    (tmp_path / "inner").mkdir()
    for name in ("a", "inner/b"):
        (tmp_path / name).write_text(name)
    files.write_manifest(tmp_path)
    files.check_manifest(tmp_path)
    (tmp_path / "inner" / "b").write_text("inner/c")
    with pytest.raises(files.CorruptError, match="inner/b has changed"):
        files.check_manifest(tmp_path)


def test_a_file_that_cannot_be_read_is_damaged(tmp_path: pathlib.Path, monkeypatch: Any):
    (tmp_path / "a").write_text("a")
    files.write_manifest(tmp_path)

    def refuse(*arguments: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "a"))

    monkeypatch.setattr("builtins.open", refuse)  # Root may read anything.
    with pytest.raises(files.CorruptError, match="a cannot be read: Permission denied"):
        files.check_file(tmp_path / "a", 1, 0)


def test_disk_that_does_not_suffice(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "not" / "there"
    assert files.free_bytes(path) > 0
    files.require_disk(path, 1, "checkpoints")
    monkeypatch.setattr(files, "free_bytes", lambda path: int(1e9))
    with pytest.raises(ValueError, match=r"checkpoints need 3\.00 GB .* 1\.00 GB .* 2\.00 GB"):
        files.require_disk(path, int(3e9), "checkpoints")

    monkeypatch.setattr(files, "free_bytes", lambda path: 0)
    with pytest.raises(
        ValueError, match=r"need 12\.3 kB of disk .* 0 bytes are free; free 12\.3 kB"
    ):
        files.require_disk(path, 12_345, "checkpoints")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_000, "1.00 kB"),
        (123_456, "123 kB"),
        (45_600_000, "45.6 MB"),
        (1_234 * 10**9, "1,234 GB"),
    ],
)
def test_a_size_is_said_in_the_unit_that_suits_it(count: int, text: str):
    assert files.size(count) == text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file/out.csv", "Not a directory"),
        ("a" * 300, "File name too long"),
        ("new/" + "a" * 300, "File name too long"),
        ("a" * 300 + "/new", "File name too long"),
        ("a" * 252, "File name too long"),  # It is written under a longer name first.
        ("a\0b", "null (byte|character)"),
        ("a\udcff", "names are UTF-8"),
        ("/proc/nothing/out", "No such file or directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_work(
    name: str, reason: str, tmp_path: pathlib.Path
):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"cannot be written .*{reason}"):
        files.check_writable(tmp_path / name)


def test_a_check_leaves_nothing(tmp_path: pathlib.Path):
    files.check_writable(tmp_path / "new" / "folder" / "out.csv")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_overwritten(tmp_path: pathlib.Path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("file", "link", "."):
        with pytest.raises(ValueError, match=r"exists; nothing is overwritten: .* --video"):
            files.check_new_file(tmp_path / name, "--video")
    for name in ("file", "."):
        with pytest.raises(ValueError, match="is not empty"):
            files.check_new_folder(tmp_path / name)
    files.check_new_file(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    files.check_new_folder(tmp_path / "empty")


def test_an_error_of_a_full_disk_names_the_file(tmp_path: pathlib.Path):
    with pytest.raises(OSError, match=r"No space left on device: .*a'"):
        with files.atomic_path(tmp_path / "a") as temporary, open("/dev/full", "w") as full:
            temporary.write_text("half")
            full.write("x" * 10_000)
    assert not list(tmp_path.iterdir())


def test_no_cell_of_a_table_is_a_formula(tmp_path: pathlib.Path):
    path = tmp_path / "table.csv"
    bad = ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=HYPERLINK("x","y")']
    numbers = ["-0.5", "+3", "-inf", "-1e-05", "-"]
    files.write_csv(path, [{"=head": text, "n": -0.5} for text in (*bad, *numbers)])
    with path.open(newline="") as file:
        (head, *_), *rows = csv.reader(file)
    assert head == "'=head"
    assert [row[0] for row in rows] == [*(f"'{text}" for text in bad), *numbers]
    assert {row[1] for row in rows} == {"-0.5"}


def test_a_table_reads_back(tmp_path: pathlib.Path):
    path = tmp_path / "table.csv"
    rows = [{"eta": 0.1, "name": "a,b"}, {"eta": 1.0, "name": 'says "c"'}]
    files.write_csv(path, rows)
    assert path.read_bytes().count(b"\r") == 0
    with path.open(newline="") as file:
        rows_read = list(csv.DictReader(file))
    assert [{"eta": float(row["eta"]), "name": row["name"]} for row in rows_read] == rows
    files.write_csv(path, [])
    assert path.read_text() == ""
    with pytest.raises(ValueError, match="dict contains fields not in fieldnames"):
        files.write_csv(path, [{"a": 1}, {"a": 1, "b": 2}])
    assert path.read_text() == ""  # What was there is kept.


def test_of_a_link_the_link_is_removed(tmp_path: pathlib.Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("kept")
    (tmp_path / "link").symlink_to("folder")
    files.remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "file").read_text() == "kept"


def test_a_table_reads_back_what_was_written(tmp_path: pathlib.Path):
    path = tmp_path / "table.csv"
    rows = [
        {"=arm": "start", "n": 3, "x": 0.1 + 0.2, "is": True, "none": None},
        {"=arm": "-a\r\nb", "n": -(10**20), "x": math.inf, "is": False, "none": 1e-300},
    ]
    files.write_csv(path, rows)
    assert files.read_csv(path) == rows
    assert [type(x) for x in files.read_csv(path)[0].values()] == [
        str,
        int,
        float,
        bool,
        type(None),
    ]
    for text, match in (("a,b\n1\n", "equally long"), ('a\n"b', "no table")):
        path.write_text(text)
        with pytest.raises(ValueError, match=match):
            files.read_csv(path)
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match="no table"):
        files.read_csv(path)
