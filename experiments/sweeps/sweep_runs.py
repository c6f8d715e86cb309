"""The runs of a sweep: its configurations, set against what its folder holds already.

A program of its own: `sweeps.sweep` starts it, hands it the sweep as JSON on stdin and reads the
runs from stdout. So the process that waits for the runs never imports JAX, and holds no memory of
an accelerator that they need.
"""

import dataclasses
import functools
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from kullback.core import checkpoints
from kullback.experiments.runs import mends, opened, plans, resolved, run_folder, settings
from kullback.experiments.sweeps import sweep_plan

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

    A configuration that the folder has is recognised by what it computes with, as it was recorded,
    whatever its folder is called and its file says: an axis may get more values, seeds may be
    added and `steps` may grow. One that began with other presets than today's is another.
    Consecutive seeds that are not there yet become one run if they are compiled, else a run each.

    Args:
      sweep: as `sweep_plan.configurations` takes it.
      out: folder of the sweep, which need not exist.
      begun: threads of XLA that a run was begun with, by its name.
      cores: of this machine.
      file: that the sweep was read from, for messages.
      trust_code: whether modules that it names may run.
      dry_run: nothing is to be run: what would need such a module is not built.

    Returns:
      {"runs": [{"name", "plan", "threads", "done", "diverged", "notes"}], "others": names of runs
      in the folder that are not of the sweep, "untrusted": what names modules that may not run,
      "platform", "devices"}; `done` counts agent steps of a seed, `diverged` says how a run did,
      "" if it did not, and `notes` what is now computed otherwise than when it began.

    Raises:
      ValueError: for what cannot be run or is not trusted, and for what has changed since it was
        begun.
    """
    if (out / "config.json").exists():
        raise ValueError(f"{out} is a run; a sweep is a folder of runs: choose another --out")
    runs_code = trust_code and not dry_run
    existing = _existing(out, runs_code)
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
        for name, plan in _of(configuration, is_compiled, existing, runs_code):
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
            found.append(
                {
                    "name": name,
                    "plan": plan.to_json(),
                    "threads": threads,
                    "done": done,
                    "diverged": run_folder.RunFolder(out / name).diverged(),
                    "notes": existing[name].notes if name in existing and done else [],
                }
            )
    named = {run["name"] for run in found}
    return {
        "runs": found,
        "others": sorted(set(existing) - named),
        "untrusted": list(untrusted),
        "platform": jax.default_backend(),
        "devices": jax.local_device_count(),
    }


class _Existing:
    """A run that the folder has."""

    def __init__(self, run: opened.Opened):
        """Resolves nothing yet: a run of another sweep may be of what is not installed here."""
        self.run, self.plan = run, run.plan

    @functools.cached_property
    def essence(self) -> dict[str, Any]:
        """What it computes with."""
        return _essence(self.plan, self.run)

    @property
    def notes(self) -> list[str]:
        """What is now computed otherwise than when it began."""
        return mends.since(self.plan, self.run.config)


def _existing(out: pathlib.Path, trust_code: bool) -> dict[str, _Existing]:
    """Runs that the folder has, by name."""
    return {
        file.parent.name: _Existing(opened.open(file.parent, trust_code=trust_code))
        for file in sorted(out.glob("*/config.json"))
    }


def _of(
    configuration: sweep_plan.Configuration,
    is_compiled: bool,
    existing: Mapping[str, _Existing],
    trust_code: bool,
) -> list[tuple[str, plans.Plan]]:
    """Name and plan of each run of a configuration: those that are there, then the new ones."""

    def plan_of(seeds: Sequence[int]) -> plans.Plan:
        return dataclasses.replace(configuration.plan(seeds), trust_code=trust_code)

    wanted = set(configuration.seeds)
    asked = plan_of(configuration.seeds[:1])
    essence = _essence(asked)
    found = []
    for name, there in existing.items():
        if (there.plan.agent, there.plan.environment) != (asked.agent, asked.environment):
            continue
        seeds = set(there.plan.seeds)
        if not seeds & wanted or there.essence != essence:
            continue
        if not seeds <= wanted:
            raise ValueError(
                f"{name} has seeds {_listed(seeds)}, the file asks for "
                f"{_listed(configuration.seeds)}; choose another --out, or move it away"
            )
        if asked.steps < there.plan.steps:
            raise ValueError(
                f"{name} has steps={there.plan.steps}, the file asks for {asked.steps}; they can "
                "only grow: choose another --out"
            )
        wanted -= seeds
        # Its own words, and flags without effect, are handed on.
        found.append((name, dataclasses.replace(there.plan, steps=asked.steps)))
    for seeds in _consecutive(sorted(wanted), is_compiled):
        name = f"{configuration.name},{_seeds(seeds)}"
        if name in existing:
            raise ValueError(
                f"{name} has changed: {_difference(existing[name].essence, essence, configuration)}"
            )
        found.append((name, plan_of(seeds)))
    return found


_NOT_COMPARED = ("seed", "num_seeds", "steps", *sweep_plan.SECTIONS[1:])


def _essence(plan: plans.Plan, run: opened.Opened | None = None) -> dict[str, Any]:
    """What two runs must share to be one configuration: fields, settings and flags by name.

    Args:
      plan: what is asked for, or of a run.
      run: that run, which has a record; None is what would begin today.
    """
    essence = {k: v for k, v in plan.to_json().items() if k not in _NOT_COMPARED}
    is_safe = plan.trust_code or not plan.code
    named = _resolved(plan, run, is_safe)
    if not is_safe:  # A dry run imports nothing.
        essence["environment_flags"] = sorted(plan.environment_flags)
    return {**essence, **named.facts(), **_shape(plan, run)}


def _resolved(plan: plans.Plan, run: opened.Opened | None, is_safe: bool) -> resolved.Resolved:
    if run is not None:
        return resolved.of(run, with_environment=is_safe)
    return resolved.resolve(plan, with_environment=is_safe)


_OF_TOKENIZER = ("vocab_size", "bos_id", "eos_ids", "pad_id")


def _shape(plan: plans.Plan, run: opened.Opened | None) -> dict[str, Any]:
    """Fields of a language model by name: all of a preset's, of another those that are set."""
    if not plan.is_language:
        return {}
    from kullback.experiments.runs import models
    from kullback.lm import gemma

    if plan.model not in gemma.PRESETS:
        hints = {name: hint for name, hint, _ in settings.fields(gemma.PRESETS["tiny"])}
        given = settings.read(hints, plan.model_flags)
        return {f"model.{name}": value for name, value in given.items()}
    if run is not None and (run.path / models.MODEL).is_file():
        shape = models.saved_config(run.path)
    else:
        shape = settings.apply(gemma.PRESETS[plan.model], plan.model_flags)
    return {
        f"model.{name}": value
        for name, _, value in settings.fields(shape)
        if name not in _OF_TOKENIZER
    }


def _difference(
    there: Mapping[str, Any], asked: Mapping[str, Any], configuration: sweep_plan.Configuration
) -> str:
    """Says what a run was begun with that is not as it is asked for, or as presets are, now."""
    names = [k for k in dict.fromkeys((*there, *asked)) if there.get(k) != asked.get(k)]
    by_file = _asked(configuration)
    now = [
        f"{who} {_said(asked, of)}"
        for who, of in (
            ("the file says", [name for name in names if name in by_file]),
            ("today's presets have", [name for name in names if name not in by_file]),
        )
        if of
    ]
    mend = "" if by_file & {*names} else "write the former into the file to go on with it, "
    return (
        f"it was begun with {_said(there, names)}, and {', '.join(now)}; {mend}choose another "
        "--out, or move it away"
    )


def _asked(configuration: sweep_plan.Configuration) -> set[str]:
    """Names of what a file says of a configuration, as `_essence` has them."""
    plan = configuration.plan(configuration.seeds[:1])
    named = resolved.resolve(plan, with_environment=False)
    leaves = {} if named.config is None else {n: h for n, h, _ in settings.fields(named.config)}
    prefixes = {"environment_flags": resolved.FLAGS, "model_flags": "model"}
    flags = (
        f"{prefix}.{flag.partition('=')[0].strip()}"
        for section, prefix in prefixes.items()
        for flag in configuration.fields.get(section, ())
    )
    return {*configuration.fields, *settings.read(leaves, plan.settings), *flags}


def _said(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={values.get(name, 'none')}" for name in names)


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
