"""`kullback reproduce real-alignment`: RLOO, GRPO, J-BOND and WARP of a real model, on sums.

The published Gemma 3 270M learns sums of numbers of three digits until it answers about half of
them, drawn at temperature 1. From there policies learn by a reward that is known exactly and
continuous, 1 / (1 + |answer - sum|): by policy gradients with leave-one-out baselines (RLOO,
Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740), by groups (GRPO, Shao et al. 2024,
https://arxiv.org/abs/2402.03300), by comparisons (J-BOND, Sessa et al. 2024,
https://arxiv.org/abs/2407.14622), and by two policies whose weights are averaged (WARP, Rame et al.
2024, https://arxiv.org/abs/2406.16768). All write as many texts to learn from, J-BOND's anchor
among them, and all learn adapters of one A, which averages need (lm/lora.py), at one learning rate.

The start is one, and seeds draw batches and texts. No learning rate was chosen for any of them
here, so that which one wins is said for this rate, these few steps and sums. With a GPU:

    kullback reproduce real-alignment --set steps=1000 --set batch_size=192 --set seeds=10 \
        --set prompts=1000
"""

import csv
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from kullback.core import ranges
from kullback.experiments.pipelines import measures
from kullback.experiments.reproductions import (
    charts,
    judging,
    real_models,
    real_sums,
    study,
)

START, RLOO, GRPO, BOND, WARP = "start", "RLOO", "GRPO", "J-BOND", "WARP"
SHARED = "the start"
MEMBERS = 2  # Of WARP.
GROUP = 12  # A multiple of RLOO's four texts of a prompt and J-BOND's three.
# Columns of the table, and what they are.
COLUMNS = {
    "reward": "reward",
    "gold": "sums that are right at temperature 1",
    "kl_start": "KL to the start, nats of a text",
    "tokens": "tokens of an answer",
}


class Algorithm(NamedTuple):
    """An algorithm of `kullback train`, and its own settings."""

    agent: str
    settings: Mapping[str, Any] = {}
    prefix: str = ""  # Of the settings that all have.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Seeds and sizes."""

    model: str = real_models.PUBLISHED
    seeds: int = 3
    first_seed: int = 100
    digits: int = 3
    rank: int = 16  # Of adapters.
    start_steps: int = 60  # Of a stage of supervised learning.
    start_share: float = 0.4  # Of sums that are right at temperature 1, at which it ends;
    most_share: float = 0.6  # beyond this the start is no longer the one that was asked for.
    most_stages: int = 12
    steps: int = 40  # Of reinforcement learning; WARP's members have half each.
    batch_size: int = 48  # Texts of a step.
    start_rate: float = 2e-4
    learning_rate: float = 5e-5
    kl_coefficient: float = 0.05  # beta of policy gradients.
    prompts: int = 200  # Held-out sums, two texts each.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds", "digits", "rank", "start_steps", "most_stages", "steps")
        ranges.at_least(1, self, "batch_size", "prompts")
        ranges.at_least(0, self, "first_seed")
        ranges.inside("(0, inf)", self, "start_rate", "learning_rate")
        ranges.inside("[0, inf)", self, "kl_coefficient")
        ranges.inside("[0, 1]", self, "start_share", "most_share")
        ranges.multiples(GROUP, self, "batch_size")
        ranges.multiples(MEMBERS, self, "steps")

    @property
    def algorithms(self) -> dict[str, Algorithm]:
        """The algorithms that are compared."""
        penalty = {"kl_coefficient": self.kl_coefficient}
        members = {"members": MEMBERS, "member_steps": self.steps // MEMBERS}
        of_member = {f"member.{name}": value for name, value in penalty.items()}
        return {
            RLOO: Algorithm("rlhf", {"variant": "rloo", **penalty}),
            GRPO: Algorithm("rlhf", {"variant": "grpo", **penalty}),
            BOND: Algorithm("bond"),
            WARP: Algorithm("warp", {**members, **of_member}, "member.learning."),
        }


def start_chain(config: Config, of_task: str, journal: study.Journal) -> real_models.Chain:
    """Returns the stages by which the start learns."""
    given = config.model, config.start_steps, config.start_rate
    settings = {"lora.rank": config.rank}
    return real_sums.chain(config, of_task, START, journal, *given, **settings)


def stage(config: Config, name: str, of_task: str, start: str, seed: int) -> dict[str, Any]:
    """Returns the stage by which a policy learns from rewards."""
    algorithm = config.algorithms[name]
    member_steps = config.steps // (MEMBERS if name == WARP else 1)
    common = {
        **real_sums.lengths(config.digits),
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "warmup_steps": real_models.warmup(member_steps),
        "lora.rank": config.rank,
        "lora.shared_a": True,
    }
    shared = {f"{algorithm.prefix}{key}": value for key, value in common.items()}
    begin = algorithm.agent, of_task, start, config.steps, seed
    settings = {**shared, **algorithm.settings}
    return real_models.train(*begin, reward=real_sums.REWARD, settings=settings)


def begin(config: Config, journal: study.Journal) -> Iterator[study.Row]:
    """Yields how many stages the start took, and its measures."""
    of_task = real_sums.task(config.digits, journal)
    chain = start_chain(config, of_task, journal)
    count, share = real_sums.until(chain, config, of_task, config.start_share, greedy=False)
    path = chain.last(count)
    measured = measure(config, of_task, path, path)
    yield {"table": "policies", "arm": START, "seed": None, **measured}
    yield {"table": "start", "stages": count, "share": share}


def align(config: Config, name: str, seed: int, journal: study.Journal) -> Iterator[study.Row]:
    """Yields the measures of a policy, and WARP's front."""
    of_task = real_sums.task(config.digits, journal)
    (of_start,) = study.where(journal.kept(START), table="start")
    start = start_chain(config, of_task, journal).last(of_start["stages"])
    given = stage(config, name, of_task, str(start), seed)
    path = real_models.run({"policy": given}, scratch(name, seed), journal)["policy"]
    took = {"seconds": real_models.seconds(path)}
    policy = path / f"merged-{config.steps:06d}" if name == WARP else path
    measured = measure(config, of_task, policy, start)
    yield {"table": "policies", "arm": name, "seed": seed, **measured, **took}
    if name == WARP:
        with (path / "front.csv").open(newline="") as lines:
            for row in csv.DictReader(lines):
                point = {column: float(row[column]) for column in ("eta", "reward", "kl_start")}
                yield {"table": "front", "seed": seed, **point}


def measure(
    config: Config, of_task: str, path: pathlib.Path, start: pathlib.Path
) -> dict[str, float]:
    """Returns the columns of COLUMNS of a policy, means over held-out sums."""
    lengths = real_sums.lengths(config.digits)
    settings = measures.Settings(
        task=of_task,
        reward=real_sums.REWARD,
        gold=real_sums.EXACT,
        episodes=config.prompts,
        samples=2,
        max_prompt_length=lengths["max_prompt_length"],
        max_new_tokens=lengths["max_new_tokens"],
    )
    subject, before = (measures.subject(x, settings) for x in (path, start))
    assert subject is not None and before is not None
    columns = measures.measure(subject, before.checkpoint, settings).columns
    return {name: float(np.mean(columns[name])) for name in COLUMNS}


def scratch(name: str, seed: int) -> str:
    """Returns the name of an arm's folder."""
    return f"{name.lower()}-{seed}"


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields the start, and policies by seed."""
    yield real_models.base(config.model)
    yield study.Arm(START, 10 + config.start_steps, functools.partial(begin, config))
    for seed in study.seeds_of(config):
        for name in config.algorithms:
            compute, where = functools.partial(align, config, name, seed), scratch(name, seed)
            yield study.Arm(where, 10 + config.steps, compute, scratch=where)


def tables(config: Config, rows: study.Rows) -> study.Tables:
    """Returns base and start, policies with the same columns each, and WARP's front."""
    del config
    by_table = study.split(rows, "base", "start", "policies", "front")
    policies = study.even(by_table["policies"], "arm", "seed", *COLUMNS, "seconds")
    return {**by_table, "policies": policies}


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges rewards of policies beside RLOO's, and above the start's; reports the rest."""
    (start,), rows = tables["start"], tables["policies"]
    yield real_models.reported_base(tables)
    share = float(start["share"])
    said = f"{share:.3f} of sums at temperature 1 after {start['stages']} stages"
    outside = "" if share <= config.most_share else f", more than {config.most_share:g}"
    yield judging.reported("start", said + outside)
    of = functools.partial(study.column, rows, "reward")
    before = of(arm=START)[0]
    for name in config.algorithms:
        claim = f"{name}: more reward than the start (difference)"
        yield judging.above(claim, of(arm=name) - before, shared=SHARED)
    for name in config.algorithms:
        if name != RLOO:
            claim = f"{name}: more reward than RLOO by as many texts (difference)"
            more = of(arm=name) - of(arm=RLOO)
            yield judging.headline(judging.above(claim, more, shared=SHARED))
    for column, what in COLUMNS.items():
        named = {name: study.column(rows, column, arm=name) for name in config.algorithms}
        yield judging.reported(what, judging.means(named))
    took = {name: study.column(rows, "seconds", arm=name) for name in config.algorithms}
    yield judging.reported("seconds of learning, its start included", judging.means(took))


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns reward over KL: policies, a dot a seed, and WARP's front."""
    rows, front = tables["policies"], tables["front"]
    (before,) = study.where(rows, arm=START)
    marks: list[charts.Mark] = []
    for number, name in enumerate(config.algorithms):
        kl, reward = (study.column(rows, column, arm=name) for column in ("kl_start", "reward"))
        style = {"color": f"C{number}", "marker": "o", "ls": ""}
        marks.append(charts.Line(kl, reward, name, style))
        if name == WARP:
            x, y = (study.by_seed(front, column) for column in ("kl_start", "reward"))
            marks.append(charts.Seeds(x, y, "WARP's front", {"color": f"C{number}"}))
    at = [before["kl_start"]], [before["reward"]]
    marks.append(charts.Line(*at, START, {"color": "k", "marker": "s", "ls": ""}))
    axes = {"xlabel": "KL to the start, nats of a text", "ylabel": "reward"}
    return charts.Grid(panels=[charts.Panel(marks=marks, axes=axes)], width=6)


def seconds(config: Config) -> float:
    """Estimates steps by their tokens, three stages of the start, and measures."""
    runs = config.seeds * len(config.algorithms)
    learning = 3 * config.start_steps + 2.5 * runs * config.steps
    return real_sums.tokens(config) * 0.012 * learning + (runs + 4) * (60 + 0.6 * config.prompts)


def before(config: Config) -> Iterator[str]:
    """Yields memory, and what can be shown."""
    shape = real_models.require(config.model)
    yield real_models.memory(shape, 3, real_sums.tokens(config))
    yield real_models.power(config.seeds, "seeds")


STUDY = study.Study(
    claim="Of policies of a real model that learn sums by an exact reward from as many texts, "
    "those of comparisons, of groups or of averaged weights have more reward than RLOO's.",
    source="Sessa et al. 2024, arXiv:2407.14622; Rame et al. 2024, arXiv:2406.16768",
    config=Config(),
    arms=arms,
    tables=tables,
    claims=claims,
    figures=lambda config, tables: {"real-alignment": panels(config, tables)},
    seconds=seconds,
    before=before,
)
