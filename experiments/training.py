"""Training as a person runs it: a folder, a log, checkpoints, progress, and exact resumption."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from kullback.core import checkpoints, compiled, host, loops, platform, types
from kullback.experiments import driving, interrupts, opened, run_folder
from kullback.experiments import plan as plans
from kullback.experiments.driving import Callback
from kullback.experiments.interrupts import Interrupted as Interrupted
from kullback.experiments.saver import Saver


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
    work = _Work(plan, agent, environment)
    with contextlib.ExitStack() as stack:
        probe = stack.enter_context(work.built())
        path = pathlib.Path(out) if out else _free_folder(plan)
        config = {"plan": plan.to_json(), **_details(probe), **run_folder.provenance()}
        folder = run_folder.create(path, config)
        if plan.is_language:
            probe[1].save(path)
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
) -> pathlib.Path:
    """Goes on with a run where its newest whole checkpoint left it.

    Args:
      path: of the run.
      steps: a larger number extends the run.
      agent, environment: what was handed to `train` if not names.
      trust_code: whether modules that config.json names (a reward's, an environment's) may run.
      callback, quiet: as for `train`.

    Raises:
      ValueError: if this is no run, it names code that is not trusted, or `steps` is smaller than
        what it was started with.
    """
    folder = run_folder.RunFolder(pathlib.Path(path))
    config = folder.config()
    plan = plans.Plan.from_json(config["plan"], trust_code=trust_code, file=folder.config_file)
    plan.require_trust(folder.config_file)
    if steps is not None and steps < plan.steps:
        raise ValueError(f"steps={steps} is less than the run's {plan.steps}; it can only grow")
    if steps is not None and steps > plan.steps:
        plan = dataclasses.replace(plan, steps=steps)
    for name, given in (("agent", agent), ("environment", environment)):
        if getattr(plan, name) == plans.CUSTOM and given is None:
            raise ValueError(f"the run's {name} was handed over in Python: pass it to resume()")
    work = _Work(plan, agent or plan.agent, environment or plan.environment)
    with contextlib.ExitStack() as stack:
        probe = stack.enter_context(work.built(folder.path))
        for name, frozen in (("teacher", plan.teacher), ("start", plan.model)):
            key = f"{name}_sha256"
            if plan.is_language and probe[1].details().get(key) != config.get(key):
                raise ValueError(
                    f"the {name} {frozen} has changed since the run began (its SHA-256 differs); "
                    "put the old one back, or start a new run"
                )
        folder.write_config({**config, "plan": plan.to_json()})
        _run(work, folder, plan, probe, stack.close, callback, quiet)
    return folder.path


class _Work:
    """What to build a run from: its plan, and what stands behind its names."""

    def __init__(
        self,
        plan: plans.Plan,
        agent: str | plans.MakeAgent,
        environment: str | plans.MakeEnvironment,
    ):
        self.make_agent = plan.make_agent if isinstance(agent, str) else agent
        named = isinstance(environment, str)
        self.make_environment: plans.MakeEnvironment = (
            plan.make_environment if named else environment
        )
        self.make_arena: plans.MakeEnvironment = plan.make_arena if named else environment
        self.plan = plan

    @contextlib.contextmanager
    def built(self, home: pathlib.Path | None = None) -> Iterator[tuple[types.Agent, Any]]:
        """Makes the agent and what it acts in, which is closed when the block ends.

        Of a run that goes on, `home` is the folder.
        """
        if self.plan.is_language:
            from kullback.experiments import language, preferences

            kind = preferences if opened.kind_of(self.plan) == "preferences" else language
            platform.run_large_programs()  # The setup is the first to use JAX.
            setup = kind.setup(self.plan, home)
            yield setup.agent, setup
            return
        with plans.closing(self.make_environment(self.plan.num_envs)) as environment:
            agent = self.make_agent(environment.spec)
            loops.pace(agent.replay, environment.num_envs)
            is_compiled = isinstance(environment, types.Environment)
            loops.learning_begins(agent.replay, environment.num_envs, sees_own_ticks=is_compiled)
            yield agent, environment


def _learning_begins(agent: types.Agent, environment: plans.AnyEnvironment) -> int:
    """Returns the agent steps before the first learner step, as the loop of a kind counts them."""
    loops.pace(agent.replay, environment.num_envs)
    is_compiled = isinstance(environment, types.Environment)
    return loops.learning_begins(agent.replay, environment.num_envs, sees_own_ticks=is_compiled)


def _details(probe: tuple[types.Agent, Any]) -> dict[str, Any]:
    """The whole configuration and what the environment looks like, for a reader."""
    agent, environment = probe[0], probe[1]
    details: Callable[[], dict[str, Any]] = getattr(environment, "details", dict)
    config = agent.config if agent.config is not None else agent.replay
    spec = environment.spec
    return {
        "config": dataclasses.asdict(config) if dataclasses.is_dataclass(config) else str(config),  # pyright: ignore[reportArgumentType]
        "spec": {
            "shape": list(spec.shape),
            "dtype": np.dtype(spec.dtype).name,
            "num_actions": spec.num_actions,
            "frames_per_step": spec.frames_per_step,
        },
        "loop": "compiled" if isinstance(environment, types.Environment) else "host",
        **details(),
    }


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
) -> None:
    """Runs all seeds: together in one program, or on the host in turn, a sub-folder each.

    `close` closes the probe before its time, where each seed builds its own.
    """
    notice = getattr(probe[1], "notice", None)  # What a population takes of memory.
    if notice and not quiet:
        print(notice)
    if not plan.is_language and not quiet and plan.steps <= (begins := _learning_begins(*probe)):
        print(
            f"warning: learning begins after {begins:,} steps, and the run ends at {plan.steps:,}: "
            "nothing is learnt; set more --steps or a smaller min_replay_size"
        )
    seeds = plan.seeds
    if isinstance(probe[1], types.Environment) or plan.num_seeds == 1:
        _drive(work, folder, plan, probe, seeds, callback, quiet)
        return
    config = folder.config()
    close()
    parts = []
    for seed in seeds:
        part = run_folder.RunFolder(folder.path / f"seed_{seed}")
        single = dataclasses.replace(plan, seed=seed, num_seeds=1)
        part.path.mkdir(exist_ok=True)
        part.write_config({**config, "plan": single.to_json()})
        with work.built(folder.path) as built:
            _drive(work, part, single, built, (seed,), callback, quiet, folder.path)
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
    home: pathlib.Path | None = None,
) -> None:
    """Runs one loop to the plan's number of steps, or until interrupted.

    `home` is what a user goes on with, where `folder` is that of one seed of several.
    """
    environment, heard = built[1], interrupts.Interrupts()
    texts = run_folder.Texts(folder, seeds[0]) if plan.is_language else None
    with heard, contextlib.ExitStack() as stack:
        with heard.at_once():  # There is nothing yet that would be lost.
            loop = _loop(work, plan, built, seeds, texts, heard)
            stack.callback(loop.close)
            saver = Saver(folder, loop)
            if checkpoints.steps(folder.checkpoints):  # None if the first was never whole.
                state, notes = saver.load()
            else:
                disk = saver.require_disk()
                if not quiet:
                    print(f"{folder.path}: checkpoints take at most {disk / 1e9:.2f} GB")
                state, notes = loop.init(), {}
                saver.save(state, None, notes)
        driving.Drive(
            loop=loop,
            saver=saver,
            folder=folder,
            home=home or folder.path,
            plan=plan,
            environment=environment,
            texts=texts,
            heard=heard,
            callback=callback,
            quiet=quiet,
        ).run(state, notes)


def _loop(
    work: _Work,
    plan: plans.Plan,
    built: tuple[types.Agent, Any],
    seeds: Sequence[int],
    texts: run_folder.Texts | None,
    heard: interrupts.Interrupts,
) -> loops.Loop:
    """Returns the loop of what was built."""
    agent, environment = built
    limit = plan.eval_max_steps
    if isinstance(environment, types.Environment):
        return compiled.make(agent, environment, seeds, work.make_arena, limit)
    if texts is not None:
        return environment.loop(seeds[0], texts.write, plan.log_every, heard.at_once)
    return host.make(agent, environment, seeds[0], work.make_arena, limit)
