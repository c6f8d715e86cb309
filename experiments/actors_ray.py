"""Workers that act on the machines of a Ray cluster (https://docs.ray.io).

A worker is an actor of Ray's that has one of its CPUs. Parameters go into its object store once a
version, from where each machine takes them; what was acted comes back as arrays. An actor that is
lost is never begun anew by Ray, nor is a call of it: `posts` hires another, which begins anew. All
machines must have Kullback installed, and what the environment needs.
"""

import contextlib
import dataclasses
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from kullback.core import acting_elsewhere, posts
from kullback.experiments import ray_cluster

_END_SECONDS = 5.0  # For a worker to free what it made once it is told to.
# Without a head for so long a run ends. Ray itself ends the process after 60, and says nothing of
# the run.
HEAD_SECONDS = 30.0
_LOOK_SECONDS = 5.0  # Between two looks at it.


@dataclasses.dataclass(kw_only=True)
class Head:
    """The head of a cluster, which all workers of a run look at."""

    address: str  # HOST:PORT of its control store.
    looked: float = 0.0  # When somebody last did, by the monotonic clock.
    missed: float | None = None  # Since when it has not answered; None if it has.

    def check(self) -> None:
        """Looks whether it is there, now and then.

        Raises:
          posts.Lost: if it has not been for HEAD_SECONDS.
        """
        now = time.monotonic()
        if now - self.looked < _LOOK_SECONDS:
            return
        self.looked = now
        if self.answers():
            self.missed = None
        elif self.missed is None:
            self.missed = now
        elif now - self.missed > HEAD_SECONDS:
            self.looked = 0.0  # Whoever asks next is told, too.
            raise posts.Lost(f"the head of the cluster ({self.address}) is gone")

    def answers(self) -> bool:
        """Returns whether it is there now."""
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_LOOK_SECONDS).close()
        except OSError:
            return False
        return True


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

    def act(self, ask: Any, leaves: Sequence[np.ndarray]) -> acting_elsewhere.Said:
        """Acts what is asked for."""
        return self._host.act(ask, leaves)

    def close(self) -> None:
        """Frees what was made."""
        self._host.close()


class Remote:
    """A worker of the cluster, as the thread that speaks with it sees it."""

    def __init__(self, ray: Any, head: Head, number: int, given: Any):
        """Starts the worker, and waits until it is there.

        Args:
          ray: the module, of a process that is in the cluster.
          head: of the cluster.
          number: of the worker, for messages.
          given: see `Actor`, or a reference to it.

        Raises:
          ValueError: if the cluster has no room for it within START_SECONDS.
          posts.Lost: if it ends as it begins, or the cluster has no head.
        """
        head.check()
        self._ray, self._head, self.name = ray, head, f"worker {number}"
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
        except posts.Lost:
            self.close()
            raise
        self.name += f" ({place})"

    def act(self, ask: Any, version: Any) -> Any:
        """Returns the answer, see `posts.Worker`.

        Raises:
          ValueError: for an error of the environment or the agent.
        """
        self._head.check()
        try:
            said = self._got(self._actor.act.remote(ask, version), acting_elsewhere.SECONDS)
        except TimeoutError as error:
            raise posts.Lost(acting_elsewhere.late(self.name)) from error
        return acting_elsewhere.answered(said)

    def _got(self, reference: Any, seconds: float) -> Any:
        """Returns the result of a call.

        Raises:
          TimeoutError: if there is none in time.
          ValueError: for an error of our own code there.
          posts.Lost: for what Ray says else.
        """
        exceptions, end = self._ray.exceptions, time.monotonic() + seconds
        try:
            while (left := end - time.monotonic()) > 0:
                with contextlib.suppress(exceptions.GetTimeoutError):
                    return self._ray.get(reference, timeout=min(left, _LOOK_SECONDS))
                self._head.check()  # Without one, nobody says that a worker is gone.
            raise TimeoutError
        except exceptions.RayTaskError as error:
            raise ValueError(f"{self.name} failed: {error}") from error
        except exceptions.RayError as error:
            raise posts.Lost(f"{self.name} is gone: {ray_cluster.first_line(error)}") from error

    def close(self) -> None:
        """Ends the worker."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(self._actor.close.remote(), timeout=_END_SECONDS)
        if self._head.answers():  # Else it would be waited for; workers end with this process.
            self._ray.kill(self._actor)


def head_of(ray: Any) -> Head:
    """Returns the head of the cluster that this process is in."""
    return Head(address=ray.get_runtime_context().gcs_address)


def check_room(ray: Any, count: int) -> None:
    """Raises ValueError if the cluster has not a CPU for each worker."""
    room = ray.cluster_resources().get("CPU", 0)
    if room < count:
        raise ValueError(
            f"--workers {count} take a CPU each, and the cluster has {room:g}: take fewer, which "
            "changes no number of the run"
        )


def workers(ray: Any, count: int, recipe: acting_elsewhere.Recipe) -> posts.Workers:
    """Returns workers that are actors of a cluster.

    Args:
      ray: the module, of a process that is in the cluster.
      count: of the workers.
      recipe: of each.

    Raises:
      ValueError: if the recipe names a function that no other process can import.
    """
    # Once, however large and for however many: workers take it from the object store.
    given, head = ray.put(acting_elsewhere.pickled(recipe)), head_of(ray)
    return posts.Workers(
        count,
        lambda number: Remote(ray, head, number, given),
        lambda version, leaves: ray.put(acting_elsewhere.numbers(leaves)),
    )
