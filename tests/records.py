"""Records of runs under test: rows as they repeat, kills, and a wait for a checkpoint."""

import json
import pathlib
import shutil
import subprocess
import time
from typing import Any

from kullback.core import checkpoints
from kullback.experiments.runs import resolved, run_folder, settings


def repeated(folder: pathlib.Path) -> list[dict[str, str]]:
    """Returns the rows of metrics.csv without wall times."""
    return [
        {k: v for k, v in row.items() if k not in run_folder.WALL_TIME_COLUMNS}
        for row in run_folder.RunFolder(folder).rows()
    ]


def as_killed(run: pathlib.Path, out: pathlib.Path, step: int) -> pathlib.Path:
    """Copies a run as a kill would have left it whose newest whole checkpoint is that of a step."""
    shutil.copytree(run, out)
    saved = checkpoints.steps(out / "checkpoints")
    assert step in saved and saved[-1] > step, saved
    for later in saved[saved.index(step) + 1 :]:
        shutil.rmtree(out / "checkpoints" / f"{later:012d}")
    return out


def recorded(named: resolved.Resolved) -> dict[str, Any]:
    """Returns config.json of a run that begins with these settings."""
    nested: dict[str, Any] = {}
    for name, _, value in settings.fields(named.config):
        *parents, leaf = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    record = {"plan": named.plan.to_json(), "config": nested, **named.to_json()}
    return json.loads(json.dumps(record))


def wait_for_checkpoint(
    folder: pathlib.Path, step: int, process: subprocess.Popen[str], seconds: float
) -> None:
    """Waits until a run has a checkpoint of a step or a later one; fails once its process ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if any(saved >= step for saved in checkpoints.steps(folder / "checkpoints")):
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    raise AssertionError("no checkpoint came")
