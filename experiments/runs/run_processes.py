"""A run over several processes: which may, and who makes, locks and writes its folder.

The first process does; the others compute the same and write nothing (`core/processes.py`).
"""

import contextlib
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from kullback import lm
from kullback.core import json_files, processes
from kullback.experiments.runs import owner, plans, run_folder
from kullback.experiments.runs.work import Work

PROCESSES = "processes"  # Key of config.json: their number, where there are several.


def check(plan: plans.Plan) -> None:
    """Raises ValueError for a plan that the processes of this program cannot run together."""
    count = processes.count()
    if count == 1:
        return
    if not plan.mesh:
        raise ValueError(
            f"{count} processes run one language model over a mesh of all their devices: add "
            f"--mesh, such as {count}x1 for one device each; what has no mesh runs in one process"
        )
    if plan.num_seeds > 1:
        raise ValueError(
            f"{count} processes run one seed, got num_seeds={plan.num_seeds}: give each seed a run"
        )
    if lm.ALGORITHMS[plan.agent].leaves_front:
        raise ValueError(
            f"{plan.agent} ends with models that one process makes: run it in one, got {count}"
        )


def free_path(plan: plans.Plan, out: str | pathlib.Path | None) -> pathlib.Path:
    """Returns the folder of a new run, which the first process chooses.

    Raises:
      ValueError: as `run_folder.check_free` does.
    """

    def choose() -> str:
        path = pathlib.Path(out or run_folder.default_path(plan.agent, plan.environment))
        run_folder.check_free(path)
        return str(path)

    return pathlib.Path(processes.told(choose))


@contextlib.contextmanager
def created(
    path: pathlib.Path, config: Mapping[str, Any], work: Work
) -> Iterator[run_folder.RunFolder]:
    """Makes the folder of a new run, see `run_folder.created`.

    The other processes take part in what is computed for its files, and throw their own away.
    """
    with contextlib.ExitStack() as stack:
        if processes.is_first():
            folder = stack.enter_context(run_folder.created(path, config, work.save))
        else:
            folder = run_folder.RunFolder(path)
            with tempfile.TemporaryDirectory() as scratch:
                work.save(pathlib.Path(scratch))
        processes.barrier()
        yield folder


def held(path: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Returns the lock of a run, which the first process holds for all, see `owner.held`."""
    return owner.held(path) if processes.is_first() else contextlib.nullcontext()


def of_now() -> dict[str, int]:
    """Returns what config.json says of the processes of a run that begins."""
    return {PROCESSES: processes.count()} if processes.count() > 1 else {}


def with_accepted(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration with the number of processes that there are, where it differs."""
    is_same = processes.count() == recorded(config)
    return {**config, **({} if is_same else {PROCESSES: processes.count()})}


def recorded(config: Mapping[str, Any]) -> int:
    """Returns the number of processes of a run, by its config.json."""
    return json_files.Record("config.json", (), dict(config)).get(PROCESSES, int, 1)


def changes(path: pathlib.Path, config: Mapping[str, Any]) -> list[str]:
    """Returns a line if the run at `path` had another number of processes, else none."""
    before, now = recorded(config), processes.count()
    if before == now:
        return []
    noun = "process" if before == 1 else "processes"
    return [
        f"{path} ran over {before} {noun}, and {'there is' if now == 1 else 'there are'} {now}: "
        f"sums would be in another order, and their last digits others; start {before}"
    ]
