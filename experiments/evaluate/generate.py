"""Generation of text by a language model, handed over in pieces as it is sampled.

Shape letters: B texts, T tokens of a piece.
"""

import dataclasses
import functools
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import finite, regularizers, rollout, types
from kullback.core.sampling import Sampling
from kullback.environments import tokens
from kullback.experiments import interrupts
from kullback.experiments.runs import model_files
from kullback.lm import batches, completions, gemma, interleaved, policy, texts, tokenizer

PIECE = 16  # Tokens that are sampled before their text is handed over, at most.

OnText = Callable[[int, str], Any]  # Receives the number of a prompt, and the next text of it.


class Generated(NamedTuple):
    """The completion of one prompt."""

    text: str
    ids: list[int]  # The stop token among them, or the last token of a stop text, if there is one.
    is_complete: bool  # False if it was cut, by the length or by Ctrl-C.


class Sampled(NamedTuple):
    """The next tokens of B texts, NumPy."""

    actions: np.ndarray  # int32, [T, B].
    valid: np.ndarray  # bool, [T, B]: the text had not ended before.

    def of_row(self, row: int) -> list[int]:
        """Returns the ids of one text."""
        return self.actions[self.valid[:, row], row].tolist()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writer:
    """A trained model that writes texts, as one user wants them; it compiles its programs once."""

    checkpoint: model_files.Checkpoint
    max_new_tokens: int  # Of a text, at most.
    sampling: Sampling | None = None  # Way of drawing tokens; None is from the model itself.
    seed: int = 0  # Seed of the samples.
    stop_tokens: Sequence[int] = ()  # Ids that end a text, beside the model's own.
    stop_texts: Sequence[str] = ()  # A text ends before the first of them.

    def __post_init__(self) -> None:
        if self.checkpoint.params is None:
            raise ValueError("this model was not trained: generate from a folder or from a run")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed must be an integer of 64 bits, got {self.seed}")
        tokens.check_stop_tokens(self.stop_tokens, self.checkpoint.config.vocab_size)
        if "" in self.stop_texts:
            raise ValueError("a text to stop at must not be empty, got ''")

    @functools.cached_property
    def stops(self) -> tuple[int, ...]:
        """All ids that end a text."""
        return tuple(sorted({*self.checkpoint.config.eos_ids, *self.stop_tokens}))

    @functools.cached_property
    def model(self) -> gemma.Model:
        """The model as pure functions."""
        return self.checkpoint.model

    @functools.cached_property
    def sampler(self) -> completions.Sampler:
        """The sampler of one text for each prompt."""
        return completions.sampler(
            self.model,
            self.max_new_tokens,
            sampling=self.sampling,
            divergence=regularizers.named(self.checkpoint.divergence),
            stop_tokens=self.stops,
        )

    @functools.cached_property
    def acting(self) -> Any:
        """Parameters of the sampler's policy."""
        return {"params": gemma.apart(self.checkpoint.params, shared=True)}

    def check_length(self, longest: int) -> None:
        """Raises ValueError unless a prompt of so many tokens and a text fit the context."""
        room = self.checkpoint.config.context_length - longest
        if self.max_new_tokens > room:
            raise ValueError(
                f"a prompt of {longest} tokens and {self.max_new_tokens} new ones exceed the "
                f"model's context of {self.checkpoint.config.context_length}; at most "
                f"{max(room, 0)} fit"
            )

    def cache_bytes(self, num_rows: int, longest: int) -> int:
        """Returns the bytes of keys and values of texts whose longest prompt has so many tokens."""
        config = self.checkpoint.config
        length = batches.width(longest) + self.max_new_tokens
        return gemma.cache_bytes(config, num_rows, length, jnp.dtype(config.dtype).itemsize)

    def completion(self) -> "Completion":
        """Returns the completion of a prompt before its first token."""
        return Completion(self.checkpoint.tokenizer, self.stops, self.stop_texts)

    def start(self, padded: batches.Prompts) -> rollout.ActorState:
        """Returns the state of B texts before their first token."""
        return self._start(self.acting, padded)

    def proceed(
        self,
        padded: batches.Prompts,
        state: rollout.ActorState,
        key: types.Key,
        tick: int,
        limit: int,
    ) -> tuple[Sampled, rollout.ActorState]:
        """Samples the next `limit` tokens, at most PIECE; `tick` came before them.

        Returns:
          Them, and the state after them. One program samples any number.

        Raises:
          ValueError: for logits that are not finite.
        """
        ticks = jnp.asarray([tick, limit], jnp.int32)
        actions, valid, drawn, state = self._proceed(self.acting, padded, state, key, ticks)
        finite.require(drawn, self.checkpoint.params, "the model's log-probabilities")
        return Sampled(np.asarray(actions), np.asarray(valid)), state

    @functools.cached_property
    def read(self) -> Callable[..., policy.Memory]:
        """The program of (parameters, next tokens [B, T], memory) -> memory of them, too.

        Tokens with media take their features besides, see `policy.read`.
        """

        @jax.jit
        def read(
            acting: Any, ids: jax.Array, memory: policy.Memory, sensed: Any = None
        ) -> policy.Memory:
            return policy.read(self.model, acting["params"], ids, memory, sensed)[1]

        return read

    @functools.cached_property
    def resume(self) -> Callable[[batches.Prompts, policy.Memory], rollout.ActorState]:
        """The program of `Sampler.resume`."""
        return jax.jit(self.sampler.resume)

    @functools.cached_property
    def _start(self) -> Callable[..., rollout.ActorState]:
        @jax.jit
        def start(acting: Any, padded: batches.Prompts) -> rollout.ActorState:
            # The environment is not random.
            return self.sampler.start(acting, padded, jax.random.key(0))

        return start

    @functools.cached_property
    def _proceed(self) -> Callable[..., Any]:
        @jax.jit
        def proceed(
            acting: Any,
            padded: batches.Prompts,
            state: rollout.ActorState,
            key: types.Key,
            ticks: jax.Array,
        ) -> Any:
            trajectory, state = self.sampler.proceed(acting, padded, state, key, PIECE, *ticks)
            # NaN if a logit is NaN.
            drawn = jnp.where(trajectory.valid, trajectory.extras["log_probability"], 0)
            return trajectory.action, trajectory.valid, drawn, state

        return proceed

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        key: types.Key,
        *,
        media: Sequence[Sequence[interleaved.Medium]] = (),
        num_rows: int | None = None,
        on_text: OnText = lambda number, text: None,
        on_end: Callable[[int, Generated], Any] = lambda number, generated: None,
    ) -> list[Generated]:
        """Returns completions of prompts, sampled side by side.

        Args:
          prompts: token ids of each, with the beginning-of-sequence id.
          key: of the samples.
          media: of each prompt in order, if any has some.
          num_rows: rows of the program, of which those beyond the prompts are idle.
          on_text: receives the next text of a prompt, whole characters only.
          on_end: receives the number of a prompt and its completion once it has ended.

        Raises:
          ValueError: for ids outside of the vocabulary, or logits that are not finite.
          KeyboardInterrupt: on a signal, after `on_end` has received all completions as they are.
        """
        num_rows = num_rows or len(prompts)
        filled = [*prompts, *[prompts[-1]] * (num_rows - len(prompts))]
        width = batches.width(max(map(len, prompts)))
        padded = batches.pad_prompts(filled, width, self.checkpoint.tokenizer.pad_id)
        if any(media):
            padded = padded._replace(sensed=self._sensed(media, num_rows))
        self.sampler.environment(padded)  # It refuses ids outside of the vocabulary.
        rows = [self.completion() for _ in prompts]
        is_idle = np.arange(num_rows) >= len(prompts)
        state = self.start(padded)

        def end(number: int) -> None:
            if rest := rows[number].finish():
                on_text(number, rest)
            on_end(number, rows[number].generated)
            is_idle[number] = True

        try:
            for tick, limit in pieces(self.max_new_tokens, PIECE):
                state = state._replace(done=state.done | is_idle)
                sampled, state = self.proceed(padded, state, key, tick, limit)
                has_ended = np.asarray(state.done)
                for number in np.flatnonzero(~is_idle).tolist():
                    if text := rows[number].add(sampled.of_row(number)):
                        on_text(number, text)
                    if has_ended[number] or rows[number].is_complete:
                        end(number)
                if np.all(is_idle):
                    break
        except KeyboardInterrupt:
            for number in np.flatnonzero(~is_idle).tolist():
                end(number)
            raise
        return [row.generated for row in rows]

    def _sensed(self, media: Sequence[Sequence[interleaved.Medium]], num_rows: int) -> Any:
        """Returns features of the media of prompts, and of idle rows like the last of them."""
        if (sense := self.checkpoint.sense) is None:
            raise ValueError(
                "this model reads text alone; take a multimodal folder, or a run that learnt with "
                "images or audio"
            )
        filled = [*media, *[media[-1]] * (num_rows - len(media))]
        fitted = sense.fitted([medium for of_row in media for medium in of_row])
        return batches.pad_features(filled, fitted.features)

    def write_all(
        self,
        prompts: Sequence[Sequence[int]],
        batch_size: int,
        on_end: Callable[[int, Generated], Any],
        media: Sequence[Sequence[interleaved.Medium]] = (),
    ) -> None:
        """Completes any number of prompts, `batch_size` at a time; the shortest come first.

        So prompts of about the same length are side by side, and few programs are compiled.

        Args:
          prompts: token ids of each, with the beginning-of-sequence id.
          batch_size: B.
          on_end: receives the number of a prompt and its completion once it has ended.
          media: of each prompt in order, if any has some.

        Raises:
          ValueError, KeyboardInterrupt: as for `write`.
        """
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        num_rows = min(batch_size, len(prompts))
        for begin in range(0, len(order), num_rows):
            numbers = order[begin : begin + num_rows]
            self.write(
                [prompts[number] for number in numbers],
                jax.random.fold_in(jax.random.key(self.seed), begin),
                media=[media[number] for number in numbers] if media else (),
                num_rows=num_rows,
                on_end=lambda row, generated, numbers=numbers: on_end(numbers[row], generated),
            )


def pieces(num_tokens: int, most: int) -> Iterator[tuple[int, int]]:
    """Yields (tokens before, tokens of the piece) of a text: the first is there soon.

    It has one token; each other one twice as many as the last, up to `most`.
    """
    tick, size = 0, 1
    while tick < num_tokens:
        size = min(size, most, num_tokens - tick)
        yield tick, size
        tick, size = tick + size, 2 * size


def complete(
    writer: Writer,
    prompts: Sequence[Sequence[int]],
    *,
    media: Sequence[Sequence[interleaved.Medium]] = (),
    on_text: OnText = lambda number, text: None,
    on_cache: Callable[[int], Any] = lambda num_bytes: None,
) -> list[Generated]:
    """Returns completions of prompts, sampled side by side; Ctrl-C ends them where they are.

    Sampling stops once all completions have ended.

    Args:
      writer: a trained model.
      prompts: token ids of each, with the beginning-of-sequence id.
      media: of each prompt in order, if any has some.
      on_text: receives the number of a prompt and its next piece of text, whole characters only.
      on_cache: receives the bytes that the cache of keys and values will take.

    Raises:
      ValueError: for no prompts, ids outside of the vocabulary, more tokens than the model's
        context, or logits that are not finite.
    """
    if not prompts:
        raise ValueError("no prompts to go on with")
    longest = max(map(len, prompts))
    writer.check_length(longest)
    on_cache(writer.cache_bytes(len(prompts), longest))
    ended: dict[int, Generated] = {}
    key = jax.random.key(writer.seed)
    try:
        writer.write(prompts, key, media=media, on_text=on_text, on_end=ended.__setitem__)
    except KeyboardInterrupt as error:
        if isinstance(error, interrupts.Interrupted) and error.number != signal.SIGINT:
            raise  # After SIGTERM nobody is there to read.
        if len(ended) < len(prompts):  # Before the first token.
            raise
    return [ended[number] for number in range(len(prompts))]


class Completion:
    """The completion of one prompt so far."""

    def __init__(
        self, its_tokenizer: tokenizer.Tokenizer, stops: Sequence[int], stop_texts: Sequence[str]
    ):
        """Begins without a token."""
        self._tokenizer, self._stops, self._stop_texts = its_tokenizer, stops, stop_texts
        self._stream, self._tail = tokenizer.Stream(), texts.Tail()
        self.text, self.ids = "", list[int]()

    @property
    def is_complete(self) -> bool:
        """Whether a stop token or a stop text has ended it."""
        return self.is_cut or (bool(self.ids) and self.ids[-1] in self._stops)

    @property
    def is_cut(self) -> bool:
        """Whether a stop text has ended it, so that its ids say more than its text."""
        return self._tail.is_over

    @property
    def generated(self) -> Generated:
        """The completion as it is."""
        return Generated(self.text, self.ids, self.is_complete)

    def add(self, ids: Sequence[int]) -> str:
        """Takes the next ids, until it is complete; returns the text that they add."""
        before = len(self.text)
        for i in ids:
            if self.is_complete:
                break
            self.ids.append(i)
            self._decode(texts.text_ids([i], self._tokenizer, self._stops))
        return self.text[before:]

    def finish(self) -> str:
        """Returns the text that waited: for the rest of a character, or of a stop text."""
        before = len(self.text)
        self._decode([], last=True)
        return self.text[before:]

    def _decode(self, ids: Sequence[int], last: bool = False) -> None:
        piece, self._stream = tokenizer.decode_chunk(self._tokenizer, ids, self._stream, last=last)
        text, self._tail = texts.cut(piece, self._tail, self._stop_texts, last=last)
        self.text += text
