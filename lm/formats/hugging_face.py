"""Gemma 3 as a folder of Hugging Face: config.json, safetensors in one file or in shards.

Their linear layers are [out, in], ours [in, out]; their tensors are one a layer, ours are stacked
along a layer axis (lm/gemma.py). Loading goes tensor by tensor, so that the host holds the
parameters and one stacked tensor at most.
"""

import dataclasses
import functools
import json
import logging
import math
import pathlib
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kullback.core import files, finite, json_files, mapped, trees, types
from kullback.lm import gemma, gemma_config, terms
from kullback.lm.formats import hugging_face_config, stacked_layers, tensor_files

logger = logging.getLogger(__name__)

# Of a multimodal model of transformers 4 and of 5, and of a model of text. The longer ones come
# first: the last is a part of the second.
TEXT_PREFIXES = ("language_model.model.", "model.language_model.", "model.")
# Of what reads images, see vision_files.py.
IMAGE_PREFIXES = tuple(
    before + name
    for name in ("vision_tower.", "multi_modal_projector.")
    for before in ("", "model.")
)
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # numpy's name -> safetensors'.
WIDE = "F64"  # It is read, and not written.


class Written(NamedTuple):
    """A tensor to write."""

    name: str  # In the file.
    shape: tuple[int, ...]
    dtype: Any  # NumPy's.
    read: Callable[[], np.ndarray]  # Its numbers, of that shape.


class ImageHalf(NamedTuple):
    """The rest of a folder of a model that sees, see vision_files.py."""

    fields: dict[str, Any]  # Of config.json, beside text_config.
    tensors: list[Written]
    write_files: Callable[[pathlib.Path], None]  # Writes further files into the folder.


class Report(NamedTuple):
    """Summary of the tensors in a folder."""

    num_tensors: int  # Tensors read.
    num_bytes: int  # Their size in the files.
    num_skipped: int  # Tensors of what reads images.
    dtypes: tuple[str, ...]  # Their types in the files, by safetensors' names: ("BF16",).


def load(
    folder: files.Path,
    dtype: str = "float32",
    sharding: stacked_layers.Sharding | None = None,
    storage: gemma_config.Storage = "float32",
    *,
    sees: bool = False,
) -> tuple[gemma.Config, types.Params, Report]:
    """Reads a Gemma 3, the text part of a multimodal one too.

    Args:
      folder: with config.json and model.safetensors, or shards and their index.
      dtype: "float32" or "bfloat16", of the parameters and of `Config.dtype`. To compute in
        bfloat16 with float32 parameters, replace the latter.
      sharding: path of a parameter ("periods/layer_0/attention/query") -> its sharding;
        `gemma.make(config).init` gives the shapes, `hugging_face_config.read` the config.
      storage: of the configuration: format of the matrices in memory.
      sees: whether the caller reads the other part, too: else a line says that images are ignored.

    Returns:
      The configuration, the parameters, and a summary of the tensors.

    Raises:
      ValueError: if the folder is no Gemma 3 that we can run, or a tensor is missing, unknown or
        of another shape; all of them are named.
      CorruptError: if a file cannot be read.
    """
    config = hugging_face_config.read(folder, dtype)
    config = dataclasses.replace(config, storage=storage)
    tensors, report = open_rows(folder, config, sees=sees)
    return config, stacked_layers.load(config, tensors, dtype, sharding), report


def open_rows(
    folder: files.Path, config: gemma.Config, *, sees: bool = False
) -> tuple[dict[str, stacked_layers.Rows], Report]:
    """Opens the tensors of a Gemma 3, which are memory-mapped, by transformers' names.

    Args:
      folder: as of `load`.
      config: as `hugging_face_config.read` has read it there.
      sees: as of `load`.

    Returns:
      The tensors by name, without prefix, and a summary of them.

    Raises:
      As `load`.
    """
    folder = pathlib.Path(folder)
    tensors = tensor_files.read(folder)
    text, head, num_skipped = _sort(folder, tensors)
    _check_claims(folder, config, text, tensors)
    leaves = stacked_layers.leaves(config)[0].values()
    check(folder, {name: leaf.shape for leaf in leaves for name in leaf.names}, text, tensors)
    if head is not None:
        _check_head(folder, tensors[head], tensors[text["embed_tokens.weight"]], head)
    elif not json_files.read(hugging_face_config.config_file(folder)).get(
        "tie_word_embeddings", bool, True
    ):
        raise ValueError(f"{folder}: tie_word_embeddings is false, and lm_head.weight missing")
    read = {short: tensors[name] for short, name in text.items()}
    if num_wide := sum(tensor.dtype == WIDE for tensor in read.values()):
        logger.warning(
            "%s: its tensors of float64, %d of them, are read as float32", folder, num_wide
        )
    if num_skipped and not sees:
        logger.warning(
            "%s: images are ignored: what reads them, %d of its tensors, is left out",
            folder,
            num_skipped,
        )
    report = Report(
        num_tensors=len(read),
        num_bytes=sum(tensor.data.nbytes for tensor in read.values()),
        num_skipped=num_skipped,
        dtypes=tuple(sorted({tensor.dtype for tensor in read.values()})),
    )
    return {short: rows(folder, text[short], tensor) for short, tensor in read.items()}, report


def save(
    folder: files.Path,
    config: gemma.Config,
    params: types.Params,
    tokenizer_files: Iterable[files.Path] = (),
    extra: Mapping[str, Any] | None = None,
    notice: str | None = None,
    image_half: ImageHalf | None = None,
) -> None:
    """Writes a folder that transformers loads, whole or not at all.

    It is loaded as Gemma3ForCausalLM, or with an image half as Gemma3ForConditionalGeneration.

    Args:
      folder: made here; it must not exist, or be empty.
      config: the model.
      params: as of `gemma.make(config)`, in the type in which they are to be written.
      tokenizer_files: copied under their names.
      extra: further fields of config.json; transformers keeps them.
      notice: text of the file NOTICE, see `lm/terms.py`.
      image_half: of a model that sees; `vision_files.save` gives it.

    Raises:
      ValueError: if something is in the folder, or params are not those of config or not finite.
    """
    folder = pathlib.Path(folder)
    files.check_new_folder(folder)
    leaves, like = stacked_layers.leaves(config)
    named = trees.named_leaves(params)
    wrong = sorted(set(leaves) ^ set(named))
    wrong += [p for p in leaves if p in named and named[p].shape != like[p].shape]
    wrong += [p for p in leaves if p in named and str(named[p].dtype) not in DTYPES]
    if wrong:
        raise ValueError(f"params are not those of the configuration, see {', '.join(wrong)}")
    copied = [pathlib.Path(path) for path in tokenizer_files]
    model = hugging_face_config.to_json(config, str(named["embedding"].dtype))
    prefix, others = TEXT_PREFIXES[-1], []
    if image_half is not None:
        prefix, others = TEXT_PREFIXES[0], image_half.tensors
        special = hugging_face_config.generation_to_json(config)
        model = {**image_half.fields, "text_config": model, **special}
    contents = {
        "config.json": {**model, **(extra or {})},
        "generation_config.json": hugging_face_config.generation_to_json(config),
    }
    for path in copied:
        ours = (*contents, tensor_files.WEIGHTS, tensor_files.INDEX, terms.NOTICE)
        if not path.is_file() or path.name in ours:
            raise ValueError(f"{path} must be a file of a tokenizer")
    with files.atomic_path(folder) as temporary:
        temporary.mkdir()
        for name, fields in contents.items():
            (temporary / name).write_text(json.dumps(fields, indent=2) + "\n")
        _write(temporary / tensor_files.WEIGHTS, [*_written(prefix, leaves, named), *others])
        if image_half is not None:
            image_half.write_files(temporary)
        terms.write(temporary, notice)
        for path in copied:
            shutil.copyfile(path, temporary / path.name)


def _sort(
    folder: pathlib.Path, tensors: dict[str, tensor_files.Tensor]
) -> tuple[dict[str, str], str | None, int]:
    """Sorts names: text tensors {without prefix: name}, unembedding or None, number of others."""
    text: dict[str, str] = {}
    head, num_skipped, unknown = None, 0, []
    for name in tensors:
        prefix = next((p for p in TEXT_PREFIXES if name.startswith(p)), None)
        if name.startswith(IMAGE_PREFIXES):
            num_skipped += 1
        elif name in tensor_files.HEADS:
            head = name
        elif prefix is None:
            unknown.append(name)
        elif (short := name.removeprefix(prefix)) in text:
            raise ValueError(f"{folder} has both {text[short]} and {name}")
        else:
            text[short] = name
    if unknown:
        raise ValueError(f"{folder} has unknown tensors: {tensor_files.listed(unknown)}")
    return text, head, num_skipped


def _check_claims(
    folder: pathlib.Path,
    config: gemma.Config,
    text: dict[str, str],
    tensors: dict[str, tensor_files.Tensor],
) -> None:
    """Compares what config.json says of depth and table with the tensors, before it is believed."""
    layers = {name.split(".")[1] for name in text if name.startswith("layers.")}
    file = folder / "config.json"
    if layers and config.num_layers != len(layers):
        raise ValueError(
            f"{file}: num_hidden_layers is {config.num_layers}, and the tensors are of "
            f"{len(layers)} layers"
        )
    table = tensors[text["embed_tokens.weight"]] if "embed_tokens.weight" in text else None
    if table is not None and table.shape != (config.vocab_size, config.embed_dim):
        raise ValueError(
            f"{file}: vocab_size is {config.vocab_size} and hidden_size {config.embed_dim}, and "
            f"{text['embed_tokens.weight']} is {list(table.shape)}"
        )


def check(
    folder: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Mapping[str, str],
    tensors: Mapping[str, tensor_files.Tensor],
) -> None:
    """Compares a folder's tensors with those that a configuration asks for.

    Args:
      folder: for messages.
      shapes: that are expected, by names without prefix.
      read: names without prefix -> names in the folder.
      tensors: of the folder.

    Raises:
      ValueError: for tensors that are missing, unknown, or of another shape or type.
    """
    complaints = {
        "misses tensors": sorted(set(shapes) - set(read)),
        "has unknown tensors": sorted(read[name] for name in set(read) - set(shapes)),
        "has tensors of a wrong shape": [
            f"{read[name]} {list(tensors[read[name]].shape)}, expected {list(shape)}"
            for name, shape in shapes.items()
            if name in read and tensors[read[name]].shape != shape
        ],
        "has tensors of a type that is no F64, F32, F16 or BF16": [
            f"{name} {tensors[name].dtype}"
            for name in read.values()
            if tensors[name].dtype not in (WIDE, *DTYPES.values())
        ],
    }
    faults = [
        f"{what}: {tensor_files.listed(names)}" for what, names in complaints.items() if names
    ]
    if faults:
        raise ValueError(f"{folder} {'; '.join(faults)}; is it the model of its config.json?")


def rows(folder: pathlib.Path, name: str, tensor: tensor_files.Tensor) -> stacked_layers.Rows:
    """Returns the function that reads a part of a tensor's first axis, of float64 as float32.

    The function raises ValueError for a number that float32 does not reach.
    """
    array = tensor.array
    dtype = np.float32 if tensor.dtype == WIDE else array.dtype

    def read(rows: slice) -> np.ndarray:
        stored = array[rows]
        with np.errstate(over="ignore"):
            numbers = stored.astype(dtype)
        if tensor.dtype == WIDE and np.any(np.isinf(numbers) & np.isfinite(stored)):
            raise ValueError(f"{folder}: {name} has numbers of float64 that float32 does not reach")
        mapped.release(stored)
        return numbers

    return read


def _check_head(
    folder: pathlib.Path, head: tensor_files.Tensor, embedding: tensor_files.Tensor, name: str
) -> None:
    step = 4096  # Rows at a time: the embedding is the largest tensor of all.
    if head.shape != embedding.shape or any(
        not np.array_equal(head.array[i : i + step], embedding.array[i : i + step])
        for i in range(0, embedding.shape[0], step)
    ):
        raise ValueError(f"{folder}: {name} must equal the embedding, to which Gemma 3 ties it")


def _written(
    prefix: str, leaves: Mapping[str, stacked_layers.Leaf], named: Mapping[str, Any]
) -> Iterator[Written]:
    """Yields the tensors of the decoder's parameters."""
    for ours, leaf in leaves.items():
        for i, name in enumerate(leaf.names):
            numbers = functools.partial(part_of, named[ours], leaf, i)
            yield Written(prefix + name, leaf.shape, named[ours].dtype, numbers)


def part_of(array: Any, leaf: stacked_layers.Leaf, i: int) -> np.ndarray:
    """Returns the numbers of tensor i of a parameter, as a file has them."""
    part = np.asarray(array[i] if leaf.stacked else array)
    return part.T if leaf.transposed else part


def _write(path: pathlib.Path, tensors: Sequence[Written]) -> None:
    """Writes a safetensors file one tensor after another; the library wants all in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        begin, end = end, end + math.prod(tensor.shape) * jnp.dtype(tensor.dtype).itemsize
        entry = {"dtype": DTYPES[str(tensor.dtype)], "shape": list(tensor.shape)}
        header[tensor.name] = {**entry, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # The numbers begin at a multiple of eight bytes.
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors:
            part = tensor.read()
            if not finite.is_finite(part):
                raise ValueError(
                    f"tensor {finite.describe(tensor.name, part)}: the model is not written"
                )
            file.write(np.ascontiguousarray(part).view(np.uint8).data)
