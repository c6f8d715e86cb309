"""Letters whose texts end by themselves, and of which the first alone is worth something.

The language is that of letters.py, where the source goes on after each letter with probability
1 - s, up to T letters. A text is right, worth 1, if its first letter is one of about a quarter of
all, which depends on the prompt's first; else it is worth 0. So the length after the first letter
says nothing of the reward, and has no effect on it.

B rows, T letters of a text, P = 2 letters of a prompt.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.environments import tokens
from kullback.experiments.reproductions import letters, rewarded
from kullback.lm import batches, completions, gemma

RIGHT = 0.6745  # Upper quartile of the standard normal numbers of a table.


def is_right(tables: letters.Tables, prompts: types.Array, first: types.Array) -> jax.Array:
    """Returns whether first letters are right, bool [B].

    Args:
      tables: of the language.
      prompts: ids, int32 [B, P] or more.
      first: ids, int32 [B]; an end is wrong.
    """
    of_prompt, letter = jnp.asarray(prompts)[:, 0] - letters.FIRST, first - letters.FIRST
    return jnp.asarray(letter >= 0) & (jnp.asarray(tables.gold_unigram)[of_prompt, letter] > RIGHT)


def scorer(group_size: int) -> tokens.Scorer:
    """Returns the reward of texts, 1 or 0; tables are an argument of all programs.

    An empty text, which a start seldom writes, gets the mean of its prompt's others, so that it has
    no advantage: were it wrong, all texts would learn not to end.

    Args:
      group_size: texts of a prompt, which are adjacent.
    """

    def score(
        tables: letters.Tables, completion: tokens.Completion, context: batches.Prompts
    ) -> jax.Array:
        first = jnp.asarray(completion.tokens)[:, 0]
        reward = is_right(tables, context.tokens, first).reshape(-1, group_size)
        has_first = (first >= letters.FIRST).reshape(-1, group_size)
        mean = jnp.sum(reward, 1) / jnp.maximum(jnp.sum(has_first, 1), 1)
        return jnp.where(has_first, reward, mean[:, None]).reshape(-1)

    return tokens.Scorer("first", score, None)


def corpus(
    language: letters.Language, sizes: letters.Sizes, seed: int, stop: float
) -> batches.Sequences:
    """Returns texts of the source that end after each letter with probability `stop`."""
    whole = letters.corpus(language, sizes, seed)
    text = jnp.asarray(whole.tokens)[:, letters.PROMPT :]
    key = jax.random.fold_in(jax.random.key(seed), 2)
    goes_on = jax.random.uniform(key, text.shape) >= stop
    # Column n is a letter if the text went on after each one before; then comes the end.
    before = jnp.pad(jnp.cumprod(goes_on, 1)[:, :-1], ((0, 0), (1, 0)), constant_values=1)
    is_letter = before == 1
    is_text = jnp.pad(is_letter[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    prompts = letters.as_prompts(jnp.asarray(whole.tokens)[:, : letters.PROMPT])
    return batches.join(prompts, jnp.where(is_letter, text, letters.END), is_text)


class Lengths(NamedTuple):
    """Mean letters of texts of held-out prompts, and how many are right; [] each."""

    right: jax.Array  # After right first letters that the supervised start wrote.
    wrong: jax.Array  # After wrong ones.
    written: jax.Array  # Of the policy's own texts.
    accuracy: jax.Array  # Share of these that are right.


def measure(model: gemma.Model, horizon: int, samples_per_prompt: int) -> Any:
    """Returns (params, start, tables, prompts [n, P], key) -> `Lengths`, compiled.

    First letters are the start's for every policy, so that lengths are compared after the same.
    """
    samples = completions.sampler(model, horizon, samples_per_prompt=samples_per_prompt)
    rest = completions.sampler(model, horizon - 1)

    def count(rows: batches.Sequences) -> jax.Array:
        ids = jnp.asarray(rows.tokens)
        return jnp.sum(jnp.asarray(rows.is_answer) & (ids >= letters.FIRST), 1)

    @jax.jit
    def lengths(
        params: types.Params,
        start: types.Params,
        tables: letters.Tables,
        prompts: jax.Array,
        key: types.Key,
    ) -> Lengths:
        start_key, rest_key, free_key = jax.random.split(key, 3)
        given = letters.as_prompts(prompts)
        begun = jnp.asarray(samples.sequences({"params": start}, given, start_key).tokens)
        begun = begun[:, : letters.PROMPT + 1]
        width = jnp.full(len(begun), begun.shape[1], jnp.int32)
        prefixes = batches.Prompts(begun, width)
        after = 1 + count(rest.sequences({"params": params}, prefixes, rest_key))
        first = begun[:, letters.PROMPT]
        right, has_first = is_right(tables, begun, first), first >= letters.FIRST
        written = samples.sequences({"params": params}, given, free_key)
        ids = jnp.asarray(written.tokens)

        def mean_of(which: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(which, after, 0)) / jnp.maximum(jnp.sum(which), 1)

        return Lengths(
            right=mean_of(right),
            wrong=mean_of(~right & has_first),
            written=jnp.mean(count(written)),
            accuracy=jnp.mean(is_right(tables, ids, ids[:, letters.PROMPT])),
        )

    return lengths


def world(model: gemma.Model, sizes: letters.Sizes, stop: float) -> rewarded.World:
    """Returns the world of a model whose start writes texts that end."""

    def ended(language: letters.Language, sizes: letters.Sizes, seed: int) -> batches.Sequences:
        return corpus(language, sizes, seed, stop)

    return rewarded.world(model, sizes, ended)
