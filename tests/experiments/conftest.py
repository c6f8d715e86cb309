"""One short run of M-DQN that the tests of this folder read and never change."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import pytest

from kullback import experiments


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run that is over."""

    path: pathlib.Path
    rows: list[Mapping[str, Any]]  # As its callback received them.


@pytest.fixture(scope="session")
def chain_run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    rows: list[Mapping[str, Any]] = []
    path = experiments.train(
        "m-dqn",
        "toy/chain",
        steps=4_000,
        seed=7,
        log_every=1_000,
        checkpoint_every=2_000,
        eval_every=2_000,
        eval_episodes=4,
        settings=("temperature=0.05",),
        out=tmp_path_factory.mktemp("chain") / "run",
        callback=rows.append,
        quiet=True,
    )
    return Trained(path, rows)
