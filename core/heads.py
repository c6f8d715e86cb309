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

from kullback.core import layers, networks, types


class RandomNetwork(NamedTuple):
    """A network that may draw noise, as two pure functions."""

    init: Callable[[types.Key, Any], types.Params]  # (key, observation [B, ...]) -> params.
    apply: Callable[[types.Params, types.Key, Any], jax.Array]  # (params, key, observation).
    # params -> params with which it draws none: of noisy layers the means are left.
    without_noise: Callable[[types.Params], types.Params]


class QuantileNetwork(NamedTuple):
    """A network of quantiles z(s, a; u) at given fractions u, and which fractions to ask for.

    It may draw noise, as `RandomNetwork` does.
    """

    init: Callable[[types.Key, Any], types.Params]  # (key, observation [B, ...]) -> params.
    # (params, key of the noise, observation, u [B, N]) -> [B, N, A].
    apply: Callable[[types.Params, types.Key, Any, jax.Array], jax.Array]
    fractions: Callable[[types.Key, int, int], jax.Array]  # (key, B, N) -> u in (0, 1), [B, N].
    without_noise: Callable[[types.Params], types.Params]  # As that of `RandomNetwork`.


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

    def forward(observation: jax.Array) -> jax.Array:
        outputs = num_actions * num_atoms
        x, value = _streams(torso(observation), outputs, num_atoms, hidden, dueling, noise)
        logits = x.reshape(-1, num_actions, num_atoms)
        return logits if value is None else _dueling(logits, value.reshape(-1, 1, num_atoms), 1)

    transformed = hk.transform(forward)
    return RandomNetwork(transformed.init, transformed.apply, _means(noise))


def quantiles(
    torso: networks.Torso,
    num_actions: int,
    num_quantiles: int,
    *,
    hidden: int = 0,
    dueling: bool = False,
    noise: float = 0.0,
) -> QuantileNetwork:
    """Makes QR-DQN's head: one output for each of N fixed fractions (2 i - 1) / 2 N.

    Args:
      torso: observations -> features.
      num_actions, num_quantiles: A and N.
      hidden, dueling, noise: as for `categorical`.
    """
    middles = (np.arange(num_quantiles, dtype=np.float32) + 0.5) / num_quantiles

    def forward(observation: jax.Array) -> jax.Array:
        outputs = num_quantiles * num_actions
        x, value = _streams(torso(observation), outputs, num_quantiles, hidden, dueling, noise)
        z = x.reshape(-1, num_quantiles, num_actions)
        return z if value is None else _dueling(z, value[:, :, None], 2)

    def fractions(key: types.Key, rows: int, count: int) -> jax.Array:
        del key, count  # There are these N and no others.
        return jnp.broadcast_to(jnp.asarray(middles)[None], (rows, num_quantiles))

    transformed = hk.transform(forward)
    return QuantileNetwork(
        transformed.init,
        lambda params, key, observation, u: transformed.apply(params, key, observation),
        fractions,
        _means(noise),
    )


def implicit_quantiles(
    torso: networks.Torso,
    num_actions: int,
    *,
    hidden: int,
    num_cosines: int = 64,
    first_cosine: int = 1,
    dueling: bool = False,
    noise: float = 0.0,
) -> QuantileNetwork:
    """Makes IQN's quantiles at any fraction. Dabney et al., https://arxiv.org/abs/1806.06923.

        z(s, .; u) = f(torso(s) * phi(u)),    phi(u)_j = relu(sum_i cos(pi i u) w_ij + b_j)

    Args:
      torso: observations -> features.
      num_actions: A.
      hidden: units of a layer in f; 0 is none.
      num_cosines: number of i.
      first_cosine: the first i. The paper counts from 0; released code, and the default, from 1.
      dueling: whether f is V + A - mean_a A, of two streams.
      noise: sigma_0 of noisy layers in f, as for `categorical`; phi has none.
    """
    frequencies = np.pi * np.arange(first_cosine, first_cosine + num_cosines, dtype=np.float32)

    def forward(observation: jax.Array, u: jax.Array) -> jax.Array:
        features = torso(observation)  # [B, D]
        waves = jnp.cos(jnp.asarray(frequencies)[None, None] * u[:, :, None])  # [B, N, 64]
        embedding = jax.nn.relu(layers.linear(features.shape[-1])(waves))  # [B, N, D]
        x = features[:, None] * embedding
        z, value = _streams(x, num_actions, 1, hidden, dueling, noise)  # [B, N, A], [B, N, 1]
        return z if value is None else _dueling(z, value, 2)

    def init(key: types.Key, observation: Any) -> types.Params:
        return transformed.init(key, observation, jnp.zeros((len(observation), 1)))

    def fractions(key: types.Key, rows: int, count: int) -> jax.Array:
        return jax.random.uniform(key, (rows, count))

    transformed = hk.transform(forward)
    return QuantileNetwork(init, transformed.apply, fractions, _means(noise))


def _streams(
    x: jax.Array, actions: int, state: int, hidden: int, dueling: bool, noise: float
) -> tuple[jax.Array, jax.Array | None]:
    """Returns outputs for actions, [..., actions], and if `dueling` for the state, [..., state].

    Each is made of x [..., D] by layers of its own; for the arguments see `categorical`.
    """

    def dense(size: int) -> Callable[[jax.Array], jax.Array]:
        return noisy_linear(size, noise) if noise else layers.linear(size)

    def stream(outputs: int) -> jax.Array:
        return dense(outputs)(jax.nn.relu(dense(hidden)(x)) if hidden else x)

    return stream(actions), stream(state) if dueling else None


def _dueling(advantages: jax.Array, value: jax.Array, axis: int) -> jax.Array:
    """Returns V + A - mean_a A, with actions along `axis`."""
    return value + advantages - jnp.mean(advantages, axis=axis, keepdims=True)


def noisy_linear(size: int, sigma_0: float) -> Callable[[jax.Array], jax.Array]:
    """Applies a dense layer whose weights are drawn anew at each call, one draw for all rows.

        w = mu + sigma f(e_in) f(e_out)^T,  b = mu_b + sigma_b f(e_out),  f(e) = sign(e) sqrt(|e|)

    Fortunato et al. 2018, https://arxiv.org/abs/1706.10295, with factorised Gaussian noise: mu
    starts as DQN's weights, sigma at sigma_0 / sqrt(inputs).
    """

    def apply(x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        uniform, constant = layers.uniform_fan_in(inputs), sigma_0 / np.sqrt(inputs)
        noise_in, noise_out = map(_signed_root, (_normal(inputs), _normal(size)))
        mu, mu_b = _Affine(size, uniform, "linear")(inputs)
        sigma, sigma_b = _Affine(size, hk.initializers.Constant(constant), _NOISE)(inputs)
        if x.ndim == 2:
            # The outer product need not be formed: the noise scales what goes in and comes out.
            spread = (x * noise_in[None]) @ sigma + sigma_b[None]
            return x @ mu + mu_b[None] + spread * noise_out[None]
        # Of a row's many quantiles the second product would cost more than forming the weights.
        w = mu + sigma * noise_in[:, None] * noise_out[None]
        return x @ w + jnp.expand_dims(mu_b + sigma_b * noise_out, range(x.ndim - 1))

    return apply


class _Affine(hk.Module):
    """The parameters of a dense layer, weights "w" [inputs, size] and biases "b" [size]."""

    def __init__(self, size: int, init: hk.initializers.Initializer, name: str):
        super().__init__(name=name)
        self.size, self.init = size, init

    def __call__(self, inputs: int) -> tuple[jax.Array, jax.Array]:
        """Returns them for so many inputs."""
        w = hk.get_parameter("w", (inputs, self.size), jnp.float32, init=self.init)
        return w, hk.get_parameter("b", (self.size,), jnp.float32, init=self.init)


_NOISE = "noise"  # Module of what scales it; a second one is called noise_1.


def _means(noise: float) -> Callable[[types.Params], types.Params]:
    """Returns the function of a network that leaves the means of its noisy layers, if any."""
    return _without_noise if noise else lambda params: params


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
