"""`kullback reproduce real-bits`: what few bits cost a real model, and what learning wins back.

Gemma Team, "Gemma 3 Technical Report", 2025, https://arxiv.org/abs/2503.19786, section 2.3: a model
learns on for few steps in the numbers of a format, toward its own probabilities in float. Here that
is done with the published Gemma 3 270M, on papers of ACLSum: its layers are put into a format, as
they are or after such steps; the table of tokens is in 8 bits in all of them, as in GGUF files.
Perplexity is of the last tokens of other papers, one text a paper, and intervals are over papers.

The weights that are installed have been rounded once already (Q4_K_M, 4 to 8 bits), so "float" is
that model and not Google's, and q4_0 puts some matrices onto nearly the grid that they are on. So
no published figure stands beside these. The papers are not those that Gemma was trained on, as far
as is known, and the learning rate is the default for models of this size, not the best of several.

The default learns 50 steps of 512 tokens a format; the 200 that were meant take four times as long
(--set steps=200). With a GPU:

    kullback reproduce real-bits --set steps=2000 --set batch_size=16 --set papers=100 \
        --set length=1024
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from kullback.core import ranges, trees
from kullback.experiments.evaluate import quantised
from kullback.experiments.reproductions import charts, judging, real_models, study
from kullback.lm import quantisation
from kullback.lm.entailment import faithfulness

ROUNDED, LEARNT, FLOAT = "rounded", "learnt", "float"
PAPERS = "paper", "papers"
SHARED = "the texts"
TRAINING = 100  # Papers to learn from.
WORDS = 0.6  # Of a text to learn from, by token, so that few are cut.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Formats, texts and sizes."""

    model: str = real_models.PUBLISHED
    four_bits: tuple[quantisation.Name, ...] = ("int4", "q4_0")
    eight_bits: tuple[quantisation.Name, ...] = ("int8", "sfp8")
    table: quantisation.Name = "q8_0"  # Format of the table of tokens.
    papers: int = 64  # Held-out texts, at most 100; with their length some 16,000 tokens.
    length: int = 256  # Tokens of a text: the last ones of a paper.
    steps: int = 50  # Of learning in a format; 0 only rounds.
    batch_size: int = 2  # Texts of a step.
    learning_rate: float = 5e-5  # The highest; it falls to 0.
    seed: int = 100  # Of the order of texts.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "batch_size")
        ranges.at_least(0, self, "steps", "seed")
        ranges.at_least(8, self, "length")
        ranges.inside("[2, 100]", self, "papers")
        ranges.inside("(0, inf)", self, "learning_rate")
        if not self.four_bits:
            raise ValueError("four_bits must name one format at least, got ()")

    @property
    def formats(self) -> tuple[quantisation.Name, ...]:
        """All formats."""
        return *self.four_bits, *self.eight_bits

    @property
    def lengths(self) -> dict[str, int]:
        """Lengths of texts, which have no prompt but the beginning of sequence."""
        return {"max_prompt_length": 2, "max_new_tokens": self.length - 2}

    def scheme(self, form: quantisation.Name) -> quantisation.Scheme:
        """Returns a format of the layers, with that of the table."""
        return quantisation.Scheme(form, self.table)


def task(config: Config, journal: study.Journal) -> str:
    """Returns the task of texts, which are written into the journal's folder first."""

    def parts(paper: faithfulness.Paper) -> Iterator[str]:
        part: list[str] = []
        for sentence in paper.sentences:
            if part and sum(len(x.split()) for x in [*part, sentence]) > WORDS * config.length:
                yield " ".join(part)
                part = []
            part.append(sentence)
        yield " ".join(part)

    train = faithfulness.read_papers("train")[:TRAINING]
    return real_models.write_rows(
        journal.path("texts"),
        {
            "train": [{"text": text} for paper in train for text in parts(paper)],
            "test": [{"text": " ".join(x.sentences)} for x in faithfulness.read_papers("test")],
        },
    )


def stage(config: Config, form: quantisation.Name, of_task: str) -> dict:
    """Returns the stage that learns in a format from the model's own probabilities."""
    settings = {
        **config.lengths,
        "overlong": "truncate-left",
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "warmup_steps": real_models.warmup(config.steps),
        "schedule": "linear",
        "quantize": form,
        "quantize_table": config.table,
    }
    begin = "distill", of_task, config.model, config.steps, config.seed
    return real_models.train(*begin, teacher=config.model, settings=settings)


def compare(
    config: Config, arm: str, form: quantisation.Name, journal: study.Journal
) -> Iterator[study.Row]:
    """Yields nats of each held-out text by the model and by an arm in a format."""
    of_task = task(config, journal)
    lengths = {**config.lengths, "overlong": "truncate-left"}
    names = [paper.name for paper in faithfulness.read_papers("test")]
    about: study.Row
    if arm == LEARNT:
        given = {"learnt": stage(config, form, of_task)}
        path = real_models.run(given, f"learnt-{form}", journal)["learnt"]
        evaluator, params = real_models.loaded(config.model, of_task, **lengths)
        held = real_models.subject(path, of_task, **lengths).checkpoint.params
        about = {"seconds": real_models.seconds(path)}
    else:
        evaluator, params = real_models.loaded(config.model, of_task, **lengths)
        result = quantised.quantise(params, config.scheme(form))
        held, worst = result.params, quantised.worst(result)
        about = {"bytes": result.num_bytes, "float_bytes": trees.num_bytes(params)}
        about |= {"worst_error": worst.relative_error, "worst_matrix": worst.tensor}
    sums = quantised.compared(evaluator, params, held, config.papers)
    yield from study.tagged("formats", [{"arm": arm, "format": form, **about}])
    for name, *values in zip(names, *sums, strict=False):
        kl, nats, held_nats, tokens = map(float, values)
        row = {"arm": arm, "format": form, "paper": name, "tokens": int(tokens)}
        yield {"table": "papers", **row, "float_nats": nats, "nats": held_nats, "kl": kl}


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields the base, each format as it is, and after learning in it."""
    yield real_models.base(config.model)
    for arm in (ROUNDED, *((LEARNT,) if config.steps else ())):
        for form in config.formats:
            compute = functools.partial(compare, config, arm, form)
            scratch = f"learnt-{form}" if arm == LEARNT else ""
            steps = 10 + (config.steps if arm == LEARNT else 0)
            yield study.Arm(f"{arm}-{form}", steps, compute, "", {}, scratch)


def tables(config: Config, rows: study.Rows) -> study.Tables:
    """Returns the base, nats by paper, and what formats take."""
    by_table = study.split(rows, "base", "papers", "formats")
    return {**by_table, "formats": study.even(by_table["formats"])}


def cost(rows: study.Rows, arm: str, form: str) -> np.ndarray:
    """Returns nats a token above the model in float, [papers]."""
    of = functools.partial(real_models.a_token, rows, arm=arm, format=form)
    return of("nats") - of("float_nats")


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges differences of each paper's nats a token; reports perplexities."""
    rows = tables["papers"]
    above = functools.partial(judging.above, units=PAPERS, shared=SHARED)
    for form in config.four_bits:
        lost = cost(rows, ROUNDED, form)
        yield above(f"{form}: rounding costs nats a token", lost)
        if not config.steps:
            continue
        left = cost(rows, LEARNT, form)
        claim = f"{form}: learning in it wins back some of that (nats a token)"
        yield judging.headline(above(claim, lost - left))
        claim = f"{form}: it wins back more than half (nats a token beyond half)"
        yield judging.headline(above(claim, lost / 2 - left))
    for few in config.four_bits:
        for many in config.eight_bits:
            claim = f"{many} costs less than a tenth of what {few} does (a tenth of that, less it)"
            lost = cost(rows, ROUNDED, few) / 10 - cost(rows, ROUNDED, many)
            yield above(claim, lost)
    yield from reports(config, tables)


def reports(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Yields figures that are not judged."""
    yield real_models.reported_base(tables)
    rows, first = tables["papers"], config.formats[0]
    in_float = study.where(rows, arm=ROUNDED, format=first)
    count = int(study.column(in_float, "tokens").sum())
    arms = study.distinct(rows, "arm")
    named = {"float": perplexity(in_float, "float_nats")}
    kl: dict[str, np.ndarray] = {}
    for arm in arms:
        for form in config.formats:
            of_arm = study.where(rows, arm=arm, format=form)
            named[f"{arm} {form}"] = perplexity(of_arm, "nats")
            kl[f"{arm} {form}"] = real_models.a_token(of_arm, "kl")
    said = ", ".join(f"{name} {x:.4g}" for name, x in named.items())
    yield judging.reported(f"perplexity of {count:,} tokens", said)
    costs = {f"{a} {f}": cost(rows, a, f) for a in arms for f in config.formats}
    yield judging.reported("nats a token above float", judging.means(costs))
    yield judging.reported("KL from float, nats a token", judging.means(kl))
    sizes = study.where(tables["formats"], arm=ROUNDED)
    said = ", ".join(f"{x['format']} {int(x['bytes']) / 1e6:.0f}" for x in sizes)
    whole = int(sizes[0]["float_bytes"]) / 1e6
    yield judging.reported(f"megabytes, of {whole:.0f} in float32", said)


def perplexity(rows: study.Rows, column: str) -> float:
    """Returns the perplexity of all tokens of some rows."""
    nats, tokens = (study.column(rows, name).sum() for name in (column, "tokens"))
    return float(np.exp(nats / tokens))


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns what formats cost, rounded and learnt; a dot is a paper."""
    rows = tables["papers"]
    arms = study.distinct(rows, "arm")
    marks: list[charts.Mark] = []
    for number, arm in enumerate(arms):
        samples = [cost(rows, arm, form) for form in config.formats]
        label = {ROUNDED: "rounded", LEARNT: f"after {config.steps} steps in it"}[arm]
        marks.append(charts.beside(number, len(arms), samples, label, dot=2))
    marks.append(charts.ZERO)
    axes = {"title": "What a format costs", "ylabel": "nats a token above float"}
    axes |= {"xticks": range(len(config.formats)), "xticklabels": config.formats}
    return charts.Grid(panels=[charts.Panel(marks=marks, axes=axes)], width=6)


def seconds(config: Config) -> float:
    """Estimates reading texts by two models, and steps, by their tokens."""
    reading = (len(config.formats) * (2 if config.steps else 1)) * config.papers * config.length
    learning = len(config.formats) * config.steps * config.batch_size * config.length
    return 60 + reading * 0.025 + learning * 0.07


def before(config: Config) -> Iterator[str]:
    """Yields memory, disk, and what can be shown."""
    shape = real_models.require(config.model, "aclsum")
    copies = 7 if config.steps else 3
    yield real_models.memory(shape, copies, config.batch_size * config.length)
    if config.steps:
        yield real_models.disk(shape)
    yield real_models.power(config.papers, PAPERS[1])


STUDY = study.Study(
    claim="A real model loses little by 8 bits and more by 4, and steps in the numbers of a format "
    "win back most of that.",
    source="Gemma Team 2025, arXiv:2503.19786, section 2.3",
    config=Config(),
    arms=arms,
    tables=tables,
    claims=claims,
    figures=lambda config, tables: {"real-bits": panels(config, tables)},
    seconds=seconds,
    before=before,
)
