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

The headlines are that the average ranks new pairs better than its members do, and that a policy
which climbs it reaches more gold than one that climbs a member.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np

from kullback.core import ranges
from kullback.experiments.reproductions import (
    charts,
    curves,
    effects,
    judging,
    reward_letters,
    reward_toy,
    study,
    warm_pictures,
)
from kullback.experiments.reproductions.warm_pictures import KINDS, LABELS, MODELS, climbs, values
from kullback.lm import best_of_n

KL = 20.0  # Nats, at which climbs are compared, if all of them go so far.
SHARED = "pre-training, pairs and members"  # Of reward models with one seed.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Seeds, and the sizes of both worlds."""

    seeds: int = 3  # Of letters.
    toy_seeds: int = 20  # Of points, which take less time.
    first_seed: int = 100  # Of both; lower ones have chosen settings, and are not judged.
    toy: reward_toy.Sizes = reward_toy.SIZES
    letters: reward_letters.Sizes = reward_letters.SIZES

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds", "toy_seeds")
        ranges.at_least(0, self, "first_seed")

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
    first = config.first_seed
    for seed in range(first, first + config.toy_seeds):
        columns = {"world": "toy", "seed": seed}
        run = functools.partial(reward_toy.compare, config.toy, seed)
        yield study.Arm(f"toy-{seed}", config.toy_steps, run, columns=columns)
    letters = reward_letters.make(config.letters)
    for seed in study.seeds_of(config):
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


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges the paper's statements in both worlds, then yields figures that are not judged."""
    half = functools.partial(study.column, tables["toy_path"], pairs="near", share=0.5)
    gaps = half("weights") - half("mean_accuracy")
    yield from claims_of_models("toy", config.toy.corruption, tables["toy_accuracies"], gaps)
    average, one = (values(tables["toy_apart"], model, "near") for model in ("average", "single"))
    yield judging.above(
        "toy: without pre-training in common half-way between two members is worse than these "
        "(their mean accuracy less that)",
        one - average,
        shared=SHARED,
    )
    yield from claims_of_climbs("toy", tables["toy_climbs"])
    ways = climbs(tables["toy_climbs"], "average", "average-held-back")
    yield judging.reported(
        f"toy: with {config.toy.climb_kl:g} of reward a nat the climb ends at a lower KL (nats "
        "less)",
        judging.mean(ways["average"].kl[:, -1] - ways["average-held-back"].kl[:, -1]),
    )
    most = max(config.letters.corruptions)
    rows = study.where(tables["letters_accuracies"], corruption=most)
    halfway = study.column(tables["letters_halfway"], "gap", corruption=most)
    yield from claims_of_models("letters", most, rows, halfway)
    if len(config.letters.corruptions) > 1:
        yield dose(tables["letters_accuracies"])
    yield from claims_of_climbs("letters", tables["letters_climbs"])
    yield from reports(config, tables)


def claims_of_models(
    world: str, corruption: float, rows: study.Rows, halfway: effects.Numbers
) -> Iterator[judging.Check]:
    """Judges what averages remember and how they rank; `halfway` is accuracy less the ends'."""

    def more(kind: str, one: str, other: str) -> np.ndarray:
        return values(rows, one, kind) - values(rows, other, kind)

    if corruption:
        yield judging.above(
            f"{world}: of {corruption:.0%} wrong labels the average in weights remembers fewer "
            "than the ensemble (share of them, less)",
            more("corrupted", "ensemble", "average"),
            0.02,
            shared=SHARED,
        )
    fewer = f"{world}: of the right labels it remembers fewer too"
    yield judging.above(fewer, more("clean", "ensemble", "average"), shared=SHARED)
    yield judging.above(
        f"{world}: it ranks held-out pairs from elsewhere no more than 0.01 worse (accuracy more "
        "than the ensemble's)",
        more("far", "average", "ensemble"),
        -0.01,
        shared=SHARED,
    )
    better = f"{world}: and better than members do (accuracy more than their mean)"
    yield judging.headline(judging.above(better, more("far", "average", "single"), shared=SHARED))
    yield judging.above(
        f"{world}: half-way between two members accuracy is not below their mean by more than 0.01 "
        "(held-out pairs, difference)",
        halfway,
        -0.01,
        shared=SHARED,
    )


def claims_of_climbs(world: str, rows: study.Rows) -> Iterator[judging.Check]:
    """Judges whether gold falls where a proxy is climbed, and later on averages."""
    ways = climbs(rows, *MODELS)
    kl, proxy, gold = (np.array(x) for x in zip(*ways.values(), strict=True))  # [names, seeds, n]
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

    yield judging.reported(
        f"{world}: what is climbed rises (from start to end, mean over proxies)",
        judging.mean((proxy[:, :, -1] - proxy[:, :, 0]).mean(0)),
    )
    if gold.shape[1] > 1:
        yield judging.above(
            f"{world}: gold falls again, from where its mean over the other seeds peaks to the end "
            "(mean over proxies)",
            np.mean([falls(of_proxy) for of_proxy in gold], 0),
        )
    peak = of_what_gold_gains(
        f"{world}: the peak of gold is higher with the average in weights than with members "
        "(difference of means, of what gold itself gains)",
        gained(lambda kl, gold, at: gold.max()),
        gains(climbs(rows, "gold")["gold"].gold),
    )
    yield judging.headline(peak)
    yield judging.above(
        f"{world}: at {' to '.join(ends)} nats gold is higher than with members "
        "(difference of means)",
        gained(curves.value_at),
        shared=SHARED,
    )


def falls(gold: np.ndarray) -> np.ndarray:
    """Returns what is lost after the peak of the mean over the other seeds, [seeds].

    The peak of a seed's own curve, [seeds, n], would be above its end by noise alone.
    """
    others = [np.delete(gold, seed, 0).mean(0).argmax() for seed in range(len(gold))]
    return gold[np.arange(len(gold)), others] - gold[:, -1]


def gains(gold: np.ndarray) -> np.ndarray:
    """Returns how far gold rises, [seeds], from the start of a curve to its peak, [seeds, n]."""
    return gold.max(1) - gold[:, 0]


def of_what_gold_gains(claim: str, values: np.ndarray, gained: np.ndarray) -> judging.Check:
    """Judges whether shares of what gold itself gains lie above 0, [seeds] each."""
    if np.min(gained) <= 0:
        evidence = "gold itself gains nothing for a seed, and there is no share of it"
        return judging.Check(claim, "undecided", evidence, num_seeds=len(values))
    return judging.above(claim, values / gained, shared=SHARED)


def dose(rows: study.Rows) -> judging.Check:
    """Judges whether the average gains on the ensemble with the share of wrong labels."""
    shares = sorted(study.distinct(rows, "corruption"))
    more = [
        values(of_share, "average", "far") - values(of_share, "ensemble", "far")
        for of_share in (study.where(rows, corruption=share) for share in shares)
    ]
    claim = "letters: the more labels are wrong, the more the average gains on the ensemble "
    claim += "(accuracy, held-out pairs from elsewhere, for all labels in place of none)"
    return judging.above(claim, effects.slopes(shares, np.stack(more, 1)), shared=SHARED)


def reports(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Yields figures that are not judged."""

    def means(by_model: dict[str, np.ndarray]) -> str:
        return judging.means({LABELS.get(name, "the start"): x for name, x in by_model.items()})

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
                    yield judging.reported(claim, means(by_model))
        rows = tables[f"{world}_best_of"]
        most = max(study.distinct(rows, "n"))
        last, away = study.where(rows, n=most), f"{best_of_n.kl_bound(most):.3g} nats away"
        best = {model: values(last, model, "gold", "reward") for model in (*MODELS, "gold")}
        yield judging.reported(f"{world}: gold of the best of {most}, at most {away}", means(best))
        peaks: dict[str, np.ndarray] = {}
        for model in MODELS:
            ways = climbs(tables[f"{world}_climbs"], model).values()
            peaks[model] = np.mean([way.gold.max(1) for way in ways], 0)
        yield judging.reported(f"{world}: peak of gold of policy gradients", means(peaks))
    wins = study.where(tables["letters_wins"], policy="average")
    others = ("start", "single", "ensemble", "gold")
    yield judging.reported(
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
