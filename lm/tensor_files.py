"""Folders of safetensors as Hugging Face has them: memory-mapped, and written at known offsets."""

import itertools
import json
import math
import os
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from kullback.core import files
from kullback.lm import hugging_face, hugging_face_config

FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
TABLES = ("embed_tokens.weight", *hugging_face.HEADS)  # Their rows are tokens, and padding.
_CHUNK = 1 << 22  # Bytes compared at once.
# Bytes written at once. For more, file systems take pages of up to 4 MB, which a virtual machine
# often has to ask of its host: 1.3 s in place of 0.33 for 1.1 GB.
_PIECE = 1 << 19


class Tensor(NamedTuple):
    """A tensor of a folder, in a file that is memory-mapped."""

    file: str
    dtype: str  # safetensors' name.
    shape: tuple[int, ...]
    data: np.ndarray  # Flat; uint8 for what is no floating type of ours.

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    def of_rows(self, count: int) -> "Tensor":
        """The first rows of it."""
        data = self.data[: count * math.prod(self.shape[1:])]
        return self._replace(shape=(count, *self.shape[1:]), data=data)


def open_folder(folder: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a folder by name, without an unembedding that is tied to the embedding.

    Args:
      folder: with model.safetensors, or shards and their index.

    Raises:
      ValueError: if a file or a tensor is missing.
      CorruptError: if a file cannot be read.
    """
    index, where = folder / hugging_face.INDEX, None
    shards = [hugging_face.WEIGHTS]
    if index.is_file():
        where = hugging_face_config.read_json(index).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise ValueError(f"{index} must have a weight_map of tensor -> file")
        shards = sorted(set(where.values()))
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        path = folder / shard
        if pathlib.Path(shard).name != shard or not path.is_file():
            raise ValueError(
                f"{path} is missing: expected {hugging_face.WEIGHTS}, or shards and their index"
            )
        for name, tensor in _map(path).items():
            if where is not None and where.get(name) != shard:
                raise ValueError(f"{path} has {name}, which {index} has in {where.get(name)}")
            tensors[name] = tensor
    if where is not None and (lost := sorted(set(where) - set(tensors))):
        raise ValueError(f"{index} names {lost[0]!r}, which is in no file")
    return _without_tied_head(folder, tensors)


def _map(path: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a file, memory-mapped."""
    try:
        with safetensors.safe_open(path, "np"):  # It checks the header against the size.
            memory = np.memmap(path, np.uint8, "r").view(np.ndarray)
    except safetensors.SafetensorError as error:
        raise files.CorruptError(f"{path} cannot be read as safetensors ({error})") from error
    (length,) = struct.unpack("<Q", memory[:8].tobytes())
    header = json.loads(memory[8 : 8 + length].tobytes())
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            data = memory[begin:end].view(jnp.dtype(FLOATS.get(entry["dtype"], "uint8")))
            found[name] = Tensor(path.name, entry["dtype"], tuple(entry["shape"]), data)
    return found


def _without_tied_head(folder: pathlib.Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    head = next((name for name in hugging_face.HEADS if name in tensors), None)
    embeddings = [name for name in tensors if name.endswith("embed_tokens.weight")]
    if head is None or len(embeddings) != 1:
        return tensors
    path = folder / "config.json"
    config = hugging_face_config.read_json(path) if path.exists() else {}
    is_gemma = str(config.get("model_type")).startswith("gemma")  # Tied, unless said otherwise.
    if not config.get("tie_word_embeddings", is_gemma):
        return tensors
    if not equal(tensors[head], tensors[embeddings[0]]):
        raise ValueError(f"{folder}: {head} must equal {embeddings[0]}, to which it is tied")
    return {name: tensor for name, tensor in tensors.items() if name != head}


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bytes."""
    if one[1:3] != other[1:3]:
        return False
    both = [tensor.data.view(np.uint8) for tensor in (one, other)]
    starts = range(0, len(both[0]), _CHUNK)
    return all(np.array_equal(both[0][i : i + _CHUNK], both[1][i : i + _CHUNK]) for i in starts)


def check_alike(
    names: Sequence[str], opened: Sequence[dict[str, Tensor]], *, padded: bool = False
) -> None:
    """Refuses models of which a tensor differs in name, type or shape, or is no float and differs.

    Args:
      names: of the models, as messages call them.
      opened: tensors of each.
      padded: whether tables of tokens may have other numbers of rows.

    Raises:
      ValueError: for the first of them.
    """
    first = opened[0]
    for folder, tensors in zip(names[1:], opened[1:], strict=True):
        for name in (*first, *(name for name in tensors if name not in first)):
            one, other = first.get(name), tensors.get(name)
            if padded and one and other and name.endswith(TABLES):
                one, other = (tensor.of_rows(1) for tensor in (one, other))
            if one is None or other is None or one[1:3] != other[1:3]:
                raise ValueError(
                    f"tensor {name!r} is {one or 'missing'} in {names[0]} and "
                    f"{other or 'missing'} in {folder}; models must have the same shapes and types"
                )
            if one.dtype not in FLOATS and not equal(one, other):
                raise ValueError(
                    f"tensor {name!r}, {one}, differs between {names[0]} and {folder}; of what "
                    f"is none of {', '.join(FLOATS)} there is no average"
                )


def header(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, int]]:
    """What a file of these tensors, in this order, begins with, and where each begins in it."""
    ends = list(itertools.accumulate(tensor.data.nbytes for tensor in tensors.values()))
    begins = dict(zip(tensors, [0, *ends[:-1]], strict=True))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for (name, tensor), end in zip(tensors.items(), ends, strict=True):
        entry = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
        entries[name] = {**entry, "data_offsets": [begins[name], end]}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # The numbers begin at a multiple of eight bytes.
    return struct.pack("<Q", len(text)) + text, {n: 8 + len(text) + b for n, b in begins.items()}


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Writes all of `data` at an offset of a file; threads may do so at the same time."""
    while data:  # A disk that is full takes a part first, and raises then.
        written = os.pwrite(descriptor, data[:_PIECE], offset)
        data, offset = data[written:], offset + written


def write_index(folder: pathlib.Path, tensors: dict[str, Tensor], num_bytes: int) -> None:
    """Writes the index of a folder of shards; one whose file is model.safetensors has none."""
    where = {name: tensor.file for name, tensor in tensors.items()}
    if set(where.values()) != {hugging_face.WEIGHTS}:
        index = {"metadata": {"total_size": num_bytes}, "weight_map": where}
        (folder / hugging_face.INDEX).write_text(json.dumps(index, indent=2) + "\n")
