"""Files that are written whole or not at all, and the checks that tell."""

import contextlib
import csv
import io
import json
import math
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kullback.core import folders, json_files, typed

TEMPORARY = ".tmp-"  # Begins the name of whatever is not whole yet, or is about to go.
MANIFEST = "manifest.json"
_FORMULAS = "=+-@\t\r\n"  # Begin what a spreadsheet runs, or what it leaves out before that.
_CONSTANTS = {"": None, "True": True, "False": False}  # Cells of tables.
_MOST_CSV_BYTES = 1 << 26  # 64 MiB: two hundred times the largest table of a reproduction.

Path = str | os.PathLike[str]


class CorruptError(ValueError):
    """A fault in a file on disk; the message names the file and says why."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[pathlib.Path]:
    """Yields a path beside `path`, for a file or folder that becomes `path` once the block ends.

    A process killed at any time leaves the old or the whole new file, on disk and not only in the
    page cache. A file is replaced; a folder must not exist yet. The next write of the same name
    overwrites the temporary files of a killed process.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / (TEMPORARY + path.name)
    remove(temporary)
    try:
        with naming(path):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    except BaseException:
        # Threads of a write that failed may still add to the folder: its error is the one to tell.
        with contextlib.suppress(OSError):
            remove(temporary)
        raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an OSError that names no file, as one of a full disk does, the name of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = os.fspath(path)
        raise


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, as UTF-8."""
    atomic_write_bytes(path, text.encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table whole or not at all; the first row names the columns, no rows give no text.

    Numbers and texts read back the same, except that texts which a spreadsheet would run as a
    formula get a leading apostrophe.
    """
    lines = [dict(zip(rows[0], rows[0], strict=True)), *rows] if rows else []
    atomic_write_text(path, "".join(_line(row, list(rows[0])) for row in lines))


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Reads a table that `write_csv` wrote: numbers, booleans and texts; an empty cell is None.

    Raises:
      ValueError: for a file beyond 64 MiB, or one that is no table in UTF-8.
    """
    try:
        if pathlib.Path(path).stat().st_size > _MOST_CSV_BYTES:
            raise ValueError(f"{path} is no table: it has more than {size(_MOST_CSV_BYTES)}")
        text = pathlib.Path(path).read_bytes().decode()
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table: {error}") from error
    if any(None in row or None in row.values() for row in rows):
        raise ValueError(f"{path} is no table: its rows are not equally long")
    return [{_text(column): _value(cell) for column, cell in row.items()} for row in rows]


def _value(cell: str) -> Any:
    """Returns what a cell of a table stands for."""
    if cell in _CONSTANTS:
        return _CONSTANTS[cell]
    if not typed.is_number(cell):
        return _text(cell)
    try:
        return int(cell)
    except ValueError:
        return float(cell)


def _text(cell: str) -> str:
    """Returns a text as it was before `_plain`."""
    return cell[1:] if len(cell) > 2 and cell[0] == "'" and cell[1] in _FORMULAS else cell


def _line(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Returns a row of a table with its end."""
    text, end = io.StringIO(), "\r\n"  # With this end, cells that have a part of it are quoted.
    writer = csv.DictWriter(text, columns, lineterminator=end)
    writer.writerow({key: _plain(value) for key, value in row.items()})
    return text.getvalue().removesuffix(end) + "\n"


def _plain(cell: Any) -> Any:
    """Returns a cell of a table as one that no spreadsheet takes for a formula."""
    if not isinstance(cell, str) or len(cell) < 2 or cell[0] not in _FORMULAS:
        return cell
    return cell if typed.is_number(cell) else f"'{cell}"  # One below 0, say.


def _sync(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync(path: pathlib.Path) -> None:
    """Syncs a file, or all files and folders of a folder, its own name last."""
    if path.is_dir():
        for child in path.iterdir():
            sync(child)
    _sync(path)


def remove(path: Path) -> None:
    """Deletes a file or folder that may not be there; a kill never leaves half a folder."""
    path = pathlib.Path(path)
    if path.is_dir() and not path.is_symlink():  # A link itself is deleted.
        if not path.name.startswith(TEMPORARY):
            path = path.rename(path.parent / (TEMPORARY + path.name))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Deletes what killed processes left in a folder that no other process writes to."""
    for path in pathlib.Path(folder).glob(TEMPORARY + "*"):
        remove(path)


def crc32(path: Path) -> int:
    """Returns the CRC-32 of a file, four times as fast as blake2b, against accidents only."""
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc


def check_file(path: Path, size: int, crc: int) -> None:
    """Compares a file with what was written.

    Raises:
      CorruptError: if it is missing, truncated or changed, or cannot be read.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise CorruptError(f"{path} is missing")
    if path.stat().st_size != size:
        raise CorruptError(f"{path} has {path.stat().st_size} bytes, {size} were written")
    try:
        got = crc32(path)
    except OSError as error:
        raise CorruptError(f"{path} cannot be read: {error.strerror}") from error
    if got != crc:
        raise CorruptError(f"{path} has changed since it was written (its CRC-32 differs)")


def write_manifest(folder: pathlib.Path) -> None:
    """Writes manifest.json: size and CRC-32 of every other file under the folder, and its own."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "crc32": crc32(path)}
        for path in paths
    }
    (folder / MANIFEST).write_text(json.dumps({"files": listed, "crc32": _crc32_of(listed)}))


def _crc32_of(value: Any) -> int:
    return zlib.crc32(json.dumps(value).encode())


def check_manifest(folder: pathlib.Path) -> None:
    """Compares a folder with its manifest.

    Raises:
      CorruptError: if the manifest or a file in it is missing, truncated or changed.
    """
    for name, (size, crc) in _listed(folder).items():
        check_file(inside(folder, name, named_by=folder / MANIFEST), size, crc)


def read_listed(folder: pathlib.Path, name: str) -> bytes:
    """Reads one file of a folder that has a manifest, compared with its own entry there.

    Raises:
      CorruptError: if the manifest or the file is missing, truncated or changed.
    """
    listed = _listed(folder)
    if name not in listed:
        raise CorruptError(f"{folder / MANIFEST} lists no {name}")
    path = inside(folder, name, named_by=folder / MANIFEST)
    check_file(path, *listed[name])
    return path.read_bytes()


def _listed(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Reads size and CRC-32 of each file by its name, from the manifest."""
    path = folder / MANIFEST
    try:
        contents = json_files.read(path)
        listed, crc = contents.record("files"), contents.get("crc32", int)
        if _crc32_of(dict(listed.items())) != crc:
            raise CorruptError(f"{path} has changed since it was written (its CRC-32 differs)")
        entries = {name: listed.record(name) for name, _ in listed.items()}
        return {n: (one.get("bytes", int), one.get("crc32", int)) for n, one in entries.items()}
    except CorruptError:
        raise
    except ValueError as error:
        raise CorruptError(str(error)) from error


def inside(folder: Path, name: str, *, named_by: Path = "") -> pathlib.Path:
    """Returns the path of a file that we wrote into a folder, as `folders.inside` does.

    Raises:
      CorruptError: if the name leads out of the folder, or to nothing, or to no regular file.
    """
    try:
        return folders.inside(folder, name, named_by=os.fspath(named_by))
    except ValueError as error:
        raise CorruptError(str(error)) from error


def free_bytes(path: Path) -> int:
    """Returns the bytes that may be written to the disk where `path` is, or will be."""
    path = pathlib.Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_disk(path: Path, needed_bytes: int, what: str) -> None:
    """Checks that `what` ("checkpoints of the replay") fits on the disk of `path`.

    Raises:
      ValueError: if it does not, with how much is missing.
    """
    available = free_bytes(path)
    if available < needed_bytes:
        raise ValueError(
            f"{what} need {size(needed_bytes)} of disk at {path} and {size(available)} are free; "
            f"free {size(needed_bytes - available)}, or choose a folder on another disk"
        )


def size(count: int) -> str:
    """Returns a number of bytes to three digits, in the unit that suits it: "12.3 kB"."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            value = count / unit
            return f"{value:,.{max(0, 2 - int(math.log10(value)))}f} {name}"
    return f"{count} bytes"


def check_writable(path: Path) -> None:
    """Checks that a file or folder can be written at `path`, before the work that fills it.

    Nothing is left behind; folders above `path` that are missing are not made.

    Raises:
      ValueError: if it cannot, with the reason.
    """
    path = pathlib.Path(path)
    if not typed.is_unicode(os.fspath(path)):  # Records could not hold it.
        raise ValueError(f"{os.fspath(path)!a} cannot be written (names are UTF-8); choose another")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)
        above, missing = path.absolute().parent, [path.name]
        while not above.exists():
            above, missing = above.parent, [*missing, above.name]
        # Missing names are looked up in a folder that exists, as elsewhere any error is ENOENT.
        for name in missing:
            with contextlib.suppress(FileNotFoundError):
                os.lstat(above / f"{TEMPORARY}{name}")
        handle, probe = tempfile.mkstemp(prefix=TEMPORARY, dir=above)
        os.close(handle)
        os.unlink(probe)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"{path} cannot be written ({reason}); choose another place") from error


def check_new_file(path: Path, flag: str = "--out") -> None:
    """Checks, before work, that `path` is free and can be written; `flag` named it.

    Raises:
      ValueError: if something is there, or nothing can be written there.
    """
    check_writable(path)
    if os.path.lexists(path):
        raise ValueError(f"{path} exists; nothing is overwritten: choose another {flag}")


def is_unused(folder: pathlib.Path) -> bool:
    """Returns whether nothing is there, or a folder of no more than what killed processes left."""
    if not folder.is_dir():
        return not folder.exists()
    return all(child.name.startswith(TEMPORARY) for child in folder.iterdir())


def check_new_folder(path: Path) -> None:
    """Checks, before work, that `path` is free, or an empty folder.

    Raises:
      ValueError: if it does, or nothing can be written there.
    """
    path = pathlib.Path(path)
    check_writable(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is not empty; choose another name, or remove it")
