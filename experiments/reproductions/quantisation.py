"""`kullback reproduce quantisation`: perplexity that few bits cost, and what learning wins back.

Gemma Team, "Gemma 3 Technical Report", 2025, https://arxiv.org/abs/2503.19786, section 2.3: models
learn on for few steps in the numbers of a format, toward their own probabilities in float; Google's
announcement has 54% of the perplexity that q4_0 cost won back. Gemini Team, "Gemini: A Family of
Highly Capable Multimodal Models", 2023, https://arxiv.org/abs/2312.11805: Gemini Nano was distilled
from larger models, then brought to four bits.

A student of one layer learns texts of a teacher that is known (few_bits.py). It is rounded to each
format, or learns on in it, an eighth of its steps: from its own probabilities, from the next tokens
of texts ("labels"), or from the teacher's probabilities. It learns as many steps in float too, and
is rounded then, so that what more learning gives is told from what the format does. In Nano's order
a student is distilled in float, then learns on from the teacher in four bits; against it stand as
many steps that are in four bits from the first on. All arms of a seed have texts and start in
common, and are compared by pairs.

What 54% is of (model, text, steps) is not published, and a perplexity of 12 thousand weights is
none of 4 billion: q4_0 costs this student 1%. Here the teacher is no larger network but the source
of the texts, and labels are draws from its probabilities: that it teaches more than they do is
expected, and how much is the question. Most rows of 32 weights are one block, so that q4_0 is here
hardly finer than int4. With the spread of the two seeds that chose the settings, six show 0.05 of
what rounding costs; verdict.json has what each claim would have shown.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np

from kullback.core import ranges
from kullback.experiments.reproductions import charts, few_bits, judging, study, token_line
from kullback.experiments.reproductions.few_bits import Stage
from kullback.lm import quantisation

PUBLISHED = 0.54  # Share of the perplexity that q4_0 cost, won back.
TARGETS: dict[few_bits.Target, str] = {
    "own": "its own probabilities",
    "labels": "labels",
    "teacher": "the teacher's probabilities",
}
SHARED = "texts, the start and batches"  # Of arms with one seed.
ROUNDED, DISTILLED, NANO, BITS_FIRST = "rounded", "distilled", "distil, then bits", "bits first"
LINE = token_line.Sizes(
    horizon=12,
    trajectories=4_096,
    batch_size=32,
    learning_rate=3e-3,  # The highest; it falls to 0.
    distillation_rate=3e-4,  # The same, of steps in few bits.
    student_width=32,
    student_steps=2_000,
    steps=250,  # In few bits.
    evaluation=2_000,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Seeds, formats and sizes."""

    seeds: int = 6
    first_seed: int = 200  # Lower ones have chosen settings, and are not judged.
    four_bits: tuple[quantisation.Name, ...] = ("q4_0", "int4")  # With all kinds of targets.
    eight_bits: tuple[quantisation.Name, ...] = ("int8", "sfp8")  # With its own probabilities.
    line: token_line.Sizes = LINE

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds")
        ranges.at_least(0, self, "first_seed")
        ranges.multiples(quantisation.BLOCK, self.line, "student_width")
        if not self.four_bits:
            raise ValueError("four_bits must name one format at least, got ()")

    @property
    def formats(self) -> tuple[quantisation.Name, ...]:
        """All formats."""
        return *self.four_bits, *self.eight_bits

    def first(self, target: few_bits.Target, quantize: quantisation.Kept = "none") -> Stage:
        """Returns the steps of a student that has not learnt before."""
        return Stage(target, quantize, self.line.student_steps, self.line.learning_rate)

    def later(self, target: few_bits.Target, quantize: quantisation.Kept) -> Stage:
        """Returns the steps of one that has."""
        return Stage(target, quantize, self.line.steps, self.line.distillation_rate)


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields the student in float, what it learns in formats and in float, and Nano's order."""
    labels, distilled = config.first("labels"), config.first("teacher")
    for seed in study.seeds_of(config):

        def arm(part: str, names: dict, *stages: Stage, seed: int = seed) -> study.Arm:
            compute = functools.partial(few_bits.rows, config.line, seed, names, stages)
            return study.Arm(f"{part}-{seed}", stages[-1].steps, compute, columns={"seed": seed})

        rounded = {name: ROUNDED for name in config.formats}
        yield arm("float", {"none": "float", **rounded}, labels)
        for target, form in itertools.product(TARGETS, config.formats):
            if target == "own" or form in config.four_bits:
                yield arm(f"{target}-{form}", {form: target}, labels, config.later(target, form))
        for target in ("labels", "teacher"):
            names = {"none": in_float(target)} | {f: in_float(target) for f in config.four_bits}
            yield arm(f"{target}-none", names, labels, config.later(target, "none"))
        names = {"none": DISTILLED} | {form: DISTILLED for form in config.four_bits}
        yield arm("distilled", names, distilled)
        for form in config.four_bits:
            in_bits = config.later("teacher", form)
            yield arm(f"nano-{form}", {form: NANO}, distilled, in_bits)
            yield arm(f"bits-{form}", {form: BITS_FIRST}, config.first("teacher", form), in_bits)


def in_float(target: few_bits.Target) -> str:
    """Returns the name of the arm that learns on in float, and is rounded then."""
    return f"{target} in float"


def perplexity(rows: study.Rows, arm: str, quantize: quantisation.Kept = "none") -> np.ndarray:
    """Returns the perplexity of an arm in a format, [seeds]."""
    return study.column(rows, "perplexity", arm=arm, format=quantize)


def won_back(rows: study.Rows, target: str, quantize: quantisation.Kept) -> np.ndarray:
    """Returns the share of the perplexity that rounding cost which learning on won back, [seeds].

    1 - (learnt on - float) / (rounded - float)
    """
    alone = perplexity(rows, "float")
    lost = perplexity(rows, ROUNDED, quantize) - alone
    return 1 - (perplexity(rows, target, quantize) - alone) / lost


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges differences of pairs, of one seed each; reports means."""
    rows = tables["perplexities"]
    of = functools.partial(perplexity, rows)
    above = functools.partial(judging.above, shared=SHARED)
    for form in config.four_bits:
        half = f"{form}: from its own probabilities the student wins back more than half (share)"
        yield judging.headline(above(half, won_back(rows, "own", form), 0.5))
        for soft in ("own", "teacher"):
            check = above(
                f"{form}: {TARGETS[soft]} leave it at less perplexity than labels do (difference)",
                of("labels", form) - of(soft, form),
            )
            yield judging.headline(check) if soft == "own" else check
        for target in ("labels", "teacher"):
            yield above(
                f"{form}: from {TARGETS[target]} steps in the format leave it at less perplexity "
                "than as many in float, rounded then (difference)",
                of(in_float(target), form) - of(target, form),
            )
        order = above(
            f"{form}: distilled in float, then in bits, it is at less perplexity than in bits from "
            "the first step on (difference)",
            of(BITS_FIRST, form) - of(NANO, form),
        )
        yield judging.headline(order)
    for few, many in itertools.product(config.four_bits, config.eight_bits):
        lost, least = (of(ROUNDED, form) - of("float") for form in (few, many))
        claim = f"{many} costs less than a tenth of what {few} does (a tenth of that, less it)"
        yield above(claim, 0.1 * lost - least)
    yield from reports(config, rows)


def reports(config: Config, rows: study.Rows) -> Iterator[judging.Check]:
    """Yields figures that are not judged."""
    of = functools.partial(perplexity, rows)
    names = {"student": of("float"), "distilled student": of(DISTILLED)}
    yield judging.reported("perplexity in float", judging.means(names))
    lost = {form: of(ROUNDED, form) - of("float") for form in config.formats}
    yield judging.reported("perplexity that rounding costs", judging.means(lost))
    left = {form: of("own", form) - of("float") for form in config.eight_bits}
    if left:
        claim = "perplexity above float after learning on from its own probabilities"
        yield judging.reported(claim, judging.means(left))
    for form in config.four_bits:
        shares = {TARGETS[target]: won_back(rows, target, form) for target in TARGETS}
        claim = f"{form}: share of it that is won back (published, of q4_0: {PUBLISHED:g})"
        yield judging.reported(claim, judging.means(shares))
        ways = {arm: of(arm, form) - of(DISTILLED) for arm in (DISTILLED, NANO, BITS_FIRST)}
        ways = {ROUNDED: ways.pop(DISTILLED), **ways}
        claim = f"{form}: perplexity above the distilled student's in float"
        yield judging.reported(claim, judging.means(ways))


def panels(config: Config, rows: study.Rows) -> charts.Grid:
    """Returns what formats cost, what share is won back, and Nano's order; a dot is a seed."""
    of = functools.partial(perplexity, rows)
    after = {ROUNDED: "rounded", **{target: f"from {name}" for target, name in TARGETS.items()}}
    cost, shares, order = [], [], []
    for number, (arm, label) in enumerate(after.items()):
        forms = config.four_bits if arm in ("labels", "teacher") else config.formats
        y = [of(arm, form) - of("float") for form in forms]
        cost.append(charts.beside(number, len(after), y, label))
        if arm != ROUNDED:
            y = [won_back(rows, arm, form) for form in config.four_bits]
            shares.append(charts.beside(number, len(after), y, label))
    for number, arm in enumerate((DISTILLED, NANO, BITS_FIRST)):
        y = [of(arm, form) - of(DISTILLED) for form in config.four_bits]
        label = arm if number else "distilled, then rounded"
        order.append(charts.beside(number, 3, y, label))
    whole = {"color": "0.3", "lw": 0.8, "label": "all of it"}
    published = {"color": "0.3", "lw": 0.8, "ls": ":", "label": f"published, q4_0: {PUBLISHED:g}"}
    shares += [charts.Level(1, whole), charts.Level(PUBLISHED, published)]
    return charts.Grid(
        panels=[
            panel(
                [*cost, charts.ZERO],
                config.formats,
                "What a format costs",
                "perplexity above float",
            ),
            panel(shares, config.four_bits, "What is won back", "share of the cost", headroom=0.5),
            panel(
                [*order, charts.ZERO],
                config.four_bits,
                "Distillation and four bits",
                "perplexity above the student in float",
            ),
        ],
        title_size=10,
    )


def panel(
    marks: list[charts.Mark],
    formats: tuple[str, ...],
    title: str,
    ylabel: str,
    headroom: float = 0.05,
) -> charts.Panel:
    """Returns a panel of formats; its legend has room above, a share of the data's span."""
    axes = {"title": title, "ylabel": ylabel, "xticks": range(len(formats))}
    axes["xticklabels"] = formats
    return charts.Panel(
        marks=marks,
        axes=axes,
        finish=lambda drawn: drawn.margins(y=headroom),
        legend={"fontsize": 7},
    )


def seconds(config: Config) -> float:
    """Estimates compiling, and steps by their tokens."""
    line, four = config.line, len(config.four_bits)
    programs = 4 + 3 * four + len(config.eight_bits) + four
    first, later = 2 + four, 4 * four + four + len(config.eight_bits) + 2
    steps = first * line.student_steps + later * line.steps
    tokens = line.batch_size * (1 + line.horizon)
    return 6 * programs + config.seeds * steps * 0.003 * tokens / 416


STUDY = study.Study(
    claim="Steps in the numbers of a format win back most of the perplexity that rounding to it "
    "costs, probabilities teach them better than labels, and distillation comes before bits.",
    source="Gemma Team 2025, arXiv:2503.19786",
    config=Config(),
    arms=arms,
    tables=lambda config, rows: {"perplexities": rows},
    claims=claims,
    figures=lambda config, tables: {"quantisation": panels(config, tables["perplexities"])},
    seconds=seconds,
)
