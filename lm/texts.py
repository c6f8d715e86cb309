"""Stop tokens of a model, and the text of an answer, as all of lm reads them.

Sampling, losses, rewards, evaluation and export read the stop tokens in `gemma.Config.eos_ids`. A
model whose folder names fewer (a base model that was tuned on conversations) gets its tokenizer's.
"""

import dataclasses
from collections.abc import Container, Sequence

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
