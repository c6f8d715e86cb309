"""The distribution of the return as probability masses on fixed atoms, for C51 and Rainbow.

Bellemare, Dabney & Munos, "A distributional perspective on reinforcement learning", ICML 2017,
https://arxiv.org/abs/1707.06887. See c51.py and rainbow.py.
"""

import dataclasses
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
import rlax

from kullback.agents import distributional, q_learning
from kullback.core import heads, policies, types

__all__ = ["Atoms", "categorical_target", "cross_entropy", "divergence", "make", "presets"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Atoms:
    """Support of the distribution; the defaults are the paper's for Atari."""

    num_atoms: int = 51  # N >= 2.
    v_min: float = -10.0  # Lowest atom, in units of (clipped) reward; returns are clipped to it.
    v_max: float = 10.0  # Highest atom, in the same units.

    def __post_init__(self) -> None:
        if self.num_atoms < 2:
            raise ValueError(f"num_atoms must be >= 2, got {self.num_atoms}; the paper: 51")
        if not self.v_min < self.v_max:
            raise ValueError(f"v_min must be < v_max, got {self.v_min} and {self.v_max}")

    def values(self) -> jax.Array:
        """Returns the atoms z, evenly spaced, float32, [N]."""
        return jnp.linspace(self.v_min, self.v_max, self.num_atoms)


def presets(family: q_learning.Family) -> Atoms:
    """Returns atoms for a family of environments, wide enough for its discounted returns."""
    if family == "atari":
        return Atoms()
    if family == "toy":  # Its returns are at most 1 in size.
        return Atoms(v_min=-1.0, v_max=1.0)
    # Dopamine's Rainbow on MinAtar, and its C51 on CartPole, whose return is at most 100.
    return Atoms(v_min=-100.0, v_max=100.0)


def categorical_target(
    logits_t: jax.Array,
    selector_q_t: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    atoms: jax.Array,
) -> jax.Array:
    """Returns the masses that the distribution at (s_tm1, a_tm1) regresses to; vmap it.

        m_i = sum_j [1 - |clip(r_t + discount_t z_j) - z_i| / dz]_0^1 p_j(s_t, a*),
        a* = argmax_a selector_q_t(a)

    Algorithm 1 of the paper: the distribution of r_t + discount_t Z, projected on the atoms z.

    Args:
      logits_t: logits of the target network, [A, N].
      selector_q_t: values that choose the action, [A].
      r_t, discount_t: [].
      atoms: z, rising, [N].

    Returns:
      Masses m, [N]; they sum to 1. The caller stops their gradient.
    """
    chex.assert_rank([logits_t, selector_q_t, r_t, discount_t, atoms], [2, 1, 0, 0, 1])
    chex.assert_type([r_t, discount_t], float)
    chex.assert_shape(logits_t, (len(selector_q_t), len(atoms)))
    p_t = jax.nn.softmax(logits_t[jnp.argmax(selector_q_t)])
    return jnp.asarray(rlax.categorical_l2_project(r_t + discount_t * atoms, p_t, atoms))


def cross_entropy(masses: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns -sum_i m_i ln p_i, nats, [], for masses m and p = softmax(logits), both [N]."""
    chex.assert_rank([masses, logits], 1)
    chex.assert_equal_shape([masses, logits])
    return -jnp.sum(masses * jax.nn.log_softmax(logits))


def divergence(masses: jax.Array, logits: jax.Array) -> jax.Array:
    """Returns KL(m || p), nats, []: the cross-entropy minus the entropy of m; see there."""
    return cross_entropy(masses, logits) + jnp.sum(jax.scipy.special.xlogy(masses, masses))


def make(
    network: heads.RandomNetwork,
    spec: types.Spec,
    atoms: Atoms,
    config: distributional.Config,
    *,
    double: bool = False,
    priority: Literal["cross_entropy", "divergence"] = "cross_entropy",
    algorithm: Any = None,
) -> types.Agent:
    """Returns the agent that learns the masses of `network`, [B, A, N], by cross-entropy.

        L = mean_B w CE(m, softmax(logits(s_tm1, a_tm1)))

    Args:
      network: observations [B, ...] -> logits [B, A, N]; its noise, if any, is drawn anew for each
        forward pass, and left out in evaluation (Dopamine's eval_mode).
      spec: of the environment.
      atoms: support of the masses.
      config: settings of the family.
      double: whether online values select the action at s_t; else the target network's do.
      priority: the measure by which a prioritised replay ranks items.
      algorithm: the algorithm's own configuration, saved beside the results.
    """
    z = atoms.values()

    def values(logits: jax.Array) -> jax.Array:
        return jnp.sum(jax.nn.softmax(logits) * z[None, None], axis=-1)  # [B, A]

    def loss(
        params: types.Params,
        targets: dict[str, types.Params],
        aux: None,
        batch: types.Batch,
        key: types.Key,
        constants: types.Constants,
    ) -> tuple[jax.Array, tuple[None, types.Feedback]]:
        del constants
        t: types.Transition = batch.data
        online_key, target_key, selector_key = jax.random.split(key, 3)
        logits_tm1 = network.apply(params, online_key, t.observation)  # [B, A, N]
        logits_t = network.apply(targets["periodic"], target_key, t.next_observation)
        selector_t = logits_t
        if double:
            selector_t = network.apply(params, selector_key, t.next_observation)
        masses = jax.vmap(categorical_target, in_axes=(0, 0, 0, 0, None))(
            logits_t, values(selector_t), jnp.asarray(t.reward), jnp.asarray(t.discount), z
        )
        masses = jax.lax.stop_gradient(masses)
        logits_a_tm1 = jax.vmap(lambda logits, a: logits[a])(logits_tm1, t.action)  # [B, N]
        losses = jax.vmap(cross_entropy)(masses, logits_a_tm1)
        priorities = (
            losses if priority == "cross_entropy" else jax.vmap(divergence)(masses, logits_a_tm1)
        )
        # Its target evaluates a greedy policy, of no entropy.
        metrics = distributional.metrics(values(logits_tm1), t.action, jnp.zeros(()))
        return jnp.mean(batch.weights * losses), (aux, types.Feedback(metrics, priorities))

    def action_values(params: types.Params, observation: Any, key: types.Key) -> jax.Array:
        return values(network.apply(params, key, observation))

    return q_learning.assemble(
        lambda key: network.init(key, spec.zeros()),
        loss,
        policies.epsilon_greedy_of_random(action_values),
        config,
        algorithm,
        evaluated=network.without_noise,
    )
