"""Shared by tests of reproductions: a small run of a theory paper's, and a model to begin with."""

import csv
import json
import pathlib
from collections.abc import Callable

import pytest

from kullback import experiments
from kullback.experiments import reproduce

Checks = dict[str, bool | None]
GARNETS = ("num_garnets=3", "num_states=6", "num_actions=3", "branching=2")


@pytest.fixture
def run_small(tmp_path: pathlib.Path) -> Callable[..., Checks]:
    """Runs a reproduction with these settings: whether each claim held, files having been seen."""

    def run(name: str, *assignments: str) -> Checks:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        sizes = () if any(a.startswith("mdp=") for a in assignments) else GARNETS
        reproduce.reproduce(name, folder, [*sizes, *assignments], say=lambda line: None)
        assert list(folder.glob("*.png")) and list(folder.glob("*.svg"))
        for path in folder.glob("*.csv"):
            with open(path, encoding="utf-8") as file:
                assert list(csv.DictReader(file)), path
        checks = json.loads((folder / "verdict.json").read_text())["checks"]
        is_held = {"held": True, "contradicted": False}
        return {check["claim"]: is_held.get(check["verdict"]) for check in checks}

    return run


@pytest.fixture
def held() -> Callable[[Checks, str], bool | None]:
    """Returns a function that says whether the one claim that has a phrase held; else None."""

    def find(checks: Checks, phrase: str) -> bool | None:
        (verdict,) = [value for claim, value in checks.items() if phrase in claim]
        return verdict

    return find


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Trains a tiny model for a step, in place of a real one."""
    return experiments.train(
        *("sft", "tokens/arithmetic"),
        model="tiny",
        steps=1,
        settings=("max_prompt_length=8", "max_new_tokens=4", "batch_size=4"),
        out=tmp_path_factory.mktemp("base") / "run",
        quiet=True,
    )
