"""Forms of a record: the keys and types by which files of data hold prompts and their answers.

A record is one JSON object. One that is to be learnt has one of `DEMONSTRATIONS`, one that compares
two answers one of `PAIRS`; further keys are ignored. A prompt or an answer is a text, a list of ids
or a list of messages, {role, content} each, whose content is a text or a list of parts of text. The
forms are those of TRL (https://huggingface.co/docs/trl/dataset_formats), UltraFeedback (prompt,
chosen, rejected; Cui et al., 2023, https://arxiv.org/abs/2310.01377), UltraChat (prompt, messages)
and hh-rlhf (dialogues; Bai et al., 2022, https://arxiv.org/abs/2204.05862).

`demonstration` and `answers` check what they read. `question` and `texts` do not: a malformed
record, too, is on one side of a split.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from kullback.core import typed

DEMONSTRATIONS = (
    "{prompt, completion} or {prompt, target}, both of text or ids, or both of messages; {text}; "
    "{messages}, perhaps with the prompt, a text, that they hold"
)
PAIRS = (
    "{prompt, chosen, rejected}, all of text or ids, or all of messages; {chosen, rejected} of "
    "messages, perhaps with the prompt, a text, that they hold; {chosen, rejected} of dialogues, "
    "texts of turns that begin with Human: or Assistant: after an empty line"
)
DOCUMENT = "document"  # Key of the text that a prompt is about.
_ANSWERS = ("completion", "target")
LEARNT = {"prompt", "text", "messages", *_ANSWERS}  # Keys of `DEMONSTRATIONS`.
COMPARED = {"prompt", "chosen", "rejected"}  # Keys of `PAIRS`.
MODEL = ("model", "assistant")  # Roles of the model.
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


class Modality(NamedTuple):
    """A kind of media that a row may have beside text, see lm/media_rows.py."""

    name: str  # Of the flag that reads them, and where a run names their files.
    item: str  # Type of the items of a content that stand for one: {"type": item}.
    keys: tuple[str, str]  # Columns of the names of files: a list, and one.
    nouns: str  # Of several, for messages.


IMAGES = Modality("images", "image", ("images", "image"), "images")
AUDIO = Modality("audio", "audio", ("audios", "audio"), "clips")


class Demonstration(NamedTuple):
    """A prompt and the answer to it that is to be learnt.

    Both are texts or ids, or both are messages, whose contents are texts.
    """

    prompt: Any  # None: there is none, and all of a text is learnt. [] if all are in the answer.
    answer: Any
    key: str  # Key of the answer in its record.
    document: str  # Text that the prompt is about, or "".


def demonstration(record: Mapping[str, Any], *, modality: Modality | None = None) -> Demonstration:
    """Returns the prompt and the answer of a record that is to be learnt.

    Args:
      record: one row.
      modality: kind of the media that the user's messages may have as items (lm/media_rows.py);
        their contents stay lists then. None reads text alone.

    Raises:
      ValueError: unless the record has one of the forms, and values of their types.
    """
    keys = record.keys() & LEARNT
    document = record.get(DOCUMENT, "")
    check_string(DOCUMENT, document)
    if keys == {"text"}:
        check_string("text", record["text"])
        return Demonstration(None, record["text"], "text", document)
    if keys in ({"messages"}, {"messages", "prompt"}):
        turns = messages(record["messages"], modality=modality)
        if "prompt" in keys:
            _check_prompt(record["prompt"], turns, "messages")
        return Demonstration([], turns, "messages", document)
    key = next((key for key in _ANSWERS if key in keys), "")
    if keys != {"prompt", key}:
        hint = "; tokens/preferences:PATH reads pairs" if "rejected" in record else ""
        raise ValueError(
            f"keys {sorted(record)}; expected those of one form: {DEMONSTRATIONS}{hint}"
        )
    prompt = content("prompt", record["prompt"], modality=modality)
    answer = content(key, record[key])
    if is_messages(prompt) and isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    if is_messages(prompt) != is_messages(answer):
        raise ValueError(
            f"prompt and {key} must both be messages, or neither, got {_noun(prompt)} and "
            f"{_noun(answer)}"
        )
    return Demonstration(prompt, answer, key, document)


def answers(
    record: Mapping[str, Any], *, modality: Modality | None = None
) -> dict[str, dict[str, Any]]:
    """Returns the chosen and the rejected answer of a pair, as records of one answer each.

    Messages of both answers, or their dialogues, hold the prompt: all but the last turn. That they
    are the same is not checked here. Both have the pair's media, if these are read.

    Raises:
      ValueError: unless the record has one of the forms. `demonstration` checks the answers.
    """
    keys = record.keys() & COMPARED
    if not {"chosen", "rejected"} <= keys:
        raise ValueError(f"keys {sorted(record)}; expected those of one form: {PAIRS}")
    kept = (DOCUMENT, *(modality.keys if modality else ()))
    common = {key: record[key] for key in kept if key in record}
    both = {name: record[name] for name in ("chosen", "rejected")}
    prompt = record.get("prompt")
    holds_prompt = "prompt" not in keys or (
        isinstance(prompt, str) and any(map(is_messages, both.values()))
    )
    if not holds_prompt:
        return {
            name: {"prompt": prompt, "completion": answer, **common}
            for name, answer in both.items()
        }
    turns = {name: _with_prompt(name, answer) for name, answer in both.items()}
    if "prompt" in keys:
        for name, value in turns.items():
            _check_prompt(prompt, messages(value, modality=modality), name)
    return {name: {"messages": value, **common} for name, value in turns.items()}


def unanswered(record: Mapping[str, Any], *, modality: Modality | None = None) -> Any:
    """Returns the prompt to be answered that a record has, with or without an answer.

    Messages end with the user's, whose answer is left out. Arguments are those of `demonstration`.

    Raises:
      ValueError: if there is none, or its type is not one of a prompt.
    """
    turns, prompt = _turns(record), record.get("prompt")
    if turns is None and "prompt" not in record:
        raise ValueError(
            f"keys {sorted(record)}; expected prompt, messages, or the chosen and rejected of a "
            "pair"
        )
    if turns is None:
        return content("prompt", prompt, modality=modality)
    turns = messages(turns, modality=modality)
    if "prompt" in record:
        _check_prompt(prompt, turns, "messages")
    return turns[:-1] if turns[-1]["role"] in MODEL else turns


def question(record: Mapping[str, Any]) -> Any:
    """Returns the prompt of a record in any form, unchecked: a text, ids, messages, or None.

    A text without a prompt is its own. Of a conversation it is the messages before the last.
    """
    turns = _turns(record)
    return record.get("prompt", record.get("text")) if turns is None else turns[:-1]


def texts(value: Any) -> list[str]:
    """Returns the texts in a prompt or an answer: its own, or its messages'; ids have none."""
    if isinstance(value, str):
        return [value]
    entries = value if isinstance(value, list) else []
    # An item of a prompt with media (lm/media_rows.py) is no message.
    entries = [m for m in entries if isinstance(m, Mapping)]
    contents = (text_of([m] if "type" in m else m.get("content")) for m in entries)
    return [text for text in contents if isinstance(text, str)]


def texts_of_pair(record: Mapping[str, Any]) -> list[str]:
    """Returns the texts of a pair, with the prompt once; ids have none."""
    chosen, rejected = (
        (dialogue(answer) if "prompt" not in record and isinstance(answer, str) else None) or answer
        for answer in (record.get("chosen"), record.get("rejected"))
    )
    prompt = record.get("prompt")
    if isinstance(prompt, str) and is_messages(chosen):
        prompt = None  # They hold it.
    if is_messages(rejected):
        rejected = rejected[-1:]
    return [text for value in (prompt, chosen, rejected) for text in texts(value)]


def is_messages(value: Any) -> TypeGuard[list[Any]]:
    """Returns whether a value is to be read as messages, rather than as ids."""
    return isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value)


def content(name: str, value: Any, *, modality: Modality | None = None) -> Any:
    """Returns a prompt or an answer: a text, ids, or messages whose contents are texts.

    Args:
      name: of the value, for messages of errors.
      value: of JSON.
      modality: as of `demonstration`.

    Raises:
      ValueError: for another type.
    """
    if is_messages(value):
        return messages(value, modality=modality)
    if isinstance(value, list):
        for i in value:
            if isinstance(i, bool) or not isinstance(i, int):
                raise ValueError(
                    f"{name} must be a string, a list of ids or messages, got {_kind(i)} in it"
                )
        return value
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, a list of ids or messages, got {_kind(value)}")
    check_string(name, value)
    return value


def messages(value: Any, *, modality: Modality | None = None) -> list[dict[str, Any]]:
    """Returns messages with a text as the content of each, or a list of parts if it has media.

    Raises:
      ValueError: for another type, or a part of a content that is no text; with a `modality`, for
        one that is neither text nor of that kind in a message of the user's.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"messages must be a list of at least one message, got {_kind(value)}")
    turns = []
    for n, message in enumerate(value, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"message {n} must be an object with role and content")
        check_string(f"role of message {n}", message["role"])
        said, taken = message["content"], modality if message["role"] == "user" else None
        _check_parts(f"content of message {n}", said, taken)
        kept = said if taken and has_media(said, taken) else text_of(said)
        turns.append({"role": message["role"], "content": kept})
    return turns


def has_media(value: Any, modality: Modality) -> bool:
    """Returns whether a message's content has an item of a kind, unchecked."""
    parts = value if isinstance(value, list) else []
    return any(isinstance(part, Mapping) and part.get("type") == modality.item for part in parts)


def text_of(value: Any) -> Any:
    """Returns a message's content as a text, unchecked; another value as it is.

    Gemma's published template drops the white space around each part, and puts nothing between.
    """
    if not isinstance(value, list):
        return value
    parts = (part.get("text") for part in value if isinstance(part, Mapping))
    return "".join(part.strip() for part in parts if isinstance(part, str))


def dialogue(text: str) -> list[dict[str, str]] | None:
    r"""Returns a dialogue's messages, "\n\nHuman: Hi\n\nAssistant: Yes?"; None if it is none."""
    before, *turns = _TURN.split("\n\n" + text.lstrip())
    if before or turns[:1] != ["Human"]:
        return None
    return [
        {"role": _SPEAKERS[speaker], "content": said.strip()}
        for speaker, said in zip(turns[::2], turns[1::2], strict=True)
    ]


def check_string(name: str, value: Any) -> None:
    """Raises ValueError, which begins with `name`, unless a value is a string of valid UTF-8."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be a string, got {_kind(value)}")
    if not typed.is_unicode(value):  # JSON can write half of a surrogate pair.
        raise ValueError(f"{name} is not UTF-8: it has half a surrogate pair")


def _turns(record: Mapping[str, Any]) -> Any:
    """Returns the messages that hold a record's prompt and its answer, unchecked, or None."""
    prompt = record.get("prompt", record.get("text"))
    chosen, turns = record.get("chosen"), record.get("messages")
    if prompt is None:
        if isinstance(chosen, str) and not isinstance(turns, list):
            return dialogue(chosen)
        return next((value for value in (turns, chosen) if isinstance(value, list)), None)
    if not isinstance(prompt, str) or record.keys() & {"text", *_ANSWERS}:
        return None
    if "chosen" in record:
        return chosen if is_messages(chosen) else None
    return turns if isinstance(turns, list) else None


def _with_prompt(name: str, value: Any) -> list[Any]:
    """Returns the messages of an answer that holds its prompt: a list of them, or a dialogue."""
    turns = dialogue(value) if isinstance(value, str) else value
    if not isinstance(turns, list):
        raise ValueError(
            f"without a prompt {name} must be a list of messages, or a dialogue, whose turns begin "
            f"with Human: or Assistant: after an empty line, got {_kind(value)}"
        )
    return turns


def _check_prompt(prompt: Any, turns: Sequence[Mapping[str, Any]], key: str) -> None:
    """Refuses a prompt beside messages that do not hold it."""
    if not isinstance(prompt, str):
        raise ValueError(f"prompt beside {key} must be a string, got {_kind(prompt)}")
    questions = (text_of(turn["content"]) for turn in turns if turn["role"] == "user")
    if _folded(prompt) not in map(_folded, questions):
        raise ValueError(
            f"prompt is {_kind(prompt)}, and no message of the user's in {key} says it; leave it "
            "out, or give it as messages that come before them"
        )


def _check_parts(name: str, value: Any, modality: Modality | None) -> None:
    if not isinstance(value, list):
        if not isinstance(value, str):
            raise ValueError(
                f"{name} must be a string, or a list of parts of text, got {_kind(value)}"
            )
        return check_string(name, value)
    if not value:
        raise ValueError(f"{name} must have at least one part of text, got []")
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if modality is not None and kind == modality.item:
            continue
        if kind != "text":
            problem = f"the type {_kind(kind)}" if kind is not None else "no type"
            raise ValueError(
                f'{name} has a part of {problem}; expected {{"type": "text", "text": ...}}: '
                f"nothing but text{f' and {modality.nouns}' if modality else ''} is read"
            )
        check_string(f"text of a part in {name}", part.get("text"))


def _folded(text: str) -> str:
    """Returns a text with each run of white space as one space."""
    return " ".join(text.split())


def _noun(value: Any) -> str:
    return "messages" if is_messages(value) else "a text" if isinstance(value, str) else "ids"


def _kind(value: Any) -> str:
    return f"{json.dumps(value)[:40]} ({type(value).__name__})"
