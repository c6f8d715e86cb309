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
from collections.abc import Callable, Iterator

import numpy as np

from kullback.experiments import statistics
from kullback.experiments.reproductions import (
    charts,
    curves,
    reward_letters,
    reward_toy,
    study,
    warm_pictures,
)
from kullback.experiments.reproductions.warm_pictures import KINDS, LABELS, MODELS, climbs, values
from kullback.lm import best_of_n

KL = 20.0  # Nats, at which climbs are compared, if all of them go so far.
CHANCE = 0.6  # Accuracy below which an average is near chance, 1/2.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Seeds, and the sizes of both worlds."""

    seeds: int = 3  # Of letters.
    toy_seeds: int = 5  # Of points, which take less time.
    toy: reward_toy.Sizes = reward_toy.SIZES
    letters: reward_letters.Sizes = reward_letters.SIZES

    def __post_init__(self) -> None:
        study.at_least(1, self, "seeds", "toy_seeds")

    @property
    def toy_steps(self) -> int:
        """Steps of points: twenty of a perceptron take the time of a decoder's."""
        sizes = self.toy
        of_members = sizes.members * (sizes.steps + sizes.climbed_steps) + 2 * sizes.steps
        return -(-(sizes.pretraining_steps + of_members + (sizes.members + 4) * sizes.climbs) // 20)

    @property
    def model_steps(self) -> int:
        """Steps of the letters' reward models with one share of wrong labels."""
        return self.letters.members * self.letters.steps

    @property
    def policy_steps(self) -> int:
        """Steps of the policies that climb these."""
        return (self.letters.singles + 3) * self.letters.policy_steps


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields points, then letters: models by share of wrong labels, and policies; by seed."""
    for seed in range(config.toy_seeds):
        columns = {"world": "toy", "seed": seed}
        run = functools.partial(reward_toy.compare, config.toy, seed)
        yield study.Arm(f"toy-{seed}", config.toy_steps, run, columns=columns)
    letters = reward_letters.make(config.letters)
    for seed in range(config.seeds):
        columns = {"world": "letters", "seed": seed}
        for share in config.letters.corruptions:
            run = functools.partial(reward_letters.rank, letters, share, seed)
            part = f"letters-models-{share:g}-{seed}"
            yield study.Arm(part, config.model_steps, run, columns=columns)
        run = functools.partial(reward_letters.move, letters, seed)
        yield study.Arm(f"letters-policies-{seed}", config.policy_steps, run, columns=columns)


def tables(config: Config, rows: study.Rows) -> study.Tables:
    """Returns the tables of both worlds, which bear its name."""
    by_table: dict[str, study.Rows] = {}
    for row in rows:
        kept = {name: value for name, value in row.items() if name not in ("world", "table")}
        by_table.setdefault(f"{row['world']}_{row['table']}", []).append(kept)
    return by_table


def claims(config: Config, tables: study.Tables) -> Iterator[study.Check]:
    """Judges the paper's statements in both worlds, then yields figures that are not judged."""
    half = functools.partial(study.column, tables["toy_path"], pairs="near", share=0.5)
    gaps = half("weights") - half("mean_accuracy")
    yield from claims_of_models("toy", config.toy.corruption, tables["toy_accuracies"], gaps)
    average, one = (values(tables["toy_apart"], model, "near") for model in ("average", "single"))
    yield study.above(
        f"toy: without pre-training in common half-way between two members is near chance, "
        f"below {CHANCE:g} (by how much below)",
        CHANCE - average,
    )
    yield study.reported(
        "toy: without it, accuracy half-way between two members less their mean one",
        f"{statistics.t_interval(average - one)}, of {statistics.t_interval(one)}",
    )
    yield from claims_of_climbs("toy", tables["toy_climbs"])
    ways = climbs(tables["toy_climbs"], "average", "average-held-back")
    yield study.above(
        f"toy: with {config.toy.climb_kl:g} of reward a nat the climb ends at a lower KL (nats "
        "less)",
        ways["average"].kl[:, -1] - ways["average-held-back"].kl[:, -1],
    )
    most = max(config.letters.corruptions)
    rows = study.where(tables["letters_accuracies"], corruption=most)
    halfway = study.column(tables["letters_halfway"], "gap", corruption=most)
    yield from claims_of_models("letters", most, rows, halfway)
    yield from claims_of_climbs("letters", tables["letters_climbs"])
    yield from reports(config, tables)


def claims_of_models(
    world: str, corruption: float, rows: study.Rows, halfway: study.Numbers
) -> Iterator[study.Check]:
    """Judges what averages remember and how they rank; `halfway` is accuracy less the ends'."""

    def more(kind: str, one: str, other: str) -> np.ndarray:
        return values(rows, one, kind) - values(rows, other, kind)

    if corruption:
        yield study.above(
            f"{world}: of {corruption:.0%} wrong labels the average in weights remembers fewer "
            "than the ensemble (share of them, less)",
            more("corrupted", "ensemble", "average"),
            0.02,
        )
    fewer = f"{world}: of the right labels it remembers fewer too"
    yield study.above(fewer, more("clean", "ensemble", "average"))
    yield study.above(
        f"{world}: it ranks held-out pairs from elsewhere no more than 0.01 worse (accuracy more "
        "than the ensemble's)",
        more("far", "average", "ensemble"),
        -0.01,
    )
    better = f"{world}: and better than members do (accuracy more than their mean)"
    yield study.above(better, more("far", "average", "single"))
    yield study.above(
        f"{world}: half-way between two members accuracy is not below their mean by more than 0.01 "
        "(held-out pairs, difference)",
        halfway,
        -0.01,
    )


def claims_of_climbs(world: str, rows: study.Rows) -> Iterator[study.Check]:
    """Judges whether gold falls where a proxy is climbed, and later on averages."""
    ways = climbs(rows, *MODELS)
    kl, proxy, gold = (np.array(x) for x in zip(*ways.values(), strict=True))  # [names, seeds, n]
    falls = np.mean(gold.max(2) - gold[:, :, -1])
    at = np.minimum(KL, kl.max(2).min(0))  # [seeds]
    ends = dict.fromkeys(f"{x:.3g}" for x in (at.min(), at.max()))

    def gained(value: Callable[[np.ndarray, np.ndarray, float], float]) -> np.ndarray:
        """Returns what the average in weights has more than the mean member, [seeds]."""
        of = {
            name: np.array([value(*x) for x in zip(way.kl, way.gold, at, strict=True)])
            for name, way in ways.items()
        }
        singles = [x for name, x in of.items() if name.startswith("single")]
        return of["average"] - np.mean(singles, 0)

    yield study.every(
        f"{world}: what is climbed rises from each record to the next, for each proxy",
        [bool(np.all(np.diff(of_seed) > 0)) for of_seed in proxy.swapaxes(0, 1)],
        f"{len(ways)} proxies",
    )
    yield study.every(
        f"{world}: gold peaks on the way, before the end, for each proxy",
        [bool(np.all((x > 0) & (x < gold.shape[2] - 1))) for x in gold.argmax(2).T],
        f"falls after the peak by {falls:.3g} on average",
    )
    yield study.above(
        f"{world}: the peak of gold is higher with the average in weights than with members "
        "(difference of means)",
        gained(lambda kl, gold, at: gold.max()),
    )
    yield study.above(
        f"{world}: at {' to '.join(ends)} nats gold is higher than with members "
        "(difference of means)",
        gained(curves.value_at),
    )


def reports(config: Config, tables: study.Tables) -> Iterator[study.Check]:
    """Yields figures that are not judged."""

    def means(by_model: dict[str, np.ndarray]) -> str:
        return study.means({LABELS.get(name, "the start"): x for name, x in by_model.items()})

    accuracies = {("toy", config.toy.corruption): tables["toy_accuracies"]} | {
        ("letters", share): study.where(tables["letters_accuracies"], corruption=share)
        for share in config.letters.corruptions
    }
    for world in ("toy", "letters"):
        for (of, share), rows in accuracies.items():
            for kind, what in KINDS.items():
                if of == world and (share or kind != "corrupted"):
                    by_model = {model: values(rows, model, kind) for model in MODELS}
                    claim = f"{world}, {share:.1%} wrong: accuracy, {what}"
                    yield study.reported(claim, means(by_model))
        rows = tables[f"{world}_best_of"]
        most = max(study.distinct(rows, "n"))
        last, away = study.where(rows, n=most), f"{best_of_n.kl_bound(most):.3g} nats away"
        best = {model: values(last, model, "gold", "reward") for model in (*MODELS, "gold")}
        yield study.reported(f"{world}: gold of the best of {most}, at most {away}", means(best))
        peaks: dict[str, np.ndarray] = {}
        for model in MODELS:
            ways = climbs(tables[f"{world}_climbs"], model).values()
            peaks[model] = np.mean([way.gold.max(1) for way in ways], 0)
        yield study.reported(f"{world}: peak of gold of policy gradients", means(peaks))
    wins = study.where(tables["letters_wins"], policy="average")
    others = ("start", "single", "ensemble", "gold")
    yield study.reported(
        "letters: share of texts, at the end and by gold, by which the policy of the mean of "
        "weights beats that of",
        means({model: values(wins, model, "win_rate", "against") for model in others}),
    )


def seconds(config: Config) -> float:
    """Estimates compiling, and steps by their size."""
    sizes = config.letters
    models = len(sizes.corruptions) * (8 + config.model_steps * 0.006 * sizes.batch_size / 32)
    policies = config.policy_steps * 0.03 * sizes.policy_batch / 128
    toy = config.toy_seeds * config.toy_steps * 0.015
    return 60 + toy + config.seeds * (models + policies)


def figures(config: Config, tables: study.Tables) -> dict[str, charts.Grid]:
    """Returns what models make of pairs, and what becomes of gold."""
    shares = config.toy.corruption, config.letters.corruptions
    models = warm_pictures.models(tables, *shares)
    return {"reward_models": models, "climbs": warm_pictures.ways(tables, 2 * KL)}


STUDY = study.Study(
    claim="The average of reward models' weights remembers fewer wrong labels than the mean of "
    "their predictions, ranks as well, and holds out longer where a policy climbs it.",
    source="Rame et al. 2024, arXiv:2401.12187",
    config=Config(),
    arms=arms,
    tables=tables,
    claims=claims,
    figures=figures,
    seconds=seconds,
)
