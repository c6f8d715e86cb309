"""A language model as a policy that writes images by their grammar, and with guidance if asked.

It is `policy.language_model` but for the logits: those of ids that lm/image_grammar.py does not
allow are -inf, so that every image has all of its codes and its end. Inside an image the logits may
be guided by those after a second prompt, which says nothing of what is to be drawn.

Shape letters: B rows, P tokens of a padded prompt, T tokens to come.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from kullback.core import sampling, types
from kullback.lm import batches, gemma, image_grammar, policy


class Guidance(NamedTuple):
    """Prompts, and what to draw without them."""

    prompts: batches.Prompts  # [B, P].
    unconditional: batches.Prompts  # As many rows of the same width, lengths may differ.


class Memory(NamedTuple):
    """The state of the policy."""

    text: policy.Memory
    unconditional: policy.Memory | None  # None without guidance.
    state: jax.Array  # int32, [B]: of the grammar, after all tokens but the one observed next.
    room: jax.Array  # int32, [B]: tokens that may still come.


def language_model(
    model: gemma.Model,
    ids: image_grammar.Ids,
    settings: sampling.Sampling | None = None,
    guidance_scale: float = 1.0,
) -> types.Policy:
    """Returns the policy; params and extras are those of `policy.language_model`.

    Its context is `batches.Prompts`, or `Guidance` if the scale is not 1. A prompt may hold images,
    and end within one.

    Args:
      model: of ids of text and images.
      ids: of images.
      settings: how tokens are drawn; None is from the model's own distribution.
      guidance_scale: s of `image_grammar.guided`, inside images.

    Raises:
      ValueError: for a model without these ids, or a repetition penalty, which an image's codes are
        not meant for; by `initial_state`, for a context of the other type.
    """
    options = settings or sampling.Sampling()
    if model.num_ids != ids.total:
        raise ValueError(f"the model has {model.num_ids} ids, expected {ids.total}, with images")
    if options.penalises:
        raise ValueError("repetition_penalty must be 1 where images are written: codes come again")
    is_guided = guidance_scale != 1
    plain = policy.language_model(model, options)

    def initial_state(
        params: types.Params, context: batches.Prompts | Guidance | None, max_length: int
    ) -> Memory:
        if isinstance(context, Guidance) != is_guided:
            raise ValueError(
                f"guidance_scale={guidance_scale} takes {'Guidance' if is_guided else 'Prompts'}, "
                f"got {type(context).__name__}"
            )
        unconditional = None
        if isinstance(context, Guidance):
            chex.assert_equal_shape([context.prompts.tokens, context.unconditional.tokens])
            unconditional = plain.initial_state(params, context.unconditional, max_length)
            context = context.prompts
        text = plain.initial_state(params, context, max_length)
        assert context is not None  # The line above refuses it.
        tokens, lengths = jnp.asarray(context.tokens), jnp.asarray(context.lengths)
        width = tokens.shape[1]
        # Padding, of any id, is no part of an image.
        is_token = jnp.arange(width)[None] >= width - lengths[:, None]
        read = jnp.where(is_token, tokens, 0)[:, :-1]
        before = jnp.full((len(tokens), 1), image_grammar.OUTSIDE, jnp.int32)
        state = jnp.concatenate([before, image_grammar.states(read, ids)], 1)[:, -1]
        return Memory(text, unconditional, state, jnp.full(len(tokens), max_length - width))

    def step(
        params: types.Params, observation: types.Array, memory: Memory, key: types.Key
    ) -> tuple[jax.Array, Memory, dict[str, jax.Array]]:
        last = jnp.asarray(observation)

        def read(text: policy.Memory) -> tuple[jax.Array, policy.Memory]:
            features, text = policy.read(model, params[policy.POLICY], last[:, None], text)
            return model.unembed(params[policy.POLICY], features[:, -1]), text  # [B, V]

        logits, text = read(memory.text)
        state = image_grammar.advanced(memory.state, last, ids).astype(jnp.int32)
        drawn_from, unconditional = logits, memory.unconditional
        if unconditional is not None:
            without, unconditional = read(unconditional)
            guided = image_grammar.guided(logits, without, guidance_scale)
            drawn_from = jnp.where((state == image_grammar.OUTSIDE)[:, None], logits, guided)
        is_allowed = image_grammar.allowed(state, memory.room, ids)
        restricted = jnp.where(is_allowed, drawn_from, -jnp.inf)
        filtered = sampling.filter_logits(restricted, options)
        action, log_probability = sampling.sample(key, filtered)
        extras = {
            "log_probability": log_probability,
            "model_log_probability": sampling.log_probability(logits, action),
        }
        return action, Memory(text, unconditional, state, memory.room - 1), extras

    return types.Policy(initial_state, step)
