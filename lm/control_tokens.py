"""Control tokens and text: no text becomes one, unless the user says that it may.

Control tokens are beginning, end and padding of a sequence, and the delimiters of turns and images;
they are inserted by id (`lm/chat.py`, `lm/data.py`). If text could produce them, whoever writes a
prompt could end his turn and speak for the model. This holds whatever a tokenizer's file says of
its tokens ("special": false), of normalisation and of its format: a text whose ids hold a control
token is cut within that token's characters, and its parts are encoded.

Texts that a template has rendered elsewhere do hold control tokens, by name: `parser` reads them,
and `spelled` finds them, so that nobody learns their letters unawares.
"""

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

Encode = Callable[[str], list[int]]
Spans = Callable[[str], Sequence[tuple[int, int]]]  # Characters [begin, end) of each id of a text.

# Meaning of text that spells control tokens: its letters, or the tokens.
Reading = Literal["text", "parse"]
READINGS: tuple[Reading, ...] = ("text", "parse")

# Beside beginning, end and padding, whose names a tokenizer's files tell.
NAMES = (
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
    "<start_of_audio>",
    "<end_of_audio>",
    "<audio_soft_token>",
)


def as_text(encode: Encode, spans: Spans, controls: Collection[int]) -> Encode:
    """Returns `encode` without control tokens: their names become ordinary pieces.

    Args:
      encode: of a text; it may give control tokens.
      spans: characters of each id that `encode` gives, in order; they may be empty.
      controls: ids.

    Raises (when it encodes):
      ValueError: for a text in which a single character is a control token.
    """
    forbidden = frozenset(controls)

    def safe(text: str) -> list[int]:
        ids = encode(text)
        if forbidden.isdisjoint(ids):
            return ids
        spelled_spans = [span for i, span in zip(ids, spans(text), strict=True) if i in forbidden]
        cuts = [cut for span in spelled_spans if (cut := _cut(text, *span)) is not None]
        if not cuts:
            begin, end = spelled_spans[0]
            raise ValueError(
                f"the text has {text[begin:end] or text!r:.60}, which this vocabulary can only "
                "write by a control token; leave it out"
            )
        bounds = [0, *cuts, len(text)]
        parts = (text[a:b] for a, b in itertools.pairwise(bounds))
        return [i for part in parts for i in safe(part)]

    return safe


def parser(encode: Encode, controls: Mapping[str, int]) -> Encode:
    """Returns `encode` of text in which the names of control tokens, {name: id}, stand for them."""
    pattern = _pattern(controls)

    def parse(text: str) -> list[int]:
        ids: list[int] = []
        for n, part in enumerate(pattern.split(text)):
            ids += [controls[part]] if n % 2 else encode(part)
        return ids

    return parse


def spelled(text: str, controls: Collection[str]) -> str | None:
    """Returns the name of a control token that shows that a template rendered a text, or None.

    Tokens of turns and images count anywhere in the text, the others at its beginning and end.
    """
    for name in NAMES:
        if name in controls and name in text:
            return name
    stripped = text.strip()
    return next((n for n in controls if stripped.startswith(n) or stripped.endswith(n)), None)


def _cut(text: str, begin: int, end: int) -> int | None:
    """Returns where to cut characters [begin, end), None if there is one alone.

    The cut is after the first that is no space: the library may count spaces before a token to it.
    """
    spaces = len(text[begin:end]) - len(text[begin:end].lstrip())
    cut = begin + (spaces + 1 if begin + spaces + 1 < end else 1)
    return cut if cut < end else None


def _pattern(names: Collection[str]) -> re.Pattern[str]:
    ordered = sorted(names, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})")
