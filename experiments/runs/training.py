"""Training as a person runs it: a folder, a log, checkpoints, progress, and exact resumption."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kullback import environments
from kullback.core import compiled, files, host, json_files, loops, platform, types
from kullback.experiments import interrupts
from kullback.experiments.interrupts import Interrupted as Interrupted
from kullback.experiments.runs import (
    driving,
    inputs,
    opened,
    owner,
    plans,
    record,
    resolved,
    run_folder,
)
from kullback.experiments.runs.driving import Callback
from kullback.experiments.runs.saver import Saver


def train(
    agent: str | plans.MakeAgent,
    environment: str | plans.MakeEnvironment,
    *,
    out: str | pathlib.Path | None = None,
    callback: Callback | None = None,
    quiet: bool = False,
    **fields: Any,
) -> pathlib.Path:
    """Trains an agent and returns the run's folder.

    Args:
      agent: a name ("m-dqn"), or a function of the environment's `Spec` that makes one.
      environment: a name ("minatar/breakout"), or a function of the number of rows.
      out: folder of the run, which must not exist; None takes the next free one under runs/.
      callback: receives each row of metrics.csv, a mapping, as it is written.
      quiet: no progress.
      **fields: of `plan.Plan`: steps, seed, num_seeds, num_envs, eval_every, settings, ...

    Raises:
      ValueError: for what does not fit, before anything is compiled or written.
      ArithmeticError: if the loss or a parameter stops being finite.
    """
    plan = plans.Plan(
        agent=agent if isinstance(agent, str) else plans.CUSTOM,
        environment=environment if isinstance(environment, str) else plans.CUSTOM,
        **fields,
    )
    named = resolved.resolve(plan, with_environment=isinstance(environment, str))
    work = _Work(named, agent, environment)
    path = pathlib.Path(out) if out else _free_folder(plan)
    run_folder.check_free(path)
    with contextlib.ExitStack() as stack:
        probe = stack.enter_context(work.built())
        work.check_arena()
        config = {
            "plan": plan.to_json(),
            **_details(probe),
            **named.to_json(),
            **run_folder.provenance(),
        }
        fill = probe[1].save if plan.is_language else lambda folder: None
        with run_folder.created(path, config, fill) as folder:
            _run(work, folder, plan, probe, stack.close, callback, quiet)
    return path


def resume(
    path: str | pathlib.Path,
    *,
    steps: int | None = None,
    agent: plans.MakeAgent | None = None,
    environment: plans.MakeEnvironment | None = None,
    trust_code: bool = False,
    callback: Callback | None = None,
    quiet: bool = False,
    empty_replay: bool = False,
    accept_changes: bool = False,
) -> pathlib.Path:
    """Goes on with a run where its newest whole checkpoint left it; begins one that has none.

    Args:
      path: of the run.
      steps: a larger number extends the run.
      agent, environment: what was handed to `train` if not names.
      trust_code: whether modules that config.json names (a reward's, an environment's) may run.
      callback, quiet: as for `train`.
      empty_replay: goes on without the transitions of a replay that is damaged; config.json says.
      accept_changes: goes on although config.json or the record is not as it was when the newest
        checkpoint was saved; what differs is said, and config.json lists it.

    Raises:
      ValueError: if this is no run, it names code that is not trusted, another process trains it,
        `steps` is smaller than what it was started with, or something of it was changed, damaged
        or lost.
    """
    folder = run_folder.RunFolder(pathlib.Path(path))
    # A lock is put into the folder of a run alone, and of one that may be gone on with.
    opened.open(folder.path, trust_code=trust_code).plan.require_trust(folder.config_file)
    with owner.held(folder.path):
        run = opened.open(folder.path, trust_code=trust_code)
        config, plan = dict(run.config), run.plan
        if steps is not None and steps < plan.steps:
            raise ValueError(f"steps={steps} is less than the run's {plan.steps}; it can only grow")
        if steps is not None and steps > plan.steps:
            plan = dataclasses.replace(plan, steps=steps)
        for name, given in (("agent", agent), ("environment", environment)):
            if getattr(plan, name) == plans.CUSTOM and given is None:
                raise ValueError(f"the run's {name} was handed over in Python: pass it to resume()")
        changes = _changes(run, plan)
        if changes and not accept_changes:
            raise ValueError(
                f"{'; '.join(changes)}; put back what was there, or go on with it as it is by "
                "--accept-changes"
            )
        for change in changes:
            print(f"accepted: {change}")
        named = resolved.resolve(
            plan, config, file=folder.config_file, with_environment=environment is None
        )
        work = _Work(named, agent or plan.agent, environment or plan.environment, config)
        with contextlib.ExitStack() as stack:
            probe = stack.enter_context(work.built(folder.path))
            work.check_arena()
            for name, frozen in (("teacher", plan.teacher), ("start", plan.model)):
                key = f"{name}_sha256"
                if plan.is_language and probe[1].details().get(key) != config.get(key):
                    raise ValueError(
                        f"the {name} {frozen} has changed since the run began (its SHA-256 "
                        "differs); put the old one back, or start a new run"
                    )
            if changes or empty_replay:
                entry = {"accepted": changes, "empty_replay": empty_replay}
                config[record.HISTORY] = [*config.get(record.HISTORY, []), entry]
            folder.write_config({**config, "plan": plan.to_json()})
            if not quiet:
                for note in (*named.notes, *_differences(plan, probe, config)):
                    print(f"{folder.path}: {note}")
            _run(work, folder, plan, probe, stack.close, callback, quiet, empty_replay)
    return folder.path


def _changes(run: opened.Opened, plan: plans.Plan) -> list[str]:
    """Returns what of a run is not as it was saved, before anything is built or written.

    Raises:
      ValueError: if it has rows, and no checkpoint to go on from.
    """
    found = [
        f"{run.path / part} is of a seed that {run.path}/config.json does not have"
        for part in sorted(path.parent.name for path in run.path.glob("seed_*/config.json"))
        if part not in {f"seed_{seed}" for seed in run.seeds}
    ]
    parts = {seed for seed, part in run.folders.items() if part.path != run.path}
    if run.config.get("loop") == "host" and run.plan.num_seeds > 1:
        for seed in sorted({int(row["seed"]) for row in run_folder.RunFolder(run.path).rows()}):
            if seed not in parts:
                raise ValueError(
                    f"{run.path / f'seed_{seed}'} is missing, and {run.path}/metrics.csv has its "
                    "rows: put it back, or start a new run elsewhere"
                )
    for seed, part in run.folders.items():
        is_whole_run = part.path == run.path
        if is_whole_run and seed != run.seeds[0]:
            continue  # All seeds are in one folder.
        record.standing(part, plan.steps)
        config = run.config if is_whole_run else _of_seed(run.config, run.plan, seed)
        found += record.complaints(part, config, plan.log_every)
    return found


def _of_seed(config: Mapping[str, Any], plan: plans.Plan, seed: int) -> dict[str, Any]:
    """Returns the configuration of one seed of several that run in turn."""
    return {**config, "plan": {**plan.to_json(), "seed": seed, "num_seeds": 1}}


class _Work:
    """What to build a run from: its plan, resolved, and what was handed over in place of names."""

    def __init__(
        self,
        names: resolved.Resolved,
        agent: str | plans.MakeAgent,
        environment: str | plans.MakeEnvironment,
        config: Mapping[str, Any] | None = None,
    ):
        """`config` is that of a run that goes on."""
        self.config = config
        self.make_agent = names.make_agent if isinstance(agent, str) else agent
        given = environments.checked(environment) if not isinstance(environment, str) else None
        self.make_environment: plans.MakeEnvironment = given or names.make_environment
        self.make_arena: plans.MakeEnvironment = given or names.make_arena
        self.is_given = given is not None
        self.names = names

    def spec(self, environment: plans.AnyEnvironment) -> types.Spec:
        """Returns the environment's spec, of a run that goes on as it has read it."""
        if self.config is None:
            return environment.spec
        return inputs.as_recorded(environment.spec, self.config)

    def check_arena(self) -> None:
        """Makes what a user's function evaluates in, which is checked, and closes it again.

        Raises:
          ValueError: if it is not what was asked for, which is better known before training.
        """
        plan = self.names.plan
        if self.is_given and plan.eval_every:
            with plans.closing(self.make_arena(plan.eval_episodes)):
                pass

    @contextlib.contextmanager
    def built(self, home: pathlib.Path | None = None) -> Iterator[tuple[types.Agent, Any]]:
        """Makes the agent and what it acts in, which is closed when the block ends.

        Of a run that goes on, `home` is the folder.
        """
        plan = self.names.plan
        if plan.is_language:
            from kullback.experiments.runs import language, preferences

            kind = preferences if opened.kind_of(plan) == "preferences" else language
            platform.run_large_programs()  # The setup is the first to use JAX.
            setup = kind.setup(self.names, home)
            yield setup.agent, setup
            return
        with plans.closing(self.make_environment(plan.num_envs)) as environment:
            agent = self.make_agent(self.spec(environment))
            _learning_begins(agent, environment)
            yield agent, environment


def _learning_begins(agent: types.Agent, environment: plans.AnyEnvironment) -> int:
    """Returns the agent steps before the first learner step, as the loop of a kind counts them."""
    loops.pace(agent.experience, environment.num_envs)
    is_compiled = isinstance(environment, types.Environment)
    return loops.learning_begins(agent.experience, environment.num_envs, sees_own_ticks=is_compiled)


def _details(probe: tuple[types.Agent, Any]) -> dict[str, Any]:
    """The whole configuration and what the environment looks like, for a reader."""
    agent, environment = probe[0], probe[1]
    details: Callable[[], dict[str, Any]] = getattr(environment, "details", dict)
    config = agent.config if agent.config is not None else agent.experience
    spec = environment.spec
    return {
        "config": dataclasses.asdict(config) if dataclasses.is_dataclass(config) else str(config),  # pyright: ignore[reportArgumentType]
        "spec": inputs.details(spec),
        "loop": "compiled" if isinstance(environment, types.Environment) else "host",
        **details(),
    }


def _differences(
    plan: plans.Plan, probe: tuple[types.Agent, Any], recorded: Mapping[str, Any]
) -> Iterator[str]:
    """Yields a line for each fact of what was handed over or read that is not as it was."""
    now = json.loads(json.dumps(_details(probe)))
    # What is named is built of the record; models are compared by their hashes, with an error.
    keys = ("data", *(["config"] if plan.agent == plans.CUSTOM else []))
    before, found = (
        dict(json_files.leaves({key: facts[key] for key in keys if key in facts}))
        for facts in (recorded, now)
    )
    for name, value in found.items():
        if name in before and value != before[name]:
            yield f"{name} was {before[name]} when the run began, and is {value}"


def _free_folder(plan: plans.Plan) -> pathlib.Path:
    stem = f"{plan.agent}-{plan.environment.replace('/', '-')}"
    taken = {path.name for path in pathlib.Path("runs").glob(f"{stem}-*")}
    number = next(n for n in range(1, 10**6) if f"{stem}-{n:03d}" not in taken)
    return pathlib.Path("runs") / f"{stem}-{number:03d}"


def _run(
    work: _Work,
    folder: run_folder.RunFolder,
    plan: plans.Plan,
    probe: tuple[types.Agent, Any],
    close: Callable[[], None],
    callback: Callback | None,
    quiet: bool,
    empty_replay: bool = False,
) -> None:
    """Runs all seeds: together in one program, or on the host in turn, a sub-folder each.

    `close` closes the probe before its time, where each seed builds its own.
    """
    notice = getattr(probe[1], "notice", None)  # What a population takes of memory.
    if notice and not quiet:
        print(notice)
    if not plan.is_language and not quiet and plan.agent != plans.CUSTOM:
        for note in inputs.notes(work.spec(probe[1])):
            print(note)
    if not plan.is_language and not quiet and plan.steps <= (begins := _learning_begins(*probe)):
        print(
            f"warning: learning begins after {begins:,} steps, and the run ends at {plan.steps:,}: "
            "nothing is learnt; set more --steps or a smaller min_replay_size"
        )
    seeds = plan.seeds
    if isinstance(probe[1], types.Environment) or plan.num_seeds == 1:
        _drive(work, folder, plan, probe, seeds, callback, quiet, empty_replay)
        return
    config = folder.config()
    close()
    parts = []
    for seed in seeds:
        part = run_folder.RunFolder(folder.path / f"seed_{seed}")
        part.path.mkdir(exist_ok=True)
        with owner.held(part.path):
            part.write_config(_of_seed(config, plan, seed))
            single = dataclasses.replace(plan, seed=seed, num_seeds=1)
            lost = empty_replay and record.standing(part, plan.steps) == "saved"
            with work.built(folder.path) as built:
                _drive(
                    *(work, part, single, built, (seed,), callback, quiet, lost),
                    home=folder.path,
                )
        parts.append(part)
        folder.write_rows([row for p in parts for row in p.rows()])
        folder.draw(driving.title(plan), of_language=plan.is_language)


def _drive(
    work: _Work,
    folder: run_folder.RunFolder,
    plan: plans.Plan,
    built: tuple[types.Agent, Any],
    seeds: Sequence[int],
    callback: Callback | None,
    quiet: bool,
    empty_replay: bool = False,
    home: pathlib.Path | None = None,
) -> None:
    """Runs one loop to the plan's number of steps, or until interrupted.

    `home` is what a user goes on with, where `folder` is that of one seed of several.
    """
    how = record.standing(folder, plan.steps)
    if how == "finished":
        print(f"{folder.path} is finished: it has no checkpoints, and its rows are all there")
        return
    environment, heard = built[1], interrupts.Interrupts()
    written = record.Record(folder, has_texts=plan.is_language)
    with heard, contextlib.ExitStack() as stack:
        with heard.at_once():  # There is nothing yet that would be lost.
            loop = _loop(work, plan, built, seeds, written, heard)
            stack.callback(loop.close)
            saver = Saver(folder, loop)
            if how == "saved":
                state, notes, marks = saver.load(empty_replay=empty_replay)
                if driving.is_unfinished(plan, loop.steps(state), notes):
                    written.begin(loop.steps(state), marks)
            else:
                disk = saver.require_disk()
                if not quiet:
                    print(f"{folder.path}: checkpoints take at most {files.size(disk)}")
                state, notes = loop.init(), {}
                written.begin(0)
                saver.save(state, None, notes, written.marks())
        driving.Drive(
            loop=loop,
            saver=saver,
            folder=folder,
            home=home or folder.path,
            plan=plan,
            environment=environment,
            record=written,
            heard=heard,
            callback=callback,
            quiet=quiet,
        ).run(state, notes)


def _loop(
    work: _Work,
    plan: plans.Plan,
    built: tuple[types.Agent, Any],
    seeds: Sequence[int],
    written: record.Record,
    heard: interrupts.Interrupts,
) -> loops.Loop:
    """Returns the loop of what was built."""
    agent, environment = built
    limit = plan.eval_max_steps
    if isinstance(environment, types.Environment):
        return compiled.make(agent, environment, seeds, work.make_arena, limit)
    if plan.is_language:
        on_texts = functools.partial(_write_texts, written, seeds[0])
        return environment.loop(seeds[0], on_texts, plan.log_every, heard.at_once)
    return host.make(agent, environment, seeds[0], work.make_arena, limit)


def _write_texts(
    written: record.Record, seed: int, steps: int, texts: Sequence[Mapping[str, Any]]
) -> None:
    written.write_texts(steps, seed, texts)
