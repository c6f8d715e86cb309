"""A conversation with a language model, whose keys and values are kept from turn to turn.

What a turn adds is read in parts of a few lengths, so that few programs are compiled, and none for
a length alone. Keys and values of local layers lie in rings, in which nothing can be taken back: if
the conversation no longer begins with what was read (a stop text has cut an answer, or old turns
were left out) all of it is read anew.
"""

import dataclasses
import itertools
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.core.sampling import Sampling
from kullback.experiments import interrupts
from kullback.experiments.evaluate import generate
from kullback.lm import batches, chat, gemma, policy

PIECE = 4  # Tokens that are sampled before their text is shown, at most.
PARTS = (256, 64, 16, 4, 1)  # Tokens that are read at once.
CONTEXT = 4_096  # Tokens that are remembered unless the user says otherwise.


class TooLongError(ValueError):
    """A text of the user's that does not fit, even without the turns before it."""


class Read(NamedTuple):
    """The ids that a model has read, and its memory of them."""

    ids: tuple[int, ...]
    memory: policy.Memory


class Said(NamedTuple):
    """A text of the user's, and the answer to it."""

    text: str
    answer: str
    ids: tuple[int, ...]  # The answer's, without the end of the turn.


@dataclasses.dataclass(kw_only=True)
class Conversation:
    """A conversation so far; `answer` goes on with it."""

    writer: generate.Writer
    context: int  # Tokens that are remembered, the next answer included.
    system: str = ""  # Text before the user's first.
    turns: list[Said] = dataclasses.field(default_factory=list)
    num_forgotten: int = 0  # Oldest turns that the model is no longer shown.
    num_answers: int = 0  # Answers that were drawn, forgotten ones too: no two draw alike.
    _read: Read | None = None

    def __post_init__(self) -> None:
        if not chat.has_template(self.writer.checkpoint.tokenizer):
            raise ValueError("a model converses that was tuned on conversations")
        most = self.writer.checkpoint.config.context_length
        if self.context > most:
            raise ValueError(f"the model's context is of {most} tokens, got {self.context}")
        if self.room < 1:
            raise ValueError(
                f"a context of {self.context} tokens has no room for a text beside an answer of "
                f"{self.writer.max_new_tokens}: it must be longer, or max_new_tokens less"
            )

    @property
    def room(self) -> int:
        """Number of tokens before an answer, at most."""
        return self.context - self.writer.max_new_tokens

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values."""
        config = self.writer.checkpoint.config
        return gemma.cache_bytes(config, 1, self.context, jnp.dtype(config.dtype).itemsize)

    @property
    def messages(self) -> list[dict[str, str]]:
        """All that was said, forgotten turns too, in the form of the `messages` of a data set."""
        said = [("system", self.system)] if self.system else []
        for turn in self.turns:
            said += [("user", turn.text), ("assistant", turn.answer)]
        return [{"role": role, "content": text.strip()} for role, text in said]

    def reset(self) -> None:
        """Forgets all turns."""
        self.turns, self.num_forgotten = [], 0

    def answer(self, text: str, on_text: Callable[[str], Any]) -> str:
        """Returns the model's answer to a text of the user's, and remembers both.

        Ctrl-C ends the answer where it is. An empty answer is not remembered, nor the text.

        Args:
          text: not empty.
          on_text: receives each part of the answer as it comes, whole characters only.

        Raises:
          TooLongError: for a text that does not fit beside an answer.
          ValueError: for logits that are not finite.
          Interrupted: on another signal than Ctrl-C's.
        """
        ids = self._fit(text)
        completion = self.writer.completion()
        key = jax.random.fold_in(jax.random.key(self.writer.seed), self.num_answers)
        self.num_answers += 1
        try:
            for drawn in self._draw(ids, key):
                if part := completion.add(drawn):
                    on_text(part)
                if completion.is_complete:
                    break
        except KeyboardInterrupt as error:
            if isinstance(error, interrupts.Interrupted) and error.number != signal.SIGINT:
                raise
        if rest := completion.finish():
            on_text(rest)
        if completion.text.strip():
            self.turns.append(Said(text, completion.text, self._answer_ids(completion)))
        return completion.text

    def _answer_ids(self, completion: generate.Completion) -> tuple[int, ...]:
        """Returns the ids of an answer's text: those that were drawn, unless its text was cut."""
        if completion.is_cut:
            return tuple(self.writer.checkpoint.tokenizer.encode(completion.text.strip()))
        has_stop = completion.is_complete
        return tuple(completion.ids[:-1] if has_stop else completion.ids)

    def _fit(self, text: str) -> list[int]:
        """Returns the ids before the answer to a text; forgets old turns if there are too many.

        Then so many are left out that half of the room is free: each time all is read anew.
        """
        ids = self._ids(text, self.num_forgotten)
        if len(ids) <= self.room:
            return ids
        for first in range(self.num_forgotten + 1, len(self.turns) + 1):
            ids = self._ids(text, first)
            is_last = first == len(self.turns)
            if len(ids) <= self.room // 2 or (is_last and len(ids) <= self.room):
                self.num_forgotten = first
                return ids
        raise TooLongError(
            f"the text has {len(self._ids(text, len(self.turns)))} tokens with its template, and "
            f"{self.room} fit beside an answer of {self.writer.max_new_tokens}; say it in parts"
        )

    def _ids(self, text: str, first: int) -> list[int]:
        turns = [chat.Turn(turn.text, turn.ids) for turn in self.turns[first:]]
        tokenizer = self.writer.checkpoint.tokenizer
        return chat.continued(turns, text, tokenizer, self.system)

    def _draw(self, ids: list[int], key: types.Key) -> Iterator[list[int]]:
        """Yields the next ids of the answer after `ids`, a few at a time, until it ends."""
        read = self._after(ids[:-1])
        last = batches.Prompts(jnp.array([ids[-1:]], jnp.int32), jnp.ones(1, jnp.int32))
        state = self.writer.resume(last, read.memory)
        known = [*ids]
        for tick, limit in generate.pieces(self.writer.max_new_tokens, PIECE):
            sampled, state = self.writer.proceed(last, state, key, tick, limit)
            drawn = sampled.of_row(0)
            known += drawn
            self._read = Read(tuple(known[:-1]), state.policy)  # The last is read with the next.
            yield drawn
            if state.done[0]:
                return

    def _after(self, ids: list[int]) -> Read:
        """Returns the memory of `ids`, of which what is remembered already is not read again."""
        read = self._read
        if read is None or tuple(ids[: len(read.ids)]) != read.ids:
            read = Read((), self._empty())
        for part in parts(len(ids) - len(read.ids)):
            begin = len(read.ids)
            tokens = jnp.array([ids[begin : begin + part]], jnp.int32)
            memory = self.writer.read(self.writer.acting, tokens, read.memory)
            read = self._read = Read(tuple(ids[: begin + part]), memory)
        return read

    def _empty(self) -> policy.Memory:
        settings = self.writer.sampling or Sampling()
        lengths = jnp.ones(1, jnp.int32)
        return policy.empty_memory(self.writer.model, settings, 1, self.context, lengths, 1)


def parts(length: int, sizes: Sequence[int] = PARTS) -> Iterator[int]:
    """Yields sizes that add up to `length`, the largest first; the last of `sizes` is 1."""
    for size in sizes:
        count, length = divmod(length, size)
        yield from itertools.repeat(size, count)
