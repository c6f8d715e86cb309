"""`kullback reproduce warp`: averages of weights, and what reward they buy at what distance.

Rame et al., "WARP: On the Benefits of Weight Averaged Rewarded Policies", 2024,
https://arxiv.org/abs/2406.16768. Policies of letters (letters.py), whose reward is known, learn by
REINFORCE with a KL to a fixed start, two strengths of it, or to a moving average of themselves. Two
of the latter are merged, spherically and linearly, and the merge is interpolated toward the
supervised start: the front. A second iteration starts on the way to the first merge. KL is to the
supervised start, of whole texts in nats, on held-out prompts.

There are two policies: a perceptron ("toy") and a small decoder. Where the paper has a Gemma of 7
billion parameters and thousands of steps at a rate of 1e-6, task vectors are nearly orthogonal;
here runs are short and their gradients little noisy, and their cosines are far above 0; a verdict
against the paper is one on such task vectors. The headlines are that the second iteration's front
lies above the first's at equal KL, and that the merge's front lies above the run with a moving
anchor. That a front lies above its chord, and how long half of a spherical merge is, hold by
construction: the former is reported, the latter a test of lm/warp.py. Areas are those under
straight lines between records: a run with a weak fixed anchor goes most of its way before the first
of them, and has more area than that.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from kullback.core import ranges
from kullback.experiments import statistics
from kullback.experiments.reproductions import (
    charts,
    curves,
    judging,
    letters,
    merged_policies,
    study,
)
from kullback.experiments.reproductions.merged_policies import LAMBDAS, MOVING, Sizes
from kullback.lm import rlhf, warp

POLICIES = ("toy", "decoder")
ORTHOGONAL = 0.2  # Cosines below it, of every seed, count as about 0.
NAMES = {
    "fixed-strong": "fixed anchor, strong",
    "fixed-weak": "fixed anchor, weak",
    "moving": "moving anchor, one run",
    "one-1": "that run toward the start",
    "lerp-1": "linear merge, iteration 1",
    "slerp-1": "spherical merge, iteration 1",
    "slerp-2": "spherical merge, iteration 2",
}

# Claims of areas, and the arm whose area is taken from the other's.
COMPARED = (
    ("a moving anchor above the weak fixed one", "moving", "fixed-weak"),
    ("a moving anchor above the strong fixed one", "moving", "fixed-strong"),
    ("the merge's front above the run with a moving anchor", "slerp-1", "moving"),
    ("the merge's front above one run toward the start", "slerp-1", "one-1"),
    ("the spherical front above the linear one", "slerp-1", "lerp-1"),
    ("the second iteration's front above the first's", "slerp-2", "slerp-1"),
)


SECOND = "the second iteration's front above the first's, mean at equal KL"
REWARD = "reward of the second iteration's merge, above the first's"
CLIMBED = (REWARD, "the second iteration's front above the first's, area")  # Longer runs rise.
HEADLINES = (SECOND, "the merge's front above the run with a moving anchor, area")
SHARED = "the start and the prompts"  # Of arms with one seed.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of all that is varied, and the sizes."""

    seeds: int = 3
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.
    iterations: int = 2
    strong: float = 0.1  # beta; that of the moving anchor too.
    weak: float = 0.01
    anchor_rate: float = 0.01  # mu.
    next_start: float = 0.3  # eta of the next iteration's start.
    records: int = 10  # Points of a run's curve.
    samples: int = 16  # Texts of each held-out prompt, of which rewards and KL are means.
    # Of areas: beyond this KL, nats, nothing counts. The reward that is worth nothing is the
    # supervised start's.
    reference_kl: float = 30.0
    language: letters.Sizes = letters.SIZES
    toy: Sizes = merged_policies.PERCEPTRON
    decoder: Sizes = merged_policies.DECODER

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds", "iterations", "records", "samples")
        ranges.at_least(0, self, "first_seed")
        for name in POLICIES:
            steps = self.algorithm(name).member_steps
            if steps % self.records:
                raise ValueError(
                    f"member_steps must be a multiple of records={self.records}, got {steps}"
                )
        ranges.inside("(0, inf)", self, "reference_kl")

    @property
    def betas(self) -> dict[str, float]:
        """The beta of each run with a fixed anchor."""
        return {"fixed-strong": self.strong, "fixed-weak": self.weak}

    def member(self, name: str, beta: float, reference: Any) -> rlhf.Config:
        """Returns settings of one run of REINFORCE, of the policy `name`."""
        sizes: Sizes = getattr(self, name)
        return rlhf.Config(
            samples_per_prompt=sizes.samples_per_prompt,
            kl_coefficient=beta,
            reference=reference,
            anchor_rate=self.anchor_rate,
            learning=sizes.learning(self.language),
        )

    def algorithm(self, name: str) -> warp.Config:
        """Returns settings of WARP, of two members."""
        return warp.Config(
            members=2,
            member_steps=getattr(self, name).member_steps,
            next_start=self.next_start,
            member=self.member(name, self.strong, "moving-average"),
        )


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields runs with a fixed anchor, then WARP, of each policy and seed."""
    for name in POLICIES:
        algorithm = config.algorithm(name)
        policies = merged_policies.make(
            name,
            getattr(config, name).model(config.language),
            config.language,
            {arm: config.member(name, beta, "fixed") for arm, beta in config.betas.items()},
            algorithm,
            config.samples,
        )
        for seed in study.seeds_of(config):
            given = policies, seed, config.records
            for arm in config.betas:
                run = functools.partial(merged_policies.anchored, *given, arm)
                yield study.Arm(f"{name}-{arm}-{seed}", algorithm.member_steps, run, "points")
            run = functools.partial(merged_policies.averaged, *given, config.iterations)
            steps = config.iterations * algorithm.iteration_steps
            yield study.Arm(f"{name}-warp-{seed}", steps, run)


def tables(config: Config, rows: study.Rows) -> study.Tables:
    """Returns points, merges, and the area of each curve and front."""
    by_table = study.split(rows, "points", "merges")
    return {**by_table, "areas": areas(config, by_table["points"])}


def areas(config: Config, points: study.Rows) -> study.Rows:
    """Returns the area of each curve and front, and of fronts that above their chord."""
    rows: study.Rows = []
    for policy in study.distinct(points, "policy"):
        of = {arm: curves_of(points, policy, arm) for arm in fronts(points)}
        for (n, seed), arm in itertools.product(enumerate(study.seeds_of(config)), of):
            kl, reward = of[arm][n]
            reference = config.reference_kl, float(reward[0])
            area = curves.front_area(*curves.filled(kl, reward), reference)
            row = {"policy": policy, "seed": seed, "arm": arm, "reference_kl": reference[0]}
            row |= {"reference_reward": reference[1], "area": area}
            rows.append({**row, "above_chord": curves.above_chord(kl, reward)})
    return rows


def fronts(points: study.Rows) -> list[str]:
    """Returns the arms that are runs and fronts; merges by lambda are neither."""
    return [arm for arm in study.distinct(points, "arm") if not arm.endswith("-by-lambda")]


def curves_of(points: study.Rows, policy: str, arm: str) -> np.ndarray:
    """Returns KL and reward of a run or a front, [seeds, 2, n]."""
    of_arm = study.where(points, policy=policy, arm=arm)
    return np.stack([study.by_seed(of_arm, name) for name in ("kl", "reward")], 1)


def gain(front: np.ndarray, other: np.ndarray, most: float | None = None) -> np.ndarray:
    """Returns KL and how much more reward a front has there than another, [2, 200].

    Args:
      front, other: KL and reward, which rise, [2, n].
      most: KL up to which; None is as far as the other goes.
    """
    at = np.linspace(0, other[0, -1] if most is None else most, 200)
    return np.stack([at, np.interp(at, *front) - np.interp(at, *other)])


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges merges, fronts and anchors; yields the rest as reports."""
    points = tables["points"]
    for policy in study.distinct(tables["merges"], "policy"):
        of = functools.partial(
            study.column, study.where(tables["merges"], policy=policy, iteration=1)
        )
        areas = study.where(tables["areas"], policy=policy)
        errors, cosines = of("identity_error"), of("cosine_whole")
        area = {arm: study.column(areas, "area", arm=arm) for arm in study.distinct(areas, "arm")}
        yield judging.above(
            f"{policy}: the spherical merge's reward is no more than 0.02 below the mean of its "
            "two runs (difference)",
            of("reward_slerp") - (of("reward_one") + of("reward_two")) / 2,
            -0.02,
            shared=SHARED,
        )
        claim = f"{policy}: nor more than 0.01 below the linear merge's (difference)"
        yield judging.above(claim, of("reward_slerp") - of("reward_lerp"), -0.01, shared=SHARED)
        claim = "the spherical merge is farther from the start (nats more than the linear)"
        yield judging.above(f"{policy}: {claim}", of("kl_slerp") - of("kl_lerp"), shared=SHARED)
        claim = "the front from the start to the merge lies above its chord (reward times nats)"
        above = study.column(areas, "above_chord", arm="slerp-1")
        yield judging.reported(f"{policy}: {claim}", judging.mean(above))
        yield judging.reported(
            f"{policy}: half-way, a spherical task vector is the linear one over cos(Omega/2)",
            f"greatest error {errors.max():.1e} of the greatest move",
        )
        yield judging.reported(
            f"{policy}: cosines of the two runs' task vectors (the paper: about 0)",
            f"whole {statistics.t_interval(cosines)}, layers and tensors "
            f"{of('cosine_least').min():.2f} to {of('cosine_most').max():.2f}: orthogonality "
            f"{'is' if abs(cosines).max() < ORTHOGONAL else 'is not'} reproduced",
        )
        most = f"up to {config.reference_kl:g} nats, above the reward of the start"
        named = {f"{NAMES.get(arm, arm)}": x for arm, x in area.items()}
        yield judging.reported(f"{policy}: area of each front {most}", judging.means(named))
        differences = {
            f"{what}, area": area[one] - area[other] for what, one, other in COMPARED if one in area
        }
        if "slerp-2" in area:
            second, first = (curves_of(points, policy, arm) for arm in ("slerp-2", "slerp-1"))
            more = second[:, 1, -1] - first[:, 1, -1]
            gains = [gain(*pair)[1].mean() for pair in zip(second, first, strict=True)]
            differences |= {
                REWARD: more,
                SECOND: np.array(gains),
            }
        for what, values in differences.items():
            check = judging.above(f"{policy}: {what} (difference)", values, shared=SHARED)
            if what in CLIMBED:
                yield judging.unjudged(check)
            else:
                yield judging.headline(check) if what in HEADLINES else check


def figures(config: Config, tables: study.Tables) -> dict[str, charts.Grid]:
    """Returns fronts and merges, a policy a row."""
    points = tables["points"]
    policies = study.distinct(points, "policy")
    of_fronts = [panel for name in policies for panel in panels(config, points, name)]
    of_merges = [panel for name in policies for panel in panels_of_merges(points, name)]
    grid = functools.partial(charts.Grid, columns=2, title_size=10)
    return {
        "fronts": grid(panels=of_fronts, width=5.2, height=3.9),
        "merges": grid(panels=of_merges, width=4.6, height=3.2),
    }


def panels(config: Config, points: study.Rows, policy: str) -> Iterator[charts.Panel]:
    """Yields runs and a front, reward over KL, and what fronts have above one run's."""
    of = {arm: curves_of(points, policy, arm) for arm in fronts(points)}
    color = {arm: {"color": f"C{[*NAMES, arm].index(arm)}"} for arm in of}
    thin = {"lw": 0.7, "alpha": 0.35}
    runs: list[charts.Mark] = []
    for arm in (*config.betas, MOVING, "slerp-1"):
        thick = {"marker": "o" if arm == "slerp-1" else ".", "lw": 1.6, "markersize": 4}
        kl, reward = of[arm].swapaxes(0, 1)
        runs.append(charts.Seeds(kl, reward, NAMES[arm], color[arm], thin, thick))
    runs.append(charts.Level(config.reference_kl, {"color": "0.6", "lw": 0.8, "ls": ":"}, True))
    zero = {**color["one-1"], "lw": 1.2, "label": NAMES["one-1"]}
    gains: list[charts.Mark] = [charts.Level(0, zero)]
    least = of["one-1"][:, 0, -1].min()
    for arm in [arm for arm in of if arm.startswith(("lerp", "slerp"))]:
        pairs = [*zip(of[arm], of["one-1"], strict=True)]
        gains += [charts.Line(*gain(*pair), style={**color[arm], **thin}) for pair in pairs]
        mean = np.mean([gain(*pair, least) for pair in pairs], 0)
        style = {**color[arm], "lw": 1.8}
        gains.append(charts.Line(*mean, label=NAMES.get(arm, arm), style=style))
    for marks, title, ylabel in (
        (runs, "runs by learner steps, a front by eta", "reward"),
        (gains, "fronts from the start to the merge", "reward above that of one run, at equal KL"),
    ):
        axes = {"xlabel": "KL to the supervised start, nats of a text", "ylabel": ylabel}
        axes["title"] = f"{policy}: {title}"
        yield charts.Panel(marks=marks, axes=axes, legend={"fontsize": 7, "loc": "best"})


def panels_of_merges(points: study.Rows, policy: str) -> Iterator[charts.Panel]:
    """Yields reward and KL of merges by lambda, less the line between both runs."""
    thick = {"marker": "o", "lw": None, "markersize": 4}
    for column, ylabel in {"reward": "reward", "kl": "KL to the start, nats"}.items():
        marks: list[charts.Mark] = []
        for way, label, color in (("slerp", "spherical", "C5"), ("lerp", "linear", "C4")):
            values = study.by_seed(points, column, policy=policy, arm=f"{way}-by-lambda")
            line = values[:, :1] + np.array(LAMBDAS)[None] * (values[:, -1:] - values[:, :1])
            styles = {"color": color}, {"alpha": 0.35}, thick
            marks.append(charts.Seeds(LAMBDAS, values - line, label, *styles))
        axes = {"xlabel": "lambda, from the first run to the second", "ylabel": ylabel}
        axes["title"] = f"{policy}: above the line between the runs"
        yield charts.Panel(marks=marks, axes=axes, legend={"fontsize": 8})


def seconds(config: Config) -> float:
    """Estimates compiling, and steps by their texts."""
    total = 100.0
    for name, cost in (("toy", 0.01), ("decoder", 0.05)):
        algorithm = config.algorithm(name)
        steps = 2 * algorithm.member_steps + config.iterations * algorithm.iteration_steps
        total += config.seeds * steps * cost * algorithm.learning.batch_size / 128
    return total


STUDY = study.Study(
    claim="Averages of a policy's weights, while it learns, between runs and toward the start, buy "
    "more reward at less distance.",
    source="Rame et al. 2024, arXiv:2406.16768",
    config=Config(),
    arms=arms,
    tables=tables,
    claims=claims,
    figures=figures,
    seconds=seconds,
)
