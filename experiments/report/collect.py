"""Runs on disk as columns of numbers: found, checked to be comparable, named by what they are."""

import dataclasses
import itertools
import logging
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kullback.core import json_files, typed
from kullback.experiments.runs import inputs, opened, plans, record, resolved, run_folder
from kullback.experiments.sweeps import sweeping

logger = logging.getLogger(__name__)


class Traits(NamedTuple):
    """Facts of a family of environments."""

    title: str  # The name as it is written in text.
    is_aggregated: bool = False  # Whether games have one protocol, and one score over all of them.
    has_human_scores: bool = False  # Whether scores of humans are published, of most games.
    has_texts: bool = False  # Whether it is of language models.


TRAITS = {
    "atari": Traits("Atari", is_aggregated=True, has_human_scores=True),
    "minatar": Traits("MinAtar", is_aggregated=True),
    "gym": Traits("Gymnasium"),
    "tokens": Traits("Language models", has_texts=True),
}
# Fields of a plan that do not tell agents apart. An agent of games has its settings in the
# configuration; for language models the plan's other fields (model, teacher, ...) count.
NO_SETTINGS = (
    *("agent", "environment", "family", "environment_flags", "settings", "seed", "num_seeds"),
    *("steps", "num_envs", "eval_every", "eval_episodes", "log_every", "checkpoint_every", "mesh"),
)
SPELLED = 3  # Most settings that a label spells out; with more it is numbered.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run's folder, read."""

    folder: pathlib.Path
    plan: plans.Plan
    config: Mapping[str, Any]  # The fields of config.json.
    rows: Sequence[Mapping[str, str]]  # Rows of metrics.csv, of all seeds.
    diverged: Mapping[int, str]  # Message by seed; the seeds of one program diverge together.
    changed: tuple[str, ...] = ()  # Files that have changed since a checkpoint was saved.

    @property
    def settings(self) -> dict[str, str]:
        """Settings that tell agents apart: the whole configuration, and the number of rows."""
        plan = self.plan.to_json()
        names = set(plan) - set(NO_SETTINGS) if self.plan.kind != "games" else {"num_envs"}
        chosen = {name: plan[name] for name in plan if name in names}
        if "model_flags" in chosen:  # By value: 256 is 256.0.
            pairs = (flag.partition("=") for flag in sorted(chosen["model_flags"]))
            chosen["model_flags"] = [f"{k}={typed.parse(k, Any, value)}" for k, _, value in pairs]
        return {**dict(_flat(self.config.get("config", {}))), **dict(_flat(chosen))}

    @property
    def seeds(self) -> range:
        """Seeds that it was started with."""
        return self.plan.seeds

    @property
    def frames_per_step(self) -> int:
        """Frames of its environment in an agent step; 1 where nothing is said of it."""
        return int(self.config.get("spec", {}).get("frames_per_step", 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One seed of a run."""

    label: str  # The agent, with the settings that tell it from others of its name.
    seed: int
    run: Run
    steps: np.ndarray  # int64 [T], increasing: agent steps, of language models learner steps.
    columns: Mapping[str, np.ndarray]  # float64 [T] each; NaN where there is nothing.

    @property
    def environment(self) -> str:
        """Its name, family/game."""
        return self.run.plan.environment

    @property
    def last(self) -> int:
        """Steps done."""
        return int(self.steps[-1])


class Missing(NamedTuple):
    """The seeds that one agent has, and lacks, on one environment."""

    label: str
    environment: str
    present: tuple[int, ...]
    missing: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """The runs on one family of environments."""

    name: str
    series: tuple[Series, ...]
    runs: Mapping[str, tuple[Run, ...]]  # By label; runs without rows are included.
    seeds: tuple[Missing, ...]  # A row a label and environment.

    @property
    def traits(self) -> Traits:
        """Facts of all its environments."""
        return traits_of(self.name)

    @property
    def labels(self) -> tuple[str, ...]:
        """Agents, in alphabetical order; their colours follow it."""
        return tuple(sorted(self.runs))

    @property
    def all_runs(self) -> tuple[Run, ...]:
        """Runs of all agents."""
        return tuple(itertools.chain.from_iterable(self.runs.values()))

    @property
    def environments(self) -> tuple[str, ...]:
        """Names, in alphabetical order."""
        return tuple(sorted({run.plan.environment for run in self.all_runs}))


def traits_of(family: str) -> Traits:
    """Returns the facts of a family, known or not."""
    return TRAITS.get(family, Traits(family))


def families(paths: Iterable[pathlib.Path]) -> list[Family]:
    """Loads all runs at or under the paths, by family.

    Raises:
      ValueError: if a path holds no run; if runs that would be compared have other protocols; if
        two runs are of the same agent, settings, environment and seed.
    """
    folders = list(dict.fromkeys(folder for path in paths for folder in find(path)))
    runs = [load(folder) for folder in folders]
    check_protocols(runs)
    by_family: dict[str, list[Run]] = {}
    for run in runs:
        by_family.setdefault(run.plan.environment.split("/")[0], []).append(run)
    return [_family(name, by_family[name]) for name in sorted(by_family)]


def find(path: pathlib.Path) -> list[pathlib.Path]:
    """Lists the folders of runs at or under a path, in order; a run's own folders are skipped.

    Raises:
      ValueError: if there is none.
    """
    if not path.is_dir():
        raise ValueError(f"{path} is no folder; RUNS are folders of runs, or folders of those")
    home = path.resolve()
    folders = sorted(_runs_under(home, home, set()))
    if not folders:
        raise ValueError(f"{path} holds no run: no folder there has the config.json of one")
    return folders


def _runs_under(
    path: pathlib.Path, home: pathlib.Path, seen: set[pathlib.Path]
) -> Iterator[pathlib.Path]:
    if path in seen:  # Links may lead here again.
        return
    seen.add(path)
    if run_folder.RunFolder(path).is_run():
        yield path
        return
    for child in path.iterdir():
        if not child.is_dir() or child.name.startswith("."):
            continue
        target = child.resolve()
        # A link may lead to a run elsewhere, but is not searched further: it may hold a whole disk.
        if target.is_relative_to(home) or run_folder.RunFolder(target).is_run():
            yield from _runs_under(target, home, seen)
        else:
            logger.warning("%s is a link out of %s, to %s; it is passed over", child, home, target)


def not_begun(path: pathlib.Path) -> list[str]:
    """Returns runs without a folder yet, named by the record of a sweep at or just under a path."""
    lines = []
    for file in sorted((*path.glob(sweeping.RECORD), *path.glob(f"*/{sweeping.RECORD}"))):
        for run in sweeping.recorded(file.parent).runs:
            name, planned = run.get("name", str), dict(run.record("plan").items())
            plan = plans.Plan.from_json(planned, file=f"{file}: {name}")
            if not (file.parent / name / "config.json").is_file():
                lines.append(
                    f"{name} ({plan.agent} on {plan.environment}, seeds {spans(plan.seeds)})"
                )
    return lines


def spans(numbers: Sequence[int]) -> str:
    """Writes whole numbers as ranges, "0-2 5"."""
    parts = []
    for _, pairs in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in pairs]
        first, last = members[0], members[-1]
        parts.append(str(first) if first == last else f"{first}-{last}")
    return " ".join(parts)


def load(path: pathlib.Path) -> Run:
    """Reads a run, finished or not."""
    run = opened.open(path)
    # Seeds of a host loop run in turn; the running one has rows in its own folder only.
    parts = dict.fromkeys(run.folders.values())
    rows = [row for part in parts for row in part.rows()]
    how = {seed: part.diverged() for seed, part in run.folders.items()}
    diverged = {seed: reason for seed, reason in how.items() if reason}
    changed = itertools.chain.from_iterable(_changed(run, part) for part in parts)
    return Run(
        folder=path,
        plan=run.plan,
        config=run.config,
        rows=rows,
        diverged=diverged,
        changed=tuple(changed),
    )


def _changed(run: opened.Opened, part: run_folder.RunFolder) -> list[str]:
    """Returns what of a run, or of a seed's folder in it, is not as it was saved."""
    try:
        config = run.config if part.path == run.path else part.config()
        return record.complaints(part, config, run.plan.log_every)
    except ValueError as error:
        return [str(error)]


def protocol(run: Run) -> dict[str, str]:
    """Returns the environment's flags that differ from the defaults, as texts."""
    if run.plan.kind != "games" or run.plan.environment == plans.CUSTOM:
        return {}
    flags = resolved.rules(run.plan, run.config, run.folder / run_folder.CONFIG)
    return {name: _flag_text(value) for name, value in sorted(flags.items())}


def _flag_text(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def check_protocols(runs: Sequence[Run]) -> None:
    """Raises ValueError where runs that would stand side by side played by other rules."""
    first: dict[tuple[str, str], tuple[Any, Run]] = {}
    for run in runs:
        family = run.plan.environment.split("/")[0]
        flags = protocol(run)
        scope = family if traits_of(family).is_aggregated else run.plan.environment
        for kind, where, facts in (
            ("environment flags", scope, flags),
            ("observations or actions", run.plan.environment, _spec(run)),
        ):
            expected, other = first.setdefault((kind, where), (facts, run))
            if facts != expected:
                raise ValueError(
                    f"mixed protocols on {where}: {other.folder} has {_shown(expected, kind)} and "
                    f"{run.folder} has {_shown(facts, kind)}; report them apart"
                )


def _spec(run: Run) -> dict[str, Any]:
    # Each language model has its own tokens, hence its own number of actions.
    if run.plan.kind != "games":
        return {}
    # How a network reads observations is part of the agent, not of the rules.
    return {k: v for k, v in run.config.get("spec", {}).items() if k != inputs.RULES}


def _shown(facts: Mapping[str, Any], kind: str) -> str:
    return ", ".join(f"{k}={v}" for k, v in facts.items()) or f"default {kind}"


def labels(runs: Sequence[Run]) -> list[str]:
    """Names each run of one family by its agent, and the settings in which that varies."""
    settings = [run.settings for run in runs]
    variants: dict[str, list[dict[str, str]]] = {}
    for run, own_settings in zip(runs, settings, strict=True):
        known = variants.setdefault(run.plan.agent, [])
        if own_settings not in known:
            known.append(own_settings)
    differing = {agent: varying(known) for agent, known in variants.items()}
    return [
        _label(run.plan.agent, own_settings, variants[run.plan.agent], differing[run.plan.agent])
        for run, own_settings in zip(runs, settings, strict=True)
    ]


def _label(
    agent: str,
    settings: Mapping[str, str],
    variants: Sequence[Mapping[str, str]],
    differing: Sequence[str],
) -> str:
    if len(variants) == 1:
        return agent
    if len(differing) > SPELLED:
        return f"{agent} ({variants.index(settings) + 1})"
    shown = (f"{key.split('.')[-1]}={settings.get(key, 'none')}" for key in differing)
    return " ".join((agent, *shown))


def varying(settings: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns the keys whose values differ between settings."""
    keys = dict.fromkeys(key for run in settings for key in run)
    return [key for key in keys if len({run.get(key) for run in settings}) > 1]


def _flat(value: Any) -> Iterator[tuple[str, str]]:
    """Flattens nested values into dotted names and texts."""
    for name, leaf in json_files.leaves(value):
        if isinstance(leaf, list | tuple):
            yield name, " ".join(map(str, leaf)) or "none"
        elif not isinstance(leaf, Mapping):
            yield name or "config", str(leaf) or "none"


def _family(name: str, runs: Sequence[Run]) -> Family:
    series: list[Series] = []
    by_label: dict[str, list[Run]] = {}
    for run, label in zip(runs, labels(runs), strict=True):
        by_label.setdefault(label, []).append(run)
        series.extend(_series(run, label))
    seen: dict[tuple[str, str, int], Series] = {}
    for s in series:
        other = seen.setdefault((s.label, s.environment, s.seed), s)
        if other is not s:
            raise ValueError(
                f"seed {s.seed} of {s.label} on {s.environment} is in {other.run.folder} "
                f"and in {s.run.folder}; leave one of them out"
            )
    expected = sorted({seed for run in runs for seed in run.seeds})
    seeds = []
    for label in sorted(by_label):
        for environment in sorted({run.plan.environment for run in runs}):
            present = sorted(seed for *key, seed in seen if key == [label, environment])
            missing = tuple(seed for seed in expected if seed not in present)
            seeds.append(Missing(label, environment, tuple(present), missing))
    return Family(
        name=name,
        series=tuple(series),
        runs={label: tuple(labelled) for label, labelled in by_label.items()},
        seeds=tuple(seeds),
    )


def _series(run: Run, label: str) -> Iterator[Series]:
    for seed in run.seeds:
        rows = [row for row in run.rows if int(row["seed"]) == seed]
        if rows:
            yield Series(
                label=label,
                seed=seed,
                run=run,
                steps=np.array([int(row["steps"]) for row in rows]),
                columns={
                    name: np.array([float(row[name]) for row in rows])
                    for name in rows[0]
                    if name not in ("seed", "steps")
                },
            )
