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

from kullback.core import ranges, types
from kullback.experiments.reproductions import setups, small_models, students, study
from kullback.experiments.reproductions.setups import Setup
from kullback.lm import gemma, tuning

BACK = 3  # By so many tokens a step it comes back.
AT_TARGET, AT_NEIGHBOUR, UNIFORM = 0.9, 0.05, 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the line, of its student and of learning."""

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
        ranges.at_least(4, self, "vocab_size")
        ranges.at_least(1, self, "trajectories", "evaluation")

    def learning(self, rate: float) -> tuning.Config:
        """Returns the settings of a learner."""
        return small_models.learning(self.batch_size, 1, self.horizon, rate, warmup_steps=0)


def log_probabilities(
    first: jax.Array, last: jax.Array, position: jax.Array, vocab_size: int
) -> jax.Array:
    """Returns log-probabilities of y_n+1, float32 [..., V], by the equations above.

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
    """Returns a model without parameters, whose features are log-probabilities, [B, T, V].

    Texts may be packed into rows. Prompts to decode after are padded on the left, as anywhere.
    """

    def features(
        params: Any, tokens: Any, positions: Any = None, segments: Any = None, keys: Any = None
    ) -> Any:
        del params, segments, keys  # A text begins where its positions do.
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
        following = log_probabilities(first[:, None], tokens, positions, config.vocab_size)
        return following, gemma.Cache(cache.slot + tokens.shape[1], cache.start, first, ())

    def unembed(params: Any, features: jax.Array) -> jax.Array:
        del params
        return features

    return gemma.Model(
        config=config,
        init=lambda key: {},
        features=features,
        with_head=lambda params, *inputs: (features(params, *inputs), {}),
        unembed=unembed,
        apply=features,
        init_cache=init_cache,
        decode=decode,
        num_ids=config.vocab_size,
    )


def setups_of(sizes: Sizes) -> Callable[[int], Setup]:
    """Returns the set-up of a seed of prompts and of what is written; models are those of all."""
    width, layers, context = sizes.student_width, sizes.student_layers, 1 + sizes.horizon
    config = small_models.decoder(sizes.vocab_size, width, layers, context)
    of_line, student = teacher(config), gemma.make(config)
    writers = setups.writers(sizes.horizon, ())
    settings = sizes.learning(sizes.learning_rate), sizes.learning(sizes.distillation_rate)

    @functools.cache
    def setup(seed: int) -> Setup:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 3), 3)
        prompts, held_out = (
            setups.uniform_prompts(key, count, 1, sizes.vocab_size)
            for key, count in zip(keys, (sizes.trajectories, sizes.evaluation), strict=False)
        )
        rows = writers(of_line, "kl")({"params": {}}, prompts, keys[2])
        return Setup(*settings, rows, prompts, held_out, of_line, student, writers)

    return setup


def problem(sizes: Sizes) -> students.Problem:
    """Returns the teacher that follows a line, and students fine-tuned on what it writes."""
    setup = setups_of(sizes)
    tune = functools.cache(lambda: students.tuner(setup(0), setup(0).student))

    @functools.cache
    def start(seed: int, journal: study.Journal) -> types.Params:
        return students.learn(setup(seed), tune(), sizes.student_steps, seed, tick=journal.tick)

    def quality(
        params: types.Params, seed: int, divergence: str, journal: study.Journal
    ) -> dict[str, float]:
        del journal  # Nothing is compared with the teacher's.
        f, of_seed = students.f_of(divergence), setup(seed)
        rows = students.prefixes(of_seed, of_seed.student, params, seed, f)
        return {"near_the_line": near(rows.tokens, sizes.vocab_size)}

    return students.Problem(sizes, setup, lambda journal: {}, start, quality)


def near(tokens: types.Array, vocab_size: int) -> float:
    """Returns the share of rows, int [B, 1 + T], whose last token is within 1 of the line."""
    off = tokens[:, -1] - tokens[:, 0] - (tokens.shape[1] - 1)
    return float(jnp.mean((off + 1) % vocab_size <= 2))
