"""Tests of experiments/cli.py: each command, and what is said to one that cannot be done."""

import argparse
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

from kullback.agents import munchausen
from kullback.experiments import catalog, cli
from kullback.experiments.runs import run_folder, settings

Command = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]


def test_help_and_list_import_nothing_heavy():
    program = (
        "import sys; from kullback.experiments import cli\n"
        "assert cli.main(['list']) == 0\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as stopped: assert stopped.code == 0\n"
        "heavy = {'jax', 'numpy', 'matplotlib', 'gymnasium', 'ale_py', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "m-dqn" in done.stdout and "usage: kullback" in done.stdout


def test_list_has_every_name_with_its_actions_and_scores(kullback: Command):
    status, out, err = kullback("list")
    assert status == 0 and not err
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert set(catalog.AGENTS) <= set(lines)
    for row in catalog.ENVIRONMENTS:
        assert int(lines[row.name][0]) == row.num_actions
    assert lines["atari/alien"] == ["18", "7,127.7", "227.8"]
    assert lines["atari/pooyan"] == ["6", "n/a", "n/a"]
    assert lines["gym/CartPole-v1"] == ["2", "n/a", "n/a"]


def test_fields_are_what_set_takes(kullback: Command):
    status, out, _ = kullback("fields", "m-dqn", "toy")
    assert status == 0
    config = munchausen.presets("toy")
    assert [line.split()[0] for line in out.splitlines()] == [
        name for name, _, _ in settings.fields(config)
    ]
    assert re.search(r"^learning\.loss +squared +huber or squared$", out, re.MULTILINE)
    assert re.search(r"^learning\.replay\.reward_clip +None +float \| None$", out, re.MULTILINE)


def test_train_writes_a_run_and_says_where(kullback: Command):
    given = (
        *("train", "dqn", "toy/chain", "--seed", "2", "--num-envs", "8"),
        *("--log-every", "500", "--set", "learning_rate=1e-3", "--set", "capacity=1000"),
        *("--environment-flag", "length=4", "--environment-flag", "slip=0.1"),
    )
    status, out, err = kullback(*given, "--steps", "1e3")
    assert status == 0, err
    folder = run_folder.RunFolder(pathlib.Path("runs/dqn-toy-chain-001"))
    assert f"run: {folder.path}\n" in out and str(folder.curve_file) in out
    assert folder.curve_file.is_file()
    # An iteration is 8 agent steps: 504 is the first multiple beyond 500.
    assert [(r["seed"], r["steps"]) for r in folder.rows()] == [("2", "504"), ("2", "1000")]
    assert "step 0 of 1,000" in err and "step 1,000 of 1,000" in err
    config = folder.config()
    assert config["config"]["learning"]["learning_rate"] == 1e-3
    assert config["config"]["learning"]["replay"]["capacity"] == 1_000
    assert config["spec"]["shape"] == [4]
    assert config["plan"]["environment_flags"] == ["length=4", "slip=0.1"]
    # The next run takes the next name.
    assert kullback(*given, "--steps", "8")[0] == 0
    assert pathlib.Path("runs/dqn-toy-chain-002").is_dir()


def test_evaluate_says_the_score_beside_that_of_chance(kullback: Command, chain_run):
    status, out, err = kullback("evaluate", chain_run.path, "--episodes", "3", "--video", "f.gif")
    assert status == 0, err
    assert re.search(
        r"^m-dqn on toy/chain, seed 7, after 4,000 steps: mean return 1\.00 \(min 1, max 1\) "
        r"over 3 episodes; a random policy: [\d.]+$",
        out,
        re.MULTILINE,
    ), out
    assert "video: f.gif (8 frames)" in out  # The shortest way to the end.
    with PIL.Image.open("f.gif") as film:
        assert film.size == (8 * 16, 16)
    # JAX warns if its process forks; warnings are errors here.
    assert kullback("evaluate", chain_run.path, "--episodes", "1", "--video", "f.mp4")[0] == 0
    assert pathlib.Path("f.mp4").stat().st_size > 0


def test_export_writes_safetensors_once(kullback: Command, refused: Refused, chain_run):
    status, out, err = kullback("export", chain_run.path, "--out", "p.safetensors")
    assert status == 0 and "parameters: p.safetensors" in out, err
    assert safetensors.numpy.load_file("p.safetensors")["linear/w"].shape == (8, 64)
    again = refused("export", chain_run.path, "--out", "p.safetensors")
    assert "p.safetensors exists" in again


def test_a_finished_run_says_so(kullback: Command, chain_run):
    before = sorted(chain_run.path.rglob("*"))
    status, out, err = kullback("train", "--resume", chain_run.path)
    assert status == 0 and "is finished: 4,000 steps" in out and not err
    assert sorted(chain_run.path.rglob("*")) == before


CHAIN = ("train", "m-dqn", "toy/chain")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "required: COMMAND"),
        (("trian",), "invalid choice: 'trian'"),
        (("train",), "expected AGENT ENVIRONMENT"),
        (("train", "m-dqn"), "expected AGENT ENVIRONMENT"),
        (("train", "m-dqm", "toy/chain"), "unknown agent 'm-dqm'; did you mean m-dqn"),
        (("train", "m-dqn", "atari/pnog"), "'atari/pnog'; did you mean atari/pong"),
        (("train", "m-dqn", "gym/CartPol-v1"), "did you mean gym/CartPole-v1"),
        ((*CHAIN, "--out="), "argument --out: expected a name, got ''"),
        (("generate", "--prompt=x", "--model", " "), "argument --model: expected a name, got ' '"),
        (("reproduce", "connections", "--mdp="), "argument --mdp: expected a name, got ''"),
        (
            (*CHAIN, "--steps", "-5"),
            "--steps: expected a whole number from 1 to 2,000,000,000, got '-5'",
        ),
        ((*CHAIN, "--steps", "0"), "expected a whole number from 1 to 2,000,000,000, got '0'"),
        ((*CHAIN, "--steps", "1.5"), "expected a whole number from 1 to 2,000,000,000, got '1.5'"),
        ((*CHAIN, "--steps", "inf"), "expected a whole number from 1 to 2,000,000,000, got 'inf'"),
        (
            (*CHAIN, "--steps", "many"),
            "expected a whole number from 1 to 2,000,000,000, got 'many'",
        ),
        (
            (*CHAIN, "--seed", "one"),
            "--seed: expected a whole number from 0 to 2,147,483,646, got 'one'",
        ),
        ((*CHAIN, "--seed", "-1"), "--seed: expected a whole number from 0 to"),
        ((*CHAIN, "--num-seeds", "0"), "--num-seeds: expected a whole number from 1 to 10,000"),
        ((*CHAIN, "--stesp", "5"), "unrecognized arguments: --stesp 5; see kullback train --help"),
        ((*CHAIN, "--environment-flag", "lenght=4"), "unknown flag 'lenght'"),
        ((*CHAIN, "--environment-flag", "length"), "expected flag=value"),
        ((*CHAIN, "--environment-flag", "slip=0.7"), "slip must lie in [0, 0.5), got 0.7"),
        ((*CHAIN, "--num-envs", "6"), "num_envs=6; the nearest valid num_envs is"),
        (("fields", "m-dqm", "toy"), "unknown agent 'm-dqm'"),
        (("fields", "m-dqn", "tpy"), "invalid choice: 'tpy'"),
        (("train", "dqn", "gym/Pendulum-v1"), "needs a Discrete action space, got Box"),
    ],
)
def test_refuses(arguments: tuple[str, ...], message: str, refused: Refused):
    assert message in refused(*arguments)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("temprature=1", "unknown field 'temprature'; did you mean temperature"),
        ("temperature=hot", "temperature must be float, got 'hot'"),
        ("temperature=0", "temperature must be > 0, got 0.0"),
        ("target_period=1e3", "target_period must be int, got '1e3'"),
        ("loss=l1", "loss must be huber or squared, got 'l1'"),
        ("temperature", "expected field=value"),
        ("batch_size=501", "batch_size=501 must be at most min_replay_size=500; set"),
        ("capacity=499", "capacity=499 must be at least min_replay_size=500; set"),
        ("samples_per_update=6", "samples_per_update=6 must divide or be divided by num_envs=4"),
        ("torso=nature", "torso 'nature' takes observations of rank 3, got shape (8,)"),
    ],
)
def test_refuses_settings(assignment: str, message: str, refused: Refused):
    assert message in refused(*CHAIN, "--set", assignment)


@pytest.mark.parametrize("zeros", [np.zeros, jnp.zeros], ids=["numpy", "jax"])
def test_what_asks_for_more_memory_than_there_is_ends_in_a_line(
    zeros: Callable[[int], object], capsys: pytest.CaptureFixture[str]
):
    command = argparse.Namespace(command=lambda options: zeros(1 << 44))  # 64 or 128 TiB.
    assert cli._run(command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kullback: there is not enough memory: ")


@pytest.mark.parametrize("command", ["evaluate", "train --resume", "export --out p"])
@pytest.mark.parametrize("what", ["nothing", "empty", "file", "other"])
def test_refuses_what_is_no_run(command: str, what: str, refused: Refused, tmp_path: pathlib.Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model": "another program's"}))
    # Models of other programs are exported too: a configuration alone might be one's.
    expected = f"{what} is no run"
    if "export" in command:
        lacks = "has neither tokenizer.json nor tokenizer.model"
        expected = f"{what} {lacks if what == 'other' else 'is no model'}"
    assert expected in refused(*command.split(), what)


def test_refuses_a_folder_that_is_taken(refused: Refused, chain_run, tmp_path: pathlib.Path):
    before = sorted(chain_run.path.rglob("*"))
    assert "is not empty" in refused(*CHAIN, "--out", chain_run.path)
    assert sorted(chain_run.path.rglob("*")) == before
    (tmp_path / "file").write_text("mine")
    assert "Not a directory" in refused(*CHAIN, "--out", tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "m-dqn", "--resume"), "--resume takes --steps or --epochs alone; a run cannot"),
        (("train", "--steps", "3999", "--resume"), "steps=3999 is less than the run's 4000"),
        (("train", "--set", "temperature=1", "--resume"), "a run cannot change its settings"),
        (("evaluate", "--seed", "9"), "has seeds 7 to 7, not 9"),
        (("evaluate", "--episodes", "-1"), "expected a whole number from 1 to 1,000,000"),
        (("evaluate", "--video", "film.avi"), "must end in .gif or .mp4"),
    ],
)
def test_refuses_of_a_run(arguments: tuple[str, ...], message: str, refused: Refused, chain_run):
    before = sorted(chain_run.path.rglob("*"))
    assert message in refused(*arguments, chain_run.path)
    assert sorted(chain_run.path.rglob("*")) == before


def test_compilations_are_noticed(compiled: list[str]):
    before = len(compiled)
    jax.jit(lambda x: x + before)(1.0)
    assert len(compiled) == before + 1
