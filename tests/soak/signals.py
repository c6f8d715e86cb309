"""Signals that ask for an end, and readers that go away: heard soon, and nothing is lost.

Runs save their state and go on to the same bits; what has no state to save leaves nothing.
"""

import contextlib
import os
import pathlib
import signal
import time

import numpy as np

from tests.soak import kills, runs, server, trials

AIMS = (*kills.AIMS, "end")
WAYS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGPIPE", "closed pipe", "SIGINT twice", "SIGTERM twice")
SOON = 60.0  # Seconds until a signal has ended a command, on a busy machine.


def attempt(workshop: trials.Workshop, random: np.random.Generator, number: int) -> trials.Attempt:
    """Sends a signal at a moment, and takes the work up again."""
    names = list(runs.KINDS)
    name, way = names[number % len(names)], WAYS[number // len(names) % len(WAYS)]
    aim = AIMS[random.integers(len(AIMS))]
    expected = runs.reference(workshop, name)
    what = f"{name}, {way}: {aim}"
    scratch = workshop.scratch()
    out, pipe = scratch / runs.out_name(name), scratch / "pipe"
    call = kills.interrupted(workshop, random, name, out, aim)
    reader = -1
    if way == "closed pipe":
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        call = server.Call(**{**vars(call), "stdout": pipe})
    command = server.Command(call)
    while command.is_alive() and not _hears(command.pid):
        time.sleep(0.001)
    kills.wait_for(command, name, aim, out, expected.seconds, random)
    if way == "closed pipe":
        os.close(reader)
        pipe.unlink()
        outcome = command.finish(kills.PATIENCE)
        statuses = (0,)
    elif way == "SIGPIPE":
        command.send(signal.SIGPIPE)  # Python ignores it: nothing happens.
        outcome = command.finish(kills.PATIENCE)
        statuses = (0,)
    else:
        number = signal.Signals[way.split()[0]]
        command.send(number)
        if way.endswith("twice"):
            time.sleep(random.uniform(0.05, 1.0))
            command.send(number)
        elapsed = time.monotonic() - command.begun
        outcome = command.finish(server.Limits(seconds=elapsed + SOON))
        # Once all is written, Python takes its handlers away before the process is gone. A shell
        # sees 128 + number either way.
        is_late = aim == "end" or way.endswith("twice")
        statuses = (0, 128 + number, -number) if is_late else (0, 128 + number)
    judged = trials.judged(what, outcome, statuses)
    if judged.fault:
        return judged
    if outcome.status and runs.KINDS[name].goes_on == "anew" and out.exists():
        said = f"status {outcome.status}, and {out.name} is there; {outcome.err!r}"
        return trials.Attempt(what=what, fault="lost", said=said)
    return kills.ends_as_expected(workshop, name, out, _since(out, outcome.status), what)


def _hears(pid: int) -> bool:
    """Returns whether a process has signal handlers: until then it ends as the system has it."""
    with contextlib.suppress(OSError):
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


def _since(out: pathlib.Path, status: int) -> int | None:
    """Returns the step at which an interrupted run goes on; None if it was not interrupted."""
    if status == 0:
        return None
    return runs.newest_steps(out) if out.is_dir() else 0


CATEGORY = trials.Category("signals", 150, attempt)
