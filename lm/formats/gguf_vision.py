"""The half of a Gemma 3 that reads images in a GGUF file, as llama.cpp has it beside the model's.

A model that sees is two files there: FILE.gguf of the architecture gemma3, and one of the
architecture clip with encoder and projector, which is `mmproj-FILE.gguf` here. Names, shapes and
keys are those of llama.cpp's converter: tensors are as transformers has them, the convolution of
patches with four axes and the projector's matrix [E, D]; the projector's norm is stored as 1 + w,
the encoder's norms as they are. Ids are those of the model's own file, by the names of its tokens.

How images are prepared is partly llama.cpp's: a file has mean and deviation, bytes are divided by
255, and there is no pan and scan.

E width of the encoder, D width of the decoder.
"""

import contextlib
import functools
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kullback.core import files, json_files
from kullback.lm import blocks, pictures, siglip, terms, vision
from kullback.lm.formats import gguf_files, gguf_gemma, gguf_writer, vision_files

ARCHITECTURE, PROJECTOR_TYPE = "clip", "gemma3"
BESIDE = "mmproj-"  # Before the name of a model's file.
# transformers' name, without TOWER -> llama.cpp's.
_OUTER = {
    "embeddings.patch_embedding": "v.patch_embd",
    "embeddings.position_embedding": "v.position_embd",
    "post_layernorm": "v.post_ln",
}
_LAYER = {
    "layer_norm1": "ln1",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_UP, _DOWN = ".ffn_up.", ".ffn_down."
_PROJECTOR = {
    vision_files.PROJECTOR["norm"]: "mm.soft_emb_norm.weight",
    vision_files.PROJECTOR["weight"]: "mm.input_projection.weight",
}
# Key of the metadata, after "clip.vision." -> field of `siglip.Config`.
_SIZES = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "embedding_length": "embed_dim",
    "block_count": "num_layers",
    "attention.head_count": "num_heads",
    "feed_forward_length": "hidden_dim",
}
_EPSILON, _POOL = "attention.layer_norm_epsilon", "projector.scale_factor"
_PUBLISHED_POOL = 4  # Patches of a side that become one soft token, where a file does not say.
_WIDTH = "projection_dim"
_FIXED = {
    "clip.has_vision_encoder": True,
    "clip.projector_type": PROJECTOR_TYPE,
    "clip.use_gelu": True,  # The approximation by tanh.
}


def beside(path: files.Path) -> pathlib.Path:
    """Returns where the file of images of a model's file is, if it has one."""
    path = pathlib.Path(path)
    return path.with_name(f"{BESIDE}{path.name}")


def load(
    file: gguf_files.File, embed_dim: int, ids: blocks.Delimiters, dtype: str = "float32"
) -> tuple[vision.Eye, pictures.Config]:
    """Reads encoder and projector, and how images are prepared.

    Args:
      file: as it was opened.
      embed_dim: D, width of the decoder.
      ids: of images in the model's tokenizer.
      dtype: of parameters and computation, "float32" or "bfloat16".

    Raises:
      ValueError: for another architecture, a projector to another width, a key that is missing or
        of another type, a size that we cannot run, and if a tensor is missing, unknown or of
        another shape.
      CorruptError: if a tensor has numbers that are not finite.
    """
    config, preparation = _configs(file, embed_dim, ids, dtype)
    tensors, source = _upright(file.tensors, config.encoder), file.metadata.file
    shapes = vision_files.shapes_of(config, embed_dim)
    names = {name: llama_name(name) for name in shapes}
    gguf_gemma.check(source, {names[name]: shape for name, shape in shapes.items()}, tensors)
    rows = {
        name: functools.partial(gguf_gemma.rows_of, source, tensors[theirs])
        for name, theirs in names.items()
    }
    return vision_files.read_eye(config, embed_dim, rows, dtype), preparation


def plan(
    config: vision.Config,
    embed_dim: int,
    preparation: pictures.Config,
    quantization: str,
    *,
    name: str,
    notice: str | None = None,
) -> gguf_writer.Plan:
    """Returns what the file of images will be; no weights are read.

    Args:
      config: of the vision.
      embed_dim: D, width of the decoder.
      preparation: how images are prepared; pan and scan is left out.
      quantization: of the model's file. Matrices are float32 beside "f32", and float16 beside any
        other; embeddings of patches and positions, and vectors, are float32.
      name, notice: as of `gguf_writer.plan`.

    Raises:
      ValueError: if llama.cpp computes another function of such weights or images.
    """
    encoder = config.encoder
    if encoder.hidden_dim == encoder.embed_dim:  # See `_upright`.
        raise ValueError(
            f"llama.cpp takes the feed-forward matrices of an encoder of hidden_dim=embed_dim="
            f"{encoder.embed_dim} one for the other; keep to --format hugging-face"
        )
    scale = np.float32(preparation.rescale_factor)
    if scale != np.float32(1 / 255) or preparation.side != encoder.image_size:
        raise ValueError(
            f"llama.cpp divides pixels by 255 and stretches images to {encoder.image_size} pixels, "
            f"and this model takes rescale_factor={preparation.rescale_factor} and "
            f"{preparation.side} pixels; keep to --format hugging-face"
        )
    kind = "F32" if quantization == "f32" else "F16"
    tensors = tuple(
        gguf_writer.planned(
            llama_name(source),
            source,
            kind if len(shape) > 1 and ".embeddings." not in source else "F32",
            shape,
        )
        for source, shape in vision_files.shapes_of(config, embed_dim).items()
    )
    pool = encoder.side // math.isqrt(config.num_soft)
    vision_keys: dict[str, Any] = {
        **{key: getattr(encoder, field) for key, field in _SIZES.items()},
        _EPSILON: float(encoder.norm_epsilon),
        _WIDTH: embed_dim,
        "image_mean": list(preparation.mean),
        "image_std": list(preparation.std),
        **({} if pool == _PUBLISHED_POOL else {_POOL: pool}),
    }
    values = {
        "general.architecture": ARCHITECTURE,
        "general.type": "mmproj",
        "general.name": name,
        "general.file_type": gguf_writer.FILE_TYPES["f32" if kind == "F32" else "f16"],
        "general.quantization_version": 2,
        **terms.metadata(notice),
        **_FIXED,
        **{f"clip.vision.{key}": value for key, value in vision_keys.items()},
    }
    return gguf_writer.Plan(gguf_writer.head(values, tensors), tensors)


def write(path: files.Path, plan: gguf_writer.Plan, eye: vision.Eye, embed_dim: int) -> None:
    """Writes the file of images, whole or not at all.

    Args:
      path: new.
      plan: of the file.
      eye: what is written.
      embed_dim: D, width of the decoder.

    Raises:
      ValueError: as `gguf_writer.write` and `vision_files.written_of` do.
    """

    def rows(written: Any, part: slice) -> np.ndarray:
        return written.read()[part]

    tensors = vision_files.written_of(eye, embed_dim)
    gguf_writer.write(path, plan, {t.name: functools.partial(rows, t) for t in tensors})


def llama_name(name: str) -> str:
    """Returns llama.cpp's name of a tensor from that of transformers 5."""
    if name in _PROJECTOR:
        return _PROJECTOR[name]
    stem, _, kind = name.removeprefix(vision_files.TOWER).rpartition(".")
    if stem in _OUTER:
        return f"{_OUTER[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)  # encoder.layers.3.mlp.fc1
    return f"v.blk.{layer}.{_LAYER[part]}.{kind}"


def _configs(
    file: gguf_files.File, embed_dim: int, ids: blocks.Delimiters, dtype: str
) -> tuple[vision.Config, pictures.Config]:
    """Returns the sizes in a file's metadata, and how images are prepared."""
    fields = file.metadata
    if (architecture := fields.get("general.architecture", str)) != ARCHITECTURE:
        raise ValueError(
            f"{fields.file} is a model of architecture {json_files.shown(architecture)}; expected "
            f"{json_files.shown(ARCHITECTURE)}, what reads images"
        )
    for key, value in _FIXED.items():
        if fields.get(key, type(value)) != value:
            raise fields.error(key, json_files.shown(value))

    def get(name: str, kind: Any, default: Any = json_files.REQUIRED) -> Any:
        return fields.get(f"clip.vision.{name}", kind, default)

    if get(_WIDTH, int) != embed_dim:
        raise fields.error(f"clip.vision.{_WIDTH}", f"{embed_dim}, the width of the model beside")
    sizes: dict[str, Any] = {field: get(key, int) for key, field in _SIZES.items()}
    pool, epsilon = get(_POOL, int, _PUBLISHED_POOL), get(_EPSILON, float)
    mean, std = (_decimals(fields, f"clip.vision.image_{key}") for key in ("mean", "std"))
    with _named(fields.file):
        encoder = siglip.Config(**sizes, norm_epsilon=epsilon, dtype=dtype)  # type: ignore[arg-type]  # It checks it.
    if pool < 1 or encoder.side % pool:
        raise fields.error(f"clip.vision.{_POOL}", f"a divisor of {encoder.side} patches")
    with _named(fields.file):
        config = vision.Config(encoder=encoder, num_soft=(encoder.side // pool) ** 2, ids=ids)
        return config, pictures.Config(side=encoder.image_size, mean=mean, std=std)


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """Names the file in complaints of a block."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _decimals(fields: json_files.Record, key: str) -> Any:
    """Returns a list of float32 as the decimal numbers that were rounded to them."""
    return tuple(float(str(np.float32(x))) for x in fields.list_of(key, float))


def _upright(
    tensors: dict[str, gguf_files.Tensor], encoder: siglip.Config
) -> dict[str, gguf_files.Tensor]:
    """Returns the tensors by today's names: older files name up and down the other way round.

    llama.cpp knows such files by the width that "down" takes, and so do we.
    """
    down = tensors.get(f"v.blk.0{_DOWN}weight")
    if down is None or down.shape[-1] != encoder.embed_dim:
        return tensors
    swapped = {_UP: _DOWN, _DOWN: _UP}
    renamed = {}
    for name, tensor in tensors.items():
        part = next((part for part in swapped if part in name), None)
        renamed[name.replace(part, swapped[part]) if part else name] = tensor
    return renamed
