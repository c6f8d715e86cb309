"""Tests of experiments/sweep_runs.py: what is new, what goes on, and what is refused."""

import pathlib
from typing import Any

import pytest

from kullback.experiments import plan as plans
from kullback.experiments import run_folder, sweep_runs

CHAIN: dict[str, Any] = {
    "agents": ["dqn"],
    "environments": ["toy/chain"],
    "seeds": 3,
    "steps": 1_000,
    "settings": {"learning_rate": 1e-3, "batch_size": 16},
}


def begin(out: pathlib.Path, name: str, saved: int | None = None, **fields: Any) -> None:
    """The folder of a run of CHAIN, with a checkpoint of step `saved`."""
    given = {"steps": 1_000, "num_seeds": 3, **fields}
    given.setdefault("settings", ("learning_rate=0.001", "batch_size=16"))
    plan = plans.Plan(agent="dqn", environment="toy/chain", **given)
    with run_folder.created(out / name, {"plan": plan.to_json()}) as folder:
        pass
    if saved is not None:
        (folder.checkpoints / f"{saved:012d}").mkdir(parents=True)


def runs(out: pathlib.Path, begun: dict[str, int] | None = None, **changes: Any) -> dict[str, Any]:
    return sweep_runs.runs({**CHAIN, **changes}, out, begun or {}, cores=6)


def named(found: dict[str, Any]) -> dict[str, int]:
    return {run["name"]: run["done"] for run in found["runs"]}


def test_consecutive_seeds_are_one_run_where_they_are_compiled(tmp_path: pathlib.Path):
    found = runs(tmp_path, seeds=[0, 1, 2, 7], environments=["toy/chain", "gym/CartPole-v1"])
    assert [(r["name"], r["plan"]["seed"], r["plan"]["num_seeds"]) for r in found["runs"]] == [
        ("dqn-toy-chain,seeds=0-2", 0, 3),
        ("dqn-toy-chain,seed=7", 7, 1),
        *((f"dqn-gym-CartPole-v1,seed={seed}", seed, 1) for seed in (0, 1, 2, 7)),
    ]
    assert not list(tmp_path.iterdir()), "a check writes nothing"
    assert found["others"] == []


def test_what_is_there_is_known_by_its_plan_and_goes_on(tmp_path: pathlib.Path):
    begin(tmp_path, "another name", saved=750)
    # Values of a setting that the run has not, its order, and a name that would now be longer.
    settings = {"batch_size": 16, "learning_rate": [3e-3, 1e-3]}
    found = runs(tmp_path, settings=settings)
    assert named(found) == {"dqn-toy-chain,learning_rate=0.003,seeds=0-2": 0, "another name": 750}
    assert found["others"] == []
    settings["learning_rate"] = [3e-3]
    assert runs(tmp_path, settings=settings)["others"] == ["another name"]


def test_seeds_are_added_and_steps_grow(tmp_path: pathlib.Path):
    begin(tmp_path, "dqn-toy-chain,seeds=0-2", saved=1_000)
    found = runs(tmp_path, seeds=6, steps=2_000)
    assert named(found) == {"dqn-toy-chain,seeds=0-2": 1_000, "dqn-toy-chain,seeds=3-5": 0}
    assert [run["plan"]["steps"] for run in found["runs"]] == [2_000, 2_000]
    assert named(runs(tmp_path, seeds=[1, 2, 0])) == {"dqn-toy-chain,seeds=0-2": 1_000}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"settings": {"learning_rate": 1e-2, "batch_size": 16}},
            "dqn-toy-chain,seeds=0-2 has changed: it was begun with settings learning_rate=0.001, "
            "and the file says learning_rate=0.01;",
        ),
        ({"environment_flags": {"slip": 0.2}}, "with environment_flags none, and the file says"),
        ({"plan": {"num_envs": 8}}, "with num_envs 4, and the file says 8"),
        ({"seeds": 2}, "dqn-toy-chain,seeds=0-2 has seeds 0, 1, 2, the file asks for 0, 1;"),
        ({"seeds": [2, 3]}, "the file asks for 2, 3;"),
        ({"steps": 500}, "dqn-toy-chain,seeds=0-2 has steps=1000, the file asks for 500"),
        ({"threads": 2}, "was begun with 1 threads, the file says 2"),
        ({"threads": 0}, "threads must be a whole number >= 1, got 0"),
    ],
)
def test_refuses_what_has_changed_by_name(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
):
    begin(tmp_path, "dqn-toy-chain,seeds=0-2", saved=250)
    with pytest.raises(ValueError) as error:
        runs(tmp_path, {"dqn-toy-chain,seeds=0-2": 1}, **changes)
    assert message in str(error.value)


def test_how_far_a_run_is(tmp_path: pathlib.Path):
    name = "dqn-toy-chain,seeds=0-2"
    begin(tmp_path, name)
    assert named(runs(tmp_path)) == {name: 0}, "stopped before its first checkpoint"
    folder = run_folder.RunFolder(tmp_path / name)
    (folder.checkpoints / ".tmp-000000001000").mkdir(parents=True)
    folder.write_rows([{"seed": s, "steps": n} for n in (500, 1_000) for s in range(3)])
    (folder.checkpoints / f"{500:012d}").mkdir()
    assert named(runs(tmp_path)) == {name: 500}, "the last checkpoint was not whole"
    (folder.checkpoints / f"{500:012d}").rmdir()
    assert named(runs(tmp_path)) == {name: 1_000}, "its checkpoints were deleted"
    folder.write_rows([{"seed": 0, "steps": 500}])
    assert named(runs(tmp_path)) == {name: 0}


def test_a_run_that_was_stopped_in_its_last_evaluation_is_not_finished(tmp_path: pathlib.Path):
    begin(tmp_path, "dqn-toy-chain,seeds=0-2", saved=1_000)
    folder = run_folder.RunFolder(tmp_path / "dqn-toy-chain,seeds=0-2")
    folder.write_rows([{"seed": 2, "steps": 500}])
    assert named(runs(tmp_path)) == {"dqn-toy-chain,seeds=0-2": 999}
    folder.write_rows([{"seed": 2, "steps": 1_000}])
    assert named(runs(tmp_path)) == {"dqn-toy-chain,seeds=0-2": 1_000}


def test_a_run_keeps_the_threads_that_it_was_begun_with(tmp_path: pathlib.Path):
    begin(tmp_path, "dqn-toy-chain,seeds=0-2")
    (one,) = runs(tmp_path)["runs"]
    (recorded,) = runs(tmp_path, {"dqn-toy-chain,seeds=0-2": 4})["runs"]
    assert (one["threads"], recorded["threads"]) == (1, 4)
    (host,) = runs(tmp_path, environments=["gym/CartPole-v1"], seeds=1)["runs"]
    (asked,) = runs(tmp_path, environments=["gym/CartPole-v1"], seeds=1, threads=5)["runs"]
    assert (host["threads"], asked["threads"]) == (sweep_runs.HOST_THREADS, 5)


def test_refuses_folders_of_other_things(tmp_path: pathlib.Path):
    begin(tmp_path, "run")
    with pytest.raises(ValueError, match="is a run; a sweep is a folder of runs"):
        runs(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        runs(tmp_path)
