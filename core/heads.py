"""Heads of value networks beyond one number an action: distributions, dueling, noise.

Shape letters: B batch, A actions, N quantiles or atoms, D features. A torso gives [B, D].
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import networks, types


class RandomNetwork(NamedTuple):
    """A network that may draw noise, as two pure functions."""

    init: Callable[[types.Key, Any], types.Params]  # (key, observation [B, ...]) -> params.
    apply: Callable[[types.Params, types.Key, Any], jax.Array]  # (params, key, observation).
    # params -> params with which it draws none: of noisy layers the means are left.
    without_noise: Callable[[types.Params], types.Params]


class QuantileNetwork(NamedTuple):
    """A network of quantiles z(s, a; u) at given fractions u, and which fractions to ask for."""

    init: Callable[[types.Key, Any], types.Params]  # (key, observation [B, ...]) -> params.
    apply: Callable[[types.Params, Any, jax.Array], jax.Array]  # (.., u [B, N]) -> [B, N, A].
    fractions: Callable[[types.Key, int, int], jax.Array]  # (key, B, N) -> u in (0, 1), [B, N].


def categorical(
    torso: networks.Torso,
    num_actions: int,
    num_atoms: int,
    *,
    hidden: int = 0,
    dueling: bool = False,
    noise: float = 0.0,
) -> RandomNetwork:
    """Makes a network of logits of a distribution over atoms for each action, [B, A, N].

    Args:
      torso: observations -> features.
      num_actions, num_atoms: A and N.
      hidden: units of a layer between features and logits; 0 is none.
      dueling: logits are V + A - mean_a A, of two streams (Wang et al. 2016; Hessel et al. 2018).
      noise: sigma_0 of noisy layers in the head (Fortunato et al. 2018); 0 is none, and the key
        is not used.
    """

    def dense(size: int) -> Callable[[jax.Array], jax.Array]:
        return noisy_linear(size, noise) if noise else networks.linear(size)

    def forward(observation: jax.Array) -> jax.Array:
        features = torso(observation)

        def stream(rows: int) -> jax.Array:
            x = jax.nn.relu(dense(hidden)(features)) if hidden else features
            return dense(rows * num_atoms)(x).reshape(-1, rows, num_atoms)

        logits = stream(num_actions)  # [B, A, N]
        if dueling:
            logits = stream(1) + logits - jnp.mean(logits, axis=1, keepdims=True)
        return logits

    transformed = hk.transform(forward)
    means = _without_noise if noise else lambda params: params
    return RandomNetwork(transformed.init, transformed.apply, means)


def quantiles(torso: networks.Torso, num_actions: int, num_quantiles: int) -> QuantileNetwork:
    """Makes QR-DQN's head: one output for each of N fixed fractions (2 i - 1) / 2 N."""
    middles = (np.arange(num_quantiles, dtype=np.float32) + 0.5) / num_quantiles

    def forward(observation: jax.Array) -> jax.Array:
        x = networks.linear(num_quantiles * num_actions)(torso(observation))
        return x.reshape(-1, num_quantiles, num_actions)

    def fractions(key: types.Key, rows: int, count: int) -> jax.Array:
        del key, count  # There are these N and no others.
        return jnp.broadcast_to(jnp.asarray(middles)[None], (rows, num_quantiles))

    transformed = hk.without_apply_rng(hk.transform(forward))
    return QuantileNetwork(
        transformed.init,
        lambda params, observation, u: transformed.apply(params, observation),
        fractions,
    )


def implicit_quantiles(
    torso: networks.Torso,
    num_actions: int,
    *,
    hidden: int,
    num_cosines: int = 64,
    first_cosine: int = 1,
) -> QuantileNetwork:
    """Makes IQN's quantiles at any fraction. Dabney et al., https://arxiv.org/abs/1806.06923.

        z(s, .; u) = f(torso(s) * phi(u)),    phi(u)_j = relu(sum_i cos(pi i u) w_ij + b_j)

    Args:
      torso: observations -> features.
      num_actions: A.
      hidden: units of a layer in f; 0 is none.
      num_cosines: number of i.
      first_cosine: the first i. The paper counts from 0; released code, and the default, from 1.
    """
    frequencies = np.pi * np.arange(first_cosine, first_cosine + num_cosines, dtype=np.float32)

    def forward(observation: jax.Array, u: jax.Array) -> jax.Array:
        features = torso(observation)  # [B, D]
        waves = jnp.cos(jnp.asarray(frequencies)[None, None] * u[:, :, None])  # [B, N, 64]
        embedding = jax.nn.relu(networks.linear(features.shape[-1])(waves))  # [B, N, D]
        x = features[:, None] * embedding
        if hidden:
            x = jax.nn.relu(networks.linear(hidden)(x))
        return networks.linear(num_actions)(x)  # [B, N, A]

    def init(key: types.Key, observation: Any) -> types.Params:
        return transformed.init(key, observation, jnp.zeros((len(observation), 1)))

    def fractions(key: types.Key, rows: int, count: int) -> jax.Array:
        return jax.random.uniform(key, (rows, count))

    transformed = hk.without_apply_rng(hk.transform(forward))
    return QuantileNetwork(init, transformed.apply, fractions)


def noisy_linear(size: int, sigma_0: float) -> Callable[[jax.Array], jax.Array]:
    """Applies a dense layer whose weights are drawn anew at each call, one draw for all rows.

        w = mu + sigma f(e_in) f(e_out)^T,  b = mu_b + sigma_b f(e_out),  f(e) = sign(e) sqrt(|e|)

    Fortunato et al. 2018, https://arxiv.org/abs/1706.10295, with factorised Gaussian noise: mu
    starts as DQN's weights, sigma at sigma_0 / sqrt(inputs).
    """

    def apply(x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        sigma = hk.initializers.Constant(sigma_0 / np.sqrt(inputs))
        noise_in, noise_out = map(_signed_root, (_normal(inputs), _normal(size)))
        mean = networks.linear(size)(x)
        spread = hk.Linear(size, w_init=sigma, b_init=sigma, name=_NOISE)
        # The outer product need not be formed: the noise scales what goes in and what comes out.
        return mean + spread(x * noise_in[None]) * noise_out[None]

    return apply


_NOISE = "noise"  # Module of what scales it; a second one is called noise_1.


def _without_noise(params: types.Params) -> types.Params:
    """Returns parameters whose noise is scaled by 0."""

    def scales_noise(module: str) -> bool:
        return re.fullmatch(rf"(.*/)?{_NOISE}(_\d+)?", module) is not None

    return {
        module: jax.tree.map(jnp.zeros_like, leaves) if scales_noise(module) else leaves
        for module, leaves in params.items()
    }


def _normal(size: int) -> jax.Array:
    return jax.random.normal(hk.next_rng_key(), (size,))


def _signed_root(noise: jax.Array) -> jax.Array:
    return jnp.sign(noise) * jnp.sqrt(jnp.abs(noise))
