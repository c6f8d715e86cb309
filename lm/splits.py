"""Which side of a file's split a row falls on: train, or test, which gets one in ten.

What a model sees decides, not how a row writes it: a held-out prompt must not be learnt from under
another spelling. All of these ask the same: conversations that differ in keys that nobody reads, in
the names of roles, or in white space that a template or a normaliser drops; a text and its ids; a
conversation and the text, or the ids, that its template makes of it. Conversations that begin with
the same question are on one side, for a longer one holds the answer to a shorter.

A run goes on with the rule that it began with, config.json's `data.rule`.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from kullback.lm import preferences
from kullback.lm.tokenizer import Tokenizer

RULE = 2  # 1 hashed the JSON of what is asked; runs that name no rule have it.
_FIRST_TURN = re.compile(r"<start_of_turn>user\n.*?<end_of_turn>", re.DOTALL)


def rule_of(config: Mapping[str, Any]) -> int:
    """Returns the rule of a run by its config.json.

    Raises:
      ValueError: for one that we do not know.
    """
    data = config.get("data")
    rule = data.get("rule", 1) if isinstance(data, Mapping) else 1
    if rule not in range(1, RULE + 1):
        raise ValueError(f"config.json: data.rule must be 1 to {RULE}, got {rule!r}")
    return rule


def is_on(row: Mapping[str, Any], split: str, words: Tokenizer | None, rule: int = RULE) -> bool:
    """Returns whether a row is on the side "train" or "test"; arguments are those of `side`.

    A row whose prompt is neither text nor a list is on both, so that whoever reads one refuses it:
    by itself, its side would change with what is wrong with it.
    """
    return not isinstance(_given(row), str | list) or side(row, words, rule) == split


def side(row: Mapping[str, Any], words: Tokenizer | None, rule: int = RULE) -> str | None:
    """Returns "train" or "test"; None where it takes a tokenizer to say and there is none.

    Args:
      row: of a JSONL file, of any form; one that is malformed is on some side, where it is found.
      words: reads prompts that are ids.
      rule: in [1, RULE].
    """
    given = _given(row)
    if rule > 1:
        if words is None and isinstance(given, list) and not _is_conversation(given):
            return None
        given = asked(given, words)
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"


def asked(given: Any, words: Tokenizer | None) -> str:
    """Returns what a prompt asks, in one way: all that a model sees alike is equal here.

    Args:
      given: a text, ids, or messages.
      words: reads ids; None only without any.
    """
    if _is_conversation(given):
        text = _first_turn(given)
    elif isinstance(given, list) and words is not None:
        text = _text(given, words)
    else:
        text = given if isinstance(given, str) else json.dumps(given, sort_keys=True)
    text = text.removeprefix("<bos>")
    if match := _FIRST_TURN.match(text):
        text = match[0]
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _given(row: Mapping[str, Any]) -> Any:
    """Returns what a row's answers answer: a prompt, a text, or the messages before the last."""
    given = row.get("prompt", row.get("text"))
    if given is None and isinstance(row.get("messages"), list):
        return row["messages"][:-1]
    return preferences.given(row) if given is None else given


def _is_conversation(given: Any) -> bool:
    is_list = isinstance(given, list) and bool(given)
    return is_list and all(isinstance(m, Mapping) and "content" in m for m in given)


def _first_turn(messages: list[Mapping[str, Any]]) -> str:
    """Returns the user's first turn as `chat.chat` opens it, with the system's text before it."""
    texts = [str(message["content"]) for message in messages]
    is_system = messages[0].get("role") == "system"
    prefix = texts[0] + "\n\n" if is_system else ""
    first = texts[1:2] if is_system else texts[:1]
    return f"<start_of_turn>user\n{prefix}{''.join(first).strip()}<end_of_turn>"


def _text(ids: list[Any], words: Tokenizer) -> str:
    """Returns the text of ids, control tokens by their names; whatever is no id, as JSON."""
    names = {i: name for name, i in words.controls.items()}
    names[words.bos_id] = "<bos>"
    parts = []
    for i in ids:
        is_id = type(i) is int and 0 <= i < words.vocab_size
        if is_id and i not in names:
            parts.append(words.pieces[i])
        else:
            parts.append((names[i] if is_id else json.dumps(i)).encode())
    return b"".join(parts).decode("utf-8", "replace")
