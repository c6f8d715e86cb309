"""Text from a language model, in pieces as it is made."""

import signal
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import finite, regularizers, rollout
from kullback.core import sampling as samplings
from kullback.experiments import interrupts
from kullback.experiments.runs import models
from kullback.lm import batches, completions, gemma, texts, tokenizer

PIECE = 16  # Tokens between two looks at the text.


class Generated(NamedTuple):
    """What became of one prompt."""

    text: str
    ids: list[int]  # The stop token among them, if there is one.
    is_complete: bool  # False if it was cut, by the length or by Ctrl-C.


def generate(
    checkpoint: models.Checkpoint,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: samplings.Sampling | None = None,
    seed: int = 0,
    stop_tokens: Sequence[int] = (),
    on_text: Callable[[int, str], Any] = lambda row, text: None,
    on_cache: Callable[[int], Any] = lambda num_bytes: None,
) -> list[Generated]:
    """Completions of prompts, all at once; Ctrl-C ends them where they are.

    Args:
      checkpoint: a trained model.
      prompts: ids of each, the beginning of the text among them.
      max_new_tokens: of a completion, at most; it stops once every row has.
      sampling: how tokens are drawn; None is from the model itself.
      seed: decides the text.
      stop_tokens: ids that end a text beside the model's own.
      on_text: receives a row and its next piece of text, whole characters only.
      on_cache: receives the bytes of keys and values, before there are any.

    Raises:
      ValueError: for a model without parameters, no prompts, ids outside of the vocabulary, more
        tokens than the model's context, or logits that are not finite.
    """
    config, words = checkpoint.config, checkpoint.tokenizer
    if checkpoint.params is None:
        raise ValueError("this model was not trained: generate from a folder or from a run")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must be an integer of 64 bits, got {seed}")
    if not prompts:
        raise ValueError("no prompts to go on with")
    longest = max(map(len, prompts))
    room = config.context_length - longest
    if max_new_tokens > room:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's "
            f"context of {config.context_length}; at most {max(room, 0)} fit"
        )
    stops = tuple(sorted({*config.eos_ids, *stop_tokens}))
    width = batches.powers_of_two(longest)[-1]
    padded = batches.pad_prompts(prompts, width, words.pad_id)
    sampler = completions.sampler(
        checkpoint.model,
        max_new_tokens,
        sampling=sampling,
        divergence=regularizers.named(checkpoint.divergence),
        stop_tokens=stops,
    )
    sampler.environment(padded)  # Which refuses what are no ids.
    acting = {"params": checkpoint.params}
    key = jax.random.key(seed)

    # A piece may go on beyond the horizon; nobody looks, but it must have room.
    length = width + max_new_tokens + PIECE
    itemsize = jnp.dtype(config.dtype).itemsize
    on_cache(gemma.cache_bytes(config, len(prompts), length, itemsize))

    @jax.jit
    def start(acting: Any, padded: batches.Prompts) -> rollout.ActorState:
        return sampler.start(acting, padded, key, spare=PIECE)

    @jax.jit
    def proceed(acting: Any, state: rollout.ActorState, tick: jax.Array) -> Any:
        trajectory, state = sampler.proceed(acting, padded, state, key, PIECE, tick)
        # NaN where a logit is.
        drawn = jnp.where(trajectory.valid, trajectory.extras["log_probability"], 0)
        return trajectory.action, trajectory.valid, drawn, state

    state = start(acting, padded)
    made = [_Row(words, stops) for _ in prompts]
    stopped = None
    try:
        for begin in range(0, max_new_tokens, PIECE):
            actions, valid, drawn, state = proceed(acting, state, jnp.asarray(begin, jnp.int32))
            finite.require(drawn, checkpoint.params, "the model's log-probabilities")
            _hand_over(made, np.asarray(actions), np.asarray(valid), on_text)
            if np.all(np.asarray(state.done)):
                break
    except KeyboardInterrupt as error:  # What is there is shown.
        stopped = error
    for number, row in enumerate(made):
        if rest := row.finish():
            on_text(number, rest)
    if isinstance(stopped, interrupts.Interrupted) and stopped.number != signal.SIGINT:
        raise stopped  # Who sends SIGTERM is not there to read.
    return [Generated(row.text, row.ids, row.is_complete) for row in made]


class _Row:
    """The text of one row so far."""

    def __init__(self, words: tokenizer.Tokenizer, stops: tuple[int, ...]):
        self._words, self._stops = words, stops
        self._stream = tokenizer.Stream()
        self.text, self.ids, self.is_complete = "", list[int](), False

    def add(self, ids: list[int]) -> str:
        """Takes the next ids; returns the text that they complete."""
        self.ids += ids
        self.is_complete = bool(self.ids) and self.ids[-1] in self._stops
        said = texts.said(ids, self._words, self._stops)
        piece, self._stream = tokenizer.decode_chunk(self._words, said, self._stream)
        self.text += piece
        return piece

    def finish(self) -> str:
        """The text of what was held back."""
        piece, self._stream = tokenizer.decode_chunk(self._words, [], self._stream, last=True)
        self.text += piece
        return piece


def _hand_over(
    made: list[_Row],
    actions: np.ndarray,
    valid: np.ndarray,
    on_text: Callable[[int, str], Any],
) -> None:
    """Adds a piece, [T, B], to the rows."""
    for number, row in enumerate(made):
        piece = row.add(actions[valid[:, number], number].tolist())
        if piece:
            on_text(number, piece)
