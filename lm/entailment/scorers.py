"""The reward of RLEF: the log-probability that a document entails a text.

Roit et al., "Factually Consistent Summarization via Reinforcement Learning with Textual Entailment
Feedback", ACL 2023, https://arxiv.org/abs/2306.00186: log P(entailment | premise, hypothesis) at
the last token. A long premise is read in windows, and the largest P of them counts; scores of
sentences are combined as in Laban et al., "SummaC", TACL 2022, https://arxiv.org/abs/2111.09525.
Unlike in RLEF, the logarithm is clipped from below, as it has no bound, and a text without a word,
which any document would entail, gets the least reward.
"""

import collections
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import scipy.special

from kullback.core import files, finite, json_files, types
from kullback.environments import tokens
from kullback.lm.entailment import bert_folder, embeddings, pair_tokenizer
from kullback.lm.formats import hugging_face_config
from kullback.lm.tokenizer import Tokenizer

# Premises and hypotheses, n texts each -> P(entailment), float64 [n]. No text is empty.
Probability = Callable[[Sequence[str], Sequence[str]], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Options of reading and scoring texts."""

    max_length: int = 128  # Tokens of a row: window, (a piece of) the hypothesis, special tokens.
    overlap: int = 48  # Tokens that neighbouring windows share, so that one has a sentence whole.
    batch_size: int = 32  # Rows at once, a multiple of 4.
    # P of a text with several sentences: as one hypothesis, or the mean or least P of sentences.
    aggregation: Literal["whole", "mean", "min"] = "whole"
    min_probability: float = 1e-4  # P counts as this at least; in (0, 1).
    cache_size: int = 65_536  # Newest pairs whose P is kept; 0 is none.

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
    """An entailment model with a cache.

    `log_probability(premises, hypotheses)` -> float32 [n] in [log min_probability, 0]. `counts`
    has the number of pairs (of sentences, where these are scored one by one) that were "asked"
    for, and of those that were "scored": the others were cached, or equal to another one.
    """

    config: Config
    log_probability: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    counts: collections.Counter[str]


def load(folder: files.Path, config: Config | None = None) -> Entailment:
    """Loads a published NLI model of the BERT or RoBERTa family, or one of ours.

    Raises:
      ValueError: if it is of another architecture, has no class "entailment", or cannot be read.
    """
    config = config or Config()
    fields = json_files.read(hugging_face_config.config_file(folder))
    if fields.get("model_type", str, None) == embeddings.MODEL_TYPE:
        model = embeddings.load(folder)
        tokenizer = model.encoder.tokenizer
        probability = embeddings.probability(model, config.batch_size)
    else:
        classifier = bert_folder.load(folder)
        tokenizer, probability = classifier.tokenizer, cross_encoder(classifier, config)
    return make(with_tokens(probability, tokenizer), config)


def with_tokens(probability: Probability, tokenizer: pair_tokenizer.PairTokenizer) -> Probability:
    """Returns a probability that is 0 for a hypothesis without tokens, as for "".

    Tokenizers drop control characters and spaces of no width, which `str.strip` leaves.
    """

    def probability_of_tokens(premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        p = np.zeros(len(hypotheses))
        if at := [n for n, ids in enumerate(tokenizer.encode([*hypotheses])) if ids]:
            p[at] = probability([premises[n] for n in at], [hypotheses[n] for n in at])
        return p

    return probability_of_tokens


def entailment_class(labels: Sequence[str]) -> int:
    """Returns the index of the class that means entailment.

    Raises:
      ValueError: if none does, or more than one.
    """
    lower = [label.lower() for label in labels]
    classes = [n for n, label in enumerate(lower) if "entail" in label and "no" not in label]
    if len(classes) != 1:
        raise ValueError(
            f"one class must be called entailment, got {list(labels)}; name it in id2label of "
            "config.json"
        )
    return classes[0]


def windows(length: int, room: int, overlap: int) -> list[tuple[int, int]]:
    """Returns (begin, end) of windows of `room` tokens that cover `length` tokens.

    The last window ends with the text, and shares more tokens with the one before if need be.
    """
    if length <= room:
        return [(0, length)]
    starts = [*range(0, length - room, room - overlap), length - room]
    return [(start, start + room) for start in starts]


def cross_encoder(classifier: bert_folder.Classifier, config: Config) -> Probability:
    """Makes P(entailment) from a classifier that reads premise and hypothesis together.

        P = min over pieces of the hypothesis of (max over windows of the premise of P(entailment))

    A hypothesis of more than half a row is cut in pieces, all of which must follow; a shorter one
    is one piece. All of both texts is read.

    Raises:
      ValueError: if no class is entailment, rows are longer than the model's, or it reads no pairs.
    """
    model, tokenizer = classifier.model, classifier.tokenizer
    tokenizer.check_pairs()
    entailed = entailment_class(model.config.labels)
    if config.max_length > model.config.max_length:
        raise ValueError(
            f"max_length must be <= {model.config.max_length}, the model's, got {config.max_length}"
        )
    logits = jax.jit(model.logits)

    def program(rows: pair_tokenizer.Rows) -> types.Array:
        return logits(classifier.params, *rows)

    half = config.max_length // 2

    def probability(premises: Sequence[str], hypotheses: Sequence[str]) -> np.ndarray:
        # Rows of a batch often share a document.
        known = {text: n for n, text in enumerate(dict.fromkeys(premises))}
        documents = tokenizer.encode([*known])
        rows: list[pair_tokenizer.Text] = []
        ends: list[list[int]] = []  # By pair: where the rows of each piece end.
        for premise, ids in zip(premises, tokenizer.encode([*hypotheses]), strict=True):
            document, marks = documents[known[premise]], []
            for begin in range(0, max(1, len(ids)), half):
                piece = ids[begin : begin + half]
                room = config.max_length - tokenizer.num_special - len(piece)
                cuts = windows(len(document), room, config.overlap)
                rows += [(document[first:last], piece) for first, last in cuts]
                marks.append(len(rows))
            ends.append(marks)
        scores = pair_tokenizer.in_batches(
            program, tokenizer, rows, max_length=config.max_length, batch_size=config.batch_size
        )
        finite.require(scores, classifier.params, "logits of the entailment model")
        p = scipy.special.softmax(scores.astype(np.float64), -1)[:, entailed]
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
    """Makes an entailment model of a function that gives P for pairs of texts."""
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
        pairs = [
            [(_key(premise, part), premise, part) for part in parts(hypothesis)]
            for premise, hypothesis in zip(premises, hypotheses, strict=True)
        ]
        known: dict[bytes, float] = {}
        unknown: dict[bytes, tuple[str, str]] = {}
        for key, premise, part in itertools.chain.from_iterable(pairs):
            counts["asked"] += 1
            if key in memory:
                memory.move_to_end(key)
                known[key] = memory[key]
            else:
                unknown[key] = premise, part
        if unknown:
            scores = probability(*zip(*unknown.values(), strict=True))
            known |= zip(unknown, map(float, scores), strict=True)
            counts["scored"] += len(unknown)
            memory.update((key, known[key]) for key in unknown)
            while len(memory) > config.cache_size:
                memory.popitem(last=False)
        join = np.mean if config.aggregation == "mean" else np.min
        p = [join([known[key] for key, *_ in pair]) if pair else 0.0 for pair in pairs]
        clipped = np.clip(np.array(p, np.float64), config.min_probability, 1.0)
        return np.log(clipped).astype(np.float32)

    return Entailment(config, log_probability, counts)


def scorer(entailment: Entailment, tokenizer: Tokenizer, name: str = "entailment") -> tokens.Scorer:
    """Makes a reward of completions by their entailment; its context is each row's document.

    A completion that was cut is scored as far as it goes; `tokens.scored` has a penalty for it.

    Args:
      entailment: the model.
      tokenizer: the policy's tokenizer, by which completions become texts.
      name: of the scorer.
    """

    def score(params: types.Params, completion: tokens.Completion, context: Any) -> np.ndarray:
        del params  # The model has its own.
        rows = zip(np.asarray(completion.tokens), np.asarray(completion.is_answer), strict=True)
        # A model's table may have more rows than the tokenizer has pieces.
        texts = [
            tokenizer.decode(i for i in row[mask].tolist() if i < tokenizer.vocab_size)
            for row, mask in rows
        ]
        return entailment.log_probability(context, texts)

    return tokens.Scorer(name, score, is_compiled=False)


def floor(config: Config) -> float:
    """Returns the least reward, log min_probability."""
    return math.log(config.min_probability)


def _key(premise: str, hypothesis: str) -> bytes:
    # The length comes first, or "ab" + "c" and "a" + "bc" would have one key.
    parts = [text.encode("utf-8", "surrogatepass") for text in (premise, hypothesis)]
    digest = hashlib.blake2b(len(parts[0]).to_bytes(8, "big"), digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.digest()
