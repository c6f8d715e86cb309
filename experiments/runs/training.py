"""Training of runs in their folders, with checkpoints and progress, and exact resumption."""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kullback.core import files, json_files, processes
from kullback.experiments import interrupts
from kullback.experiments.interrupts import Interrupted as Interrupted
from kullback.experiments.runs import (
    driving,
    inputs,
    kinds,
    opened,
    owner,
    plans,
    record,
    resolved,
    run_folder,
    run_processes,
    staffing,
)
from kullback.experiments.runs.driving import Callback
from kullback.experiments.runs.saver import Saver
from kullback.experiments.runs.work import MakeAgent, MakeEnvironment, Work


def train(
    agent: str | MakeAgent,
    environment: str | MakeEnvironment,
    *,
    out: str | pathlib.Path | None = None,
    callback: Callback | None = None,
    quiet: bool = False,
    workers: int = 0,
    **fields: Any,
) -> pathlib.Path:
    """Trains an agent and returns the run's folder.

    Args:
      agent: a name ("m-dqn"), or a function of the environment's `Spec` that makes one.
      environment: a name ("minatar/breakout"), or a function of the number of rows.
      out: folder of the run, which must not exist; None takes the next free one under runs/.
      callback: receives each row of metrics.csv, a mapping, as it is written.
      quiet: prints no progress.
      workers: processes that act the shards of a run of games on the host; 0: threads of this one.
        A run is the same with any number of them.
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
        staff=staffing.Staff(workers),
    )
    path = run_processes.free_path(plan, out)
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(recipe.built())
        work.check()
        recipe = recipe.in_steps(work, quiet)
        config = {
            "plan": recipe.named.plan.to_json(),
            **_details(work),
            **named.to_json(),
            **run_folder.provenance(),
            **run_processes.of_now(),
        }
        for line in () if quiet else work.beginning():
            print(line, file=sys.stderr)
        with run_processes.created(path, config, work) as folder:
            run = _Run(recipe=recipe, folder=folder, callback=callback, quiet=quiet)
            run.go(work, stack.close)
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
      workers: as for `train`; they may be others than before.

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
        if steps is not None and steps < plan.steps:
            raise ValueError(f"steps={steps} is less than the run's {plan.steps}; it can only grow")
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs must be >= 1, got {epochs}")
        if steps is not None or epochs is not None:
            plan = dataclasses.replace(plan, steps=steps or 0, epochs=epochs or 0)
        plan.require_functions("resume()", agent=agent, environment=environment)
        changes = _changes(run, plan if plan.steps else run.plan)
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
            staff=staffing.Staff(workers),
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
            details = _details(work)
            _check_frozen(plan, details, config)
            if changes or empty_replay:
                entry = {"accepted": changes, "empty_replay": empty_replay}
                config[record.HISTORY] = [*config.get(record.HISTORY, []), entry]
            config_of_now = run_processes.with_accepted({**config, "plan": plan.to_json()})
            if not quiet:
                for note in (*recipe.named.notes, *_differences(plan, details, config)):
                    print(f"{folder.path}: {note}")
            going_on = _Run(
                recipe=recipe,
                folder=folder,
                callback=callback,
                quiet=quiet,
                empty_replay=empty_replay,
                accept=lambda: folder.write_config(config_of_now),
            )
            going_on.go(work, stack.close)
    return folder.path


def _changes(run: opened.Opened, plan: plans.Plan) -> list[str]:
    """Returns a line for each file of a run that has changed since it was saved.

    Raises:
      ValueError: if it has rows, and no checkpoint to go on from.
    """
    lines = [
        f"{run.path / name} is of a seed that {run.path}/config.json does not have"
        for name in sorted(path.parent.name for path in run.path.glob("seed_*/config.json"))
        if name not in {f"seed_{seed}" for seed in run.seeds}
    ]
    lines += run_processes.changes(run.path, run.config)
    apart = {seed for seed, part in run.folders.items() if part.path != run.path}
    if run.config.get("loop") == "host" and run.plan.num_seeds > 1:
        for seed in sorted({int(row["seed"]) for row in run_folder.RunFolder(run.path).rows()}):
            if seed not in apart:
                raise ValueError(
                    f"{run.path / f'seed_{seed}'} is missing, and {run.path}/metrics.csv has its "
                    "rows: put it back, or start a new run elsewhere"
                )
    for seed, part in run.folders.items():
        is_whole_run = part.path == run.path
        if is_whole_run and seed != run.seeds[0]:
            continue  # All seeds are in one folder.
        record.standing(part, plan.steps)
        config = run.config if is_whole_run else _seed_config(run.config, run.plan, seed)
        lines += record.complaints(part, config, plan.log_every)
    return lines


def _seed_config(config: Mapping[str, Any], plan: plans.Plan, seed: int) -> dict[str, Any]:
    """Returns the configuration of one seed of several that run in turn."""
    return {**config, "plan": {**plan.to_json(), "seed": seed, "num_seeds": 1}}


def _named(given: str | Callable[..., Any]) -> tuple[str, Callable[..., Any] | None]:
    """Returns the name for config.json, and the function that was given in place of one."""
    return (given, None) if isinstance(given, str) else (plans.CUSTOM, given)


def _details(work: Work) -> dict[str, Any]:
    """Returns the whole configuration and the spec of observations, for config.json."""
    agent = work.agent
    config = agent.config if agent.config is not None else agent.experience
    return {
        "config": dataclasses.asdict(config) if dataclasses.is_dataclass(config) else str(config),  # pyright: ignore[reportArgumentType]
        "spec": inputs.details(work.spec),
        **work.details(),
    }


def _check_frozen(
    plan: plans.Plan, details: Mapping[str, Any], recorded: Mapping[str, Any]
) -> None:
    """Raises ValueError if models or pairs that are read anew are not those of its beginning."""
    read_anew = (
        *(("teacher", plan.teacher), ("start", plan.model), ("base", plan.model)),
        *(("encoder", plan.model), ("projector", plan.model)),
        *(("data", plan.environment), ("images", plan.environment)),
    )
    for name, frozen in read_anew:
        key = f"{name}_sha256"
        if key in recorded and details.get(key) != recorded[key]:
            raise ValueError(
                f"the {name} {frozen} has changed since the run began (its SHA-256 differs); put "
                "the old one back, or start a new run"
            )


def _differences(
    plan: plans.Plan, details: Mapping[str, Any], recorded: Mapping[str, Any]
) -> Iterator[str]:
    """Yields a line for each change of the data, or of a custom agent's configuration."""
    # Named agents are built as recorded; models are compared by their hashes, with an error.
    keys = ("data", *(["config"] if plan.agent == plans.CUSTOM else []))
    before, now = (
        dict(json_files.leaves({key: facts[key] for key in keys if key in facts}))
        for facts in (recorded, json.loads(json.dumps(details)))
    )
    for name, value in now.items():
        if name in before and value != before[name]:
            yield f"{name} was {before[name]} when the run began, and is {value}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """A run in its folder, and where its progress goes."""

    recipe: kinds.Recipe
    folder: run_folder.RunFolder
    callback: Callback | None
    quiet: bool
    empty_replay: bool = False
    # Writes config.json of a run that goes on, once what it has saved is read: a refusal before
    # leaves it as it was.
    accept: Callable[[], None] = lambda: None

    @property
    def plan(self) -> plans.Plan:
        """The plan of all seeds."""
        return self.recipe.named.plan

    def go(self, work: Work, close: Callable[[], None]) -> None:
        """Runs all seeds, together in one program, or in turn in a sub-folder each.

        `close` closes `work` early if each seed builds its own.
        """
        plan, folder = self.plan, self.folder
        for note in () if self.quiet else work.notes():
            print(note)
        if work.seeds_together or plan.num_seeds == 1:
            self._drive(work, folder, plan, plan.seeds, self.empty_replay, self.accept)
            return
        close()
        parts = []
        for seed in plan.seeds:
            self._check(seed)
        self.accept()
        config = folder.config()
        for seed in plan.seeds:
            part = self._part(seed)
            part.path.mkdir(exist_ok=True)
            with owner.held(part.path):
                part.write_config(_seed_config(config, plan, seed))
                single = dataclasses.replace(plan, seed=seed, num_seeds=1)
                empty_replay = self.empty_replay and record.standing(part, plan.steps) == "saved"
                with self.recipe.built(folder.path) as seed_work:
                    _check_frozen(plan, seed_work.details(), config)
                    self._drive(seed_work, part, single, (seed,), empty_replay)
            parts.append(part)
            folder.write_rows([row for p in parts for row in p.rows()])
            folder.draw(driving.title(plan), work.axes)

    def _part(self, seed: int) -> run_folder.RunFolder:
        """Returns the folder of one seed of several that run in turn."""
        return run_folder.RunFolder(self.folder.path / f"seed_{seed}")

    def _check(self, seed: int) -> None:
        """Refuses a seed that cannot go on, before those ahead of it have worked for hours."""
        part = self._part(seed)
        if not part.path.is_dir() or record.standing(part, self.plan.steps) != "saved":
            return
        with self.recipe.built(self.folder.path) as work, contextlib.ExitStack() as stack:
            loop = work.loop((seed,), _ignore, self.plan.log_every, contextlib.nullcontext)
            stack.callback(loop.close)
            Saver(part, loop).read(empty_replay=self.empty_replay)

    def _drive(
        self,
        work: Work,
        folder: run_folder.RunFolder,
        plan: plans.Plan,
        seeds: Sequence[int],
        empty_replay: bool,
        accept: Callable[[], None] = lambda: None,
    ) -> None:
        """Runs one loop to the plan's number of steps, or until it is interrupted.

        `folder` and `plan` are the run's, or those of one of its seeds; `accept` is the run's, if
        the folder is.
        """
        is_first = processes.is_first()
        standing = processes.told(lambda: record.standing(folder, plan.steps))
        processes.say_how_to_go_on(f"kullback train --resume {self.folder.path}")
        if standing == "finished":
            if is_first:
                accept()
                print(
                    f"{folder.path} is finished: it has no checkpoints, and its rows are all there"
                )
            return
        signals = interrupts.Interrupts(at_steps=processes.count() > 1)
        with signals, contextlib.ExitStack() as stack:
            with signals.at_once():  # Nothing would be lost yet.
                if is_first:
                    work.keep(folder.path)
                loop = work.loop(
                    seeds,
                    lambda steps, texts: written.write_texts(steps, seeds[0], texts),
                    plan.log_every,
                    signals.at_once,
                )
                stack.callback(loop.close)
                saver = Saver(folder, loop)
                if standing == "saved":
                    state, notes, marks = saver.load(empty_replay=empty_replay)
                    processes.check_equal(np.int64(loop.steps(state)), "the newest checkpoint")
                    if is_first:  # All have read what is changed now.
                        accept()
                    written = record.of(folder, has_texts=work.has_texts)
                    if driving.is_unfinished(plan, loop.steps(state), notes):
                        written.begin(loop.steps(state), marks)
                else:
                    disk = processes.told(saver.require_disk)
                    processes.barrier()
                    if is_first:
                        accept()
                        saver.discard()
                    written = record.of(folder, has_texts=work.has_texts)
                    if not self.quiet:
                        print(f"{folder.path}: checkpoints take at most {files.size(disk)}")
                    state, notes = loop.init(), {}
                    written.begin(0)
                    saver.save(state, None, notes, written.marks())
            driving.Drive(
                loop=loop,
                saver=saver,
                folder=folder,
                home=self.folder.path,
                plan=plan,
                work=work,
                record=written,
                signals=signals,
                callback=self.callback,
                quiet=self.quiet,
            ).run(state, notes)


def _ignore(steps: int, texts: list[dict[str, Any]]) -> None:
    """Receives texts that nobody is to read."""
