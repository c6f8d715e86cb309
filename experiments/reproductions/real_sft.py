"""`kullback reproduce real-sft`: a real model learns summaries of papers, by adapters or wholly.

The published Gemma 3 270M is tuned on `tokens/summaries`, 300 examples of 100 papers, by adapters
(Hu et al., "LoRA", ICLR 2022, https://arxiv.org/abs/2106.09685), and measured on other papers
before and after: nats a token of the experts' summaries, and of its own greedy ones ROUGE, and
whether the abstract entails them by a model of entailment that is trained here (real_summaries.py).
One rank learns with all seeds and is judged, over papers and by the mean of seeds; others, and all
weights, with the first seed alone are a table of memory, time and quality.

A base model that was never asked for a summary goes on writing after it, so that ROUGE before is
that of a text without an end. Training time and memory are of the machine that ran it, and of what
else it did; the memory is what the run said that it takes. The default is 60 steps of 8 examples,
1.6 epochs. With a GPU:

    kullback reproduce real-sft --set steps=400 --set batch_size=16 --set papers=100
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Iterator

import jax
import numpy as np

from kullback.core import files, ranges
from kullback.experiments.evaluate import evaluation
from kullback.experiments.pipelines import outputs
from kullback.experiments.reproductions import (
    charts,
    judging,
    real_models,
    real_summaries,
    study,
)
from kullback.lm.entailment import scorers

BASE, WHOLE = "base", "all weights"
PAPERS = "paper", "papers"
SHARED = "the papers and their prompts"
SHOWN = 10  # Summaries side by side.
OF_TOKEN = 0.0045  # Seconds of two cores for a token of a step with adapters.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Seeds, ranks and sizes."""

    model: str = real_models.PUBLISHED
    seeds: int = 3
    first_seed: int = 100
    rank: int = 16  # Of the adapters that are judged.
    ranks: tuple[int, ...] = (4, 64, 0)  # Others, of the first seed; 0 is all weights.
    steps: int = 60
    batch_size: int = 8
    learning_rate: float = 2e-4  # Of adapters; both are the defaults for models of this size.
    whole_rate: float = 5e-5  # Of all weights.
    papers: int = 34  # Held-out ones, of three prompts each, at most 100.
    max_prompt_length: int = 256  # Tokens; of longer prompts the last ones.
    max_new_tokens: int = 64
    entailment: str = ""  # Folder of `kullback entailment`; "" trains one here.
    entailment_steps: int = 240
    least_area: float = 0.65  # Of that model under the ROC curve; a study without it ends.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds", "rank", "steps", "batch_size", "max_new_tokens")
        ranges.at_least(0, self, "first_seed")
        ranges.inside("[0, inf]", self, "ranks", may_be_empty=True)
        ranges.at_least(2, self, "max_prompt_length", "entailment_steps")
        ranges.inside("[2, 100]", self, "papers")
        ranges.inside("[0, 1]", self, "least_area")
        ranges.inside("(0, inf)", self, "learning_rate", "whole_rate")
        if self.rank in self.ranks:
            raise ValueError(f"ranks are others than rank={self.rank}, got {self.ranks}")

    @property
    def lengths(self) -> dict[str, int | str]:
        """Lengths of prompts and summaries."""
        sizes = {"max_prompt_length": self.max_prompt_length, "max_new_tokens": self.max_new_tokens}
        return {**sizes, "overlong": "truncate-left"}

    @property
    def examples(self) -> int:
        """Held-out prompts."""
        return real_summaries.ASPECTS * self.papers


def name_of(rank: int) -> str:
    """Returns the name of an arm."""
    return f"rank {rank}" if rank else WHOLE


def stage(config: Config, rank: int, seed: int) -> dict:
    """Returns the stage that tunes the model."""
    settings = {
        **config.lengths,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate if rank else config.whole_rate,
        "warmup_steps": real_models.warmup(config.steps),
        "schedule": "linear",
        "lora.rank": rank,
    }
    begin = "sft", real_summaries.TASK, config.model, config.steps, seed
    return real_models.train(*begin, settings=settings)


def measure(config: Config, arm: str, path: str, journal: study.Journal) -> Iterator[study.Row]:
    """Yields a row a held-out prompt, and the first few summaries."""
    subject = real_models.subject(path, real_summaries.TASK, **config.lengths)
    evaluator, params = evaluation.evaluator_of(subject), subject.checkpoint.params
    classifier = scorers.load(real_summaries.judge_folder("entailment", config.entailment, journal))
    nats = real_models.likelihoods(evaluator, params, config.examples)
    written = evaluator.answers(
        {"params": params}, config.examples, jax.random.key(0), evaluator.greedy
    )
    examples = evaluator.test[: len(nats)]
    measured = real_summaries.describe(
        evaluator, examples, written.texts, {"entailment": classifier}
    )
    for n, (of_target, of_text) in enumerate(zip(nats, measured, strict=True)):
        ended = {"ended": float(written.done[n])}
        yield {"table": "summaries", "arm": arm, **of_target, **of_text, **ended}
        if n < SHOWN:
            shown = evaluator.example_texts(examples[n])
            row = {"arm": arm, "example": n, "prompt": shown["prompt"], "target": shown["target"]}
            yield {"table": "texts", **row, "text": written.texts[n]}


def tune(config: Config, rank: int, seed: int, journal: study.Journal) -> Iterator[study.Row]:
    """Yields what tuning took, then the measures of the tuned model."""
    name = scratch(rank, seed)
    path = real_models.run({"tuned": stage(config, rank, seed)}, name, journal)["tuned"]
    newest = max((path / "checkpoints").iterdir())
    log = (journal.path(name) / outputs.RECORDS / f"{path.name}.log").read_text()
    said = re.search(r"^memory: ([^(\n]+)", log, re.MULTILINE)
    row = {"arm": name_of(rank), "seconds": real_models.seconds(path)}
    row |= {"memory": said[1].strip() if said else "", "checkpoint_bytes": files_bytes(newest)}
    yield {"table": "runs", **row}
    yield from measure(config, name_of(rank), str(path), journal)


def files_bytes(folder: pathlib.Path) -> int:
    """Returns the bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def scratch(rank: int, seed: int) -> str:
    """Returns the name of a run's folder."""
    return f"rank-{rank}-{seed}"


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields the judge, the base, and tuned models."""
    yield real_models.base(config.model)
    yield real_summaries.judge_arm(
        "entailment", config.entailment, config.entailment_steps, config.least_area
    )
    before = functools.partial(measure, config, BASE, config.model)
    yield study.Arm("before", 10, before, "", {"seed": None})
    for rank in (config.rank, *config.ranks):
        for seed in study.seeds_of(config) if rank == config.rank else (config.first_seed,):
            compute, where = functools.partial(tune, config, rank, seed), scratch(rank, seed)
            columns = {"seed": seed}
            yield study.Arm(where, 10 + config.steps, compute, "", columns, where)


def tables(config: Config, rows: study.Rows) -> study.Tables:
    """Returns base and judge, runs, measures, and summaries side by side."""
    by_table = study.split(rows, "base", "judges", "runs", "summaries", "texts")
    first = (None, config.first_seed)
    texts = [row for row in by_table["texts"] if row["seed"] in first]
    beside: study.Rows = []
    for n in study.distinct(texts, "example"):
        of_example = study.where(texts, example=n)
        shown = {name: of_example[0][name] for name in ("example", "prompt", "target")}
        beside.append(shown | {row["arm"]: row["text"] for row in of_example})
    return {**by_table, "texts": beside}


def gain(rows: study.Rows, column: str, arm: str) -> np.ndarray:
    """Returns how much more of a column a tuned model has than the base, [papers]."""
    of = functools.partial(real_summaries.by_paper, rows, column)
    return of(arm=arm) - of(arm=BASE)


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges gains of each paper, by the mean of seeds; reports the rest."""
    rows = [{**row, "a_token": row["nats"] / row["tokens"]} for row in tables["summaries"]]
    above = functools.partial(judging.above, units=PAPERS, shared=SHARED)
    judged, name = name_of(config.rank), f"adapters of {name_of(config.rank)}"
    claim = f"{name}: fewer nats a token of the experts' summaries than the base (difference)"
    yield judging.headline(above(claim, -gain(rows, "a_token", judged)))
    for column, what in {"rouge_l": "ROUGE-L", "entailment": "P(entailment)"}.items():
        claim = f"{name}: its summaries have more {what} than the base's texts (difference)"
        yield judging.headline(above(claim, gain(rows, column, judged)))
    if 0 in config.ranks:
        claim = f"{name}: at most 0.05 nats a token behind all weights (0.05 less the difference)"
        behind = gain(rows, "a_token", judged) - gain(rows, "a_token", WHOLE)
        yield above(claim, 0.05 - behind)
    yield from reports(config, {**tables, "summaries": rows})


def reports(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Yields figures that are not judged."""
    (judged,) = tables["judges"]
    yield real_models.reported_base(tables)
    said = f"accuracy {judged['accuracy']:.3f}, area {judged['auc']:.3f}, on pairs of other papers"
    yield judging.reported("model of entailment", said)
    rows = tables["summaries"]
    arms = study.distinct(rows, "arm")
    named = {"a_token": "nats a token of the experts' summaries", **real_summaries.COLUMNS}
    named |= {"entailment": "P(entailment) by the judge", "ended": "share of texts that end"}
    for column, what in named.items():
        of_arms = {arm: real_summaries.by_paper(rows, column, arm=arm) for arm in arms}
        yield judging.reported(what, judging.means(of_arms))
    by_seed = real_summaries.by_seed(rows, "a_token", name_of(config.rank))
    yield judging.reported("nats a token by seed", by_seed)
    said = "; ".join(
        f"{row['arm']}: {row['memory']}, {row['seconds']:.0f} s, checkpoint "
        f"{files.size(int(row['checkpoint_bytes']))}"
        for row in tables["runs"]
        if row["seed"] == config.first_seed
    )
    yield judging.reported("memory, time and a checkpoint", said)


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns measures by arm; a dot is a paper."""
    del config
    rows = [{**row, "a_token": row["nats"] / row["tokens"]} for row in tables["summaries"]]
    arms = study.distinct(rows, "arm")
    titles = {"a_token": "nats a token", "rouge_l": "ROUGE-L", "entailment": "P(entailment)"}
    shown = []
    for column, title in titles.items():
        samples = [real_summaries.by_paper(rows, column, arm=arm) for arm in arms]
        axes = {"title": title, "xticks": range(len(arms)), "xticklabels": arms}
        bars = charts.SeedBars(range(len(arms)), samples, style={"color": "C0"}, dot=2)
        shown.append(
            charts.Panel(
                marks=[bars],
                axes=axes,
                legend=None,
                finish=lambda drawn: drawn.tick_params(axis="x", labelsize=7),
            )
        )
    return charts.Grid(panels=shown, width=4.2)


def seconds(config: Config) -> float:
    """Estimates the judge, steps by their tokens, and measures.

    A step of 8 texts of 320 tokens took 20 CPU seconds with adapters of rank 16.
    """
    runs = config.seeds + len(config.ranks)
    tokens = config.batch_size * (config.max_prompt_length + config.max_new_tokens)
    judged = 0.0 if config.entailment else 1.4 * config.entailment_steps
    measures = (1 + runs) * (30 + 1.5 * config.examples)
    of_token = sum(OF_TOKEN if rank else 2 * OF_TOKEN for rank in config.ranks)
    learnt = config.steps * tokens * (config.seeds * OF_TOKEN + of_token)
    return judged + learnt + measures


def before(config: Config) -> Iterator[str]:
    """Yields memory, and what can be shown."""
    real_summaries.check_judge("entailment", config.entailment)
    packages = real_summaries.PACKAGES
    shape = real_models.require(config.model, *(packages[:1] if config.entailment else packages))
    tokens = config.batch_size * (config.max_prompt_length + config.max_new_tokens)
    yield real_models.memory(shape, 5 if 0 in config.ranks else 2, tokens)
    if 0 in config.ranks:
        yield real_models.disk(shape)
    yield real_models.power(config.papers, PAPERS[1])


STUDY = study.Study(
    claim="Adapters beside a real model learn summaries from 300 examples, nearly as well as all "
    "weights do, in less memory.",
    source="Hu et al. 2022, arXiv:2106.09685",
    config=Config(),
    arms=arms,
    tables=tables,
    claims=claims,
    figures=lambda config, tables: {"real-sft": panels(config, tables)},
    seconds=seconds,
    before=before,
)
