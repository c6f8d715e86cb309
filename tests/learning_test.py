"""Learning checks: unchanged presets reach what is expected of them. Slow; `make test-all`."""

import csv
import pathlib

import numpy as np
import pytest

from kullback import experiments

pytestmark = pytest.mark.slow
SEEDS = 3


def last_rows(run: pathlib.Path) -> list[dict[str, str]]:
    """Returns the last row of each seed's metrics."""
    files = [run / "metrics.csv"] + [run / f"seed_{seed}" / "metrics.csv" for seed in range(SEEDS)]
    rows = {}
    for file in files:
        if file.exists():
            with file.open() as lines:
                rows.update({row["seed"]: row for row in csv.DictReader(lines)})
    assert sorted(rows) == [str(seed) for seed in range(SEEDS)]
    return list(rows.values())


@pytest.mark.parametrize("agent", ["m-dqn", "dqn"])
def test_breakout_is_learnt(agent: str, tmp_path: pathlib.Path):
    """Returns the mean return of the last 100 training episodes, over seeds (random play: 0.5)."""
    run = experiments.train(
        agent, "minatar/breakout", steps=500_000, num_seeds=SEEDS, out=tmp_path / "run", quiet=True
    )
    returns = [float(row["recent_return"]) for row in last_rows(run)]
    assert np.mean(returns) >= 8, returns


def test_cart_pole_is_balanced(tmp_path: pathlib.Path):
    """Returns the mean of 100 new episodes a seed, by the checkpoint that its evaluations chose."""
    run = experiments.train(
        "m-dqn",
        "gym/CartPole-v1",
        steps=100_000,
        num_seeds=SEEDS,
        eval_every=10_000,
        eval_episodes=20,
        out=tmp_path / "run",
        quiet=True,
    )
    scores = [experiments.load(run, seed=seed, best=True).evaluate(100) for seed in range(SEEDS)]
    assert np.mean(scores) >= 450, [score.mean() for score in scores]
