"""Folders of runs as training leaves them, with returns that a test chooses."""

import csv
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kullback.experiments.runs import plans

WriteRun = Callable[..., pathlib.Path]


def write_run(
    folder: pathlib.Path,
    agent: str,
    environment: str,
    recent_return: Callable[[int, int], float] = lambda seed, step: float(seed + step),
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: Sequence[int] = (100, 200, 300, 400),
    config: dict[str, Any] | None = None,
    num_actions: int = 6,
    loop: str = "compiled",
    evaluation: Callable[[int, int], float] = lambda seed, step: math.nan,
    extra: Callable[[int, int], dict[str, float]] = lambda seed, step: {},
    planned_steps: int = 0,
    **fields: Any,
) -> pathlib.Path:
    """Writes a run whose `recent_return` is a function of seed and step; returns its folder."""
    planned = plans.Plan(
        agent=agent,
        environment=environment,
        seed=seeds[0],
        num_seeds=len(seeds),
        steps=planned_steps or steps[-1],
        **fields,
    )
    folder.mkdir(parents=True)
    spec = {"shape": [4], "dtype": "uint8", "num_actions": num_actions, "frames_per_step": 4}
    saved = {
        "plan": planned.to_json(),
        "config": {"learning": {"learning_rate": 0.001}} if config is None else config,
        "spec": spec,
        "loop": loop,
        "versions": {"jax": "0.10.2"},
    }
    (folder / "config.json").write_text(json.dumps(saved))
    rows = [
        {
            "seed": seed,
            "steps": step,
            "frames": 4 * step,
            "episodes": step,
            "recent_return": recent_return(seed, step),
            **extra(seed, step),
            "evaluation": evaluation(seed, step),
            "steps_per_second": 50.0,
            "wall_seconds": step / 50,
        }
        for step in steps
        for seed in seeds
    ]
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="session", name="write_run")
def write_run_fixture() -> WriteRun:
    return write_run
