"""Tests of lm/formats/gguf_vision.py."""

import dataclasses
import math
import pathlib
import re
from typing import Any

import gguf
import jax
import numpy as np
import pytest

from kullback.core import files, trees
from kullback.lm import blocks, pictures, siglip, terms, vision
from kullback.lm.formats import gguf_files, gguf_vision, gguf_writer
from tests import gguf_models

WIDTH = 10  # D.
IDS = blocks.Delimiters(60, 62, 61)
ENCODER = siglip.Config(
    image_size=12, patch_size=3, embed_dim=6, num_layers=2, num_heads=2, hidden_dim=8
)
CONFIG = vision.Config(encoder=ENCODER, num_soft=4, ids=IDS)
PREPARATION = pictures.Config(side=12, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.125))
NAMES = """v.patch_embd.weight v.patch_embd.bias v.position_embd.weight v.post_ln.weight
    v.post_ln.bias mm.soft_emb_norm.weight mm.input_projection.weight""".split()
PARTS = "ln1 attn_q attn_k attn_v attn_out ln2 ffn_up ffn_down".split()


def random_eye(config: vision.Config = CONFIG) -> vision.Eye:
    def init(key):
        encoder = siglip.make(config.encoder).init(key)
        return encoder, vision.init_projector(key, config, WIDTH)

    random = np.random.default_rng(0)
    like = jax.eval_shape(init, jax.random.key(0))
    params = jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), like)
    return vision.Eye(config, *params)


EYE = random_eye()


def write(path: pathlib.Path, quantization: str = "f32", **fields: Any) -> gguf_writer.Plan:
    plan = gguf_vision.plan(CONFIG, WIDTH, PREPARATION, quantization, name="small", **fields)
    gguf_vision.write(path, plan, EYE, WIDTH)
    return plan


def tensors_and_keys(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns what a file has for another reader."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    shapes = {t.name: [int(n) for n in t.shape][::-1] for t in reader.tensors}
    keys = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    return {name: x.reshape(shapes[name]) for name, x in tensors.items()}, keys


def rewrite(path: pathlib.Path, tensors, keys) -> pathlib.Path:
    """Writes a file anew, as another program would."""

    def add(writer: gguf.GGUFWriter) -> None:
        for key, value in keys.items():
            if key != "general.architecture":
                writer.add_key_value(key, value, gguf_writer._value_type(value))

    path.unlink()
    gguf_models.write(path, tensors, add, architecture=keys["general.architecture"])
    return path


def load(path: pathlib.Path) -> tuple[vision.Eye, pictures.Config]:
    return gguf_vision.load(gguf_files.read(path), WIDTH, IDS)


@pytest.mark.parametrize("quantization", ["f32", "f16", "q4_0"])
def test_what_is_written_is_read(tmp_path: pathlib.Path, quantization: str):
    path = tmp_path / "m.gguf"
    plan = write(path, quantization)
    assert path.stat().st_size == plan.num_bytes
    eye, preparation = load(path)
    assert (eye.config, preparation) == (CONFIG, PREPARATION)
    read = trees.named_leaves({"encoder": eye.encoder, "projector": eye.projector})
    expected = trees.named_leaves({"encoder": EYE.encoder, "projector": EYE.projector})
    assert read.keys() == expected.keys()
    for name, exact in expected.items():
        is_matrix = name.endswith("/weight") or (name.endswith("/w") and "/patch/" not in name)
        if name == "projector/norm":
            exact = (exact + np.float32(1)) - np.float32(1)  # As it is stored.
        elif is_matrix and quantization != "f32":
            exact = exact.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(read[name], exact, err_msg=name)


def test_the_file_is_llama_cpps_for_another_reader(tmp_path: pathlib.Path):
    write(tmp_path / "m.gguf", "f16", notice=terms.GEMMA.notice)
    tensors, keys = tensors_and_keys(tmp_path / "m.gguf")
    layers = {
        f"v.blk.{j}.{part}.{kind}" for j in (0, 1) for part in PARTS for kind in ("weight", "bias")
    }
    assert set(tensors) == {*NAMES, *layers}
    expected = {
        **{"general.architecture": "clip", "general.type": "mmproj", "general.file_type": 1},
        **{"clip.has_vision_encoder": True, "clip.projector_type": "gemma3"},
        **{"clip.use_gelu": True, "clip.vision.image_size": 12, "clip.vision.patch_size": 3},
        **{"clip.vision.embedding_length": 6, "clip.vision.feed_forward_length": 8},
        **{"clip.vision.block_count": 2, "clip.vision.attention.head_count": 2},
        **{"clip.vision.projection_dim": WIDTH, "clip.vision.projector.scale_factor": 2},
        **{"general.license": "gemma"},
    }
    assert {key: keys[key] for key in expected} == expected
    epsilon = keys["clip.vision.attention.layer_norm_epsilon"]
    assert epsilon == np.float32(ENCODER.norm_epsilon)
    assert [float(np.float32(x)) for x in keys["clip.vision.image_std"]] == [0.5, 0.25, 0.125]
    kinds = {name: str(x.dtype) for name, x in tensors.items()}
    half = {n for n in tensors if n.endswith("weight") and tensors[n].ndim == 2}
    half.remove("v.position_embd.weight")
    assert {name for name, kind in kinds.items() if kind == "float16"} == half
    # The convolution as torch has it, [E, 3, p, p], from the matrix of rows, columns, channels.
    patches = np.asarray(EYE.encoder["embedding"]["patch"]["w"]).reshape(3, 3, 3, 6)
    kernel = tensors["v.patch_embd.weight"]
    assert kernel.shape == (6, 3, 3, 3)
    assert kernel[4, 2, 0, 1] == patches[0, 1, 2, 4]
    norm, weight = EYE.projector["norm"], EYE.projector["weight"]
    np.testing.assert_array_equal(tensors["mm.soft_emb_norm.weight"], norm + np.float32(1))
    np.testing.assert_array_equal(tensors["mm.input_projection.weight"], weight.astype(np.float16))
    layer = EYE.encoder["layers"]
    scale = layer["attention/norm"]["scale"][1]
    np.testing.assert_array_equal(tensors["v.blk.1.ln1.weight"], scale)
    up = layer["feed_forward/up"]["w"][1].astype(np.float16)
    np.testing.assert_array_equal(tensors["v.blk.1.ffn_up.weight"], up.T)


def test_released_sizes_need_no_scale_and_older_names_are_read(tmp_path: pathlib.Path):
    published = gguf_vision.plan(
        vision.Config(), 2560, pictures.Config(), "f16", name="gemma-3-4b-it"
    )
    assert b"scale_factor" not in published.head
    matrices = sum(math.prod(t.shape) for t in published.tensors if t.kind == "F16")
    rest = sum(math.prod(t.shape) for t in published.tensors if t.kind == "F32")
    assert matrices + rest == sum(vision.num_params(vision.Config(), 2560))
    assert rest < 6e6
    path = tmp_path / "m.gguf"
    write(path)
    tensors, keys = tensors_and_keys(path)
    old = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
    renamed = {re.sub("ffn_up|ffn_down", lambda m: old[m[0]], n): x for n, x in tensors.items()}
    eye, _ = load(rewrite(path, renamed, keys))
    jax.tree.map(np.testing.assert_array_equal, eye.encoder, EYE.encoder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "gemma3"}, 'of architecture "gemma3"; expected "clip"'),
        ({"clip.projector_type": "mlp"}, 'clip.projector_type must be "gemma3"'),
        ({"clip.use_gelu": False}, "clip.use_gelu must be true"),
        ({"clip.use_gelu": None}, "clip.use_gelu is missing"),
        ({"clip.vision.projection_dim": 11}, "projection_dim must be 10, the width of the model"),
        ({"clip.vision.image_size": 2**31}, r"image_size must lie in \[1, 16384\]"),
        ({"clip.vision.image_size": 2**14}, "image_size must be a multiple of patch_size"),
        ({"clip.vision.image_size": 12_000}, "wrong shape.*position_embd"),
        ({"clip.vision.block_count": 2**30}, r"num_layers must lie in \[1, 1024\]"),
        ({"clip.vision.block_count": 1000}, "misses tensors: v.blk.10"),
        ({"clip.vision.embedding_length": 2**16}, "wrong shape"),
        ({"clip.vision.attention.head_count": 4}, "embed_dim must be a multiple of num_heads"),
        ({"clip.vision.projector.scale_factor": 3}, "scale_factor must be a divisor of 4 patches"),
        ({"clip.vision.projector.scale_factor": 0}, "scale_factor must be a divisor of 4 patches"),
        ({"clip.vision.image_mean": [0.5, 0.5]}, "mean must be three finite numbers"),
        ({"clip.vision.image_std": [0.5, 0.0, 1.0]}, "std must be three finite numbers > 0"),
        ({"clip.vision.image_size": "12"}, "image_size must be an integer"),
    ],
)
def test_what_a_stranger_says_of_sizes_is_not_believed(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path, monkeypatch
):
    path = tmp_path / "m.gguf"
    write(path)
    tensors, keys = tensors_and_keys(path)
    keys = {key: value for key, value in {**keys, **changes}.items() if value is not None}
    rewrite(path, tensors, keys)
    monkeypatch.setattr(np, "empty", None)  # Nothing is made before all is checked.
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_tensors_that_do_not_belong_or_are_damaged_are_named(tmp_path: pathlib.Path):
    path = tmp_path / "m.gguf"
    write(path)
    tensors, keys = tensors_and_keys(path)
    bias = tensors.pop("v.post_ln.bias")
    with pytest.raises(ValueError, match=r"misses tensors: v\.post_ln\.bias"):
        load(rewrite(path, tensors, keys))
    tensors |= {"v.post_ln.bias": bias, "v.blk.2.ln1.bias": bias}
    with pytest.raises(ValueError, match=r"has unknown tensors: v\.blk\.2\.ln1\.bias"):
        load(rewrite(path, tensors, keys))
    del tensors["v.blk.2.ln1.bias"]
    tensors["v.post_ln.bias"] = np.full_like(bias, np.nan)
    with pytest.raises(files.CorruptError, match=r"v\.post_ln\.bias .* not finite"):
        load(rewrite(path, tensors, keys))
    tensors["v.post_ln.bias"] = bias
    turned = tensors["mm.input_projection.weight"].T
    tensors["mm.input_projection.weight"] = np.ascontiguousarray(turned)
    with pytest.raises(ValueError, match=r"input_projection.weight \[10, 6\], expected \[6, 10\]"):
        load(rewrite(path, tensors, keys))


@pytest.mark.parametrize(
    ("config", "preparation", "message"),
    [
        ({"hidden_dim": 6}, {}, "feed-forward matrices of an encoder of hidden_dim=embed_dim=6"),
        ({}, {"rescale_factor": 1 / 128}, "divides pixels by 255"),
        ({}, {"side": 24}, "stretches images to 12 pixels, .* and 24 pixels"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(config, preparation, message: str):
    encoder = dataclasses.replace(ENCODER, **config)
    with pytest.raises(ValueError, match=message):
        gguf_vision.plan(
            dataclasses.replace(CONFIG, encoder=encoder),
            *(WIDTH, dataclasses.replace(PREPARATION, **preparation), "f32"),
            name="small",
        )
