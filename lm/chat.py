"""Conversations as token ids in Gemma's chat template, with the model's turns marked.

Gemma Team, "Gemma 3 Technical Report", 2025, https://arxiv.org/abs/2503.19786.

A model whose files have a chat template was tuned on conversations. A run that learns from some
gets one of our own, which says in Jinja what `chat` does, for transformers.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kullback.core import json_files
from kullback.lm.tokenizer import TEMPLATE_FILE, TOKENIZER_CONFIG, Tokenizer

TEMPLATE = """\
{{ bos_token }}\
{% if messages[0]['role'] == 'system' %}\
{% set prefix = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}\
{% else %}\
{% set prefix = '' %}{% set turns = messages %}\
{% endif %}\
{% for message in turns %}\
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}\
{% if role != ('user' if loop.index0 % 2 == 0 else 'model') %}\
{{ raise_exception('user and assistant take turns, after an optional system message') }}\
{% endif %}\
{{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}\
{{ message['content'] | trim }}{{ '<end_of_turn>\\n' }}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""


class Segment(NamedTuple):
    """A part of a rendered conversation."""

    ids: tuple[int, ...]
    is_model_turn: bool  # Whether the model says it, the end of its turn included: it is learnt.


def chat(
    messages: Sequence[Mapping[str, str]],
    tokenizer: Tokenizer,
    *,
    add_generation_prompt: bool = False,
) -> list[Segment]:
    r"""Renders a conversation in Gemma's template, as segments whose ids are to be concatenated.

        <bos><start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n{text}<end_of_turn>\n

    BOS comes once. Gemma has no system role: a system's text is put before the text of the first
    user turn, with an empty line between. White space around a turn's text is dropped. The text of
    a model's turn is encoded apart from the turn's opening, as it is when the model generates it.

    Args:
      messages: {"role", "content"} each: optionally "system", then "user" and "model" (or
        "assistant") in turn, beginning with "user".
      tokenizer: one with Gemma's special tokens.
      add_generation_prompt: whether to open a turn of the model at the end.

    Raises:
      ValueError: for another role or order, naming the message; if a turn of the model is to be
        opened after another; or if the vocabulary lacks the tokens of a turn.
    """
    start, end = _delimiters(tokenizer)
    prefix = ""
    if messages and messages[0]["role"] == "system":
        prefix = messages[0]["content"] + "\n\n"
        messages = messages[1:]
    if not messages:
        raise ValueError("a conversation needs a message of the user's, got none")
    newline = tokenizer.encode("\n")
    segments = []
    before = [tokenizer.bos_id]  # Ids since the model's last turn.
    for n, message in enumerate(messages):
        expected = ("user", "model")[n % 2]
        role = "model" if message["role"] == "assistant" else message["role"]
        if role != expected:
            raise ValueError(
                f"turn {n + 1} has role {message['role']!r}, expected {expected!r}: after an "
                "optional 'system', 'user' and 'model' take turns"
            )
        text = message["content"].strip()
        if role == "user":
            text = prefix + text if n == 0 else text
            before += _user_turn(text, tokenizer)
        else:
            before += [start, *tokenizer.encode("model\n")]
            segments += [Segment(tuple(before), False)]
            segments += [Segment((*tokenizer.encode(text), end), True)]
            before = list(newline)
    if add_generation_prompt and len(messages) % 2 == 0:
        raise ValueError(
            "the last message is the model's, and a second turn of its own would be opened after "
            "it: end with a message of the user's"
        )
    if add_generation_prompt:
        before += [start, *tokenizer.encode("model\n")]
    return [*segments, Segment(tuple(before), False)]


class Turn(NamedTuple):
    """A text of the user's, and what a model has answered."""

    text: str
    answer: tuple[int, ...]  # Ids as they were drawn, without the end of the turn.


def continued(
    turns: Sequence[Turn], text: str, tokenizer: Tokenizer, system: str = ""
) -> list[int]:
    """Returns the ids after which a model answers `text`, as `chat` renders the conversation.

    The model's turns have the ids that it drew, where `chat` encodes their text: so a cache of keys
    and values of the turns before still holds.

    Args:
      turns: the conversation so far.
      text: the user's next, as all texts of his not empty.
      tokenizer: one with Gemma's special tokens.
      system: the system's text; "" is none.

    Raises:
      ValueError: if the vocabulary lacks the tokens of a turn.
    """
    start, end = _delimiters(tokenizer)
    prefix = f"{system}\n\n" if system else ""
    opening = [start, *tokenizer.encode("model\n")]
    ids = [tokenizer.bos_id]
    for turn in turns:
        ids += [*_user_turn(prefix + turn.text.strip(), tokenizer), *opening]
        ids += [*turn.answer, end, *tokenizer.encode("\n")]
        prefix = ""
    return [*ids, *_user_turn(prefix + text.strip(), tokenizer), *opening]


def has_template(tokenizer: Tokenizer) -> bool:
    """Returns whether a tokenizer's files say by a chat template that its model converses.

    Raises:
      ValueError: for a tokenizer_config.json that is damaged.
    """
    if TEMPLATE_FILE in tokenizer.sources:
        return True
    if TOKENIZER_CONFIG not in tokenizer.sources:
        return False
    config = json_files.parse(tokenizer.sources[TOKENIZER_CONFIG], TOKENIZER_CONFIG)
    return "chat_template" in config


def with_template(tokenizer: Tokenizer) -> Tokenizer:
    """Returns the tokenizer with a chat template among its files: its own, or else TEMPLATE."""
    if has_template(tokenizer):
        return tokenizer
    sources = {**tokenizer.sources, TEMPLATE_FILE: TEMPLATE.encode()}
    return dataclasses.replace(tokenizer, sources=sources)


def template_fingerprint(tokenizer: Tokenizer) -> str:
    """Returns the SHA-256 of a conversation with every kind of turn, rendered to ids.

    It is "" for a vocabulary without turns. A model may teach another in chat only if theirs are
    equal.
    """
    if tokenizer.start_of_turn_id is None or tokenizer.end_of_turn_id is None:
        return ""
    roles = ("system", "user", "model", "user")
    messages = [{"role": role, "content": f"{role} 0"} for role in roles]
    segments = chat(messages, tokenizer, add_generation_prompt=True)
    return hashlib.sha256(json.dumps([list(s.ids) for s in segments]).encode()).hexdigest()


def _delimiters(tokenizer: Tokenizer) -> tuple[int, int]:
    """Returns the ids at the beginning and the end of a turn."""
    start, end = tokenizer.start_of_turn_id, tokenizer.end_of_turn_id
    if start is None or end is None:
        raise ValueError(
            "this vocabulary has no <start_of_turn> and <end_of_turn>, hence no chat template; "
            "use prompts and completions, or the tokenizer of a Gemma tuned to instructions"
        )
    return start, end


def _user_turn(text: str, tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of a user's turn, whose text is stripped already."""
    start, end = _delimiters(tokenizer)
    return [start, *tokenizer.encode("user\n" + text), end, *tokenizer.encode("\n")]
