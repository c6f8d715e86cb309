"""Parameters alone, as safetensors: what other programs and libraries read."""

from typing import Any

import jax
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from kullback.core import files, trees


def export_params(path: files.Path, params: Any) -> None:
    """Writes parameters with flattened names, "module/w", whole or not at all."""
    # safetensors writes memory as it lies: a transposed view would come back scrambled.
    arrays = {
        name: np.asarray(trees.to_numpy(leaf), order="C")
        for name, leaf in trees.named_leaves(params).items()
    }
    with files.atomic_path(path) as temporary:
        safetensors_numpy.save_file(arrays, temporary)


def import_params(path: files.Path, like: Any) -> Any:
    """Parameters as `export_params` wrote them.

    Args:
      path: the file.
      like: tree of arrays or `jax.ShapeDtypeStruct`s that gives structure, shapes and dtypes.

    Raises:
      ValueError: if the file cannot be read, or a leaf differs from `like`.
    """
    try:
        arrays = safetensors_numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise files.CorruptError(f"{path} cannot be read as safetensors ({error})") from error
    saved = {name: trees.describe(name, array) for name, array in arrays.items()}
    named = trees.named_leaves(like)
    trees.check_alike(path, saved, named)
    leaves = [trees.from_numpy(arrays[name], saved[name], leaf) for name, leaf in named.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
