"""`kullback reproduce warm`: reward models whose weights are averaged, against wrong labels.

Rame et al., "WARM: On the Benefits of Weight Averaged Reward Models", ICML 2024,
https://arxiv.org/abs/2401.12187. Members start from one pre-trained network with one linear-probed
head and are tuned their own ways on preferences of which a share is wrong. Their average in weights
is compared with the mean of their predictions (the ensemble) and with them: how many wrong labels
each remembers, how it ranks new pairs, and what becomes of a known gold reward where a policy
climbs it, by best of N and by policy gradients.

There are two worlds: responses that are points, with a perceptron ("toy", reward_toy.py), and texts
of letters with a small decoder ("letters", reward_letters.py). Where the paper has PaLM models and
summaries, gold here is a function that is known. A member is compared by the mean over members: a
lucky one, with the least learning rate, may be better than any average here.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from kullback.experiments import reproduce, statistics
from kullback.experiments.reproductions import (
    curves,
    reward_letters,
    reward_toy,
    study,
    warm_pictures,
)
from kullback.experiments.reproductions.warm_pictures import (
    KINDS,
    WORDS,
    climb,
    climbed,
    peaks,
    seeds_of,
    values,
)
from kullback.lm import best_of_n

TOY = reward_toy.Sizes()
LETTERS = reward_letters.Sizes()
KL = 20.0  # Nats, at which climbs are compared, if all of them go so far.
CHANCE = 0.6  # Accuracy below which an average is near chance, 1/2.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Seeds, and the sizes of both worlds."""

    seeds: int = 3  # Of letters.
    toy_seeds: int = 5  # Of points, which take less time.
    toy: reward_toy.Sizes = TOY
    letters: reward_letters.Sizes = LETTERS

    def __post_init__(self) -> None:
        for name in ("seeds", "toy_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


def run(config: Config, work: reproduce.Work) -> reproduce.Found:
    """Both worlds, all seeds."""
    tables: dict[str, reproduce.Rows] = {}
    for seed in range(config.toy_seeds):
        compute = functools.partial(toy, config.toy, seed)
        _sort(tables, work.part(f"toy-{seed}", _toy_steps(config.toy), compute), "toy", seed)
    lab = reward_letters.make(config.letters)
    data = functools.cache(functools.partial(reward_letters.data, lab))
    models = functools.cache(
        lambda seed, share: reward_letters.population(lab, data(seed), share, seed)
    )
    most = max(config.letters.corruptions)
    for seed in range(config.seeds):
        for share in config.letters.corruptions:

            def rank(seed: int = seed, share: float = share) -> reproduce.Rows:
                found, own = data(seed), models(seed, share)
                gap = reward_letters.connected(lab, found, own)
                rows = [_of("halfway", corruption=share, gap=gap)]
                ranked = reward_letters.ranked(lab, found, own)
                return rows + [_of("accuracies", corruption=share, **row) for row in ranked]

            name = f"letters-models-{share:g}-{seed}"
            _sort(tables, work.part(name, _model_steps(config.letters), rank), "letters", seed)

        def move(seed: int = seed) -> reproduce.Rows:
            members = models(seed, most).members
            best = reward_letters.best_of(lab, members, seed)
            climbs, wins = reward_letters.climbs(lab, members, seed, work)
            named = {"best_of": best, "climbs": climbs, "wins": wins}
            return [_of(name, **row) for name, rows in named.items() for row in rows]

        part = work.part(f"letters-policies-{seed}", _policy_steps(config.letters), move)
        _sort(tables, part, "letters", seed)
    figures = {
        "reward_models": warm_pictures.draw_models(
            tables, config.toy.corruption, config.letters.corruptions
        ),
        "climbs": warm_pictures.draw_climbs(tables, 2 * KL),
    }
    return reproduce.Found(tables, figures, judge(config, tables))


def toy(sizes: reward_toy.Sizes, seed: int) -> reproduce.Rows:
    """Everything of points, with one seed."""
    gold_key, net_key = jax.random.split(jax.random.key(seed))
    plain, bent = (reward_toy.draw_gold(gold_key, c) for c in (0.0, sizes.penalty))
    backbone = reward_toy.pretrain(sizes, plain, net_key)

    found = reward_toy.data(sizes, plain, seed)
    starts = [reward_toy.probed(backbone, found)]
    members = reward_toy.tune(sizes, starts, found, seed, sizes.steps, sizes.members)
    rows = [_of("accuracies", **row) for row in reward_toy.ranked(found, members)]
    of_start = reward_toy.accuracies(found, functools.partial(reward_toy.margins, starts[0]))
    rows.append(_of("accuracies", model="linear-probe", **of_start))
    rows += [_of("path", **row) for row in reward_toy.connected(found, members)]
    apart = [reward_toy.MODEL.init(key) for key in jax.random.split(net_key)]
    others = reward_toy.tune(sizes, apart, found, seed, sizes.steps, 2)
    for row in reward_toy.ranked(found, others):
        rows.append(_of("apart", **row))

    found = reward_toy.data(sizes, bent, seed)
    starts = [reward_toy.probed(backbone, found)]
    members = reward_toy.tune(sizes, starts, found, seed, sizes.climbed_steps, sizes.members)
    rows += [_of("climbs", **row) for row in reward_toy.climbs(sizes, bent, members, seed)]
    return rows + [_of("best_of", **row) for row in reward_toy.best_of(sizes, bent, members, seed)]


def _of(table: str, **row: Any) -> dict[str, Any]:
    return {"table": table, **row}


def _sort(tables: dict[str, reproduce.Rows], rows: reproduce.Rows, world: str, seed: int) -> None:
    """Adds rows of a part to the tables that they name."""
    for row in rows:
        columns = {name: value for name, value in row.items() if name != "table"}
        tables.setdefault(f"{world}_{row['table']}", []).append({"seed": seed, **columns})


def judge(config: Config, tables: dict[str, reproduce.Rows]) -> list[reproduce.Check]:
    """The paper's statements, in both worlds."""
    most = max(config.letters.corruptions)
    of_letters = [r for r in tables["letters_accuracies"] if r["corruption"] == most]
    halfway = [r["gap"] for r in tables["letters_halfway"] if r["corruption"] == most]
    path = [r for r in tables["toy_path"] if r["pairs"] == "near" and r["share"] == 0.5]
    gaps = [r["weights"] - r["mean_accuracy"] for r in path]
    checks = judge_models("toy", config.toy.corruption, tables["toy_accuracies"], gaps)
    average = values(tables["toy_apart"], "model", "average", "near")
    one = values(tables["toy_apart"], "model", "single", "near")
    checks += [
        study.above(
            f"toy: without pre-training in common half-way between two members is near chance, "
            f"below {CHANCE:g} (by how much below)",
            CHANCE - average,
        ),
        reproduce.Check(
            "toy: without it, accuracy half-way between two members less their mean one",
            None,
            f"{statistics.t_interval(average - one)}, of {statistics.t_interval(one)}",
        ),
    ]
    checks += judge_climbs("toy", tables["toy_climbs"])
    kept, free = (_ends(tables["toy_climbs"], name) for name in ("average-held-back", "average"))
    checks.append(
        study.above(
            f"toy: with {config.toy.climb_kl:g} of reward a nat the climb ends at a lower KL (nats "
            "less)",
            free - kept,
        )
    )
    checks += judge_models("letters", most, of_letters, halfway)
    checks += judge_climbs("letters", tables["letters_climbs"])
    return checks + report(config, tables)


def judge_models(
    world: str, corruption: float, rows: reproduce.Rows, halfway: Sequence[float]
) -> list[reproduce.Check]:
    """What averages remember and how they rank; `halfway` is accuracy less that of the ends."""
    of = functools.partial(values, rows, "model")

    def against(kind: str, one: str, other: str) -> np.ndarray:
        return of(one, kind) - of(other, kind)

    checks: list[reproduce.Check] = []
    if corruption:
        checks.append(
            study.above(
                f"{world}: of {corruption:.0%} wrong labels the average in weights remembers fewer "
                "than the ensemble (share of them, less)",
                against("corrupted", "ensemble", "average"),
                0.02,
            )
        )
    return [
        *checks,
        study.above(
            f"{world}: of the right labels it remembers fewer too",
            against("clean", "ensemble", "average"),
        ),
        study.above(
            f"{world}: it ranks held-out pairs from elsewhere no more than 0.01 worse (accuracy "
            "more than the ensemble's)",
            against("far", "average", "ensemble"),
            -0.01,
        ),
        study.above(
            f"{world}: and better than members do (accuracy more than their mean)",
            against("far", "average", "single"),
        ),
        study.above(
            f"{world}: half-way between two members accuracy is not below their mean by more than "
            "0.01 (held-out pairs, difference)",
            halfway,
            -0.01,
        ),
    ]


def judge_climbs(world: str, rows: reproduce.Rows) -> list[reproduce.Check]:
    """Whether gold falls where a proxy is climbed, and later on averages."""
    names, seeds = climbed(rows, "single", "ensemble", "average"), seeds_of(rows)
    found = {(n, s): climb(rows, s, n) for n in names for s in seeds}
    rises = [all(np.all(np.diff(found[n, s]["proxy"]) > 0) for n in names) for s in seeds]
    turns = [
        all(0 < np.argmax(found[n, s]["gold"]) < len(found[n, s]["gold"]) - 1 for n in names)
        for s in seeds
    ]
    falls = [max(found[n, s]["gold"]) - found[n, s]["gold"][-1] for n in names for s in seeds]
    at = [min(KL, *(max(found[n, s]["kl"]) for n in names)) for s in seeds]

    ends = dict.fromkeys(f"{x:.3g}" for x in (min(at), max(at)))

    def gained(value: Callable[[dict[str, np.ndarray], float], float]) -> np.ndarray:
        """What the average in weights has more than the mean member, [seeds]."""
        own = [
            value(found["average", s], at[s])
            - np.mean([value(found[n, s], at[s]) for n in names if n.startswith("single")])
            for s in seeds
        ]
        return np.array(own)

    return [
        study.every(
            f"{world}: what is climbed rises from each record to the next, for each proxy",
            rises,
            f"{len(names)} proxies",
        ),
        study.every(
            f"{world}: gold peaks on the way, before the end, for each proxy",
            turns,
            f"falls after the peak by {np.mean(falls):.3g} on average",
        ),
        study.above(
            f"{world}: the peak of gold is higher with the average in weights than with members "
            "(difference of means)",
            gained(lambda climb, at: max(climb["gold"])),
        ),
        study.above(
            f"{world}: at {' to '.join(ends)} nats gold is higher than with members "
            "(difference of means)",
            gained(lambda climb, at: curves.value_at(climb["kl"], climb["gold"], at)),
        ),
    ]


def report(config: Config, tables: dict[str, reproduce.Rows]) -> list[reproduce.Check]:
    """Figures that are not judged."""
    checks: list[reproduce.Check] = []

    def say(claim: str, parts: dict[str, np.ndarray]) -> None:
        said = ", ".join(f"{name} {statistics.t_interval(x)}" for name, x in parts.items())
        checks.append(reproduce.Check(claim, None, said))

    for world, shares in (("toy", [None]), ("letters", config.letters.corruptions)):
        for share in shares:
            own = [r for r in tables[f"{world}_accuracies"] if share in (None, r.get("corruption"))]
            corruption = config.toy.corruption if share is None else share
            for kind, what in KINDS.items():
                if corruption or kind != "corrupted":
                    parts = {
                        WORDS[model]: values(own, "model", model, kind)
                        for model in ("single", "ensemble", "average")
                    }
                    say(f"{world}, {corruption:.1%} wrong: accuracy, {what}", parts)
        rows = tables[f"{world}_best_of"]
        most = max(row["n"] for row in rows)
        last = [row for row in rows if row["n"] == most]
        bound = best_of_n.kl_bound(most)
        own = ("single", "ensemble", "average", "gold")
        parts = {WORDS[model]: values(last, "reward", model, "gold") for model in own}
        say(f"{world}: gold of the best of {most}, at most {bound:.3g} nats away", parts)
        rows = tables[f"{world}_climbs"]
        parts = {WORDS[model]: peaks(rows, model) for model in ("single", "ensemble", "average")}
        say(f"{world}: peak of gold of policy gradients", parts)
    wins = [row for row in tables["letters_wins"] if row["policy"] == "average"]
    say(
        "letters: share of texts, at the end and by gold, by which the policy of the mean of "
        "weights beats that of",
        {
            WORDS.get(other, "the start"): values(wins, "against", other, "win_rate")
            for other in ("start", "single", "ensemble", "gold")
        },
    )
    return checks


def _ends(rows: reproduce.Rows, name: str) -> np.ndarray:
    return np.array([climb(rows, seed, name)["kl"][-1] for seed in seeds_of(rows)])


def _toy_steps(sizes: reward_toy.Sizes) -> int:
    """Twenty of a perceptron take the time of a decoder's."""
    of_members = sizes.members * (sizes.steps + sizes.climbed_steps) + 2 * sizes.steps
    found = sizes.pretraining_steps + of_members + (sizes.members + 4) * sizes.climbs
    return -(-found // 20)


def _model_steps(sizes: reward_letters.Sizes) -> int:
    return sizes.members * sizes.steps


def _policy_steps(sizes: reward_letters.Sizes) -> int:
    return (sizes.singles + 3) * sizes.policy_steps


def steps(config: Config) -> int:
    """Learner steps of all models, in those of a decoder."""
    own = config.letters
    of_letters = len(own.corruptions) * _model_steps(own) + _policy_steps(own)
    return config.toy_seeds * _toy_steps(config.toy) + config.seeds * of_letters


def seconds(config: Config) -> float:
    """On two cores: compiling, and steps by their size."""
    own = config.letters
    models = len(own.corruptions) * (8 + _model_steps(own) * 0.006 * own.batch_size / 32)
    policies = _policy_steps(own) * 0.03 * own.policy_batch / 128
    return (
        60 + config.toy_seeds * _toy_steps(config.toy) * 0.015 + config.seeds * (models + policies)
    )


REPRODUCTION = reproduce.Reproduction(
    claim="The average of reward models' weights remembers fewer wrong labels than the mean of "
    "their predictions, ranks as well, and holds out longer where a policy climbs it.",
    source="Rame et al. 2024, arXiv:2401.12187",
    config=Config(),
    steps=steps,
    seconds=seconds,
    run=run,
)
