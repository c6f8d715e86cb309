"""Whether a document entails a text: the log-probability that an entailment model gives it.

The reward of RLEF, Roit et al., "Factually Consistent Summarization via Reinforcement Learning
with Textual Entailment Feedback", ACL 2023, https://arxiv.org/abs/2306.00186: log P(entailment |
premise, hypothesis) at the last token. Long premises are read in windows, of which the one that
entails most counts; over sentences as Laban et al., "SummaC", TACL 2022,
https://arxiv.org/abs/2111.09525. Where we leave RLEF: the logarithm is clipped from below, for it
has no bound, and a text without a word, which any document would entail, has the least that there
is.
"""

import collections
import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import scipy.special

from kullback.core import files, finite, json_files, types
from kullback.environments import tokens
from kullback.lm import tokenizer
from kullback.lm.entailment import bert_folder, bert_words, embeddings
from kullback.lm.formats import hugging_face_config

# Premises and hypotheses, n texts each -> P(entailment), float64 [n]. No text is empty.
Probability = Callable[[Sequence[str], Sequence[str]], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How texts are read and scored."""

    max_length: int = 128  # Tokens of a row: window, (a piece of) the hypothesis, special tokens.
    overlap: int = 48  # Tokens that windows share, so that no sentence is cut in both of two.
    batch_size: int = 32  # Rows at once, a multiple of 4.
    # Of a text of several sentences: P of it as one hypothesis, or the mean or least P of them.
    aggregation: Literal["whole", "mean", "min"] = "whole"
    min_probability: float = 1e-4  # P counts as this at least; in (0, 1).
    cache_size: int = 65_536  # Pairs whose P is remembered, the last ones; 0 is none.

    def __post_init__(self) -> None:
        if self.batch_size < 4 or self.batch_size % 4:
            raise ValueError(f"batch_size must be a multiple of 4, got {self.batch_size}")
        # A hypothesis takes half of a row at most.
        most = self.max_length // 2 - 5
        if not 0 <= self.overlap <= most:
            raise ValueError(
                f"overlap must lie in [0, {most}] for max_length={self.max_length}, got "
                f"{self.overlap}: windows have {most + 1} tokens at least"
            )
        if self.aggregation not in ("whole", "mean", "min"):
            raise ValueError(f"aggregation must be whole, mean or min, got {self.aggregation!r}")
        if not 0 < self.min_probability < 1:
            raise ValueError(f"min_probability must lie in (0, 1), got {self.min_probability}")
        if self.cache_size < 0:
            raise ValueError(f"cache_size must be >= 0, got {self.cache_size}")


class Entailment(NamedTuple):
    """An entailment model with its memory.

    `log_probability(premises, hypotheses)` -> float32 [n] in [log min_probability, 0]. `counts`
    says of pairs (of sentences, where these are scored one by one) how many were "asked" for, and
    how many of these were "scored": the others were remembered, or the same as another one.
    """

    config: Config
    log_probability: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    counts: collections.Counter[str]


def load(folder: files.Path, config: Config | None = None) -> Entailment:
    """The model of a folder: a published NLI model of the BERT or RoBERTa family, or one of ours.

    Raises:
      ValueError: if it is of another architecture, has no class "entailment", or cannot be read.
    """
    config = config or Config()
    fields = json_files.read(hugging_face_config.config_file(folder))
    if fields.get("model_type", str, None) == embeddings.MODEL_TYPE:
        model = embeddings.load(folder)
        words, probability = model.encoder.words, embeddings.probability(model, config.batch_size)
    else:
        classifier = bert_folder.load(folder)
        words, probability = classifier.words, cross_encoder(classifier, config)
    return make(with_tokens(probability, words), config)


def with_tokens(probability: Probability, words: bert_words.Words) -> Probability:
    """The same, and 0 for a hypothesis of no token, which is as empty as "" is.

    Tokenizers drop control characters and spaces of no width, which `str.strip` leaves.
    """

    def found(premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        p = np.zeros(len(hypotheses))
        if at := [n for n, ids in enumerate(words.encode([*hypotheses])) if ids]:
            p[at] = probability([premises[n] for n in at], [hypotheses[n] for n in at])
        return p

    return found


def entailment_class(labels: Sequence[str]) -> int:
    """Index of the class that means entailment, and not its absence.

    Raises:
      ValueError: if none does, or more than one.
    """
    lower = [label.lower() for label in labels]
    found = [n for n, label in enumerate(lower) if "entail" in label and "no" not in label]
    if len(found) != 1:
        raise ValueError(
            f"one class must be called entailment, got {list(labels)}; name it in id2label of "
            "config.json"
        )
    return found[0]


def windows(length: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """Where windows begin and end, of `room` tokens each, that cover `length` tokens.

    The last one ends at the end and shares more with the one before it, if it must.
    """
    if length <= room:
        return [(0, length)]
    starts = [*range(0, length - room, room - overlap), length - room]
    return [(start, start + room) for start in starts]


def cross_encoder(classifier: bert_folder.Classifier, config: Config) -> Probability:
    """P by a classifier that reads premise and hypothesis together.

        P = min over pieces of the hypothesis of (max over windows of the premise of P(entailment))

    A hypothesis of more than half a row is cut in pieces, all of which must follow; others are one
    piece. Nothing is left unread.

    Raises:
      ValueError: if no class is entailment, rows are longer than the model's, or it reads no pairs.
    """
    model, words = classifier.model, classifier.words
    words.check_pairs()
    chosen = entailment_class(model.config.labels)
    if config.max_length > model.config.max_length:
        raise ValueError(
            f"max_length must be <= {model.config.max_length}, the model's, got {config.max_length}"
        )
    logits = jax.jit(model.logits)

    def program(rows: bert_words.Rows) -> types.Array:
        return logits(classifier.params, *rows)

    half = config.max_length // 2

    def probability(premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        # Rows of a batch often share a document.
        known = {text: n for n, text in enumerate(dict.fromkeys(premises))}
        documents = words.encode([*known])
        rows: list[bert_words.Text] = []
        ends: list[list[int]] = []  # By pair: where the rows of each piece end.
        for premise, ids in zip(premises, words.encode([*hypotheses]), strict=True):
            document, marks = documents[known[premise]], []
            for begin in range(0, max(1, len(ids)), half):
                piece = ids[begin : begin + half]
                room = config.max_length - words.num_special - len(piece)
                cuts = windows(len(document), room, config.overlap)
                rows += [(document[first:last], piece) for first, last in cuts]
                marks.append(len(rows))
            ends.append(marks)
        found = bert_words.in_batches(
            program, words, rows, max_length=config.max_length, batch_size=config.batch_size
        )
        finite.require(found, classifier.params, "logits of the entailment model")
        p = scipy.special.softmax(found.astype(np.float64), -1)[:, chosen]
        least, begin = [], 0
        for marks in ends:
            best = []
            for end in marks:
                best.append(p[begin:end].max())
                begin = end
            least.append(min(best))
        return np.array(least)

    return probability


def make(probability: Probability, config: Config | None = None) -> Entailment:
    """An entailment model of what gives P for pairs of texts."""
    config = config or Config()
    memory: collections.OrderedDict[bytes, float] = collections.OrderedDict()
    counts: collections.Counter[str] = collections.Counter(asked=0, scored=0)

    def parts(hypothesis: str) -> list[str]:
        if config.aggregation == "whole":
            return [hypothesis.strip()] if embeddings.has_word(hypothesis) else []
        return embeddings.sentences(hypothesis)

    def log_probability(premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        if len(premises) != len(hypotheses):
            raise ValueError(
                f"premises and hypotheses must be as many, got {len(premises)} and "
                f"{len(hypotheses)}"
            )
        asked = [
            [(_key(premise, part), premise, part) for part in parts(hypothesis)]
            for premise, hypothesis in zip(premises, hypotheses, strict=True)
        ]
        known: dict[bytes, float] = {}
        wanted: dict[bytes, tuple[str, str]] = {}
        for key, premise, part in (one for of_pair in asked for one in of_pair):
            counts["asked"] += 1
            if key in memory:
                memory.move_to_end(key)
                known[key] = memory[key]
            else:
                wanted[key] = premise, part
        if wanted:
            found = probability(*zip(*wanted.values(), strict=True))
            known |= zip(wanted, map(float, found), strict=True)
            counts["scored"] += len(wanted)
            memory.update((key, known[key]) for key in wanted)
            while len(memory) > config.cache_size:
                memory.popitem(last=False)
        join = np.mean if config.aggregation == "mean" else np.min
        p = [join([known[key] for key, *_ in of_pair]) if of_pair else 0.0 for of_pair in asked]
        clipped = np.clip(np.array(p, np.float64), config.min_probability, 1.0)
        return np.log(clipped).astype(np.float32)

    return Entailment(config, log_probability, counts)


def scorer(
    entailment: Entailment, words: tokenizer.Tokenizer, name: str = "entailment"
) -> tokens.Scorer:
    """What completions are worth by their entailment; its context is each row's document.

    A completion that was cut is scored as far as it goes; `tokens.scored` has a penalty for it.

    Args:
      entailment: the model.
      words: the policy's tokenizer, by which completions become texts.
      name: of the scorer.
    """

    def score(params: types.Params, completion: tokens.Completion, context: Any) -> np.ndarray:
        del params  # The model has its own.
        rows = zip(np.asarray(completion.tokens), np.asarray(completion.is_answer), strict=True)
        # A model's table may have more rows than the tokenizer has pieces.
        texts = [
            words.decode(i for i in row[mask].tolist() if i < words.vocab_size)
            for row, mask in rows
        ]
        return entailment.log_probability(context, texts)

    return tokens.Scorer(name, score, is_compiled=False)


def floor(config: Config) -> float:
    """The least reward, log min_probability."""
    return math.log(config.min_probability)


def _key(premise: str, hypothesis: str) -> bytes:
    # Lengths first, or two pairs of one joined text would be one.
    parts = [text.encode("utf-8", "surrogatepass") for text in (premise, hypothesis)]
    digest = hashlib.blake2b(len(parts[0]).to_bytes(8, "big"), digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()
