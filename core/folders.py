"""The one opener of files that a folder names: a stranger's folder leads only into itself.

An index names files of weights, a checkpoint its segments, a model its tokenizer. Such a name must
be relative, without "..", and lead to a regular file inside the folder, also when links are
followed. There is one exception: Hugging Face's cache keeps the files of `snapshots/REVISION` as
links to `blobs`, two folders up.
"""

import itertools
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator

Path = str | os.PathLike[str]


def inside(folder: Path, name: str, *, named_by: str = "") -> pathlib.Path:
    """Returns the path of a file that something in a folder names.

    Args:
      folder: the user's; it may be a link itself.
      name: relative, with "/" for a file of a folder inside.
      named_by: where the name stands, for messages: the path of an index.

    Raises:
      ValueError: if the name leads out of the folder, or to nothing, or to what is no regular file.
    """
    return _found(folder, name, named_by, stat.S_ISREG, "is no regular file")


def subfolder(folder: Path, name: str, *, named_by: str = "") -> pathlib.Path:
    """Returns the path of a folder that something in a folder names; otherwise as `inside`."""
    return _found(folder, name, named_by, stat.S_ISDIR, "is no folder")


def present(folder: Path, names: Iterable[str]) -> dict[str, pathlib.Path]:
    """Returns those of some names of files that a folder has, in their order, by name.

    Files that are copied to another folder, or are optional, are listed by name and opened so.

    Raises:
      ValueError: if one of them is a link out of the folder, or no regular file.
    """
    folder = pathlib.Path(folder)
    return {name: inside(folder, name) for name in names if os.path.lexists(folder / name)}


def check_links(folder: Path, names: Iterable[str] | None = None) -> None:
    """Checks, before anything in a folder is written, moved or deleted, where its links lead.

    Args:
      folder: the user's; it may be a link itself.
      names: files and folders (with their contents) to check; None is all.

    Raises:
      ValueError: for the first link that leads out of it.
    """
    folder = pathlib.Path(folder)
    homes = _homes(folder.resolve())
    tops = [folder / name for name in (os.listdir(folder) if names is None else names)]
    for path in itertools.chain(tops, *map(_below, tops)):
        if path.is_symlink():
            target = pathlib.Path(os.path.realpath(path))
            if not any(target.is_relative_to(home) for home in homes):
                raise ValueError(f"{path} is a link out of the folder, to {target}; refused")


def check_regular(path: Path) -> None:
    """Refuses a user's path that is no regular file: reading a pipe would wait for ever.

    Raises:
      ValueError: if it is a folder, a pipe, or anything else but a regular file, links followed.
      OSError: if there is nothing, or it cannot be looked at.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is no regular file")


def _below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields files and folders under a folder; links are not followed."""
    for home, subfolders, names in os.walk(folder):
        yield from (pathlib.Path(home) / name for name in (*subfolders, *names))


def _found(
    folder: Path, name: str, named_by: str, is_kind: Callable[[int], bool], complaint: str
) -> pathlib.Path:
    folder = pathlib.Path(folder)
    source = f"{named_by}: " if named_by else ""
    parts = name.split("/")
    if not name.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"{source}{name!a} must be a name inside {folder}: relative, "
            'without ".." and control characters'
        )
    path = folder / name
    try:
        resolved = path.resolve(strict=True)
        is_right = is_kind(resolved.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{source}{path} is missing") from None
    except (OSError, RuntimeError, ValueError) as error:  # Links in a circle, names without end.
        raise ValueError(f"{source}{ascii(name)[:200]} cannot be opened ({error})") from None
    if not any(resolved.is_relative_to(home) for home in _homes(folder.resolve())):
        raise ValueError(f"{source}{path} is a link out of the folder, to {resolved}; refused")
    if not is_right:
        raise ValueError(f"{source}{path} {complaint}")
    return path


def _homes(folder: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Returns where files of a folder may be: in it, and in the blobs of its cache."""
    if folder.parent.name == "snapshots":
        return folder, folder.parent.parent / "blobs"
    return (folder,)
