"""One run of a sweep in a process of its own, on this machine or on one of a Ray cluster.

The child process, `commands/child.py`, goes on with its run or begins it by the command
`kullback train`, and writes all its output to a log.
"""

import dataclasses
import pathlib
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kullback.experiments.commands import child
from kullback.experiments.runs import plans

POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A run to be done."""

    name: str
    folder: str  # The run's.
    log: str  # The file that takes its output.
    plan: dict[str, Any]  # The result of `plans.Plan.to_json`.
    threads: int  # XLA's, on a CPU.
    done: int  # Agent steps of a seed, when the sweep began.
    home: str  # The folder that relative paths start from.
    trust_code: bool = False  # Whether modules that the plan names may run.

    @property
    def total(self) -> int:
        """Agent steps of a seed."""
        return self.plan["steps"]


class Outcome(NamedTuple):
    """The exit status of a run's process (negative: its signal), and its error message, or ""."""

    status: int
    error: str


class Workers(NamedTuple):
    """Functions that do runs, in processes of this machine or on Ray's machines."""

    has_room: Callable[[Job, Mapping[Job, Any]], bool]  # (next job, handles of running ones)
    start: Callable[[Job, Mapping[Job, Any]], Any]  # The same -> the job's handle.
    poll: Callable[[Job, Any], Outcome | None]  # None while it runs.
    stop: Callable[[Any], None]  # Asks a run to save and end; a second call, to end at once.


def gpu_memory(sharing: int) -> dict[str, str]:
    """Returns the variables by which a process takes its part of a GPU that `sharing` share."""
    if sharing == 1:
        return {}  # JAX's default: 75% of the memory.
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / sharing:.4f}"}


def start(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts the run's process with additional variables in its environment."""
    log = pathlib.Path(job.log)
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = str(job.threads)
    limits = {"NPROC": threads, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    with log.open("ab") as file:
        return child.start(
            ["train", *_train_arguments(job)],
            {**limits, **environment},
            output=file,
            home=job.home,
        )


def poll(job: Job, process: subprocess.Popen[bytes]) -> Outcome | None:
    """Returns how the run ended, None while it goes on."""
    status = process.poll()
    if status is None:
        return None
    if process.stdin is not None:
        process.stdin.close()
    return Outcome(status, child.error_in(pathlib.Path(job.log), status) if status else "")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the run to save and end; a second call, to end at once."""
    process.terminate()


def work(job: Job, environment: Mapping[str, str]) -> Outcome:
    """Does the whole run; lets it save first on KeyboardInterrupt."""
    process = start(job, environment)
    while True:
        try:
            while (outcome := poll(job, process)) is None:
                time.sleep(POLL_SECONDS)
            return outcome
        except KeyboardInterrupt:
            stop(process)


def _train_arguments(job: Job) -> list[str]:
    """Returns the arguments of `kullback train` that begin the run."""
    given = [(flag.name, job.plan[field]) for field, flag in plans.FLAGS.items()]
    lists = [(name, texts) for name, texts in given if isinstance(texts, list)]
    values = [(name, x) for name, x in given if x and not isinstance(x, list)]
    return [
        job.plan["agent"],
        job.plan["environment"],
        f"--out={job.folder}",
        *([child.TRUST] if job.trust_code else []),
        *(f"--{name}" if value is True else f"--{name}={value}" for name, value in values),
        *(f"--{name}={text}" for name, texts in lists for text in texts),
    ]
