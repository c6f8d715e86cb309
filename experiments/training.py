"""Training as a person runs it: a folder, a log, checkpoints, progress, and exact resumption."""

import math
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kullback.core import checkpoints, compiled, host, loops, platform, types
from kullback.experiments import opened, progress, run_folder
from kullback.experiments import plan as plans
from kullback.experiments.saver import Saver
from kullback.lm import power_law

Callback = Callable[[Mapping[str, Any]], None]  # Receives each row of metrics.csv.

DRAW_SECONDS = 60.0  # Between two drawings of the learning curve.


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
    probe = work.build()
    path = pathlib.Path(out) if out else _free_folder(plan)
    config = {"plan": plan.to_json(), **_details(probe), **run_folder.provenance()}
    folder = run_folder.create(path, config)
    if plan.is_language:
        probe[1].save(path)
    _run(work, folder, plan, probe, callback, quiet)
    return path


def resume(
    path: str | pathlib.Path,
    *,
    steps: int | None = None,
    agent: plans.MakeAgent | None = None,
    environment: plans.MakeEnvironment | None = None,
    callback: Callback | None = None,
    quiet: bool = False,
) -> pathlib.Path:
    """Goes on with a run where its newest whole checkpoint left it.

    Args:
      path: of the run.
      steps: a larger number extends the run.
      agent, environment: what was handed to `train` if not names.
      callback, quiet: as for `train`.

    Raises:
      ValueError: if this is no run, or `steps` is smaller than what it was started with.
    """
    folder = run_folder.RunFolder(pathlib.Path(path))
    config = folder.config()
    plan = plans.Plan.from_json(config["plan"])
    if steps is not None and steps < plan.steps:
        raise ValueError(f"steps={steps} is less than the run's {plan.steps}; it can only grow")
    if steps is not None and steps > plan.steps:
        plan = plans.Plan.from_json({**plan.to_json(), "steps": steps})
    for name, given in (("agent", agent), ("environment", environment)):
        if getattr(plan, name) == plans.CUSTOM and given is None:
            raise ValueError(f"the run's {name} was handed over in Python: pass it to resume()")
    work = _Work(plan, agent or plan.agent, environment or plan.environment)
    probe = work.build(folder.path)
    for name, frozen in (("teacher", plan.teacher), ("start", plan.model)):
        key = f"{name}_sha256"
        if plan.is_language and probe[1].details().get(key) != config.get(key):
            raise ValueError(
                f"the {name} {frozen} has changed since the run began (its SHA-256 differs); "
                "put the old one back, or start a new run"
            )
    folder.write_config({**config, "plan": plan.to_json()})
    _run(work, folder, plan, probe, callback, quiet)
    return folder.path


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM, after the run was saved."""


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

    def build(self, home: pathlib.Path | None = None) -> tuple[types.Agent, Any]:
        """The agent and what it acts in; of a run that goes on, `home` is the folder."""
        if self.plan.is_language:
            from kullback.experiments import language, preferences

            kind = preferences if opened.kind_of(self.plan) == "preferences" else language
            platform.run_large_programs()  # The setup is the first to use JAX.
            setup = kind.setup(self.plan, home)
            return setup.agent, setup
        environment = self.make_environment(self.plan.num_envs)
        agent = self.make_agent(environment.spec)
        loops.pace(agent.replay, environment.num_envs)
        return agent, environment


def _details(probe: tuple[types.Agent, Any]) -> dict[str, Any]:
    """The whole configuration and what the environment looks like, for a reader."""
    import dataclasses

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
    callback: Callback | None,
    quiet: bool,
) -> None:
    """Runs all seeds: together in one program, or on the host in turn, a sub-folder each."""
    notice = getattr(probe[1], "notice", None)  # What a population takes of memory.
    if notice and not quiet:
        print(notice)
    seeds = plan.seeds
    if isinstance(probe[1], types.Environment) or plan.num_seeds == 1:
        _drive(work, folder, plan, probe, seeds, callback, quiet)
        return
    config = folder.config()
    probe[1].close()
    parts = []
    for seed in seeds:
        part = run_folder.RunFolder(folder.path / f"seed_{seed}")
        single = plans.Plan.from_json({**plan.to_json(), "seed": seed, "num_seeds": 1})
        part.path.mkdir(exist_ok=True)
        part.write_config({**config, "plan": single.to_json()})
        _drive(work, part, single, work.build(folder.path), (seed,), callback, quiet)
        parts.append(part)
        folder.write_rows([row for p in parts for row in p.rows()])
        folder.draw(_title(plan), of_language=plan.is_language)


def _drive(
    work: _Work,
    folder: run_folder.RunFolder,
    plan: plans.Plan,
    built: tuple[types.Agent, Any],
    seeds: Sequence[int],
    callback: Callback | None,
    quiet: bool,
) -> None:
    """Runs one loop to the plan's number of steps, or until interrupted."""
    agent, environment = built
    texts = None  # Of a language model.
    if isinstance(environment, types.Environment):
        loop = compiled.make(agent, environment, seeds, work.make_arena)
    elif plan.is_language:
        texts = run_folder.Texts(folder, seeds[0])
        loop = environment.loop(seeds[0], texts.write, plan.log_every)
    else:
        loop = host.make(agent, environment, seeds[0], work.make_arena)
    saver = Saver(folder, loop)
    if checkpoints.steps(folder.checkpoints):  # None if the first was never whole.
        state, notes = saver.load()
    else:
        disk = saver.require_disk()
        if not quiet:
            print(f"{folder.path}: checkpoints take at most {disk / 1e9:.2f} GB")
        state, notes = loop.init(), {}
        saver.save(state, None, notes)
    steps = loop.env_steps(state)
    if steps >= plan.steps:
        _finish(environment, folder, state)
        print(f"{folder.path} is finished: {steps:,} steps; a larger --steps extends it")
        return
    log = run_folder.Log(folder, steps)
    if texts is not None:
        texts.begin(steps)
    interrupts = _Interrupts()
    spec = environment.spec
    drawn = clock = time.monotonic()
    saved_at, wall = steps, float(notes.get("wall_seconds", 0.0))
    logged_at = steps
    label = f"{plan.agent} {plan.environment}"
    with interrupts, progress.Progress(label, steps, plan.steps, quiet) as bar:
        while steps < plan.steps and not interrupts.asked:
            events = {
                name: _next(steps, every)
                for name, every in (
                    ("log", plan.log_every),
                    ("save", plan.checkpoint_every),
                    ("evaluate", plan.eval_every),
                )
            }
            state = loop.advance(state, min(*events.values(), plan.steps))
            steps = loop.env_steps(state)
            if not np.all(np.isfinite(np.asarray(state.metrics.learner["loss"]))):
                log.close()
                raise ArithmeticError(
                    f"the loss is not finite at step {steps:,}; the last good checkpoint, step "
                    f"{saved_at:,}, is kept in {folder.checkpoints}"
                )
            scores = None
            finished = steps >= plan.steps
            if steps >= events["evaluate"] or (finished and plan.eval_every):
                scores = loop.evaluate(state, plan.eval_episodes).mean(axis=1)  # [K]
                notes["evaluation"] = float(scores.mean())
            distance = None
            if plan.teacher and scores is not None:
                distance = built[1].distance(state.learner, steps)
                notes.setdefault("distances", []).append([steps, distance])
                text = _departure(notes["distances"])
                if text and not notes.get("has_departed"):
                    notes["has_departed"] = True
                    bar.say(f"warning: {text}")
            if texts is not None and (scores is not None or finished):
                texts.write(steps, built[1].texts(state.learner, steps))
            if scores is not None or steps >= events["log"] or finished:
                state, rows = loop.rows(state)
                now = time.monotonic()
                wall += now - clock
                speed, clock = (steps - logged_at) / max(now - clock, 1e-9), now
                logged_at = steps
                for k, (seed, row) in enumerate(zip(seeds, rows, strict=True)):
                    line = {
                        "seed": seed,
                        "steps": steps,
                        "frames": steps * spec.frames_per_step,
                        **row,
                        "evaluation": float("nan") if scores is None else float(scores[k]),
                        **_of_teacher(plan, distance),
                        "steps_per_second": speed,
                        "wall_seconds": wall,
                    }
                    log.write(line)
                    if callback is not None:
                        callback(line)
                recent = [row["recent_return"] for row in rows]
                notes["recent_return"] = float(np.mean(recent))
                notes["loss"] = float(np.mean([row["loss"] for row in rows]))
            bar.update(steps, *_shown(notes, plan.is_language))
            if steps >= events["save"] or finished or interrupts.asked:
                log.flush()
                notes["wall_seconds"] = wall + time.monotonic() - clock
                score = notes.get("evaluation" if plan.eval_every else "recent_return")
                saver.save(state, _finite(score), notes)
                saved_at = steps
                if finished or interrupts.asked or time.monotonic() - drawn > DRAW_SECONDS:
                    folder.draw(_title(plan), of_language=plan.is_language)
                    drawn = time.monotonic()
    log.close()
    if steps >= plan.steps:
        _finish(environment, folder, state)
    if interrupts.asked and steps < plan.steps:
        raise Interrupted(
            f"saved at step {steps:,}; go on with: kullback train --resume {folder.path}"
        )


def _finish(environment: Any, folder: run_folder.RunFolder, state: Any) -> None:
    """What a kind of run leaves behind once it is over, if it does."""
    finish = getattr(environment, "finish", None)
    if finish is not None:
        finish(folder.path, state.learner)


def _of_teacher(plan: plans.Plan, distance: float | None) -> dict[str, float]:
    """A column of its own, in runs that have a teacher."""
    if not plan.teacher:
        return {}
    return {"teacher_distance": float("nan") if distance is None else distance}


def _departure(distances: Sequence[Sequence[float]]) -> str | None:
    """What is to be said where the distance to a teacher leaves its power law."""
    return power_law.warning(*zip(*distances, strict=True))


def _shown(notes: Mapping[str, float], of_language: bool) -> tuple[float | None, str]:
    """The number that matters and its name: where nothing has a return, the loss."""
    value = notes.get("recent_return")
    if of_language and (value is None or math.isnan(value)):
        return notes.get("loss"), "loss"
    return value, "return"


def _next(steps: int, every: int) -> int:
    """The next multiple of `every` after `steps`; never for 0."""
    return (steps // every + 1) * every if every else sys.maxsize


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _title(plan: plans.Plan) -> str:
    return f"{plan.agent} on {plan.environment}"


class _Interrupts:
    """Turns the first Ctrl-C or SIGTERM into a flag, so that the run can be saved."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Interrupts":
        def ask(number: int, frame: Any) -> None:
            if self.asked:  # A second one means it.
                raise KeyboardInterrupt
            self.asked = True

        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, ask)
            except ValueError:  # Not the main thread: the caller's handlers stay.
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
