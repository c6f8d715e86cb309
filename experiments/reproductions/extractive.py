"""Summaries that are numbers of sentences: papers, questions, and what answers are worth.

The task of `kullback reproduce rlef`. A document is the end of a paper's abstract (ACLSum), as many
sentences as a model of entailment reads at once together with one to judge. A prompt shows numbered
sentences: some of the document, some from elsewhere in the paper, the others from other papers. An
answer is numbers of sentences, then the end of sequence. A policy of a few thousand parameters does
not read English, so it is shown of each sentence what can be measured: how long it is, and which
share of its words are in the document, in eighths; the token of the share says the sentence's
number too. A model of entailment is asked once about each sentence of each paper's pool, and what
an answer is worth follows from this table inside the compiled loop:

    r(x, y) = log max(p_min, mean over the chosen sentences s of P(entailment | x, s))

or the least of them; an answer without sentences has p_min, and a token that is no sentence P = 0.

N papers, S sentences of a paper's pool, K of a prompt, n prompts, B rows, P tokens of a prompt, T
of an answer.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import ranges, types
from kullback.experiments.reproductions import fragments, small_models
from kullback.lm import batches, gemma, rouge, tuning
from kullback.lm.entailment import corruptions, faithfulness

EOS, BOS = 1, 2
LEVELS = 8  # Of each mark.
FIRST_LENGTH = 3  # Tokens of lengths, then those of sentence 1 and shares, of sentence 2, ...
FIRST_SHARE = FIRST_LENGTH + LEVELS
DOCUMENT_WORDS = 64  # With a sentence of 40 words these are some 128 tokens.
MOST_OTHERS = 40  # The smallest split has 50 papers.
GROUPS = ("inside", "elsewhere", "others")  # Where sentences are from.
WORDS = 6, 40  # Of a sentence that may be asked about: the least and the most.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of prompts, answers, the policy and learning; its width is a multiple of 8."""

    inside: int = 2  # Sentences of a prompt that are of the document,
    elsewhere: int = 2  # of the rest of its paper,
    others: int = 4  # and of other papers.
    inside_pool: int = 4  # What a paper's prompts draw from, at most: each one is scored.
    elsewhere_pool: int = 6
    others_pool: int = 10
    least: int = 2  # Sentences that the supervised start learns to choose,
    most: int = 4  # and the most of them.
    # Of the choices that the supervised start imitates, which are of other papers; the remaining
    # ones are sentences that an expert's summary rests on, where a prompt has such.
    noise: float = 0.4
    aggregation: Literal["mean", "min"] = "mean"
    min_probability: float = 1e-4  # p_min.
    width: int = 32
    layers: int = 1
    batch_size: int = 64
    start_rate: float = 1e-2  # Learning rate of the supervised start,
    learning_rate: float = 3e-3  # of the policy,
    value_rate: float = 3e-3  # and of its critic.
    start_steps: int = 1_000
    steps: int = 400  # Of reinforcement learning.
    prompts: int = 400  # Held-out ones, of which measures are means.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, *GROUPS, "least", "start_steps", "steps", "prompts")
        ranges.inside("[least, num_shown]", self, "most")
        if any(pool < shown for pool, shown in zip(self.pools, self.groups, strict=True)):
            raise ValueError(
                f"pools must hold what prompts show, {self.groups} sentences of {GROUPS}, got "
                f"pools of {self.pools}"
            )
        ranges.inside(f"[0, {MOST_OTHERS}]", self, "others_pool")  # One a paper.
        ranges.inside("[0, 1]", self, "noise")
        ranges.inside("(0, 1)", self, "min_probability")
        if self.aggregation not in ("mean", "min"):
            raise ValueError(f"aggregation must be mean or min, got {self.aggregation!r}")

    @property
    def groups(self) -> tuple[int, int, int]:
        """Sentences of a prompt, by group."""
        return self.inside, self.elsewhere, self.others

    @property
    def pools(self) -> tuple[int, int, int]:
        """Sentences of a pool, by group."""
        return self.inside_pool, self.elsewhere_pool, self.others_pool

    @property
    def num_shown(self) -> int:
        """Sentences of a prompt, K."""
        return sum(self.groups)

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt, P: the beginning, two marks of each sentence, and the question."""
        return 2 + 2 * self.num_shown

    @property
    def first_number(self) -> int:
        """The token that chooses sentence 1; after the last one comes the question's."""
        return FIRST_SHARE + self.num_shown * LEVELS

    @property
    def horizon(self) -> int:
        """Tokens of an answer, T: a sentence more than the start chooses, or those and the end."""
        return self.most + 1

    def learning(self, rate: float) -> tuning.Config:
        """Returns settings of a learner."""
        return small_models.learning(self.batch_size, self.prompt_length, self.horizon, rate)

    def model(self) -> gemma.Model:
        """Returns the policy."""
        vocab_size = self.first_number + self.num_shown + 1
        length = self.prompt_length + self.horizon
        return gemma.make(small_models.decoder(vocab_size, self.width, self.layers, length))


SIZES = Sizes()


class Papers(NamedTuple):
    """Documents, and sentences that may be said of each, by `GROUPS` one after another."""

    names: list[str]
    documents: list[str]
    references: list[str]  # The experts' summaries, joined.
    sentences: list[list[str]]  # [N][S]; "" where a paper has fewer.
    is_there: np.ndarray  # bool, [N, S].
    group: np.ndarray  # int, [S].
    is_behind: np.ndarray  # bool, [N, S]: an expert's summary rests on it.
    marks: np.ndarray  # int, [N, S, 2]: levels of length and share.

    @property
    def is_own(self) -> np.ndarray:
        """Whether a sentence is of the paper, bool, [S]."""
        return self.group < GROUPS.index("others")


class Questions(NamedTuple):
    """Papers that prompts are about, and which of their sentences they show, in order."""

    papers: np.ndarray  # int, [n].
    sentences: np.ndarray  # int, [n, K]: places in the pool.


@functools.cache
def read(split: faithfulness.Split, sizes: Sizes) -> Papers:
    """Reads the papers of a split that have enough sentences; draws the same pools each time."""
    all_papers = faithfulness.read_papers(split)
    rng = np.random.default_rng(0)
    ends = [_end(paper.sections[0]) for paper in all_papers]
    elsewhere = [
        [s for s in paper.sentences if _fits(s) and s not in end]
        for paper, end in zip(all_papers, ends, strict=True)
    ]
    kept: list[int] = []
    pools: list[list[str]] = []
    for n, end in enumerate(ends):
        inside = [s for s in end if _fits(s)]
        if len(inside) < sizes.inside or len(elsewhere[n]) < sizes.elsewhere:
            continue
        strangers = rng.permutation([m for m in range(len(ends)) if m != n and elsewhere[m]])
        others = [corruptions.draw(elsewhere[m], rng) for m in strangers[: sizes.others_pool]]
        pool: list[str] = []
        for texts, size in zip((inside, elsewhere[n], others), sizes.pools, strict=True):
            drawn = [texts[i] for i in rng.permutation(len(texts))[:size]]
            pool += [*drawn, *[""] * (size - len(drawn))]
        kept.append(n)
        pools.append(pool)
    documents, papers = [" ".join(ends[n]) for n in kept], [all_papers[n] for n in kept]
    resting = [{s for _, some in paper.summaries for s in some} for paper in papers]
    group = np.repeat(np.arange(len(GROUPS)), sizes.pools)
    is_behind = [[s in some for s in pool] for pool, some in zip(pools, resting, strict=True)]
    levels = [[marks(text, s) for s in pool] for text, pool in zip(documents, pools, strict=True)]
    return Papers(
        names=[paper.name for paper in papers],
        documents=documents,
        references=[" ".join(text for text, _ in paper.summaries) for paper in papers],
        sentences=pools,
        is_there=np.array([[bool(s) for s in pool] for pool in pools]),
        group=group,
        is_behind=np.array(is_behind) & (group < GROUPS.index("others")),
        marks=np.array(levels),
    )


def marks(text: str, sentence: str) -> tuple[int, int]:
    """Returns levels of a sentence's length, by fives of words, and of its share in the text."""
    fives = len(corruptions.split_words(sentence)) // 5
    share = int(LEVELS * corruptions.coverage(text, sentence)[0])
    return min(LEVELS - 1, fives), min(LEVELS - 1, share)


def ask(papers: Papers, sizes: Sizes, count: int, rng: np.random.Generator) -> Questions:
    """Draws questions about papers in turn, in random order, and the sentences of each."""
    rounds = -(-count // len(papers.names))
    order = np.concatenate([rng.permutation(len(papers.names)) for _ in range(rounds)])[:count]
    chance = np.where(papers.is_there[order], rng.random((count, len(papers.group))), 2.0)
    parts = [
        np.argsort(np.where(papers.group == group, chance, 3.0), 1)[:, :size]
        for group, size in enumerate(sizes.groups)
    ]
    shown = np.concatenate(parts, 1)
    mixed = np.argsort(rng.random(shown.shape), 1)
    return Questions(order, np.take_along_axis(shown, mixed, 1))


def prompts(papers: Papers, questions: Questions, sizes: Sizes) -> batches.Prompts:
    """Returns questions as tokens, [n, P]."""
    levels = papers.marks[questions.papers[:, None], questions.sentences]  # [n, K, 2]
    count, shown, _ = levels.shape
    length, share = levels[..., 0], levels[..., 1] + LEVELS * np.arange(shown)[None]
    body = np.stack([FIRST_LENGTH + length, FIRST_SHARE + share], 2).reshape(count, -1)
    first, last = (np.full((count, 1), x) for x in (BOS, sizes.first_number + shown))
    rows = np.concatenate([first, body, last], 1).astype(np.int32)
    return batches.Prompts(rows, np.full(count, rows.shape[1], np.int32))


def imitated(
    papers: Papers, questions: Questions, sizes: Sizes, rng: np.random.Generator
) -> batches.Sequences:
    """Returns prompts and noisy choices, from which the supervised start learns, [n, P + T]."""
    count, shown = questions.sentences.shape
    is_own = papers.is_own[questions.sentences]
    is_behind = papers.is_behind[questions.papers[:, None], questions.sentences]
    lengths = rng.integers(sizes.least, sizes.most + 1, count)
    taken = np.zeros((count, shown), bool)
    answers = np.full((count, sizes.horizon), EOS, np.int32)
    for turn in range(sizes.most):
        wants_own = rng.random(count) >= sizes.noise
        # The least of these is chosen: what is wanted first, in random order.
        rank = rng.random((count, shown)) + np.where(is_own == wants_own[:, None], 0, 2)
        rank += np.where(is_own & ~is_behind, 1, 0) + np.where(taken, 9, 0)
        choice = np.argmin(rank, 1)
        taken[np.arange(count), choice] = True
        answers[:, turn] = np.where(turn < lengths, sizes.first_number + choice, EOS)
    is_answer = np.arange(sizes.horizon)[None] <= lengths[:, None]
    return batches.join(prompts(papers, questions, sizes), answers, is_answer)


def table(questions: Questions, probabilities: np.ndarray) -> np.ndarray:
    """Returns P of the sentences shown, float32 [n, K], from those of all pools, [N, S]."""
    return probabilities[questions.papers[:, None], questions.sentences].astype(np.float32)


def choices(rows: batches.Sequences, sizes: Sizes) -> tuple[jax.Array, jax.Array]:
    """Returns which sentences answers choose, int32 [B, T], and which tokens are choices, bool.

    -1 is a token that is neither a sentence nor the end.
    """
    answers = jnp.asarray(rows.tokens)[:, sizes.prompt_length :]
    is_choice = jnp.asarray(rows.is_answer)[:, sizes.prompt_length :] & (answers != EOS)
    places = answers - sizes.first_number
    is_sentence = (places >= 0) & (places < sizes.num_shown)
    return jnp.where(is_sentence, places, -1), is_choice


def probability(
    of_sentences: types.Array, places: jax.Array, is_choice: jax.Array, sizes: Sizes
) -> jax.Array:
    """Returns P(entailment) of answers, float32 [B]: the mean or the least of what they choose.

    Args:
      of_sentences: P of each sentence shown, [B, K].
      places: of `choices`, [B, T].
      is_choice: of `choices`, [B, T].
      sizes: has the aggregation.
    """
    p = jnp.take_along_axis(jnp.asarray(of_sentences), jnp.maximum(places, 0), 1)
    p = jnp.where(is_choice & (places >= 0), p, 0)
    count = jnp.sum(is_choice, 1)
    if sizes.aggregation == "mean":
        return jnp.sum(p, 1) / jnp.maximum(count, 1)
    return jnp.where(count > 0, jnp.min(jnp.where(is_choice, p, 1), 1), 0)


def reward(
    of_sentences: types.Array, places: jax.Array, is_choice: jax.Array, sizes: Sizes
) -> jax.Array:
    """Returns the clipped log-probability, float32 [B]; for the arguments see `probability`."""
    p = probability(of_sentences, places, is_choice, sizes)
    return jnp.log(jnp.clip(p, sizes.min_probability, 1.0))


def describe(
    papers: Papers, questions: Questions, places: np.ndarray, is_choice: np.ndarray
) -> dict[str, float]:
    """Returns means over answers to n prompts, of what needs no model of entailment.

    Returns:
      sentences and words of an answer; coverage and density of its words in the document; rouge_1,
      rouge_2 and rouge_l against the experts' summaries; inside, own and behind, the shares of
      chosen sentences that are of the document, of the paper, and that those summaries rest on;
      repeated, the share that was chosen before.
    """
    rows: list[dict[str, float]] = []
    for n, paper in enumerate(questions.papers.tolist()):
        chosen = [int(i) for i in places[n][is_choice[n]]]
        pool = np.array([questions.sentences[n, i] for i in chosen if i >= 0], int)
        text = " ".join(papers.sentences[paper][i] for i in pool)
        of_text, total = corruptions.split_words(text), max(1, len(chosen))
        document = corruptions.split_words(papers.documents[paper])
        of_document = fragments.extractiveness(document, of_text)
        rows.append(
            {
                "sentences": len(chosen),
                "words": len(of_text),
                "coverage": of_document.coverage,
                "density": of_document.density,
                **rouge.scores(text, papers.references[paper]),
                "inside": int(np.sum(papers.group[pool] == 0)) / total,
                "own": int(np.sum(papers.is_own[pool])) / total,
                "behind": int(np.sum(papers.is_behind[paper][pool])) / total,
                "repeated": 1 - len(set(chosen)) / total if chosen else 0.0,
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def pool_probabilities(
    papers: Papers,
    log_probability: Callable[[list[str], list[str]], np.ndarray],
    tick: Callable[[int], Any],
    papers_at_once: int = 8,
) -> np.ndarray:
    """Returns P of all pools, float64 [N, S], 0 where there is no sentence.

    Args:
      papers: N of them.
      log_probability: of a model of entailment: premises and hypotheses -> log P, [n].
      tick: told how many papers are done.
      papers_at_once: between two ticks.
    """
    p = np.zeros(papers.is_there.shape)
    for first in range(0, len(papers.names), papers_at_once):
        there = papers.is_there[first : first + papers_at_once]
        pairs = [(first + n, s) for n, s in np.argwhere(there).tolist()]
        premises = [papers.documents[n] for n, _ in pairs]
        hypotheses = [papers.sentences[n][s] for n, s in pairs]
        p[first : first + papers_at_once][there] = np.exp(log_probability(premises, hypotheses))
        tick(min(first + papers_at_once, len(papers.names)))
    return p


def _fits(sentence: str) -> bool:
    return WORDS[0] <= len(corruptions.split_words(sentence)) <= WORDS[1]


def _end(abstract: Sequence[str]) -> Sequence[str]:
    """Returns the last sentences, as many as DOCUMENT_WORDS holds, one at least."""
    first, room = len(abstract) - 1, DOCUMENT_WORDS - len(corruptions.split_words(abstract[-1]))
    while first and len(corruptions.split_words(abstract[first - 1])) <= room:
        first -= 1
        room -= len(corruptions.split_words(abstract[first]))
    return abstract[first:]
