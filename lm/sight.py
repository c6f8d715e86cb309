"""Decoders that see: the functions of `gemma.Model` over rows of text and images.

Shape letters: B rows, T tokens, I images of a row at most, M soft tokens of an image, E width of
the encoder, D width of the decoder.
"""

import functools

import chex
import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.lm import blocks, gemma, senses, vision

__all__ = ["seeing"]


def seeing(model: gemma.Model, config: vision.Config, *, draws: bool = True) -> gemma.Model:
    """Returns the model of rows that may have images.

    Its functions take `sensed` float [B, I, M, E] by keyword: features of a row's images
    (`vision.pooled`) in order, of which those beyond its images are not read. None is text alone,
    of which nothing changes. Where they go follows from the ids, as `blocks.groups` says. The
    parameters are the decoder's, with `vision.PROJECTOR` beside them; a policy of it samples none
    of `vision.Config.unwritten_ids`.

    Args:
      model: the decoder.
      config: of the vision.
      draws: whether `init` draws a projector, too: not where that is frozen, as of adapters.
    """

    def soft_vectors(params: types.Params, tokens: types.Array, pooled: types.Array) -> jax.Array:
        chex.assert_shape(pooled, (len(tokens), None, config.num_soft, config.encoder.embed_dim))
        pooled = jnp.asarray(pooled, jnp.dtype(model.config.dtype))
        soft = vision.project(config, params[vision.PROJECTOR], pooled)
        return soft.reshape(len(tokens), -1, soft.shape[-1])  # [B, I M, D]

    def init(key: types.Key) -> types.Params:
        if not draws:
            return model.init(key)
        key, projector_key = jax.random.split(key)
        projector = vision.init_projector(projector_key, config, model.config.embed_dim)
        return {**model.init(key), vision.PROJECTOR: projector}

    markers = blocks.Markers(image=config.ids)
    sees = senses.sensing(model, soft_vectors, markers)
    return sees._replace(
        init=init,
        unwritten_ids=config.unwritten_ids,
        lend_sense=functools.partial(seeing, config=config, draws=False),
    )
