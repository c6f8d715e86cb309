"""Evaluation of a language model on held-out examples: likelihoods, answers and scores.

Probabilities are always those of the softargmax_f that the model was trained with.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import finite, processes, regularizers, sampling, types
from kullback.environments import tokens
from kullback.lm import (
    answers,
    batches,
    completions,
    data,
    forms,
    gemma,
    interleaved,
    layers,
    rouge,
    senses,
    sharding,
    tasks,
    texts,
    tokenizer,
    tuning,
)

ROWS = 32  # Sequences in one call of a program.
SHOWN = 4  # Texts of a batch that are written to a file.


class Likelihoods(NamedTuple):
    """Sums over the tokens of each held-out completion, [n]."""

    loss: np.ndarray  # loss_f, which equals the nats for KL.
    nats: np.ndarray  # Minus the log-probability.
    right: np.ndarray  # Number of tokens that are the most probable one.
    tokens: np.ndarray  # Number of tokens.


class Answers(NamedTuple):
    """The n answers of a model."""

    texts: list[str]
    ids: list[list[int]]  # Token ids without the stop token.
    done: np.ndarray  # bool, [n]: whether a stop token ended it, so that it was not cut.
    tokens: np.ndarray  # [n]: number of tokens, with the stop token.
    nats: np.ndarray  # [n]: minus the log-probability, as it was drawn.
    measures: dict[str, np.ndarray]  # "score" by the task's rule, or ROUGE: [n] each.

    def line(self, n: int) -> dict[str, Any]:
        """Returns the n-th answer for a reader, see the function `line`."""
        return line(self.texts[n], self.done[n], {name: x[n] for name, x in self.measures.items()})


def line(text: str, done: Any, measures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a completion for a reader, JSON-able: what is not measured (NaN) is null."""
    numbers = {name: None if math.isnan(x) else float(x) for name, x in measures.items()}
    return {"completion": text, "done": bool(done), **numbers}


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Held-out examples of a task, and how a model's answers to them are evaluated."""

    model: gemma.Model
    tokenizer: tokenizer.Tokenizer
    task: tasks.Task
    test: list[data.Example]
    learning: tuning.Config  # Lengths of prompts and answers.
    divergence: str = "kl"  # f of the model's softargmax_f.
    mesh: sharding.Mesh | None = None  # Mesh over whose data axis rows are cut; None: one device.
    notices: tuple[str, ...] = ()  # Remarks on the examples, for a reader.
    features: batches.Features | None = None  # Of images or clips; None: no example has any.
    # Images, crops counted, or clips of an example, at most; rows have room for them.
    most_media: int = 1
    modality: forms.Modality = forms.IMAGES  # Kind of the media.

    def sensing(self, sense: senses.Sense, examples: Sequence[data.Example]) -> "Evaluator":
        """Returns the evaluator of prompts with media, with room for those of all `examples`."""
        most = max((len(example.media) for example in examples), default=0)
        if not most:
            return self
        fitted = sense.fitted([medium for example in examples for medium in example.media])
        return dataclasses.replace(
            self, features=fitted.features, most_media=most, modality=sense.rows.modality
        )

    def spread(self, rows: batches.Rows) -> batches.Rows:
        """Cuts prompts or sequences over the devices of the mesh."""
        return sharding.spread(rows, self.mesh)

    @functools.cached_property
    def f(self) -> regularizers.Divergence:
        """Divergence f of the model's softargmax_f."""
        return regularizers.named(self.divergence)

    def scores(self, acting: Any, count: int, key: types.Key) -> np.ndarray:
        """Returns scores of the first `count` examples, completed greedily, [kept(count)].

        Without a rule of the task the score is minus the mean loss (nats, for KL) of the held-out
        completion's tokens.
        """
        if self.task.score is None:
            likelihoods = self.likelihoods(acting, count)
            return -likelihoods.loss / likelihoods.tokens
        return self.answers(acting, count, key, self.greedy).measures["score"]

    def answers(
        self, acting: Any, count: int, key: types.Key, program: Callable[..., tokens.Completion]
    ) -> Answers:
        """Returns the answers of a `program` to the first `count` examples, [kept(count)]."""
        batch_answers: list[Answers] = []
        for number, batch in enumerate(self.parts(count)):
            prompts = self.spread(self.prompts(batch))
            completion = program(acting, prompts, jax.random.fold_in(key, number))
            log_probability = completion.log_probability
            finite.require(log_probability, acting["params"], "log-probabilities of answers")
            batch_answers.append(self._read(jax.tree.map(np.asarray, completion), batch))
        return _joined(batch_answers, self.kept(count))

    def likelihoods(self, acting: Any, count: int) -> Likelihoods:
        """Returns likelihoods of the completions of the first `count` examples, [kept(count)]."""
        measured = [
            processes.fetch(self._measure(acting["params"], rows)) for rows in self.sequences(count)
        ]
        num_kept = self.kept(count)
        likelihoods = jax.tree.map(lambda *columns: np.concatenate(columns)[:num_kept], *measured)
        finite.require(likelihoods, acting["params"], "log-probabilities of held-out completions")
        return likelihoods

    def sequences(self, count: int) -> Iterator[batches.Sequences]:
        """Yields the first `count` examples with their completions, `parts` padded to one width."""
        for batch in self.parts(count):
            yield self.rows(batch)

    def rows(self, examples: Sequence[data.Example]) -> batches.Sequences:
        """Returns examples with their completions, padded on the right to one width."""
        rows = batches.pad(examples, self.learning.width, self.tokenizer.pad_id)
        return self.spread(rows._replace(sensed=self._sensed(examples)))

    @property
    def sensed_shapes(self) -> Any:
        """Shapes of the features of a row's media, [I, ...]; None if no example has any."""
        if self.features is None:
            return None
        padded = batches.pad_features([[]], self.features, self.most_media)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), padded)

    def _sensed(self, examples: Sequence[data.Example]) -> Any:
        """Returns features of the media of examples, a tree of [B, I, ...]."""
        if self.features is None:
            return None
        media = [example.media for example in examples]
        return batches.pad_features(media, self.features, self.most_media)

    # Compiled once, however often a run is evaluated.

    @functools.cached_property
    def greedy(self) -> Callable[..., tokens.Completion]:
        """Program that takes the most probable token, see `completions.Sampler`."""
        return self._completes(sampling.Sampling(temperature=0))

    @functools.cached_property
    def sampled(self) -> Callable[..., tokens.Completion]:
        """Program that draws from the model itself, see `completions.Sampler`."""
        return self._completes(sampling.Sampling())

    @functools.cached_property
    def _measure(self) -> Callable[..., Likelihoods]:
        def token_measures(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
            nats = -sampling.log_probability(logits, labels, self.f)
            loss = nats if self.f is regularizers.kl else regularizers.loss(logits, labels, self.f)
            right = (jnp.argmax(logits, -1) == labels).astype(jnp.float32)
            return {"loss": loss, "nats": nats, "right": right}

        @jax.jit
        def measure(params: types.Params, rows: batches.Sequences) -> Likelihoods:
            per_token, is_answer = answers.per_token(
                token_measures, rows, (self.model, params), chunk=self.learning.chunk
            )
            sums = {name: jnp.sum(x, 1) for name, x in per_token.items()}
            return Likelihoods(**sums, tokens=jnp.sum(is_answer, 1))  # pyright: ignore[reportArgumentType]  # Traced.

        return measure

    def _completes(self, sampling: sampling.Sampling) -> Callable[..., tokens.Completion]:
        return completions.compiled(self.sampler(sampling).completions)

    def sampler(
        self, sampling: sampling.Sampling | None = None, samples_per_prompt: int = 1
    ) -> completions.Sampler:
        """Returns the sampler of the model, with its softargmax_f."""
        return completions.sampler(
            self.model,
            self.learning.max_new_tokens,
            sampling=sampling,
            divergence=self.f,
            samples_per_prompt=samples_per_prompt,
        )

    def task_scores(
        self, sequences: batches.Sequences, examples: Sequence[data.Example]
    ) -> np.ndarray:
        """Returns the score of each answer by the task's rule, float32 [B]; NaN without one."""
        if self.task.score is None:
            return np.full(len(examples), np.nan, np.float32)
        pairs = zip(self.answer_texts(sequences), examples, strict=True)
        scores = [self.task.score(text, self.target(example)) for text, example in pairs]
        return np.array(scores, np.float32)

    def lines(
        self,
        sequences: batches.Sequences,
        examples: Sequence[data.Example],
        scores: types.Array,
    ) -> list[dict[str, Any]]:
        """Returns the first few of a batch's texts for a reader, JSON-able."""
        first = jax.tree.map(lambda x: np.asarray(x)[:SHOWN], sequences)
        answer_texts = self.answer_texts(first)
        last = np.asarray(first.tokens)[np.arange(len(answer_texts)), np.asarray(first.lengths) - 1]
        is_done = np.isin(last, self.model.config.eos_ids)
        return [
            {**self.example_texts(examples[n]), **line(text, is_done[n], {"score": scores[n]})}
            for n, text in enumerate(answer_texts)
        ]

    def greedy_lines(self, acting: Any, key: types.Key) -> list[dict[str, Any]]:
        """Returns the answers to the first few held-out examples for a reader, JSON-able."""
        shown, count = self.answers(acting, SHOWN, key, self.greedy), self.kept(SHOWN)
        return [{**self.example_texts(self.test[n]), **shown.line(n)} for n in range(count)]

    def example_texts(self, example: data.Example) -> dict[str, Any]:
        """Returns prompt and target of an example as texts, and the files of its media."""
        texts = {"prompt": self.tokenizer.decode(example.prompt), "target": self.target(example)}
        files = interleaved.files(example.media)
        return {**texts, self.modality.name: files} if files else texts

    def prompts(self, examples: list[data.Example]) -> batches.Prompts:
        """Returns the prompts of examples, padded on the left to one width."""
        ids = [example.prompt for example in examples]
        width, pad_id = self.learning.max_prompt_length, self.tokenizer.pad_id
        return batches.pad_prompts(ids, width, pad_id)._replace(sensed=self._sensed(examples))

    def _read(self, completion: tokens.Completion, examples: list[data.Example]) -> Answers:
        """Returns texts and measures of completions, NumPy."""
        ids = [
            texts.text_ids(answer[mask].tolist(), self.tokenizer, self.model.config.eos_ids)
            for answer, mask in zip(completion.tokens, completion.is_answer, strict=True)
        ]
        answer_texts = [self.tokenizer.decode(text_ids) for text_ids in ids]
        targets = map(self.target, examples)
        lines = [self.measures(*pair) for pair in zip(answer_texts, targets, strict=True)]
        nats = -np.asarray(completion.log_probability, np.float64).sum(1)
        measures = {name: np.array([line[name] for line in lines]) for name in lines[0]}
        done, lengths = ~np.asarray(completion.truncated), np.asarray(completion.length)
        return Answers(answer_texts, ids, done, lengths, nats, measures)

    def measures(self, text: str, target: str) -> dict[str, float]:
        """Measures an answer: its "score" by the task's rule, or ROUGE."""
        if self.task.score is None:
            return rouge.scores(text, target)
        return {"score": self.task.score(text, target)}

    def answer_texts(self, sequences: batches.Sequences) -> list[str]:
        """Returns the answers of rows as texts."""
        ids, is_answer = np.asarray(sequences.tokens), np.asarray(sequences.is_answer)
        return [self._text(row[mask].tolist()) for row, mask in zip(ids, is_answer, strict=True)]

    def _text(self, ids: Sequence[int]) -> str:
        return texts.answer(ids, self.tokenizer, self.model.config.eos_ids)

    def target(self, example: data.Example) -> str:
        """Returns the completion of an example as a text."""
        return self._text(example.completion)

    def kept(self, count: int) -> int:
        """Returns the number of examples, `count` at most: no example counts twice."""
        return min(count, len(self.test))

    @functools.cached_property
    def _is_large(self) -> bool:
        """Whether a program takes longer to run than to compile for another number of rows."""
        return 4 * gemma.num_params(self.model.config).total >= layers.LARGE

    def num_rows(self, count: int) -> int:
        """Returns the sequences of one call of a program that reads the first `count` examples.

        They are ROWS; for large models, on one device, a power of two that is enough for fewer.
        """
        if self.mesh is not None or self.kept(count) >= ROWS or not self._is_large:
            return ROWS
        return batches.powers_of_two(self.kept(count), shortest=1)[-1]

    def parts(self, count: int) -> list[list[data.Example]]:
        """Returns the first `count` examples in parts of `num_rows`.

        The last part is filled up with examples that do not count: the first `kept(count)` do.
        """
        if not self.test:
            raise ValueError(
                f"no held-out example of {self.task.name} is short enough: they were dropped; "
                "raise max_prompt_length or max_new_tokens"
            )
        rows = self.num_rows(count)
        chosen = [self.test[i % len(self.test)] for i in range(-(-self.kept(count) // rows) * rows)]
        return [chosen[i : i + rows] for i in range(0, len(chosen), rows)]


def _joined(parts: list[Answers], count: int) -> Answers:
    def join(column: list[np.ndarray]) -> np.ndarray:
        return np.concatenate(column)[:count]

    return Answers(
        texts=[text for part in parts for text in part.texts][:count],
        ids=[ids for part in parts for ids in part.ids][:count],
        done=join([part.done for part in parts]),
        tokens=join([part.tokens for part in parts]),
        nats=join([part.nats for part in parts]),
        measures={
            name: join([part.measures[name] for part in parts]) for name in parts[0].measures
        },
    )
