"""Work of every kind is killed by SIGKILL, is taken up again, and ends as undisturbed work did."""

import contextlib
import pathlib
import signal
import time
from collections.abc import Callable

import numpy as np

from tests.soak import runs, server, trials

AIMS = ("first second", "compilation", "checkpoint", "anywhere")
PATIENCE = server.Limits(seconds=300)


def attempt(workshop: trials.Workshop, random: np.random.Generator, number: int) -> trials.Attempt:
    """Kills work once or twice, and takes it up again."""
    names = list(runs.KINDS)
    name, aim = names[number % len(names)], AIMS[number // len(names) % len(AIMS)]
    expected = runs.reference(workshop, name)
    what = f"{name} killed: {aim}"
    since: int | None = None
    scratch = workshop.scratch()
    out = scratch / runs.out_name(name)
    kills, wanted, within = 0, random.integers(1, 3), expected.seconds
    while kills < wanted:
        command = server.Command(interrupted(workshop, random, name, out, aim))
        wait_for(command, name, aim, out, within, random)
        command.send(signal.SIGKILL)
        outcome = command.finish(PATIENCE)
        if outcome.status == 0:  # It was over before: sooner, or with what was killed once.
            if kills or within < 0.1:
                break
            within /= 2
            trials.remove(out)
            continue
        if outcome.status != -signal.SIGKILL:
            return trials.judged(f"{what}, going on", outcome, (-signal.SIGKILL,))
        kills += 1
        if runs.KINDS[name].goes_on == "anew" and out.exists():
            break  # Killed after it was made, so it is whole, and nobody makes it again.
        if out.is_dir():
            reached = runs.newest_steps(out)
            since = reached if since is None else min(since, reached)
    return ends_as_expected(workshop, name, out, since, what)


def interrupted(
    workshop: trials.Workshop,
    random: np.random.Generator,
    name: str,
    out: pathlib.Path,
    aim: str,
) -> server.Call:
    """Returns the command that is to be interrupted; some compile all there is."""
    arguments = runs.begin_or_go_on(workshop, name, out)
    if aim == "compilation" and random.random() < 0.5:
        return workshop.call(
            out.parent, *arguments, environment={"JAX_ENABLE_COMPILATION_CACHE": "0"}
        )
    return workshop.call(out.parent, *arguments)


def wait_for(
    command: server.Command,
    name: str,
    aim: str,
    out: pathlib.Path,
    seconds: float,
    random: np.random.Generator,
) -> None:
    """Waits for the moment that is aimed at, or the command's end."""
    is_run = name in runs.RUNS
    if aim == "first second":
        _sleep(command, random.uniform(0.02, min(1.0, seconds)))
    elif aim == "compilation" and is_run:
        _until(command, (out / "config.json").exists)
        _sleep(command, random.uniform(0.0, seconds / 2))
    elif aim == "checkpoint":
        if is_run or name.startswith("sweep"):
            _sleep(command, random.uniform(0.0, seconds))
        _until(command, lambda: _is_writing(out))
        time.sleep(random.uniform(0.0, 0.02))
    elif aim == "end":
        _until(command, lambda: _has(out, "*.png", "*/*.png"))
        time.sleep(random.uniform(0.0, 0.2))
    else:
        _sleep(command, random.uniform(0.0, seconds))


def ends_as_expected(
    workshop: trials.Workshop, name: str, out: pathlib.Path, since: int | None, what: str
) -> trials.Attempt:
    """Takes work up again and lets it end, and compares it with the undisturbed one."""
    is_there = runs.KINDS[name].goes_on == "anew" and out.exists()  # Then it is whole.
    if not is_there:
        call = workshop.call(out.parent, *runs.begin_or_go_on(workshop, name, out))
        judged = trials.judged(f"{what}, going on", server.run(call, PATIENCE), (0,))
        if judged.fault:
            return judged
    difference = runs.difference(name, runs.reference(workshop, name), out, since)
    if difference:
        return trials.Attempt(what=what, fault="lost" if is_there else "wrong", said=difference)
    if left := [path.name for path in out.parent.rglob(".tmp-*")]:
        return trials.Attempt(what=what, fault="lost", said=f"left for ever: {', '.join(left)}")
    return trials.Attempt(what=what)


def _is_writing(out: pathlib.Path) -> bool:
    """Returns whether something is being written that is not whole yet."""
    places = ("", "*/", "*/*/", "*/*/*/")  # Of a run, of its checkpoints, of those of a seed.
    return _has(out.parent, *(f"{place}.tmp-*" for place in places))


def _has(folder: pathlib.Path, *patterns: str) -> bool:
    """Returns whether a folder has such files; what is renamed meanwhile may be missed."""
    with contextlib.suppress(FileNotFoundError):
        return any(any(folder.glob(pattern)) for pattern in patterns)
    return False


def _until(command: server.Command, happened: Callable[[], bool]) -> None:
    while not happened() and command.is_alive():
        time.sleep(0.001)


def _sleep(command: server.Command, seconds: float) -> None:
    end = time.monotonic() + seconds
    command.wait(PATIENCE, until=lambda: time.monotonic() > end)


CATEGORY = trials.Category("kills", 200, attempt)
