"""How files of others hold Gemma 3's parameters, and ours do.

Their linear layers are [out, in], ours [in, out]; their tensors are one a layer, ours are stacked
along a layer axis (lm/gemma.py). The names are those of transformers.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kullback.core import trees
from kullback.lm import gemma

Rows = Callable[[slice], np.ndarray]  # A part of a tensor's first axis, as numbers.

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


def leaves(config: gemma.Config) -> tuple[dict[str, Leaf], dict[str, jax.ShapeDtypeStruct]]:
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


def read(leaf: Leaf, tensors: Sequence[Rows], like: jax.ShapeDtypeStruct, dtype: str) -> np.ndarray:
    """Reads the numbers of one parameter.

    Args:
      leaf: which it is.
      tensors: of the file, in the order of `leaf.names`.
      like: its shape.
      dtype: in which it is returned.
    """
    target = np.empty(like.shape, jax.numpy.dtype(dtype))
    for i, rows in enumerate(tensors):
        part = target[i] if leaf.stacked else target
        step = max(1, (1 << 24) // max(1, math.prod(leaf.shape[1:])))  # No second copy of all.
        for row in range(0, leaf.shape[0], step):
            numbers = rows(slice(row, row + step))
            if leaf.transposed:
                part[:, row : row + step] = numbers.T
            else:
                part[row : row + step] = numbers
    return target


def nest(named: dict[str, Any]) -> dict[str, Any]:
    """Nests a tree by the slashes of its names: {"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, leaf in named.items():
        *parents, last = path.split("/")
        at = tree
        for name in parents:
            at = at.setdefault(name, {})
        at[last] = leaf
    return tree
