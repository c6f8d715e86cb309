"""Conversations as token ids in Gemma's chat template, with the model's turns marked.

Gemma Team, "Gemma 3 Technical Report", 2025, https://arxiv.org/abs/2503.19786.

A model whose files have a chat template was tuned on conversations. A run that learns from some
gets one of our own, which says in Jinja what `chat` does, for transformers.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kullback.core import json_files
from kullback.lm import blocks, forms, interleaved
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

# TEMPLATE of a model that takes images: a content is a text, or a list of texts and images. That of
# a model that takes audio has the other name.
IMAGE_TEMPLATE = TEMPLATE.replace(
    "{% set prefix = messages[0]['content'] + '\\n\\n' %}",
    """\
{% set content = messages[0]['content'] %}\
{% set prefix = (content if content is string else content[0]['text']) + '\\n\\n' %}""",
).replace(
    "{{ message['content'] | trim }}",
    """\
{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}\
{% for item in message['content'] %}\
{% if item['type'] == 'image' %}{{ '<start_of_image>' }}{% else %}{{ item['text'] | trim }}\
{% endif %}{% endfor %}{% endif %}""",
)


class Segment(NamedTuple):
    """A part of a rendered conversation."""

    ids: tuple[int, ...]
    is_model_turn: bool  # Whether the model says it, the end of its turn included: it is learnt.
    media: tuple[interleaved.Medium, ...] = ()  # Of its images, with their crops, or clips.


def chat(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    *,
    shown: Sequence[interleaved.Shown] = (),
    add_generation_prompt: bool = False,
) -> list[Segment]:
    r"""Renders a conversation in Gemma's template, as segments whose ids are to be concatenated.

        <bos><start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n{text}<end_of_turn>\n

    BOS comes once. Gemma has no system role: a system's text is put before the text of the first
    user turn, with an empty line between. White space around a turn's text is dropped. The text of
    a model's turn is encoded apart from the turn's opening, as it is when the model generates it.

    A content is a text, or a list of items, {"type": "text", "text"}, {"type": "image"} or
    {"type": "audio"}, between which nothing stands; white space around the text of an item is
    dropped. An image or a clip in the user's turn becomes delimiters and soft tokens
    (`interleaved.encode`); its name in a text stays text.

    Args:
      messages: {"role", "content"} each: optionally "system", then "user" and "model" (or
        "assistant") in turn, beginning with "user".
      tokenizer: one with Gemma's special tokens.
      shown: images and clips of the items, in order.
      add_generation_prompt: whether to open a turn of the model at the end.

    Raises:
      ValueError: for another role or order, naming the message; if a turn of the model is to be
        opened after another; if the vocabulary lacks the tokens of a turn, or of images or clips;
        unless there are as many of these as items, all in turns of the user's.
    """
    start, end = _delimiters(tokenizer)
    _check_count(messages, shown)
    prefix = ""
    if messages and messages[0]["role"] == "system":
        prefix = _system(messages[0]["content"]) + "\n\n"
        messages = messages[1:]
    if not messages:
        raise ValueError("a conversation needs a message of the user's, got none")
    newline = tokenizer.encode("\n")
    segments = []
    unseen = iter(shown)
    before = [tokenizer.bos_id]  # Ids since the model's last turn.
    media: list[interleaved.Medium] = []  # Of what was shown since then.
    for n, message in enumerate(messages):
        expected = ("user", "model")[n % 2]
        role = "model" if message["role"] == "assistant" else message["role"]
        if role != expected:
            raise ValueError(
                f"turn {n + 1} has role {message['role']!r}, expected {expected!r}: after an "
                "optional 'system', 'user' and 'model' take turns"
            )
        if role == "user":
            items = _items(message["content"])
            parts = [next(unseen) if item is None else item for item in items]
            turn = _user_turn([prefix if n == 0 else "", *parts], tokenizer)
            before, media = before + turn.ids, media + turn.media
        else:
            text = "".join(_texts(message["content"], f"turn {n + 1}, of the model's,"))
            before += [start, *tokenizer.encode("model\n")]
            segments += [Segment(tuple(before), False, tuple(media))]
            segments += [Segment((*tokenizer.encode(text), end), True)]
            before, media = list(newline), []
    if add_generation_prompt and len(messages) % 2 == 0:
        raise ValueError(
            "the last message is the model's, and a second turn of its own would be opened after "
            "it: end with a message of the user's"
        )
    if add_generation_prompt:
        before += [start, *tokenizer.encode("model\n")]
    return [*segments, Segment(tuple(before), False, tuple(media))]


class Turn(NamedTuple):
    """A text of the user's, and what a model has answered."""

    text: str
    answer: tuple[int, ...]  # Ids as they were drawn, without the end of the turn.
    shown: tuple[interleaved.Shown, ...] = ()  # They stand before the text.


def continued(
    turns: Sequence[Turn],
    text: str,
    tokenizer: Tokenizer,
    system: str = "",
    shown: Sequence[interleaved.Shown] = (),
) -> list[int]:
    """Returns the ids after which a model answers `text`, as `chat` renders the conversation.

    The model's turns have the ids that it drew, where `chat` encodes their text: so a cache of keys
    and values of the turns before still holds.

    Args:
      turns: the conversation so far.
      text: the user's next, as all texts of his not empty.
      tokenizer: one with Gemma's special tokens.
      system: the system's text; "" is none.
      shown: in the user's next turn, before its text. The soft vectors of the row are those of
        what each turn shows and of these, in order, see `interleaved.views`.

    Raises:
      ValueError: if the vocabulary lacks the tokens of a turn, or of images.
    """
    start, end = _delimiters(tokenizer)
    prefix = f"{system}\n\n" if system else ""
    opening = [start, *tokenizer.encode("model\n")]
    ids = [tokenizer.bos_id]
    for turn in turns:
        ids += _user_turn([prefix, *turn.shown, turn.text.strip()], tokenizer).ids
        ids += [*opening, *turn.answer, end, *tokenizer.encode("\n")]
        prefix = ""
    return [*ids, *_user_turn([prefix, *shown, text.strip()], tokenizer).ids, *opening]


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


def with_template(tokenizer: Tokenizer, modality: forms.Modality | None = None) -> Tokenizer:
    """Returns the tokenizer with a chat template among its files: its own, or else ours.

    Args:
      tokenizer: of the model.
      modality: kind of media that the model takes; None is of text alone.
    """
    if has_template(tokenizer):
        return tokenizer
    template = TEMPLATE
    if modality is not None:
        template = IMAGE_TEMPLATE.replace(forms.IMAGES.item, modality.item)
    sources = {**tokenizer.sources, TEMPLATE_FILE: template.encode()}
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


def _user_turn(parts: Sequence[str | interleaved.Shown], tokenizer: Tokenizer) -> interleaved.Row:
    """Returns a user's turn, whose texts are stripped already."""
    start, end = _delimiters(tokenizer)
    is_text = all(isinstance(part, str) for part in parts)
    markers = None if is_text else blocks.markers_of(tokenizer)
    segments = [(start,), "user\n", *parts, (end,), "\n"]
    return interleaved.encode(segments, tokenizer.encode, markers)


def _items(content: Any) -> list[str | None]:
    """Returns the texts of a content's items, without white space around them; None is no text."""
    if isinstance(content, str):
        return [content.strip()]
    return [None if is_shown(item) else item["text"].strip() for item in content]


def _texts(content: Any, where: str) -> list[str]:
    """Returns the items of a content of text alone."""
    items = [item for item in _items(content) if item is not None]
    if len(items) < len(_items(content)):
        raise ValueError(
            f"{where} has an image or a clip; these stand in turns of the user's alone"
        )
    return items


def _system(content: Any) -> str:
    """Returns the system's text: of a list, as the published template has it, the first item's."""
    if isinstance(content, str):
        return content
    _texts(content, "the system's message")
    if len(content) != 1:
        raise ValueError(
            f"the system's message has {len(content)} items, of which the template reads the first "
            "alone; join them"
        )
    return content[0]["text"]


def is_shown(item: Mapping[str, Any]) -> bool:
    """Returns whether an item of a content stands for an image or a clip."""
    return item["type"] != "text"


def _check_count(
    messages: Sequence[Mapping[str, Any]],
    shown: Sequence[interleaved.Shown],
) -> None:
    contents = [message["content"] for message in messages]
    lists = [content for content in contents if not isinstance(content, str)]
    count = sum(is_shown(item) for content in lists for item in content)
    if count != len(shown):
        raise ValueError(
            f"the messages have {count} images or clips and {len(shown)} were given; give one for "
            "each"
        )
