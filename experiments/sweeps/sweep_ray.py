"""Runs of a sweep on the machines of a Ray cluster (https://docs.ray.io), one task a run.

A task is `sweep_worker.work`, so a run is the same process with the same log as on one machine. All
machines must have Kullback installed and see the sweep's folder under the same path.
"""

from collections.abc import Mapping
from typing import Any

from kullback.experiments import ray_cluster
from kullback.experiments.sweeps import sweep_worker
from kullback.experiments.sweeps.sweep_worker import Job, Outcome, Workers


def workers(checked: Mapping[str, Any], jobs: int | None, address: str) -> Workers:
    """Returns workers that are tasks of a cluster.

    Each thread of a run takes one of Ray's CPUs; on CUDA each run takes a GPU, or its part of one
    if the file says `runs_per_gpu`.

    Args:
      checked: as `sweep_runs.runs` returns it.
      jobs: runs at a time; None: as many as the cluster has room for.
      address: of the cluster, as `ray.init` takes it; "local" starts one on this machine. A
        process that is in a cluster already uses that one.

    Raises:
      ValueError: if Ray is not installed, the cluster is not found, or no machine of it is large
        enough.
    """
    ray = ray_cluster.connected(address)
    threads = max(run["threads"] for run in checked["runs"])
    num_gpus, variables = 0.0, dict[str, str]()
    if checked["platform"] == "gpu":  # Ray counts GPUs in steps of 1/10,000.
        sharing = checked["runs_per_gpu"] or 1
        num_gpus, variables = int(10_000 / sharing) / 10_000, sweep_worker.gpu_memory(sharing)
    sizes = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    if max(sizes, default=0) < threads:
        raise ValueError(
            f"a run needs {threads} CPUs, and the largest machine of the cluster has "
            f"{max(sizes, default=0):g}; set threads in the file"
        )
    # If a machine is lost, the task starts again on another, and its run goes on.
    # A worker whose sweep has ended must not kill its run, which saves before it ends itself.
    runtime_env = {"env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"}}
    task = ray.remote(num_gpus=num_gpus, max_retries=3, runtime_env=runtime_env)(sweep_worker.work)

    def start(job: Job, running: Mapping[Job, Any]) -> Any:
        return task.options(num_cpus=job.threads, name=job.name).remote(job, variables)

    def poll(job: Job, handle: Any) -> Outcome | None:
        if not ray.wait([handle], timeout=0)[0]:
            return None
        try:
            return ray.get(handle)
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return Outcome(1, f"Ray: {lines[-1]}")

    return Workers(
        lambda job, running: jobs is None or len(running) < jobs,
        start,
        poll,
        lambda handle: ray.cancel(handle, force=False),
    )
