"""Small models in GGUF files, as llama.cpp's converter writes them."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np

from kullback.core import trees
from kullback.lm import gemma
from kullback.lm.formats import gguf_gemma, stacked_layers

_NAMES = {theirs: ours for ours, theirs in {**gguf_gemma._OUTER, **gguf_gemma._LAYER}.items()}
Change = Callable[[gguf.GGUFWriter], None]


def write(
    path: pathlib.Path,
    tensors: Mapping[str, np.ndarray | tuple[np.ndarray, gguf.GGMLQuantizationType]],
    change: Change = lambda writer: None,
    *,
    architecture: str = "gemma3",
) -> None:
    """Writes a file of tensors, float ones or bytes with their type, and the metadata of `change`.

    Args:
      path: of the file.
      tensors: by llama.cpp's names.
      change: adds what the metadata have.
      architecture: of the model.
    """
    writer = gguf.GGUFWriter(path, architecture)
    change(writer)
    for name, tensor in tensors.items():
        array, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def describe(writer: gguf.GGUFWriter, config: gemma.Config) -> None:
    """Adds a model's shape to the metadata."""
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_epsilon)
    writer.add_sliding_window(config.window)
    writer.add_rope_freq_base(config.global_rope_theta)
    if config.global_rope_factor != 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.global_rope_factor)


def tensors_of(config: gemma.Config, params: Any) -> dict[str, np.ndarray]:
    """Returns the tensors of a model by llama.cpp's names, in float32."""
    leaves, _ = stacked_layers.leaves(config)
    named = trees.named_leaves(params)
    tensors = {}
    for path, leaf in leaves.items():
        array = np.asarray(named[path], np.float32)
        for theirs, part in zip(leaf.names, array if leaf.stacked else array[None], strict=True):
            stem = theirs.removesuffix(".weight")
            for before, after in _NAMES.items():
                if stem == before or stem.endswith(f".{before}"):
                    name = f"{stem.removesuffix(before).replace('layers', 'blk')}{after}.weight"
                    norm = 1.0 if name.endswith("norm.weight") else 0.0
                    tensors[name] = np.ascontiguousarray(part.T if leaf.transposed else part) + norm
    return tensors
