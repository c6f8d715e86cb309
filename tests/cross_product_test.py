"""Every agent in every family of environments, one in each of these: trains, is saved, goes on.

An environment shows an agent its spec alone, which is of the same kind within a family: what the
other pairs could show is shown by these. Slow; `make test-all`.
"""

import csv
import math
import pathlib

import pytest

from kullback import experiments
from kullback.experiments import catalog

# By family: the first environment of the catalogue.
FAMILIES = {row.name.split("/")[0]: row.name for row in reversed(catalog.ENVIRONMENTS)}
# Agents without replay, which learn in compiled environments alone, and their settings.
ONLINE: dict[str, tuple[str, ...]] = dict.fromkeys(("m-pqn", "pqn"), ("length=4", "batch_size=8"))
COMPILED = ("minatar", "toy")
PAIRS = [
    *(
        (agent, name)
        for family, name in FAMILIES.items()
        for agent in catalog.AGENTS
        if agent not in ONLINE or family in COMPILED
    ),
    *(("m-dqn", row.name) for row in catalog.ENVIRONMENTS if row.name not in FAMILIES.values()),
]
TINY = ("min_replay_size=32", "batch_size=8", "capacity=256")


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "environment"), PAIRS)
def test_an_agent_trains_is_saved_and_goes_on(agent: str, environment: str, tmp_path: pathlib.Path):
    run = experiments.train(
        agent,
        environment,
        steps=64,
        num_envs=4,
        log_every=16,
        settings=ONLINE.get(agent, TINY),
        out=tmp_path / "run",
        quiet=True,
    )
    experiments.resume(run, steps=96, quiet=True)
    with (run / "metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["steps"]) for row in rows] == [16, 32, 48, 64, 80, 96]
    assert all(math.isfinite(float(row["loss"])) for row in rows[2:])
    assert float(rows[-1]["mean_q"]) != float(rows[2]["mean_q"])
