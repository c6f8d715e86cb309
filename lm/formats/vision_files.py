"""The parts that read images in a folder of Hugging Face: Gemma 3's encoder and projector.

The names of transformers 4.49 to 4.51, of 4.52 to 4.57 and of 5 are read:

    vision_tower.vision_model.Y,  model.vision_tower.vision_model.Y,  vision_tower.Y
    multi_modal_projector.Z,      model.multi_modal_projector.Z

The first of them are written, which all versions load. Tensors of linear layers are [out, in] there
and [in, out] here; the convolution over patches is a matrix here; the projector's matrix has the
same order in both.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import files, json_files, trees, types
from kullback.lm import blocks, gemma, pictures, siglip, vision
from kullback.lm.formats import (
    hugging_face,
    hugging_face_config,
    preprocessor_config,
    stacked_layers,
    tensor_files,
)

# Ours -> (theirs, whether it is transposed).
ENCODER = {
    "embedding/patch/w": ("embeddings.patch_embedding.weight", True),
    "embedding/patch/b": ("embeddings.patch_embedding.bias", False),
    "embedding/table/position": ("embeddings.position_embedding.weight", False),
    "final/norm/scale": ("post_layernorm.weight", False),
    "final/norm/offset": ("post_layernorm.bias", False),
}
PATCHES = "embedding/patch/w"  # [E, 3, p, p] in a file.
NORMS = {"attention/norm": "layer_norm1", "feed_forward/norm": "layer_norm2"}
MATRICES = {
    **{f"attention/{name}": f"self_attn.{name[0]}_proj" for name in ("query", "key", "value")},
    "attention/output": "self_attn.out_proj",
    "feed_forward/up": "mlp.fc1",
    "feed_forward/down": "mlp.fc2",
}
LAYER = {
    **{f"{ours}/scale": (f"{theirs}.weight", False) for ours, theirs in NORMS.items()},
    **{f"{ours}/offset": (f"{theirs}.bias", False) for ours, theirs in NORMS.items()},
    **{f"{ours}/w": (f"{theirs}.weight", True) for ours, theirs in MATRICES.items()},
    **{f"{ours}/b": (f"{theirs}.bias", False) for ours, theirs in MATRICES.items()},
}
PROJECTOR = {
    "norm": "multi_modal_projector.mm_soft_emb_norm.weight",
    "weight": "multi_modal_projector.mm_input_projection_weight",
}
TOWER, OLD = "vision_tower.", "vision_tower.vision_model."
POOLING_HEAD = "vision_tower.head."  # Of a plain SigLIP; Gemma's has none.
# Field of transformers -> (field of `siglip.Config`, default of transformers 5.24).
SIZES: dict[str, tuple[str, float]] = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 16),
    "hidden_size": ("embed_dim", 768),
    "num_hidden_layers": ("num_layers", 12),
    "num_attention_heads": ("num_heads", 12),
    "intermediate_size": ("hidden_dim", 3072),
    "layer_norm_eps": ("norm_epsilon", 1e-6),
}
NUM_SOFT, PUBLISHED_SOFT = "mm_tokens_per_image", 256
# Fields with the ids of an image's beginning, of its soft tokens, and of its end.
IDS = ("boi_token_index", "image_token_index", "eoi_token_index")
FIXED: dict[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",
    "model_type": "siglip_vision_model",
    "num_channels": siglip.CHANNELS,
}


def read_config(folder: files.Path, dtype: str = "float32") -> vision.Config | None:
    """Reads the vision of a folder's config.json; None of a model of text.

    Args:
      folder: with config.json.
      dtype: of the encoder's computation, "float32" or "bfloat16".

    Raises:
      ValueError: if the file is missing or no JSON, or has a vision that we cannot run.
    """
    outer = json_files.read(hugging_face_config.config_file(folder))
    fields = outer.record("vision_config", None)
    if fields is None or not fields.values:
        return None
    for name, value in FIXED.items():
        if fields.values.get(name, value) != value:
            raise fields.error(name, json_files.shown(value))
    sizes: dict[str, Any] = {
        ours: fields.get(name, (int, float) if isinstance(default, float) else int, default)
        for name, (ours, default) in SIZES.items()
    }
    ids = (outer.get(name, int, i) for name, i in zip(IDS, blocks.IMAGE, strict=True))
    try:
        return vision.Config(
            encoder=siglip.Config(**sizes, dtype=dtype),  # type: ignore[arg-type]  # It checks it.
            num_soft=outer.get(NUM_SOFT, int, PUBLISHED_SOFT),
            ids=blocks.Delimiters(*ids),
        )
    except ValueError as error:
        raise ValueError(f"{outer.file}: {error}") from error


def load(folder: files.Path, embed_dim: int, dtype: str = "float32") -> vision.Eye:
    """Reads encoder and projector of a multimodal folder.

    Args:
      folder: as of `hugging_face.load`.
      embed_dim: D, width of its decoder.
      dtype: of parameters and computation, "float32" or "bfloat16".

    Raises:
      ValueError: if the folder has no vision that we can run, or a tensor is missing, unknown or of
        another shape; all of them are named.
      CorruptError: if a file cannot be read.
    """
    folder = pathlib.Path(folder)
    config = read_config(folder, dtype)
    if config is None:
        raise ValueError(
            f"{folder / 'config.json'} has no vision_config: it is a model of text alone, which "
            "reads no images; take a multimodal one"
        )
    tensors = tensor_files.read(folder)
    names = _short_names(folder, tensors)
    hugging_face.check(folder, shapes_of(config, embed_dim), names, tensors)
    rows = {
        name: hugging_face.rows(folder, theirs, tensors[theirs]) for name, theirs in names.items()
    }
    return read_eye(config, embed_dim, rows, dtype)


def shapes_of(config: vision.Config, embed_dim: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors of an eye, by the names of transformers 5.

    Args:
      config: of the vision.
      embed_dim: D, width of its decoder.
    """
    return {
        name: _file_shape(config, ours, leaf)
        for ours, leaf in _leaves(config, embed_dim)[0].items()
        for name in leaf.names
    }


def read_eye(
    config: vision.Config,
    embed_dim: int,
    tensors: Mapping[str, stacked_layers.Rows],
    dtype: str = "float32",
) -> vision.Eye:
    """Reads encoder and projector from tensors whose shapes are those of `shapes_of`.

    Args:
      config, embed_dim: as of `shapes_of`.
      tensors: by its names.
      dtype: of the parameters.
    """
    leaves, like = _leaves(config, embed_dim)
    read = {}
    for ours, leaf in leaves.items():
        parts = [tensors[name] for name in leaf.names]
        if ours == f"encoder/{PATCHES}":
            parts = [functools.partial(_matrix, rows) for rows in parts]
        shape = jax.ShapeDtypeStruct(like[ours].shape, jnp.dtype(dtype))
        read[ours] = jax.device_put(stacked_layers.read(leaf, parts, shape))
    both = jax.tree.unflatten(jax.tree.structure(_like(config, embed_dim)), read.values())
    return vision.Eye(config, both["encoder"], both["projector"])


def save(
    folder: files.Path,
    config: gemma.Config,
    params: types.Params,
    eye: vision.Eye,
    tokenizer_files: Iterable[files.Path] = (),
    extra: Mapping[str, Any] | None = None,
    notice: str | None = None,
    preparation: pictures.Config | None = None,
) -> None:
    """Writes a folder that transformers loads as Gemma3ForConditionalGeneration, whole or not.

    Args:
      folder, config, params, tokenizer_files, extra, notice: as of `hugging_face.save`.
      eye: what the decoder sees by.
      preparation: how images are prepared; None is as Gemma 3's are.

    Raises:
      ValueError: as `hugging_face.save`, and if the eye's parameters are not those of its
        configuration.
    """
    tensors = [
        written._replace(name=written.name.replace(TOWER, OLD, 1))
        for written in written_of(eye, config.embed_dim)
    ]
    prepared = preparation or pictures.Config(side=eye.config.encoder.image_size)
    write_files = functools.partial(
        preprocessor_config.write, config=prepared, soft_tokens=eye.config.num_soft
    )
    fields = _to_json(eye.config, str(eye.projector["weight"].dtype))
    half = hugging_face.ImageHalf(fields, tensors, write_files)
    hugging_face.save(folder, config, params, tokenizer_files, extra, notice, half)


def written_of(eye: vision.Eye, embed_dim: int) -> list[hugging_face.Written]:
    """Returns the tensors that an eye is written as, by the names of transformers 5.

    Args:
      eye: what the decoder sees by.
      embed_dim: D, width of the decoder.

    Raises:
      ValueError: if the eye's parameters are not those of its configuration.
    """
    leaves, like = _leaves(eye.config, embed_dim)
    named = trees.named_leaves({"encoder": eye.encoder, "projector": eye.projector})
    wrong = sorted(set(leaves) ^ set(named))
    wrong += [path for path in like if path in named and named[path].shape != like[path].shape]
    if wrong:
        raise ValueError(f"the eye's params are not those of its config, see {', '.join(wrong)}")
    return [
        hugging_face.Written(
            name,
            _file_shape(eye.config, ours, leaf),
            named[ours].dtype,
            functools.partial(_part, eye.config, ours, leaf, named[ours], i),
        )
        for ours, leaf in leaves.items()
        for i, name in enumerate(leaf.names)
    ]


def _to_json(config: vision.Config, dtype: str) -> dict[str, Any]:
    """Returns the fields of config.json beside text_config; transformers' defaults are others."""
    sizes = dataclasses.asdict(config.encoder)
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "dtype": dtype,
        "torch_dtype": dtype,
        "tie_word_embeddings": True,
        NUM_SOFT: config.num_soft,
        **dict(zip(IDS, config.ids, strict=True)),
        "vision_config": {
            **{theirs: sizes[ours] for theirs, (ours, _) in SIZES.items()},
            **FIXED,
            "attention_dropout": 0.0,
            "vision_use_head": False,
        },
    }


def _like(config: vision.Config, embed_dim: int) -> types.Params:
    """Returns the shapes of encoder and projector."""

    def init(key: types.Key) -> types.Params:
        return {
            "encoder": siglip.make(config.encoder).init(key),
            "projector": vision.init_projector(key, config, embed_dim),
        }

    return jax.eval_shape(init, jax.random.key(0))


@functools.cache  # The encoder is traced for the shapes.
def _leaves(
    config: vision.Config, embed_dim: int
) -> tuple[Mapping[str, stacked_layers.Leaf], Mapping[str, jax.ShapeDtypeStruct]]:
    """Returns every parameter by its path, as a file has it and as we have it, in our order."""
    like = trees.named_leaves(_like(config, embed_dim))
    leaves = {}
    for path, shape in like.items():
        part, ours = path.split("/", 1)
        if part == "projector":
            leaves[path] = stacked_layers.Leaf([PROJECTOR[ours]], shape.shape, False, False)
            continue
        is_layer = ours.startswith("layers/")
        theirs, transposed = LAYER[ours.removeprefix("layers/")] if is_layer else ENCODER[ours]
        names = [f"{TOWER}{theirs}"]
        if is_layer:
            numbers = range(config.encoder.num_layers)
            names = [f"{TOWER}encoder.layers.{j}.{theirs}" for j in numbers]
        of_one = shape.shape[1:] if is_layer else shape.shape
        of_file = of_one[::-1] if transposed else of_one
        leaves[path] = stacked_layers.Leaf(names, of_file, transposed, is_layer)
    return leaves, like


def _file_shape(config: vision.Config, path: str, leaf: stacked_layers.Leaf) -> tuple[int, ...]:
    size = config.encoder.patch_size
    is_patches = path == f"encoder/{PATCHES}"
    return (leaf.shape[0], siglip.CHANNELS, size, size) if is_patches else leaf.shape


def _short_names(
    folder: pathlib.Path, tensors: Mapping[str, tensor_files.Tensor]
) -> dict[str, str]:
    """Returns names of tensors of what reads images: {as transformers 5 writes it: name}."""
    names: dict[str, str] = {}
    for name in tensors:
        if not name.startswith(hugging_face.IMAGE_PREFIXES):
            continue
        short = name.removeprefix("model.")
        short = TOWER + short.removeprefix(OLD) if short.startswith(OLD) else short
        if short.startswith(POOLING_HEAD):
            continue
        if short in names:
            raise ValueError(f"{folder} has both {names[short]} and {name}; remove one of them")
        names[short] = name
    return names


def _matrix(rows: stacked_layers.Rows, part: slice) -> np.ndarray:
    """Returns a part of the convolution over patches, [E, 3, p, p], as a matrix [E, p p 3]."""
    kernel = rows(part)
    return kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1)


def _part(
    config: vision.Config, path: str, leaf: stacked_layers.Leaf, array: Any, i: int
) -> np.ndarray:
    """Returns the numbers of tensor i of a parameter as a file has them."""
    part = hugging_face.part_of(array, leaf, i)
    if path != f"encoder/{PATCHES}":
        return part
    size = config.encoder.patch_size
    return part.reshape(-1, size, size, siglip.CHANNELS).transpose(0, 3, 1, 2)
