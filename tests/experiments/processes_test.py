"""Tests of runs over two processes: as one process over the same mesh, killed, and resumed."""

import contextlib
import json
import math
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from kullback.core import checkpoints, departures, processes, sharding
from kullback.experiments import cli
from kullback.experiments.runs import models, plans, run_processes
from kullback.lm import gemma, tasks, tokenizer
from kullback.lm.formats import hugging_face
from tests import several, small_disks, small_models
from tests.records import repeated, wait_for_checkpoint

TASK = "tokens/arithmetic"
STEPS = 3
SETTINGS = ("max_prompt_length=8", "max_new_tokens=4", "warmup_steps=0", "learning_rate=1e-3")
REWARDED = (*SETTINGS, "batch_size=8", "samples_per_prompt=2")
# By name: the algorithm, the mesh, its settings and other fields of the plan.
RUNS: dict[str, tuple[str, str, tuple[str, ...], dict[str, str]]] = {
    "sft": ("sft", "2x1", (*SETTINGS, "batch_size=8"), {}),
    "cut": ("sft", "1x2", (*SETTINGS, "batch_size=8"), {}),
    "adapters": ("sft", "2x1", (*SETTINGS, "batch_size=8", "lora.rank=2"), {}),
    "gkd": (
        "gkd",
        "2x1",
        (*SETTINGS, "batch_size=8", "student_fraction=0.5", "mixing=row"),
        {"teacher": "TEACHER"},
    ),
    "aged": (
        "gkd",
        "1x2",
        (*SETTINGS, "batch_size=8", "student_fraction=1", "max_age=1"),
        {"teacher": "TEACHER"},
    ),
    "judge": ("reward-model", "2x1", (*SETTINGS, "batch_size=8", "probe_pairs=8"), {}),
    "dpo": ("dpo", "2x1", (*SETTINGS, "batch_size=8"), {}),
    "rlhf": ("rlhf", "2x1", REWARDED, {"reward": "exact-0.01*length"}),
    "grpo": (
        "rlhf",
        "1x2",
        (*REWARDED, "variant=grpo", "epochs=2", "minibatches=2"),
        {"reward": "python:tests.experiments.processes_test:lottery"},
    ),
    "square": ("sft", "2x2", (*SETTINGS, "batch_size=8"), {}),
    "square-rlhf": ("rlhf", "2x2", REWARDED, {"reward": "exact-0.01*length"}),
}

# Runs of as many devices, which the same three processes do one after another.
GROUPS = {
    "tuning": ("sft", "cut", "adapters"),
    "distillation": ("gkd", "aged"),
    "pairs": ("judge", "dpo"),
    "rewards": ("rlhf", "grpo"),
    "rows and weights cut": ("square", "square-rlhf"),
}


def lottery(prompts: list[str], texts: list[str], references: list[str]) -> list[float]:
    """Returns rewards that no other process would draw."""
    return np.random.default_rng().random(len(texts)).tolist()


PROGRAM = """
import contextlib, json, pathlib, sys
import jax, numpy as np
from kullback import lm
from kullback.core import processes, trees
from kullback.experiments.runs import language_setup, model_files, plans, preferences, resolved

given, port, count, index = json.loads(sys.argv[1]), *sys.argv[2:]
several = (f"127.0.0.1:{port}", int(count), int(index)) if int(count) > 1 else None
results = {}
with processes.joined(*several) if several else contextlib.nullcontext():
    for name, (agent, mesh, settings, fields) in given["runs"].items():
        entry = lm.ALGORITHMS[agent]
        named = resolved.resolve(plans.Plan(
            agent=agent,
            environment=given["pairs" if entry.reads_pairs or entry.is_judge else "task"],
            model=given["start"],
            settings=settings,
            mesh=mesh,
            steps=given["steps"],
            **{key: value.replace("TEACHER", given["teacher"]) for key, value in fields.items()},
        ))
        build = preferences.setup if named.plan.kind == "preferences" else language_setup.setup
        work = build(named)
        loop = work.loop((0,), lambda steps, texts: None, 1, contextlib.nullcontext)
        state, rows = loop.init(), []
        while loop.steps(state) < given["steps"]:
            state = loop.advance(state, loop.steps(state) + 1)
            state, (row,) = loop.rows(state)
            rows.append([row["loss"], row.get("kl_start", 0), row["return_mean"]])
        scores = loop.evaluate(state, 8).returns.reshape(-1)
        texts = work.texts(state.learner, 4)
        results[name] = {
            "rows": np.asarray(rows, float).tolist(),
            "scores": scores.tolist(),
            "texts": json.dumps(texts),
            "sha256": model_files.fingerprint(state.learner.params),
            "details": json.dumps(work.details()),
        }
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns a folder with two models, "start" and "teacher", and pairs of answers."""
    root = tmp_path_factory.mktemp("several")
    bpe = tokenizer.train_bpe(tasks.make(TASK).texts("train"), 512)
    tokenizer.save(bpe, root / "words")
    config = small_models.divisible(bpe)
    for seed, name in enumerate(("start", "teacher")):
        params = gemma.make(config).init(jax.random.key(seed))
        hugging_face.save(root / name, config, params, sorted((root / "words").iterdir()))
    rows = [
        {"prompt": f"{n}+{m}=", "chosen": str(n + m), "rejected": str(n + m + 1)}
        for n in range(8)
        for m in range(9)
    ]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS)
def test_two_processes_learn_as_one_over_the_same_mesh(root: pathlib.Path, group: str):
    given = {
        "task": TASK,
        "pairs": f"tokens/preferences:{root / 'pairs.jsonl'}",
        "start": str(root / "start"),
        "teacher": str(root / "teacher"),
        "steps": STEPS,
        "runs": {name: RUNS[name] for name in GROUPS[group]},
    }
    command = ["-c", PROGRAM, json.dumps(given), "@PORT", "@COUNT", "@INDEX"]
    said = []
    (devices,) = {math.prod(sharding.shape_of(RUNS[name][1])) for name in GROUPS[group]}
    for count in (1, 2):
        with several.running(command, count, devices=devices // count) as started:
            said += several.ended(started)
    assert [status for status, _, _ in said] == [0, 0, 0], "\n".join(x[-1][-3000:] for x in said)
    results = [json.loads(out.splitlines()[-1]) for _, out, _ in said]
    for name in GROUPS[group]:
        one, first, other = (result[name] for result in results)
        assert first == other, "all that a process sees is the same in both"
        assert len({tuple(row) for row in one["rows"]}) == STEPS
        assert first["details"] == one["details"]
        if name == "grpo":  # Its rewards are drawn anew.
            continue
        np.testing.assert_allclose(first["rows"], one["rows"], rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(first["scores"], one["scores"], rtol=1e-4, atol=1e-4)


def test_every_run_is_in_a_group():
    assert sorted(RUNS) == sorted(name for names in GROUPS.values() for name in names)


# Runs by the command line.


@contextlib.contextmanager
def training(*arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Starts `kullback train` in two processes."""
    joined = ("--coordinator=127.0.0.1:@PORT", "--num-processes=2", "--process-id=@INDEX")
    command = ["-m", "kullback.experiments.cli", "train", *arguments, *joined]
    with several.running(command, 2) as started:
        yield started


def new(root: pathlib.Path, name: str, *more: str) -> list[str]:
    settings = (f"--set={setting}" for setting in (*SETTINGS, "batch_size=8"))
    return [
        *("sft", TASK, "--model", str(root / "start"), "--mesh=2x1", *settings, "--steps=40"),
        *("--log-every=1", "--checkpoint-every=4", "--eval-every=20", "--eval-episodes=8"),
        *("--out", str(root / name), *more),  # The last --out counts.
    ]


def same(one: pathlib.Path, other: pathlib.Path) -> None:
    """Compares two runs: rows, texts, and the parameters that a user would load."""
    assert repeated(one) == repeated(other) != []
    assert (one / "samples.jsonl").read_text() == (other / "samples.jsonl").read_text()
    steps = [checkpoints.steps(run / "checkpoints")[-1] for run in (one, other)]
    assert steps == [40, 40]
    pairs = zip(*(jax.tree.leaves(models.load(run).params) for run in (one, other)), strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def whole(root: pathlib.Path) -> pathlib.Path:
    """Returns a run that nobody interrupted."""
    with training(*new(root, "whole")) as started:
        (status, out, error), (status_1, out_1, error_1) = several.ended(started)
    assert (status, status_1) == (0, 0), error + error_1
    assert f"run: {root / 'whole'}" in out and "run:" not in out_1 + error_1
    config = json.loads((root / "whole" / "config.json").read_text())
    assert (config["processes"], config["plan"]["mesh"]) == (2, "2x1")
    return root / "whole"


@pytest.mark.slow
def test_killed_runs_go_on_to_the_last_bit(root: pathlib.Path, whole: pathlib.Path):
    killed = root / "killed"
    with training(*new(root, "killed")) as started:
        wait_for_checkpoint(killed, 4, started[0], 200)
        started[1].send_signal(signal.SIGKILL)  # One of them.
        (status, _, error), _ = several.ended(started)
    assert status == 1
    pid, message = started[1].pid, error.splitlines()[-1]
    assert message.startswith("kullback: process 1 (") and f"pid {pid}) is gone; " in message
    assert message.endswith(f"start all 2 processes again with: kullback train --resume {killed}")
    begun = checkpoints.steps(killed / "checkpoints")[-1]
    assert 4 <= begun < 40
    with training("--resume", str(killed)) as started:
        wait_for_checkpoint(killed, begun + 8, started[0], 200)
        for process in started:  # Both.
            process.send_signal(signal.SIGKILL)
        several.ended(started)
    assert begun + 8 <= checkpoints.steps(killed / "checkpoints")[-1] < 40
    with training("--resume", str(killed)) as started:
        said = several.ended(started)
    assert [status for status, _, _ in said] == [0, 0], said
    same(killed, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "receivers"),
    [(signal.SIGTERM, (1,)), (signal.SIGINT, (0,)), (signal.SIGINT, (0, 1))],
    ids=["one-terminated", "leader-interrupted", "all-interrupted"],
)
def test_a_signal_saves_the_same_step_in_all(
    root: pathlib.Path,
    whole: pathlib.Path,
    tmp_path: pathlib.Path,
    number: int,
    receivers: tuple[int, ...],
):
    signalled = tmp_path / "signalled"
    with training(*new(root, "signalled", "--out", str(signalled))) as started:
        wait_for_checkpoint(signalled, 4, started[0], 200)
        for index in receivers:
            started[index].send_signal(number)
        said = several.ended(started)
    assert [status for status, _, _ in said] == [128 + number] * 2, said
    step = checkpoints.steps(signalled / "checkpoints")[-1]
    assert 4 <= step < 40
    for _, _, error in said:
        assert f"saved at step {step:,}; go on with: kullback train --resume {signalled}" in error
    with training("--resume", str(signalled)) as started:
        said = several.ended(started)
    assert [status for status, _, _ in said] == [0, 0], said
    same(signalled, whole)


@pytest.mark.slow
def test_a_process_that_pauses_is_waited_for(
    root: pathlib.Path, whole: pathlib.Path, tmp_path: pathlib.Path
):
    paused = tmp_path / "paused"
    with training(*new(root, "paused", "--out", str(paused))) as started:
        wait_for_checkpoint(paused, 4, started[0], 200)
        started[1].send_signal(signal.SIGSTOP)
        time.sleep(departures.HEARTBEAT_SECONDS / 3)
        started[1].send_signal(signal.SIGCONT)
        said = several.ended(started)
    assert [status for status, _, _ in said] == [0, 0], said
    same(paused, whole)


@pytest.mark.slow
def test_a_full_disk_of_the_first_ends_all_and_nothing_saved_is_lost(
    root: pathlib.Path, whole: pathlib.Path, tmp_path: pathlib.Path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        small_disks.mount(disk, 64 * 1024)
    except small_disks.Unavailable as error:
        pytest.skip(str(error))
    run = disk / "run"
    try:
        with training(*new(root, "run", "--out", str(run))) as started:
            wait_for_checkpoint(run, 4, started[0], 200)
            filler = small_disks.fill(disk)
            (status, _, error), (status_1, _, error_1) = several.ended(started)
        assert (status, status_1) == (1, 1), error + error_1
        message = error.splitlines()[-1]
        assert "No space left on device; what was saved by step" in message
        assert message.endswith(f"go on with: kullback train --resume {run}")
        assert "kullback: process 0 (" in error_1.splitlines()[-1] and "No space left" in error_1
        filler.unlink()
        with training("--resume", str(run)) as started:
            said = several.ended(started)
        assert [status for status, _, _ in said] == [0, 0], said
        same(run, whole)
    finally:
        small_disks.unmount(disk)


@pytest.mark.slow
def test_another_number_of_processes_is_refused_in_one_line(
    whole: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["train", "--resume", str(whole), "--steps", "41"]) == 2
    error = capsys.readouterr().err
    assert "ran over 2 processes, and there is 1: sums would be in another order" in error
    assert "start 2; put back" in error and "--accept-changes" in error and error.count("\n") == 1


@pytest.mark.slow
def test_a_folder_that_is_there_is_refused_by_all(root: pathlib.Path, whole: pathlib.Path):
    assert whole.is_dir()
    with training(*new(root, "whole")) as started:
        (status, _, error), (status_1, _, error_1) = several.ended(started)
    assert (status, status_1) == (2, 2), error + error_1
    assert f"kullback: {whole} exists and is not empty" in error
    assert "kullback: process 0 (" in error_1 and f"{whole} exists and is not empty" in error_1


PLAN = {"agent": "sft", "environment": TASK, "model": "tiny"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**PLAN}, "2 processes run one language model over a mesh of all their devices: add"),
        ({"agent": "dqn", "environment": "toy/chain"}, "what has no mesh runs in one process"),
        ({**PLAN, "mesh": "2x1", "num_seeds": 2}, "one seed, got num_seeds=2: give each seed a"),
        ({**PLAN, "agent": "warp", "mesh": "2x1"}, "warp ends with models that one process makes"),
    ],
)
def test_what_runs_in_one_process_is_said(
    fields: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    plan = plans.Plan(**fields)
    run_processes.check(plan)
    monkeypatch.setattr(processes, "count", lambda: 2)
    with pytest.raises(ValueError, match=message):
        run_processes.check(plan)


def test_the_number_of_processes_is_part_of_what_a_run_is(monkeypatch: pytest.MonkeyPatch):
    run = pathlib.Path("run")
    assert run_processes.of_now() == {} and run_processes.changes(run, {}) == []
    monkeypatch.setattr(processes, "count", lambda: 4)
    assert run_processes.of_now() == {"processes": 4}
    (line,) = run_processes.changes(run, {})
    assert line.startswith("run ran over 1 process, and there are 4: ")
    assert run_processes.changes(run, {"processes": 4}) == []
    assert run_processes.with_accepted({"processes": 2}) == {"processes": 4}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-processes", "2"], "--coordinator, --num-processes and --process-id go together"),
        (["--distributed", "--process-id", "0"], "leave the other flags of processes out"),
        (
            ["--coordinator", "x", "--num-processes", "2", "--process-id", "1"],
            "a coordinator is HOST:PORT",
        ),
    ],
)
def test_flags_that_do_not_fit_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["train", "sft", TASK, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
