"""Disks that are full, at the start or in the middle of work, and folders that may not be written.

A refusal is one line, and leaves nothing; what was interrupted goes on once there is room.
"""

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np

from tests import small_disks
from tests.soak import files, kills, runs, server, stock, trials

ROOM = 300_000  # KiB, in which all of it fits.


def attempt_full(
    workshop: trials.Workshop, random: np.random.Generator, number: int
) -> trials.Attempt:
    """Fills the disk that work is on, and makes room again."""
    names = list(runs.KINDS)
    name = names[number % len(names)]
    expected = runs.reference(workshop, name)
    early = random.random() < 0.3
    what = f"{name} on a disk that is full {'from the start' if early else 'in the middle'}"
    with mounted(workshop, ROOM) as disk:
        out = disk / runs.out_name(name)
        room = int(random.integers(0, 200)) * 1024 if random.random() < 0.5 else 0
        if early:
            small_disks.fill(disk, room)
        command = server.Command(workshop.call(disk, *runs.begin(workshop, name, out.name)))
        if not early:
            aim = kills.AIMS[random.integers(len(kills.AIMS))]
            kills.wait_for(command, name, aim, out, expected.seconds, random)
            what += f", {aim}"
            small_disks.fill(disk, room)
        outcome = command.finish(kills.PATIENCE)
        judged = trials.judged(what, outcome, (0, 1, 2))
        if judged.fault:
            return judged
        (disk / "filler").unlink()
        since = runs.newest_steps(out) if outcome.status and out.is_dir() else None
        return kills.ends_as_expected(workshop, name, out, since, what)


def attempt_read_only(
    workshop: trials.Workshop, random: np.random.Generator, number: int
) -> trials.Attempt:
    """Gives a command in folders that may not be written, or for files that may not be read."""
    ways = (_no_place, _unreadable, _only_read)
    return ways[number % len(ways)](workshop, random, number // len(ways))


def _no_place(
    workshop: trials.Workshop, random: np.random.Generator, number: int
) -> trials.Attempt:
    """Tries to begin work, or to go on with a run, where nothing can be written."""
    names = list(runs.KINDS)
    name = names[number % len(names)]
    runs.reference(workshop, name)  # Made before the folder, as what it needs is.
    scratch = workshop.scratch()
    if random.random() < 0.5 and name in runs.RUNS:
        stock.place(workshop, scratch, name)
        arguments = ("train", "--resume", name, "--steps=10_000")
        lock(scratch / name)
    else:
        out = runs.out_name(name)
        arguments = runs.begin(workshop, name, out)
        if random.random() < 0.5:
            (scratch / out).mkdir(mode=0o555)
        lock(scratch)
    before, whole = trials.contents(scratch), files.fingerprint(scratch)
    outcome = run_plain(workshop, scratch, arguments)
    what = f"in a folder that is read-only: {' '.join(arguments)}"
    judged = trials.judged(what, outcome, (2,))
    if not judged.fault and (
        trials.left_behind(before, scratch) or files.fingerprint(scratch) != whole
    ):
        return trials.Attempt(what=what, fault="lost", said="something has changed")
    return judged


def _unreadable(
    workshop: trials.Workshop, random: np.random.Generator, number: int
) -> trials.Attempt:
    """Tries commands on a file that may not be read."""
    names = list(files.READERS)
    name = names[number % len(names)]
    reader, expected = files.READERS[name], files.reference(workshop, name)
    scratch = workshop.scratch()
    stock.place(workshop, scratch, *reader.needs)
    pattern = reader.files[random.integers(len(reader.files))]
    paths = [path for path in sorted(scratch.glob(pattern)) if path.is_file()]
    file = paths[random.integers(len(paths))]
    whole = files.fingerprint(scratch)
    file.chmod(0)
    outcome = run_plain(workshop, scratch, tuple(reader.command.split()))
    if file.exists():  # A checkpoint that cannot be read is passed over, and made again.
        file.chmod(0o644)
    what = f"{name}, unreadable: {file.relative_to(scratch)}"
    judged = trials.judged(what, outcome, (0, 2))
    if judged.fault:
        return judged
    if outcome.status:
        if files.fingerprint(scratch) != whole:
            return trials.Attempt(what=what, fault="lost", said="refused, something has changed")
        return judged
    result = files.result(scratch, reader, outcome)
    return files.compared(what, reader, expected, result, outcome, "unreadable")


def _only_read(
    workshop: trials.Workshop, random: np.random.Generator, number: int
) -> trials.Attempt:
    """Checks that commands which only read give the same from read-only files."""
    del random
    names = [name for name, reader in files.READERS.items() if " --out=new" in reader.command]
    names += ["generate", "generate run", "plan", "evaluate toy", "evaluate best"]
    name = names[number % len(names)]
    reader, expected = files.READERS[name], files.reference(workshop, name)
    scratch = workshop.scratch()
    stock.place(workshop, scratch, *reader.needs)
    for needed in reader.needs:
        lock(scratch / needed)
    outcome = run_plain(workshop, scratch, tuple(reader.command.split()))
    what = f"{name}, all that it reads is read-only"
    judged = trials.judged(what, outcome, (0,))
    if judged.fault:
        return judged
    result = files.result(scratch, reader, outcome)
    return files.compared(what, reader, expected, result, outcome, "read-only")


def run_plain(
    workshop: trials.Workshop, folder: pathlib.Path, arguments: tuple[str, ...]
) -> server.Outcome:
    """Runs a command for which modes of files hold."""
    outcome = server.run(workshop.call(folder, *arguments, is_plain=True), kills.PATIENCE)
    if outcome.status == server.NO_CAPABILITIES:
        raise trials.Untried("what lets root pass over modes cannot be given up here")
    return outcome


def lock(path: pathlib.Path) -> None:
    """Takes the right to write from a folder, with all that is in it, or from a file."""
    for one in (*path.rglob("*"), path):
        if not one.is_symlink():
            one.chmod(0o555 if one.is_dir() else 0o444)


@contextlib.contextmanager
def mounted(workshop: trials.Workshop, kilobytes: int) -> Iterator[pathlib.Path]:
    """Gives a small disk of its own.

    Raises:
      Untried: where the machine allows none.
    """
    disk = workshop.home / "disk"
    disk.mkdir(exist_ok=True)
    small_disks.unmount(disk)
    try:
        small_disks.mount(disk, kilobytes)
    except small_disks.Unavailable as error:
        raise trials.Untried(str(error)) from None
    try:
        yield disk
    finally:
        small_disks.unmount(disk)


FULL = trials.Category("full-disk", 66, attempt_full)
READ_ONLY = trials.Category("read-only", 90, attempt_read_only)
