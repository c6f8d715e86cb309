"""Runs of a sweep on this machine, spread over its cores or its accelerators."""

import os
import subprocess
from collections.abc import Mapping
from typing import Any, NamedTuple

from kullback.experiments.sweeps import sweep_worker
from kullback.experiments.sweeps.sweep_worker import Job, Workers


class _Handle(NamedTuple):
    process: subprocess.Popen[bytes]
    device: int | None  # The only GPU that it sees; None: all that this process sees.


def workers(checked: Mapping[str, Any], jobs: int | None, cores: int) -> Workers:
    """Returns workers that are processes of this machine.

    Args:
      checked: as `sweep_runs.runs` returns it.
      jobs: runs at a time; None: on CPUs as many as have a core for each of their threads, on
        CUDA one a device or the file's `runs_per_gpu`, on other accelerators one. With
        `runs_per_gpu` there are never more than it has room for.
      cores: of this machine.
    """
    platform, devices = checked["platform"], checked["devices"]
    # A run over a mesh needs all devices. CUDA alone lets us choose the device of a process.
    is_pinned = platform == "gpu" and not any(run["plan"]["mesh"] for run in checked["runs"])
    per_gpu = checked["runs_per_gpu"] if is_pinned else None
    if jobs is None and platform != "cpu":
        jobs = devices * (per_gpu or 1) if is_pinned else 1
    elif jobs is not None and per_gpu is not None:
        jobs = min(jobs, devices * per_gpu)

    def has_room(job: Job, running: Mapping[Job, _Handle]) -> bool:
        if jobs is not None:
            return len(running) < jobs
        return not running or sum(other.threads for other in running) + job.threads <= cores

    def start(job: Job, running: Mapping[Job, _Handle]) -> _Handle:
        if not is_pinned or jobs is None:
            return _Handle(sweep_worker.start(job, {}), None)
        taken = [handle.device for handle in running.values()]
        device = min(range(devices), key=taken.count)
        variables = _device_variables(device, sharing=per_gpu or -(-jobs // devices))
        return _Handle(sweep_worker.start(job, variables), device)

    return Workers(
        has_room,
        start,
        lambda job, handle: sweep_worker.poll(job, handle.process),
        lambda handle: sweep_worker.stop(handle.process),
    )


def _device_variables(number: int, *, sharing: int) -> dict[str, str]:
    """Returns variables of the environment by which a process sees one GPU, shared by `sharing`."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    device = visible.split(",")[number] if visible else str(number)
    return {"CUDA_VISIBLE_DEVICES": device, **sweep_worker.gpu_memory(sharing)}
