"""Splits of a file's records into train and test, which gets one in ten.

The split depends on the text that a model sees, not on its notation in the file, so that no
held-out prompt is learnt from in another notation. These have the same question: conversations that
differ in keys that nobody reads, in the names of roles, or in white space that a template or a
normaliser drops; a text and its ids; a conversation and the text, or the ids, that its template
makes of it. Conversations that begin with the same question are in one split, as a longer one holds
the answer to a shorter.

Where images are read, a row is on the side of its first image, by its name: the same question is
asked of many images, and no held-out image is learnt from with another question. Clips likewise.

A run keeps the rule that it began with, config.json's `data.rule`.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from kullback.lm import forms, media_rows
from kullback.lm.tokenizer import Tokenizer

RULE = 2  # Newest rule; 1, of runs that name none, hashes the JSON of the prompt.
_FIRST_TURN = re.compile(r"<start_of_turn>user\n.*?<end_of_turn>", re.DOTALL)


def rule_of(config: Mapping[str, Any]) -> int:
    """Returns the rule of a run, by its config.json.

    Raises:
      ValueError: for an unknown rule.
    """
    data = config.get("data")
    rule = data.get("rule", 1) if isinstance(data, Mapping) else 1
    if rule not in range(1, RULE + 1):
        raise ValueError(f"config.json: data.rule must be 1 to {RULE}, got {rule!r}")
    return rule


def is_on(
    record: Mapping[str, Any],
    split: str,
    tokenizer: Tokenizer | None,
    rule: int = RULE,
    *,
    modality: forms.Modality | None = None,
) -> bool:
    """Returns whether a record is on the side "train" or "test"; arguments are those of `side`.

    A record whose prompt is neither text nor a list is on both, so that whoever reads one refuses
    it: by itself, its side would change with what is wrong with it. So is one whose media of the
    kind that is read are not named as lm/media_rows.py says.
    """
    if modality is not None:
        try:
            names = media_rows.names(record, modality)
        except ValueError:
            return True
        if names:
            return _side(names[0].removeprefix("./")) == split
    prompt = forms.question(record)
    return not isinstance(prompt, str | list) or side(record, tokenizer, rule) == split


def side(record: Mapping[str, Any], tokenizer: Tokenizer | None, rule: int = RULE) -> str | None:
    """Returns "train" or "test"; None for a prompt of ids without a tokenizer.

    Args:
      record: of a JSONL file, in any form; even a malformed one has a side.
      tokenizer: decodes prompts that are ids.
      rule: in [1, RULE].
    """
    prompt = forms.question(record)
    if rule > 1:
        if tokenizer is None and isinstance(prompt, list) and not _is_conversation(prompt):
            return None
        prompt = question(prompt, tokenizer)
    return _side(prompt)


def _side(key: Any) -> str:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % 10 == 0 else "train"


def question(prompt: Any, tokenizer: Tokenizer | None) -> str:
    """Returns the question of a prompt in a canonical form, equal for all notations of a text.

    Args:
      prompt: a text, ids, or messages.
      tokenizer: decodes ids; None only without any.
    """
    if _is_conversation(prompt):
        text = _first_turn(prompt)
    elif isinstance(prompt, list) and tokenizer is not None:
        text = _text(prompt, tokenizer)
    else:
        text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
    text = text.removeprefix("<bos>")
    if match := _FIRST_TURN.match(text):
        text = match[0]
    return " ".join(unicodedata.normalize("NFKC", text).split())


def _is_conversation(prompt: Any) -> bool:
    is_list = isinstance(prompt, list) and bool(prompt)
    return is_list and all(isinstance(m, Mapping) and "content" in m for m in prompt)


def _first_turn(messages: list[Mapping[str, Any]]) -> str:
    """Returns the user's first turn as `chat.chat` renders it, after the system's text."""
    texts = [str(forms.text_of(message["content"])) for message in messages]
    is_system = messages[0].get("role") == "system"
    prefix = texts[0] + "\n\n" if is_system else ""
    first = texts[1:2] if is_system else texts[:1]
    return f"<start_of_turn>user\n{prefix}{''.join(first).strip()}<end_of_turn>"


def _text(ids: list[Any], tokenizer: Tokenizer) -> str:
    """Decodes ids, with control tokens as their names, and other values as JSON."""
    names = {i: name for name, i in tokenizer.controls.items()}
    names[tokenizer.bos_id] = "<bos>"
    pieces = []
    for i in ids:
        is_id = type(i) is int and 0 <= i < tokenizer.vocab_size
        if is_id and i not in names:
            pieces.append(tokenizer.pieces[i])
        else:
            pieces.append((names[i] if is_id else json.dumps(i)).encode())
    return b"".join(pieces).decode("utf-8", "replace")
