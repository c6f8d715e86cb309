"""Decoders with a sense: the functions of `gemma.Model` over what is seen or heard beside text.

Images (lm/sight.py) and sound (lm/hearing.py) enter alike: soft vectors stand in the places that a
row's ids leave for them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import blocks, gemma


def sensing(
    model: gemma.Model,
    keyword: str,
    soft_vectors: Callable[[types.Params, types.Array, Any], jax.Array],
    markers: blocks.Markers,
) -> gemma.Model:
    """Returns the model whose functions of rows take what is sensed by a keyword.

    None is text alone, of which nothing changes. Where vectors go follows from the ids, as
    `blocks.groups` says.

    Args:
      model: the decoder.
      keyword: of what is sensed.
      soft_vectors: (params, tokens [B, T], what is sensed) -> vectors of each row in order,
        [B, K, D].
      markers: ids of blocks.
    """

    def senses(function: Callable[..., Any]) -> Callable[..., Any]:
        def of_rows(params: types.Params, tokens: types.Array, *others: Any, **named: Any) -> Any:
            sensed = named.pop(keyword, None)
            if sensed is not None:
                named["soft"] = soft_vectors(params, tokens, sensed)
                named["groups"] = blocks.groups(jnp.asarray(tokens), markers, jnp)
            return function(params, tokens, *others, **named)

        return of_rows

    return model._replace(
        features=senses(model.features),
        with_head=senses(model.with_head),
        apply=senses(model.apply),
        decode=senses(model.decode),
    )
