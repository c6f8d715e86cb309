"""Text as an environment: a prompt is the reset, a token the action.

A stop token ends a row, the horizon cuts it; both are the task's end, so the discount is 0 at
either and nothing is bootstrapped. Finished rows stay finished. The reward of a step is 0: what a
whole text is worth comes from a score, after the rollout, and is written at each row's last token.

B rows, P tokens of the prompts' padded width, T tokens of a completion.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from kullback.core import rollout, types


class Completion(NamedTuple):
    """Texts that a rollout has written."""

    tokens: jax.Array  # int32, [B, T]; 0 after a row's end.
    is_answer: jax.Array  # bool, [B, T]: up to and including the stop token.
    length: jax.Array  # int32, [B].
    truncated: jax.Array  # bool, [B]: the horizon came before a stop token.
    log_probability: jax.Array  # float32, [B, T], under the sampling policy; 0 after a row's end.


class Scorer(NamedTuple):
    """A reward of whole texts: `score(params, completion, context)` -> float [B].

    `context` is the caller's (prompts, targets). A scorer in JAX runs inside the program that
    samples, which takes its params as an argument; one in Python runs between two programs.
    """

    name: str
    score: Callable[[types.Params, Completion, Any], types.Array]
    params: types.Params = None
    is_compiled: bool = True  # True: written in JAX; False: in Python, for NumPy arrays.


class State(NamedTuple):
    """State of B rows of text."""

    token: jax.Array  # int32, [B]: the last one.
    is_over: jax.Array  # bool, [B].
    num_tokens: jax.Array  # int32, []: ticks since the prompt.


def make_batch(
    prompts: types.Array,
    lengths: types.Array,
    *,
    horizon: int,
    vocab_size: int,
    stop_tokens: tuple[int, ...],
) -> types.Environment:
    """Makes an environment of B prompts, whose observation is the last token, int32 [B].

    It may be made inside a compiled program, of traced prompts; they are then not checked. Every
    reset returns the same prompts. A policy receives them as the context of its initial state.

    Args:
      prompts: int32, [B, P], padded on the left: the last token of each is in the last column.
      lengths: int32, [B], in [1, P]; the padding is ignored.
      horizon: most tokens of a row, the stop token included.
      vocab_size: V; actions are ids below it.
      stop_tokens: ids that end a row; without any, texts are as long as the horizon.

    Raises:
      ValueError: for ids outside the vocabulary, lengths outside [1, P] or a horizon below 1.
    """
    chex.assert_rank([prompts, lengths], [2, 1])
    chex.assert_equal_shape_prefix([prompts, lengths], 1)
    if horizon < 1:
        raise ValueError(f"horizon must be >= 1 token, got {horizon}")
    check_stop_tokens(stop_tokens, vocab_size)
    if not isinstance(prompts, Tracer) and not isinstance(lengths, Tracer):
        _check(np.asarray(prompts), np.asarray(lengths), vocab_size)
    num_rows = prompts.shape[0]
    last_tokens = jnp.asarray(prompts, jnp.int32)[:, -1]

    def reset(key: types.Key) -> tuple[State, types.TimeStep]:
        del key  # Nothing here is random.
        state = State(last_tokens, jnp.zeros(num_rows, bool), jnp.zeros((), jnp.int32))
        return state, types.TimeStep(
            step_type=jnp.full(num_rows, types.FIRST, jnp.int8),
            reward=jnp.zeros(num_rows),
            discount=jnp.ones(num_rows),
            observation=last_tokens,
            next_observation=last_tokens,
        )

    def step(state: State, action: jax.Array) -> tuple[State, types.TimeStep]:
        token = jnp.where(state.is_over, state.token, action)
        num_tokens = state.num_tokens + 1
        # A finished row keeps its stop token, or is past the horizon.
        is_over = is_stop(token, stop_tokens) | (num_tokens >= horizon)
        return State(token, is_over, num_tokens), types.TimeStep(
            step_type=jnp.where(is_over, types.LAST, types.MID).astype(jnp.int8),
            reward=jnp.zeros(num_rows),
            discount=1.0 - is_over.astype(jnp.float32),
            observation=token,
            next_observation=token,
        )

    return types.Environment(
        spec=types.Spec(shape=(), dtype=np.int32, num_actions=vocab_size),
        num_envs=num_rows,
        reset=reset,
        step=step,
        auto_reset=False,
    )


def check_stop_tokens(stop_tokens: Sequence[int], vocab_size: int) -> None:
    """Raises ValueError unless all stop tokens are ids of the vocabulary."""
    for stop_token in stop_tokens:
        if not 0 <= stop_token < vocab_size:
            raise ValueError(
                f"stop tokens must lie in [0, vocab_size={vocab_size}), got {stop_token}"
            )


def is_stop(tokens: jax.Array, stop_tokens: tuple[int, ...]) -> jax.Array:
    """Returns whether tokens are among `stop_tokens`; bool, of the shape of `tokens`."""
    stops = jnp.zeros(tokens.shape, bool)
    for stop_token in stop_tokens:
        stops = stops | (tokens == stop_token)
    return stops


def completions(trajectory: rollout.Trajectory, stop_tokens: tuple[int, ...]) -> Completion:
    """Reads the texts out of a rollout, rows first.

    Args:
      trajectory: [T, B], whole: the pieces of a streamed text are concatenated first.
      stop_tokens: the environment's. They tell whether a row was cut; its length does not, as a
        stop token may stand at the horizon.
    """
    is_answer = trajectory.valid.T  # [B, T]
    length = jnp.sum(is_answer, -1, dtype=jnp.int32)
    stopped = jnp.any(is_answer & is_stop(trajectory.action.T, stop_tokens), -1)
    return Completion(
        tokens=jnp.where(is_answer, trajectory.action.T, 0),
        is_answer=is_answer,
        length=length,
        truncated=~stopped,
        log_probability=jnp.where(is_answer, trajectory.extras["log_probability"].T, 0),
    )


def scored(
    trajectory: rollout.Trajectory,
    scorer: Scorer,
    params: types.Params,
    context: Any,
    stop_tokens: tuple[int, ...],
    truncation_penalty: float = 0.0,
) -> rollout.Trajectory:
    """Scores a rollout's texts; a text's score is the reward of its row's last token.

    Args:
      trajectory: [T, B], whole; in a compiled program or between two.
      scorer: returns the scores, [B].
      params: `scorer.params`, which a compiled program should take as its argument.
      context: the scorer's third argument.
      stop_tokens: the environment's.
      truncation_penalty: see `with_scores`.

    Raises:
      ValueError: for a scorer in Python inside a compiled program.
    """
    completion = completions(trajectory, stop_tokens)
    if not scorer.is_compiled:
        if isinstance(completion.tokens, Tracer):
            raise ValueError(
                f"scorer {scorer.name!r} is Python and cannot run inside a compiled program; "
                "score the trajectory after the program, or write it in JAX"
            )
        completion = jax.tree.map(np.asarray, completion)
    scores = jnp.asarray(scorer.score(params, completion, context), jnp.float32)
    return with_scores(trajectory, scores, stop_tokens, truncation_penalty)


def with_scores(
    trajectory: rollout.Trajectory,
    scores: jax.Array,
    stop_tokens: tuple[int, ...],
    truncation_penalty: float = 0.0,
) -> rollout.Trajectory:
    """Returns the trajectory with each row's score as the reward of its last token.

    Args:
      trajectory: [T, B], whole; its rewards are replaced.
      scores: float, [B].
      stop_tokens: the environment's.
      truncation_penalty: >= 0, subtracted from the score of a row without a stop token.

    Raises:
      ValueError: for a negative penalty.
    """
    if not truncation_penalty >= 0:
        raise ValueError(
            f"truncation_penalty must be >= 0 (it is subtracted), got {truncation_penalty}"
        )
    completion = completions(trajectory, stop_tokens)
    chex.assert_equal_shape([scores, completion.length])
    scores = scores - truncation_penalty * completion.truncated
    tick = jnp.arange(trajectory.valid.shape[0])
    is_last = tick[:, None] == completion.length[None] - 1  # [T, B]
    reward = jnp.where(is_last, scores[None], 0).astype(jnp.float32)
    return trajectory._replace(timestep=trajectory.timestep._replace(reward=reward))


def _check(prompts: np.ndarray, lengths: np.ndarray, vocab_size: int) -> None:
    width = prompts.shape[1]
    if np.any(lengths < 1) or np.any(lengths > width):
        row = int(np.argmax((lengths < 1) | (lengths > width)))
        raise ValueError(
            f"prompt lengths must lie in [1, {width}], got {lengths[row]} in row {row}; "
            "a prompt has one token at least, such as the beginning of text"
        )
    is_outside = (prompts < 0) | (prompts >= vocab_size)
    is_outside &= np.arange(width) >= width - lengths[:, None]  # Not in the padding.
    if np.any(is_outside):
        row, column = np.argwhere(is_outside)[0]
        raise ValueError(
            f"token ids must lie in [0, vocab_size={vocab_size}), got {prompts[row, column]} "
            f"in row {row}"
        )
