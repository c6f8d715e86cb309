"""Conversations as token ids in Gemma's chat template, with the model's turns marked.

Gemma Team, "Gemma 3 Technical Report", 2025, https://arxiv.org/abs/2503.19786.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kullback.lm.tokenizer import Tokenizer


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
    start, end = tokenizer.start_of_turn_id, tokenizer.end_of_turn_id
    if start is None or end is None:
        raise ValueError(
            "this vocabulary has no <start_of_turn> and <end_of_turn>, hence no chat template; "
            "use prompts and completions, or the tokenizer of a Gemma tuned to instructions"
        )
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
            before += [start, *tokenizer.encode("user\n" + text), end, *newline]
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
