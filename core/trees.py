"""Trees of arrays as flat dicts by name, and back: the form of everything on disk."""

import hashlib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import processes


class Leaf(NamedTuple):
    """How a leaf is described; JSON-able."""

    shape: list[int]
    dtype: str  # "float32"; "key<fry>" for typed keys.
    impl: str | None = None  # Of a typed key, as `jax.random.wrap_key_data` takes it.

    def empty(self) -> np.ndarray:
        """Returns the numbers of a leaf of size 0."""
        if self.impl is None:
            return np.empty(self.shape, jnp.dtype(self.dtype))
        key_data = jax.random.key_data(jax.random.key(0, impl=self.impl))
        return np.empty((*self.shape, *key_data.shape), key_data.dtype)

    def __str__(self) -> str:
        return f"{self.dtype}{self.shape}"


def pick(condition: Any, one: Any, other: Any) -> Any:
    """Returns one tree's rows [B, ...] where the condition, bool [B], is True, else the other's."""

    def of_leaf(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (b.ndim - 1)), a, b)

    return jax.tree.map(of_leaf, one, other)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns leaves by path, "learner/params/linear/w"; None is no leaf."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "."
        if name in named:
            raise ValueError(f"two leaves are named {name!r}; a key of a dict may not contain '/'")
        named[name] = leaf
    return named


def fingerprint(tree: Any) -> str:
    """Returns the SHA-256 of names, shapes and numbers of a tree's leaves."""
    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree).items()):
        digest.update(f"{name} {describe(name, leaf)}".encode())
        digest.update(np.ascontiguousarray(to_numpy(leaf)).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def joined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Returns the nested dict with the leaves of both, which have no path in common."""
    both = {name: joined(one[name], x) if name in one else x for name, x in other.items()}
    return {**one, **both}


def describe(name: str, leaf: Any) -> Leaf:
    """Describes a leaf.

    Raises:
      ValueError: if it is no array of numbers.
    """
    if _is_key(leaf):
        impl = None if isinstance(leaf, jax.ShapeDtypeStruct) else str(jax.random.key_impl(leaf))
        return Leaf(list(leaf.shape), str(leaf.dtype), impl)
    if not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    if leaf.dtype.kind in "OSUMm":
        raise ValueError(f"leaf {name!r} must be an array of numbers, got {leaf.dtype}")
    return Leaf(list(leaf.shape), str(leaf.dtype))


def num_bytes(tree: Any) -> int:
    """Returns the bytes of the arrays of a tree, or of their shapes; a typed key has 8."""
    return sum(
        math.prod(leaf.shape) * (8 if _is_key(leaf) else leaf.dtype.itemsize)
        for leaf in jax.tree.leaves(tree)
    )


def to_numpy(leaf: Any) -> np.ndarray:
    """Returns the numbers of a leaf on the host; those of a typed key are its data.

    Of one over several processes every process must ask.
    """
    return np.asarray(processes.fetch(jax.random.key_data(leaf) if _is_key(leaf) else leaf))


def stored_as(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    """Returns shape and type of what `to_numpy` makes of a leaf or of a `jax.ShapeDtypeStruct`."""
    if _is_key(leaf):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    elif not hasattr(leaf, "dtype"):
        leaf = np.asarray(leaf)
    return tuple(leaf.shape), np.dtype(leaf.dtype)


def from_numpy(array: np.ndarray, saved: Leaf, like: Any) -> Any:
    """Converts a leaf to the kind of `like`: NumPy, Python scalar, or JAX array, placed like it."""
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=saved.impl)
    if isinstance(like, np.ndarray | np.generic):
        return array
    if isinstance(like, bool | int | float):
        return type(like)(array)
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array  # int64 without x64: NumPy keeps what JAX would cut.
    # An array that JAX may place anywhere stays so: committed, it would compile everything again.
    sharding = like.sharding if getattr(like, "committed", True) else None
    return processes.put(array, sharding)


def check_alike(
    source: Any, saved: dict[str, Leaf], like: dict[str, Any], *, part: bool = False
) -> None:
    """Compares saved leaves with the expected ones; if `part`, more may have been saved.

    Raises:
      ValueError: for the first leaf that differs, with the expected and the saved description.
    """
    for name, leaf in like.items():
        expected = describe(name, leaf)
        description = saved.get(name)
        if description is None:
            raise ValueError(f"{source} has no leaf {name!r}, expected {expected}")
        if description[:2] != expected[:2]:
            raise ValueError(f"leaf {name!r} of {source} is {description}, expected {expected}")
    for name in set() if part else saved.keys() - like.keys():
        raise ValueError(f"{source} has a leaf {name!r}, {saved[name]}, that is not expected")


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
