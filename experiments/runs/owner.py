"""The lock of the process that trains a run; it ends with the process, however that ends.

Readers (evaluate, report, export, generate) ignore it.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import socket
import sys
from collections.abc import Iterator

from kullback.core import json_files

LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)  # On some network disks.

_held: set[int] = set()  # Descriptors of this process's locks.


def _forget() -> None:
    """Closes the locks in a forked child; the parent keeps its own."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def held(folder: pathlib.Path, doing: str = "trained") -> Iterator[None]:
    """Holds the lock of a run's folder within a block; child processes do not inherit it.

    On a disk without locks it prints a warning, and goes on.

    Args:
      folder: of a run, or of other work.
      doing: with it, for messages.

    Raises:
      ValueError: if another process, or another call of this one, holds it.
    """
    path = folder / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # Python closes it in children.
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder} is being {doing} by {_holder(path)}; wait for it, or stop it"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(
                f"warning: {folder} is on a disk without locks ({error.strerror}): see to it that "
                "no other process trains the same run",
                file=sys.stderr,
            )
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode() + b"\n", 0)
        yield
    finally:
        if descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)


def is_held(folder: pathlib.Path) -> bool:
    """Returns whether a living process holds the lock of a folder."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    finally:
        os.close(descriptor)
    return False


def _holder(path: pathlib.Path) -> str:
    """Describes the process that holds a lock, as it has written itself into the file."""
    try:
        holder = json_files.read(path)
        pid, host, since = holder.get("pid", int), holder.get("host", str), holder.get("since", str)
    except ValueError:  # It has the lock, and has not written yet.
        return "another process"
    return f"process {pid} on {host} since {since}"
