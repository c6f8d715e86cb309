"""Stop tokens of a model, stop texts, and the text of an answer, as all of lm reads them.

Sampling, losses, rewards, evaluation and export read the stop tokens in `gemma.Config.eos_ids`. A
model whose folder names fewer (a base model that was tuned on conversations) gets its tokenizer's.
"""

import dataclasses
from collections.abc import Container, Sequence
from typing import NamedTuple

from kullback.lm import gemma
from kullback.lm.tokenizer import Tokenizer


def with_all_ends(config: gemma.Config, tokenizer: Tokenizer) -> gemma.Config:
    """Returns the configuration with the tokenizer's stop tokens appended to its own.

    Those without a row in the model's embedding are left out, as it can never sample them.
    """
    known = (i for i in tokenizer.eos_ids if i < config.vocab_size)
    return dataclasses.replace(config, eos_ids=tuple(dict.fromkeys((*config.eos_ids, *known))))


def text_ids(ids: Sequence[int], tokenizer: Tokenizer, eos_ids: Container[int]) -> list[int]:
    """Returns the ids of an answer's text, without the stop token and ids that have no piece.

    A model's embedding may have more rows than the tokenizer has pieces.

    Args:
      ids: int >= 0, of an answer or of a later part of one.
      tokenizer: of the model.
      eos_ids: stop tokens; one may come last, and none before.
    """
    if ids and ids[-1] in eos_ids:
        ids = ids[:-1]
    return [i for i in ids if i < tokenizer.vocab_size]


def answer(ids: Sequence[int], tokenizer: Tokenizer, eos_ids: Container[int]) -> str:
    """Decodes an answer, for readers, rules, rewards and measures alike; see `text_ids`."""
    return tokenizer.decode(text_ids(ids, tokenizer, eos_ids))


class Tail(NamedTuple):
    """The state of cutting a text, which comes in pieces, at stop texts."""

    held: str = ""  # The end of the text so far, which may be the beginning of a stop text.
    is_over: bool = False  # Whether a stop text came.


def cut(
    piece: str, tail: Tail, stop_texts: Sequence[str], *, last: bool = False
) -> tuple[str, Tail]:
    """Returns the next part of a text that ends before the first stop text, and the new state.

    The first is the one that is complete first; of several that end together it is the longest. So
    the parts join to the same text, however it is cut into pieces.

    Args:
      piece: of the text, maybe empty.
      tail: `Tail()` for the first piece, then the state that was returned.
      stop_texts: none of them empty.
      last: whether no piece follows, so that nothing is held back.
    """
    if tail.is_over:
        return "", tail
    text = tail.held + piece
    begins = {stop: text.find(stop) for stop in stop_texts}
    spans = [(begin + len(stop), begin) for stop, begin in begins.items() if begin >= 0]
    if spans:
        return text[: min(spans)[1]], Tail(is_over=True)
    lengths = (n for stop in stop_texts for n in range(1, len(stop)) if text.endswith(stop[:n]))
    kept = len(text) - (0 if last else max(lengths, default=0))
    return text[:kept], Tail(text[kept:])
