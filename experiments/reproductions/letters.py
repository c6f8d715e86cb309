"""A language of letters whose texts have a worth that is known: for rewards and their models.

A prompt is two letters x_1 x_2, a text T letters y_1 .. y_T; with y_0 = x_2,

    source  p(y_n | x, y_<n) ~ exp(S[x_1, y_n] + R[y_n-1, y_n])
    gold(x, y) = 1/T sum_n tanh U[x_1, y_n] + tanh B[y_n-1, y_n],  in [-2, 2]

with tables S, R, U, B of standard normal numbers, drawn with the seed. Some prompts are held out:
what is learnt of letters carries over to them. A text may end early, by a token that the source
never writes; what is missing is worth 0.

B rows, T letters of a text, L letters, P = 2 letters of a prompt.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import ranges, trees, types
from kullback.environments import tokens
from kullback.experiments.reproductions import small_models
from kullback.lm import batches, gemma, preferences, tuning

PROMPT = 2  # P.
MOST = 26  # Letters.
END, BEGIN = 0, 1  # Ids; letters follow them. The end is the padding too.
FIRST = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the language, and of a supervised start."""

    letters: int = 16  # L; there are L^2 prompts.
    horizon: int = 8  # T.
    held_out: int = 64  # Prompts that nothing is learnt from.
    texts: int = 4_096  # Of the source, to learn the start from.
    start_steps: int = 300  # Learner steps of supervised tuning.
    start_batch: int = 128
    start_rate: float = 3e-3

    def __post_init__(self) -> None:
        ranges.inside(f"[2, {MOST}]", self, "letters")
        ranges.inside(f"[1, {self.letters**2 - 1}]", self, "held_out")  # All prompts but one.
        ranges.at_least(1, self, "horizon", "texts")
        self.learning(self.start_batch, self.start_rate)

    @property
    def vocab_size(self) -> int:
        """Ids: letters, and the two special ones."""
        return self.letters + FIRST

    @property
    def width(self) -> int:
        """Tokens of a row, P + T."""
        return PROMPT + self.horizon

    def learning(self, batch_size: int, rate: float) -> tuning.Config:
        """Returns settings of a learner; there is no warm-up."""
        return small_models.learning(batch_size, PROMPT, self.horizon, rate, warmup_steps=0)

    def decoder(self, width: int, num_layers: int) -> gemma.Config:
        """Returns the configuration of a small Gemma of these letters."""
        config = small_models.decoder(self.vocab_size, width, num_layers, self.width)
        return dataclasses.replace(config, bos_id=BEGIN, eos_ids=(END,), pad_id=END)


SIZES = Sizes()


class Tables(NamedTuple):
    """Tables of the source and of what texts are worth, [L, L] each."""

    source_unigram: jax.Array  # S
    source_bigram: jax.Array  # R
    gold_unigram: jax.Array  # U
    gold_bigram: jax.Array  # B


class Language(NamedTuple):
    """A language of a seed."""

    tables: Tables
    train: np.ndarray  # Prompts as ids, int32 [n, P].
    held_out: np.ndarray  # The others, in random order.


def make(sizes: Sizes, seed: int) -> Language:
    """Returns the language of a seed."""
    keys = jax.random.split(jax.random.key(seed), 5)
    shape = sizes.letters, sizes.letters
    tables = Tables(*(jax.random.normal(key, shape) for key in keys[:4]))
    every = np.array([(a, b) for a in range(sizes.letters) for b in range(sizes.letters)])
    order = np.asarray(jax.random.permutation(keys[4], len(every)))
    prompts = (every[order] + FIRST).astype(np.int32)
    return Language(tables, prompts[sizes.held_out :], prompts[: sizes.held_out])


def as_prompts(ids: types.Array) -> batches.Prompts:
    """Returns ids, int32 [B, P], as what is gone on from."""
    return batches.Prompts(ids, jnp.full(ids.shape[0], PROMPT, jnp.int32))


def gold(
    tables: Tables, prompts: types.Array, text: types.Array, is_text: types.Array
) -> jax.Array:
    """Returns what texts are worth, float32 [B].

    Args:
      tables: of the language.
      prompts: ids, int32 [B, P].
      text: ids, int32 [B, T].
      is_text: bool, [B, T]; no True after False.
    """
    prompts, text = jnp.asarray(prompts) - FIRST, jnp.asarray(text) - FIRST
    counts = is_text & (text >= 0)  # What ends a text is worth nothing.
    last = jnp.concatenate([prompts[:, 1:], text[:, :-1]], 1)
    of_prompt = jnp.tanh(tables.gold_unigram)[prompts[:, :1], text]
    of_last = jnp.tanh(tables.gold_bigram)[last, text]
    return jnp.sum(jnp.where(counts, of_prompt + of_last, 0), 1) / text.shape[1]


def scorer(tables: Tables | None) -> tokens.Scorer:
    """Returns the gold reward, for the program that writes; None if that is given tables."""

    def score(tables: Tables, completion: tokens.Completion, context: batches.Prompts) -> jax.Array:
        return gold(tables, context.tokens, completion.tokens, completion.is_answer)

    return tokens.Scorer("gold", score, tables)


def write(tables: Tables, prompts: jax.Array, horizon: int, key: types.Key) -> batches.Sequences:
    """Returns prompts, int32 [B, P], and the T = `horizon` letters that the source writes."""
    first = prompts[:, 0] - FIRST

    def step(last: jax.Array, key: types.Key) -> tuple[jax.Array, jax.Array]:
        logits = tables.source_unigram[first] + tables.source_bigram[last]
        letter = jax.random.categorical(key, logits)
        return letter, letter

    _, text = jax.lax.scan(step, prompts[:, 1] - FIRST, jax.random.split(key, horizon))
    ids = text.T.astype(jnp.int32) + FIRST
    return batches.join(as_prompts(prompts), ids, jnp.ones(ids.shape, bool))


def corpus(language: Language, sizes: Sizes, seed: int) -> batches.Sequences:
    """Returns texts of the source after training prompts, each as often, [texts, P + T]."""
    chosen = np.resize(np.arange(len(language.train)), sizes.texts)
    prompts = jnp.asarray(language.train[chosen])
    key = jax.random.fold_in(jax.random.key(seed), 1)
    return write(language.tables, prompts, sizes.horizon, key)


def labelled(tables: Tables, one: batches.Sequences, other: batches.Sequences) -> preferences.Pairs:
    """Returns two texts of each prompt, [B, P + T] both, the one that is worth more as chosen."""
    is_first = of_rows(tables, one) >= of_rows(tables, other)
    return preferences.Pairs(*(trees.pick(x, one, other) for x in (is_first, ~is_first)))


def of_rows(tables: Tables, rows: batches.Sequences) -> jax.Array:
    """Returns `gold` of prompts and texts in rows, [B, P + T] -> [B]."""
    ids = jnp.asarray(rows.tokens)
    return gold(tables, ids[:, :PROMPT], ids[:, PROMPT:], jnp.asarray(rows.is_answer)[:, PROMPT:])
