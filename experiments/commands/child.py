"""The process of one run of a sweep, or of one stage of a pipeline.

`python -m kullback.experiments.commands.child COMMAND ...` does what `kullback COMMAND ...` does,
but that training goes on with what its folder has. It saves and ends when the process that started
it is gone, however that went. So a sweep or a pipeline can be killed and started again.
"""

import fcntl
import os
import pathlib
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import BinaryIO

MODULE = "kullback.experiments.commands.child"
TRUST = "--trust-code"
LENGTH = ("--steps=", "--epochs=")  # Flags by which a run may grow.
_OUT = "--out="


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    output: BinaryIO | None,
    home: str | None = None,
) -> subprocess.Popen[bytes]:
    """Starts the process of a command of `kullback`; `terminate` asks it to save and end.

    Args:
      command: without "kullback".
      environment: variables beside this process's.
      output: takes all that it prints; None: this process's terminal does.
      home: the folder that relative paths start from; None is this process's.
    """
    return subprocess.Popen(
        # -P: a file in that folder which is called as a library is not run.
        [sys.executable, "-P", "-m", MODULE, *command],
        stdin=subprocess.PIPE,  # Ends when this process does.
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        env={**os.environ, **environment},
        cwd=home,
        start_new_session=True,  # Ctrl-C reaches it once, by `terminate`.
    )


def ended(status: int) -> str:
    """Returns how a process ended, by its status: negative for a signal."""
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"


def error_in(log: pathlib.Path, status: int) -> str:
    """Returns our error message of the last line of a log, or else the status and that line."""
    lines = log.read_text("utf-8", errors="replace").rstrip().splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    if last.startswith("kullback: "):
        return last.removeprefix("kullback: ")
    nothing = "(none)" if status < 0 else "(none: is the disk full?)"
    return f"it ended with {ended(status)}; its last line: {last.strip() or nothing}"


def main(arguments: Sequence[str]) -> int:
    """Does a command of `kullback`; returns its exit status."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if stat.S_ISREG(os.fstat(1).st_mode):
        # A process of an interrupted sweep may still be saving this run. It holds the lock of the
        # log, which is its stdout, until it ends.
        fcntl.flock(1, fcntl.LOCK_EX)
    from kullback.experiments import cli

    command = command_of(arguments)
    sys.argv = ["kullback", *command]  # The command that config.json records.
    print(f"$ {' '.join(sys.argv)}", flush=True)
    return cli.main(command)


def command_of(new: Sequence[str]) -> list[str]:
    """Returns a command, or if it trains, the one that goes on with a run that has a checkpoint.

    Args:
      new: the command; one that trains has --out=DIR.
    """
    out = next((word.removeprefix(_OUT) for word in new if word.startswith(_OUT)), None)
    if new[0] != "train" or out is None:
        return list(new)
    from kullback.core import checkpoints, files
    from kullback.experiments.runs import run_folder

    run = run_folder.RunFolder(pathlib.Path(out))
    has_begun = any(
        checkpoints.steps(folder.checkpoints) or folder.metrics_file.exists()
        for folder in (run, *map(run_folder.RunFolder, sorted(run.path.glob("seed_*"))))
    )
    if has_begun:
        kept = [word for word in new if word == TRUST or word.startswith(LENGTH)]
        return ["train", "--resume", out, *kept]
    if run.config_file.exists():
        files.remove(run.path)  # It computed nothing, and of its files some may be missing.
    files.remove_leftovers(run.path)
    return list(new)


def _end_with_parent() -> None:
    # Not sys.stdin: the interpreter could not close it at its end while this waits.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
