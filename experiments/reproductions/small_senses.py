"""Small models that see or hear: their rows, and whether their answers are right.

B rows.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import batches, data, gemma, tokenizer


class Senser(Protocol):
    """A decoder that sees or hears, with its tokenizer."""

    @property
    def tokenizer(self) -> tokenizer.Tokenizer:
        """The tokenizer of its texts."""
        ...

    @property
    def decoder(self) -> gemma.Model:
        """The decoder, see lm/senses.py."""
        ...


def examples(
    senser: Senser,
    prompt: Callable[[str], tuple[int, ...]],
    texts: Iterable[tuple[str, str]],
) -> list[data.Example]:
    """Returns questions about one medium each, with their answers, as ids.

    Args:
      senser: the decoder.
      prompt: of a question, behind its medium.
      texts: questions and answers.
    """
    known, encode = functools.cache(prompt), senser.tokenizer.encode
    return [
        data.Example(known(question), (*encode(answer), senser.tokenizer.eos_id))
        for question, answer in texts
    ]


def sequences(
    senser: Senser, rows: Sequence[data.Example], sensed: Any, length: int
) -> batches.Sequences:
    """Returns rows of examples with features of their media, [B, 1, ...], padded to a length."""
    return batches.pad(rows, length, senser.tokenizer.pad_id)._replace(sensed=sensed)


def is_right(senser: Senser, params: types.Params, rows: batches.Sequences) -> jax.Array:
    """Returns whether greedy answers are those of the rows, bool [B].

    A greedy answer is right if, after each prefix of the right one, its next token is the most
    probable: so that nothing needs to be decoded.
    """
    inputs = rows.tokens, rows.positions, rows.segments
    logits = senser.decoder.apply(params, *inputs, **rows.senses)[:, :-1]
    is_best = jnp.argmax(logits, -1) == jnp.asarray(rows.tokens)[:, 1:]
    return jnp.all(is_best | ~jnp.asarray(rows.is_answer)[:, 1:], 1)
