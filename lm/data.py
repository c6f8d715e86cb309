"""Examples for language models, and JSONL files of them, read strictly.

A row is one JSON object: {prompt, completion} (or {prompt, target}; strings, or lists of ids),
{text} (all of it is learnt), or {messages: [{role, content}]} (the model's turns are learnt).
The beginning of sequence stands first, once; a completion ends with an end of sequence, once. A
row that does not say what it should is an error with its file and line, never a guess.
"""

import collections
import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from kullback.core import files
from kullback.lm import chat
from kullback.lm.tokenizer import Tokenizer

Overlong = Literal["drop", "truncate-left", "error"]
_FORMS = ({"prompt", "completion"}, {"prompt", "target"}, {"text"}, {"messages"})
_KNOWN = set.union(*_FORMS)


class Example(NamedTuple):
    """A prompt and what should follow it, as ids."""

    prompt: tuple[int, ...]  # From BOS to where the model goes on; never empty.
    completion: tuple[int, ...]  # Ends with an end of sequence, or of the model's turn.
    # Spans [begin, end) of the prompt that are earlier turns of the model's: learnt from too.
    answers: tuple[tuple[int, int], ...] = ()

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt) + len(self.completion)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What an example must fit in; None is no limit."""

    max_length: int | None = None  # Tokens of prompt and completion: the model's context.
    max_prompt_length: int | None = None  # Tokens of the prompt alone, BOS included.
    # What becomes of a longer one: left out; its oldest tokens after BOS left out (of the prompt,
    # or of a text); an error.
    overlong: Overlong = "error"
    vocab_size: int | None = None  # Rows of the model's table, if not the tokenizer's V.

    def __post_init__(self) -> None:
        for name in ("max_length", "max_prompt_length"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} must be >= 2 tokens or None, got {value}")
        if self.overlong not in ("drop", "truncate-left", "error"):
            raise ValueError(
                f"overlong must be drop, truncate-left or error, got {self.overlong!r}"
            )
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ValueError(f"vocab_size must be >= 1 or None, got {self.vocab_size}")


class Report(NamedTuple):
    """What became of the rows of a data set."""

    rows: int
    dropped: int  # Left out, being too long.
    truncated: int  # Shortened on the left.
    ignored_keys: Mapping[str, int]  # Keys that say nothing to us, and in how many rows.
    tokens: int  # Of the examples kept.


def read_jsonl(
    path: files.Path, tokenizer: Tokenizer, limits: Limits | None = None
) -> tuple[list[Example], Report]:
    """Examples of a JSONL file, in its order, and a report of what was left out.

    Raises:
      ValueError: with file and line, for a row that is not UTF-8, no JSON object, has a key
        twice, not the keys of exactly one form, values of another type, nothing to learn, an id
        outside the vocabulary, an end of sequence within a completion, or (unless `overlong`
        says otherwise) too many tokens; for a file without rows.
    """
    return from_rows(read_rows(path), tokenizer, limits)


def read_rows(path: files.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place ("FILE:LINE") and object of each row of a JSONL file; empty lines are no rows.

    Raises:
      ValueError: with file and line, for a row that is not UTF-8, no JSON object, or has a key
        twice; for a file without rows.
    """
    is_empty = True
    with open(path, "rb") as file:
        for line, content in enumerate(file, 1):
            if not content.strip():
                continue
            is_empty = False
            with _located(f"{path}:{line}"):
                try:
                    text = content.decode()
                except UnicodeDecodeError as error:
                    raise ValueError(f"not UTF-8: {error}; convert the file") from error
                row = json.loads(text, object_pairs_hook=_object)
                if not isinstance(row, dict):
                    raise ValueError(f"a row must be a JSON object, got {_kind(row)}")
            yield f"{path}:{line}", row
    if is_empty:
        raise ValueError(f"{path} has no rows; expected one JSON object a line")


def from_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    tokenizer: Tokenizer,
    limits: Limits | None = None,
) -> tuple[list[Example], Report]:
    """Examples of rows, each with the name that its errors bear; as `read_jsonl` otherwise."""
    limits = limits or Limits()
    vocab_size = min(tokenizer.vocab_size, limits.vocab_size or tokenizer.vocab_size)
    examples: list[Example] = []
    ignored: collections.Counter[str] = collections.Counter()
    num_rows = dropped = truncated = 0
    for where, row in rows:
        num_rows += 1
        with _located(where):
            example = _example(row, tokenizer)
            ignored.update(row.keys() - _KNOWN)
            for i in (*example.prompt, *example.completion):
                if not 0 <= i < vocab_size:
                    raise ValueError(f"token id {i} lies outside the vocabulary, [0, {vocab_size})")
            fitted = fit(example, limits, is_text="text" in row)
        dropped += fitted is None
        if fitted is not None:
            truncated += fitted.length < example.length
            examples.append(fitted)
    tokens = sum(example.length for example in examples)
    return examples, Report(num_rows, dropped, truncated, dict(ignored), tokens)


def from_texts(
    pairs: Iterable[tuple[str, str]], tokenizer: Tokenizer, limits: Limits | None = None
) -> tuple[list[Example], Report]:
    """Examples of (prompt, completion) texts, as `read_jsonl` makes them of a file's rows."""
    rows = (
        (f"pair {n}", {"prompt": prompt, "completion": completion})
        for n, (prompt, completion) in enumerate(pairs)
    )
    return from_rows(rows, tokenizer, limits)


def read_prompts(
    path: files.Path, tokenizer: Tokenizer, max_prompt_length: int | None = None
) -> list[tuple[int, ...]]:
    """Prompts of a JSONL file, to generate from: {prompt} or {messages}, other keys ignored.

    Messages that end with the user's get the model's turn opened; if they end with the model's,
    its last turn is left out.

    Raises:
      ValueError: as `read_jsonl`, and always for a prompt that is longer than allowed.
    """
    prompts = []
    for where, row in read_rows(path):
        with _located(where):
            if ("prompt" in row) == ("messages" in row):
                raise ValueError(f"keys {sorted(row)}; expected one of prompt and messages")
            if "prompt" in row:
                prompt = _prompt(row["prompt"], tokenizer)
            else:
                messages = _messages(row["messages"])
                if messages[-1]["role"] in ("model", "assistant"):
                    messages = messages[:-1]
                segments = chat.chat(messages, tokenizer, add_generation_prompt=True)
                prompt = tuple(i for segment in segments for i in segment.ids)
            if max_prompt_length is not None and len(prompt) > max_prompt_length:
                raise ValueError(
                    f"the prompt has {len(prompt)} tokens, more than max_prompt_length="
                    f"{max_prompt_length}; shorten it"
                )
        prompts.append(prompt)
    return prompts


def fit(example: Example, limits: Limits, *, is_text: bool = False) -> Example | None:
    """The example, or its shortened form, within the limits; None if it is to be left out.

    Args:
      example: of any length.
      limits: `overlong` says what becomes of one that is too long.
      is_text: the completion may be shortened: it continues nothing but BOS.

    Raises:
      ValueError: if it is too long and `overlong` is "error", or its completion leaves no room
        for BOS and one token of its prompt and `overlong` is "truncate-left".
    """
    excess = max(
        0 if limits.max_length is None else example.length - limits.max_length,
        0 if limits.max_prompt_length is None else len(example.prompt) - limits.max_prompt_length,
    )
    if excess <= 0:
        return example
    lengths = (
        f"prompt and completion have {len(example.prompt)} and {len(example.completion)} tokens, "
        f"more than max_length={limits.max_length} or max_prompt_length={limits.max_prompt_length}"
    )
    if limits.overlong == "drop":
        return None
    if limits.overlong == "error":
        raise ValueError(f"{lengths}; shorten it, or set overlong to drop or truncate-left")
    if is_text:
        return example._replace(completion=example.completion[excess:])
    if len(example.prompt) - excess < 2:
        raise ValueError(f"{lengths}, even without its prompt; shorten it, or set overlong to drop")
    prompt = example.prompt[:1] + example.prompt[1 + excess :]
    spans = ((max(1, begin - excess), end - excess) for begin, end in example.answers)
    return Example(prompt, example.completion, tuple((b, e) for b, e in spans if b < e))


@contextlib.contextmanager
def _located(where: str) -> Iterator[None]:
    """Says where it was that a ValueError was raised."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    counts = collections.Counter(key for key, _ in pairs)
    if twice := [key for key, count in counts.items() if count > 1]:
        raise ValueError(f"key {twice[0]!r} is there {counts[twice[0]]} times; keep one")
    return dict(pairs)


def _example(row: Mapping[str, Any], tokenizer: Tokenizer) -> Example:
    keys = row.keys() & _KNOWN
    if keys not in _FORMS:
        forms = "; ".join(" and ".join(sorted(form, reverse=True)) for form in _FORMS)
        raise ValueError(f"keys {sorted(row)}; expected those of one form: {forms}")
    if "messages" in keys:
        return _conversation(_messages(row["messages"]), tokenizer)
    if "text" in keys:
        _check_string("text", row["text"])
        return Example((tokenizer.bos_id,), _completion("text", row["text"], tokenizer))
    target = "completion" if "completion" in keys else "target"
    return Example(_prompt(row["prompt"], tokenizer), _completion(target, row[target], tokenizer))


def _conversation(messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> Example:
    if messages[-1]["role"] not in ("model", "assistant"):
        raise ValueError(
            f"the last message has role {messages[-1]['role']!r}, expected 'model' or 'assistant': "
            "there is nothing to learn after it"
        )
    for n, message in enumerate(messages):
        if message["role"] in ("model", "assistant") and not message["content"].strip():
            raise ValueError(f"message {n + 1} of the model's is empty; there is nothing to learn")
    *earlier, answer, _ = chat.chat(messages, tokenizer)  # The newline at the end is not learnt.
    prompt: list[int] = []
    spans = []
    for segment in earlier:
        if segment.is_model_turn:
            spans.append((len(prompt), len(prompt) + len(segment.ids)))
        prompt += segment.ids
    return Example(tuple(prompt), answer.ids, tuple(spans))


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"messages must be a list of at least one message, got {_kind(value)}")
    for n, message in enumerate(value):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"message {n + 1} must be an object with role and content")
        for key in ("role", "content"):
            _check_string(f"{key} of message {n + 1}", message[key])
    return value


def _prompt(value: Any, tokenizer: Tokenizer) -> tuple[int, ...]:
    ids = _ids("prompt", value, tokenizer)
    if ids[:1] == [tokenizer.bos_id]:
        ids = ids[1:]
    if tokenizer.bos_id in ids:
        raise ValueError(
            f"prompt has the beginning of sequence, {tokenizer.bos_id}, within; it stands first"
        )
    return (tokenizer.bos_id, *ids)


def _completion(name: str, value: Any, tokenizer: Tokenizer) -> tuple[int, ...]:
    ids = _ids(name, value, tokenizer)
    end = tokenizer.eos_id
    if ids and ids[-1] in tokenizer.eos_ids:
        end = ids.pop()
    if not ids or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{name} is empty; there is nothing to learn")
    for i in (tokenizer.bos_id, *tokenizer.eos_ids):
        if i in ids:
            raise ValueError(f"{name} has the special id {i} before its end; leave it out")
    return (*ids, end)


def _ids(name: str, value: Any, tokenizer: Tokenizer) -> list[int]:
    if isinstance(value, list):
        for i in value:
            if isinstance(i, bool) or not isinstance(i, int):
                raise ValueError(f"{name} must be a string or a list of ids, got {_kind(i)} in it")
        return list(value)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string or a list of ids, got {_kind(value)}")
    _check_string(name, value)
    return tokenizer.encode(value)


def _check_string(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair.
        raise ValueError(f"{name} is not UTF-8: {error}") from error


def _kind(value: Any) -> str:
    return f"{json.dumps(value)[:40]} ({type(value).__name__})"
