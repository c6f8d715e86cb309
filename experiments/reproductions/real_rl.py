"""`kullback reproduce real-rl`: entailment as the reward of summaries that a real model writes.

Roit et al., "Factually Consistent Summarization via Reinforcement Learning with Textual Entailment
Feedback" (RLEF), ACL 2023, https://arxiv.org/abs/2306.00186, have an actor and a critic; here the
published Gemma 3 270M, tuned on summaries first (real_sft.py), learns by leave-one-out baselines of
four texts a prompt, without a value network (RLOO). Two models of entailment are trained here: the
one that is the reward, and a control of another kind that is never learnt from. Beside the policies
stand the best of N texts of the start by the reward, at equal KL.

What is judged is over held-out papers, by the mean of seeds: that the control rises, that it rises
beyond best of N at equal KL (whose KL is at most ln N - (N - 1) / N, and is taken for that), and
that ROUGE stays. The small study, of policies that choose sentences, is `kullback reproduce rlef`.
The start is one, and seeds draw prompts and texts. With a GPU, and RLEF's actor and critic by
`kullback train rlef`:

    kullback reproduce real-rl --set steps=1000 --set batch_size=64 --set papers=100 --set seeds=5
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from kullback.core import ranges
from kullback.experiments.evaluate import evaluation as evaluations
from kullback.experiments.reproductions import (
    charts,
    judging,
    real_models,
    real_sft,
    real_summaries,
    study,
)
from kullback.experiments.runs import episodes, rewards
from kullback.lm import answers, best_of_n, data, evaluation, rollouts
from kullback.lm.entailment import scorers

START, POLICY = "start", "RLOO"
PAPERS = "paper", "papers"
SHARED = "the papers and the start"
SAMPLES = 4  # Texts of a prompt, in learning, and at once of the start's.
MEASURES = {
    "entailment": "P(entailment) by the reward",
    "control": "P(entailment) by the control",
    "kl": "KL to the start, nats of a text (best of N: at most)",
    **real_summaries.COLUMNS,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Seeds and sizes."""

    model: str = real_models.PUBLISHED
    seeds: int = 2
    first_seed: int = 100
    rank: int = 16  # Of adapters, of the start and of policies.
    sft_steps: int = 60  # Of the start, of 8 examples each.
    steps: int = 30  # Of reinforcement learning.
    batch_size: int = 16  # Texts of a step.
    learning_rate: float = 5e-5
    kl_coefficient: float = 0.05  # beta.
    best_of: tuple[int, ...] = (2, 4, 8, 16)  # N, multiples of 4 from there on.
    papers: int = 34  # Held-out ones, of three prompts each, at most 100.
    max_prompt_length: int = 256  # Tokens; of longer prompts the last ones.
    max_new_tokens: int = 64
    entailment: str = ""  # Folders of `kullback entailment`; "" trains one here.
    control: str = ""
    entailment_steps: int = 240
    control_steps: int = 3_000
    least_area: float = 0.65  # Of both under the ROC curve; a study without judges ends.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "seeds", "steps")
        ranges.at_least(2, self, "entailment_steps", "control_steps")
        ranges.inside("(0, inf)", self, "learning_rate")
        ranges.inside("[0, inf)", self, "kl_coefficient")
        ranges.inside("[0, 1]", self, "least_area")
        ranges.multiples(SAMPLES, self, "batch_size")
        if [*self.best_of] != sorted({*self.best_of}) or not self.best_of or self.best_of[0] < 2:
            raise ValueError(f"best_of must be numbers >= 2 that rise, got {self.best_of}")
        if self.best_of[-1] % SAMPLES:
            raise ValueError(
                f"the last of best_of must be a multiple of {SAMPLES}, got {self.best_of}"
            )
        _ = self.sft  # Which checks the rest.

    @property
    def sft(self) -> real_sft.Config:
        """Settings of the start, as of `real-sft`."""
        names = ("model", "first_seed", "rank", "papers", "max_prompt_length", "max_new_tokens")
        same = {name: getattr(self, name) for name in names}
        return real_sft.Config(seeds=1, ranks=(), steps=self.sft_steps, **same)

    @property
    def judges(self) -> dict[str, str]:
        """Folders of the models of entailment by their role, see `real_summaries.ROLES`."""
        return {"entailment": self.entailment, "control": self.control}


def stages(config: Config, classifier: pathlib.Path, seed: int) -> dict[str, dict[str, Any]]:
    """Returns the stages of the start and a policy.

    Args:
      config: of both.
      classifier: folder of the model of entailment that is the reward.
      seed: of the policy.
    """
    settings = {
        **config.sft.lengths,
        "samples_per_prompt": SAMPLES,
        "share_prompts": True,
        "batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "kl_coefficient": config.kl_coefficient,
        "warmup_steps": real_models.warmup(config.steps),
        "lora.rank": config.rank,
    }
    begin = "rlhf", real_summaries.TASK, f"{{{START}}}", config.steps, seed
    policy = real_models.train(*begin, reward=f"entailment:{classifier}", settings=settings)
    return {**start_stage(config), "policy": policy}


def start_stage(config: Config) -> dict[str, dict[str, Any]]:
    """Returns the stage of the start."""
    return {START: real_sft.stage(config.sft, config.rank, config.first_seed)}


def judges(config: Config, journal: study.Journal) -> dict[str, scorers.Entailment]:
    """Loads the models of entailment, which are there, by the column that they fill."""
    return {
        role: scorers.load(real_summaries.judge_folder(role, folder, journal))
        for role, folder in config.judges.items()
    }


class Written(NamedTuple):
    """Texts of n held-out prompts, G of each."""

    evaluator: evaluation.Evaluator
    examples: list[data.Example]  # [n].
    texts: list[list[str]]  # [n] of [G].
    kl: np.ndarray  # Log-ratio to the start, nats of a text, [n, G].


def write(
    config: Config, path: pathlib.Path, start: pathlib.Path, samples: int, seed: int
) -> Written:
    """Writes texts of held-out prompts at temperature 1.

    Args:
      config: of the prompts.
      path: of the policy's run.
      start: of the start's run.
      samples: G; above SAMPLES so many at once, and then again.
      seed: of the texts.
    """
    subject, before = (
        real_models.subject(x, real_summaries.TASK, **config.sft.lengths) for x in (path, start)
    )
    of, params = evaluations.evaluator_of(subject), subject.checkpoint.params
    of_start = params if path == start else before.checkpoint.params
    at_once = min(samples, SAMPLES)
    actor = episodes.Actor(
        sampler=of.sampler(samples_per_prompt=at_once),
        evaluator=of,
        reward=rewards.parse("length", of.task, of.tokenizer),  # It is not used.
    )
    log_probabilities = jax.jit(
        functools.partial(answers.log_probabilities, of.model, chunk=of.learning.chunk)
    )

    def columns(written: rollouts.Episodes, examples: Any) -> dict[str, np.ndarray]:
        rows = written.sequences
        kl = rollouts.log_ratios(written, log_probabilities(of_start, rows))
        by_text = {"texts": np.array(of.answer_texts(rows), object), "kl": np.asarray(kl)}
        return {name: x.reshape(len(examples), at_once) for name, x in by_text.items()}

    count, passes = of.kept(config.sft.examples), -(-samples // at_once)
    keys = jax.random.split(jax.random.key(seed), passes)
    parts = [actor.measured({"params": params}, count, key, columns) for key in keys]
    texts, kl = (np.concatenate([part[name] for part in parts], 1) for name in ("texts", "kl"))
    return Written(of, of.test[:count], texts.tolist(), kl)


def start_and_best(config: Config, journal: study.Journal) -> Iterator[study.Row]:
    """Yields measures of the start's texts, and of the best of N of them."""
    path = real_models.run(start_stage(config), "runs", journal)[START]
    written = write(config, path, path, config.best_of[-1], config.first_seed)
    by_column = judges(config, journal)
    shown = [written.evaluator.example_texts(x)["prompt"] for x in written.examples]
    document = written.evaluator.task.document
    documents = [document(*pair) for pair in zip(written.examples, shown, strict=True)]
    count = len(written.texts[0])
    flat = [text for texts in written.texts for text in texts]
    premises = [one for one in documents for _ in range(count)]
    scores = np.asarray(by_column["entailment"].log_probability(premises, flat)).reshape(-1, count)
    for n in (1, *config.best_of):
        chosen = np.argmax(scores[:, :n], 1)  # The first of equals.
        texts = [of_prompt[i] for of_prompt, i in zip(written.texts, chosen, strict=True)]
        arm, kl = (START, 0.0) if n == 1 else (best(n), best_of_n.kl_bound(n))
        for row in real_summaries.describe(written.evaluator, written.examples, texts, by_column):
            yield {"arm": arm, "kl": kl, **row}


def learn(config: Config, seed: int, journal: study.Journal) -> Iterator[study.Row]:
    """Yields measures of a policy's texts, one of each held-out prompt."""
    folder = real_summaries.judge_folder("entailment", config.entailment, journal)
    trained = real_models.run(stages(config, folder, seed), "runs", journal)
    written = write(config, trained["policy"], trained[START], 1, config.first_seed)
    texts = [of_prompt[0] for of_prompt in written.texts]
    described = real_summaries.describe(
        written.evaluator, written.examples, texts, judges(config, journal)
    )
    for row, kl in zip(described, written.kl[:, 0].tolist(), strict=True):
        yield {"arm": POLICY, "kl": kl, **row}


def best(n: int) -> str:
    """Returns the name of an arm."""
    return f"best of {n}"


def arms(config: Config) -> Iterator[study.Arm]:
    """Yields models of entailment, the start with best of N, and policies."""
    yield real_models.base(config.model)
    steps = {"entailment": config.entailment_steps, "control": config.control_steps}
    for role, folder in config.judges.items():
        yield real_summaries.judge_arm(role, folder, steps[role], config.least_area)
    compute = functools.partial(start_and_best, config)
    columns = {"seed": config.first_seed}
    yield study.Arm(START, 20 + config.sft_steps, compute, "summaries", columns)
    for seed in study.seeds_of(config):
        compute = functools.partial(learn, config, seed)
        yield study.Arm(f"policy-{seed}", 10 + config.steps, compute, "summaries", {"seed": seed})


def tables(config: Config, rows: study.Rows) -> study.Tables:
    """Returns the base, the models of entailment, and measures of summaries."""
    del config
    return study.split(rows, "base", "judges", "summaries")


def at_kl(config: Config, rows: study.Rows, column: str, kl: float) -> np.ndarray:
    """Returns a column of best of N at some KL, [papers]; between two N a line over its root.

    What is gained grows about with the root of KL: Gao, Schulman & Hilton, "Scaling laws for reward
    model overoptimization", ICML 2023.
    """
    counts = (1, *config.best_of)
    arms = [START, *map(best, config.best_of)]
    roots = [math.sqrt(best_of_n.kl_bound(n)) for n in counts]
    by_arm = np.stack([real_summaries.by_paper(rows, column, arm=arm) for arm in arms])
    return np.array([np.interp(math.sqrt(kl), roots, of_paper) for of_paper in by_arm.T])


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges policies by the control, beside the start and best of N; reports the rest."""
    rows = tables["summaries"]
    of = functools.partial(real_summaries.by_paper, rows)
    above = functools.partial(judging.above, units=PAPERS, shared=SHARED)
    gain = {name: of(name, arm=POLICY) - of(name, arm=START) for name in MEASURES}
    yield above("P by the reward rises from the start (difference)", gain["entailment"])
    claim = "P by the control, which is never learnt from, rises (difference)"
    yield judging.headline(above(claim, gain["control"]))
    # An estimate from texts, which may lie a little below 0.
    kl = max(0.0, float(of("kl", arm=POLICY).mean()))
    if kl <= best_of_n.kl_bound(config.best_of[-1]):
        claim = "P by the control is above that of best of N at equal KL (difference)"
        more = of("control", arm=POLICY) - at_kl(config, rows, "control", kl)
        yield judging.headline(above(claim, more))
    else:
        yield judging.reported("KL of the policies, where best of N has none", f"{kl:.3g}")
    claim = "ROUGE-L falls by less than 0.02 (0.02 less the fall)"
    yield judging.headline(above(claim, 0.02 + gain["rouge_l"]))
    yield from reports(tables)


def reports(tables: study.Tables) -> Iterator[judging.Check]:
    """Yields figures that are not judged."""
    rows = tables["summaries"]
    yield real_models.reported_base(tables)
    said = "; ".join(
        f"{x['role']}: accuracy {x['accuracy']:.3f}, area {x['auc']:.3f}" for x in tables["judges"]
    )
    yield judging.reported("models of entailment on pairs of other papers", said)
    arms = study.distinct(rows, "arm")
    for column, what in MEASURES.items():
        named = {arm: real_summaries.by_paper(rows, column, arm=arm) for arm in arms}
        yield judging.reported(what, judging.means(named))
    by_seed = real_summaries.by_seed(rows, "control", POLICY)
    yield judging.reported("P by the control, by seed", by_seed)


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns measures over KL: best of N, and policies; means of papers."""
    rows = tables["summaries"]
    shown = []
    for column in ("entailment", "control", "rouge_l", "words"):
        means = {
            arm: [real_summaries.by_paper(rows, name, arm=arm).mean() for name in ("kl", column)]
            for arm in (START, *map(best, config.best_of))
        }
        x, y = zip(*means.values(), strict=True)
        marks: list[charts.Mark] = [charts.Line(x, y, "best of N", {"marker": "^", "color": "k"})]
        policies = study.where(rows, arm=POLICY)
        points = [
            [np.mean(study.column(policies, name, seed=seed)) for name in ("kl", column)]
            for seed in study.distinct(policies, "seed")
        ]
        x, y = zip(*points, strict=True)
        marks.append(charts.Line(x, y, POLICY, {"marker": "o", "ls": "", "color": "C0"}))
        axes = {"title": MEASURES[column], "xlabel": "KL to the start, nats of a text"}
        shown.append(charts.Panel(marks=marks, axes=axes, legend={"fontsize": 7}))
    return charts.Grid(panels=shown, columns=2, title_size=9)


def tokens(config: Config) -> int:
    """Returns the tokens of a step, which has each prompt once."""
    prompts = config.batch_size // SAMPLES
    return prompts * (config.max_prompt_length + SAMPLES * config.max_new_tokens)


def seconds(config: Config) -> float:
    """Estimates models of entailment, the start, steps by their tokens, and texts."""
    sft = config.sft
    width = sft.max_prompt_length + sft.max_new_tokens
    judged = 0.0 if config.entailment else 1.4 * config.entailment_steps
    judged += 0.0 if config.control else 50 + 0.003 * config.control_steps
    start = sft.steps * sft.batch_size * width * real_sft.OF_TOKEN
    written = config.batch_size * sft.max_new_tokens * 0.015
    policy = config.steps * (tokens(config) * 1.4 * real_sft.OF_TOKEN + written)
    texts = sft.examples * sft.max_new_tokens * 0.02 * (config.best_of[-1] + config.seeds)
    return judged + start + config.seeds * (60 + policy) + texts


def before(config: Config) -> Iterator[str]:
    """Yields memory, and what can be shown."""
    for role, folder in config.judges.items():
        real_summaries.check_judge(role, folder)
    packages = real_summaries.PACKAGES
    shape = real_models.require(
        config.model, *(packages[:1] if config.entailment and config.control else packages)
    )
    yield real_models.memory(shape, 2, tokens(config))
    yield real_models.power(config.papers, PAPERS[1])


STUDY = study.Study(
    claim="With entailment as the reward, summaries of a real model are more entailed by their "
    "document, by a judge that it never learnt from too, beyond best of N at equal KL.",
    source="Roit et al. 2023, arXiv:2306.00186",
    config=Config(),
    arms=arms,
    tables=tables,
    claims=claims,
    figures=lambda config, tables: {"real-rl": panels(config, tables)},
    seconds=seconds,
    before=before,
)
