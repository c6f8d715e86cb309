"""What a run computes with: every setting of its agent and flag of its environment, resolved.

A plan says what was asked for; what was not asked for is as the presets and defaults were on the
day when the run began. So config.json keeps the resolved values, and a run goes on, is evaluated
and is compared by those. `resolve` is the one way from a plan to them.
"""

import contextlib
import dataclasses
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

from kullback import agents, environments, lm
from kullback.core import files, json_files, typed, types
from kullback.experiments.runs import mends, opened, plans, run_folder, settings
from kullback.lm import splits, tasks

CONFIG, FLAGS = "config", "environment_flags"  # Keys of config.json.
WITHOUT_EFFECT = ("num_threads",)  # Flags of environments that change no number of a run.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """A plan with what its names stand for."""

    plan: plans.Plan
    config: Any  # Of the agent or algorithm; None if that was handed over in Python.
    # Of the environment's constructor: what differs from its own defaults.
    given: Mapping[str, Any]
    # All of its flags that JSON can hold, by name; {} if it was handed over in Python, or of texts.
    flags: Mapping[str, Any]
    rule: int  # By which a file of texts is split and read, see lm/splits.py.
    # A line each, for who goes on with the run: where its record and this version differ.
    notes: tuple[str, ...] = ()

    def make_agent(self, spec: types.Spec) -> types.Agent:
        """Returns the agent for an environment."""
        return agents.AGENTS[self.plan.agent].make(None, spec, self.config)

    def make_environment(self, num_envs: int) -> plans.AnyEnvironment:
        """Returns the environment to train in, with so many rows."""
        self.plan.require_trust()
        return environments.make(self.plan.environment, num_envs, **self.given)

    def make_eval_environment(self, num_envs: int) -> plans.AnyEnvironment:
        """Makes the environment to be evaluated in: on Atari whole games, whatever flags say.

        There a life may be an episode of training (`protocol=classic`, `life_loss=true`).
        """
        self.plan.require_trust()
        whole = {"life_loss": False} if self.plan.environment.startswith("atari/") else {}
        return environments.make(self.plan.environment, num_envs, **{**self.given, **whole})

    def to_json(self) -> dict[str, Any]:
        """Returns what config.json keeps besides the plan and the configuration that was built."""
        return {FLAGS: dict(self.flags), mends.KEY: len(mends.MENDS)}

    def facts(self) -> dict[str, Any]:
        """Returns values of all settings and flags by dotted name, to compare runs by."""
        leaves = () if self.config is None else settings.fields(self.config)
        kept = {k: v for k, v in self.flags.items() if k not in WITHOUT_EFFECT}
        of_data = {"data.rule": self.rule} if tasks.names_path(self.plan.environment) else {}
        return {
            **{name: value for name, _, value in leaves},
            **{f"{FLAGS}.{name}": value for name, value in kept.items()},
            **of_data,
        }


def of(run: opened.Opened, *, with_environment: bool = True) -> Resolved:
    """Returns what a run on disk computes with; for arguments and errors see `resolve`."""
    file = run.path / run_folder.CONFIG
    return resolve(run.plan, run.config, file=file, with_environment=with_environment)


def resolve(
    plan: plans.Plan,
    recorded: Mapping[str, Any] | None = None,
    *,
    file: files.Path = run_folder.CONFIG,
    with_environment: bool = True,
) -> Resolved:
    """Returns what a plan says, and where it is silent, the record or else today's presets.

    Args:
      plan: of the run.
      recorded: its config.json; None for a run that begins. What it lacks, and what this version
        does not know, is as it is today, and stands in the notes.
      file: where it stands, for messages.
      with_environment: whether the environment is the one that the plan names.

    Raises:
      ValueError: for settings and flags that are none, or of another type, given or recorded; for
        code that is not trusted.
    """
    record = json_files.Record(str(file), (), recorded or {})
    notes: list[str] = []
    config: Any = None
    if plan.agent != plans.CUSTOM:
        entry = {**agents.AGENTS, **lm.ALGORITHMS}[plan.agent]
        config, notes = _config(entry.presets(plan.family), plan.settings, record)
    given, flags = {}, {}
    if with_environment and not plan.is_language and plan.environment != plans.CUSTOM:
        plan.require_trust(file)
        given, flags, more = _flags(plan, record)
        notes += more
    rule = splits.RULE
    if recorded is not None:
        rule = splits.rule_of(recorded)
        notes += _of_rule(plan, rule)
        notes += mends.since(plan, recorded)
    return Resolved(
        plan=plan, config=config, given=given, flags=flags, rule=rule, notes=tuple(notes)
    )


def _of_rule(plan: plans.Plan, rule: int) -> Iterator[str]:
    """Yields what the first rule for files of texts means to a run that began with it."""
    if rule > 1 or not tasks.names_path(plan.environment):
        return
    if not tasks.names_folder(plan.environment):
        yield (
            "rows of the file are held out by how they are written, as when the run began, so that "
            "a prompt that is written in two ways may be learnt from and held out; a new run goes "
            "by what the model sees"
        )
    if "entailment:" in plan.reward.lower():
        yield (
            "the document of an entailment reward is what stands before a prompt's last empty "
            "line, as when the run began, where a row names none; a new run takes the whole prompt"
        )


def rules(plan: plans.Plan, recorded: Mapping[str, Any], file: files.Path) -> dict[str, Any]:
    """Returns the flags of a run's environment that are not as they are by default today.

    Of an environment that is not installed here, or is code of a stranger's, which is not run,
    they are those that are recorded, or else given.
    """
    record, defaults = json_files.Record(str(file), (), recorded), {}
    pairs = (flag.partition("=") for flag in plan.environment_flags)
    found = {name.strip(): typed.parse(name, Any, value) for name, _, value in pairs}
    found = record.get(FLAGS, dict, found)
    if not plan.code or plan.trust_code:
        with contextlib.suppress(ImportError, ValueError):
            _, found, _ = _flags(plan, record)
            defaults = _defaults(plan.environment)
    return {
        name: value
        for name, value in found.items()
        if name not in WITHOUT_EFFECT and not (name in defaults and _same(value, defaults[name]))
    }


def _config(
    presets: Any, assignments: tuple[str, ...], record: json_files.Record
) -> tuple[Any, list[str]]:
    """Returns the recorded configuration, what the plan says upon it, and notes."""
    today = settings.apply(presets, assignments)
    if CONFIG not in record:
        return today, []
    values = {name: value for name, _, value in settings.fields(today)}
    hints = {name: hint for name, hint, _ in settings.fields(today)}
    nested = json_files.leaves(record.get(CONFIG, dict), values.keys())
    saved = {name: value for name, value in nested if name in values or value != {}}
    found = _read(f"{record.file}: {CONFIG}", hints, saved, values)
    config = settings.apply(settings.replace(today, found), assignments)
    now = {name: value for name, _, value in settings.fields(config)}
    return config, _notes(saved, now, values)


def _flags(
    plan: plans.Plan, record: json_files.Record
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Returns what the constructor is handed, all flags that JSON can hold, and notes."""
    known = environments.parameters(plan.environment)
    hints = {name: parameter.hint for name, parameter in known.items()}
    typed_ = settings.read(
        hints, plan.environment_flags, noun="flag", where=f"{plan.environment}: "
    )
    today = environments.complete(plan.environment, {**_usual(known), **typed_})
    if FLAGS not in record:
        return typed_, today, []
    saved = record.get(FLAGS, dict)
    said = {name: today[name] for name in typed_ if name in today and typed_[name] is not None}
    found = {**_read(f"{record.file}: {FLAGS}", hints, saved, today), **said}
    changed = {name: value for name, value in found.items() if not _same(value, today[name])}
    return {**typed_, **changed}, found, _notes(saved, found, today)


def _defaults(environment: str) -> dict[str, Any]:
    return environments.complete(environment, _usual(environments.parameters(environment)))


def _usual(known: Mapping[str, environments.Parameter]) -> dict[str, Any]:
    """Returns the defaults that JSON can hold."""
    return {
        name: parameter.default
        for name, parameter in known.items()
        if parameter.default is not inspect.Parameter.empty and _is_json(parameter.default)
    }


def _read(
    where: str, hints: Mapping[str, Any], saved: Mapping[str, Any], today: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns values by name: the saved ones, checked, and today's where there is none."""
    return {
        name: typed.check(f"{where}.{name}", hints[name], saved[name])
        if name in saved and not _same(saved[name], value)
        else value
        for name, value in today.items()
    }


def _notes(
    saved: Mapping[str, Any], found: Mapping[str, Any], today: Mapping[str, Any]
) -> list[str]:
    """Returns a line for each way in which a record, what holds, and today's values differ."""
    notes = []
    new = {name: value for name, value in found.items() if name not in saved}
    if new:
        notes.append(f"the run began before there was {_said(new)}: this is today's default")
    unknown = {name: value for name, value in saved.items() if name not in today}
    if unknown:
        notes.append(f"this version does not know {_said(unknown)} of the run's record")
    changed = [name for name in found if not _same(found[name], today[name])]
    if changed:
        notes.append(
            f"the run goes on with {_said({name: found[name] for name in changed})}, as it began; "
            f"today's presets have {_said({name: today[name] for name in changed})}"
        )
    overruled = [n for n in found if n in saved and not _same(found[n], saved[n])]
    if overruled:
        notes.append(
            f"the run's plan says {_said({name: found[name] for name in overruled})}, which holds; "
            f"its record has {_said({name: saved[name] for name in overruled})}"
        )
    return notes


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same to JSON, which has lists for tuples."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _said(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
