"""`kullback reproduce grpo-lengths`: variants that drift in length though reward is none of it.

GRPO (Shao et al. 2024, https://arxiv.org/abs/2402.03300) means a text's loss over its tokens. Liu
et al. ("Understanding R1-Zero-Like Training", 2025, https://arxiv.org/abs/2503.20783) say that this
biases lengths: of right answers short ones count more, of wrong answers long ones count less, so
that wrong ones grow. Dr. GRPO divides by a constant, DAPO by the tokens of the batch.

Policies of letters learn a reward that the first letter decides (ended_letters.py), by rows of
lm/variants.py. For independent lengths the expected gradient of what follows a first letter of
advantage A is A E[grad log p(length)] = 0 with a constant, and A E[grad log p(length) / length]
with a mean: it raises E[1 / length] after right letters and lowers it after wrong ones. Lengths are
measured after the same first letters, which the supervised start wrote to held-out prompts. Drift
is by how many letters the length after wrong ones has grown beyond that after right ones.

Each batch is learnt from once and nothing pulls to the start. DAPO's punishment of long texts is
left out, as is its choice of prompts, so that arms differ in advantages and aggregation alone.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from kullback.core import ranges
from kullback.experiments.reproductions import (
    charts,
    ended_letters,
    judging,
    letters,
    rewarded,
    study,
)
from kullback.lm import gemma, rlhf

MARGIN = 0.25  # Of letters; a drift that is smaller is none here.
SHARED = "the start and the prompts"  # Of arms with one seed.
LANGUAGE = letters.Sizes(horizon=12, start_steps=500)
MEAN_ONLY = "grpo-without-deviation"


class Variant(NamedTuple):
    """An arm: a row of variants.py, with other values."""

    label: str
    row: Any  # A name of variants.py.
    fields: Mapping[str, Any] = {}


VARIANTS: dict[str, Variant] = {
    "grpo": Variant("GRPO", "grpo"),
    MEAN_ONLY: Variant("GRPO without deviation", "grpo", {"scale_by_deviation": False}),
    "dr-grpo": Variant("Dr. GRPO", "dr-grpo"),
    "dapo": Variant(
        "DAPO",
        "dapo",
        {
            "truncation_penalty": 0.0,
            "overlong_fraction": 0.0,
            "drop_equal": False,
            "oversample": 1,
        },
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Seeds and sizes."""

    seeds: int = 20
    first_seed: int = 200  # Lower ones have chosen rates and this number, and are not judged.
    language: letters.Sizes = LANGUAGE
    stop: float = 0.2  # Probability in (0, 1) that a text of the source ends after a letter.
    width: int = 32
    num_layers: int = 2
    batch_size: int = 128  # Texts: prompts times samples of each.
    samples_per_prompt: int = 8
    learning_rate: float = 1e-3
    steps: int = 240
    records: int = 4
    samples: int = 16  # Texts of each held-out prompt.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds", "records", "samples", "width", "num_layers")
        ranges.at_least(0, self, "first_seed")
        ranges.inside("(0, 1)", self, "stop")
        ranges.multiples("records", self, "steps")
        if self.language.horizon < 2:
            raise ValueError(f"horizon must be >= 2 letters, got {self.language.horizon}")
        for name in VARIANTS:
            self.policy(name)

    def policy(self, name: str) -> rlhf.Config:
        """Returns the settings of an arm."""
        return rlhf.of_variant(
            VARIANTS[name].row,
            **{
                "samples_per_prompt": self.samples_per_prompt,
                "kl_coefficient": 0.0,
                "learning": self.language.learning(self.batch_size, self.learning_rate),
                **VARIANTS[name].fields,
            },
        )


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields the variants, by seed; those of a seed start from one policy."""
    model = gemma.make(config.language.decoder(config.width, config.num_layers))
    world = ended_letters.world(model, config.language, config.stop)
    measure = ended_letters.measure(model, config.language.horizon, config.samples)
    scorer = ended_letters.scorer(config.samples_per_prompt)
    climbers = {
        name: rewarded.climber(world, rlhf.make(model, config=config.policy(name)), scorer)
        for name in VARIANTS
    }

    def learn(name: str, seed: int, journal: study.Journal) -> Iterator[study.Row]:
        language, start = world.language(seed), world.start(seed)
        key = rewarded.stream_key(seed, rewarded.EVALUATION)
        for step, params in rewarded.records(
            climbers[name], seed, rewarded.LEARNING, config.steps, config.records
        ):
            lengths = measure(params, start, language.tables, language.held_out, key)
            journal.tick(step, float(lengths.accuracy), "accuracy")
            yield {"step": step, **{n: float(x) for n, x in lengths._asdict().items()}}

    for seed in study.seeds_of(config):
        for name in VARIANTS:
            yield study.Arm(
                f"{name}-{seed}",
                config.steps,
                functools.partial(learn, name, seed),
                columns={"variant": name, "seed": seed},
            )


def gap(rows: study.Rows, name: str) -> np.ndarray:
    """Returns the length after wrong first letters less that after right ones, [seeds, records]."""
    wrong, right = (study.by_seed(rows, column, variant=name) for column in ("wrong", "right"))
    return wrong - right


def drift(rows: study.Rows, name: str) -> np.ndarray:
    """Returns by how many letters that difference has grown from the start to the end, [seeds]."""
    gaps = gap(rows, name)
    return gaps[:, -1] - gaps[:, 0]


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges drifts, and differences of them; reports lengths and accuracy."""
    del config
    rows = tables["lengths"]
    of = {name: drift(rows, name) for name in VARIANTS}
    claim = "wrong answers grow beyond right ones (drift, in letters)"
    yield judging.headline(judging.above(f"GRPO: {claim}", of["grpo"]))
    yield judging.above(f"GRPO without deviation: {claim}", of[MEAN_ONLY])
    for name in ("dr-grpo", "dapo"):
        label = VARIANTS[name].label
        still = f"{label}: no drift of {MARGIN:g} letters or more"
        yield judging.equal(still, MARGIN, of[name])
        more = f"GRPO drifts more than {label} (difference, in letters)"
        check = judging.above(more, of["grpo"] - of[name], shared=SHARED)
        yield judging.headline(check) if name == "dr-grpo" else check
    for column, said in {
        "written": "letters of a policy's own texts",
        "right": "letters after right first ones",
        "wrong": "letters after wrong first ones",
        "accuracy": "share of right texts",
    }.items():
        by_arm = {x.label: study.by_seed(rows, column, variant=n) for n, x in VARIANTS.items()}
        ends = {label: values[:, -1] for label, values in by_arm.items()}
        start = judging.mean(by_arm["GRPO"][:, 0])
        yield judging.reported(f"{said}, at the end", f"{_said(ends)}; at the start {start}")


def _said(values: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {judging.mean(x)}" for name, x in values.items())


def panels(rows: study.Rows) -> charts.Grid:
    """Returns drifts over learner steps, and lengths after right and wrong first letters."""
    drifts: list[charts.Mark] = []
    lengths: list[charts.Mark] = []
    for number, (name, variant) in enumerate(VARIANTS.items()):
        steps = study.by_seed(rows, "step", variant=name)[0]
        gaps, style = gap(rows, name), {"color": f"C{number}"}
        drifts.append(charts.Seeds(steps, gaps - gaps[:, :1], variant.label, style, {"alpha": 0.3}))
        for column, dashes in {"wrong": "-", "right": "--"}.items():
            of = study.by_seed(rows, column, variant=name).mean(0)
            label = variant.label if column == "wrong" else None
            lengths.append(charts.Line(steps, of, label, {**style, "ls": dashes}))
    return charts.Grid(
        panels=[
            charts.Panel(
                marks=[*drifts, charts.ZERO],
                axes={
                    "title": "Growth of wrong beyond right answers",
                    "xlabel": "learner steps",
                    "ylabel": "letters",
                },
                legend={"fontsize": 7},
            ),
            charts.Panel(
                marks=lengths,
                axes={
                    "title": "Lengths after wrong (solid) and right first letters",
                    "xlabel": "learner steps",
                    "ylabel": "letters, mean over seeds",
                },
                legend={"fontsize": 7},
            ),
        ],
        width=5.0,
        title_size=10,
    )


STUDY = study.Study(
    claim="GRPO's mean over a text's tokens lengthens wrong answers beyond right ones although "
    "reward does not depend on length; Dr. GRPO and DAPO do not.",
    source="Liu et al. 2025, arXiv:2503.20783",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: {"lengths": rows},
    claims=claims,
    figures=lambda config, tables: {"grpo_lengths": panels(tables["lengths"])},
    # Compiling, then starts, and steps by their texts.
    seconds=lambda config: (
        90
        + config.seeds
        * (
            config.language.start_steps * 0.02
            + len(VARIANTS) * config.steps * 0.025 * config.batch_size / 64
        )
    ),
)
