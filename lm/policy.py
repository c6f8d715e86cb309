"""A language model as a policy: its key-value cache is the state, prefill the `initial_state`.

The reset of `environments/tokens.py` observes the last token of the prompt, so all others are
prefilled, and every step is alike: it observes a token and draws the next. Prompts with media are
prefilled in one call, as an image's tokens see each other, and rows have theirs at different
places; a prompt ends in text (`blocks.check_prompt`). What begins an image or clip is never drawn.

Shape letters: B rows, P tokens of a padded prompt, V vocabulary.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from kullback.core import regularizers, sampling, types
from kullback.lm import batches, gemma

POLICY = "params"  # Name of the acting parameters that a policy reads.


class Draws(NamedTuple):
    """Texts that one set of the acting parameters writes to each prompt."""

    texts: int  # >= 1.
    params: str = POLICY  # Name of the set.


class Memory(NamedTuple):
    """The state of the policy: everything that it knows of B texts so far."""

    cache: gemma.Cache
    # Tokens that stand in each text, for a repetition penalty; bool [B, V], None without one.
    is_present: jax.Array | None


def language_model(
    model: gemma.Model,
    settings: sampling.Sampling | None = None,
    divergence: regularizers.Divergence = regularizers.kl,
    prefill_chunk: int = 256,
    samples_per_prompt: int = 1,
) -> types.Policy:
    """Returns the policy that draws tokens of `model`.

    Its params are {"params": of the model}, its context is `batches.Prompts`, its state `Memory`,
    and `max_length` counts prompt (P) and completion. Extras are "log_probability", under the
    distribution that was drawn from, and "model_log_probability", under softargmax_f of the
    unchanged logits; float32 [B]. The latter is -inf for tokens that a sparse softargmax_f excludes
    but that are drawn at a temperature above 1.

    Args:
      model: its functions are pure.
      settings: how tokens are drawn; None is from the model's own distribution.
      divergence: f of the softargmax_f that the model was trained with.
      prefill_chunk: tokens of a prompt of text in one call of the model; bounds the memory.
      samples_per_prompt: G adjacent rows continue each prompt of the context, which is prefilled
        once.

    Raises:
      ValueError: for a chunk or samples below 1; by `initial_state`, for a context of another type
        or one that does not fit in max_length.
    """
    options = settings or sampling.Sampling()
    unwritten = model.unwritten_ids
    if prefill_chunk < 1:
        raise ValueError(f"prefill_chunk must be >= 1 token, got {prefill_chunk}")
    if samples_per_prompt < 1:
        raise ValueError(f"samples_per_prompt must be >= 1, got {samples_per_prompt}")

    def initial_state(
        params: types.Params, context: batches.Prompts | None, max_length: int
    ) -> Memory:
        if not isinstance(context, batches.Prompts):
            raise ValueError(
                f"a language model starts from batches.Prompts, got {type(context).__name__}"
            )
        num_rows, width = context.tokens.shape
        chex.assert_shape(context.lengths, (num_rows,))
        if not 1 <= width < max_length:
            raise ValueError(
                f"max_length counts prompt and completion and must exceed the prompts' width, "
                f"got max_length={max_length} and width={width}"
            )
        memory = empty_memory(model, options, num_rows, max_length, context.lengths, width)
        prefix = jnp.asarray(context.tokens, jnp.int32)[:, :-1]
        if context.sensed is None:
            memory = _prefill(model, params["params"], prefix, memory, prefill_chunk)
        elif width > 1:
            _, memory = read(model, params["params"], prefix, memory, sensed=context.sensed)
        return _repeated(memory, samples_per_prompt)

    def step(
        params: types.Params, observation: types.Array, state: Memory, key: types.Key
    ) -> tuple[jax.Array, Memory, dict[str, jax.Array]]:
        last = jnp.asarray(observation)[:, None]  # [B, 1]
        features, state = read(model, params["params"], last, state)
        logits = model.unembed(params["params"], features[:, -1])  # [B, V]
        penalised = logits
        if state.is_present is not None:
            penalty = options.repetition_penalty
            penalised = sampling.penalise_repetition(logits, state.is_present, penalty)
        penalised = _without(penalised, unwritten)
        filtered = sampling.filter_logits(penalised, options, divergence)
        action, log_probability = sampling.sample(key, filtered, divergence)
        unfiltered = log_probability
        if unwritten or not options.is_on_policy:
            unfiltered = sampling.log_probability(logits, action, divergence)
        extras = {"log_probability": log_probability, "model_log_probability": unfiltered}
        return action, state, extras

    return types.Policy(initial_state, step)


def of_sets(
    model: gemma.Model, draws: Sequence[Draws], settings: sampling.Sampling | None = None
) -> types.Policy:
    """Returns the policy by which several parameters of one model write texts to each prompt.

    Its params have a tree for each set that `draws` names, and its state is a tuple of `Memory`.
    The rows of a prompt are adjacent, in the order of `draws`; extras are each row's under the
    parameters that write it. For the rest see `language_model`.

    Args:
      model: its functions are pure.
      draws: texts of each prompt by the set that writes them, one or more.
      settings: how tokens are drawn; None is from the models' own distributions.
    """
    members = [language_model(model, settings, samples_per_prompt=x.texts) for x in draws]
    total, ends = sum(x.texts for x in draws), list(itertools.accumulate(x.texts for x in draws))

    def of_set(params: types.Params, number: int) -> types.Params:
        return {POLICY: params[draws[number].params]}

    def initial_state(
        params: types.Params, context: batches.Prompts | None, max_length: int
    ) -> tuple[Memory, ...]:
        return tuple(
            member.initial_state(of_set(params, n), context, max_length)
            for n, member in enumerate(members)
        )

    def step(
        params: types.Params, observation: types.Array, state: tuple[Memory, ...], key: types.Key
    ) -> tuple[jax.Array, tuple[Memory, ...], dict[str, jax.Array]]:
        by_set = jnp.split(jnp.asarray(observation).reshape(-1, total), ends[:-1], 1)
        keys = jax.random.split(key, len(draws))
        results = [
            member.step(of_set(params, n), by_set[n].reshape(-1), state[n], keys[n])
            for n, member in enumerate(members)
        ]
        actions, states, extras = zip(*results, strict=True)

        def joined(*parts: jax.Array) -> jax.Array:
            rows = [x.reshape(-1, d.texts, *x.shape[1:]) for x, d in zip(parts, draws, strict=True)]
            return jnp.concatenate(rows, 1).reshape(-1, *parts[0].shape[1:])

        return joined(*actions), states, jax.tree.map(joined, *extras)

    return types.Policy(initial_state, step)


def repeat_prompts(prompts: batches.Prompts, times: int) -> batches.Prompts:
    """Repeats each prompt `times` times in adjacent rows: the prompt of each of G samples.

    The policy's context has each prompt once.
    """
    if times == 1:
        return prompts
    return jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), times, 0), prompts)


def empty_memory(
    model: gemma.Model,
    settings: sampling.Sampling,
    num_rows: int,
    max_length: int,
    lengths: types.Array,
    width: int,
) -> Memory:
    """Returns the memory before the first token of left-padded prompts, see `Model.init_cache`.

    Args:
      model: of the policy.
      settings: how tokens are drawn.
      num_rows: B.
      max_length: tokens of prompt and completion.
      lengths: of the prompts, int32 [B].
      width: P.
    """
    cache = model.init_cache(num_rows, max_length, lengths, width)
    is_present = jnp.zeros((num_rows, model.num_ids), bool) if settings.penalises else None
    return Memory(cache, is_present)


def read(
    model: gemma.Model,
    params: types.Params,
    tokens: jax.Array,
    memory: Memory,
    sensed: Any = None,
) -> tuple[jax.Array, Memory]:
    """Reads the next tokens of all texts; returns their features and the memory.

    Args:
      model: of the policy.
      params: its parameters.
      tokens: int32, [B, T].
      memory: of the tokens before.
      sensed: features of the images or clips in these tokens, see `batches.Prompts`.
    """
    senses = {} if sensed is None else {"sensed": sensed}
    features, cache = model.decode(params, tokens, memory.cache, **senses)
    is_present = memory.is_present
    if is_present is not None:
        slots = memory.cache.slot + jnp.arange(tokens.shape[1])
        valid = slots[None] >= cache.start[:, None]  # Padding is no part of a text.
        is_present = sampling.mark_present(is_present, tokens, valid)
    return features, Memory(cache, is_present)


def _without(logits: jax.Array, ids: Sequence[int]) -> jax.Array:
    """Returns logits [B, V] by which none of some ids is drawn."""
    present = [i for i in ids if i < logits.shape[-1]]
    return logits.at[:, jnp.array(present)].set(-jnp.inf) if present else logits


def _prefill(
    model: gemma.Model, params: types.Params, prefix: jax.Array, memory: Memory, chunk: int
) -> Memory:
    """Returns the memory after `prefix` [B, P - 1], in chunks: the rest first, then whole ones."""
    num_rows, length = prefix.shape
    num_chunks, rest = divmod(length, chunk)
    if rest:
        _, memory = read(model, params, prefix[:, :rest], memory)
    if num_chunks == 0:
        return memory
    chunks = prefix[:, rest:].reshape(num_rows, num_chunks, chunk).swapaxes(0, 1)
    memory, _ = jax.lax.scan(
        lambda memory, tokens: (read(model, params, tokens, memory)[1], None), memory, chunks
    )
    return memory


def _repeated(memory: Memory, times: int) -> Memory:
    """Repeats each row of a memory `times` times."""
    if times == 1:
        return memory
    cache, is_present = memory
    keys, values = jax.tree.map(lambda x: jnp.repeat(x, times, 1), (cache.keys, cache.values))
    repeated = gemma.Cache(cache.slot, jnp.repeat(cache.start, times), keys, values)
    return Memory(repeated, None if is_present is None else jnp.repeat(is_present, times, 0))
