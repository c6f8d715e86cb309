"""Workers that act shards on the machines of a Ray cluster (https://docs.ray.io).

A worker is an actor of Ray's that has one of its CPUs. Parameters go into its object store once a
version, from where each machine takes them; a chunk comes back as arrays. An actor that is lost is
never begun anew by Ray, nor is a call of it: `crews` hires another, whose emulators begin anew.
All machines must have Kullback installed, and what the environment needs.
"""

import contextlib
import os
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np

from kullback.core import acting, acting_elsewhere, crews

_END_SECONDS = 5.0  # For a worker to close its environments once it is told to.


class Actor:
    """A worker, on the machine of the cluster where this object is."""

    def __init__(self, given: bytes):
        """Makes nothing yet.

        Args:
          given: as `acting_elsewhere.pickled` returns it.
        """
        self._host = acting_elsewhere.Host(given=given)

    def place(self) -> str:
        """Returns machine and process id."""
        return f"{socket.gethostname()}, pid {os.getpid()}"

    def act(self, ask: acting.Ask, leaves: Sequence[np.ndarray]) -> acting_elsewhere.Said:
        """Acts a chunk."""
        return self._host.act(ask, leaves)

    def close(self) -> None:
        """Closes the environments."""
        self._host.close()


class Remote:
    """A worker of the cluster, as the thread that speaks with it sees it."""

    def __init__(self, ray: Any, number: int, given: bytes):
        """Starts the worker, and waits until it is there.

        Raises:
          ValueError: if the cluster has no room for it within START_SECONDS.
          crews.Lost: if it ends as it begins.
        """
        self._ray, self.name = ray, f"worker {number}"
        make = ray.remote(max_restarts=0, max_task_retries=0)(Actor)
        self._actor = make.options(
            num_cpus=1,
            num_gpus=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"JAX_PLATFORMS": "cpu"}},
        ).remote(given)
        try:
            place = self._got(self._actor.place.remote(), acting_elsewhere.START_SECONDS)
        except TimeoutError as error:
            self.close()
            raise ValueError(
                f"the cluster has no room for {self.name} within "
                f"{acting_elsewhere.START_SECONDS:.0f} seconds, of one CPU; go on with fewer "
                "--workers, or add a machine"
            ) from error
        except crews.Lost:
            self.close()
            raise
        self.name += f" ({place})"

    def act(self, ask: acting.Ask, version: Any) -> list[acting.Tick]:
        """Acts a chunk, see `crews.Worker`.

        Raises:
          ValueError: for an error of the environment or the agent.
        """
        try:
            said = self._got(self._actor.act.remote(ask, version), acting_elsewhere.SECONDS)
        except TimeoutError as error:
            raise crews.Lost(acting_elsewhere.late(self.name)) from error
        return acting_elsewhere.ticks(said)

    def _got(self, reference: Any, seconds: float) -> Any:
        """Returns the result of a call.

        Raises:
          TimeoutError: if there is none in time.
          ValueError: for an error of our own code there.
          crews.Lost: for what Ray says else.
        """
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference, timeout=seconds)
        except exceptions.GetTimeoutError as error:
            raise TimeoutError from error
        except exceptions.RayTaskError as error:
            raise ValueError(f"{self.name} failed: {error}") from error
        except exceptions.RayError as error:
            raise crews.Lost(f"{self.name} is gone: {_described(error)}") from error

    def close(self) -> None:
        """Ends the worker."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(self._actor.close.remote(), timeout=_END_SECONDS)
        self._ray.kill(self._actor)


def _described(error: Exception) -> str:
    """Returns what Ray says of a loss, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def check_room(ray: Any, count: int) -> None:
    """Raises ValueError if the cluster has not a CPU for each worker."""
    room = ray.cluster_resources().get("CPU", 0)
    if room < count:
        raise ValueError(
            f"--workers {count} take a CPU each, and the cluster has {room:g}: take fewer, which "
            "changes no number of the run"
        )


def workers(ray: Any, count: int, recipe: acting_elsewhere.Recipe) -> crews.Workers:
    """Returns workers that are actors of a cluster.

    Args:
      ray: the module, of a process that is in the cluster.
      count: of the workers.
      recipe: of each.

    Raises:
      ValueError: if the recipe names a function that no other process can import.
    """
    given = acting_elsewhere.pickled(recipe)
    return crews.Workers(
        count,
        lambda number: Remote(ray, number, given),
        lambda version, leaves: ray.put(acting_elsewhere.numbers(leaves)),
    )
