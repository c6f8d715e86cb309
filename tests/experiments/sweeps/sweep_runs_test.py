"""Tests of experiments/sweeps/sweep_runs.py: what is new, what goes on, and what is refused."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from kullback.agents import dqn
from kullback.experiments.runs import plans, resolved, run_folder, settings
from kullback.experiments.sweeps import sweep_runs, sweeping
from kullback.lm import gemma

CHAIN: dict[str, Any] = {
    "agents": ["dqn"],
    "environments": ["toy/chain"],
    "seeds": 3,
    "steps": 1_000,
    "settings": {"learning_rate": 1e-3, "batch_size": 16},
}


def begin(out: pathlib.Path, name: str, saved: int | None = None, **fields: Any) -> None:
    """Makes the folder of a run of CHAIN, with a checkpoint of step `saved`."""
    given = {"environment": "toy/chain", "steps": 1_000, "num_seeds": 3, **fields}
    given.setdefault("settings", ("learning_rate=0.001", "batch_size=16"))
    plan = plans.Plan(agent="dqn", **given)
    named = resolved.resolve(plan)
    config = {"plan": plan.to_json(), "config": dataclasses.asdict(named.config)}
    with run_folder.created(out / name, {**config, **named.to_json()}) as folder:
        pass
    if saved is not None:
        (folder.checkpoints / f"{saved:012d}").mkdir(parents=True)


def runs(out: pathlib.Path, begun: dict[str, int] | None = None, **changes: Any) -> dict[str, Any]:
    return sweep_runs.runs({**CHAIN, **changes}, out, begun or {}, cores=6)


def check_here(out: str, **arguments: Any) -> dict[str, Any]:
    """Checks as `sweeping` does, but in this process, which need not import everything first."""
    return json.loads(json.dumps(sweep_runs.runs(out=pathlib.Path(out), **arguments)))


def named(checked: dict[str, Any]) -> dict[str, int]:
    return {run["name"]: run["done"] for run in checked["runs"]}


def test_consecutive_seeds_are_one_run_where_they_are_compiled(tmp_path: pathlib.Path):
    checked = runs(tmp_path, seeds=[0, 1, 2, 7], environments=["toy/chain", "gym/CartPole-v1"])
    assert [(r["name"], r["plan"]["seed"], r["plan"]["num_seeds"]) for r in checked["runs"]] == [
        ("dqn-toy-chain,seeds=0-2", 0, 3),
        ("dqn-toy-chain,seed=7", 7, 1),
        *((f"dqn-gym-CartPole-v1,seed={seed}", seed, 1) for seed in (0, 1, 2, 7)),
    ]
    assert not list(tmp_path.iterdir()), "a check writes nothing"
    assert checked["others"] == []


def test_what_is_there_is_known_by_its_plan_and_goes_on(tmp_path: pathlib.Path):
    begin(tmp_path, "another name", saved=750)
    # Values of a setting that the run has not, its order, and a name that would now be longer.
    settings = {"batch_size": 16, "learning_rate": [3e-3, 1e-3]}
    checked = runs(tmp_path, settings=settings)
    assert named(checked) == {"dqn-toy-chain,learning_rate=0.003,seeds=0-2": 0, "another name": 750}
    assert checked["others"] == []
    settings["learning_rate"] = [3e-3]
    assert runs(tmp_path, settings=settings)["others"] == ["another name"]


def test_seeds_are_added_and_steps_grow(tmp_path: pathlib.Path):
    begin(tmp_path, "dqn-toy-chain,seeds=0-2", saved=1_000)
    checked = runs(tmp_path, seeds=6, steps=2_000)
    assert named(checked) == {"dqn-toy-chain,seeds=0-2": 1_000, "dqn-toy-chain,seeds=3-5": 0}
    assert [run["plan"]["steps"] for run in checked["runs"]] == [2_000, 2_000]
    assert named(runs(tmp_path, seeds=[1, 2, 0])) == {"dqn-toy-chain,seeds=0-2": 1_000}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"settings": {"learning_rate": 1e-2, "batch_size": 16}},
            "dqn-toy-chain,seeds=0-2 has changed: it was begun with learning.learning_rate=0.001, "
            "and the file says learning.learning_rate=0.01; choose another",
        ),
        (
            {"environment_flags": {"slip": 0.2}},
            "with environment_flags.slip=0.0, and the file says environment_flags.slip=0.2;",
        ),
        ({"plan": {"num_envs": 8}}, "with num_envs=4, and the file says num_envs=8;"),
        ({"seeds": 2}, "dqn-toy-chain,seeds=0-2 has seeds 0, 1, 2, the file asks for 0, 1;"),
        ({"seeds": [2, 3]}, "the file asks for 2, 3;"),
        ({"steps": 500}, "dqn-toy-chain,seeds=0-2 has steps=1000, the file asks for 500"),
        ({"threads": 2}, "was begun with 1 threads, the file says 2"),
        ({"seeds": 3_000_000_000}, "seeds asks for 3,000,000,000, and a sweep has at most 10,000"),
        ({"seeds": list(range(10_001))}, "seeds asks for 10,001, and a sweep has at most 10,000"),
        (
            {"settings": {"learning_rate": [1e-3] * 101, "batch_size": list(range(1, 101))}},
            "the file asks for 10,100 configurations, and a sweep has at most 10,000:",
        ),
        (
            {"seeds": 9_999, "settings": {"batch_size": list(range(1, 20))}},
            "the file asks for 189,981 configurations times seeds, and a sweep has at most 100,000",
        ),
        ({"threads": 0}, "threads must be a whole number >= 1, got 0"),
        ({"runs_per_gpu": 0}, "runs_per_gpu must be a whole number in [1, 1,024], got 0"),
        ({"runs_per_gpu": 0.5}, "runs_per_gpu must be a whole number in [1, 1,024], got 0.5"),
    ],
)
def test_refuses_what_has_changed_by_name(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
):
    begin(tmp_path, "dqn-toy-chain,seeds=0-2", saved=250)
    with pytest.raises(ValueError) as error:
        runs(tmp_path, {"dqn-toy-chain,seeds=0-2": 1}, **changes)
    assert message in str(error.value)


def test_runs_are_compared_by_values(tmp_path: pathlib.Path):
    flags = ("sticky_action_prob=0.10", "difficulty_ramping=true")
    place = {"environment": "minatar/breakout", "environment_flags": flags}
    begin(tmp_path, "ours", saved=250, settings=("learning_rate=1e-3", "batch_size=16"), **place)
    table: dict[str, Any] = {"environments": ["minatar/breakout"]}
    assert named(runs(tmp_path, **table)) == {"ours": 250}
    table["environment_flags"] = {"sticky_action_prob": 0.1}
    assert named(runs(tmp_path, **table)) == {"ours": 250}
    table["environment_flags"] = {"sticky_action_prob": 0.2}
    assert runs(tmp_path, **table)["others"] == ["ours"]


def test_runs_that_share_a_gpu_are_no_other_runs(tmp_path: pathlib.Path):
    begin(tmp_path, "dqn-toy-chain,seeds=0-2", saved=250)
    alone, shared = runs(tmp_path), runs(tmp_path, runs_per_gpu=4)
    assert (alone["runs_per_gpu"], shared["runs_per_gpu"]) == (None, 4)
    assert alone["runs"] == shared["runs"] and named(shared) == {"dqn-toy-chain,seeds=0-2": 250}
    over_mesh = [{"name": "sft-x", "plan": {"mesh": "4x1"}}]
    assert sweep_runs._runs_per_gpu({"runs_per_gpu": 1}, over_mesh) == 1
    with pytest.raises(ValueError, match=r"runs_per_gpu=2 and a mesh .* sft-x takes all GPUs"):
        sweep_runs._runs_per_gpu({"runs_per_gpu": 2}, over_mesh)


def test_threads_of_an_environment_are_handed_on_and_not_compared(tmp_path: pathlib.Path):
    place = {"environment": "atari/pong", "num_seeds": 1}
    begin(tmp_path, "ours", saved=250, environment_flags=("num_threads=2",), **place)
    table: dict[str, Any] = {"environments": ["atari/pong"], "seeds": 1}
    for flags in ({}, {"num_threads": 7}):
        (run,) = runs(tmp_path, **table, environment_flags=flags)["runs"]
        assert run["name"] == "ours"
        assert run["plan"]["environment_flags"] == ["num_threads=2"]


def test_a_run_of_other_presets_is_not_todays_setting(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    name = "dqn-toy-chain,seeds=0-2"
    begin(tmp_path, name, saved=1_000)
    todays = dqn.presets

    def presets(family: Any) -> Any:
        return settings.apply(todays(family), ["target_period=7", "n_step=3"])

    monkeypatch.setattr(dqn, "presets", presets)
    with pytest.raises(ValueError) as error:
        runs(tmp_path)
    assert str(error.value) == (
        f"{name} has changed: it was begun with learning.target_period=50, learning.replay.n_step=1"
        ", and today's presets have learning.target_period=7, learning.replay.n_step=3; write the "
        "former into the file to go on with it, choose another --out, or move it away"
    )
    former = {**CHAIN["settings"], "target_period": 50, "n_step": 1}
    assert named(runs(tmp_path, settings=former)) == {name: 1_000}


def test_shapes_of_models_are_compared(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    def identity(*flags: str) -> dict[str, Any]:
        plan = plans.Plan(
            agent="sft", environment="tokens/arithmetic", model="tiny", model_flags=flags
        )
        return sweep_runs._identity(plan)

    assert identity("query_scale=256", "window=4") == identity("window=04", "query_scale=256.0")
    before = identity()
    tiny = settings.apply(gemma.PRESETS["tiny"], ["window=3"])
    monkeypatch.setitem(gemma.PRESETS, "tiny", tiny)
    assert identity() != before


def test_what_is_computed_otherwise_since_a_run_began_is_said(tmp_path: pathlib.Path):
    name = "dqn-toy-chain,seeds=0-2"
    begin(tmp_path, name, saved=250, num_envs=128)
    assert [run["notes"] for run in runs(tmp_path, plan={"num_envs": 128})["runs"]] == [[]]
    file = tmp_path / name / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "mends": 0}))
    (run,) = runs(tmp_path, plan={"num_envs": 128})["runs"]
    assert len(run["notes"]) == 1 and "recent_return" in run["notes"][0]


def test_a_run_that_has_diverged_is_left_alone_unless_asked(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    name, other = (f"dqn-toy-chain,seed={seed}" for seed in (0, 1))
    for number, folder in enumerate((name, other)):
        begin(tmp_path, folder, saved=1_000 if number else 250, seed=number, num_seeds=1)
    run_folder.RunFolder(tmp_path / name).write_diverged("the loss is not finite at step 300")
    done: list[str] = []
    monkeypatch.setattr(
        sweeping, "_drive", lambda todo, *rest: done.extend(job.name for job in todo) or []
    )
    monkeypatch.setattr(sweeping, "_check", check_here)

    def sweep(**given: Any) -> list[str]:
        said: list[str] = []
        sweeping.sweep({**CHAIN, "seeds": 2}, out=tmp_path, say=said.append, **given)
        return said

    assert sweep() == [
        f"{name}: 1,000 steps, diverged: the loss is not finite at step 300; --retry-diverged "
        "tries it again",
        f"{other}: 1,000 steps, finished",
        f"2 runs in {tmp_path}, 1 of them finished; 0 steps to go",
    ]
    assert done == []
    assert sweep(retry_diverged=True)[0] == f"{name}: 1,000 steps, at step 250"
    assert done == [name]


@pytest.mark.slow
def test_threads_of_runs_that_a_file_leaves_out_are_kept(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sweeping, "_drive", lambda *rest: [])
    for seed, threads in ((0, 3), (1, 2)):
        begin(tmp_path, f"dqn-toy-chain,seed={seed}", saved=250, seed=seed, num_seeds=1)
        table = {**CHAIN, "seeds": [seed], "threads": threads}
        sweeping.sweep(table, out=tmp_path, quiet=True)
        if seed == 0:
            (tmp_path / "dqn-toy-chain,seed=0").rename(tmp_path / "away")
    (tmp_path / "away").rename(tmp_path / "dqn-toy-chain,seed=0")
    sweeping.sweep({**CHAIN, "seeds": 2}, out=tmp_path, quiet=True)
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert [run["threads"] for run in record["runs"]] == [3, 2]


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
    (with_five,) = runs(tmp_path, environments=["gym/CartPole-v1"], seeds=1, threads=5)["runs"]
    assert (host["threads"], with_five["threads"]) == (sweep_runs.HOST_THREADS, 5)


def test_refuses_folders_of_other_things(tmp_path: pathlib.Path):
    begin(tmp_path, "run")
    with pytest.raises(ValueError, match="is a run; a sweep is a folder of runs"):
        runs(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        runs(tmp_path)
