"""Examples: a prompt and its completion as token ids, made of texts, ids or conversations.

An example has one beginning of sequence, at its start, and its completion one end of sequence, at
its end.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from kullback.lm import blocks, chat, control_tokens, forms, interleaved
from kullback.lm.tokenizer import Tokenizer


class Example(NamedTuple):
    """A prompt and its completion, as token ids."""

    prompt: tuple[int, ...]  # Ids from BOS to the completion; never empty.
    completion: tuple[int, ...]  # Ids to learn; the last ends the sequence, or the model's turn.
    # Spans [begin, end) of the prompt that are earlier turns of the model: they are learnt too.
    answers: tuple[tuple[int, int], ...] = ()
    document: str = ""  # Text that the prompt is about, if given; whole, even if the prompt is cut.
    media: tuple[interleaved.Medium, ...] = ()  # Of the blocks of the prompt, in order.
    source: int = 0  # Number of its data set in a mixture.

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion)

    @property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """Ids of the prompt and of the completion."""
        return self.prompt, self.completion


class Learnt(Protocol):
    """A record that is learnt from: an example, or a pair of answers."""

    @property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """Ids of each of its texts."""
        ...


def fingerprint(records: Iterable[Learnt]) -> str:
    """Returns the SHA-256 of the ids of records, in their order."""
    digest = hashlib.sha256()
    for record in records:
        for ids in record.texts:
            digest.update(np.array([len(ids), *ids], np.int64).tobytes())
    return digest.hexdigest()


class Question(NamedTuple):
    """A prompt as token ids."""

    ids: tuple[int, ...]  # From BOS; never empty.
    media: tuple[interleaved.Medium, ...] = ()  # Of its blocks, in order.


def encode(
    demonstration: forms.Demonstration,
    tokenizer: Tokenizer,
    shown: Sequence[interleaved.Shown] = (),
) -> Example:
    """Returns the example of a prompt and its answer.

    All turns of the model in an answer of messages are learnt, none of those in the prompt.

    Args:
      demonstration: prompt and answer.
      tokenizer: of the model.
      shown: of the messages' items that are no texts, in order.

    Raises:
      ValueError: for an answer with nothing to learn, or an end of sequence within; for messages
        whose roles do not take turns, or that do not end with the model's, or with other than
        those `shown`.
    """
    prompt, answer, key, document = demonstration
    if forms.is_messages(answer):
        example = _conversation(prompt, answer, tokenizer, shown)
        if example.media:  # None stands, whole or in part, where something is learnt.
            row = [*example.prompt, *example.completion]
            interleaved.of_ids(row, example.media, blocks.markers_of(tokenizer))
        return example._replace(document=document)
    begin = (tokenizer.bos_id,) if prompt is None else prompt_of(prompt, tokenizer)
    return Example(begin, _completion(key, answer, tokenizer), document=document)


def prompt_of(value: Any, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Returns the ids of a prompt: a string, ids with or without BOS, or messages.

    BOS comes once, at the start. After messages a turn of the model is opened.

    Raises:
      ValueError: for another type, BOS after the start, or messages whose roles do not take turns.
    """
    return question_of(forms.content("prompt", value), tokenizer).ids


def question_of(
    value: Any,
    tokenizer: Tokenizer,
    shown: Sequence[interleaved.Shown] = (),
) -> Question:
    """Returns a prompt that `forms` has checked, with its media; otherwise as `prompt_of`."""
    if forms.is_messages(value):
        segments = chat.chat(value, tokenizer, shown=shown, add_generation_prompt=True)
        ids, media = joined(segments)
        if media:
            blocks.check_prompt(ids, blocks.markers_of(tokenizer))
        return Question(ids, media)
    if shown:
        raise ValueError("images and clips need messages, in whose contents they stand")
    ids = _ids(value, tokenizer)
    if ids[:1] == [tokenizer.bos_id]:
        ids = ids[1:]
    if tokenizer.bos_id in ids:
        raise ValueError(
            f"prompt has the beginning of sequence, {tokenizer.bos_id}, within; it stands first"
        )
    return Question((tokenizer.bos_id, *ids))


def joined(
    segments: Iterable[chat.Segment],
) -> tuple[tuple[int, ...], tuple[interleaved.Medium, ...]]:
    """Returns the ids of a conversation, and the media of their blocks."""
    segments = list(segments)
    ids = (i for segment in segments for i in segment.ids)
    return tuple(ids), tuple(medium for segment in segments for medium in segment.media)


def spelled_in(texts: Iterable[str], tokenizer: Tokenizer) -> str | None:
    """Returns a control token that one of some texts spells, though it is read as letters."""
    if tokenizer.reads_controls:
        return None
    names = (control_tokens.spelled(text, tokenizer.controls) for text in texts)
    return next((name for name in names if name is not None), None)


def _conversation(
    prompt: Sequence[Mapping[str, Any]],
    answer: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    shown: Sequence[interleaved.Shown],
) -> Example:
    if answer[-1]["role"] not in forms.MODEL:
        raise ValueError(
            f"the last message has role {answer[-1]['role']!r}, expected 'model' or 'assistant': "
            "there is nothing to learn after it"
        )
    for n, message in enumerate(answer, 1 + len(prompt)):
        if message["role"] in forms.MODEL and not message["content"].strip():
            raise ValueError(f"message {n} of the model's is empty; there is nothing to learn")
    # The newline at the end is not learnt.
    *earlier, last, _ = chat.chat([*prompt, *answer], tokenizer, shown=shown)
    special = (tokenizer.bos_id, *tokenizer.eos_ids)
    num_given = sum(message["role"] in forms.MODEL for message in prompt)
    ids: list[int] = []
    spans = []
    for segment in (*earlier, last):
        if segment.is_model_turn:
            _check_within("a turn of the model's", segment.ids[:-1], special)
    for segment in earlier:
        if segment.is_model_turn:
            spans.append((len(ids), len(ids) + len(segment.ids)))
        ids += segment.ids
    media = joined(earlier)[1]
    return Example(tuple(ids), last.ids, tuple(spans[num_given:]), media=media)


def _completion(name: str, value: Any, tokenizer: Tokenizer) -> tuple[int, ...]:
    ids = _ids(value, tokenizer)
    is_rendered = tokenizer.reads_controls and isinstance(value, str)
    if is_rendered:
        # A template writes a line's end after a turn's.
        trimmed = tokenizer.encode(value.rstrip())
        ids = trimmed if trimmed and trimmed[-1] in tokenizer.eos_ids else ids
        if name == "text" and ids[:1] == [tokenizer.bos_id]:
            ids = ids[1:]
    end = tokenizer.eos_id
    if ids and ids[-1] in tokenizer.eos_ids:
        end = ids.pop()
    if not ids or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{name} is empty; there is nothing to learn")
    # A whole conversation, as one text, has turns that end before its own end.
    ends = () if is_rendered and name == "text" else tokenizer.eos_ids
    _check_within(name, ids, (tokenizer.bos_id, *ends))
    return (*ids, end)


def _check_within(name: str, ids: Sequence[int], special: Iterable[int]) -> None:
    for i in special:
        if i in ids:
            raise ValueError(f"{name} has the special id {i} before its end; leave it out")


def _ids(value: str | list[int], tokenizer: Tokenizer) -> list[int]:
    return list(value) if isinstance(value, list) else tokenizer.encode(value)
