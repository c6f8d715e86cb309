"""A conversation with a language model, whose keys and values are kept from turn to turn.

What a turn adds is read in parts of a few lengths, so that few programs are compiled, and none for
a length alone; an image is a part of its own, as its tokens see each other. Keys and values of
local layers lie in rings, in which nothing can be taken back: if the conversation no longer begins
with what was read (a stop text has cut an answer, or old turns were left out) all of it is read
anew.
"""

import dataclasses
import itertools
import pathlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.core.sampling import Sampling
from kullback.experiments import interrupts
from kullback.experiments.evaluate import generate
from kullback.lm import batches, blocks, chat, gemma, interleaved, policy

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
    images: tuple[interleaved.Shown, ...] = ()  # Before the text.


class _Before(NamedTuple):
    """Tokens before an answer."""

    ids: list[int]
    media: list[interleaved.Medium]  # Of the images in them, with their crops, in order.


@dataclasses.dataclass(kw_only=True)
class Conversation:
    """A conversation so far; `answer` goes on with it."""

    writer: generate.Writer
    context: int  # Tokens that are remembered, the next answer included.
    system: str = ""  # Text before the user's first.
    turns: list[Said] = dataclasses.field(default_factory=list)
    # Images that stand before the next text of the user's.
    shown: list[interleaved.Shown] = dataclasses.field(default_factory=list)
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
    def messages(self) -> list[dict[str, Any]]:
        """All that was said, forgotten turns too, in the form of the `messages` of a data set.

        A turn with images has items in place of a text; see `images` for their files.
        """
        said = [{"role": "system", "content": self.system.strip()}] if self.system else []
        for turn in self.turns:
            content: Any = turn.text.strip()
            if turn.images:
                items = [{"type": "image"} for _ in turn.images]
                content = [*items, {"type": "text", "text": content}]
            said.append({"role": "user", "content": content})
            said.append({"role": "assistant", "content": turn.answer.strip()})
        return said

    @property
    def images(self) -> list[str]:
        """The files of all images of the turns, in order."""
        return [str(image.source) for turn in self.turns for image in turn.images]

    def reset(self) -> None:
        """Forgets all turns, and the images of the next."""
        self.turns, self.shown, self.num_forgotten = [], [], 0

    def show(self, path: pathlib.Path) -> str:
        """Puts an image before the next text of the user's; returns a note about it, or "".

        Raises:
          ValueError: for a model of text alone, and as `media_rows.ImageSettings.open` does.
        """
        sees = self.writer.checkpoint.images
        if sees is None:
            raise ValueError("this model reads no images; a multimodal folder does")
        image, note = sees.rows.open(path)
        self.shown.append(image)
        return note

    def answer(self, text: str, on_text: Callable[[str], Any]) -> str:
        """Returns the model's answer to a text of the user's, and remembers both.

        The images that were shown since the last text stand before it. Ctrl-C ends the answer
        where it is. An empty answer is not remembered, nor the text and its images.

        Args:
          text: not empty.
          on_text: receives each part of the answer as it comes, whole characters only.

        Raises:
          TooLongError: for a text that does not fit beside an answer.
          ValueError: for logits that are not finite.
          Interrupted: on another signal than Ctrl-C's.
        """
        before = self._fit(text)
        completion = self.writer.completion()
        key = jax.random.fold_in(jax.random.key(self.writer.seed), self.num_answers)
        self.num_answers += 1
        try:
            for drawn in self._draw(before, key):
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
            answer_ids = self._answer_ids(completion)
            self.turns.append(Said(text, completion.text, answer_ids, tuple(self.shown)))
        self.shown = []
        return completion.text

    def _answer_ids(self, completion: generate.Completion) -> tuple[int, ...]:
        """Returns the ids of an answer's text: those that were drawn, unless its text was cut."""
        if completion.is_cut:
            return tuple(self.writer.checkpoint.tokenizer.encode(completion.text.strip()))
        has_stop = completion.is_complete
        return tuple(completion.ids[:-1] if has_stop else completion.ids)

    def _fit(self, text: str) -> _Before:
        """Returns the tokens before the answer to a text; forgets old turns if there are too many.

        Then so many are left out that half of the room is free: each time all is read anew.
        """
        before = self._before(text, self.num_forgotten)
        if len(before.ids) <= self.room:
            return before
        for first in range(self.num_forgotten + 1, len(self.turns) + 1):
            before = self._before(text, first)
            length, is_last = len(before.ids), first == len(self.turns)
            if length <= self.room // 2 or (is_last and length <= self.room):
                self.num_forgotten = first
                return before
        length = len(self._before(text, len(self.turns)).ids)
        what = "text and its images have" if self.shown else "text has"
        raise TooLongError(
            f"the {what} {length} tokens with its template, and {self.room} fit beside an answer "
            f"of {self.writer.max_new_tokens}; say it in parts"
        )

    def _before(self, text: str, first: int) -> _Before:
        """Returns the tokens of the turns from `first` on, and of the next text."""
        kept, shown = self.turns[first:], tuple(self.shown)
        turns = [chat.Turn(turn.text, turn.ids, turn.images) for turn in kept]
        tokenizer = self.writer.checkpoint.tokenizer
        ids = chat.continued(turns, text, tokenizer, self.system, shown)
        images = [image for turn in kept for image in turn.images] + list(shown)
        return _Before(ids, [view for image in images for view in interleaved.views(image)])

    def _draw(self, before: _Before, key: types.Key) -> Iterator[list[int]]:
        """Yields the next ids of the answer, a few at a time, until it ends."""
        read = self._after(before._replace(ids=before.ids[:-1]))
        final = jnp.array([before.ids[-1:]], jnp.int32)
        last = batches.Prompts(final, jnp.ones(1, jnp.int32))
        state = self.writer.resume(last, read.memory)
        known = [*before.ids]
        for tick, limit in generate.pieces(self.writer.max_new_tokens, PIECE):
            sampled, state = self.writer.proceed(last, state, key, tick, limit)
            drawn = sampled.of_row(0)
            known += drawn
            self._read = Read(tuple(known[:-1]), state.policy)  # The last is read with the next.
            yield drawn
            if state.done[0]:
                return

    def _after(self, before: _Before) -> Read:
        """Returns the memory of tokens, of which what is remembered already is not read again."""
        read, ids = self._read, before.ids
        if read is None or tuple(ids[: len(read.ids)]) != read.ids:
            read = Read((), self._empty())
        for begin, end, medium in self._spans(before, len(read.ids)):
            sensed = None
            if medium is not None and self.writer.checkpoint.images is not None:
                sensed = self.writer.checkpoint.images.features([medium])[None]
            tokens = jnp.array([ids[begin:end]], jnp.int32)
            memory = self.writer.read(self.writer.acting, tokens, read.memory, sensed)
            read = self._read = Read(tuple(ids[:end]), memory)
        return read

    def _spans(
        self, before: _Before, begin: int
    ) -> Iterator[tuple[int, int, interleaved.Medium | None]]:
        """Yields the [begin, end) that are read at once, and what an image is computed from."""
        blocks_of_row: list[blocks.Block] = []
        if before.media:
            markers = blocks.markers_of(self.writer.checkpoint.tokenizer)
            blocks_of_row = blocks.find(before.ids, markers)
        for block, medium in zip(blocks_of_row, before.media, strict=True):
            if block.begin >= begin:
                yield from _text_spans(begin, block.begin)
                yield block.begin, block.end, medium
                begin = block.end
        yield from _text_spans(begin, len(before.ids))

    def _empty(self) -> policy.Memory:
        settings = self.writer.sampling or Sampling()
        lengths = jnp.ones(1, jnp.int32)
        return policy.empty_memory(self.writer.model, settings, 1, self.context, lengths, 1)


def _text_spans(begin: int, end: int) -> Iterator[tuple[int, int, None]]:
    for part in parts(end - begin):
        yield begin, begin + part, None
        begin += part


def parts(length: int, sizes: Sequence[int] = PARTS) -> Iterator[int]:
    """Yields sizes that add up to `length`, the largest first; the last of `sizes` is 1."""
    for size in sizes:
        count, length = divmod(length, size)
        yield from itertools.repeat(size, count)
