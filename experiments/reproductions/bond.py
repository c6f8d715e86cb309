"""`kullback reproduce bond`: a policy learns the best of N samples, where all can be counted.

Sessa et al., "BOND: Aligning LLMs with Best-of-N Distillation", 2024,
https://arxiv.org/abs/2407.14622, have Gemma 2B and 7B and a T5 of summaries. Here answers are
enumerated (enumerated.py), so that distances to the best of N and to the reference are exact. What
is asked is what the paper says of its figures: both divergences to the best of N fall together for
b = 1/2; a fixed N saturates where an anchor that follows goes on; an anchor that is a moving
average gains as much as copies at less KL; J-BOND's KL to the reference is a line in the steps; and
its front of reward against KL lies above those of REINFORCE, at equal numbers of tokens written:
three texts of each prompt a step against two.

The optimum of REINFORCE with a KL penalty has the most reward of all policies at its KL, and tables
of logits can become it. So the last claim is about learning here, and not about optima; it is asked
of a small decoder too, which has not seen the prompts that it is measured by (bonded_letters.py).
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from kullback.core import ranges, types
from kullback.experiments.reproductions import (
    bonded_letters,
    charts,
    curves,
    enumerated,
    judging,
    study,
)
from kullback.experiments.reproductions.enumerated import J_BOND, by_beta
from kullback.lm import bond, tuning

REGULARISED, COPIES, ITERATIVE = "j-bond, gamma", "copies", "iterative"
SHARED = "the world"  # Of arms with one seed.
ENUMERATED, DECODER = "bond", "decoder"  # Tables, of enumerated answers and of a decoder.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of all that is varied, and the sizes."""

    seeds: int = 20
    first_seed: int = 200  # Lower ones have chosen settings, and are not judged.
    steps: int = 2_000  # Learner steps of BOND with counted quantiles, by which it has arrived.
    # Those of J-BOND, before its policy writes one answer alone; REINFORCE has half as many again.
    moving_steps: int = 400
    records: int = 20  # Points of a curve.
    betas: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)  # Of REINFORCE, in units of reward a nat.
    samples: int = 2  # G of REINFORCE; the paper's.
    anchor_rate: float = 0.02  # eta of J-BOND.
    gamma: float = 1.0  # Of the run that is regularised beside J-BOND.
    anchor_samples: int = 16  # k, among which quantiles are counted.
    best_of: int = 4  # N of the runs by b, and of the distances.
    larger: tuple[int, ...] = (8, 16)  # Further fixed N, at most k.
    weights: tuple[float, ...] = (0.0, 0.5, 1.0)  # b.
    anchor_period: int = 200  # Of iterative BOND, with N = 2.
    reference_kl: float = 2.0  # Of areas under fronts: beyond this KL, nats, nothing counts.
    sizes: enumerated.Sizes = dataclasses.field(default_factory=enumerated.Sizes)
    decoder: bonded_letters.Sizes = dataclasses.field(default_factory=bonded_letters.Sizes)

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds", "records", "anchor_period")
        ranges.at_least(0, self, "first_seed")
        ranges.at_least(2, self, "samples", "best_of")
        ranges.multiples(2 * self.records, self, "steps", "moving_steps")
        ranges.inside("(0, inf)", self, "reference_kl", "gamma", "betas")
        ranges.inside("[2, anchor_samples]", self, "best_of", "larger")
        if not {0.0, 0.5, 1.0} <= set(self.weights):
            raise ValueError(f"weights (b) must have 0, 0.5 and 1, got {self.weights}")
        ranges.inside("(0, 1]", self, "anchor_rate")
        self.bonds()

    def bonds(self) -> dict[str, bond.Config]:
        """Returns the settings of each run of BOND."""
        copies = round(1 / self.anchor_rate)
        runs: dict[str, dict[str, Any]] = {
            J_BOND: {"anchor_rate": self.anchor_rate},
            REGULARISED: {"anchor_rate": self.anchor_rate, "regularisation": self.gamma},
            COPIES: {"anchor": "periodic", "anchor_period": copies},
        }
        counted = {"estimator": "counted", "anchor_samples": self.anchor_samples}
        fixed = {**counted, "anchor": "fixed"}
        for b in self.weights:
            runs[by_weight(b)] = {**fixed, "best_of": self.best_of, "backward_weight": b}
        for n in self.larger:
            runs[f"fixed N = {n}"] = {**fixed, "best_of": n}
        runs[ITERATIVE] = {**counted, "anchor": "periodic", "anchor_period": self.anchor_period}
        return {name: self._bond(**fields) for name, fields in runs.items()}

    def _bond(self, anchor_samples: int = 2, **fields: Any) -> bond.Config:
        texts = self.sizes.prompts * (1 + anchor_samples)
        learning = tuning.Config(batch_size=texts)
        return bond.Config(anchor_samples=anchor_samples, learning=learning, **fields)


def by_weight(b: float) -> str:
    """Returns the name of a run with a fixed anchor, by its b."""
    return f"b = {b:g}"


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields each run, with all seeds of it."""
    for name, settings in config.bonds().items():
        learner = enumerated.bonded(config.sizes, settings)
        steps = config.moving_steps if settings.estimator == "j-bond" else config.steps
        yield arm(config, name, learner, steps, 1 + settings.anchor_samples)
    for beta in config.betas:
        learner = enumerated.reinforced(config.sizes, beta, config.samples)
        yield arm(config, by_beta(beta), learner, 3 * config.moving_steps // 2, config.samples)
    yield from bonded_letters.arms(config.decoder, DECODER, config.first_seed, config.anchor_rate)


def arm(config: Config, name: str, learner: types.Learner, steps: int, texts: int) -> study.Arm:
    """Returns a run, which writes so many texts to a prompt in each step."""
    seeds = study.seeds_of(config)

    def compute(journal: study.Journal) -> Iterator[study.Row]:
        given = enumerated.world(config.sizes, seeds)
        logits = enumerated.trained(learner, given, seeds, steps, config.records)
        journal.tick(steps)
        for record, tables in enumerate(enumerated.softmax(logits)):
            at = record * (steps // config.records)
            for number, (seed, policy) in enumerate(zip(seeds, tables, strict=True)):
                yield {
                    "arm": name,
                    "seed": seed,
                    "steps": at,
                    "tokens": at * texts * config.sizes.prompts,
                    **enumerated.measured(
                        config.sizes, given, number, seed, policy, config.best_of
                    ),
                }

    part = name.replace(" ", "").replace(",", "-").replace("=", "-")
    return study.Arm(part, steps, compute, table=ENUMERATED)


def areas(rows: study.Rows, name: str, reference_kl: float) -> np.ndarray:
    """Returns the area under a run's front, above the reference's reward, of each seed."""
    kl, reward = (study.by_seed(rows, column, arm=name) for column in ("kl", "reward"))
    return np.array(
        [
            curves.front_area(*curves.filled(k, r), (reference_kl, float(r[0])))
            for k, r in zip(kl, reward, strict=True)
        ]
    )


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges both divergences by b, what saturates, anchors, the line of KL, and fronts."""
    rows = tables[ENUMERATED]

    def at(name: str, column: str, record: int = -1) -> np.ndarray:
        return study.by_seed(rows, column, arm=name)[:, record]

    above = functools.partial(judging.above, shared=SHARED)
    half, n = config.records // 2, config.best_of
    both, forward, backward = (by_weight(b) for b in (0.5, 0.0, 1.0))
    yield judging.headline(
        above(
            f"fixed N = {n}: KL(best of N || policy) with b = 0.5 is below that with b = 1, nats",
            at(backward, "forward") - at(both, "forward"),
        )
    )
    yield judging.headline(
        above(
            f"fixed N = {n}: KL(policy || best of N) with b = 0.5 is below that with b = 0, nats",
            at(forward, "backward") - at(both, "backward"),
        )
    )
    gained = {name: at(name, "reward") - at(name, "reward", half) for name in (both, ITERATIVE)}
    yield judging.headline(
        above(
            f"iterative, N = 2: gains more reward in the second half than fixed N = {n} does",
            gained[ITERATIVE] - gained[both],
        )
    )
    yield above(
        f"and ends above fixed N = {n}, reward", at(ITERATIVE, "reward") - at(both, "reward")
    )
    yield above(
        "an anchor that is a moving average ends at less KL than copies, nats",
        at(COPIES, "kl") - at(J_BOND, "kl"),
    )
    yield judging.reported(
        "reward of that average less that of copies",
        judging.mean(at(J_BOND, "reward") - at(COPIES, "reward")),
    )
    yield above(
        f"J-BOND with gamma = {config.gamma:g} is nearer the reference than with 0, nats",
        at(J_BOND, "kl") - at(REGULARISED, "kl"),
    )
    share = at(J_BOND, "kl", half) / at(J_BOND, "kl") / (half / config.records)
    yield above("J-BOND's KL half-way is at least 0.8 of a line's", share, 0.8)
    yield above("and at most 1.2 of it (1.2 less the share)", 1.2 - share)
    yield from fronts(rows, config.betas, config.reference_kl, "")
    of_decoder = config.decoder
    yield from fronts(tables[DECODER], of_decoder.betas, of_decoder.reference_kl, "a decoder: ")


def fronts(
    rows: study.Rows, betas: tuple[float, ...], reference_kl: float, of: str
) -> Iterator[judging.Check]:
    """Judges the front of J-BOND against that of the best REINFORCE; `of` says whose they are."""
    front = areas(rows, J_BOND, reference_kl)
    others = {by_beta(beta): areas(rows, by_beta(beta), reference_kl) for beta in betas}
    name = max(others, key=lambda name: others[name].mean())
    yield judging.headline(
        judging.above(
            f"{of}J-BOND's front above that of the best REINFORCE, at equal tokens, area",
            front - others[name],
            shared=SHARED,
        )
    )
    yield judging.reported(
        f"{of}area of each front up to {reference_kl:g} nats, reward times nats",
        judging.means({J_BOND: front, **others}),
    )


def figures(config: Config, tables: study.Tables) -> dict[str, charts.Grid]:
    """Returns fronts, KL over steps, both divergences, and what saturates."""
    rows = tables[ENUMERATED]

    def marks(
        x: str, y: str, names: list[str], dash: str = "-", rows: study.Rows = rows
    ) -> list[charts.Mark]:
        return [
            charts.Seeds(
                study.by_seed(rows, x, arm=name),
                study.by_seed(rows, y, arm=name),
                name if dash == "-" else None,
                {"color": f"C{number}", "ls": dash},
                {"alpha": 0.15},
            )
            for number, name in enumerate(names)
        ]

    runs = [J_BOND, REGULARISED, COPIES, *map(by_beta, config.betas)]
    of_decoder = [J_BOND, *map(by_beta, config.decoder.betas)]
    by_b = [by_weight(b) for b in config.weights]
    fixed = [by_weight(0.5), *(f"fixed N = {n}" for n in config.larger), ITERATIVE]
    kl, of_best = "KL to the reference, nats", f"the best of {config.best_of}"
    shown = (
        (marks("kl", "reward", runs), "fronts", kl, "reward"),
        (marks("steps", "kl", runs[:3]), "moving anchors", "learner steps", kl),
        (
            [*marks("steps", "forward", by_b), *marks("steps", "backward", by_b, "--")],
            f"from {of_best} (dashed: to it)",
            "learner steps",
            "KL, nats",
        ),
        (marks("steps", "reward", fixed), "fixed N and iterative", "learner steps", "reward"),
        (
            marks("kl", "reward", of_decoder, rows=tables[DECODER]),
            "fronts of a decoder",
            kl,
            "gold reward",
        ),
    )
    panels = [
        charts.Panel(
            marks=drawn,
            axes={"title": title, "xlabel": xlabel, "ylabel": ylabel},
            legend={"fontsize": 7},
        )
        for drawn, title, xlabel, ylabel in shown
    ]
    return {"bond": charts.Grid(panels=panels, columns=2, title_size=10)}


def seconds(config: Config) -> float:
    """Estimates compiling, and steps by their draws."""
    draws = sum(1 + c.anchor_samples for c in config.bonds().values())
    numbers = config.seeds * config.sizes.prompts * config.sizes.answers
    decoder = config.decoder.seeds * config.decoder.steps * (1 + 1.5 * len(config.decoder.betas))
    return 240 + config.steps * draws * numbers * 5e-8 + decoder / 40


STUDY = study.Study(
    claim="A policy can learn the best of N samples by comparisons, in both directions of the KL, "
    "and of a moving anchor go on from there at little KL.",
    source="Sessa et al. 2024, arXiv:2407.14622",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: study.split(rows, ENUMERATED, DECODER),
    claims=claims,
    figures=figures,
    seconds=seconds,
)
