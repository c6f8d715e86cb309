"""`kullback reproduce routing`: when many chains of thought answer better than the greedy answer.

Gemini Team, "Gemini: A Family of Highly Capable Multimodal Models", 2023,
https://arxiv.org/abs/2312.11805, section 5.1.1: the agreed answer of k chains where enough agree,
else the greedy answer without a chain; the threshold is chosen on validation questions.

A small decoder learns sums of two numbers below 100 in two forms: "27+58=" is followed by "85", and
"27+58:" by a chain, "7+8=15,2+5+1=8#85". Where the units carry, chains mislead: of those that it
learns from, `forgets` forget the carry, and `scatters` end in a random number; the answers without
a chain are all right. So that the world is one in which routing may help: the share of such sums is
0.45. Whether this decoder's agreement says when to trust it is the question.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from kullback.core import ranges, types
from kullback.experiments.evaluate import answer_report, answering
from kullback.experiments.reproductions import (
    charts,
    judging,
    setups,
    small_models,
    students,
    study,
)
from kullback.experiments.runs import episodes, rewards
from kullback.lm import batches, data, evaluation, gemma, tasks, tokenizer, votes

MOST = 198  # The largest sum.
WAYS = {"majority": "majority", "routed": "routed", "pass": "one of k is right"}
Problem = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The decoder, the chains that it learns from, and the questions."""

    width: int = 64
    layers: int = 3
    steps: int = 6_000  # After 700 of a narrower one answers without a chain were not learnt yet.
    batch_size: int = 64
    learning_rate: float = 3e-3
    chains: int = 1  # Of each problem, drawn apart; beside one answer without a chain.
    forgets: float = 0.4  # Share of the chains of a sum with a carry that forget it.
    scatters: float = 0.3  # Share of these that end in a random number.
    samples: int = 32  # k; the paper's are 8 and 32.
    validation: int = 400  # Questions, of the 1,000 that are held out.
    questions: int = 600
    rows: int = 50  # Questions that are answered side by side.
    seeds: int = 3
    first_seed: int = 100

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "steps", "chains", "validation", "questions", "rows", "seeds")
        ranges.at_least(2, self, "samples")
        ranges.inside("[0, 1]", self, "forgets", "scatters")
        ranges.multiples(8, self, "width")
        ranges.multiples("rows", self, "validation", "questions")
        if self.forgets + self.scatters > 1:
            raise ValueError(
                f"forgets and scatters are shares of the same chains, got {self.forgets} + "
                f"{self.scatters} > 1"
            )
        if self.validation + self.questions > 1_000:
            raise ValueError(
                f"1,000 problems are held out, got validation={self.validation} and "
                f"questions={self.questions}"
            )

    @property
    def learning(self) -> setups.Sizes:
        """Sizes of learning, of which a set-up is made."""
        return setups.Sizes(
            max_prompt_length=8,
            max_new_tokens=24,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
        )


def carries(problem: Problem) -> bool:
    """Returns whether the units of a sum carry."""
    return problem[0] % 10 + problem[1] % 10 > 9


def chain(problem: Problem, *, forgets: bool = False, answer: int | None = None) -> str:
    """Returns a chain of thought; `answer` stands at its end in place of what follows from it."""
    (a, x), (b, y) = (divmod(n, 10) for n in problem)
    carry = 0 if forgets else (x + y) // 10
    tens = a + b + carry
    steps = f"{x}+{y}={x + y},{a}+{b}{f'+{carry}' if carry else ''}={tens}"
    return f"{steps}#{10 * tens + (x + y) % 10 if answer is None else answer}"


def learnt_texts(config: Config, problems: Sequence[Problem]) -> list[tuple[str, str]]:
    """Returns prompts and completions, of which some chains mislead, the same for all seeds."""
    random, texts = np.random.default_rng(0), list[tuple[str, str]]()
    for a, b in problems:
        texts.append((f"{a}+{b}=", str(a + b)))
        for _ in range(config.chains):
            draw, other = random.random(), int(random.integers(MOST + 1))
            misleads = carries((a, b))
            forgets = misleads and draw < config.forgets
            scatters = misleads and not forgets and draw < config.forgets + config.scatters
            text = chain((a, b), forgets=forgets, answer=other if scatters else None)
            texts.append((f"{a}+{b}:", text))
    return texts


@functools.cache
def problems(split: tasks.Split) -> list[Problem]:
    """Returns the problems of a split, see `tasks.arithmetic`."""
    texts = tasks.arithmetic(tasks.Arithmetic()).texts(split)
    return [(int(a), int(b)) for a, b in (text.split("=")[0].split("+") for text in texts)]


class World:
    """The tokenizer, the decoder and the examples of a configuration."""

    def __init__(self, config: Config):
        """Encodes all texts."""
        self.config, sizes = config, config.learning
        texts = learnt_texts(config, problems("train"))
        self.tokenizer = tokenizer.train_bpe([a + b for a, b in texts], sizes.max_vocab_size)
        shape = small_models.decoder(
            self.tokenizer.vocab_size, config.width, config.layers, sizes.length
        )
        self.model = gemma.make(small_models.speaking(shape, self.tokenizer))
        self.learning = sizes.learning(config.learning_rate)
        train = [self.example(*text) for text in texts]
        prompts = batches.pad_prompts(
            [x.prompt for x in train], sizes.max_prompt_length, self.tokenizer.pad_id
        )
        rows = batches.pad(train, sizes.length, self.tokenizer.pad_id)
        self.setup = setups.alone(self.model, self.learning, rows, prompts)
        task = tasks.arithmetic(tasks.Arithmetic())
        self.evaluator = evaluation.Evaluator(self.model, self.tokenizer, task, [], self.learning)
        self.trainer = students.tuner(self.setup, self.model)

    def example(self, prompt: str, completion: str) -> data.Example:
        """Returns a prompt and its completion as ids."""
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        ids = [self.tokenizer.encode(text) for text in (prompt, completion)]
        return data.Example((bos, *ids[0]), (*ids[1], eos))

    @functools.cached_property
    def actors(self) -> dict[str, episodes.Actor]:
        """The actors that write after "=", greedily, and after ":", k chains."""
        reward = rewards.Reward("", (), ())
        samplers = {
            "=": self.evaluator.sampler(answering.GREEDY),
            ":": self.evaluator.sampler(samples_per_prompt=self.config.samples),
        }
        return {
            mark: episodes.Actor(sampler=sampler, evaluator=self.evaluator, reward=reward)
            for mark, sampler in samplers.items()
        }

    def answers(
        self, params: types.Params, asked_of: Sequence[Problem], key: types.Key
    ) -> answer_report.Table:
        """Returns the answers to problems as codes."""
        size, k, responses = self.config.rows, self.config.samples, list[answering.Responses]()
        for first in range(0, len(asked_of), size):
            part = asked_of[first : first + size]
            written = {
                mark: answering.write(
                    actor,
                    {"params": params},
                    [self.example(f"{a}+{b}{mark}", str(a + b)) for a, b in part],
                    jax.random.fold_in(key, first),
                )
                for mark, actor in self.actors.items()
            }
            for row, (a, b) in enumerate(part):
                samples = written[":"][row * k : (row + 1) * k]
                one = answering.Responses(f"{a}+{b}", str(a + b), written["="][row], samples)
                responses.append(one)
        return answer_report.table(responses, "number")


def measured(
    validation: answer_report.Table, questions: answer_report.Table, is_hard: np.ndarray
) -> study.Rows:
    """Returns rows of both tables: accuracies over k, and what routing is about at all k."""
    analysis = answer_report.Analysis(questions=questions, validation=validation)
    accuracies, columns = analysis.rows(), ("way", "k", "accuracy", "tokens")
    rows = [{name: row[name] for name in columns} for row in accuracies]
    counted, k = votes.majority(questions.codes), analysis.samples
    of_majority = questions.is_right(counted.answers)
    of_greedy = questions.is_right(questions.greedy)
    shown = analysis.estimates(accuracies)
    row = {
        "threshold": analysis.thresholds[k],
        "routed_to_greedy": shown["routed_to_greedy"].mean,
        "agreement_tells_right": shown["agreement_tells_right"].mean
        if "agreement_tells_right" in shown
        else float("nan"),
    }
    for name, chosen in (("hard", is_hard), ("easy", ~is_hard)):
        row[f"majority_{name}"] = float(of_majority[chosen].mean())
        row[f"greedy_{name}"] = float(of_greedy[chosen].mean())
    return [*study.tagged("accuracy", rows), *study.tagged("routing", [row])]


def arms(config: Config) -> list[study.Arm]:
    """Returns an arm a seed: a decoder learns, and answers."""
    world = functools.cache(lambda: World(config))
    held_out = problems("test")[: config.validation + config.questions]

    def compute(seed: int, journal: study.Journal) -> study.Rows:
        params = students.learn(
            world().setup, world().trainer, config.steps, seed, tick=journal.tick
        )
        key = jax.random.fold_in(jax.random.key(seed), 3)
        first, rest = held_out[: config.validation], held_out[config.validation :]
        validation, questions = (
            world().answers(params, part, jax.random.fold_in(key, n))
            for n, part in enumerate((first, rest))
        )
        return measured(validation, questions, np.array([*map(carries, rest)]))

    return [
        study.Arm(
            f"seed-{seed}", config.steps, functools.partial(compute, seed), columns={"seed": seed}
        )
        for seed in study.seeds_of(config)
    ]


def tables(config: Config, rows: study.Rows) -> study.Tables:
    """Returns accuracies over k, and what routing is about."""
    return study.split(rows, "accuracy", "routing")


def claims(config: Config, tables: study.Tables) -> Iterator[judging.Check]:
    """Judges routing against both of its parts, votes against one sample, and the agreement."""
    rows, routing, k = tables["accuracy"], tables["routing"], config.samples
    of = functools.partial(study.column, rows, "accuracy")
    routed, majority, greedy = of(way="routed", k=k), of(way="majority", k=k), of(way="greedy")
    shared = "the decoder and its samples"
    for other, values in (("the majority", majority), ("the greedy answer", greedy)):
        claim = f"routed answers of {k} chains are right more often than {other} (difference)"
        yield judging.headline(judging.above(claim, routed - values, shared=shared))
    claim = f"the majority of {k} chains is right more often than one chain (difference)"
    yield judging.above(claim, majority - of(way="one sample"), shared=shared)
    claim = "where the units carry the greedy answer is right more often than the majority"
    of_routing = functools.partial(study.column, routing)
    hard = of_routing("greedy_hard") - of_routing("majority_hard")
    yield judging.above(f"{claim} (difference)", hard, shared=shared)
    claim = "chance that a right majority has a higher agreement than a wrong one, above 1/2"
    ranks = of_routing("agreement_tells_right")
    yield judging.above(claim, ranks[np.isfinite(ranks)], 0.5)
    for name, what in (
        ("threshold", "threshold, chosen on validation"),
        ("routed_to_greedy", "share of questions that are answered greedily"),
        ("majority_easy", "majority, where nothing carries"),
        ("greedy_easy", "greedy answer, where nothing carries"),
    ):
        yield judging.reported(what, judging.mean(of_routing(name)))
    yield judging.reported(
        f"greedy, one chain, majority, routed, one of {k}",
        ", ".join(
            str(judging.mean(x))
            for x in (greedy, of(way="one sample"), majority, routed, of(way="pass", k=k))
        ),
    )


def panels(config: Config, tables: study.Tables) -> charts.Grid:
    """Returns accuracy over the number of chains; thin lines are seeds, a thick one their mean."""
    rows = tables["accuracy"]
    counts = sorted({row["k"] for row in rows if row["way"] == "majority"})
    dots = {"marker": "o", "markersize": 3, "lw": 0.8, "alpha": 0.5}
    marks: list[charts.Mark] = []
    for number, (way, label) in enumerate(WAYS.items()):
        y = study.by_seed(rows, "accuracy", way=way)
        marks.append(charts.Seeds(counts, y, label, {"color": f"C{number}"}, dots, {"lw": 2}))
    greedy = study.by_seed(rows, "accuracy", way="greedy")
    y, styles = np.repeat(greedy, len(counts), 1), ({"color": "0.4"}, {"lw": 0.8, "alpha": 0.5})
    marks.append(charts.Seeds(counts, y, "greedy, without a chain", *styles, {"lw": 2}))
    axes = {
        "title": "Sums, whose chains mislead where units carry",
        "xlabel": "chains of thought k",
        "ylabel": "accuracy",
        "xticks": counts,
    }
    return charts.Grid(
        panels=[charts.Panel(marks=marks, axes=axes, legend={"fontsize": 8})], width=6.0, height=4.0
    )


def seconds(config: Config) -> float:
    """Estimates learning by its tokens, and answers by theirs, on 2 CPU cores."""
    learnt = config.seeds * config.steps * 0.022 * config.batch_size * config.learning.length / 768
    questions = config.validation + config.questions
    return 60 + learnt + config.seeds * questions * config.samples * 0.002


STUDY = study.Study(
    claim="Where chains of thought agree their answer is better than the greedy one, and elsewhere "
    "worse, so that routing by agreement beats both.",
    source="Gemini Team 2023, arXiv:2312.11805",
    config=Config(),
    arms=arms,
    tables=tables,
    claims=claims,
    figures=lambda config, tables: {"routing": panels(config, tables)},
    seconds=seconds,
)
