"""Sweeps: agents x environments x seeds x any field, from one TOML file, over all cores.

    agents = ["dqn", "m-dqn"]
    environments = ["minatar/breakout", "minatar/asterix"]
    seeds = 5
    [settings]
    learning_rate = [1e-4, 2.5e-4]

Each run has its own folder, and is trained by `kullback train` in its own process. Finished runs
are left alone, interrupted runs go on bit by bit, and a run that fails does not stop the others.
`examples/sweep.toml` shows the whole file.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kullback.core import files, folders, json_files
from kullback.experiments import interrupts, limits, progress, toml_files
from kullback.experiments.sweeps import sweep_local, sweep_watch, sweep_worker
from kullback.experiments.sweeps.sweep_worker import Job, Outcome, Workers

RECORD = "sweep.json"  # In the sweep's folder: the file, and all runs with plan and threads.
NAMED = 3  # Failed runs that the error names.
LOGS = "logs"  # The folder of the runs' output, a file a run.
# Time left is told by the speed of so many seconds: while one run compiles, others are training.
SPEED_SECONDS = 600.0


class Failed(interrupts.Failure):
    """Some runs failed; the others are finished. The message names the first few, and why."""


def sweep(
    source: str | pathlib.Path | Mapping[str, Any],
    *,
    out: str | pathlib.Path | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    dry_run: bool = False,
    trust_code: bool = False,
    retry_diverged: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> list[pathlib.Path]:
    """Does all runs that a file asks for, and returns their folders.

    Args:
      source: a TOML file, or its contents as a mapping.
      out: folder of the sweep; it wins over the file's `out`.
      jobs: runs at a time. None: as many as there are cores for, by the threads of each, or one
        per accelerator.
      ray: address of a Ray cluster whose machines do the runs ("auto", "host:port", "local");
        the folder must be on a file system that they share, under the same path.
      dry_run: only lists the runs; no module that they name is imported.
      trust_code: whether modules that a file names (of rewards, of environments) may run; those
        that a mapping names may.
      retry_diverged: does runs that have diverged again, from their last checkpoint; else they
        are left as they are.
      quiet: prints neither progress nor the list of runs.
      say: prints a line.

    Raises:
      ValueError: for an invalid file or option, before any run starts.
      Failed: once all other runs are finished, if some runs failed.
      KeyboardInterrupt: after Ctrl-C, once the running ones are saved.
    """
    if jobs is not None and jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}")
    contents, name = toml_files.read(source)
    out = out or contents.get("out")
    if not isinstance(out, str | os.PathLike):
        raise ValueError(f"out must be the folder of the sweep, got {out!r}: give it or --out")
    folder = pathlib.Path(out)
    cores = len(os.sched_getaffinity(0))
    trust_code = trust_code or isinstance(source, Mapping)
    folders.check_links(folder, (RECORD, LOGS))  # Both are written.
    begun = recorded(folder).threads
    checked = _check(
        sweep=contents,
        out=str(folder),
        begun=begun,
        cores=cores,
        file=name,
        trust_code=trust_code,
        dry_run=dry_run,
    )
    todo = [
        _job(run, folder, trust_code) for run in checked["runs"] if _is_to_do(run, retry_diverged)
    ]
    finished = len(checked["runs"]) - len(todo)
    if not quiet:
        for line in _listing(checked, folder, retry_diverged):
            say(line)
    homes = [folder / run["name"] for run in checked["runs"]]
    if dry_run or not todo:
        return homes
    # Ray first: a wrong address should leave nothing behind.
    workers = _workers(checked, ray, jobs, cores)
    record = {
        "sweep": contents,
        "runs": checked["runs"],
        # Also of runs that this file does not ask for: another file may, later.
        "threads": {**begun, **{r["name"]: r["threads"] for r in checked["runs"]}},
    }
    files.atomic_write_text(folder / RECORD, json.dumps(record, indent=2, default=str) + "\n")
    try:
        failures = _drive(todo, finished, workers, quiet)
    except KeyboardInterrupt as error:
        flags = {"--out": folder, "--jobs": jobs, "--ray": ray}
        given = [f"{flag} {value}" for flag, value in flags.items() if value is not None]
        again = " ".join(["kullback sweep", name, *given]) if name else "the same call"
        saved = f"interrupted, and saved; go on with: {again}"
        raise interrupts.as_interrupted(error, saved) from error
    if failures:
        reasons = [f"{job.name}: {outcome.error} (log: {job.log})" for job, outcome in failures]
        if (more := len(reasons) - NAMED) > 0:
            reasons[NAMED:] = [f"and {more} more, see {folder / LOGS}"]
        count = f"{len(failures)} of {len(homes)} runs failed, the rest is finished"
        raise Failed(f"{count}: {'; '.join(reasons)}")
    return homes


class Recorded(NamedTuple):
    """The record of a sweep's folder; empty where it has none."""

    runs: list[json_files.Record]  # Runs of the last file, each with name, plan and threads.
    threads: dict[str, int]  # The threads that each run was begun with, by its name.


def recorded(folder: pathlib.Path) -> Recorded:
    """Reads the record of a sweep's folder.

    Raises:
      ValueError: if it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return Recorded([], {})
    record = json_files.read(path, nan=True)
    runs = record.records("runs")
    for run in runs:
        name = run.get("name", str)
        if not name.isprintable() or "/" in name or name in ("", ".", ".."):
            raise run.error("name", f"that of a folder in {folder}")
        _check_threads(run, "threads", run.get("threads", int, 1))
    saved = record.record("threads", {})  # Older versions kept those of `runs` alone.
    threads = saved.each(int)
    for name, count in threads.items():
        _check_threads(saved, name, count)
    of_runs = {r.get("name", str): r.get("threads", int) for r in runs if "threads" in r}
    return Recorded(runs, {**of_runs, **threads})


def _check_threads(record: json_files.Record, key: str, threads: int) -> None:
    if not 1 <= threads <= limits.JOBS:
        raise record.error(key, f"in [1, {limits.JOBS}]")


def _check(**arguments: Any) -> dict[str, Any]:
    """Returns all runs, checked, by `sweep_runs.runs` of the same arguments in another process."""
    done = subprocess.run(
        # -P: no file of this folder is imported in place of a library of the same name.
        [sys.executable, "-P", "-m", "kullback.experiments.sweeps.sweep_runs"],
        input=json.dumps(arguments, default=str),  # For dates of TOML, which it refuses by name.
        capture_output=True,
        text=True,
        # This process may have memory of the accelerator already.
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    )
    if done.returncode == 2:
        raise ValueError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"the sweep could not be checked:\n{done.stderr}")
    return json.loads(done.stdout)


def _job(run: Mapping[str, Any], folder: pathlib.Path, trust_code: bool) -> Job:
    return Job(
        name=run["name"],
        folder=str(folder / run["name"]),
        log=str(folder / LOGS / f"{run['name']}.log"),
        plan=run["plan"],
        threads=run["threads"],
        done=run["done"],
        home=str(pathlib.Path.cwd()),
        trust_code=trust_code,
    )


def _is_to_do(run: Mapping[str, Any], retry_diverged: bool) -> bool:
    """Returns whether a run has steps left, and has not diverged or is to be tried again."""
    return run["done"] < run["plan"]["steps"] and (retry_diverged or not run["diverged"])


def _listing(checked: Mapping[str, Any], folder: pathlib.Path, retry_diverged: bool) -> list[str]:
    lines, to_go = [], 0
    for run in checked["runs"]:
        done, total = run["done"], run["plan"]["steps"]
        state = "finished" if done >= total else f"at step {done:,}" if done else "new"
        if done < total and not _is_to_do(run, retry_diverged):
            state = f"diverged: {run['diverged']}; --retry-diverged tries it again"
        lines.append(f"{run['name']}: {total:,} steps, {state}")
        lines += [f"{run['name']}: {note}" for note in run["notes"]]
        if _is_to_do(run, retry_diverged):
            to_go += (total - done) * run["plan"]["num_seeds"]
    count = sum(run["done"] >= run["plan"]["steps"] for run in checked["runs"])
    lines.append(
        f"{len(checked['runs'])} runs in {folder}, {count} of them finished; {to_go:,} steps to go"
    )
    if (per_gpu := checked["runs_per_gpu"]) is not None and checked["platform"] != "gpu":
        lines.append(f"runs_per_gpu={per_gpu} has no effect: JAX has no CUDA here")
    lines += [f"needs --trust-code: {code}" for code in checked["untrusted"]]
    if checked["others"]:
        lines.append(f"not of this sweep, and left as they are: {', '.join(checked['others'])}")
    return lines


def _workers(checked: Mapping[str, Any], ray: str | None, jobs: int | None, cores: int) -> Workers:
    if ray is None:
        return sweep_local.workers(checked, jobs, cores)
    from kullback.experiments.sweeps import sweep_ray

    return sweep_ray.workers(checked, jobs, ray)


def _drive(
    todo: list[Job], finished: int, workers: Workers, quiet: bool
) -> list[tuple[Job, Outcome]]:
    """Does all jobs; returns those that failed."""
    waiting, running, ended = list(todo), dict[Job, Any](), list[tuple[Job, Outcome]]()
    watch = sweep_watch.Watch(todo, finished)
    begun = watch.steps()[0]
    with progress.Progress("sweep", *watch.steps(), quiet) as bar:
        bar.SPEED_SECONDS = SPEED_SECONDS
        try:
            while waiting or running:
                while waiting and workers.has_room(waiting[0], running):
                    job = waiting.pop(0)
                    running[job] = workers.start(job, running)
                for job, outcome in _ended(running, workers):
                    ended.append((job, outcome))
                    bar.say(watch.end(job, outcome.error))
                done, value, label = watch.look(running)
                if done > begun:  # While the first ones compile, no time left can be told.
                    bar.update(done, value, label)
                time.sleep(sweep_worker.POLL_SECONDS)
        except KeyboardInterrupt:
            bar.say("the running ones save and end; another Ctrl-C ends them at once")
            raise
        finally:  # No run outlives its sweep.
            _stop(running, workers)
    return [(job, outcome) for job, outcome in ended if outcome.status]


def _ended(running: dict[Job, Any], workers: Workers) -> list[tuple[Job, Outcome]]:
    polled = [(job, workers.poll(job, handle)) for job, handle in running.items()]
    ended = [(job, outcome) for job, outcome in polled if outcome is not None]
    for job, _ in ended:
        del running[job]
    return ended


def _stop(running: dict[Job, Any], workers: Workers) -> None:
    """Lets all runs save and end; another Ctrl-C makes them end at once."""
    for handle in running.values():
        workers.stop(handle)
    while running:
        try:
            _ended(running, workers)
            time.sleep(sweep_worker.POLL_SECONDS)
        except KeyboardInterrupt:
            for handle in running.values():
                workers.stop(handle)
