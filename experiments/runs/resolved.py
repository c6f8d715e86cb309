"""Every setting of a run's agent and flag of its environment, resolved.

A plan has only what a user has chosen; the rest comes from the presets and defaults of the day when
the run began. So config.json keeps the resolved values, by which the run goes on, is evaluated and
is compared with others. `resolve` is the only way from a plan to them.
"""

import contextlib
import dataclasses
import inspect
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kullback import agents, environments, lm
from kullback.core import files, json_files, typed, types
from kullback.environments.checked import AnyEnvironment
from kullback.experiments.runs import mends, opened, plans, run_folder, schedules, settings
from kullback.lm import splits, tasks

CONFIG, FLAGS, BY_SIZE = "config", "environment_flags", "by_size"  # Keys of config.json.
# Settings, by bare name, that came after the first version, whose default is what it did.
LATER = frozenset(
    "schedule decay_steps final_fraction optimizer weight_decay first_moment_dtype unusable "
    "quantize quantize_table max_gradient_norm epsilon_decay epsilon_zero_env_steps "
    "frames_on variant overlong_fraction mask_truncated epochs minibatches ratio detach_ratio "
    "clip_low clip_high ratio_limit correction correction_limit drop_equal oversample "
    "value_clip share_prompts lag shards chunk_ticks learns_projector".split()
)
# Settings, by bare name, that came later with another default, and what was done before.
EARLIER: Mapping[str, Any] = {"averaged_actions": "taken", "widths": "powers"}
LATER_GROUPS = ("lora",)  # Groups of settings of which the same is true.
WITHOUT_EFFECT = ("num_threads",)  # Flags of environments that change no number of a run.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """A plan with the configuration and the flags that its names stand for."""

    plan: plans.Plan
    config: Any  # The agent's or algorithm's; None if that was handed over in Python.
    # Arguments of the environment's constructor that differ from its own defaults.
    given: Mapping[str, Any]
    # All of its flags that JSON can hold, by name; {} if it was handed over in Python, or of texts.
    flags: Mapping[str, Any]
    rule: int  # The rule by which a file of texts is split and read, see lm/splits.py.
    # Lines for the user: defaults of the model's size, and for one who resumes the run, differences
    # between its record and this version.
    notes: tuple[str, ...] = ()
    # Settings of `config` by dotted name whose default depends on the model's size, see
    # learning_rates.py.
    by_size: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def make_agent(self, spec: types.Spec) -> types.Agent:
        """Returns the agent for an environment."""
        return agents.AGENTS[self.plan.agent].make(None, spec, self.config)

    def make_environment(self, num_envs: int) -> AnyEnvironment:
        """Makes the environment of training, with `num_envs` rows."""
        self.plan.require_trust()
        return environments.make(self.plan.environment, num_envs, **self.given)

    def make_eval_environment(self, num_envs: int) -> AnyEnvironment:
        """Makes the environment of evaluation, whose episodes are whole games on Atari.

        In training an episode may be a life (`protocol=classic`, `life_loss=true`).
        """
        self.plan.require_trust()
        whole = {"life_loss": False} if self.plan.environment.startswith("atari/") else {}
        return environments.make(self.plan.environment, num_envs, **{**self.given, **whole})

    def to_json(self) -> dict[str, Any]:
        """Returns the keys of config.json for the flags and the version of the computation."""
        by_size = {BY_SIZE: dict(self.by_size)} if self.by_size else {}
        return {FLAGS: dict(self.flags), mends.KEY: len(mends.MENDS), **by_size}

    def facts(self) -> dict[str, Any]:
        """Returns values of all settings and flags by dotted name, to compare runs by."""
        leaves = () if self.config is None else settings.fields(self.config)
        kept = {k: v for k, v in self.flags.items() if k not in WITHOUT_EFFECT}
        data_rule = {"data.rule": self.rule} if tasks.names_path(self.plan.environment) else {}
        return {
            **{name: value for name, _, value in leaves},
            **{f"{FLAGS}.{name}": value for name, value in kept.items()},
            **data_rule,
        }


def of(run: opened.Opened, *, with_environment: bool = True) -> Resolved:
    """Resolves the plan of a run on disk; for arguments and errors see `resolve`."""
    file = run.path / run_folder.CONFIG
    return resolve(run.plan, run.config, file=file, with_environment=with_environment)


def resolve(
    plan: plans.Plan,
    recorded: Mapping[str, Any] | None = None,
    *,
    file: files.Path = run_folder.CONFIG,
    with_environment: bool = True,
) -> Resolved:
    """Resolves a plan: its own values win, then those of the record, then today's presets.

    Args:
      plan: of the run.
      recorded: its config.json; None for a new run. Settings that it lacks are as today, those that
        this version does not know are ignored, and the notes name both.
      file: the path of `recorded`, for messages.
      with_environment: whether to resolve the environment that the plan names.

    Raises:
      ValueError: for settings and flags that are unknown or of a wrong type, given or recorded;
        for code that is not trusted.
    """
    record = json_files.Record(str(file), (), recorded or {})
    notes: list[str] = []
    config: Any = None
    if plan.agent != plans.CUSTOM:
        entry = {**agents.AGENTS, **lm.ALGORITHMS}[plan.agent]
        needed = [f"{name}={value}" for name, value in tasks.lengths(plan.environment).items()]
        presets = settings.apply(entry.presets(plan.family), needed)
        config, notes = _config(presets, plan, record)
        notes += schedules.notes(plan, config)
    given, flags = {}, {}
    if with_environment and plan.kind == "games" and plan.environment != plans.CUSTOM:
        plan.require_trust(file)
        given, flags, more = _flags(plan, record)
        notes += more
    rule = splits.RULE
    if recorded is not None:
        rule = splits.rule_of(recorded)
        notes += _rule_notes(plan, rule)
        notes += mends.since(plan, recorded)
    return Resolved(
        plan=plan, config=config, given=given, flags=flags, rule=rule, notes=tuple(notes)
    )


def _rule_notes(plan: plans.Plan, rule: int) -> Iterator[str]:
    """Yields notes on a run that began with the first rule for files of texts."""
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
    """Returns the flags of a run's environment that differ from today's defaults.

    For an environment that is not installed here, or whose code is not trusted, they are all that
    are recorded, or else given.
    """
    record, defaults = json_files.Record(str(file), (), recorded), {}
    pairs = (flag.partition("=") for flag in plan.environment_flags)
    given = {name.strip(): typed.parse(name, Any, value) for name, _, value in pairs}
    flags = record.get(FLAGS, dict, given)
    if not plan.code or plan.trust_code:
        with contextlib.suppress(ImportError, ValueError):
            _, flags, _ = _flags(plan, record)
            known = environments.parameters(plan.environment)
            defaults = environments.complete(plan.environment, _defaults(known))
    return {
        name: value
        for name, value in flags.items()
        if name not in WITHOUT_EFFECT and not (name in defaults and _same(value, defaults[name]))
    }


def _config(presets: Any, plan: plans.Plan, record: json_files.Record) -> tuple[Any, list[str]]:
    """Returns the recorded configuration, changed as the plan says, and notes."""
    assignments = plan.settings
    today = schedules.planned(plan, settings.apply(presets, assignments))
    if CONFIG not in record:
        return today, []
    hints = {name: hint for name, hint, _ in settings.fields(today)}
    values = {name: value for name, _, value in settings.fields(today)}
    of_size = {k: v for k, v in record.get(BY_SIZE, dict, {}).items() if k in values}
    values = _read(f"{record.file}: {BY_SIZE}", hints, of_size, values)
    nested = json_files.leaves(record.get(CONFIG, dict), values.keys())
    earlier = {name: EARLIER[_bare(name)] for name in values if _bare(name) in EARLIER}
    saved = earlier | {name: value for name, value in nested if name in values or value != {}}
    recorded = _read(f"{record.file}: {CONFIG}", hints, saved, values)
    # The record has what a named row gave when the run began.
    given = settings.read(hints, assignments)
    config = settings.replace(settings.replace(today, recorded), given)
    now = {name: value for name, _, value in settings.fields(config)}
    return config, _notes(saved, now, values)


def _flags(
    plan: plans.Plan, record: json_files.Record
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Returns the constructor's arguments, all flags that JSON can hold, and notes."""
    known = environments.parameters(plan.environment)
    hints = {name: parameter.hint for name, parameter in known.items()}
    assignments, notes = [*plan.environment_flags], []
    if record.values and FLAGS not in record:
        assignments, notes = _as_they_counted(hints, assignments)
    given = settings.read(hints, assignments, noun="flag", where=f"{plan.environment}: ")
    today = environments.complete(plan.environment, {**_defaults(known), **given})
    if FLAGS not in record:
        return given, today, notes
    saved = record.get(FLAGS, dict)
    chosen = {name: today[name] for name in given if name in today and given[name] is not None}
    flags = {**_read(f"{record.file}: {FLAGS}", hints, saved, today), **chosen}
    changed = {name: value for name, value in flags.items() if not _same(value, today[name])}
    return {**given, **changed}, flags, _notes(saved, flags, today)


def _as_they_counted(
    hints: Mapping[str, Any], assignments: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Returns an old run's flags as they counted when it began, and notes.

    Version 0.1 took any value for a boolean: a number other than 0, or any text, was true.
    """
    counted, notes = [], []
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        hint = hints.get(name.strip())
        if bool in (hint, *typing.get_args(hint)) and not typed.is_of(hint, text):
            is_zero = typed.is_number(text) and float(text) == 0
            value = not is_zero and text.lower() not in ("", "none")
            notes.append(
                f"{assignment} counted as {str(value).lower()} when the run began, and does so "
                "still; a new run takes true or false"
            )
            assignment = f"{name}={value}"
        counted.append(assignment)
    return counted, notes


def _defaults(known: Mapping[str, environments.Parameter]) -> dict[str, Any]:
    """Returns the defaults that JSON can hold."""
    return {
        name: parameter.default
        for name, parameter in known.items()
        if parameter.default is not inspect.Parameter.empty and _is_json(parameter.default)
    }


def _read(
    where: str, hints: Mapping[str, Any], saved: Mapping[str, Any], today: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns values by name: the saved value, checked, or else today's."""
    return {
        name: typed.check(f"{where}.{name}", hints[name], saved[name])
        if name in saved and not _same(saved[name], value)
        else value
        for name, value in today.items()
    }


def _notes(
    saved: Mapping[str, Any], used: Mapping[str, Any], today: Mapping[str, Any]
) -> list[str]:
    """Returns lines on differences between saved values, those that are used, and today's."""
    notes = []
    new = [name for name in used if name not in saved and not _is_later(name)]
    if new:
        notes.append(
            f"the run began before there was {settings.shown(used, new)}: this is today's default"
        )
    unknown = [name for name in saved if name not in today]
    if unknown:
        notes.append(
            f"this version does not know {settings.shown(saved, unknown)} of the run's record"
        )
    # A longer plan does not change the length of a schedule: it has a note of its own.
    changed = [
        name
        for name in used
        if not _same(used[name], today[name]) and _bare(name) != schedules.LENGTH
    ]
    if changed:
        notes.append(
            f"the run goes on with {settings.shown(used, changed)}, as it began; today's presets "
            f"have {settings.shown(today, changed)}"
        )
    overruled = [name for name in used if name in saved and not _same(used[name], saved[name])]
    if overruled:
        notes.append(
            f"the run's plan says {settings.shown(used, overruled)}, which holds; its record has "
            f"{settings.shown(saved, overruled)}"
        )
    return notes


def _is_later(name: str) -> bool:
    groups = name.split(".")[:-1]
    return _bare(name) in LATER or any(group in groups for group in LATER_GROUPS)


def _bare(name: str) -> str:
    return name.rpartition(".")[2]


def _same(one: Any, other: Any) -> bool:
    """Returns whether two values are the same in JSON, which has lists for tuples."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
