"""Tests of experiments/runs/writing.py: texts of a run that processes and machines write."""

import json
import os
import pathlib
import pickle
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import psutil
import pytest

from kullback import experiments
from kullback.core import posts
from kullback.experiments import interrupts
from kullback.experiments.runs import models, plans, resolved, writing
from kullback.lm import batches, forms
from tests import ray_here
from tests.experiments.runs import lag_test
from tests.records import as_killed, repeated

pytestmark = pytest.mark.usefixtures("few_sums")
start = lag_test.start
# Four shards of texts are written at a time.
SETTINGS = (*(x for x in lag_test.AHEAD if not x.startswith("lag=")), "lag=2")
REWARD = {"reward": "python:tests.experiments.runs.lag_test:any_number", "settings": SETTINGS}


def equal(one: pathlib.Path, other: pathlib.Path) -> None:
    """Compares two runs to the last bit."""
    assert repeated(one) == repeated(other) != []
    texts = [(run / "samples.jsonl").read_text() for run in (one, other)]
    assert texts[0] == texts[1] != ""
    a, b = (models.load(path).params for path in (one, other))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def workers() -> list[psutil.Process]:
    """Returns the workers that are processes of this machine."""
    children = psutil.Process().children(recursive=True)
    return [x for x in children if "kullback.core.actor_process" in " ".join(x.cmdline())]


def killing(here: Callable[[], list[psutil.Process]]) -> tuple[Callable[..., None], list[int]]:
    """Returns a callback that kills a worker at the first step, and whom it has killed."""
    killed: list[int] = []

    def callback(row: Mapping[str, float]) -> None:
        if not killed:
            first, _ = here()
            killed.append(first.pid)
            os.kill(killed[0], signal.SIGKILL)

    return callback, killed


def test_processes_write_what_threads_do_and_one_that_is_killed_changes_nothing(
    start: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
):
    threads = lag_test.train(tmp_path / "threads", "rlhf", start, **REWARD)
    callback, killed = killing(workers)
    elsewhere = tmp_path / "processes"
    lag_test.train(elsewhere, "rlhf", start, workers=2, callback=callback, **REWARD)
    equal(threads, elsewhere)
    said = capfd.readouterr().err
    assert re.search(rf"worker \d \(.*, pid {killed[0]}\) was ended by SIGKILL: what it was", said)
    assert not workers()


@pytest.mark.slow
def test_a_run_goes_on_the_same_with_other_workers(start: pathlib.Path, tmp_path: pathlib.Path):
    whole = lag_test.train(tmp_path / "whole", "rlhf", start, workers=1, **REWARD)
    for count in (0, 4):
        part = as_killed(whole, tmp_path / f"part{count}", 2)
        experiments.resume(part, quiet=True, trust_code=True, workers=count)
        equal(part, whole)


@pytest.mark.slow
def test_a_run_that_loses_too_many_workers_is_saved_and_goes_on(
    start: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(posts, "LOSSES", 1)
    callback, killed = killing(workers)
    path = tmp_path / "lost"
    with pytest.raises(interrupts.Failure) as failure:
        lag_test.train(path, "rlhf", start, workers=2, callback=callback, **REWARD)
    assert re.search(
        rf"lost within a minute, the last: worker \d \(.*, pid {killed[0]}\) was ended by SIGKILL; "
        r"saved at step [1-3]; go on with: kullback train --resume ",
        str(failure.value),
    )
    assert not workers()
    experiments.resume(path, quiet=True, trust_code=True)
    equal(path, lag_test.train(tmp_path / "threads", "rlhf", start, **REWARD))


ADAPTERS = (*SETTINGS, "lora.rank=2")
# What has other acting parameters: a critic, members that begin anew, a teacher, a frozen base.
KINDS = {
    **{name: (name, *lag_test.RUNS[name][:2]) for name in ("rlef", "warp", "gkd")},
    "adapters": ("rlhf", ADAPTERS, lag_test.REWARD),
    "few bits": ("rlhf", ADAPTERS, {**lag_test.REWARD, "frozen": "int8"}),
    "reward model": ("rlhf", SETTINGS, {"reward": "reward-model:JUDGE-0.01*length"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_processes_write_for_all_that_writes_ahead(
    kind: str, start: pathlib.Path, tmp_path: pathlib.Path
):
    algorithm, settings, fields = KINDS[kind]
    student = "tiny" if "teacher" in fields else start
    given = {name: str(start) if x == "START" else x for name, x in fields.items()}
    if "JUDGE" in str(given):
        given["reward"] = given["reward"].replace("JUDGE", str(trained_judge(tmp_path, start)))
    runs = [
        lag_test.train(
            tmp_path / f"run{count}",
            algorithm,
            student,
            settings=settings,
            workers=count,
            **given,
        )
        for count in (0, 2)
    ]
    equal(*runs)


def trained_judge(folder: pathlib.Path, start: pathlib.Path) -> pathlib.Path:
    """Trains a reward model for a moment."""
    pairs = ({"prompt": f"{n}+1=", "chosen": f"{n + 1}", "rejected": "9"} for n in range(8))
    lines = "\n".join(map(json.dumps, pairs))
    (folder / "pairs.jsonl").write_text(lines)
    return experiments.train(
        "reward-model",
        f"tokens/preferences:{folder / 'pairs.jsonl'}",
        out=folder / "judge",
        model=str(start),
        settings=("batch_size=4", *lag_test.SHORT[1:3]),
        steps=2,
        quiet=True,
    )


@pytest.fixture
def ray(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ray_here.Head]:
    """Starts a cluster of this machine."""
    module = pytest.importorskip("ray", reason="the extra kullback[ray] is not installed")
    for name, value in ray_here.variables(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with ray_here.head(tmp_path, 4) as head:
        yield head
        module.shutdown()


@pytest.mark.slow
def test_machines_of_a_cluster_write_what_threads_do(
    ray: ray_here.Head,
    start: pathlib.Path,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
):
    threads = lag_test.train(tmp_path / "threads", "rlhf", start, **REWARD)
    for count in (1, 2, 4):
        path = tmp_path / f"cluster{count}"
        lag_test.train(path, "rlhf", start, workers=count, ray=ray.address, **REWARD)
        equal(threads, path)
    callback, killed = killing(ray.actors)
    path, more = tmp_path / "killed", {"settings": ADAPTERS, "callback": callback}
    lag_test.train(path, "rlhf", start, workers=2, ray=ray.address, **(REWARD | more))
    equal(
        lag_test.train(tmp_path / "own", "rlhf", start, **(REWARD | {"settings": ADAPTERS})), path
    )
    said = capfd.readouterr().err
    assert re.search(rf"worker \d \(.*, pid {killed[0]}\) is gone: .*: what it was to", said)


def test_a_policy_that_sees_is_made_of_what_travels(sees: pathlib.Path):
    student = models.load(sees, modality=forms.IMAGES)
    policy = writing.Policy(
        algorithm="rlhf",
        config=resolved.resolve(
            plans.Plan(agent="rlhf", environment=lag_test.TASK, model="x", settings=SETTINGS)
        ).config,
        shapes=(student.shape(),),
    )
    sampler = pickle.loads(pickle.dumps(policy)).sampler()
    assert (sampler.horizon, sampler.samples_per_prompt) == (4, 2)
    assert sampler.stop_tokens == student.config.eos_ids
    assert student.images is not None
    side, width = student.images.config.num_soft, student.images.config.encoder.embed_dim
    ids = np.array([[student.tokenizer.bos_id, 5]], np.int32)
    prompts = batches.Prompts(ids, np.array([2], np.int32), np.zeros((1, 1, side, width)))
    acting = {"params": student.params}
    written = sampler.completions(acting, prompts, jax.random.key(0))
    assert written.tokens.shape == (2, 4)


@pytest.mark.parametrize(
    ("algorithm", "settings", "more", "message"),
    [
        ("rlhf", lag_test.SHORT, {}, "lag=0 leaves no time for that: set lag=1, and shards=2 for"),
        ("rlhf", SETTINGS, {"workers": 5}, r"workers=5 must lie in \[1, 4\], shards=2 of each of"),
        ("rlhf", SETTINGS, {"workers": 0, "ray": "auto"}, "acts by workers=N, which says how many"),
        ("sft", lag_test.SHORT[:3], {}, r"learns from later \(lag=1\), which sft has not"),
        (
            "bond",
            ("batch_size=9", *lag_test.SHORT[1:3]),
            {},
            r"learns from later \(lag=1\), which bond has not",
        ),
    ],
)
def test_refuses_workers_that_have_nothing_to_write(
    algorithm: str, settings: Any, more: dict[str, Any], message: str, tmp_path: pathlib.Path
):
    fields = {} if algorithm == "sft" else {"reward": "length"}
    with pytest.raises(ValueError, match=message):
        lag_test.train(
            tmp_path / "run",
            algorithm,
            "nowhere",  # It is not read before.
            settings=settings,
            **({"workers": 2} | fields | more),
        )
    assert not any(tmp_path.iterdir())
