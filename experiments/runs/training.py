"""Training of runs in their folders, with checkpoints and progress, and exact resumption."""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Any

from kullback.core import processes
from kullback.experiments.interrupts import Interrupted as Interrupted
from kullback.experiments.runs import (
    kinds,
    opened,
    plans,
    record,
    resolved,
    run_folder,
    run_processes,
    seeds,
    staffing,
    unchanged,
)
from kullback.experiments.runs.driving import Callback
from kullback.experiments.runs.work import MakeAgent, MakeEnvironment


def train(
    agent: str | MakeAgent,
    environment: str | MakeEnvironment,
    *,
    out: str | pathlib.Path | None = None,
    callback: Callback | None = None,
    quiet: bool = False,
    workers: int = 0,
    ray: str = "",
    **fields: Any,
) -> pathlib.Path:
    """Trains an agent and returns the run's folder.

    Args:
      agent: a name ("m-dqn"), or a function of the environment's `Spec` that makes one.
      environment: a name ("minatar/breakout"), or a function of the number of rows.
      out: folder of the run, which must not exist; None takes the next free one under runs/.
      callback: receives each row of metrics.csv, a mapping, as it is written.
      quiet: prints no progress.
      workers: processes that act the shards of a run of games on the host, or write the texts that
        a language model learns from later; 0: threads of this one. A run is the same with any
        number of them.
      ray: address of a Ray cluster whose machines have the workers ("auto", HOST:PORT, "local").
      **fields: of `plans.Plan`: steps, seed, num_seeds, num_envs, eval_every, settings, ...

    Raises:
      ValueError: for fields that do not fit, before anything is compiled or written.
      ArithmeticError: if the loss or a parameter stops being finite.
    """
    agent_name, make_agent = _named(agent)
    environment_name, make_environment = _named(environment)
    plan = plans.Plan(agent=agent_name, environment=environment_name, **fields)
    run_processes.check(plan)
    if not processes.is_first():
        quiet, callback = True, None
    named = resolved.resolve(plan, with_environment=make_environment is None)
    if plan.kind == "language":
        from kullback.experiments.runs import learning_rates  # Which imports JAX.

        named = learning_rates.sized(named)
    if not quiet:
        for note in named.notes:
            print(note)
    recipe = kinds.Recipe(
        named=named,
        make_agent=make_agent,
        make_environment=make_environment,
        staff=staffing.Staff(workers, ray),
    )
    path = run_processes.free_path(plan, out)
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(recipe.built())
        work.check()
        recipe = recipe.in_steps(work, quiet)
        config = {
            "plan": recipe.named.plan.to_json(),
            **unchanged.details(work),
            **named.to_json(),
            **run_folder.provenance(),
            **run_processes.of_now(),
        }
        for line in () if quiet else work.beginning():
            print(line, file=sys.stderr)
        with run_processes.created(path, config, work) as folder:
            run = seeds.Seeds(recipe=recipe, folder=folder, callback=callback, quiet=quiet)
            run.run(work, stack.close)
    return path


def resume(
    path: str | pathlib.Path,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    agent: MakeAgent | None = None,
    environment: MakeEnvironment | None = None,
    trust_code: bool = False,
    callback: Callback | None = None,
    quiet: bool = False,
    empty_replay: bool = False,
    accept_changes: bool = False,
    base: str = "",
    workers: int = 0,
    ray: str = "",
) -> pathlib.Path:
    """Goes on with a run from its newest whole checkpoint; begins a run that has none.

    Args:
      path: of the run.
      steps: a larger number extends the run.
      epochs: the same in passes over the examples as they are now, of a run of a language model.
      agent, environment: the functions that were handed to `train`, if not names.
      trust_code: whether modules that config.json names (a reward's, an environment's) may run.
      callback, quiet: as for `train`.
      empty_replay: goes on without the transitions of a damaged replay; config.json notes it.
      accept_changes: goes on although config.json or the record has changed since the newest
        checkpoint was saved; the changes are printed, and config.json notes them.
      base: where the base of a run of adapters is now; config.json keeps it. "" is where it was.
      workers, ray: as for `train`; they may be others than before.

    Raises:
      ValueError: if this is no run, it names code that is not trusted, another process trains it,
        `steps` is smaller than the run's or given with epochs, or one of its files was changed,
        damaged or lost.
    """
    folder = run_folder.RunFolder(pathlib.Path(path))
    # Before the lock is written: it must be a run, and one that may go on.
    opened.open(folder.path, trust_code=trust_code).plan.require_trust(folder.config_file)
    if not processes.is_first():
        quiet, callback = True, None
    with run_processes.held(folder.path):
        run = opened.open(folder.path, trust_code=trust_code)
        config, plan = dict(run.config), run.plan
        run_processes.check(plan)
        if base:
            from kullback.experiments.runs import learnt  # Which imports JAX.

            plan = learnt.beside(run, base).plan
        plan = _longer(plan, steps, epochs)
        plan.require_functions("resume()", agent=agent, environment=environment)
        changes = unchanged.changes(run, plan if plan.steps else run.plan)
        if changes and not accept_changes:
            raise ValueError(
                f"{'; '.join(changes)}; put back what was there, or go on with it as it is by "
                "--accept-changes"
            )
        for change in changes if processes.is_first() else ():
            print(f"accepted: {change}")
        named = resolved.resolve(
            plan, config, file=folder.config_file, with_environment=environment is None
        )
        recipe = kinds.Recipe(
            named=named,
            make_agent=agent,
            make_environment=environment,
            recorded=config,
            staff=staffing.Staff(workers, ray),
        )
        with contextlib.ExitStack() as stack:
            work = stack.enter_context(recipe.built(folder.path))
            work.check()
            recipe = recipe.in_steps(work, quiet)
            plan = recipe.named.plan
            if plan.steps < run.plan.steps:
                raise ValueError(
                    f"epochs={epochs} are {plan.steps} steps, less than the run's "
                    f"{run.plan.steps}; it can only grow"
                )
            details = unchanged.details(work)
            unchanged.check_frozen(plan, details, config)
            if changes or empty_replay:
                entry = {"accepted": changes, "empty_replay": empty_replay}
                config[record.HISTORY] = [*config.get(record.HISTORY, []), entry]
            config_of_now = run_processes.with_accepted({**config, "plan": plan.to_json()})
            if not quiet:
                for note in (*recipe.named.notes, *unchanged.differences(plan, details, config)):
                    print(f"{folder.path}: {note}")
            going_on = seeds.Seeds(
                recipe=recipe,
                folder=folder,
                callback=callback,
                quiet=quiet,
                empty_replay=empty_replay,
                accept=lambda: folder.write_config(config_of_now),
            )
            going_on.run(work, stack.close)
    return folder.path


def _longer(plan: plans.Plan, steps: int | None, epochs: int | None) -> plans.Plan:
    """Returns the plan with the steps or epochs that a run is extended to, if any are given."""
    if steps is not None and steps < plan.steps:
        raise ValueError(f"steps={steps} is less than the run's {plan.steps}; it can only grow")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs must be >= 1, got {epochs}")
    if steps is None and epochs is None:
        return plan
    return dataclasses.replace(plan, steps=steps or 0, epochs=epochs or 0)


def _named(given: str | Callable[..., Any]) -> tuple[str, Callable[..., Any] | None]:
    """Returns the name for config.json, and the function that was given in place of one."""
    return (given, None) if isinstance(given, str) else (plans.CUSTOM, given)
