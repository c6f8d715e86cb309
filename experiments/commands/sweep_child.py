"""The process of one run of a sweep: `python -m kullback.experiments.commands.sweep_child`.

It saves and ends when the process that started it is gone, however that went. So a sweep can be
killed and started again.
"""

import fcntl
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Sequence

from kullback.experiments.sweeps.sweep_worker import TRUST


def main(arguments: Sequence[str]) -> int:
    """Does a run: FOLDER STEPS, then what `kullback train` takes if it is new."""
    folder, steps, *new = arguments
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A process of an interrupted sweep may still be saving this run. It holds the lock of the log,
    # which is its stdout, until it ends.
    fcntl.flock(1, fcntl.LOCK_EX)
    from kullback.experiments import cli

    command = command_of(pathlib.Path(folder), steps, new)
    sys.argv = ["kullback", *command]  # The command that config.json records.
    print(f"$ {' '.join(sys.argv)}", flush=True)
    return cli.main(command)


def command_of(folder: pathlib.Path, steps: str, new: Sequence[str]) -> list[str]:
    """Returns the command that goes on with a run, or begins one that has no checkpoint."""
    from kullback.core import checkpoints, files
    from kullback.experiments.runs import run_folder

    run = run_folder.RunFolder(folder)
    if checkpoints.steps(run.checkpoints) or run.metrics_file.exists():
        trust = [TRUST] if TRUST in new else []
        return ["train", "--resume", str(folder), "--steps", steps, *trust]
    if run.config_file.exists():
        files.remove(folder)  # It computed nothing, and of its files some may be missing.
    files.remove_leftovers(folder)
    return ["train", *new]


def _end_with_parent() -> None:
    # Not sys.stdin: the interpreter could not close it at its end while this waits.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
