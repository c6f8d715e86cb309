"""Tensors in files of safetensors, which other programs and libraries read and write too."""

import json
import math
import pathlib
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from kullback.core import files, folders, json_files, mapped, trees

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# safetensors' name -> NumPy's; other types, such as those below a byte, are read as bytes.
_DTYPES = {
    **FLOATS,
    "BOOL": "bool",
    "C64": "complex64",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
_NAMES = {numpy: name for name, numpy in _DTYPES.items()}
_CHUNK = 1 << 23  # Numbers that are read at once.
_ALIGNMENT = 64  # Bytes: JAX uses memory as it is on a CPU if it begins at a multiple of them.


class Tensor(NamedTuple):
    """A tensor of a file that is memory-mapped: its numbers are read when they are used."""

    file: str  # Name of the file, without its folder.
    dtype: str  # safetensors' name, "BF16".
    shape: tuple[int, ...]
    data: np.ndarray  # Flat; uint8 for a type that we have none for.

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    @property
    def array(self) -> np.ndarray:
        """The numbers in their shape."""
        return self.data.reshape(self.shape)

    def of_rows(self, count: int) -> "Tensor":
        """Returns the first rows of it."""
        data = self.data[: count * math.prod(self.shape[1:])]
        return self._replace(shape=(count, *self.shape[1:]), data=data)


def read(path: files.Path, *, writable: bool = False) -> dict[str, Tensor]:
    """Returns the tensors of a file by name, memory-mapped.

    Its header is checked against the length of the file before it is used.

    Args:
      path: of the file.
      writable: whether the numbers may be written to, in memory: the file keeps its own.

    Raises:
      CorruptError: if it is no whole file of safetensors.
    """
    path = pathlib.Path(path)
    folders.check_regular(path)
    try:
        with safetensors.safe_open(path, "np"):  # It checks the header: offsets, sizes, overlaps.
            memory = mapped.open_bytes(path, writable=writable)
    except safetensors.SafetensorError as error:
        with path.open("rb") as file:
            is_pointer = file.read(len(json_files.LFS)) == json_files.LFS.encode()
        reason = "it is a git-lfs pointer, fetch the file by git lfs pull" if is_pointer else error
        raise files.CorruptError(f"{path} cannot be read as safetensors ({reason})") from None
    begin = 8 + struct.unpack("<Q", memory[:8].tobytes())[0]
    try:
        header = json_files.parse(memory[8:begin].tobytes(), f"{path}, its header")
        return {
            name: _tensor(path.name, header.record(name), memory[begin:])
            for name, _ in header.items()
            if name != "__metadata__"
        }
    except ValueError as error:
        raise files.CorruptError(str(error)) from error


def _tensor(file: str, entry: json_files.Record, data: np.ndarray) -> Tensor:
    """Returns a tensor as the header of a file describes it; `data` is what follows the header."""
    name = entry.keys[-1]
    if not name.isprintable():
        raise ValueError(f"{entry.file}: a tensor's name must be printable, got {name!a}")
    begin, end = entry.list_of("data_offsets", int)
    dtype, shape = entry.get("dtype", str), tuple(entry.list_of("shape", int))
    numbers = data[begin:end].view(jnp.dtype(_DTYPES.get(dtype, "uint8")))
    if dtype in _DTYPES and numbers.size != math.prod(shape):
        raise entry.error("shape", f"of {numbers.size} numbers, as there are")
    if math.prod(n for n in shape if n) * numbers.itemsize >= 2**63:  # With a 0 among them.
        raise entry.error("shape", "one that an array may have")
    return Tensor(file, dtype, shape, numbers)


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
    """Reads parameters as `export_params` wrote them.

    Args:
      path: the file.
      like: tree of arrays or `jax.ShapeDtypeStruct`s that gives structure, shapes and dtypes.

    Raises:
      ValueError: if the file cannot be read, or a leaf differs from `like`.
    """
    arrays = checked(path, like)
    named = trees.named_leaves(like)
    leaves = [
        trees.from_numpy(arrays[name], trees.describe(name, arrays[name]), leaf)
        for name, leaf in named.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def write_ready(path: files.Path, like: Any, read: Callable[[str], Any]) -> None:
    """Writes parameters one after another, as `ready_params` has no need to copy them.

    The file is one of safetensors, with names as those of `export_params`.

    Args:
      path: of the file.
      like: tree of arrays or `jax.ShapeDtypeStruct`s.
      read: returns a leaf by its name; it is called once for each, so that one is in memory.
    """
    entries, end = {}, 0
    named = trees.named_leaves(like)
    for name, leaf in named.items():
        begin, end = end, end + trees.num_bytes(leaf)
        entry = {"dtype": _NAMES[str(leaf.dtype)], "shape": list(leaf.shape)}
        entries[name] = {**entry, "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    header += b" " * (-(8 + len(header)) % _ALIGNMENT)
    with files.naming(path), open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name in named:
            numbers = np.ascontiguousarray(trees.to_numpy(read(name)))
            file.write(numbers.reshape(-1).view(np.uint8).data)


def ready_params(path: files.Path, like: Any) -> Any:
    """Returns parameters as `write_ready` wrote them.

    On a CPU they are the file's own pages, read when they are first used.

    Args:
      path: of the file, which is not to be changed, only replaced, while they are in use.
      like: as for `import_params`.

    Raises:
      ValueError: if the file cannot be read, or a leaf differs from `like`.
    """
    # A learner may write to its parameters.
    tensors, named = _alike(path, like, writable=True), trees.named_leaves(like)
    leaves = [
        trees.from_numpy(tensors[name].array, trees.describe(name, leaf), leaf)
        for name, leaf in named.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def chunks(path: files.Path, like: Any) -> dict[str, Iterator[np.ndarray]]:
    """Returns parameters as `write_ready` wrote them, by name, in pieces along their first axis.

    Pages of the file that were read are given back.

    Args:
      path: of the file.
      like: as for `import_params`.

    Raises:
      ValueError: as of `ready_params`.
    """
    return {name: _chunks(tensor.array) for name, tensor in _alike(path, like).items()}


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    step = max(1, _CHUNK // max(1, math.prod(array.shape[1:])))
    for start in range(0, len(array), step):
        yield array[start : start + step]
        mapped.release(array[start : start + step])


def checked(path: files.Path, like: Any) -> dict[str, np.ndarray]:
    """Reads the arrays of a file by name, which must be the leaves of a tree.

    Args:
      path: the file.
      like: as for `import_params`.

    Raises:
      ValueError: if the file cannot be read, or a leaf differs from `like`.
    """
    return {name: np.array(tensor.array) for name, tensor in _alike(path, like).items()}


def _alike(path: files.Path, like: Any, *, writable: bool = False) -> dict[str, Tensor]:
    """Opens the tensors of a file, which must be the leaves of a tree."""
    tensors = read(path, writable=writable)
    saved = {
        name: trees.Leaf(list(tensor.shape), str(tensor.data.dtype))
        for name, tensor in tensors.items()
    }
    trees.check_alike(path, saved, trees.named_leaves(like))
    return tensors
