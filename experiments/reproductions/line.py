"""A teacher that is known exactly: it follows a line, and comes back to it when it strays.

The set-up of `kullback reproduce gkd` that needs no learnt teacher; Agarwal et al. (GKD), 2024,
https://arxiv.org/abs/2306.13649, have learnt ones. Tokens are points of a circle of V. A prompt is
one token x_0, drawn uniformly; with y_0 = x_0 and y_n the token n places after it,

    off_n = y_n - (x_0 + n), in [-V/2, V/2),  target_n+1 = x_0 + n + 1 + sign(off_n) (|off_n| - 3)_+
    p(y_n+1) = 0.98 (0.9 at the target, 0.05 at either neighbour) + 0.02 / V

so that what a student should do after its own mistakes is seldom in what the teacher writes.

B rows, T tokens of a completion, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.experiments.reproductions import small_models, students
from kullback.lm import batches, gemma, tuning

BACK = 3  # By so many tokens a step it comes back.
AT_TARGET, AT_NEIGHBOUR, UNIFORM = 0.9, 0.05, 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the line, its student and learning."""

    vocab_size: int = 32  # V.
    horizon: int = 20  # T.
    trajectories: int = 256  # Of the teacher: the data set of fine-tuning and of lambda = 0.
    batch_size: int = 64
    learning_rate: float = 1e-3  # Of fine-tuning; there is no warm-up.
    distillation_rate: float = 1e-3
    student_width: int = 16
    student_layers: int = 1
    student_steps: int = 100  # Of fine-tuning before distillation.
    steps: int = 300  # Of distillation.
    evaluation: int = 1_000  # Sequences of which distances are means.

    def __post_init__(self) -> None:
        self.learning(self.learning_rate)
        for name, least in (("vocab_size", 4), ("trajectories", 1), ("evaluation", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")

    def learning(self, rate: float) -> tuning.Config:
        """Settings of a learner."""
        return tuning.Config(
            batch_size=self.batch_size,
            max_prompt_length=1,
            max_new_tokens=self.horizon,
            learning_rate=rate,
            warmup_steps=0,
            chunk=self.batch_size * (1 + self.horizon),
        )


def log_probabilities(
    first: jax.Array, last: jax.Array, position: jax.Array, vocab_size: int
) -> jax.Array:
    """Log-probabilities of y_n+1, float32 [..., V], by the equations above.

    Args:
      first: x_0, int, [...].
      last: y_n, int, [...].
      position: n >= 0, int, [...]; at 0 the last token is the first.
      vocab_size: V.
    """
    half = vocab_size // 2
    off = (last - first - position + half) % vocab_size - half
    off = jnp.sign(off) * jnp.maximum(jnp.abs(off) - BACK, 0)
    target = first + position + 1 + off

    def at(token: jax.Array) -> jax.Array:
        return jax.nn.one_hot(token % vocab_size, vocab_size)

    near = AT_TARGET * at(target) + AT_NEIGHBOUR * (at(target - 1) + at(target + 1))
    return jnp.log((1 - UNIFORM) * near + UNIFORM / vocab_size)


def teacher(config: gemma.Config) -> gemma.Model:
    """A model without parameters, or layers of `config`; features are log-probabilities [B, T, V].

    Texts may be packed into rows. Prompts to decode after are padded on the left, as anywhere.
    """

    def features(params: Any, tokens: Any, positions: Any = None, segments: Any = None) -> Any:
        del params, segments  # A text begins where its positions do.
        columns = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        positions = columns if positions is None else positions
        first = jnp.take_along_axis(jnp.asarray(tokens), columns - positions, axis=1)
        return log_probabilities(first, tokens, positions, config.vocab_size)

    def init_cache(batch: int, max_length: int, lengths: Any, width: int) -> gemma.Cache:
        del max_length  # It remembers a row's first token alone, in the place of keys.
        slot = jnp.zeros((), jnp.int32)
        return gemma.Cache(slot, width - jnp.asarray(lengths), jnp.zeros(batch, jnp.int32), ())

    def decode(params: Any, tokens: Any, cache: gemma.Cache) -> tuple[jax.Array, gemma.Cache]:
        del params
        slots = cache.slot + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        positions = slots[None] - cache.start[:, None]  # Negative in the padding.
        is_first = positions == 0
        begun = jnp.sum(jnp.where(is_first, tokens, 0), 1)
        first = jnp.where(jnp.any(is_first, 1), begun, cache.keys)
        found = log_probabilities(first[:, None], tokens, positions, config.vocab_size)
        return found, gemma.Cache(cache.slot + tokens.shape[1], cache.start, first, ())

    def unembed(params: Any, features: jax.Array) -> jax.Array:
        del params
        return features

    ids = config.vocab_size
    return gemma.Model(config, lambda key: {}, features, unembed, features, init_cache, decode, ids)


def rooms(sizes: Sizes) -> Callable[[int], students.Classroom]:
    """By a seed of prompts and of what the teacher writes; all share models and programs."""
    width, layers, context = sizes.student_width, sizes.student_layers, 1 + sizes.horizon
    config = small_models.decoder(sizes.vocab_size, width, layers, context)
    of_line, student = teacher(config), gemma.make(config)
    writes = students.writers(sizes.horizon, ())
    settings = sizes.learning(sizes.learning_rate), sizes.learning(sizes.distillation_rate)

    def draw(key: types.Key, count: int) -> batches.Prompts:
        tokens = jax.random.randint(key, (count, 1), 0, sizes.vocab_size, jnp.int32)
        return batches.Prompts(tokens, jnp.ones(count, jnp.int32))

    @functools.cache
    def room(seed: int) -> students.Classroom:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 3), 3)
        prompts, held_out = draw(keys[0], sizes.trajectories), draw(keys[1], sizes.evaluation)
        rows = writes(of_line, "kl")({"params": {}}, prompts, keys[2])
        data = rows, prompts, held_out
        return students.Classroom(*settings, sizes.steps, *data, of_line, student, writes)

    return room


def near(tokens: types.Array, vocab_size: int) -> float:
    """Share of whole rows, int [B, 1 + T], whose last token is within 1 of the line."""
    off = tokens[:, -1] - tokens[:, 0] - (tokens.shape[1] - 1)
    return float(jnp.mean((off + 1) % vocab_size <= 2))
