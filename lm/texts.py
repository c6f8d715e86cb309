"""What ends a text, decided once, and the text of an answer, made in one way.

Sampling, losses, rewards, evaluation and export read the ends in `gemma.Config.eos_ids`. A model
whose folder names fewer (a base model that was tuned on conversations) has its tokenizer's too.
"""

import dataclasses
from collections.abc import Container, Sequence

from kullback.lm import gemma
from kullback.lm.tokenizer import Tokenizer


def with_all_ends(config: gemma.Config, words: Tokenizer) -> gemma.Config:
    """Returns the configuration whose `eos_ids` are its own and then the tokenizer's.

    Ends that the model's table has no row for are left out: it can never write them.
    """
    known = (i for i in words.eos_ids if i < config.vocab_size)
    return dataclasses.replace(config, eos_ids=tuple(dict.fromkeys((*config.eos_ids, *known))))


def said(ids: Sequence[int], words: Tokenizer, eos_ids: Container[int]) -> list[int]:
    """Returns the ids of an answer that are text: without the end, and what has no piece.

    A model's table may have more rows than the tokenizer has pieces.

    Args:
      ids: int >= 0, of an answer or of a later part of one.
      words: the tokenizer.
      eos_ids: what ends a text; it stands last, if anywhere.
    """
    if ids and ids[-1] in eos_ids:
        ids = ids[:-1]
    return [i for i in ids if i < words.vocab_size]


def answer(ids: Sequence[int], words: Tokenizer, eos_ids: Container[int]) -> str:
    """Returns the text of an answer, for readers, rules, rewards and measures alike."""
    return words.decode(said(ids, words, eos_ids))
