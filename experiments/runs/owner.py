"""Who trains a run: a lock in its folder that ends with its process, however that ends.

Readers (evaluate, report, export, generate) never look at it.
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
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)  # Of some network disks.

_held: set[int] = set()  # Descriptors of this process.


def _forget() -> None:
    """Closes the locks in a child that was forked; the parent's own hold."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forget)


@contextlib.contextmanager
def held(folder: pathlib.Path) -> Iterator[None]:
    """Owns a run's folder within a block; programs that it starts do not.

    On a disk that has no locks it says so, and goes on.

    Raises:
      ValueError: if another process, or another call of this one, has it.
    """
    path = folder / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)  # Closed in what is executed.
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder} is being trained by {_holder(path)}; wait for it, or stop it"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(
                f"warning: {folder} is on a disk without locks ({error.strerror}): see to it that "
                "no other process trains the same run",
                file=sys.stderr,
            )
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": _now()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(who).encode() + b"\n", 0)
        yield
    finally:
        if descriptor in _held:
            _held.discard(descriptor)
            os.close(descriptor)


def is_held(folder: pathlib.Path) -> bool:
    """Returns whether a process that lives owns a folder."""
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
    """Says who wrote itself into a lock."""
    try:
        who = json_files.read(path)
        pid, host, since = who.get("pid", int), who.get("host", str), who.get("since", str)
    except ValueError:  # It has the lock, and has not written yet.
        return "another process"
    return f"process {pid} on {host} since {since}"


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
