"""Tests of experiments/runs/training.py: real processes that are stopped, killed and damaged."""

import contextlib
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.agents import munchausen
from kullback.core import checkpoints, host, types
from kullback.environments import toy
from kullback.experiments import cli
from kullback.experiments.runs import driving, opened, owner, resolved, run_folder, training
from kullback.experiments.runs.saver import Saver
from tests.records import repeated, wait_for_checkpoint

# The temperature is that of `chain_run`, whose programs these are.
CHAIN = ("train", "m-dqn", "toy/chain", "--steps", "6000", "--seed", "3")
CHAIN = (*CHAIN, "--set", "temperature=0.05")
OFTEN = ("--log-every", "250", "--checkpoint-every", "500")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "kullback.experiments.cli", *map(str, arguments)]


def kullback(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=300)


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def arrays_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the newest checkpoint's arrays by name."""
    run = experiments.load(folder)
    leaves = jax.tree_util.tree_leaves_with_path(run.learner._replace(key=None))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> pathlib.Path:
    """Trains in this process; what others train is compared with it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main([*CHAIN, *OFTEN, "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, id="kill -9"),
        pytest.param(signal.SIGINT, id="Ctrl-C", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_compiled_run_goes_on_bit_by_bit(number, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    process = start(*CHAIN, *OFTEN, "--out", folder)
    wait_for_checkpoint(folder, 2_000, process, 240)
    process.send_signal(number)
    output = process.communicate()[0]
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert f"go on with: kullback train --resume {folder}" in output
    steps = checkpoints.steps(folder / "checkpoints")
    assert 2_000 <= steps[-1] < 6_000, "the run was over before it could be interrupted"
    experiments.resume(folder, quiet=True)
    assert repeated(folder) == repeated(uninterrupted)
    ours, theirs = arrays_of(folder), arrays_of(uninterrupted)
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    done = kullback(*CHAIN, *OFTEN, "--out", folder)
    assert done.returncode == 0
    newest = folder / "checkpoints" / f"{6_000:012d}"
    victim = max(newest.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    victim.write_bytes(victim.read_bytes()[:-10])
    resumed = kullback("train", "--resume", folder)
    assert resumed.returncode == 0
    assert str(newest) in resumed.stderr and "Traceback" not in resumed.stderr
    assert repeated(folder) == repeated(uninterrupted)


@pytest.mark.slow
def test_a_finished_run_says_so_and_more_steps_extend_it(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    assert kullback(*CHAIN, "--steps", "1000", *OFTEN, "--out", folder).returncode == 0
    again = kullback("train", "--resume", folder)
    assert again.returncode == 0 and "is finished" in again.stdout
    fewer = kullback("train", "--resume", folder, "--steps", "500")
    assert fewer.returncode == 2 and "can only grow" in fewer.stderr
    other = kullback("train", "--resume", folder, "--seed", "4")
    assert other.returncode == 2 and "cannot change its seed" in other.stderr
    assert kullback("train", "--resume", folder, "--steps", "2000").returncode == 0
    assert repeated(folder) == repeated(uninterrupted)[:8]
    assert json.loads((folder / "config.json").read_text())["plan"]["steps"] == 2_000


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_good(tmp_path, capsys):
    folder = tmp_path / "run"
    command = ["train", "dqn", "toy/chain", "--steps", "5000", "--out", str(folder), *OFTEN]
    assert cli.main([*command, "--set", "learning_rate=1e30"]) == 1
    failed = capsys.readouterr().err
    assert "is not finite at step" in failed and len(failed.splitlines()) < 6
    steps = checkpoints.steps(folder / "checkpoints")
    assert steps and f"step {steps[-1]:,}" in failed
    run = experiments.load(folder)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(run.learner.params))
    # It is known as one that diverged, until it is gone on with.
    how = run_folder.RunFolder(folder).diverged()
    assert "is not finite at step" in how and how in failed


def test_seeds_of_a_compiled_run_share_a_folder(tmp_path):
    rows = []
    folder = experiments.train(
        "dqn",
        "toy/chain",
        steps=1_500,
        seed=5,
        num_seeds=2,
        eval_every=1_000,
        eval_episodes=3,
        out=tmp_path / "run",
        callback=rows.append,
        quiet=True,
    )
    written = run_folder.RunFolder(folder).rows()
    assert [(int(r["seed"]), int(r["steps"])) for r in written] == [
        (seed, steps) for steps in (500, 1_000, 1_500) for seed in (5, 6)
    ]
    assert [str(r["loss"]) for r in rows] == [r["loss"] for r in written]
    # At multiples of eval_every, and at the end.
    assert [r["evaluation"] != "nan" for r in written] == [False, False, True, True, True, True]
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["learning"]["replay"]["batch_size"] == 32
    assert config["versions"]["jax"] == jax.__version__
    assert (folder / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tensorboard").glob("events.*"))
    one, two = (experiments.load(folder, seed=seed) for seed in (5, 6))
    assert one.learner.params["linear"]["w"].shape == two.learner.params["linear"]["w"].shape
    assert not np.array_equal(one.learner.params["linear"]["w"], two.learner.params["linear"]["w"])
    with pytest.raises(ValueError, match="has seeds 5 to 6, not 7"):
        experiments.load(folder, seed=7)


HOST = {
    "steps": 1_200,
    "log_every": 400,
    "checkpoint_every": 400,
    "quiet": True,
    "settings": ("torso=mlp_small", "batch_size=16", "min_replay_size=100", "capacity=500"),
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    return experiments.train("m-dqn", "gym/CartPole-v1", seed=1, out=out, **HOST)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("both") / "run"
    return experiments.train("m-dqn", "gym/CartPole-v1", num_seeds=2, out=out, **HOST)


@pytest.mark.slow
def test_seeds_of_a_host_run_have_folders_of_their_own_and_a_seed_decides_a_run(both, alone):
    assert repeated(both / "seed_1") == repeated(alone)
    assert repeated(both) == repeated(both / "seed_0") + repeated(both / "seed_1")
    assert repeated(both / "seed_0") != [{**r, "seed": "0"} for r in repeated(alone)]
    assert experiments.load(both, seed=1).seed == 1


def test_a_resumed_host_run_has_the_same_learner_and_replay(alone, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(alone, path)
    folder = run_folder.RunFolder(path)
    named = resolved.of(opened.open(path))

    def loop():
        environment = named.make_environment(named.plan.num_envs)
        assert not isinstance(environment, types.Environment)
        return host.make(named.make_agent(environment.spec), environment, 1)

    # Play on from the same place twice, once through another checkpoint.
    first = loop()
    state, *_ = Saver(folder, first).load()
    assert state.env_steps == 1_200
    fresh = loop()
    copy, *_ = Saver(folder, fresh).load()
    jax.tree.map(np.testing.assert_array_equal, state.replay, copy.replay)
    state = first.advance(state, 1_400)
    saver = Saver(folder, first)
    saver.load()
    saver.save(state, None, {})
    again, *_ = Saver(folder, loop()).load()
    assert again.env_steps == state.env_steps
    jax.tree.map(np.testing.assert_array_equal, again.learner.params, state.learner.params)
    # Every transition that could be drawn still can be, but for the oldest of a ring: the cut of
    # its running episode took a slot.
    expected, got = drawable(state), drawable(again)
    assert len(expected) - 4 <= len(got) <= len(expected)
    for item, transition in got.items():
        np.testing.assert_array_equal(transition, expected[item])


def drawable(state: host.RunState) -> dict[tuple[int, int], np.ndarray]:
    """Transitions that may be drawn, by environment and number."""
    contents = state.replay
    length = len(contents.action) // len(contents.cursor)
    drawable = {}
    for e, (oldest, newest) in enumerate(zip(contents.oldest, contents.newest, strict=True)):
        for n in range(oldest, newest):
            position = contents.starts[e * length + n % length]
            row, following = (e * length + (position + i) % length for i in (0, 1))
            scalars = contents.action[row], contents.reward[row], contents.discount[row]
            frames = contents.frames[row], contents.frames[following]
            drawable[e, n] = np.concatenate([*frames, scalars])
    return drawable


@pytest.mark.slow
def test_what_was_handed_over_in_python_is_handed_over_again_to_resume(tmp_path):
    def agent(spec: types.Spec) -> types.Agent:
        return munchausen.make(None, spec, munchausen.presets("toy"))

    path = experiments.train(
        agent, toy.chain, steps=1_000, out=tmp_path / "run", quiet=True, num_envs=4
    )
    with pytest.raises(ValueError, match="agent was handed over in Python"):
        experiments.resume(path, steps=2_000)
    experiments.resume(path, steps=2_000, agent=agent, environment=toy.chain, quiet=True)
    run = experiments.load(path, agent=agent, environment=toy.chain)
    assert run.env_steps == 2_000
    action = run.act(np.eye(8, dtype=np.float32)[:3], jax.random.key(0))
    assert action.shape == (3,) and action.dtype == np.int32


def test_disk_that_is_too_small_is_noticed_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.files, "free_bytes", lambda path: 1_000)
    with pytest.raises(ValueError, match="checkpoints need"):
        experiments.train("dqn", "toy/chain", out=tmp_path / "run", quiet=True)
    assert not list(tmp_path.iterdir())


def altered(folder: pathlib.Path, section: str, key: str, value: object) -> None:
    file = run_folder.RunFolder(folder)
    config = file.config()
    config[section][key] = value
    file.write_config(config)


def test_what_was_changed_or_lost_is_found_before_work_and_accepted_on_demand(
    uninterrupted, tmp_path, capsys
):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    altered(folder, "plan", "seed", 4)
    shutil.move(folder / "metrics.csv", tmp_path / "metrics.csv")
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"plan\.seed was 3 and is 4; .*metrics\.csv is missing"):
        experiments.resume(folder, steps=6_500, quiet=True)
    assert {p: p.read_bytes() for p in files if p.name != ".lock"} == {
        p: data for p, data in files.items() if p.name != ".lock"
    }
    altered(folder, "plan", "seed", 3)
    experiments.resume(folder, steps=6_500, quiet=True, accept_changes=True)
    assert f"accepted: {folder}/metrics.csv is missing" in capsys.readouterr().out
    (entry,) = run_folder.RunFolder(folder).config()["resumed"]
    assert "metrics.csv is missing" in entry["accepted"][0]
    assert [row["steps"] for row in run_folder.RunFolder(folder).rows()][-1] == "6500"
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(ValueError, match=r"checkpoints is missing or empty, and .* up to step 6,5"):
        experiments.resume(folder, steps=7_000, quiet=True)
    experiments.resume(folder, quiet=True)
    assert "is finished" in capsys.readouterr().out


def test_a_run_that_is_running_is_not_resumed_and_can_be_read(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    with owner.held(folder):
        with pytest.raises(ValueError, match=rf"is being trained by process {os.getpid()} on"):
            experiments.resume(folder, steps=20_000, quiet=True)
        assert experiments.load(folder).env_steps == 6_000
    assert run_folder.RunFolder(folder).config()["plan"]["steps"] == 6_000


def test_a_run_that_has_no_checkpoint_and_no_row_is_begun(tmp_path):
    class Killed(BaseException):
        pass

    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patched:

        def stops(*arguments: object) -> None:
            shutil.copytree(folder, tmp_path / "copy")  # As a kill would leave it.
            raise Killed

        patched.setattr(Saver, "save", stops)
        with pytest.raises(Killed):
            experiments.train(*CHAIN[1:3], steps=1_000, settings=CHAIN[-1:], out=folder, quiet=True)
    assert not folder.exists()
    experiments.resume(tmp_path / "copy", quiet=True)
    assert experiments.load(tmp_path / "copy").env_steps == 1_000


@pytest.mark.slow
def test_a_checkpoint_has_a_score_only_if_it_was_evaluated_then_and_the_best_is_saved(tmp_path):
    returns = iter([0.5, 1.0, 1.0, 0.2])

    class Judged(driving.Drive):
        def _assess(self, state, steps, is_evaluated):
            assessment = super()._assess(state, steps, is_evaluated)
            if assessment.scores is None:
                return assessment
            return assessment._replace(scores=np.full_like(assessment.scores, next(returns)))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(driving, "Drive", Judged)
        folder = experiments.train(
            *("dqn", "toy/chain"),
            steps=4_000,
            log_every=500,
            checkpoint_every=700,
            eval_every=1_000,
            eval_episodes=1,
            out=tmp_path / "run",
            quiet=True,
        )
    saved = folder / "checkpoints"
    scores = {
        step: json.loads((saved / f"{step:012d}" / "contents.json").read_text())["meta"]["score"]
        for step in checkpoints.steps(saved)
    }
    # 1,000 was the best until 2,000; the same again is no better, and at 4,000 the run ends.
    assert scores == {2_000: 1.0, 2_800: None, 3_500: None, 4_000: np.float32(0.2)}
    assert experiments.load(folder, best=True).env_steps == 2_000


def test_a_damaged_replay_is_left_out_on_demand(alone, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(alone, path)
    for segment in (path / "replay").iterdir():
        segment.write_bytes(segment.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"replay is damaged, and all else .*--empty-replay"):
        experiments.resume(path, steps=2_000, quiet=True)
    assert run_folder.RunFolder(path).config()["plan"]["steps"] == HOST["steps"]
    learnt = experiments.load(path).learner
    rows = []
    experiments.resume(path, steps=2_000, quiet=True, empty_replay=True, callback=rows.append)
    assert run_folder.RunFolder(path).config()["resumed"] == [
        {"accepted": [], "empty_replay": True}
    ]
    again = experiments.load(path)
    assert again.env_steps == 2_000 and int(again.learner.steps) > int(learnt.steps)
    # One hundred steps are gathered before it learns from them.
    assert int(again.learner.steps) - int(learnt.steps) <= (2_000 - 1_200 - 100) / 4 + 1
    experiments.resume(path, steps=2_400, quiet=True)  # What it has filled since is whole.


@pytest.mark.slow
def test_a_seed_that_cannot_go_on_is_known_before_another_has_worked(both, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(both, path)
    for segment in (path / "seed_1" / "replay").iterdir():
        segment.write_bytes(segment.read_bytes()[:-1])
    before = {file: file.stat().st_mtime_ns for file in (path / "seed_0").rglob("*")}
    config = (path / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"seed_1.replay is damaged, and all else"):
        experiments.resume(path, steps=2_000, quiet=True)
    assert {file: file.stat().st_mtime_ns for file in (path / "seed_0").rglob("*")} == before
    assert (path / "config.json").read_bytes() == config
    experiments.resume(path, steps=2_000, quiet=True, empty_replay=True)
    assert [experiments.load(path, seed=seed).env_steps for seed in (0, 1)] == [2_000, 2_000]


def test_what_has_no_replay_of_its_own_cannot_leave_it_out(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    with pytest.raises(ValueError, match="has no replay beside its checkpoints"):
        experiments.resume(folder, steps=7_000, quiet=True, empty_replay=True)


@contextlib.contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """Lets no file of this process grow beyond a size, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = "jax_persistent_cache_min_compile_time_secs"
    seconds = getattr(jax.config, kept)
    jax.config.update(kept, 1e9)  # Half a program in the cache would be read by later tests.
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        jax.config.update(kept, seconds)


def test_a_full_disk_ends_a_run_in_one_line_and_keeps_what_was_saved(
    uninterrupted, tmp_path, capsys
):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    (folder / "learning_curve.png").unlink()
    go_on = ["train", "--resume", str(folder), "--steps", "8000"]
    with largest_file(20_000):  # A checkpoint has more.
        assert cli.main(go_on) == 1
    failed = capsys.readouterr().err
    *_, said = failed.splitlines()
    assert "Traceback" not in failed and "was saved by step" in said
    assert cli.main(go_on) == 0


@pytest.mark.slow
def test_the_same_run_twice_writes_the_same_rows(uninterrupted, tmp_path):
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    folder = tmp_path / "run"
    done = subprocess.run(
        command(*CHAIN, *OFTEN, "--out", folder), env=environment, capture_output=True
    )
    assert done.returncode == 0
    assert repeated(folder) == repeated(uninterrupted)


def test_a_run_too_short_to_learn_says_so(tmp_path, capsys):
    training.train("dqn", "toy/chain", steps=400, out=tmp_path / "run")
    message = "warning: learning begins after 500 steps, and the run ends at 400: nothing is learnt"
    assert message in capsys.readouterr().out


def test_a_replay_without_n_steps_a_row_is_refused_before_there_is_a_folder(tmp_path):
    settings = ("capacity=600", "n_step=3")
    with pytest.raises(ValueError, match="set capacity=1536"):
        training.train("dqn", "toy/chain", num_envs=512, settings=settings, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
