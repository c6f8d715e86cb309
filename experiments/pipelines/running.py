"""Running a pipeline: its stages one after another, each a process of its own.

What is finished is left alone, and what was interrupted goes on. Each stage shows the progress of
its command. `stages.py` says what a file holds, `outputs.py` where everything is.
"""

import contextlib
import functools
import pathlib
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kullback.core import files, folders
from kullback.experiments import interrupts
from kullback.experiments.commands import child
from kullback.experiments.pipelines import outputs, stages
from kullback.experiments.runs import owner

LOG = ".log"
_LOOK_SECONDS = 1.0
_WAIT_SECONDS = 60.0  # For a process of an interrupted pipeline that is still saving.


class Failed(interrupts.Failure):
    """A stage failed; those before it are finished."""


def run(
    source: str | pathlib.Path | Mapping[str, Any],
    *,
    out: str | pathlib.Path | None = None,
    without: Sequence[str] = (),
    dry_run: bool = False,
    trust_code: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] | None = None,
    tick: Callable[[int, int], None] | None = None,
    watch: Callable[[outputs.Planned], None] | None = None,
) -> pathlib.Path:
    """Does all stages that a file asks for, and reports on them; returns the pipeline's folder.

    Args:
      source: a TOML file, or its contents as a mapping.
      out: folder of the pipeline; it wins over the file's `out`.
      without: names of stages that are left out; in their place stands what they begin with, or
        their `instead`.
      dry_run: only lists the stages.
      trust_code: whether modules that a file names (of rewards) may run; those that a mapping names
        may.
      quiet: prints no list of stages; what they print goes to a log beside each one's record.
      say: prints a line; None is `print`, at once.
      tick: is called after each stage, with the number of those that are finished and of all.
      watch: is called every second with the stage that runs.

    Raises:
      ValueError: for an invalid file or option, or for what was changed, before any stage starts.
      Failed: if a stage failed.
      KeyboardInterrupt: after Ctrl-C, once the stage has saved what it has.
    """
    from kullback.experiments.pipelines import summary

    # The stages print too, and are not to overtake it.
    say = say or functools.partial(print, flush=True)
    given = stages.read(source)
    pipeline = given.without(tuple(without))
    trust_code = trust_code or isinstance(source, Mapping)
    out = out or pipeline.out
    if out is None:
        raise ValueError("out must be the folder of the pipeline: give it or --out")
    folder = pathlib.Path(out)
    for stage in pipeline.stages.values():
        stages.check(stage, trust_code=trust_code)
    report = summary.settings(pipeline, trust_code=trust_code)
    if folder.exists():
        folders.check_links(folder, (outputs.RECORDS,))
    planned = outputs.plan(pipeline, folder)
    states = [outputs.state(one) for one in planned.values()]
    for number, (one, state) in enumerate(zip(planned.values(), states, strict=True), 1):
        if not quiet:
            say(f"{number} of {len(planned)}, {one.label}: {one.stage.command}, {state}")
    if dry_run:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    files.check_writable(folder)
    try:
        with owner.held(folder):
            for number, one in enumerate(planned.values(), 1):
                if outputs.read(one) is None:
                    if not quiet:
                        say(f"{number} of {len(planned)}, {one.label}:")
                    log = one.record_file.with_suffix(LOG) if quiet else None
                    look = None if watch is None else functools.partial(watch, one)
                    _do(one, trust_code, log, look)
                if tick is not None:
                    tick(number, len(planned))
            summary.write(planned, tuple(without), report, folder, say=say)
    except KeyboardInterrupt as error:
        name = "" if isinstance(source, Mapping) else str(source)
        flags = ["--out", str(out), *(word for stage in without for word in ("--without", stage))]
        again = " ".join(["kullback pipeline", name, *flags]) if name else "the same call"
        saved = f"interrupted, and saved; go on with: {again}"
        raise interrupts.as_interrupted(error, saved) from error
    return folder


def _do(
    planned: outputs.Planned,
    trust_code: bool,
    log: pathlib.Path | None,
    look: Callable[[], None] | None,
) -> None:
    """Does a stage, or goes on with it, and writes its record.

    Args:
      planned: the stage.
      trust_code: whether modules that it names may run.
      log: takes what it prints; None: the terminal does.
      look: is called every second meanwhile.

    Raises:
      Failed: if it failed.
    """
    path, is_run = planned.path, planned.stage.command == "train"
    if is_run:
        _wait_for(path)
    elif path.exists():  # It was made by a process that was killed before its record was written.
        files.remove(path)
    begun = time.monotonic()
    # Other commands take what they are told as typed, and this file was checked.
    trust = [child.TRUST] if trust_code and is_run else []
    status = _process([*planned.arguments, *trust], log, look)
    if status:
        why = (
            f"it ended with {child.ended(status)}, see above"
            if log is None
            else f"{child.error_in(log, status)} (log: {log})"
        )
        raise Failed(
            f"stage {planned.stage.name}: {why}; the stages before it are finished, and the same "
            "command goes on"
        )
    if not path.exists():
        raise Failed(f"stage {planned.stage.name} has made nothing at {path}")
    outputs.write_record(planned, time.monotonic() - begun)


def _process(
    command: Sequence[str], log: pathlib.Path | None, look: Callable[[], None] | None
) -> int:
    """Runs a command of `kullback` to its end; returns its status, negative for a signal.

    On KeyboardInterrupt it is asked to save, and waited for; a second one asks again.
    """
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if log is None else log.open("ab") as file:
        # This process may have memory of the accelerator once it has reported.
        variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        process = child.start(command, variables, output=file)
    interruption: KeyboardInterrupt | None = None
    while True:
        try:
            process.wait(None if look is None else _LOOK_SECONDS)
            break
        except subprocess.TimeoutExpired:
            if look is not None:
                look()
        except KeyboardInterrupt as error:
            interruption = error
            process.terminate()
    if process.stdin is not None:
        process.stdin.close()
    if interruption is not None:
        raise interruption
    return process.returncode


def _wait_for(path: pathlib.Path) -> None:
    """Waits until no process trains a run, as one of a killed pipeline still may."""
    until = time.monotonic() + _WAIT_SECONDS
    while path.exists() and owner.is_held(path) and time.monotonic() < until:
        time.sleep(0.2)
