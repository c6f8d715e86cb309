"""Images as codes of a learnt codebook, which a language model writes like words.

Van den Oord et al., "Neural Discrete Representation Learning" (VQ-VAE), NeurIPS 2017,
https://arxiv.org/abs/1711.00937. Gemini 1.0 writes images as discrete tokens and cites such work
(https://arxiv.org/abs/2312.11805); its codebook is not published. An encoder f makes a vector of
each patch, which is replaced by the nearest of K codes; a decoder g draws the image from those:

    z = f(x),  i = argmin_j |z - e_j|^2,  e = e_i,  x^ = g(z + sg(e - z))
    L = |x - x^|^2 + beta |z - sg(e)|^2

sg stops the gradient: what reaches g's input goes on to z unchanged. The codes are moving averages
of what is nearest to them (appendix A.1); those that nothing was near for long begin anew, at a
vector of the batch.

Deviations: squares are averaged over pixels and dimensions, so that beta does not depend on sizes;
counts are not smoothed, as a code of count 0 stays where it is.

Shape letters: B images, S their side, C channels, G side of the grid of patches, N vectors,
K codes, D dimensions of a code.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from kullback.core import layers, learners, ranges, types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of images and codes, and settings of learning; those of learning are the paper's."""

    side: int = 8  # S, pixels of an image's side.
    patch: int = 2  # Pixels of a patch's side, which divides S; (S / patch)^2 codes an image.
    channels: int = 1  # C.
    num_codes: int = 32  # K.
    code_dim: int = 8  # D.
    hidden: int = 64  # Width of the networks.
    commitment: float = 0.25  # beta >= 0.
    decay: float = 0.99  # gamma in [0, 1) of the codes' moving averages.
    reseed_after: int = 100  # Steps >= 1 without a vector after which a code begins anew; ours.
    learning_rate: float = 2e-3  # > 0, of Adam; ours.

    def __post_init__(self) -> None:
        ranges.at_least(1, self, "side", "patch", "channels", "num_codes", "code_dim", "hidden")
        ranges.at_least(1, self, "reseed_after")
        if self.side % self.patch:
            raise ValueError(f"patch={self.patch} must divide side={self.side}")
        if not self.commitment >= 0:
            raise ValueError(f"commitment must be >= 0, got {self.commitment}; the paper has 0.25")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}; the paper has 0.99")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")

    @property
    def grid(self) -> int:
        """G, patches of a side."""
        return self.side // self.patch

    @property
    def length(self) -> int:
        """Codes of an image, G^2."""
        return self.grid**2


class Codebook(NamedTuple):
    """The codes and their moving averages: `aux` of the learner's state."""

    vectors: jax.Array  # e, [K, D].
    counts: jax.Array  # N, [K]: averages of how many vectors of a batch are nearest.
    sums: jax.Array  # m, [K, D]: averages of their sums.
    unused: jax.Array  # int32, [K]: steps since a vector was nearest.


class Coder(NamedTuple):
    """Images to codes and back; functions are pure."""

    config: Config
    learner: types.Learner  # Its batches are images; its `aux` is a `Codebook`.
    # (params, codebook, images [B, S, S, C]) -> codes int32 [B, G^2], row by row.
    encode: Callable[[types.Params, Codebook, types.Array], jax.Array]
    # (params, codebook, codes int32 [B, G^2]) -> images [B, S, S, C].
    decode: Callable[[types.Params, Codebook, types.Array], jax.Array]


def nearest(z: jax.Array, vectors: jax.Array) -> jax.Array:
    """Returns the code nearest to each vector, argmin_j |z - e_j|^2, int32 [N]; the first of ties.

    Args:
      z: [N, D].
      vectors: e, [K, D].
    """
    chex.assert_rank([z, vectors], 2)
    chex.assert_equal_shape_suffix([z, vectors], 1)
    # |z|^2 is the same for all codes.
    distances = jnp.sum(vectors**2, -1)[None] - 2 * z @ vectors.T  # [N, K]
    return jnp.argmin(distances, -1).astype(jnp.int32)


def straight_through(z: jax.Array, e: jax.Array) -> jax.Array:
    """Returns e, with a gradient that reaches z as if it were z."""
    chex.assert_equal_shape([z, e])
    return z + jax.lax.stop_gradient(e - z)


def image_loss(
    x: jax.Array, x_hat: jax.Array, z: jax.Array, e: jax.Array, *, beta: float
) -> jax.Array:
    """Returns mean |x - x_hat|^2 + beta mean |z - sg(e)|^2 of one image, [].

    Args:
      x: the image, [S, S, C].
      x_hat: what the decoder made of its codes, [S, S, C].
      z: of the encoder, [G^2, D].
      e: the nearest codes, [G^2, D].
      beta: >= 0.
    """
    chex.assert_equal_shape([x, x_hat])
    chex.assert_equal_shape([z, e])
    commitment = jnp.mean((z - jax.lax.stop_gradient(e)) ** 2)
    return jnp.mean((x - x_hat) ** 2) + beta * commitment


def moved(
    book: Codebook,
    z: jax.Array,
    codes: jax.Array,
    key: types.Key,
    *,
    decay: float,
    reseed_after: int,
) -> Codebook:
    """Returns the codebook after a batch of vectors.

        N_j <- gamma N_j + (1 - gamma) n_j,  m_j <- gamma m_j + (1 - gamma) sum_{z near j} z
        e_j <- m_j / N_j

    Args:
      book: before.
      z: vectors of the batch, [N, D].
      codes: of each, int32 [N].
      key: draws the vectors at which unused codes begin anew.
      decay: gamma.
      reseed_after: steps without a vector after which a code is unused.
    """
    num_codes = len(book.counts)
    is_near = jax.nn.one_hot(codes, num_codes, dtype=z.dtype)  # [N, K]
    near = jnp.sum(is_near, 0)
    counts = decay * book.counts + (1 - decay) * near
    sums = decay * book.sums + (1 - decay) * is_near.T @ z
    tiny = jnp.finfo(z.dtype).tiny
    mean = sums / jnp.maximum(counts, tiny)[:, None]
    vectors = jnp.where((counts > tiny)[:, None], mean, book.vectors)
    unused = jnp.where(near > 0, 0, book.unused + 1)
    is_dead = unused >= reseed_after
    fresh = z[jax.random.choice(key, len(z), (num_codes,), replace=len(z) < num_codes)]
    return Codebook(
        vectors=jnp.where(is_dead[:, None], fresh, vectors),
        counts=jnp.where(is_dead, 1.0, counts),
        sums=jnp.where(is_dead[:, None], fresh, sums),
        unused=jnp.where(is_dead, 0, unused),
    )


def perplexity(codes: jax.Array, num_codes: int) -> jax.Array:
    """Returns exp(-sum_j p_j ln p_j) of the codes' frequencies, []: how many are in use.

    Args:
      codes: int32, any shape.
      num_codes: K.
    """
    p = jnp.bincount(codes.reshape(-1), length=num_codes) / codes.size
    return jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0)))


def make(config: Config) -> Coder:
    """Returns the coder of images; its learner's metrics are `error`, `distance`, `perplexity`.

    A learner's first step places all codes, at vectors of its batch.
    """
    networks = hk.multi_transform(functools.partial(_networks, config))
    networks = hk.without_apply_rng(networks)
    f, g = networks.apply

    def vectors_of(params: types.Params, images: jax.Array) -> jax.Array:
        chex.assert_shape(images, (None, config.side, config.side, config.channels))
        return f(params, images).reshape(-1, config.code_dim)  # [B G^2, D]

    def drawn(params: types.Params, vectors: jax.Array) -> jax.Array:
        return g(params, vectors.reshape(-1, config.grid, config.grid, config.code_dim))

    def loss(params, targets, book, batch, key, constants):
        del targets, constants  # There is no target tree, and no frozen model.
        images = jnp.asarray(batch.data)
        z = vectors_of(params, images)
        codes = nearest(jax.lax.stop_gradient(z), book.vectors)
        e = book.vectors[codes]
        x_hat = drawn(params, straight_through(z, e))
        z_i, e_i = (v.reshape(len(images), -1, config.code_dim) for v in (z, e))
        of_image = functools.partial(image_loss, beta=config.commitment)
        losses = batch.weights * jax.vmap(of_image)(images, x_hat, z_i, e_i)
        frozen = jax.lax.stop_gradient(z)
        rates = {"decay": config.decay, "reseed_after": config.reseed_after}
        metrics = {
            "error": jnp.mean((images - x_hat) ** 2),
            "distance": jnp.mean((frozen - e) ** 2),
            "perplexity": perplexity(codes, config.num_codes),
        }
        book = moved(book, frozen, codes, key, **rates)
        return jnp.mean(losses), (book, types.Feedback(metrics))

    def init_params(key: types.Key) -> types.Params:
        return networks.init(key, jnp.zeros((1, config.side, config.side, config.channels)))

    def init_book(params: types.Params) -> Codebook:
        del params
        shape = config.num_codes, config.code_dim
        unused = jnp.full(config.num_codes, config.reseed_after, jnp.int32)
        return Codebook(jnp.zeros(shape), jnp.zeros(config.num_codes), jnp.zeros(shape), unused)

    def encode(params: types.Params, book: Codebook, images: types.Array) -> jax.Array:
        codes = nearest(vectors_of(params, jnp.asarray(images)), book.vectors)
        return codes.reshape(-1, config.length)

    def decode(params: types.Params, book: Codebook, codes: types.Array) -> jax.Array:
        chex.assert_shape(codes, (None, config.length))
        return drawn(params, book.vectors[jnp.asarray(codes)])

    learner = learners.sgd(init_params, loss, optax.adam(config.learning_rate), init_aux=init_book)
    return Coder(config, learner, encode, decode)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the Frechet distance of two sets of features as if they were normal, >= 0.

        |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2)

    Dowson and Landau, 1982; Heusel et al., 2017, https://arxiv.org/abs/1706.08500, which takes
    features of a classifier. It is computed in float64.

    Args:
      a: features, [n, D], n >= 2.
      b: features, [m, D], m >= 2.
    """
    chex.assert_rank([a, b], 2)
    chex.assert_equal_shape_suffix([a, b], 1)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a covariance needs two rows or more, got {len(a)} and {len(b)}")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    of_a, of_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    values, axes = np.linalg.eigh(of_a)
    root = (axes * np.sqrt(np.maximum(values, 0))) @ axes.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ of_b @ root), 0)).sum()
    apart = np.sum((a.mean(0) - b.mean(0)) ** 2)
    return float(max(0.0, apart + np.trace(of_a) + np.trace(of_b) - 2 * overlap))


def _networks(config: Config):
    """Makes encoder and decoder: a patch, and the eight around it, to a vector and back."""
    patch, grid, channels = config.patch, config.grid, config.channels
    into = [hk.Linear(config.hidden, name="patches"), layers.Conv2D(config.hidden, 3, 1, "SAME")]
    to_code = hk.Linear(config.code_dim, name="to_code")
    out = [hk.Linear(config.hidden, name="codes"), layers.Conv2D(config.hidden, 3, 1, "SAME")]
    to_pixels = hk.Linear(patch * patch * channels, name="to_pixels")

    def f(images: jax.Array) -> jax.Array:
        parts = images.reshape(-1, grid, patch, grid, patch, channels).swapaxes(2, 3)
        x = parts.reshape(-1, grid, grid, patch * patch * channels)
        for layer in into:
            x = jax.nn.gelu(layer(x))
        return to_code(x)  # [B, G, G, D]

    def g(vectors: jax.Array) -> jax.Array:
        x = vectors
        for layer in out:
            x = jax.nn.gelu(layer(x))
        x = to_pixels(x).reshape(-1, grid, grid, patch, patch, channels).swapaxes(2, 3)
        return x.reshape(-1, config.side, config.side, channels)

    def init(images: jax.Array) -> jax.Array:
        return g(f(images))

    return init, (f, g)
