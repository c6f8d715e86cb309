"""Folders of safetensors as Hugging Face has them: memory-mapped, and written at known offsets."""

import itertools
import json
import logging
import os
import pathlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kullback.core import folders, json_files, weights
from kullback.core.weights import FLOATS as FLOATS
from kullback.core.weights import Tensor as Tensor

logger = logging.getLogger(__name__)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADS = ("lm_head.weight", "language_model.lm_head.weight")
TABLES = ("embed_tokens.weight", *HEADS)  # Their rows are tokens, and padding.
_CHUNK = 1 << 22  # Bytes compared at once.
# Bytes written at once. For more, file systems take pages of up to 4 MB, which a virtual machine
# often has to ask of its host: 1.3 s in place of 0.33 for 1.1 GB.
_PIECE = 1 << 19


def open_folder(folder: pathlib.Path) -> dict[str, Tensor]:
    """Opens the tensors of a folder by name, leaving out an unembedding tied to the embedding.

    Args:
      folder: with model.safetensors, or shards and their index.

    Raises:
      ValueError: if a file or a tensor is missing, or a file is not in the folder.
      CorruptError: if a file cannot be read.
    """
    return _without_tied_head(folder, read(folder))


def read(folder: pathlib.Path) -> dict[str, Tensor]:
    """Opens all tensors of a folder by name; otherwise as `open_folder`."""
    paths = folders.present(folder, (INDEX,))
    if INDEX not in paths:
        if not os.path.lexists(folder / WEIGHTS):
            raise ValueError(
                f"{folder / WEIGHTS} is missing: expected {WEIGHTS}, or shards and their index"
            )
        return weights.read(folders.inside(folder, WEIGHTS))
    index = json_files.read(paths[INDEX])
    where = index.record("weight_map").each(str)
    if not where:
        raise index.error("weight_map", "of tensor -> file")
    shards = sorted(set(where.values()))
    for shard in shards:  # A merge writes a file under each of these names.
        if pathlib.PurePosixPath(shard).suffix != ".safetensors":
            raise ValueError(
                f"{index.file}: weight_map must name files of .safetensors, got "
                f"{json_files.shown(shard)}"
            )
    paths = {name: folders.inside(folder, name, named_by=index.file) for name in shards}
    tensors: dict[str, Tensor] = {}
    for shard, path in paths.items():
        for name, tensor in weights.read(path).items():
            if where.get(name) != shard:
                raise ValueError(f"{path} has {name}, which {index.file} has in {where.get(name)}")
            tensors[name] = tensor._replace(file=shard)
    if lost := sorted(set(where) - set(tensors)):
        raise ValueError(f"{index.file} names tensors that are in no file: {listed(lost)}")
    metadata = index.record("metadata", None)
    total = None if metadata is None else metadata.get("total_size", (int, float), None)
    num_bytes = sum(tensor.data.nbytes for tensor in tensors.values())
    if total is not None and total != num_bytes:  # Other readers do not check it.
        logger.warning(
            "%s: total_size is %s, the files have %s bytes", index.file, total, num_bytes
        )
    return tensors


def listed(names: Sequence[str], most: int = 20) -> str:
    """Returns names for a message, the first of them if there are many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    shown = [name if name.isprintable() else ascii(name) for name in names[:most]]
    return ", ".join(shown) + rest


def _without_tied_head(folder: pathlib.Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    head = next((name for name in HEADS if name in tensors), None)
    embeddings = [name for name in tensors if name.endswith("embed_tokens.weight")]
    if head is None or len(embeddings) != 1:
        return tensors
    path = folders.present(folder, ("config.json",)).get("config.json")
    config = json_files.Record("", (), {}) if path is None else json_files.read(path)
    # Gemma's are tied by default.
    is_gemma = config.get("model_type", str, "").startswith("gemma")
    if not config.get("tie_word_embeddings", bool, is_gemma):
        return tensors
    if not equal(tensors[head], tensors[embeddings[0]]):
        raise ValueError(f"{folder}: {head} must equal {embeddings[0]}, to which it is tied")
    return {name: tensor for name, tensor in tensors.items() if name != head}


def equal(first: Tensor, second: Tensor) -> bool:
    """Returns whether two tensors have the same bytes."""
    if first[1:3] != second[1:3]:
        return False
    both = [tensor.data.view(np.uint8) for tensor in (first, second)]
    starts = range(0, len(both[0]), _CHUNK)
    return all(np.array_equal(both[0][i : i + _CHUNK], both[1][i : i + _CHUNK]) for i in starts)


def check_alike(
    names: Sequence[str], opened: Sequence[dict[str, Tensor]], *, padded: bool = False
) -> None:
    """Refuses models whose tensors differ in name, type or shape, or in value if not floats.

    Args:
      names: of the models, for messages.
      opened: tensors of each model.
      padded: whether tables of tokens may have different numbers of rows.

    Raises:
      ValueError: for the first tensor that differs.
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
    """Returns the safetensors header of these tensors, and the byte offset of each."""
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
    while data:  # A full disk takes a part first, and then raises.
        written = os.pwrite(descriptor, data[:_PIECE], offset)
        data, offset = data[written:], offset + written


def write_index(folder: pathlib.Path, tensors: dict[str, Tensor], num_bytes: int) -> None:
    """Writes the index of a folder of shards; one whose file is model.safetensors has none."""
    where = {name: tensor.file for name, tensor in tensors.items()}
    if set(where.values()) != {WEIGHTS}:
        index = {"metadata": {"total_size": num_bytes}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
