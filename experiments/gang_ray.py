"""A language run whose processes a Ray cluster starts, all together, and begins anew if one ends.

Each process is a `kullback train` of its own on a machine of the cluster, as a user would start it
by hand (`core/processes.py`). All machines must have Kullback installed, and see the run's folder,
its model and its data under the same paths. Ray starts the processes and says which ended; it
carries nothing of the run.
"""

import contextlib
import dataclasses
import importlib
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kullback.experiments import interrupts, ray_cluster
from kullback.experiments.commands import child

RESTARTS = 3  # So often a gang begins anew, at most.
POLL_SECONDS = 0.5
START_SECONDS = 300.0  # For the cluster to have room for all.
GRACE_SECONDS = 60.0  # For the others to end by themselves once one has, and say why.
# Statuses of processes that were asked to end, and of commands that no second try would mend.
STOPPED, REFUSED = (128 + 1, 128 + 2, 128 + 15), 2


class Ended(NamedTuple):
    """How a process of the gang ended."""

    name: str  # Its number, machine and process id.
    status: int  # Negative: its signal.
    error: str  # Its message, or "".


class Member:
    """A process of the run, on the machine of the cluster where this object is."""

    def __init__(self) -> None:
        """Starts nothing yet."""
        self._process: subprocess.Popen[bytes] | None = None
        self._log = pathlib.Path()

    def address(self) -> str:
        """Returns HOST:PORT at which a process on this machine can listen."""
        ray: Any = importlib.import_module("ray")
        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"{host}:{probe.getsockname()[1]}"

    def start(self, command: Sequence[str], log: str, home: str, gpus: bool) -> str:
        """Starts the process; returns its machine and process id."""
        self._log = pathlib.Path(log)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        # Ray hides GPUs from what asks for none.
        variables = {} if gpus else {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu")}
        with self._log.open("ab") as file:
            self._process = child.start(command, variables, output=file, home=home)
        return f"{socket.gethostname()}, pid {self._process.pid}"

    def poll(self) -> tuple[int, str] | None:
        """Returns status and message of the process once it has ended, else None."""
        assert self._process is not None, "poll comes after start"
        status = self._process.poll()
        if status is None:
            return None
        return status, child.error_in(self._log, status) if status else ""

    def stop(self) -> None:
        """Asks the process to save and end."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Ends the process at once."""
        if self._process is not None:
            self._process.kill()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gang:
    """Processes of one run on a cluster."""

    ray: Any  # The module, of a process that is in the cluster.
    count: int
    command: Sequence[str]  # `train ...`, with --out=DIR or --resume DIR, without the processes.
    path: pathlib.Path  # The run's folder.
    again: str  # The command that goes on with the run, for messages.

    def run(self) -> None:
        """Runs all processes until each has ended well.

        Raises:
          interrupts.Interrupted: after Ctrl-C or a signal, once all have saved and ended.
          interrupts.Failure: if processes ended too often, or one was asked to end.
          ValueError: if the run is refused, or the cluster has no room.
        """
        for attempt in range(RESTARTS + 1):
            command = child.command_of(
                self.command
            )  # Goes on, if there is something to go on with.
            with self._members() as members:
                ended = self._attempt(members, command)
            if ended is None:
                return
            what = f"{ended.name} {_described(ended)}"
            if ended.status == REFUSED:
                raise ValueError(ended.error)
            if ended.status in STOPPED:
                raise interrupts.Failure(f"{what}; go on with: {self.again}")
            if attempt == RESTARTS:
                raise interrupts.Failure(
                    f"{what}, after {RESTARTS} new beginnings; what was saved stays: mend that, "
                    f"and go on with: {self.again}"
                )
            print(
                f"{what}: all {self.count} processes begin anew from the last checkpoint "
                f"({attempt + 1} of {RESTARTS} times)",
                file=sys.stderr,
                flush=True,
            )

    @contextlib.contextmanager
    def _members(self) -> Any:
        """Makes the members on machines of the cluster, and lets these go at the end."""
        ray, util = self.ray, self.ray.util
        placing: Any = importlib.import_module("ray.util.scheduling_strategies")
        has_gpus = ray.cluster_resources().get("GPU", 0) >= self.count
        bundle = {"CPU": 1, "GPU": 1} if has_gpus else {"CPU": 1}
        group = util.placement_group([bundle] * self.count, strategy="PACK")
        members: list[Any] = []
        try:
            if not group.wait(START_SECONDS):
                room = ray.cluster_resources()
                raise ValueError(
                    f"the cluster has no room for {self.count} processes of {bundle} within "
                    f"{START_SECONDS:.0f} seconds; all of it is CPU {room.get('CPU', 0):g}, "
                    f"GPU {room.get('GPU', 0):g}"
                )
            make = ray.remote(max_restarts=0, max_task_retries=0)(Member)
            for index in range(self.count):
                placed = placing.PlacementGroupSchedulingStrategy(
                    placement_group=group, placement_group_bundle_index=index
                )
                options = {
                    "num_cpus": 1,
                    "num_gpus": 1 if has_gpus else 0,
                    "scheduling_strategy": placed,
                    # A run saves before it ends, when its worker is gone.
                    "runtime_env": {"env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"}},
                }
                members.append(make.options(**options).remote())
            yield members
        finally:
            for member in members:
                ray.kill(member)
            util.remove_placement_group(group)

    def _attempt(self, members: Sequence[Any], command: Sequence[str]) -> Ended | None:
        """Runs the processes once; returns how the first to fail ended, None if none failed."""
        ray = self.ray
        address = ray.get(members[0].address.remote(), timeout=START_SECONDS)
        logs = self.path.with_name(f"{self.path.name}.logs")
        gpus = ray.cluster_resources().get("GPU", 0) >= self.count
        where = ray.get(
            [
                member.start.remote(
                    [*_spelled(command), *_joining(address, self.count, index)],
                    str((logs / f"process-{index}.log").absolute()),
                    str(pathlib.Path.cwd()),
                    gpus,
                )
                for index, member in enumerate(members)
            ],
            timeout=START_SECONDS,
        )
        names = [f"process {index} ({place})" for index, place in enumerate(where)]
        for index, name in enumerate(names):
            print(f"{name} writes to {logs / f'process-{index}.log'}", flush=True)
        try:
            return self._watched(members, names)
        except KeyboardInterrupt as error:
            with interrupts.Interrupts():  # A second one does not leave them behind.
                for member in members:
                    member.stop.remote()
                self._wait(members)
            raise interrupts.as_interrupted(error, f"go on with: {self.again}") from error

    def _watched(self, members: Sequence[Any], names: Sequence[str]) -> Ended | None:
        """Waits until all have ended well, or one has not, whose end it returns."""
        left = dict(enumerate(members))
        while left:
            for index, member in [*left.items()]:
                try:
                    said = self.ray.get(member.poll.remote())
                except self.ray.exceptions.RayError as error:
                    cause = ray_cluster.first_line(error)
                    said = (1, f"its machine or Ray's worker is gone: {cause}")
                if said is None:
                    continue
                del left[index]
                if said[0]:
                    first = self._first(index, said, left, names)
                    self._wait([*left.values()])
                    return first
            time.sleep(POLL_SECONDS)
        return None

    def _first(
        self, index: int, said: tuple[int, str], left: Mapping[int, Any], names: Sequence[str]
    ) -> Ended:
        """Returns which process ended first: one that a signal ended, before those that saw it."""
        ends = [Ended(names[index], *said)]
        for other, member in left.items():
            with contextlib.suppress(self.ray.exceptions.RayError):
                if (end := self.ray.get(member.poll.remote())) is not None and end[0]:
                    ends.append(Ended(names[other], *end))
        return min(ends, key=lambda end: (end.status >= 0, end.status != REFUSED, end.status))

    def _wait(self, members: Sequence[Any]) -> None:
        """Waits for processes to end by themselves, and ends those that do not."""
        deadline = time.monotonic() + GRACE_SECONDS
        for member in members:
            with contextlib.suppress(self.ray.exceptions.RayError):
                while self.ray.get(member.poll.remote()) is None:
                    if time.monotonic() > deadline:
                        self.ray.get(member.kill.remote())
                    time.sleep(POLL_SECONDS)


def run(address: str, count: int, command: Sequence[str], path: pathlib.Path, again: str) -> None:
    """Runs the processes of a language run on a cluster; for errors see `Gang.run`.

    Args:
      address: of the cluster, as `ray.init` takes it; "local" starts one on this machine.
      count: processes of the run, one a GPU where the cluster has so many, else one a CPU.
      command: `train ...`, with --out=DIR or --resume DIR.
      path: of the run.
      again: the command that goes on with it, for messages.
    """
    ray = ray_cluster.connected(address)
    Gang(ray=ray, count=count, command=command, path=path, again=again).run()


def _joining(address: str, count: int, index: int) -> list[str]:
    """Returns the flags by which a process joins the others."""
    return [f"--coordinator={address}", f"--num-processes={count}", f"--process-id={index}"]


def _spelled(command: Sequence[str]) -> list[str]:
    """Returns a command whose folder is for all of its processes, which leave it as it is.

    `commands/child.py` takes --out=DIR for that of a process which alone may make it anew.
    """
    pieces = [word.partition("=") if word.startswith("--out=") else (word,) for word in command]
    return [part for piece in pieces for part in piece if part != "="]


def _described(ended: Ended) -> str:
    """Returns what became of a process."""
    if ended.status < 0:  # What it printed last has nothing to do with that.
        return ended.error.removeprefix("it ").partition("; its last line")[0]
    return f"ended with status {ended.status}: {ended.error}"
