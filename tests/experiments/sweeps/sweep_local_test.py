"""Tests of experiments/sweeps/sweep_local.py: how many runs at a time, and who has which device."""

from typing import Any

import pytest

from kullback.experiments.sweeps import sweep_local, sweep_worker
from kullback.experiments.sweeps.sweep_worker import Job


def job(threads: int = 1) -> Job:
    return Job(name="", folder="", log="", plan={}, threads=threads, done=0, home="")


def checked(
    platform: str, devices: int, mesh: str = "", runs_per_gpu: int | None = None
) -> dict[str, Any]:
    facts = {"platform": platform, "devices": devices, "runs_per_gpu": runs_per_gpu}
    return {**facts, "runs": [{"plan": {"mesh": mesh}}]}


def started(
    monkeypatch: pytest.MonkeyPatch, runs: dict[str, Any], count: int, jobs: int | None = None
) -> list[dict[str, str]]:
    """Starts the runs that may go side by side; returns the variables that each is given."""
    given: list[dict[str, str]] = []
    monkeypatch.setattr(sweep_worker, "start", lambda job, names: given.append(dict(names)))
    workers = sweep_local.workers(runs, jobs, cores=4)
    running: dict[Job, Any] = {}
    for _ in range(count):
        if workers.has_room(job(), running):
            new = job()
            running[new] = workers.start(new, running)
    return given


def test_cores_are_shared_by_threads():
    workers = sweep_local.workers(checked("cpu", 1), None, cores=4)
    for running, threads, fits in [
        ((), 8, True),  # Larger than the machine: alone.
        ((1, 1, 1), 1, True),
        ((1, 1, 1, 1), 1, False),
        ((2,), 2, True),
        ((2, 1), 2, False),
    ]:
        assert workers.has_room(job(threads), {job(n): None for n in running}) == fits
    two = sweep_local.workers(checked("cpu", 1), 2, cores=1)
    assert two.has_room(job(), {job(): None}) and not two.has_room(job(), {job(): 0, job(): 0})


def test_each_gpu_has_a_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert started(monkeypatch, checked("gpu", 3), 9) == [
        {"CUDA_VISIBLE_DEVICES": str(number)} for number in range(3)
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    names = [shown["CUDA_VISIBLE_DEVICES"] for shown in started(monkeypatch, checked("gpu", 2), 9)]
    assert names == ["5", "6"], "of those that we were given"


def test_more_runs_than_gpus_share_their_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given = started(monkeypatch, checked("gpu", 2), 9, jobs=3)
    assert [shown["CUDA_VISIBLE_DEVICES"] for shown in given] == ["0", "1", "0"]
    assert {shown["XLA_PYTHON_CLIENT_MEM_FRACTION"] for shown in given} == {"0.4500"}


def test_a_file_says_how_many_runs_share_a_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    given = started(monkeypatch, checked("gpu", 2, runs_per_gpu=4), 20)
    assert [shown["CUDA_VISIBLE_DEVICES"] for shown in given] == ["0", "1"] * 4
    # A run's part does not depend on how many others there are just then.
    assert {shown["XLA_PYTHON_CLIENT_MEM_FRACTION"] for shown in given} == {"0.2250"}
    fewer = started(monkeypatch, checked("gpu", 2, runs_per_gpu=4), 20, jobs=3)
    assert fewer == given[:3]
    assert started(monkeypatch, checked("gpu", 2, runs_per_gpu=4), 20, jobs=9) == given
    alone = started(monkeypatch, checked("gpu", 2, runs_per_gpu=1), 20)
    assert alone == [{"CUDA_VISIBLE_DEVICES": number} for number in ("0", "1")]


def test_elsewhere_than_on_cuda_runs_per_gpu_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    assert started(monkeypatch, checked("tpu", 4, runs_per_gpu=4), 9) == [{}]
    workers = sweep_local.workers(checked("cpu", 1, runs_per_gpu=4), None, cores=4)
    assert [workers.has_room(job(1), {job(1): None for _ in range(n)}) for n in (3, 4)] == [1, 0]


@pytest.mark.parametrize("runs", [checked("tpu", 4), checked("gpu", 4, mesh="4x1")])
def test_elsewhere_a_run_has_all_devices(runs: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    assert started(monkeypatch, runs, 9) == [{}]
