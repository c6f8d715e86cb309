"""`kullback reproduce adapters`: averages of policies that learn adapters, and their price.

WARP (Rame et al. 2024, https://arxiv.org/abs/2406.16768) averages policies of all weights; nothing
is said there of LoRA (Hu et al. 2022, https://arxiv.org/abs/2106.09685), whose updates A B have no
average in their factors. Here averages of adapters have all members share one A, which is drawn
once, has orthonormal columns and is not learnt (lm/lora.py), so that the mean of B is that of the
models. Two policies of letters (letters.py) learn by REINFORCE with a KL to their supervised start:
all weights, adapters of one A, or adapters each with an A of its own, which is learnt. Their task
vectors are averaged, by mean and spherically (SLERP), and the averages go back toward the start
(LITI): the front. Of adapters of their own A, a naive mean takes both factors apart.

What one subspace costs is judged at equal KL, by fronts, as the three ways have other rates and go
other distances in equal steps. That the mean of B is that of models holds by construction, and is
a test, not a claim. A member with an anchor that moves, as WARP's, would need one A; so the anchor
is fixed in all ways. KL is to the start, of whole texts in nats, on held-out prompts; reward lies
in [-2, 2].
"""

import dataclasses
import functools
import textwrap
from collections.abc import Iterator

import numpy as np

from kullback.core import ranges
from kullback.experiments.reproductions import adapted_policies, charts, judging, letters, study
from kullback.experiments.reproductions.adapted_policies import NAIVE

NAMES: dict[adapted_policies.Way, str] = {
    "full": "all weights",
    "shared": "adapters of one A",
    "free": "adapters of their own A",
}
MERGES = {"mean": "mean", "slerp": "spherical", NAIVE: "naive mean"}
LEAST = -0.05  # Of reward; a price that is smaller is none here.
SHARED = "the start and the prompts"  # Of arms with one seed.
LANGUAGE = letters.Sizes(letters=8, held_out=16)
POLICY = adapted_policies.Sizes()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Seeds and sizes."""

    seeds: int = 6
    first_seed: int = 200  # Lower ones have chosen rates, and are not judged.
    language: letters.Sizes = LANGUAGE
    policy: adapted_policies.Sizes = POLICY

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds")
        ranges.at_least(0, self, "first_seed")


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields each way's members and averages, by seed."""
    ways = adapted_policies.make(config.policy, config.language)
    steps = config.policy.members * config.policy.member_steps
    for seed in study.seeds_of(config):
        for policies in ways:
            compute = functools.partial(adapted_policies.compare, policies, seed)
            yield study.Arm(f"{policies.way}-{seed}", steps, compute)


def fronts(points: study.Rows, way: str, arm: str) -> np.ndarray:
    """Returns KL and reward of a front or a curve, [seeds, 2, n]."""
    of_arm = study.where(points, way=way, arm=arm)
    return np.stack([study.by_seed(of_arm, name) for name in ("kl", "reward")], 1)


def ends(points: study.Rows, way: str, arm: str, column: str = "reward") -> np.ndarray:
    """Returns what an average is worth, [seeds]."""
    return study.column(points, column, way=way, arm=arm, at=1.0)


def members(points: study.Rows, way: str, column: str = "reward") -> np.ndarray:
    """Returns the mean over members of what they are worth, [seeds]."""
    return study.by_seed(study.where(points, way=way, arm="member"), column).mean(1)


def more(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns how much more reward one front has than another at the KL where the first one ends.

    That is the KL of the one's end, or of the other's if it ends before.

    Args:
      one, other: [seeds, 2, n], whose KL rises.
    """
    at = np.minimum(one[:, 0, -1], other[:, 0, -1])
    of_one, of_other = (
        np.array([np.interp(x, *front) for x, front in zip(at, of, strict=True)])
        for of in (one, other)
    )
    return of_one - of_other


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges averages beside their members, and fronts beside each other; reports the rest."""
    points = tables["points"]
    front = functools.partial(fronts, points)
    end = functools.partial(ends, points)
    above = functools.partial(judging.above, shared=SHARED)
    beside = {way: end(way, "mean") - members(points, way) for way in NAMES}
    for way, name in NAMES.items():
        claim = f"{name}: the mean's reward is no more than 0.02 below its members' (difference)"
        yield above(claim, beside[way], -0.02)
    apart = NAMES["free"]
    claim = f"{apart}: the mean of updates has more reward than the naive mean (difference)"
    more_reward = end("free", "mean") - end("free", NAIVE)
    yield judging.headline(above(claim, more_reward))
    claim = f"{apart}: and at equal KL its front does (difference)"
    yield above(claim, more(front("free", "mean"), front("free", NAIVE)))
    claim = "the mean of adapters of one A is less below its members than the naive mean is below"
    below = end("free", NAIVE) - members(points, "free")
    yield above(f"{claim} its own (difference)", beside["shared"] - below)
    for other in ("full", "free"):
        claim = (
            f"adapters of one A: at equal KL the mean's front is no more than {-LEAST:g} of reward "
            f"below that of {NAMES[other]} (difference)"
        )
        price = more(front("shared", "mean"), front(other, "mean"))
        yield judging.headline(above(claim, price, LEAST))
    yield from reports(config, tables)


def reports(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Yields figures that are not judged."""
    points, merges = tables["points"], tables["merges"]
    for column, what in {"reward": "reward", "kl": "KL to the start, nats"}.items():
        alone = {name: members(points, way, column) for way, name in NAMES.items()}
        yield judging.reported(f"{what} of members", judging.means(alone))
        averages = {
            f"{NAMES[way]}, {MERGES[arm]}": ends(points, way, arm, column)
            for way in NAMES
            for arm in (*("mean", "slerp"), *((NAIVE,) if way == "free" else ()))
        }
        yield judging.reported(f"{what} of averages", judging.means(averages))
    cosines = {name: study.column(merges, "cosine", way=way) for way, name in NAMES.items()}
    yield judging.reported("cosine of the first two task vectors", judging.means(cosines))
    errors = {name: study.column(merges, "factors_error", way=way) for way, name in NAMES.items()}
    claim = (
        "distance of the mean of what is learnt from that of models, by the length of the latter"
    )
    yield judging.reported(claim, judging.means(errors))


def panels(points: study.Rows) -> charts.Grid:
    """Returns fronts, reward over KL, and averages beside their members; a dot is a seed."""
    marks: list[charts.Mark] = []
    for number, (way, name) in enumerate(NAMES.items()):
        for arm, dashes in {"mean": "-", NAIVE: "--"}.items():
            if arm == "mean" or way == "free":
                kl, reward = fronts(points, way, arm).swapaxes(0, 1)
                style = {"color": f"C{number}", "ls": dashes}
                label = f"{name}, {MERGES[arm]}"
                marks.append(charts.Seeds(kl, reward, label, style, {"alpha": 0.3}))
    shown: list[tuple[adapted_policies.Way, str]] = [(way, "mean") for way in NAMES]
    shown.append(("free", NAIVE))
    samples = [ends(points, way, arm) - members(points, way) for way, arm in shown]
    labels = [textwrap.fill(f"{NAMES[way]}, {MERGES[arm]}", 16) for way, arm in shown]
    beside = charts.SeedBars(range(len(shown)), samples, style={"color": "C0"})
    on_fronts = {"xlabel": "KL to the supervised start, nats of a text", "ylabel": "reward"}
    on_bars = {"ylabel": "reward above that of members", "xticks": range(len(shown))}
    return charts.Grid(
        panels=[
            charts.Panel(
                marks=marks,
                axes={"title": "From the start to the mean of two policies", **on_fronts},
                legend={"fontsize": 7},
            ),
            charts.Panel(
                marks=[beside, charts.ZERO],
                axes={"title": "Averages beside their members", **on_bars, "xticklabels": labels},
                finish=lambda axes: axes.tick_params(axis="x", labelsize=7),
                legend=None,
            ),
        ],
        width=5.4,
        title_size=10,
    )


STUDY = study.Study(
    claim="Adapters that share one A average as whole models do, at a small price in reward; "
    "averages of both factors of adapters are worth less than their members.",
    source="ours, after Rame et al. 2024, arXiv:2406.16768",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: study.split(rows, "points", "merges"),
    claims=claims,
    figures=lambda config, tables: {"adapters": panels(tables["points"])},
    # Compiling, then steps and measurements by their texts.
    seconds=lambda config: (
        90
        + config.seeds
        * 3
        * (
            config.policy.members
            * config.policy.member_steps
            * 0.02
            * config.policy.batch_size
            / 64
            + 35 * 0.05 * config.policy.samples * config.language.held_out / 256
        )
    ),
)
