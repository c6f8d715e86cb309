"""Tests of experiments/run_folder.py, and of what experiments/plan.py puts into config.json."""

import json
import math
import pathlib

import jax
import pytest

from kullback.experiments import plan, run_folder


def row(steps: int, seed: int = 0, value: float = 0.1) -> dict[str, float]:
    return {"seed": seed, "steps": steps, "return_mean": value, "evaluation": math.nan}


def fresh(path: pathlib.Path) -> run_folder.RunFolder:
    return run_folder.create(path / "run", {"plan": {}})


def test_rows_are_there_as_soon_as_they_are_written_and_read_back_the_same(tmp_path: pathlib.Path):
    folder = fresh(tmp_path)
    assert folder.rows() == []
    log = run_folder.Log(folder, 0)
    third = 1 / 3
    log.write(row(10, value=third))
    assert folder.metrics_file.read_text() == (
        f"seed,steps,return_mean,evaluation\n0,10,{third!r},nan\n"
    )
    log.write(row(20))
    assert [r["steps"] for r in folder.rows()] == ["10", "20"]
    assert float(folder.rows()[0]["return_mean"]) == third
    log.close()
    assert list((folder.path / "tensorboard").glob("events.*"))


def test_a_resumed_log_drops_what_will_be_made_again(tmp_path: pathlib.Path):
    folder = fresh(tmp_path)
    log = run_folder.Log(folder, 0)
    for steps in (10, 20, 30):
        for seed in (0, 1):
            log.write(row(steps, seed))
    log.close()
    before = folder.metrics_file.read_text()
    again = run_folder.Log(folder, 20)
    assert [(r["steps"], r["seed"]) for r in folder.rows()] == [
        (steps, seed) for steps in ("10", "20") for seed in ("0", "1")
    ]
    for seed in (0, 1):
        again.write(row(30, seed))
    again.close()
    assert folder.metrics_file.read_text() == before


def test_a_log_that_goes_on_from_the_start_is_empty(tmp_path: pathlib.Path):
    folder = fresh(tmp_path)
    for _ in range(2):
        log = run_folder.Log(folder, 0)
        assert folder.rows() == []
        log.write(row(10))
        log.close()
    assert len(folder.rows()) == 1


def test_a_folder_with_something_in_it_is_never_overwritten(tmp_path: pathlib.Path):
    folder = fresh(tmp_path)
    with pytest.raises(ValueError, match=r"exists and is not empty; .* --resume"):
        run_folder.create(folder.path, {"plan": {"steps": 1}})
    assert folder.config() == {"plan": {}}
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="never overwritten"):
        run_folder.create(file, {})
    assert file.read_text() == "mine"
    (tmp_path / "empty").mkdir()
    run_folder.create(tmp_path / "empty", {"plan": {}})


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "has no config.json"), ("{", "is damaged"), ("[]", "no plan"), ("{}", "no plan")],
)
def test_a_folder_that_is_no_run(text: str | None, message: str, tmp_path: pathlib.Path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        run_folder.RunFolder(tmp_path).config()


def test_a_plan_survives_json():
    given = plan.Plan(
        agent="m-dqn",
        environment="atari/pong",
        steps=100,
        num_seeds=2,
        settings=("temperature=0.1", "batch_size=16"),
        environment_flags=("protocol=classic",),
    )
    assert plan.Plan.from_json(json.loads(json.dumps(given.to_json()))) == given
    # What was left out is in it too, so that a later version of the defaults changes no run.
    assert given.to_json()["log_every"] == 1_000 and given.to_json()["family"] == "atari"


@pytest.mark.parametrize(
    "change", [{"agnet": "dqn"}, {"steps": "many"}, {"agent": "dqm"}, {"num_seeds": 0}]
)
def test_a_plan_that_cannot_be_is_refused(change: dict):
    saved = plan.Plan(agent="dqn", environment="toy/chain").to_json()
    with pytest.raises(ValueError):
        plan.Plan.from_json({**saved, **change})


def test_settings_of_what_is_handed_over_would_be_ignored_and_are_refused():
    with pytest.raises(ValueError, match="the agent was handed over in Python"):
        plan.Plan(agent=plan.CUSTOM, environment="toy/chain", settings=("temperature=1",))
    with pytest.raises(ValueError, match="the environment was handed over in Python"):
        plan.Plan(agent="dqn", environment=plan.CUSTOM, environment_flags=("slip=0.1",))


def test_config_json_says_how_to_repeat_the_run(chain_run):
    config = json.loads((chain_run.path / "config.json").read_text())
    saved = plan.Plan.from_json(config["plan"])
    assert (saved.agent, saved.environment, saved.seed) == ("m-dqn", "toy/chain", 7)
    assert config["config"]["temperature"] == 0.05
    assert config["spec"] == {
        "shape": [8],
        "dtype": "float32",
        "num_actions": 2,
        "frames_per_step": 1,
    }
    assert config["loop"] == "compiled"
    assert config["versions"]["jax"] == jax.__version__
    assert set(config["versions"]) >= {"kullback", "dm-haiku", "optax", "ale-py", "numpy"}
    assert {"python", "machine", "command", "git_revision"} <= set(config)


def test_texts_that_will_be_made_again_are_dropped_and_a_line_that_was_cut(tmp_path: pathlib.Path):
    folder = fresh(tmp_path)
    texts = run_folder.Texts(folder, seed=3)
    texts.begin(0)
    texts.write(1, [{"completion": "a\u2028b\nc"}, {"completion": "é"}])
    before = folder.samples_file.read_bytes()
    texts.write(2, [{"completion": "x"}])
    with folder.samples_file.open("a") as file:
        file.write('{"step": 1, "se')
    run_folder.Texts(folder, seed=3).begin(1)
    assert folder.samples_file.read_bytes() == before
    lines = [json.loads(line) for line in before.decode().split("\n")[:-1]]
    assert lines == [
        {"step": 1, "seed": 3, "completion": "a\u2028b\nc"},
        {"step": 1, "seed": 3, "completion": "é"},
    ]
