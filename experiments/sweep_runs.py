"""The runs of a sweep: its configurations, set against what its folder holds already.

A program of its own: `sweeps.sweep` starts it, hands it the sweep as JSON on stdin and reads the
runs from stdout. So the process that waits for the runs never imports JAX, and holds no memory of
an accelerator that they need.
"""

import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from kullback.core import checkpoints
from kullback.experiments import opened, run_folder, sweep_plan
from kullback.experiments import plan as plans

# Cores that a run of an environment on the host is given: emulators, and the learner beside them.
HOST_THREADS = 2


def runs(
    sweep: Mapping[str, Any],
    out: pathlib.Path,
    begun: Mapping[str, int],
    cores: int,
    file: str = "",
    *,
    trust_code: bool = True,
    dry_run: bool = False,
) -> dict[str, Any]:
    """All runs that a sweep consists of, and how far each is.

    A configuration that the folder has is recognised by its plan, whatever its folder is called:
    an axis may get more values, seeds may be added and `steps` may grow. Consecutive seeds that
    are not there yet become one run if they are compiled, else a run each.

    Args:
      sweep: as `sweep_plan.configurations` takes it.
      out: folder of the sweep, which need not exist.
      begun: threads of XLA that a run was begun with, by its name.
      cores: of this machine.
      file: that the sweep was read from, for messages.
      trust_code: whether modules that it names may run.
      dry_run: nothing is to be run: what would need such a module is not built.

    Returns:
      {"runs": [{"name", "plan", "threads", "done"}], "others": names of runs in the folder that
      are not of the sweep, "untrusted": what names modules that may not run, "platform",
      "devices"}; `done` counts agent steps of a seed.

    Raises:
      ValueError: for what cannot be run or is not trusted, and for what has changed since it was
        begun.
    """
    if (out / "config.json").exists():
        raise ValueError(f"{out} is a run; a sweep is a folder of runs: choose another --out")
    existing = _existing(out)
    found: list[dict[str, Any]] = []
    untrusted: dict[str, None] = {}
    configurations = sweep_plan.configurations(sweep)
    plans_ = [
        dataclasses.replace(c.plan(c.seeds[:1]), trust_code=trust_code) for c in configurations
    ]
    for plan in plans_:  # All of them before any module of one is imported.
        if plan.code and not trust_code:
            untrusted[plan.code] = None
        if not dry_run:
            plan.require_trust(file)
    for configuration, plan in zip(configurations, plans_, strict=True):
        is_compiled = not (dry_run and plan.code) and sweep_plan.check(configuration)
        for name, plan in _of(configuration, is_compiled, existing):
            threads = _threads(sweep, plan, is_compiled, cores)
            if name in existing:
                recorded = begun.get(name, threads)
                if recorded != threads and "threads" in sweep:
                    raise ValueError(
                        f"{name} was begun with {recorded} threads, the file says {threads}; the "
                        "last digits depend on it: choose another --out"
                    )
                threads = recorded
            done = _steps(out / name, plan)
            run = {"name": name, "plan": plan.to_json(), "threads": threads, "done": done}
            found.append(run)
    named = {run["name"] for run in found}
    return {
        "runs": found,
        "others": sorted(set(existing) - named),
        "untrusted": list(untrusted),
        "platform": jax.default_backend(),
        "devices": jax.local_device_count(),
    }


def _existing(out: pathlib.Path) -> dict[str, plans.Plan]:
    """Plans of the runs that the folder has, by name."""
    found = {}
    for file in sorted(out.glob("*/config.json")):
        found[file.parent.name] = opened.open(file.parent).plan
    return found


def _of(
    configuration: sweep_plan.Configuration,
    is_compiled: bool,
    existing: Mapping[str, plans.Plan],
) -> list[tuple[str, plans.Plan]]:
    """Name and plan of each run of a configuration: those that are there, then the new ones."""
    wanted = set(configuration.seeds)
    found = []
    for name, there in existing.items():
        plan = configuration.plan(there.seeds)
        seeds = set(there.seeds)
        if _essence(plan) != _essence(there) or not seeds & wanted:
            continue
        if not seeds <= wanted:
            raise ValueError(
                f"{name} has seeds {_listed(seeds)}, the file asks for "
                f"{_listed(configuration.seeds)}; choose another --out, or move it away"
            )
        if plan.steps < there.steps:
            raise ValueError(
                f"{name} has steps={there.steps}, the file asks for {plan.steps}; they can only "
                "grow: choose another --out"
            )
        wanted -= seeds
        found.append((name, plan))
    for seeds in _consecutive(sorted(wanted), is_compiled):
        name = f"{configuration.name},{_seeds(seeds)}"
        plan = configuration.plan(seeds)
        if name in existing:
            raise ValueError(f"{name} has changed: {_difference(existing[name], plan)}")
        found.append((name, plan))
    return found


def _essence(plan: plans.Plan) -> dict[str, Any]:
    """What two runs must share to be one configuration."""
    essence = {k: v for k, v in plan.to_json().items() if k not in ("seed", "num_seeds", "steps")}
    for section in sweep_plan.SECTIONS[1:]:
        essence[section] = sorted(essence[section])
    return essence


def _difference(there: plans.Plan, asked: plans.Plan) -> str:
    old, new = _essence(there), _essence(asked)
    for key in sweep_plan.SECTIONS[1:]:
        both = set(old[key]) & set(new[key])
        old[key], new[key] = (
            " ".join(x for x in of[key] if x not in both) or "none" for of in (old, new)
        )
    key = next(key for key in old if old[key] != new[key])
    return (
        f"it was begun with {key} {old[key]}, and the file says {new[key]}; choose another "
        "--out, or move it away"
    )


def _consecutive(seeds: Sequence[int], is_compiled: bool) -> list[list[int]]:
    groups: list[list[int]] = []
    for seed in seeds:
        if is_compiled and groups and seed == groups[-1][-1] + 1:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def _seeds(seeds: Sequence[int]) -> str:
    """As part of a name: "seed=3", "seeds=0-4"."""
    return f"seed={seeds[0]}" if len(seeds) == 1 else f"seeds={seeds[0]}-{seeds[-1]}"


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def _threads(sweep: Mapping[str, Any], plan: plans.Plan, is_compiled: bool, cores: int) -> int:
    """Threads of XLA on a CPU.

    A run keeps those that it was begun with: how sums are cut, and so their last digits, depends
    on them.
    """
    if "threads" in sweep:
        threads = sweep["threads"]
        if type(threads) is not int or threads < 1:
            raise ValueError(f"threads must be a whole number >= 1, got {threads!r}")
        return threads
    if is_compiled:  # Small matrices: a second thread waits for the first.
        return 1
    return cores if plan.is_language else HOST_THREADS


def _steps(folder: pathlib.Path, plan: plans.Plan) -> int:
    """Steps of the newest checkpoint: it is renamed into place, so its name is enough.

    A run whose checkpoints were deleted to save space is as far as its last row, if that is the
    end; what is not finished has nothing else to go on from. One that was stopped in its last
    evaluation has done all steps and lacks their row: it is one step short.
    """
    run = run_folder.RunFolder(folder)
    saved, rows = checkpoints.steps(run.checkpoints), run.rows()
    last = int(rows[-1]["steps"]) if rows else 0
    if saved:
        lacks_row = run.metrics_file.is_file() and last < plan.steps <= saved[-1]
        return plan.steps - 1 if lacks_row else saved[-1]
    return last if last >= plan.steps else 0


def main() -> int:
    """Reads the arguments of `runs` from stdin, an object; writes what it gives, a line."""
    asked = json.load(sys.stdin)
    answer, written = os.dup(1), os.dup(2)
    os.dup2(written, 1)  # Libraries that greet on stdout do it elsewhere.
    try:
        found = runs(
            asked["sweep"],
            pathlib.Path(asked["out"]),
            asked["begun"],
            asked["cores"],
            asked["file"],
            trust_code=asked["trust_code"],
            dry_run=asked["dry_run"],
        )
    except (ValueError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    with os.fdopen(answer, "w") as file:
        json.dump(found, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
