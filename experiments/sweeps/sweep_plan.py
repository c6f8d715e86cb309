"""Configurations that a sweep's file asks for, checked and named.

    agents x environments x arms x seeds x every field that is given a list of values

`configurations` returns that product; `check` builds each of them, so that a sweep of days does not
end at a misspelt field. `sweep_runs.py` then compares them with the runs on disk.
"""

import dataclasses
import functools
import itertools
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kullback.core import experience, typed, types
from kullback.experiments import toml_files
from kullback.experiments.runs import kinds, plans, resolved, run_folder, simulators

SECTIONS = ("plan", "settings", "environment_flags", "model_flags")
GIVEN_ABOVE = ("agent", "environment", "family", "seed", "num_seeds", "trust_code", *SECTIONS)
PLAN_FIELDS = {
    name: hint
    for name, hint in typing.get_type_hints(plans.Plan).items()
    if name not in GIVEN_ABOVE and name in {field.name for field in dataclasses.fields(plans.Plan)}
}
TOP = (
    *("out", "agents", "environments", "seeds", "steps", "threads", "runs_per_gpu"),
    *("agent", "environment", "arm"),
)
# Limits of one file, all of whose configurations are built before the first one runs.
MOST_CONFIGURATIONS = 10_000
MOST_SEEDS = 10_000
MOST_RUNS = 100_000  # Configurations times seeds.
NAME_BYTES = (
    200  # The longest name of a folder; file systems take 255, and the seeds are added to it.
)


class Configuration(NamedTuple):
    """One point of the product, for all its seeds."""

    name: str  # Agent, environment and the fields that vary: "dqn-toy-chain,learning_rate=0.001".
    fields: dict[str, Any]  # Fields of `plans.Plan`, without the seeds.
    seeds: tuple[int, ...]  # Ascending.

    def plan(self, seeds: Sequence[int]) -> plans.Plan:
        """Returns the plan of a run of consecutive seeds.

        Raises:
          ValueError: with the configuration's name, for fields that do not fit.
        """
        try:
            return plans.Plan(**self.fields, seed=seeds[0], num_seeds=len(seeds))
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from error


class Checked(NamedTuple):
    """A configuration that can be built."""

    configuration: Configuration  # Its epochs, if it has any, are steps.
    seeds_together: bool  # Whether its seeds share one program.


def configurations(sweep: Mapping[str, Any]) -> list[Configuration]:
    """Returns all configurations that a sweep's file asks for, in its order.

    Args:
      sweep: the contents of the file. `agents` and `environments` are lists of names, `seeds` a
        number or a list. The tables `plan`, `settings`, `environment_flags` and `model_flags` hold
        fields; a list of values is an axis of the grid, and a list within it one value ("64,64").
        Such tables under `agent.NAME` or `environment.NAME` are for that one alone, and win. Those
        under `arm.NAME` win over all: each arm is a point of one more axis, an ablation say.

    Raises:
      ValueError: for what is unknown, missing, given twice, or of another type.
    """
    toml_files.check_known("key", sweep, (*TOP, *SECTIONS))
    agents, environments = (_names(sweep, key) for key in ("agents", "environments"))
    for kind, listed in (("agent", agents), ("environment", environments)):
        toml_files.check_known(kind, toml_files.table(sweep, kind), listed)
        for name, table in toml_files.table(sweep, kind).items():
            toml_files.check_known(
                f"key of {kind}.{name}", toml_files.mapping(f"{kind}.{name}", table), SECTIONS
            )
    arms = toml_files.table(sweep, "arm") or {"": {}}
    for name, table in arms.items():
        toml_files.check_known(
            f"key of arm.{name}", toml_files.mapping(f"arm.{name}", table), SECTIONS
        )
    seeds = _seeds(sweep.get("seeds", 1))
    base = {section: toml_files.table(sweep, section) for section in SECTIONS}
    if "steps" in sweep:
        if "steps" in base["plan"]:
            raise ValueError("steps is given twice: at the top and in [plan]")
        base["plan"] = {"steps": sweep["steps"], **base["plan"]}
    grids = {}
    for agent, environment, arm in itertools.product(agents, environments, arms):
        for_agent = toml_files.table(sweep, "agent").get(agent, {})
        for_environment = toml_files.table(sweep, "environment").get(environment, {})
        grids[agent, environment, arm] = {
            name: {
                **fields,
                **toml_files.table(for_agent, name),
                **toml_files.table(for_environment, name),
                **toml_files.table(arms[arm], name),
            }
            for name, fields in base.items()
        }
    _check_size(grids.values(), len(seeds))
    by_name: dict[str, Configuration] = {}
    for (agent, environment, arm), tables in grids.items():
        for configuration in _grid(agent, environment, arm, tables, seeds):
            if configuration.name in by_name:
                raise ValueError(f"{configuration.name} is asked for twice")
            by_name[configuration.name] = configuration
    return list(by_name.values())


def _check_size(grids: Iterable[Mapping[str, Mapping[str, Any]]], num_seeds: int) -> None:
    """Raises ValueError for a product beyond the limits, before any of it is made."""
    count = sum(
        math.prod(
            len(value) if isinstance(value, list) else 1
            for table in tables.values()
            for value in table.values()
        )
        for tables in grids
    )
    for noun, number, most in (
        ("configurations", count, MOST_CONFIGURATIONS),
        ("configurations times seeds", count * num_seeds, MOST_RUNS),
    ):
        if number > most:
            raise ValueError(
                f"the file asks for {number:,} {noun}, and a sweep has at most {most:,}: give "
                "shorter or fewer lists, or several files"
            )


def check(configuration: Configuration) -> Checked:
    """Builds a configuration.

    Raises:
      ValueError: if no run could be started with it; the message begins with its name.
    """
    plan = configuration.plan(configuration.seeds[:1])
    try:
        named = resolved.resolve(plan)
        if plan.kind != "games":
            recipe = kinds.Recipe(named=named)
            with recipe.built() as work:
                steps = recipe.in_steps(work, quiet=True).named.plan.steps
                return Checked(_in_steps(configuration, steps), work.seeds_together)
        spec, seeds_together = _environment_facts(plan.environment, plan.environment_flags)
        kind = named.make_agent(spec).experience
        experience.learning_begins(kind, plan.num_envs, is_compiled=seeds_together)
        return Checked(configuration, seeds_together)
    except (ValueError, TypeError) as error:  # The latter for a flag's value.
        raise ValueError(f"{configuration.name}: {error}") from error


def in_steps_without_code(configuration: Configuration) -> Configuration:
    """Returns a configuration with its epochs in steps, built without the reward that it names.

    A reward has no say in how many steps an epoch has.

    Raises:
      ValueError: as of `check`.
    """
    harmless = {**configuration.fields, "reward": "length"}
    steps = check(configuration._replace(fields=harmless)).configuration.fields["steps"]
    return _in_steps(configuration, steps)


def _in_steps(configuration: Configuration, steps: int) -> Configuration:
    fields = {name: value for name, value in configuration.fields.items() if name != "epochs"}
    return configuration._replace(fields={**fields, "steps": steps})


@functools.cache
def _environment_facts(environment: str, flags: tuple[str, ...]) -> tuple[types.Spec, bool]:
    """Returns an environment's spec, and whether one program runs all seeds in it."""
    plan = plans.Plan(agent=plans.CUSTOM, environment=environment, environment_flags=flags)
    with simulators.closing(resolved.resolve(plan).make_environment(1)) as simulator:
        return simulator.environment.spec, simulator.seeds_together


def _grid(
    agent: str,
    environment: str,
    arm: str,
    tables: Mapping[str, Mapping[str, Any]],
    seeds: tuple[int, ...],
) -> Iterable[Configuration]:
    toml_files.check_known("field of [plan]", tables["plan"], PLAN_FIELDS)
    axes = [
        [(section, key, value) for value in _values(f"{section}.{key}", given)]
        for section in SECTIONS
        for key, given in tables[section].items()
    ]
    varied = {axis[0][1] for axis in axes if len(axis) > 1}
    for point in itertools.product(*axes):
        fields: dict[str, Any] = {"agent": agent, "environment": environment}
        name = run_folder.slug(f"{agent}-{environment}{',' if arm else ''}{arm}")
        for section, key, value in point:
            text = _text(value)
            if section == "plan":
                fields[key] = _plan_value(key, value)
            else:
                fields[section] = (*fields.get(section, ()), f"{key}={text}")
            if key in varied:
                name += run_folder.slug(f",{key}={text}")
        if len(name.encode()) > NAME_BYTES:
            raise ValueError(f"{name} is too long for a folder: give shorter or fewer lists")
        yield Configuration(name, fields, seeds)


def _plan_value(key: str, value: Any) -> Any:
    hint = PLAN_FIELDS[key]
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 5e6 is a number of steps.
    return typed.parse(key, hint, _text(value))


def _values(key: str, given: Any) -> list[Any]:
    values = given if isinstance(given, list) else [given]
    for value in values:
        flat = value if isinstance(value, list) else [value]
        if not flat or not all(isinstance(item, str | int | float) for item in flat):
            raise ValueError(f"{key} must be a number, a text, true or false, got {value!r}")
    if not values:
        raise ValueError(f"{key} is an empty list; expected at least one value")
    return values


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _seeds(given: Any) -> tuple[int, ...]:
    count = len(given) if isinstance(given, list) else given
    if type(count) is int and count > MOST_SEEDS:
        raise ValueError(f"seeds asks for {count:,}, and a sweep has at most {MOST_SEEDS:,}")
    seeds: Any = list(range(given)) if type(given) is int else given
    is_list = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not is_list or not seeds:
        raise ValueError(f"seeds must be a number >= 1 or a list of seeds >= 0, got {given!r}")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must differ, got {given!r}")
    return tuple(sorted(seeds))


def _names(sweep: Mapping[str, Any], key: str) -> list[str]:
    given = sweep.get(key)
    if not isinstance(given, list) or not given or not all(isinstance(n, str) for n in given):
        raise ValueError(f"{key} must be a list of names, got {given!r}; see kullback list")
    if len(set(given)) < len(given):
        raise ValueError(f"{key} has a name twice: {', '.join(given)}")
    return given
