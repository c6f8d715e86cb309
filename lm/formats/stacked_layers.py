"""How files of others hold Gemma 3's parameters, and ours do.

Their linear layers are [out, in], ours [in, out]; their tensors are one a layer, ours are stacked
along a layer axis (lm/gemma.py). The names are those of transformers.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import processes, trees, types
from kullback.lm import gemma, narrow_weights, quantisation

Rows = Callable[[slice], np.ndarray]  # A part of a tensor's first axis, as numbers.
WHOLE = 1 << 26  # Bytes of a parameter that the host may hold beside its copy on a device.
_PART = 1 << 23  # Numbers that are read at once.
Sharding = Callable[[str], jax.sharding.Sharding | None]  # Of a parameter, by its path.

# Ours -> (theirs, whether it is transposed).
LAYER = {
    "attention/pre_norm": ("input_layernorm", False),
    "attention/query": ("self_attn.q_proj", True),
    "attention/key": ("self_attn.k_proj", True),
    "attention/value": ("self_attn.v_proj", True),
    "attention/query_norm": ("self_attn.q_norm", False),
    "attention/key_norm": ("self_attn.k_norm", False),
    "attention/output": ("self_attn.o_proj", True),
    "attention/post_norm": ("post_attention_layernorm", False),
    "feed_forward/pre_norm": ("pre_feedforward_layernorm", False),
    "feed_forward/gate": ("mlp.gate_proj", True),
    "feed_forward/up": ("mlp.up_proj", True),
    "feed_forward/down": ("mlp.down_proj", True),
    "feed_forward/post_norm": ("post_feedforward_layernorm", False),
}


class Leaf(NamedTuple):
    """The tensors of a file that hold one of our parameters."""

    names: list[str]  # Tensors, without prefix; in the order of the layer axis.
    shape: tuple[int, ...]  # Of each tensor in the file.
    transposed: bool
    stacked: bool


@functools.cache  # A model is traced for the shapes, and a load asks more than once.
def leaves(config: gemma.Config) -> tuple[Mapping[str, Leaf], Mapping[str, jax.ShapeDtypeStruct]]:
    """Returns every parameter by its path, as the file has it and as we have it."""
    like = trees.named_leaves(jax.eval_shape(gemma.make(config).init, jax.random.key(0)))
    leaves = {
        "embedding": Leaf(["embed_tokens.weight"], like["embedding"].shape, False, False),
        "final_norm": Leaf(["norm.weight"], like["final_norm"].shape, False, False),
    }
    first = 0
    for block, (length, depth) in config.blocks.items():
        for j in range(depth):
            for ours, (theirs, transposed) in LAYER.items():
                path = f"{block}/layer_{j}/{ours}"
                names = [f"layers.{first + p * depth + j}.{theirs}.weight" for p in range(length)]
                shape = like[path].shape[1:]
                leaves[path] = Leaf(names, shape[::-1] if transposed else shape, transposed, True)
        first += length * depth
    return leaves, like


def load(
    config: gemma.Config, tensors: Mapping[str, Rows], dtype: str, sharding: Sharding | None = None
) -> types.Params:
    """Reads all parameters, so that there is no second copy of more than `WHOLE` bytes.

    Matrices are in the format of `config.storage`, see lm/narrow_weights.py.

    Args:
      config: of the model.
      tensors: of a file, by transformers' names without prefix.
      dtype: of the parameters.
      sharding: path of a parameter ("periods/layer_0/attention/query") -> its sharding.
    """
    paths, like = leaves(config)
    named, scheme = {}, quantisation.of_storage(config.storage)
    for path, leaf in paths.items():
        rows = [tensors[name] for name in leaf.names]
        if scheme.of(tuple(path.split("/"))) is not None:
            chunks = _chunks(leaf, rows)
            named[path] = narrow_weights.read(path, like[path].shape, chunks, scheme)
            continue
        shape = jax.ShapeDtypeStruct(like[path].shape, jnp.dtype(dtype))
        place = sharding(path) if sharding else None
        if trees.num_bytes(shape) > WHOLE:
            array = _read_in_place(leaf, rows, shape, place)
        else:
            array = processes.put(read(leaf, rows, shape), place)
        named[path] = jax.block_until_ready(array)  # Or several host copies would be alive.
    return nest(named)


def _read_in_place(
    leaf: Leaf,
    tensors: Sequence[Rows],
    like: jax.ShapeDtypeStruct,
    place: jax.sharding.Sharding | None,
) -> jax.Array:
    """Reads a large parameter into an array of JAX, which a learner may then give away."""
    array = jnp.zeros(like.shape, like.dtype, device=place)
    placed = jax.jit(_placed, donate_argnums=0, out_shardings=place)
    for at, numbers in _parts(leaf, tensors):
        array = placed(array, numbers, np.array(at, np.int32))
    return array


def _placed(array: jax.Array, part: jax.Array, at: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice(array, part.astype(array.dtype), at)


def of_params(config: gemma.Config, params: types.Params) -> dict[str, Rows]:
    """Returns the tensors of a file that parameters are written as, by transformers' names.

    Args:
      config: of the model.
      params: as of `gemma.make(config)`, of any floating type.
    """
    named = trees.named_leaves(params)
    tensors: dict[str, Rows] = {}
    for path, leaf in leaves(config)[0].items():
        array = np.asarray(named[path])
        for name, part in zip(leaf.names, array if leaf.stacked else array[None], strict=True):
            tensors[name] = functools.partial(_rows, part.T if leaf.transposed else part)
    return tensors


def _rows(array: np.ndarray, part: slice) -> np.ndarray:
    return array[part]


def read(leaf: Leaf, tensors: Sequence[Rows], like: jax.ShapeDtypeStruct) -> np.ndarray:
    """Reads the numbers of one parameter.

    Args:
      leaf: which it is.
      tensors: of the file, in the order of `leaf.names`.
      like: its shape and type.
    """
    target = np.empty(like.shape, like.dtype)
    for at, numbers in _parts(leaf, tensors):
        target[tuple(map(slice, at, np.add(at, numbers.shape)))] = numbers
    return target


def _chunks(leaf: Leaf, tensors: Sequence[Rows]) -> Iterator[np.ndarray]:
    """Yields a parameter's numbers along its first axis: a layer, or some rows, at a time."""
    if not leaf.stacked:
        yield from (numbers for _, numbers in _parts(leaf, tensors))
        return
    shape = leaf.shape[::-1] if leaf.transposed else leaf.shape
    for rows in tensors:
        yield read(leaf, [rows], jax.ShapeDtypeStruct((1, *shape), jnp.float32))


def _parts(leaf: Leaf, tensors: Sequence[Rows]) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Yields parts of a parameter's numbers, and the index where each begins."""
    num_rows, rest = leaf.shape[0], leaf.shape[1:]
    step = max(1, _PART // max(1, math.prod(rest)))
    for i, rows in enumerate(tensors):
        for row in range(0, num_rows, step):
            numbers = rows(slice(row, min(row + step, num_rows)))
            at = (row, *(0 for _ in rest))
            if leaf.transposed:
                numbers, at = numbers.T, at[::-1]
            yield ((i, *at), numbers[None]) if leaf.stacked else (at, numbers)


def nest(named: Mapping[str, Any]) -> dict[str, Any]:
    """Nests a tree by the slashes of its names: {"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in named.items():
        *parents, last = path.split("/")
        at = tree
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = leaf
    return tree
