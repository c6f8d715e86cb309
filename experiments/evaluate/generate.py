"""Generation of text by a language model, handed over in pieces as it is sampled."""

import signal
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import finite, regularizers, rollout
from kullback.core.sampling import Sampling
from kullback.experiments import interrupts
from kullback.experiments.runs import models
from kullback.lm import batches, completions, gemma, texts, tokenizer

PIECE = 16  # Tokens that are sampled before their text is handed over.


class Generated(NamedTuple):
    """The completion of one prompt."""

    text: str
    ids: list[int]  # The stop token among them, if there is one.
    is_complete: bool  # False if it was cut, by the length or by Ctrl-C.


def generate(
    checkpoint: models.Checkpoint,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    seed: int = 0,
    stop_tokens: Sequence[int] = (),
    on_text: Callable[[int, str], Any] = lambda number, text: None,
    on_cache: Callable[[int], Any] = lambda num_bytes: None,
) -> list[Generated]:
    """Returns completions of prompts, sampled side by side; Ctrl-C ends them where they are.

    Args:
      checkpoint: a trained model.
      prompts: token ids of each, with the beginning-of-sequence id.
      max_new_tokens: of a completion, at most; sampling stops once all completions have ended.
      sampling: temperature, top-k and top-p; None samples from the model itself.
      seed: of the samples.
      stop_tokens: ids that end a completion, beside the model's own.
      on_text: receives the number of a prompt and its next piece of text, whole characters only.
      on_cache: receives the bytes that the cache of keys and values will take.

    Raises:
      ValueError: for a model without parameters, no prompts, ids outside of the vocabulary, more
        tokens than the model's context, or logits that are not finite.
    """
    config = checkpoint.config
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
    padded = batches.pad_prompts(prompts, width, checkpoint.tokenizer.pad_id)
    sampler = completions.sampler(
        checkpoint.model,
        max_new_tokens,
        sampling=sampling,
        divergence=regularizers.named(checkpoint.divergence),
        stop_tokens=stops,
    )
    sampler.environment(padded)  # It refuses ids outside of the vocabulary.
    acting = {"params": checkpoint.params}
    key = jax.random.key(seed)

    # The last piece may go on beyond the horizon: what it writes there is unused, and needs room.
    length = width + max_new_tokens + PIECE
    itemsize = jnp.dtype(config.dtype).itemsize
    on_cache(gemma.cache_bytes(config, len(prompts), length, itemsize))

    @jax.jit
    def start(acting: Any, padded: batches.Prompts) -> rollout.ActorState:
        return sampler.start(acting, padded, key, spare=PIECE)

    @jax.jit
    def proceed(acting: Any, state: rollout.ActorState, tick: jax.Array) -> Any:
        trajectory, state = sampler.proceed(acting, padded, state, key, PIECE, tick)
        # NaN if a logit is NaN.
        drawn = jnp.where(trajectory.valid, trajectory.extras["log_probability"], 0)
        return trajectory.action, trajectory.valid, drawn, state

    state = start(acting, padded)
    completed = [_Completion(checkpoint, stops) for _ in prompts]
    stopped = None
    try:
        for begin in range(0, max_new_tokens, PIECE):
            actions, valid, drawn, state = proceed(acting, state, jnp.asarray(begin, jnp.int32))
            finite.require(drawn, checkpoint.params, "the model's log-probabilities")
            _hand_over(completed, np.asarray(actions), np.asarray(valid), on_text)
            if np.all(np.asarray(state.done)):
                break
    except KeyboardInterrupt as error:  # The completions so far are returned.
        stopped = error
    for number, completion in enumerate(completed):
        if rest := completion.finish():
            on_text(number, rest)
    if isinstance(stopped, interrupts.Interrupted) and stopped.number != signal.SIGINT:
        raise stopped  # After SIGTERM nobody is there to read.
    return [Generated(x.text, x.ids, x.is_complete) for x in completed]


class _Completion:
    """The completion of one prompt so far."""

    def __init__(self, checkpoint: models.Checkpoint, stops: tuple[int, ...]):
        self._tokenizer, self._stops = checkpoint.tokenizer, stops
        self._stream = tokenizer.Stream()
        self.text, self.ids, self.is_complete = "", list[int](), False

    def add(self, ids: list[int]) -> str:
        """Takes the next ids; returns the text that they complete."""
        self.ids += ids
        self.is_complete = bool(self.ids) and self.ids[-1] in self._stops
        return self._decode(texts.text_ids(ids, self._tokenizer, self._stops))

    def finish(self) -> str:
        """Returns the text of bytes that waited for the rest of their character."""
        return self._decode([], last=True)

    def _decode(self, ids: Sequence[int], last: bool = False) -> str:
        piece, self._stream = tokenizer.decode_chunk(self._tokenizer, ids, self._stream, last=last)
        self.text += piece
        return piece


def _hand_over(
    completed: list[_Completion],
    actions: np.ndarray,
    valid: np.ndarray,
    on_text: Callable[[int, str], Any],
) -> None:
    """Adds the next tokens, [T, B], to the completions, and hands their text over."""
    for number, completion in enumerate(completed):
        piece = completion.add(actions[valid[:, number], number].tolist())
        if piece:
            on_text(number, piece)
