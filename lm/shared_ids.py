"""Models whose embeddings have more rows than the tokenizer has ids: the rest is padding.

Embeddings for one tokenizer are padded differently (Gemma 3's have 262,144 and 262,208 rows). The
distribution of a model is over the ids of its tokenizer, and models are compared over the ids that
all of them have: padding rows change nothing.
"""

from collections.abc import Sequence
from typing import Any

import jax

from kullback.core import types
from kullback.lm import gemma


def over(model: gemma.Model, num_ids: int) -> gemma.Model:
    """Returns the model with logits of the first `num_ids` ids only, [..., num_ids].

    Parameters stay as they are. A model without more ids is returned itself.

    Raises:
      ValueError: for less than one id, or without a stop token among them.
    """
    if num_ids < 1:
        raise ValueError(f"a model must have 1 id or more, got num_ids={num_ids}")
    if num_ids >= model.num_ids:
        return model
    if min(model.config.eos_ids) >= num_ids:
        raise ValueError(
            f"what ends a text, {model.config.eos_ids}, is not among the {num_ids} ids that the "
            "tokenizer has, or that both models have"
        )

    # Not a slice of the embedding, which XLA would copy; a slice of the logits is free.
    def unembed(params: types.Params, features: jax.Array) -> jax.Array:
        return model.unembed(params, features)[..., :num_ids]

    def apply(*arguments: Any, **named: Any) -> jax.Array:
        return model.apply(*arguments, **named)[..., :num_ids]

    return model._replace(unembed=unembed, apply=apply, num_ids=num_ids)


def shared(models: Sequence[gemma.Model]) -> list[gemma.Model]:
    """Returns the models over the ids that all of them have, so that their logits compare."""
    num_ids = min(model.num_ids for model in models)
    return [over(model, num_ids) for model in models]
