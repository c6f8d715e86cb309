"""Gemma 3 in a GGUF file, as llama.cpp's converter writes it, quantised or not.

What such a file leaves to llama.cpp (how queries are scaled, which layers are global) is as
there. Norms are stored as 1 + w. Numbers become float32: those of 4 to 8 bits are products of two,
which bfloat16 does not hold.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from kullback.core import files, json_files, regularizers, types
from kullback.lm import gemma, gemma_config
from kullback.lm.formats import gguf_files, hugging_face, stacked_layers, tensor_files

ARCHITECTURE = "gemma3"
DIVERGENCE = "kullback.divergence"  # Our own key, of f of the model's softargmax_f.
# llama.cpp's name -> transformers'.
_OUTER = {"token_embd": "embed_tokens", "output_norm": "norm"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
PATTERN, LOCAL_ROPE_THETA = 6, 10_000.0  # Of llama.cpp, where the file says nothing.
_LAYERS_OF_27B = 62  # llama.cpp knows the 27B by it, whose queries are scaled otherwise.
# Ends of a text, of a turn and of a message, with what an absent one is.
_ENDS = {"eos": 1, "eot": None, "eom": None}
# Keys of what our model does not do, with the value that means that it is not done.
_FIXED = {
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "attention.causal": True,
    "attention.output_scale": 0.0,
}


def load(
    file: gguf_files.File,
    dtype: str = "float32",
    sharding: stacked_layers.Sharding | None = None,
    storage: gemma_config.Storage = "float32",
) -> tuple[gemma.Config, types.Params, hugging_face.Report]:
    """Reads a Gemma 3 of a GGUF file; one tensor at a time is dequantised.

    Args:
      file: as it was opened.
      dtype, sharding, storage: as of `hugging_face.load`.

    Returns:
      The configuration, the parameters, and a summary of the tensors.

    Raises:
      ValueError: as of `read_config`, and if a tensor is missing, unknown or of another shape.
      CorruptError: if a tensor has numbers that are not finite.
    """
    config = dataclasses.replace(read_config(file, dtype), storage=storage)
    tensors, report = open_rows(file, config)
    return config, stacked_layers.load(config, tensors, dtype, sharding), report


def open_rows(
    file: gguf_files.File, config: gemma.Config
) -> tuple[dict[str, stacked_layers.Rows], hugging_face.Report]:
    """Opens the tensors of a Gemma 3, which are memory-mapped, by transformers' names.

    Args:
      file: as it was opened.
      config: as `read_config` has read it there.

    Returns:
      The tensors by name, w of norms that are 1 + w, and a summary of them.

    Raises:
      As `load`; for numbers that are not finite when they are read.
    """
    source = file.metadata.file
    tensors = _named_as_transformers(file)
    leaves, _ = stacked_layers.leaves(config)
    check(source, {n: leaf.shape for leaf in leaves.values() for n in leaf.names}, tensors)
    report = hugging_face.Report(
        num_tensors=len(tensors),
        num_bytes=sum(tensor.data.nbytes for tensor in tensors.values()),
        num_skipped=0,
        dtypes=tuple(sorted({tensor.kind for tensor in tensors.values()})),
    )
    rows = {name: functools.partial(rows_of, source, tensor) for name, tensor in tensors.items()}
    return rows, report


def read_config(file: gguf_files.File, dtype: str = "float32") -> gemma.Config:
    """Returns the configuration of an opened file.

    Args:
      file: of the architecture gemma3; depth and table are those of its tensors.
      dtype: of the computation, "float32" or "bfloat16".

    Raises:
      ValueError: for another architecture, a key that is missing or of another type, and what our
        Gemma 3 does not support.
    """
    fields = file.metadata
    if (architecture := fields.get("general.architecture", str)) != ARCHITECTURE:
        raise ValueError(
            f"{fields.file} is a model of architecture {json_files.shown(architecture)}; expected "
            f"{json_files.shown(ARCHITECTURE)}, the only one that is read from GGUF"
        )

    def get(name: str, kind: Any, default: Any = json_files.REQUIRED) -> Any:
        return fields.get(f"{ARCHITECTURE}.{name}", kind, default)

    for name, value in _FIXED.items():
        if get(name, type(value), value) != value:
            raise fields.error(f"{ARCHITECTURE}.{name}", f"{json_files.shown(value)} or absent")
    num_layers, num_heads = get("block_count", int), get("attention.head_count", int)
    head_dim, embed_dim = get("attention.key_length", int), get("embedding_length", int)
    if get("attention.value_length", int, head_dim) != head_dim:
        raise fields.error(f"{ARCHITECTURE}.attention.value_length", f"{head_dim}, as of the keys")
    tensors_layers = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    if num_layers != len(tensors_layers):
        raise fields.error(
            f"{ARCHITECTURE}.block_count", f"{len(tensors_layers)}, the layers of the tensors"
        )
    table = file.tensors.get(_EMBEDDING)
    if table is None or len(table.shape) != 2:
        raise ValueError(f"{fields.file} has no table {_EMBEDDING} of tokens")
    try:
        return gemma.Config(
            vocab_size=table.shape[0],
            num_layers=num_layers,
            embed_dim=embed_dim,
            num_heads=num_heads,
            num_kv_heads=get("attention.head_count_kv", int, num_heads),
            head_dim=head_dim,
            hidden_dim=get("feed_forward_length", int),
            window=get("attention.sliding_window", int),
            query_scale=_query_scale(get, num_layers, embed_dim, num_heads, head_dim),
            local_rope_theta=get("rope.freq_base_swa", float, LOCAL_ROPE_THETA),
            global_rope_theta=get("rope.freq_base", float),
            global_rope_factor=_rope_factor(fields, get),
            pattern=get("attention.sliding_window_pattern", int, PATTERN),
            rms_epsilon=get("attention.layer_norm_rms_epsilon", float),
            context_length=get("context_length", int),
            **_special_ids(fields, table.shape[0]),
            dtype=dtype,  # type: ignore[arg-type]  # Config checks it.
        )
    except (ValueError, ZeroDivisionError) as error:
        message = str(error)
        is_named = message.startswith(fields.file)
        raise ValueError(message if is_named else f"{fields.file}: {message}") from error


def output_divergence(file: gguf_files.File) -> str:
    """Returns the name of f of a model's softargmax_f, as an export noted it; by default "kl".

    Raises:
      ValueError: for an unknown divergence.
    """
    name = file.metadata.get(DIVERGENCE, str, "kl")
    try:
        return regularizers.named(name).name
    except ValueError as error:
        raise ValueError(f"{file.metadata.file}: {error}") from error


def _query_scale(
    get: Callable[..., Any], num_layers: int, embed_dim: int, num_heads: int, head_dim: int
) -> float:
    """Returns by what number's square root queries are divided."""
    scale = get("attention.scale", float, 0.0)
    if scale:
        return round(1 / scale**2, 3)  # It was rounded to float32.
    return embed_dim / num_heads if num_layers == _LAYERS_OF_27B else float(head_dim)


def _rope_factor(fields: json_files.Record, get: Callable[..., Any]) -> float:
    """Returns by what positions of global layers are divided."""
    kind = get("rope.scaling.type", str, "none")
    if kind not in ("none", "linear"):
        raise fields.error(f"{ARCHITECTURE}.rope.scaling.type", "none or linear")
    return get("rope.scaling.factor", float) if kind == "linear" else 1.0


def _special_ids(fields: json_files.Record, num_rows: int) -> dict[str, Any]:
    """Returns beginning, ends and padding of texts; absent ones are Gemma's."""
    ids = {
        role: fields.get(f"tokenizer.ggml.{role}_token_id", int, default)
        for role, default in (*_ENDS.items(), ("bos", 2), ("padding", 0))
    }
    tokens = fields.get("tokenizer.ggml.tokens", list, [])
    if len(tokens) > num_rows:
        raise fields.error("tokenizer.ggml.tokens", f"at most {num_rows}, the rows of {_EMBEDDING}")
    ends = (ids[role] for role in _ENDS)
    return {
        "bos_id": ids["bos"],
        "eos_ids": tuple(dict.fromkeys(i for i in ends if i is not None)),
        "pad_id": ids["padding"],
    }


def _named_as_transformers(file: gguf_files.File) -> dict[str, gguf_files.Tensor]:
    """Returns the tensors by transformers' names, those without one by their own."""
    tensors = dict(file.tensors)
    head, table = tensors.pop(_HEAD, None), tensors[_EMBEDDING]
    if head is not None and not (
        (head.kind, head.shape) == (table.kind, table.shape)
        and np.array_equal(head.data, table.data)
    ):
        raise ValueError(
            f"{file.metadata.file}: {_HEAD} must equal {_EMBEDDING}, to which Gemma 3 ties it"
        )
    return {_transformers_name(name): tensor for name, tensor in tensors.items()}


def is_norm(name: str) -> bool:
    """Returns whether a tensor, by llama.cpp's name, is a norm's, stored as 1 + w."""
    return name.endswith("norm.weight")


def llama_name(name: str) -> str:
    """Returns llama.cpp's name of a tensor from transformers' without prefix."""
    for ours, theirs in _OUTER.items():
        if name == f"{theirs}.weight":
            return f"{ours}.weight"
    _, layer, rest = name.removesuffix(".weight").split(".", 2)
    ours = next(ours for ours, theirs in _LAYER.items() if theirs == rest)
    return f"blk.{layer}.{ours}.weight"


def _transformers_name(name: str) -> str:
    parts = name.split(".")
    if len(parts) == 2 and parts[0] in _OUTER and parts[1] == "weight":
        return f"{_OUTER[parts[0]]}.weight"
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER and parts[3] == "weight":
        return f"layers.{parts[1]}.{_LAYER[parts[2]]}.weight"
    return name


def check(
    file: str, shapes: dict[str, tuple[int, ...]], tensors: dict[str, gguf_files.Tensor]
) -> None:
    """Compares a file's tensors with those that a configuration asks for.

    Args:
      file: its name, for messages.
      shapes: of the tensors that are asked for.
      tensors: of the file, by the same names.

    Raises:
      ValueError: if one is missing, unknown or of another shape; all of them are named.
    """
    complaints = {
        "misses tensors": sorted(set(shapes) - set(tensors)),
        "has unknown tensors": sorted(tensors[name].name for name in set(tensors) - set(shapes)),
        "has tensors of a wrong shape": [
            f"{tensors[name].name} {list(tensors[name].shape)}, expected {list(shape)}"
            for name, shape in shapes.items()
            if name in tensors and tensors[name].shape != shape
        ],
    }
    faults = [
        f"{what}: {tensor_files.listed(names)}" for what, names in complaints.items() if names
    ]
    if faults:
        raise ValueError(f"{file} {'; '.join(faults)}; is it the model of its metadata?")


def rows_of(source: str, tensor: gguf_files.Tensor, part: slice) -> np.ndarray:
    """Returns a part of the tensor's numbers as ours, w of norms that are 1 + w."""
    try:
        numbers = tensor.rows(part)
    except ValueError as error:
        raise files.CorruptError(f"{source}: {error}; it is damaged") from error
    return numbers - 1 if is_norm(tensor.name) else numbers
