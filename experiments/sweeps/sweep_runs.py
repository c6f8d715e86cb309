"""The runs of a sweep: its configurations, compared with the runs that its folder holds already.

This is a program: `sweeps.sweep` starts it, writes the sweep to its stdin as JSON, and reads the
runs from its stdout. So the process that waits for the runs never imports JAX, and takes no memory
of an accelerator from them.
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
from kullback.experiments import limits
from kullback.experiments.runs import mends, opened, plans, resolved, run_folder, settings
from kullback.experiments.sweeps import sweep_plan

# Cores of a run whose environment is on the host: for emulators, and the learner beside them.
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
    """Returns all runs that a sweep consists of, and how far each is.

    A configuration that has a run in the folder is recognised by its recorded settings and flags,
    not by the folder's name: an axis may get more values, seeds may be added and `steps` may grow.
    A run that began with other presets than today's is of another configuration. Consecutive new
    seeds become one run if the environment is compiled, else a run each.

    Args:
      sweep: as `sweep_plan.configurations` takes it.
      out: folder of the sweep, which need not exist.
      begun: threads of XLA that each run was begun with, by its name.
      cores: of this machine.
      file: the sweep's file, for messages.
      trust_code: whether modules that it names may run.
      dry_run: whether runs are only listed: a configuration that names a module is not built, or
        without it if its epochs are to be told in steps.

    Returns:
      {"runs": [{"name", "plan", "threads", "done", "diverged", "notes"}], "others": names of runs
      in the folder that are not of the sweep, "untrusted": names of modules that may not run,
      "platform", "devices", "runs_per_gpu": None where the file does not say}; `done` counts agent
      steps of a seed, `diverged` is the reason if the run has diverged, else "", and `notes` say
      what is computed differently since it began.

    Raises:
      ValueError: if a run is impossible or not trusted, or has changed since it was begun.
    """
    if (out / "config.json").exists():
        raise ValueError(f"{out} is a run; a sweep is a folder of runs: choose another --out")
    runs_code = trust_code and not dry_run
    existing = _existing(out, runs_code)
    described: list[dict[str, Any]] = []
    untrusted: dict[str, None] = {}
    configurations = sweep_plan.configurations(sweep)
    first_plans = [
        dataclasses.replace(c.plan(c.seeds[:1]), trust_code=trust_code) for c in configurations
    ]
    for plan in first_plans:  # All of them before any module of one is imported.
        if plan.code and not trust_code:
            untrusted[plan.code] = None
        if not dry_run:
            plan.require_trust(file)
    for configuration, first_plan in zip(configurations, first_plans, strict=True):
        is_compiled = False
        if not (dry_run and first_plan.code):
            configuration, is_compiled = sweep_plan.check(configuration)
        elif first_plan.epochs:
            configuration = sweep_plan.in_steps_without_code(configuration)
        for name, plan in _plans(configuration, is_compiled, existing, runs_code):
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
            described.append(
                {
                    "name": name,
                    "plan": plan.to_json(),
                    "threads": threads,
                    "done": done,
                    "diverged": run_folder.RunFolder(out / name).diverged(),
                    "notes": existing[name].notes if name in existing and done else [],
                }
            )
    return {
        "runs": described,
        "others": sorted(set(existing) - {run["name"] for run in described}),
        "untrusted": list(untrusted),
        "platform": jax.default_backend(),
        "devices": jax.local_device_count(),
        "runs_per_gpu": _runs_per_gpu(sweep, described),
    }


class _Existing:
    """A run in the sweep's folder."""

    def __init__(self, run: opened.Opened):
        """Resolves nothing yet: the environment of another sweep's run may not be installed."""
        self.run, self.plan = run, run.plan

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """The fields, settings and flags that it computes with."""
        return _identity(self.plan, self.run)

    @property
    def notes(self) -> list[str]:
        """A line for each thing that is computed differently since it began."""
        return mends.since(self.plan, self.run.config)


def _existing(out: pathlib.Path, trust_code: bool) -> dict[str, _Existing]:
    """Reads the runs in the folder, by name."""
    return {
        file.parent.name: _Existing(opened.open(file.parent, trust_code=trust_code))
        for file in sorted(out.glob("*/config.json"))
    }


def _plans(
    configuration: sweep_plan.Configuration,
    is_compiled: bool,
    existing: Mapping[str, _Existing],
    trust_code: bool,
) -> list[tuple[str, plans.Plan]]:
    """Returns name and plan of each run of a configuration: existing runs, then new ones."""

    def plan_of(seeds: Sequence[int]) -> plans.Plan:
        return dataclasses.replace(configuration.plan(seeds), trust_code=trust_code)

    wanted = set(configuration.seeds)
    first = plan_of(configuration.seeds[:1])
    identity = _identity(first)
    named_plans = []
    for name, run in existing.items():
        if (run.plan.agent, run.plan.environment) != (first.agent, first.environment):
            continue
        seeds = set(run.plan.seeds)
        if not seeds & wanted or run.identity != identity:
            continue
        if not seeds <= wanted:
            raise ValueError(
                f"{name} has seeds {_listed(seeds)}, the file asks for "
                f"{_listed(configuration.seeds)}; choose another --out, or move it away"
            )
        if first.steps < run.plan.steps:
            raise ValueError(
                f"{name} has steps={run.plan.steps}, the file asks for {first.steps}; they can "
                "only grow: choose another --out"
            )
        wanted -= seeds
        # The run's own spelling of settings, and flags without effect, are kept.
        named_plans.append((name, dataclasses.replace(run.plan, steps=first.steps)))
    for seeds in _consecutive(sorted(wanted), is_compiled):
        name = f"{configuration.name},{_seeds(seeds)}"
        if name in existing:
            difference = _difference(existing[name].identity, identity, configuration)
            raise ValueError(f"{name} has changed: {difference}")
        named_plans.append((name, plan_of(seeds)))
    return named_plans


_NOT_COMPARED = ("seed", "num_seeds", "steps", *sweep_plan.SECTIONS[1:])


def _identity(plan: plans.Plan, run: opened.Opened | None = None) -> dict[str, Any]:
    """Returns the fields, settings and flags that all runs of one configuration share, by name.

    Args:
      plan: of a run on disk, or of one that would begin today.
      run: the run on disk, whose record counts.
    """
    fields = {k: v for k, v in plan.to_json().items() if k not in _NOT_COMPARED}
    is_safe = plan.trust_code or not plan.code
    if run is not None:
        named = resolved.of(run, with_environment=is_safe)
    else:
        named = resolved.resolve(plan, with_environment=is_safe)
    if not is_safe:  # A dry run imports nothing.
        fields["environment_flags"] = sorted(plan.environment_flags)
    return {**fields, **named.facts(), **_shape(plan, run)}


_TOKENIZER_FIELDS = ("vocab_size", "bos_id", "eos_ids", "pad_id")


def _shape(plan: plans.Plan, run: opened.Opened | None) -> dict[str, Any]:
    """Returns fields of a language model by name: all of a preset, else those that are set."""
    if plan.kind == "games":
        return {}
    from kullback.experiments.runs import model_files
    from kullback.lm import gemma

    if plan.model not in gemma.PRESETS:
        given = model_files.read_flags(plan.model_flags)
        return {f"model.{name}": value for name, value in given.items()}
    if run is not None and (run.path / model_files.MODEL).is_file():
        shape = model_files.saved_config(run.path)
    else:
        shape = settings.apply(gemma.PRESETS[plan.model], plan.model_flags)
    return {
        f"model.{name}": value
        for name, _, value in settings.fields(shape)
        if name not in _TOKENIZER_FIELDS
    }


def _difference(
    before: Mapping[str, Any], now: Mapping[str, Any], configuration: sweep_plan.Configuration
) -> str:
    """Says in what a run differs from the file, or from today's presets."""
    names = [k for k in dict.fromkeys((*before, *now)) if before.get(k) != now.get(k)]
    by_file = _names_in_file(configuration)
    parts = [
        f"{source} {settings.shown(now, of_source)}"
        for source, of_source in (
            ("the file says", [name for name in names if name in by_file]),
            ("today's presets have", [name for name in names if name not in by_file]),
        )
        if of_source
    ]
    mend = "" if by_file & {*names} else "write the former into the file to go on with it, "
    return (
        f"it was begun with {settings.shown(before, names)}, and {', '.join(parts)}; {mend}choose "
        "another --out, or move it away"
    )


def _names_in_file(configuration: sweep_plan.Configuration) -> set[str]:
    """Returns the names of `_identity` whose values the file gives."""
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


def _consecutive(seeds: Sequence[int], is_compiled: bool) -> list[list[int]]:
    groups: list[list[int]] = []
    for seed in seeds:
        if is_compiled and groups and seed == groups[-1][-1] + 1:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def _seeds(seeds: Sequence[int]) -> str:
    """Returns the part of a run's name for its seeds: "seed=3", "seeds=0-4"."""
    return f"seed={seeds[0]}" if len(seeds) == 1 else f"seeds={seeds[0]}-{seeds[-1]}"


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(seeds)))


def _threads(sweep: Mapping[str, Any], plan: plans.Plan, is_compiled: bool, cores: int) -> int:
    """Returns a new run's threads of XLA on a CPU.

    A run keeps its threads: how sums are split, and so their last digits, depends on them.
    """
    if "threads" in sweep:
        threads = sweep["threads"]
        if type(threads) is not int or threads < 1:
            raise ValueError(f"threads must be a whole number >= 1, got {threads!r}")
        return threads
    if is_compiled:  # Small matrices: a second thread waits for the first.
        return 1
    return HOST_THREADS if plan.kind == "games" else cores


def _runs_per_gpu(sweep: Mapping[str, Any], described: Iterable[Mapping[str, Any]]) -> int | None:
    """Returns the runs that share a GPU; None where the file does not say.

    It may change between two calls: a run's numbers do not depend on it.
    """
    if "runs_per_gpu" not in sweep:
        return None
    count = sweep["runs_per_gpu"]
    if type(count) is not int or not 1 <= count <= limits.JOBS:
        raise ValueError(
            f"runs_per_gpu must be a whole number in [1, {limits.JOBS:,}], got {count!r}"
        )
    over_mesh = next((run["name"] for run in described if run["plan"]["mesh"]), None)
    if over_mesh is not None and count > 1:
        raise ValueError(
            f"runs_per_gpu={count} and a mesh do not go together: {over_mesh} takes all GPUs; "
            "leave one of them out"
        )
    return count


def _steps(folder: pathlib.Path, plan: plans.Plan) -> int:
    """Returns the steps of a run's newest checkpoint, by its name: it is renamed into place.

    A finished run whose checkpoints were deleted, to save space, counts by its last row; an
    unfinished one could not go on. A run that was stopped in its last evaluation has done all steps
    and lacks their row: it counts as one step short.
    """
    run = run_folder.RunFolder(folder)
    saved, rows = checkpoints.steps(run.checkpoints), run.rows()
    last = int(rows[-1]["steps"]) if rows else 0
    if saved:
        lacks_row = run.metrics_file.is_file() and last < plan.steps <= saved[-1]
        return plan.steps - 1 if lacks_row else saved[-1]
    return last if last >= plan.steps else 0


def main() -> int:
    """Reads the arguments of `runs` as a JSON object from stdin; writes its result to stdout."""
    arguments = json.load(sys.stdin)
    arguments["out"] = pathlib.Path(arguments["out"])
    answer = os.dup(1)
    os.dup2(2, 1)  # Libraries may print to stdout.
    try:
        checked = runs(**arguments)
    except (ValueError, OSError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    with os.fdopen(answer, "w") as file:
        json.dump(checked, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
