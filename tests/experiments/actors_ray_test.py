"""Tests of experiments/actors_ray.py: emulators that the machines of a Ray cluster step."""

import functools
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kullback.core import acting, acting_elsewhere, posts
from kullback.experiments import actors_ray, ray_cluster
from tests import crewed, on_host, ray_here


def test_a_cluster_without_a_cpu_for_each_worker_is_refused():
    class Ray:
        @staticmethod
        def cluster_resources() -> dict[str, float]:
            return {"CPU": 3.0}

    actors_ray.check_room(Ray(), 3)
    with pytest.raises(ValueError, match="--workers 4 take a CPU each, and the cluster has 3: "):
        actors_ray.check_room(Ray(), 4)


def test_a_head_that_is_gone_for_long_is_said_to_all(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = actors_ray.Head(address=f"127.0.0.1:{server.getsockname()[1]}")
        head.check()
        assert head.answers()
    assert not head.answers()
    head.looked = 0.0
    head.check()  # It may come back.
    head.looked = 0.0
    monkeypatch.setattr(actors_ray, "HEAD_SECONDS", 0.0)
    for _ in range(2):
        with pytest.raises(
            posts.Lost, match=r"the head of the cluster \(127\.0\.0\.1:\d+\) is gone"
        ):
            head.check()


@pytest.mark.slow
def test_an_address_where_nobody_listens_is_refused():  # Before there is a cluster here.
    pytest.importorskip("ray", reason="the extra kullback[ray] is not installed")
    with pytest.raises(ValueError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        ray_cluster.connected("127.0.0.1:1")


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Joins a cluster of this machine."""
    ray: Any = pytest.importorskip("ray", reason="the extra kullback[ray] is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_here.variables(tmp_path_factory.mktemp("home")).items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


def killed(worker: Any) -> None:
    (pid,) = re.findall(r"pid (\d+)", worker.name)
    os.kill(int(pid), signal.SIGKILL)


@pytest.mark.slow
def test_machines_of_a_cluster_give_the_bits_of_threads(ray: Any):
    def cluster(count: int, **more: Any) -> Any:
        recipe = functools.partial(on_host.recipe, 1, **more)
        return lambda program: actors_ray.workers(ray, count, recipe)

    def digest(**more: Any) -> str:
        return crewed.digest(crewed.done(**crewed.SHARDED, **more))

    whole = digest(workers=crewed.threads(4, 1))
    for count in (1, 2, 4):
        assert digest(workers=cluster(count)) == whole, count
    restarts: list[Any] = []
    lost = [(1, 40)]  # Shards 1 and 3 are those of one worker.
    cut = digest(workers=crewed.losing(cluster(2), lost, killed), on_restart=restarts.append)
    assert cut == digest(workers=crewed.losing(crewed.threads(2, 1), lost, crewed.gone)) != whole
    assert [(restart.shard, restart.steps) for restart in restarts] == [(1, 40), (3, 40)]
    for restart in restarts:
        assert re.match(r"worker 1 \(.*, pid \d+\) is gone: .*died", restart.cause), restart
    with pytest.raises(ValueError, match="the environment broke at tick 5"):
        crewed.done(**crewed.SHARDED, workers=cluster(1, breaks_at=5))


@pytest.mark.slow
def test_a_worker_that_hangs_or_finds_no_room_is_said(ray: Any, monkeypatch: pytest.MonkeyPatch):
    given = acting_elsewhere.pickled(functools.partial(on_host.recipe, 1))
    worker = actors_ray.Remote(ray, actors_ray.head_of(ray), 0, given)
    (pid,) = re.findall(r"pid (\d+)", worker.name)
    monkeypatch.setattr(acting_elsewhere, "SECONDS", 1.0)
    monkeypatch.setattr(actors_ray, "_END_SECONDS", 0.1)
    os.kill(int(pid), signal.SIGSTOP)
    ask = acting.Ask(0, 1, 0, 1, np.zeros(2, np.uint32), seed=1)
    with pytest.raises(posts.Lost, match="gave no chunk for 1 seconds"):
        worker.act(ask, ray.put([]))
    worker.close()
    monkeypatch.setattr(acting_elsewhere, "START_SECONDS", 2.0)
    busy = ray.remote(num_cpus=4)(lambda: time.sleep(600)).remote()
    with pytest.raises(ValueError, match="has no room for worker 1 within 2 seconds, of one CPU"):
        actors_ray.Remote(ray, actors_ray.head_of(ray), 1, given)
    ray.cancel(busy, force=True)
