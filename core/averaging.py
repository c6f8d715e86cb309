"""Averages of parameters: means, moving averages, spherical interpolation of task vectors.

Rame et al. 2024, "WARM", https://arxiv.org/abs/2401.12187, average reward models, and "WARP",
https://arxiv.org/abs/2406.16768, policies: with delta_m = theta_m - theta_0 the task vector of
model m, one group of parameters at a time (the paper: a layer),

    mean    sum_m w_m theta_m,  sum_m w_m = 1
    EMA     theta_bar <- (1 - mu) theta_bar + mu theta
    slerp   theta_0 + sum_m w_m delta_m,  w_m of the angles between the delta_m
    LITI    (1 - eta) theta_0 + eta theta

Each is a linear combination whose weights follow from the Gram matrix of the task vectors alone.
Trees may hold NumPy or JAX arrays, and come back as such, in their types; dot products are summed
in float64, combinations are computed in float32 or better and rounded once. Parameters of weight 0
do not count, finite or not.

Shape letters: M models, P length of a layer axis.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kullback.core import flat_arrays, trees, types

__all__ = [
    "Group",
    "GroupOf",
    "by_module",
    "by_tensor",
    "cosine",
    "ema",
    "liti",
    "mean",
    "slerp",
    "whole",
]

# Below this cos Omega vectors count as opposite, and do not span a plane.
OPPOSITE = -1 + 5e-13  # sin Omega < 1e-6.


class Group(NamedTuple):
    """A set of leaves that `slerp` concatenates into one vector: leaves with equal `name`."""

    name: str
    is_stacked: bool = False  # Each index of the leaf's first axis is a group of its own.


GroupOf = Callable[[str], Group]  # Path of a leaf, "mlp/linear/w", -> its group.


def by_tensor(path: str) -> Group:
    """Makes each leaf a group of its own."""
    return Group(path)


def by_module(path: str) -> Group:
    """Makes one group of a module's leaves, a layer of a Haiku network without stacked layers."""
    return Group(path.rpartition("/")[0] or path)


def whole(path: str) -> Group:
    """Makes one group of all leaves."""
    del path
    return Group("")


def ema(average: types.Params, params: types.Params, rate: float) -> types.Params:
    """Returns (1 - mu) average + mu params: a moving target of DQN's family, or WARP's anchor.

    Args:
      average: the last average; keep it in float32 even if params are bfloat16, or mu (theta -
        average) is rounded away.
      params: the newest parameters.
      rate: mu in (0, 1]; 1 is a copy, whatever the average was.

    Raises:
      ValueError: if rate is out of range, or a leaf is not floating.
    """
    check_rate(rate)
    for leaves in map(trees.named_leaves, (average, params)):
        _check_floating(leaves)
    if rate == 1:  # 0 * inf is NaN.
        return jax.tree.map(
            lambda a, x: x.astype(jnp.promote_types(a.dtype, x.dtype)), average, params
        )
    return optax.incremental_update(params, average, rate)


def check_rate(rate: float) -> None:
    """Raises ValueError unless a moving average can have this rate."""
    if not 0 < rate <= 1:
        raise ValueError(f"rate of a moving average must lie in (0, 1], got {rate}")


def mean_weights(num_models: int, weights: Sequence[float] | None = None) -> np.ndarray:
    """Returns w_m / sum_n w_n, float64 [M]; uniform if None.

    Raises:
      ValueError: if there is not one weight >= 0 a model, or their sum is 0 or not finite.
    """
    if weights is None:
        weights = [1.0] * num_models
    if len(weights) != num_models or num_models == 0:
        raise ValueError(f"expected one weight a model, got {len(weights)} for {num_models}")
    if not all(w >= 0 for w in weights) or not 0 < sum(weights) < math.inf:
        raise ValueError(
            f"weights must be >= 0, finite as their sum is, and not all 0, got {list(weights)}"
        )
    return np.asarray(weights, np.float64) / math.fsum(weights)


def ema_weights(num_models: int, rate: float) -> np.ndarray:
    """Returns the weights of M successive parameters in their moving average, float64 [M].

    The average starts at the first model: w_1 = (1 - mu)^(M-1), w_m = mu (1 - mu)^(M-m).
    """
    check_rate(rate)
    powers = (1 - rate) ** np.arange(num_models - 1, -1, -1, dtype=np.float64)
    return np.where(np.arange(num_models) == 0, powers, rate * powers)


def slerp_weights(gram: Any, t: float | None = None) -> Any:
    """Returns the weights of task vectors in their spherical interpolation (WARP, appendix B.3).

        slerp_m = sin((1 - lambda) Omega) / sin(Omega) slerp_{m-1}
                  + sin(lambda Omega) / sin(Omega) delta_m,    lambda = 1 / m

    A zero vector has no angle, and opposite ones span no plane: they are interpolated linearly,
    which is also the limit of small angles.

    Args:
      gram: <delta_m, delta_n>, [..., M, M], NumPy's or JAX's.
      t: lambda in [0, 1] of two models in place of 1/2; 0 is the first.

    Returns:
      The weights, [..., M].

    Raises:
      ValueError: if t is out of range, or given for more or fewer than two models.
    """
    xp = jnp if isinstance(gram, jax.Array) else np
    num_models = gram.shape[-1]
    if t is not None and (num_models != 2 or not 0 <= t <= 1):
        raise ValueError(f"t must lie in [0, 1] and is of two models, got {t} for {num_models}")
    # The place of each model in the sum, in the shape of the weights.
    one_hot = xp.broadcast_to(xp.eye(num_models, dtype=gram.dtype), gram.shape)
    weights = one_hot[..., 0, :]
    for m in range(1, num_models):
        fraction = 1 / (m + 1) if t is None else t
        square = xp.sum(weights[..., :, None] * gram * weights[..., None, :], (-2, -1))
        scale = xp.sqrt(xp.maximum(square, 0) * gram[..., m, m])
        dot = xp.sum(weights * gram[..., m], -1)
        cosine = xp.clip(xp.where(scale > 0, dot / xp.where(scale > 0, scale, 1), 1), -1, 1)
        angle = xp.where(cosine < OPPOSITE, 0, xp.arccos(cosine)) / np.pi
        # sin(c Omega) / sin(Omega) = c sinc(c Omega) / sinc(Omega), which needs no case for 0.
        old, new = (c * xp.sinc(c * angle) / xp.sinc(angle) for c in (1 - fraction, fraction))
        weights = old[..., None] * weights + new[..., None] * one_hot[..., m, :]
    return weights


def from_base(weights: Any, eta: float = 1.0) -> Any:
    """Turns weights of task vectors into weights of [theta_0, ..., theta_M], [..., M + 1].

    theta_0 + eta sum_m w_m (theta_m - theta_0): LITI toward the base, exact at eta = 0.
    """
    xp = jnp if isinstance(weights, jax.Array) else np
    weights = eta * weights
    return xp.concatenate([1 - xp.sum(weights, -1, keepdims=True), weights], -1)


def mean(models: Sequence[types.Params], weights: Sequence[float] | None = None) -> types.Params:
    """Returns the weighted mean of parameters, leaf by leaf; WARM's is the uniform one.

    Raises:
      ValueError: if the trees differ, a leaf is not floating, or weights are no weights.
    """
    shares = mean_weights(len(models), weights)
    return _blend(models, lambda path: (shares, False))


def liti(base: types.Params, params: types.Params, eta: float) -> types.Params:
    """Interpolates linearly towards the initialisation: (1 - eta) base + eta params.

    Args:
      base: theta_0; the result at eta = 0.
      params: the result at eta = 1; beyond, it is extrapolated.
      eta: >= 0.

    Raises:
      ValueError: if the trees differ, a leaf is not floating, or eta is out of range.
    """
    check_interpolation(eta)
    shares = from_base(np.ones(1), eta)
    return _blend([base, params], lambda path: (shares, False))


def check_interpolation(eta: float) -> None:
    """Raises ValueError unless eta is one of LITI."""
    if not (math.isfinite(eta) and eta >= 0):
        raise ValueError(f"interpolation must be finite and >= 0, got {eta}; the paper uses 0.3")


def slerp(
    models: Sequence[types.Params],
    base: types.Params | None = None,
    *,
    t: float | None = None,
    group_of: GroupOf = by_module,
) -> types.Params:
    """Interpolates task vectors spherically, group by group; see `slerp_weights`.

    Args:
      models: theta_1 .. theta_M; with M > 2 the order matters a little.
      base: theta_0, from which task vectors are taken; None is 0, so that the parameters
        themselves are interpolated.
      t: lambda of two models; None is 1/M recursively.
      group_of: returns a leaf's group; the leaves of a group are one vector.

    Raises:
      ValueError: if the trees differ, a leaf is not floating, or t is out of range.
    """
    with jax.enable_x64(True):
        weights = {}
        for group, gram in _grams(models, base, group_of).items():
            of_tasks = slerp_weights(gram, t)
            weights[group] = of_tasks if base is None else from_base(of_tasks)

        def of(path: str) -> tuple[Any, bool]:
            group = group_of(path)
            return weights[group], group.is_stacked

        return _blend(models if base is None else [base, *models], of)


def cosines(
    models: Sequence[types.Params], base: types.Params | None, group_of: GroupOf = by_module
) -> dict[str, np.ndarray]:
    """Returns cosines between task vectors by group, float64 [M, M], or [P, M, M] of stacked ones.

    Of a vector that is 0 it is NaN. The trees must be concrete.
    """
    with jax.enable_x64(True):
        grams = _grams(models, base, group_of)
        return {group.name: cosine(np.asarray(gram)) for group, gram in grams.items()}


def cosine(gram: np.ndarray) -> np.ndarray:
    """Returns cosines from a Gram matrix, [..., M, M] both; NaN where a vector is 0."""
    norms = np.sqrt(np.diagonal(gram, axis1=-2, axis2=-1))
    scale = norms[..., :, None] * norms[..., None, :]
    return np.divide(gram, scale, out=np.full_like(gram, np.nan), where=scale > 0)


def _grams(
    models: Sequence[types.Params], base: types.Params | None, group_of: GroupOf
) -> dict[Group, Any]:
    """Returns the Gram matrix of the task vectors of each group, float64, [M, M] or [P, M, M]."""
    first, *others = _alike(models if base is None else [*models, base])
    grams: dict[Group, Any] = {}
    for path, leaf in first.items():
        group = group_of(path)
        parts = [leaf, *(other[path] for other in others)]
        split = (parts, None) if base is None else (parts[:-1], parts[-1])
        gram = _leaf_gram(*split, is_stacked=group.is_stacked)
        grams[group] = grams[group] + gram if group in grams else gram
    return grams


def _leaf_gram(models: Sequence[Any], base: Any, *, is_stacked: bool) -> Any:
    if any(isinstance(x, jax.Array) for x in (*models, base)):
        return _jax_gram(tuple(models), base, is_stacked)
    grams = [
        flat_arrays.gram([_row(x, p) for x in models], None if base is None else _row(base, p))
        for p in (range(len(models[0])) if is_stacked else [None])
    ]
    return np.stack(grams) if is_stacked else grams[0]


def _row(leaf: np.ndarray, p: int | None) -> np.ndarray:
    """Returns index p of the first axis of a leaf, or all of it, flat; a view where possible."""
    return (leaf if p is None else leaf[p : p + 1]).reshape(-1)


@functools.partial(jax.jit, static_argnums=2)
def _jax_gram(models: tuple[Any, ...], base: Any, is_stacked: bool) -> jax.Array:
    """Computes a Gram matrix in one program, so that no float64 copy of a leaf is made."""
    axes = tuple(range(is_stacked, models[0].ndim))
    wide = [jnp.asarray(x, jnp.float64) for x in models]
    tasks = wide if base is None else [x - jnp.asarray(base, jnp.float64) for x in wide]
    rows = [jnp.stack([jnp.sum(x * y, axes) for y in tasks], -1) for x in tasks]
    return jnp.stack(rows, -2)


def _blend(parts: Sequence[types.Params], weights_of: Callable[[str], Any]) -> types.Params:
    """Returns sum_k w_k parts_k; weights_of(path) -> (w [K] or [P, K], whether w is [P, K])."""
    named = _alike(parts)
    leaves = []
    with jax.enable_x64(True):  # For the weights, until they meet a leaf.
        for path, leaf in named[0].items():
            weights, is_stacked = weights_of(path)
            leaves.append(_combine([leaf, *(n[path] for n in named[1:])], weights, is_stacked))
    return jax.tree.unflatten(jax.tree.structure(parts[0]), leaves)


def _combine(parts: Sequence[Any], weights: Any, is_stacked: bool) -> Any:
    if any(isinstance(x, jax.Array) for x in (weights, *parts)):
        return _jax_combine(tuple(parts), jnp.asarray(weights), is_stacked)
    out = np.empty(parts[0].shape, parts[0].dtype)
    for p in range(len(out)) if is_stacked else [None]:
        of_row = weights if p is None else weights[p]
        flat_arrays.combine([_row(x, p) for x in parts], of_row, _row(out, p))
    return out


@functools.partial(jax.jit, static_argnums=2)
def _jax_combine(parts: tuple[Any, ...], weights: jax.Array, is_stacked: bool) -> jax.Array:
    wide = jnp.promote_types(parts[0].dtype, jnp.float32)
    ones = (1,) * (parts[0].ndim - 1)
    total = jnp.zeros(parts[0].shape, wide)
    for k, part in enumerate(parts):
        weight = weights[..., k].astype(wide)
        weight = weight.reshape(-1, *ones) if is_stacked else weight
        total += weight * jnp.where(weight == 0, 0, part.astype(wide))  # 0 * inf is NaN.
    return total.astype(parts[0].dtype)


def _alike(parts: Sequence[types.Params]) -> list[dict[str, Any]]:
    """Returns the leaves of each tree by path, which must be alike.

    Raises:
      ValueError: for the first that differs between trees, or is not floating.
    """
    if not parts:
        raise ValueError("expected at least one tree of parameters, got none")
    first, *others = (trees.named_leaves(tree) for tree in parts)
    _check_floating(first)
    for number, other in enumerate(others, 2):
        described = {path: trees.describe(path, leaf) for path, leaf in other.items()}
        trees.check_alike(f"tree {number}", described, first)
    return [first, *others]


def _check_floating(leaves: dict[str, Any]) -> None:
    for path, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"leaf {path!r} must be floating, got {leaf.dtype}; counters have no average"
            )
