"""Every agent in every environment: trains, is saved, goes on. Slow; `make test-all`."""

import csv
import math
import pathlib

import pytest

from kullback import experiments
from kullback.experiments import catalog

TINY = ("min_replay_size=32", "batch_size=8", "capacity=256")


@pytest.mark.slow
@pytest.mark.parametrize("environment", [row.name for row in catalog.ENVIRONMENTS])
@pytest.mark.parametrize("agent", list(catalog.AGENTS))
def test_every_agent_runs_everywhere(agent: str, environment: str, tmp_path: pathlib.Path):
    run = experiments.train(
        agent,
        environment,
        steps=64,
        num_envs=4,
        log_every=16,
        settings=TINY,
        out=tmp_path / "run",
        quiet=True,
    )
    experiments.resume(run, steps=96, quiet=True)
    with (run / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["steps"]) for row in rows] == [16, 32, 48, 64, 80, 96]
    assert all(math.isfinite(float(row["loss"])) for row in rows[2:])
    assert float(rows[-1]["mean_q"]) != float(rows[2]["mean_q"])
