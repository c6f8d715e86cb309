"""Tests of experiments/runs/run_folder.py, and of what plans.py puts into config.json."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from kullback.experiments.runs import owner, plans, run_folder

CONFIG = {"plan": {}}


def fresh(path: pathlib.Path) -> run_folder.RunFolder:
    with run_folder.created(path / "run", CONFIG) as folder:
        return folder


def contents(path: pathlib.Path) -> list[str]:
    return sorted(str(one.relative_to(path)) for one in path.rglob("*"))


def test_a_folder_with_something_in_it_is_never_overwritten(tmp_path: pathlib.Path):
    folder = fresh(tmp_path)
    with (
        pytest.raises(ValueError, match=r"exists and is not empty; .* --resume"),
        run_folder.created(folder.path, {"plan": {"steps": 1}}),
    ):
        pass
    assert folder.config() == CONFIG
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="never overwritten"), run_folder.created(file, {}):
        pass
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ("minatar/breakout", "dqn-minatar-breakout-002"),
        ("gym/my.worlds:Maze-v0", "dqn-gym-my.worlds-Maze-v0-002"),
        ("tokens/jsonl:/home/a b/x.jsonl", "dqn-tokens-jsonl-home-a-b-x.jsonl-002"),
    ],
)
def test_a_run_without_a_name_gets_one_that_shells_take(
    environment: str, name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    first = run_folder.default_path("dqn", environment)
    first.mkdir(parents=True)
    assert run_folder.default_path("dqn", environment) == pathlib.Path("runs") / name


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_appears_whole(
    is_there: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "deep" / "run"
    if is_there:
        path.mkdir(parents=True)
        monkeypatch.chdir(path)  # It stays the current folder.

    def fill(building: pathlib.Path) -> None:
        assert not (path / "config.json").exists()
        (building / "tokenizer").mkdir()
        (building / "tokenizer" / "a").write_text("x")

    given = pathlib.Path() if is_there else path
    with run_folder.created(given, CONFIG, fill) as folder:
        assert folder.config() == CONFIG
        with pytest.raises(ValueError, match=r"is being trained by process"), owner.held(path):
            pass
    assert contents(path) == [".lock", "config.json", "tokenizer", "tokenizer/a"]
    assert contents(path.parent)[0] == "run"
    with owner.held(path):  # It is nobody's now.
        pass


@pytest.mark.parametrize("part", ["", "seed_3"])
def test_what_threads_of_a_failed_write_leave_is_no_run(part: str, tmp_path: pathlib.Path):
    half = tmp_path / "run" / part / "checkpoints" / ".tmp-000000000000" / "arrays"
    half.mkdir(parents=True)
    (half / "manifest.ocdbt").touch()
    (tmp_path / "run" / "mine").touch()
    with pytest.raises(ValueError, match="exists and is not empty"):
        run_folder.check_free(tmp_path / "run")
    assert (half / "manifest.ocdbt").exists()
    (tmp_path / "run" / "mine").unlink()
    run_folder.check_free(tmp_path / "run")
    assert not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize("is_saved", [False, True])
def test_what_fails_before_its_first_checkpoint_leaves_nothing(
    is_there: bool, is_saved: bool, tmp_path: pathlib.Path
):
    path = tmp_path / "run"
    if is_there:
        path.mkdir()

    def fails(building: pathlib.Path) -> None:
        raise OSError("disk is full")

    with pytest.raises(OSError, match="full"), run_folder.created(path, CONFIG, fails):
        pass
    assert contents(tmp_path) == (["run"] if is_there else [])
    with (
        pytest.raises(ValueError, match="too large"),
        run_folder.created(path, CONFIG) as folder,
    ):
        if is_saved:
            (folder.checkpoints / f"{0:012d}").mkdir(parents=True)
        raise ValueError("a value is too large")
    assert (path / "config.json").exists() == is_saved
    assert is_saved or contents(tmp_path) == (["run"] if is_there else [])


KILLED = """
import os, pathlib, signal, sys
from kullback.core import files
from kullback.experiments.runs import run_folder
count, calls, path = 10**9, 0, pathlib.Path(sys.argv[1])
def dies(function):
    def counted(*arguments, **options):
        global count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return counted
for name in ("rename", "replace", "mkdir", "rmdir", "open", "fsync"):
    setattr(os, name, dies(getattr(os, name)))
def fill(building):
    (building / "model.json").write_text("{}")
    (building / "tokenizer").mkdir()
while True:
    pid = os.fork()
    if not pid:
        count = calls
        with run_folder.created(path, {"plan": {}}, fill):
            os._exit(0)
    status = os.waitpid(pid, 0)[1]
    is_whole = (path / "config.json").is_file()
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    if is_whole:
        assert (path / "model.json").is_file() and (path / "tokenizer").is_dir()
        files.remove(path)
        if sys.argv[2] == "there":
            path.mkdir()
    if status == 0:
        assert is_whole and not [one for one in path.parent.iterdir() if one != path]
        print(calls)
        break
    calls += 1
"""


@pytest.mark.parametrize("how", ["new", "there"])
def test_a_kill_at_any_call_leaves_a_whole_run_or_what_the_next_start_cleans(
    how: str, tmp_path: pathlib.Path
):
    path = tmp_path / "run"
    if how == "there":
        path.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path, how], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8  # So many kills.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "first line names no seed"),
        ("seed,steps,loss\n0,10,1\n0,20\n0,30,1\n", r"line 3 must be 3 numbers, got '0,20'"),
        ("seed,steps,loss\n0,10,1\n\0\0\0\0\n0,30,1\n", "line 3 must be"),
        ("seed,steps,loss\n0,10,1\n0,x,1\n", "line 3 must be"),
        ("\0" * 50 + "\n", "first line"),
    ],
)
def test_rows_that_are_none_are_said_with_their_file(
    text: str, message: str, tmp_path: pathlib.Path
):
    folder = fresh(tmp_path)
    folder.metrics_file.write_text(text)
    with pytest.raises(ValueError, match=rf"metrics\.csv is damaged: .*{message}"):
        folder.rows()


def test_a_last_row_without_an_end_is_none(tmp_path: pathlib.Path):
    folder = fresh(tmp_path)
    for text, count in (("", 0), ("seed,st", 0), ("seed,steps\n0,1\n1,60", 1), ("seed,steps\n", 0)):
        folder.metrics_file.write_text(text)
        assert len(folder.rows()) == count


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "has no config.json"), ("{", "is no JSON"), ("[]", "an object"), ("{}", "no plan")],
)
def test_a_folder_that_is_no_run(text: str | None, message: str, tmp_path: pathlib.Path):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        run_folder.RunFolder(tmp_path).config()


def test_a_plan_survives_json():
    given = plans.Plan(
        agent="m-dqn",
        environment="atari/pong",
        steps=100,
        num_seeds=2,
        settings=("temperature=0.1", "batch_size=16"),
        environment_flags=("protocol=classic",),
    )
    assert plans.Plan.from_json(json.loads(json.dumps(given.to_json()))) == given
    # What was left out is in it too, so that a later version of the defaults changes no run.
    assert given.to_json()["log_every"] == 1_000 and given.to_json()["family"] == "atari"


@pytest.mark.parametrize(
    "change", [{"agnet": "dqn"}, {"steps": "many"}, {"agent": "dqm"}, {"num_seeds": 0}]
)
def test_a_plan_that_cannot_be_is_refused(change: dict):
    saved = plans.Plan(agent="dqn", environment="toy/chain").to_json()
    with pytest.raises(ValueError):
        plans.Plan.from_json({**saved, **change})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": "100"}, "steps must be int, got '100'"),
        ({"steps": 2**31}, "steps must lie in [0, 2,000,000,000], got 2147483648"),
        ({"num_envs": 1e3}, "num_envs must be int, got 1000.0"),
        ({"num_envs": 10**18}, "num_envs must lie in [0, 1,048,576], got 1000000000000000000"),
        ({"num_seeds": 3 * 10**9}, "num_seeds must lie in [1, 10,000], got 3000000000"),
        ({"eval_episodes": 10**12}, "eval_episodes must lie in [1, 1,000,000], got 1000000000000"),
        ({"eval_every": float("nan")}, "eval_every must be int, got nan"),
        ({"log_every": 10**13}, "log_every must lie in [0, 1,000,000,000,000], got 10000000000000"),
        ({"eval_max_steps": 2**40}, "eval_max_steps must lie in [0, 2,000,000,000], got"),
        ({"seed": 2**70}, "seed must be int, got 1180591620717411303424"),
        ({"seed": True}, "seed must be int, got True"),
        ({"settings": (1,)}, "settings must be tuple[str, ...], got (1,)"),
        ({"settings": ("\udcff=1",)}, "settings must be tuple[str, ...], got ('\\udcff=1',)"),
    ],
)
def test_numbers_and_types_of_a_plan_have_limits_in_python_too(
    fields: dict[str, Any], message: str
):
    with pytest.raises(ValueError) as error:
        plans.Plan(agent="dqn", environment="toy/chain", **fields)
    assert str(error.value).startswith(message)


def test_numbers_of_numpy_are_taken():
    plan = plans.Plan(agent="dqn", environment="toy/chain", steps=np.int64(5), seed=np.int32(3))  # pyright: ignore[reportArgumentType]
    assert json.loads(json.dumps(plan.to_json()))["steps"] == 5 and type(plan.seed) is int


def test_settings_of_what_is_handed_over_would_be_ignored_and_are_refused():
    with pytest.raises(ValueError, match="the agent was handed over in Python"):
        plans.Plan(agent=plans.CUSTOM, environment="toy/chain", settings=("temperature=1",))
    with pytest.raises(ValueError, match="the environment was handed over in Python"):
        plans.Plan(agent="dqn", environment=plans.CUSTOM, environment_flags=("slip=0.1",))


def test_config_json_says_how_to_repeat_the_run(chain_run):
    config = json.loads((chain_run.path / "config.json").read_text())
    saved = plans.Plan.from_json(config["plan"])
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
