"""Who acts for a run: this process, others of this machine, or Ray's machines.

Of games on the host they step emulators, of language models they write the texts that are learnt
from later. They are no part of a plan: a run is the same whoever acts.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil

from kullback import environments
from kullback.core import (
    acting,
    acting_elsewhere,
    actor_process,
    checked_lines,
    chunks,
    crews,
    files,
    platform,
    posts,
    sampling_ahead,
    types,
)
from kullback.experiments import actors_ray, ray_cluster
from kullback.experiments.runs import resolved, writing
from kullback.experiments.runs.work import MakeAgent, MakeEnvironment

RESTARTS = "restarts.jsonl"  # Where emulators began anew, as their worker was lost.


class Staff(NamedTuple):
    """Who acts, by the words of a user."""

    workers: int = 0  # Processes; 0: threads of this one.
    ray: str = ""  # Address of the Ray cluster that has them; "": this machine has.

    def check(self, plan: chunks.Schedule | None) -> None:
        """Raises ValueError if it is named for a run of games that it cannot act."""
        self._check_count()
        if self.workers and plan is None:
            raise ValueError(
                f"workers={self.workers} act in environments on the host (atari/..., gym/...), for "
                "an agent with a replay; this run acts in the program that learns"
            )
        if self.workers and plan is not None:
            crews.check(self.workers, plan)

    def check_texts(self, algorithm: str, ahead: sampling_ahead.Ahead | None) -> None:
        """Raises ValueError if it is named for a run of a language model that it cannot act.

        Args:
          algorithm: of the run.
          ahead: how far ahead of learning texts are written; None if the algorithm cannot have it.
        """
        self._check_count()
        if not self.workers:
            return
        if ahead is None:
            raise ValueError(
                f"workers={self.workers} write the texts that a run learns from later (lag=1), "
                f"which {algorithm} has not"
            )
        if ahead.lag < 1:
            raise ValueError(
                f"workers={self.workers} write texts while a run learns from earlier ones, and "
                f"lag={ahead.lag} leaves no time for that: set lag=1, and shards={self.workers} "
                "for as many at once; or leave workers out"
            )
        sampling_ahead.check(self.workers, ahead)

    def _check_count(self) -> None:
        if self.ray and not self.workers:
            raise ValueError(f"a cluster (ray={self.ray!r}) acts by workers=N, which says how many")

    def joined(self) -> Any:
        """Returns the module of Ray, of a process that is in the cluster; None without one.

        Raises:
          ValueError: if the cluster is not found, or too small.
        """
        if not self.ray:
            return None
        ray = ray_cluster.connected(self.ray)
        actors_ray.check_room(ray, self.workers)
        return ray


NOBODY = Staff()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a worker in another process makes what it acts with; it is pickled."""

    named: resolved.Resolved
    make_agent: MakeAgent | None
    make_environment: MakeEnvironment | None
    spec: types.Spec
    rows: int  # Of a shard, b.

    def __call__(self) -> acting.Local:
        """Makes the agent; its environments are made by the first chunk of each shard."""
        platform.keep_freed_memory()
        agent = (self.make_agent or self.named.make_agent)(self.spec)
        return acting.Local(program=acting.program(agent), spec=self.spec, make=self.make)

    @functools.cached_property
    def make(self) -> Callable[[], types.HostEnvironment]:
        """Makes the environment of a shard."""
        given = self.make_environment
        make: Any = self.named.make_environment if given is None else environments.checked(given)
        return functools.partial(make, self.rows)


@dataclasses.dataclass(kw_only=True)
class Restarts:
    """The file that says where emulators began anew within a run, as their worker was lost.

    A run is a function of its seed, of this file, and of where it was resumed.
    """

    path: pathlib.Path | None = None  # None before the run has a folder.

    def begin(self, env_steps: int) -> None:
        """Drops what a run that goes on from a checkpoint will do again, or not at all."""
        if self.path is None or not self.path.exists():
            return
        kept = [
            line
            for line, record in zip(
                self.path.read_bytes().splitlines(keepends=True),
                checked_lines.begin(self.path),
                strict=False,  # The last line may have been cut.
            )
            if record.get("steps", int) < env_steps
        ]
        files.atomic_write_bytes(self.path, b"".join(kept))

    def write(self, restart: crews.Restart) -> None:
        """Writes a line, and says so."""
        if self.path is not None:
            checked_lines.append(self.path, [restart._asdict()])
        print(
            f"{restart.cause}: shard {restart.shard} began anew at step {restart.steps:,}",
            file=sys.stderr,
        )


def crew(
    staff: Staff, plan: chunks.Schedule | None, recipe: Recipe, restarts: Restarts
) -> dict[str, Any]:
    """Returns arguments of `host.make` that say who acts; none for the thread that learns.

    Raises:
      ValueError: if somebody is named for a run that nobody else can act, or the cluster is not
        found or too small.
    """
    staff.check(plan)
    if plan is None or (plan.is_plain and not staff.workers):
        return {}
    ray = staff.joined()

    def workers(program: acting.Program) -> posts.Workers:
        if staff.workers:
            return _elsewhere(ray, staff.workers, recipe)
        count = min(plan.shards, psutil.cpu_count() or 1)
        return crews.threads(count, program, recipe.spec, recipe.make)

    return {
        "workers": workers,
        "on_begin": restarts.begin,
        "on_restart": restarts.write,
        "on_late": tell,
    }


def writers(
    staff: Staff, ray: Any, policy: writing.Policy
) -> Callable[[types.Constants], posts.Workers] | None:
    """Returns (frozen parameters) -> who writes for a run of a language model; None: its threads.

    Args:
      staff: who acts.
      ray: as `Staff.joined` returns it.
      policy: of the run.
    """
    if not staff.workers:
        return None

    def of_parts(parted: acting_elsewhere.Parted) -> posts.Workers:
        return _elsewhere(ray, staff.workers, writing.Recipe(policy=policy, parted=parted))

    return lambda constants: acting_elsewhere.sharing(staff.workers, constants, of_parts)


def tell(line: str) -> None:
    """Says who was lost, or is late."""
    print(line, file=sys.stderr)


def _elsewhere(ray: Any, count: int, recipe: acting_elsewhere.Recipe) -> posts.Workers:
    """Returns workers that are processes of a cluster, or of this machine without one."""
    if ray is not None:
        return actors_ray.workers(ray, count, recipe)
    return actor_process.workers(count, recipe)
