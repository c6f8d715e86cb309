"""The cache: what can be made again, and is kept on disk so that commands start sooner.

    models/NAME/   a published model or a GGUF file, ready to be used
    programs/      what XLA has compiled (experiments/programs.py)
    images/        features of images, by hashes of their pixels and their encoder (lm/encoded.py)
    terms/NAME     terms that were shown

It is $KULLBACK_CACHE, else $XDG_CACHE_HOME/kullback, else ~/.cache/kullback. A folder appears
whole, and has a file SEAL with the sizes of its files and checksums of their ends, or is begun with
a file TAG: only folders with one are read, listed and deleted. Several processes may use the cache
at once.
"""

import contextlib
import contextvars
import datetime
import errno
import fcntl
import json
import os
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kullback.core import files, json_files, names
from kullback.experiments import display

MODELS, PROGRAMS, IMAGES, TERMS = "models", "programs", "images", "terms"
SEAL = "kullback-cache.json"
TAG = "CACHEDIR.TAG"  # By which backups know a cache, https://bford.info/cachedir/.
_TAGGED = "Signature: 8a477f597d28d172789f06886806bc55\n# Made by kullback; see kullback cache.\n"
VERSION = 1  # Of what `fill` writes; a folder of another one is made anew.
_ENDS = 1 << 23  # Bytes at either end of a file whose checksum is compared at each use.
_is_filling = contextvars.ContextVar("_is_filling", default=False)  # Whether `fill` is at work.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)  # On some network disks.


class Entry(NamedTuple):
    """A part of the cache, as it is listed and cleared."""

    name: str
    path: pathlib.Path
    num_bytes: int
    description: str


def root() -> pathlib.Path:
    """Returns the folder of the cache, which may not exist yet."""
    if given := os.environ.get("KULLBACK_CACHE"):
        return pathlib.Path(given).absolute()
    above = os.environ.get("XDG_CACHE_HOME", "")
    # The specification of XDG ignores relative paths.
    home = pathlib.Path(above) if os.path.isabs(above) else pathlib.Path.home() / ".cache"
    return home / "kullback"


def say(text: str) -> None:
    """Prints a line to standard error."""
    print(display.line(text), file=sys.stderr)


def model(
    name: str,
    fill: Callable[[pathlib.Path], None],
    *,
    description: str,
    num_bytes: int,
    scratch_bytes: int = 0,
) -> pathlib.Path:
    """Returns the folder of a model, which is written unless it is there whole.

    Size and place are printed before it is written. A process that wants a model which another one
    is writing waits for it.

    Args:
      name: of the folder, which stands for all that its contents depend on.
      fill: writes the folder, given its path; the folder does not exist yet. What it needs of the
        cache is asked for before: it would wait for itself.
      description: of the model, for the list.
      num_bytes: of the folder, about.
      scratch_bytes: needed on the same disk while it is written.

    Raises:
      ValueError: if there is no room for it, or the cache cannot be written.
      RuntimeError: if it is called by a `fill`, and has something to write.
    """
    if (whole := whole_model(name)) is not None:
        return whole
    if _is_filling.get():
        raise RuntimeError(f"the model {name} is asked for while another one is written")
    folder = root() / MODELS / name
    files.check_writable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _turn(folder.parent):
        complaint = _complaint(folder)
        if complaint is None:  # Another process has written it meanwhile.
            return folder
        if os.path.lexists(folder):
            say(f"{complaint}: it is made anew")
            files.remove(folder)
        files.require_disk(folder, num_bytes + scratch_bytes, description)
        say(f"{description} is kept in {folder}, {files.size(num_bytes)}; see kullback cache")
        with files.atomic_path(folder) as temporary:
            token = _is_filling.set(True)
            try:
                fill(temporary)
            finally:
                _is_filling.reset(token)
            _seal(temporary, description)
    return folder


def whole_model(name: str) -> pathlib.Path | None:
    """Returns the folder of a model, None if it is not there whole."""
    folder = root() / MODELS / name
    return folder if _complaint(folder) is None else None


def once(name: str, text: str) -> None:
    """Prints a line about `name` to standard error, if this is the first time with this cache."""
    if (root() / TERMS / name).is_file():
        return
    say(text)
    folder = begun(TERMS)
    with contextlib.suppress(OSError):  # Then it is printed again the next time.
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        if folder is not None:
            files.atomic_write_text(folder / name, f"{now} {text}\n")


def begun(name: str) -> pathlib.Path | None:
    """Returns a folder of the cache that others fill, and makes it if it is not there.

    Returns:
      Its path; None if it cannot be written, or something else stands there.
    """
    folder = root() / name
    with contextlib.suppress(OSError):
        if not os.path.lexists(folder):
            folder.mkdir(parents=True)
            (folder / TAG).write_text(_TAGGED)
        if _is_begun(folder) and os.access(folder, os.W_OK):
            return folder
    return None


def entries() -> list[Entry]:
    """Returns the parts of the cache that there are."""
    models = root() / MODELS
    listed = []
    for folder in sorted(models.iterdir()) if models.is_dir() else ():
        if not folder.name.startswith(files.TEMPORARY) and (folder / SEAL).is_file():
            complaint = _complaint(folder)
            description = complaint or json_files.read(folder / SEAL).get("description", str)
            listed.append(Entry(folder.name, folder, _num_bytes(folder), description))
    for name, description in (
        (PROGRAMS, "compiled programs"),
        (IMAGES, "features of images"),
        (TERMS, "terms that were shown"),
    ):
        if _is_begun(root() / name):
            listed.append(Entry(name, root() / name, _num_bytes(root() / name), description))
    return listed


def clear(name: str | None = None) -> list[Entry]:
    """Deletes a part of the cache, or all of it; returns what was deleted.

    Raises:
      ValueError: if there is no such part.
    """
    every = entries()
    chosen = [entry for entry in every if name in (None, entry.name)]
    if name is not None and not every:
        raise ValueError(f"the cache {root()} is empty: there is no {name!r} to clear")
    if name is not None and not chosen:
        raise ValueError(names.unknown("part of the cache", name, [x.name for x in every]))
    with _turn(root() / MODELS) if (root() / MODELS).is_dir() else contextlib.nullcontext():
        for entry in chosen:
            files.remove(entry.path)
        if name is None and (root() / MODELS).is_dir():
            files.remove_leftovers(root() / MODELS)
    return chosen


def _is_begun(folder: pathlib.Path) -> bool:
    tag = folder / TAG
    return tag.is_file() and tag.read_bytes() == _TAGGED.encode()


def _seal(folder: pathlib.Path, description: str) -> None:
    """Writes the sizes of a folder's files, and the checksums of their ends, into its SEAL."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "crc32": _crc32(path)}
        for path in paths
    }
    seal = {"version": VERSION, "description": description, "files": entries}
    (folder / SEAL).write_text(json.dumps(seal, indent=2) + "\n")


def _complaint(folder: pathlib.Path) -> str | None:
    """Returns why a folder cannot be used as it is; None if it can."""
    if not folder.is_dir():
        return f"{folder} is missing"
    try:
        seal = json_files.read(folder / SEAL)
        if seal.get("version", int) != VERSION:
            return f"{folder} was written by another version"
        seal.get("description", str)
        for name, _ in seal.record("files").items():
            entry, path = seal.record("files").record(name), files.inside(folder, name)
            if path.stat().st_size != entry.get("bytes", int):
                return f"{path} has another size than was written"
            if _crc32(path) != entry.get("crc32", int):
                return f"{path} has changed since it was written"
    except (ValueError, OSError) as error:
        return f"{folder} is damaged ({error})"
    return None


def _crc32(path: pathlib.Path) -> int:
    """Returns the checksum of a file's first and last bytes, up to `_ENDS` of either."""
    with path.open("rb") as file:
        crc = zlib.crc32(file.read(_ENDS))
        file.seek(max(file.tell(), path.stat().st_size - _ENDS))
        return zlib.crc32(file.read(_ENDS), crc)


def _num_bytes(folder: pathlib.Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


@contextlib.contextmanager
def _turn(folder: pathlib.Path) -> Iterator[None]:
    """Waits until no other process writes to a folder, and keeps others waiting for the block."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"{folder} is being written by another process: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:  # Of two that write then, one fails.
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)
