"""Gemma 3 written as a GGUF file, which llama.cpp, and what is built on it, runs.

The names and keys are those of llama.cpp's converter. Norms are stored as 1 + w, in float32, as all
vectors are. Rows of the table beyond the tokenizer's ids are left out: llama.cpp would sample them.
In a file of 4 bits the table has 8, as it is the unembedding too.

A plan is computed of shapes and tokenizer alone, and has the size of the file; then tensors are
read, quantised (by the package `gguf`) and written in parts, so that the model may be larger than
the memory.

R rows, C columns: a tensor is [R, C] as in torch, [out, in], or [C].
"""

import dataclasses
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from kullback.core import files, finite, json_files
from kullback.lm import gemma, terms, tokenizer
from kullback.lm.formats import gguf_files, gguf_gemma, gguf_pieces, stacked_layers

ALIGNMENT = 32  # Bytes; the default of the format.
# Types of the matrices by the name of what a user asks for; the table's, if it is another one.
_KINDS = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
_TABLE_KINDS = {"q4_0": "Q8_0"}
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "q4_0": 2}  # llama.cpp's numbers.
QUANTIZATIONS = (*_KINDS,)
# Beyond, float16 numbers, or the float16 scales of blocks, overflow.
_LARGEST = {"F32": math.inf, "F16": 65_504.0, "Q8_0": 127 * 65_504.0, "Q4_0": 8 * 65_504.0}
_PART = 1 << 22  # Numbers that are quantised at once.
_GROUP = 1 << 14  # Numbers of a row that is quantised: `gguf` takes sixteen rows at once.
_COMPUTATION = ("dtype", "remat")  # Fields of a configuration that no file has.
_TABLE, _LAST = "embed_tokens.weight", "norm.weight"


class Tensor(NamedTuple):
    """A tensor of the file that is to be written."""

    name: str  # llama.cpp's.
    source: str  # transformers' name, without prefix.
    kind: str  # "Q8_0".
    shape: tuple[int, ...]  # [R, C] or [C].
    num_bytes: int


class Plan(NamedTuple):
    """A file that is to be written, but for the numbers."""

    head: bytes  # All that comes before the tensors, with its padding.
    tensors: tuple[Tensor, ...]  # In the order of the file.

    @property
    def num_bytes(self) -> int:
        """Size of the file, bytes."""
        return len(self.head) + sum(t.num_bytes + -t.num_bytes % ALIGNMENT for t in self.tensors)


def plan(
    config: gemma.Config,
    source: tokenizer.Tokenizer,
    quantization: str,
    *,
    name: str,
    divergence: str = "kl",
    notice: str | None = None,
) -> Plan:
    """Returns what a model's file will be; no weights are read.

    Args:
      config: the model; its `eos_ids` are all ids that end a text.
      source: its tokenizer.
      quantization: of its matrices, one of QUANTIZATIONS.
      name: of the model, for readers.
      divergence: f of its softargmax_f, noted for ourselves; other programs take the softmax.
      notice: that copies of the weights carry, see lm/terms.py.

    Raises:
      ValueError: if llama.cpp computes another function of such weights, or has no such tokenizer.
    """
    if quantization not in QUANTIZATIONS:
        raise ValueError(
            f"quantization must be one of {', '.join(QUANTIZATIONS)}, got {quantization!r}"
        )
    num_ids = min(config.vocab_size, source.vocab_size)
    ends = tuple(i for i in config.eos_ids if i < num_ids)
    vocabulary = gguf_pieces.metadata(source, config.vocab_size, ends)
    config = dataclasses.replace(
        config, vocab_size=num_ids, bos_id=source.bos_id, eos_ids=ends, pad_id=source.pad_id
    )
    tensors = _tensors(config, quantization)
    values = {
        "general.architecture": gguf_gemma.ARCHITECTURE,
        "general.type": "model",
        "general.name": name,
        "general.file_type": FILE_TYPES[quantization],
        "general.quantization_version": 2,
        **({} if divergence == "kl" else {gguf_gemma.DIVERGENCE: divergence}),
        **terms.metadata(notice),
        **{f"{gguf_gemma.ARCHITECTURE}.{key}": value for key, value in _shape(config).items()},
        **vocabulary,
    }
    _check_meaning(config, values, tensors)
    return Plan(head(values, tensors), tensors)


def write(path: files.Path, plan: Plan, tensors: Mapping[str, stacked_layers.Rows]) -> None:
    """Writes a file, whole or not at all.

    Args:
      path: new.
      plan: of the file.
      tensors: the model's, by transformers' names without prefix; of any floating type.

    Raises:
      ValueError: if something is there, the disk has no room, or a tensor has numbers that are not
        finite or too large for their type.
    """
    files.check_new_file(path)
    files.require_disk(path, plan.num_bytes, "weights in GGUF")
    with files.atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(plan.head)
        for tensor in plan.tensors:
            for part in _parts(tensor.shape):
                file.write(_encoded(tensor, tensors[tensor.source](part)).data)
            file.write(bytes(-tensor.num_bytes % ALIGNMENT))


def _tensors(config: gemma.Config, quantization: str) -> tuple[Tensor, ...]:
    """Returns the tensors, layer by layer."""
    import gguf

    leaves, _ = stacked_layers.leaves(config)
    shapes = {name: leaf.shape for leaf in leaves.values() for name in leaf.names}
    result = []
    for source, shape in sorted(shapes.items(), key=lambda item: _place(item[0])):
        num_axes = len(shape)
        kind = _KINDS[quantization] if num_axes > 1 else "F32"
        if source == _TABLE:
            kind = _TABLE_KINDS.get(quantization, kind)
        name = gguf_gemma.llama_name(source)
        block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        if shape[-1] % block:
            raise ValueError(
                f"{quantization} takes rows of a multiple of {block} numbers, and {name} has "
                f"{shape[-1]}; write it by --quantize f16"
            )
        result.append(planned(name, source, kind, shape))
    return tuple(result)


def planned(name: str, source: str, kind: str, shape: tuple[int, ...]) -> Tensor:
    """Returns a tensor that is to be written, whose rows are whole blocks of its kind."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return Tensor(name, source, kind, shape, math.prod(shape) // block * size)


def _place(source: str) -> tuple[int, str]:
    """Returns a key by which tensors are in the order in which they are used."""
    if source in (_TABLE, _LAST):
        return (-1 if source == _TABLE else 1 << 31), source
    return int(source.split(".")[1]), source


def _shape(config: gemma.Config) -> dict[str, Any]:
    """Returns the keys of a model's shape, without the architecture's name.

    Those that older versions of llama.cpp do not read are there where they differ from what these
    take for granted.
    """
    values: dict[str, Any] = {
        "context_length": config.context_length,
        "embedding_length": config.embed_dim,
        "block_count": config.num_layers,
        "feed_forward_length": config.hidden_dim,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_epsilon),
        "attention.sliding_window": config.window,
        "rope.freq_base": float(config.global_rope_theta),
    }
    if config.global_rope_factor != 1:
        values["rope.scaling.type"] = "linear"
        values["rope.scaling.factor"] = float(config.global_rope_factor)
    if config.pattern != gguf_gemma.PATTERN:
        values["attention.sliding_window_pattern"] = config.pattern
    if config.local_rope_theta != gguf_gemma.LOCAL_ROPE_THETA:
        values["rope.freq_base_swa"] = float(config.local_rope_theta)
    return values


def _check_meaning(
    config: gemma.Config, values: Mapping[str, Any], tensors: tuple[Tensor, ...]
) -> None:
    """Reads the model's shape as llama.cpp does, and compares it with what was meant."""
    nothing = np.empty(0, np.uint8)
    described = {t.name: gguf_files.Tensor(t.name, t.kind, t.shape, nothing) for t in tensors}
    record = json_files.Record("the file", (), values)
    read = gguf_gemma.read_config(gguf_files.File(record, described))
    for field in dataclasses.fields(config):
        ours, theirs = getattr(config, field.name), getattr(read, field.name)
        if field.name == "eos_ids":
            ours, theirs = set(ours), set(theirs)
        elif isinstance(theirs, float):  # Which are of 32 bits in a file.
            ours, theirs = np.float32(ours), np.float32(theirs)
        if field.name not in _COMPUTATION and ours != theirs:
            raise ValueError(
                f"llama.cpp's {gguf_gemma.ARCHITECTURE} takes {field.name}={theirs} for such a "
                f"model, which has {ours}; keep to --format hugging-face"
            )


def head(values: Mapping[str, Any], tensors: tuple[Tensor, ...]) -> bytes:
    """Returns header, metadata and descriptions of the tensors, padded.

    Args:
      values: of the metadata; `general.architecture` is the first.
      tensors: in the order of the file.
    """
    import gguf

    writer: Any = gguf.GGUFWriter(None, values["general.architecture"])  # It adds this.
    for key, value in values.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, _value_type(value))
    for described in tensors:
        kind = gguf.GGMLQuantizationType[described.kind]
        numbers = np.dtype(np.float32)
        writer.add_tensor_info(described.name, described.shape, numbers, described.num_bytes, kind)
    memory = io.BytesIO()
    writer.fout, writer.state = [memory], gguf.gguf_writer.WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    head = memory.getvalue()
    return head + bytes(-len(head) % ALIGNMENT)


def _value_type(value: Any) -> Any:
    """Returns the type in which a value of the metadata is written."""
    import gguf

    types = gguf.GGUFValueType
    by_class = {bool: types.BOOL, int: types.UINT32, float: types.FLOAT32, str: types.STRING}
    return by_class.get(type(value), types.ARRAY)


def _parts(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yields parts of a first axis of about `_PART` numbers; a vector is one."""
    num_rows, width = shape[0], math.prod(shape[1:])
    step = max(1, _PART // width) if shape[1:] else num_rows
    for begin in range(0, num_rows, step):
        yield slice(begin, min(begin + step, num_rows))


def _encoded(tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    """Returns a part of a tensor as the file has it, bytes."""
    import gguf

    numbers = np.ascontiguousarray(numbers, np.float32)
    if not finite.is_finite(numbers):
        where = finite.describe(tensor.name, numbers)
        raise ValueError(f"tensor {where}: the model is not written")
    if gguf_gemma.is_norm(tensor.name):
        numbers = numbers + 1
    if (largest := float(np.abs(numbers).max())) > _LARGEST[tensor.kind]:
        raise ValueError(
            f"tensor {tensor.name} has a number of size {largest:.3g}, and {tensor.kind} none "
            f"above {_LARGEST[tensor.kind]:.3g}; write it by --quantize f32"
        )
    # Blocks lie in one piece, so the rows that `gguf` sees may be of another length.
    rows = numbers.reshape(-1, math.gcd(numbers.size, _GROUP)) if numbers.ndim > 1 else numbers
    with np.errstate(all="ignore"):  # The smallest numbers become 0.
        coded = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[tensor.kind])
    return coded.reshape(-1).view(np.uint8)
