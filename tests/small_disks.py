"""Small disks for tests, which can be full; only root can mount them."""

import contextlib
import pathlib
import subprocess


class Unavailable(Exception):
    """No disk can be mounted here."""


def mount(place: pathlib.Path, kilobytes: int) -> None:
    """Mounts a disk of some size at a folder.

    Raises:
      Unavailable: where that is not allowed.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable("a tmpfs cannot be mounted here") from error


def unmount(place: pathlib.Path) -> None:
    """Takes a disk away, if there is one."""
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True, capture_output=True)


def fill(disk: pathlib.Path, room: int = 0) -> pathlib.Path:
    """Fills a disk but for so many bytes, by a file that is returned."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
        while file.write(b"\0"):
            pass
    size = filler.stat().st_size
    with filler.open("r+b") as file:
        file.truncate(max(0, size - room))
    return filler
