"""Decoders with a sense: the functions of `gemma.Model` over what is seen or heard beside text.

Images (lm/sight.py) and sound (lm/hearing.py) enter alike: soft vectors stand in the places that a
row's ids leave for them. All that is between files and vectors, batches and learners first, knows
of a `Sense` alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import blocks, gemma, interleaved, media_rows

SENSED = "sensed"  # Keyword by which the functions of a model take what is sensed.


class Sense(Protocol):
    """A sense of a model on the host, beside text: images (encoded.py) or sound (heard.py)."""

    @property
    def rows(self) -> media_rows.Settings:
        """How rows that name files are read."""
        ...

    def features(self, media: Sequence[interleaved.Medium], /) -> Any:
        """Returns features of n media, a tree of arrays [n, ...]; n may be 0."""
        ...

    def fitted(self, media: Sequence[interleaved.Medium], /) -> "Sense":
        """Returns the sense whose features have one shape, which holds those of some media."""
        ...

    def num_bytes(self, num_media: int, /) -> int:
        """Returns the bytes of the features of so many media, as they are kept."""
        ...


def sensing(
    model: gemma.Model,
    soft_vectors: Callable[[types.Params, types.Array, Any], jax.Array],
    markers: blocks.Markers,
) -> gemma.Model:
    """Returns the model whose functions of rows take what is sensed, by the keyword `SENSED`.

    None is text alone, of which nothing changes. Where vectors go follows from the ids, as
    `blocks.groups` says.

    Args:
      model: the decoder.
      soft_vectors: (params, tokens [B, T], what is sensed) -> vectors of each row in order,
        [B, K, D].
      markers: ids of blocks.
    """

    def senses(function: Callable[..., Any]) -> Callable[..., Any]:
        def of_rows(params: types.Params, tokens: types.Array, *others: Any, **named: Any) -> Any:
            sensed = named.pop(SENSED, None)
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
