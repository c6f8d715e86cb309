"""Tests of lm/formats/vision_files.py; fixtures/vision.* are written by parity/write_vision.py."""

import dataclasses
import json
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from kullback.lm import blocks, gemma, siglip, vision
from kullback.lm.formats import hugging_face, hugging_face_config, preprocessor_config, vision_files

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
NARROW = 3  # A window shorter than an image.
# Beginnings of the names that transformers has written, by its version: those of text, encoder and
# projector.
LAYOUTS = {
    "4.49": ("language_model.model.", "vision_tower.vision_model.", ""),
    "4.52": ("model.language_model.", "model.vision_tower.vision_model.", "model."),
    "5.24": ("language_model.model.", "vision_tower.", ""),
    "5.24 in memory": ("model.language_model.", "model.vision_tower.", "model."),
}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Returns the folder as transformers 5.24 has written it."""
    path = tmp_path / "model"
    path.mkdir()
    shutil.copyfile(FIXTURES / "vision.json", path / "config.json")
    shutil.copyfile(FIXTURES / "vision.safetensors", path / "model.safetensors")
    return path


@pytest.fixture(autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


def expected() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / "vision.npz"))


def rewrite(folder: pathlib.Path, change) -> None:
    path = folder / "model.safetensors"
    safetensors_numpy.save_file(change(safetensors_numpy.load_file(path)), path)


def edit(folder: pathlib.Path, *keys: str, **fields) -> None:
    """Sets fields of config.json, or of an object in it."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    at = config
    for key in keys:
        at = at[key]
    at.update(fields)
    path.write_text(json.dumps(config))


def assert_equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.mark.slow
def test_features_logits_and_greedy_texts_are_those_of_transformers(folder):
    config, params, _ = hugging_face.load(folder, sees=True)
    eye = vision_files.load(folder, config.embed_dim)
    e = expected()
    images = e["images"].astype(np.float32) / 127.5 - 1
    encode = jax.jit(siglip.make(eye.config.encoder).apply)
    encoded = encode(eye.encoder, images)
    np.testing.assert_allclose(encoded, e["encoded"], atol=1e-5)
    pooled = vision.pool(encoded, eye.config.num_soft)
    soft = np.asarray(vision.project(eye.config, eye.projector, pooled))
    np.testing.assert_allclose(soft, e["soft"], atol=1e-5)

    # As one row after another, right-padded: two images, the second alone, none.
    tokens, lengths = e["tokens"], e["lengths"]
    width = tokens.shape[1]
    rolled = np.stack([np.roll(t, n - width) for t, n in zip(tokens, lengths, strict=True)])
    both, one = soft.reshape(1, -1, config.embed_dim), np.concatenate([soft[1], 0 * soft[1]])
    vectors = np.concatenate([both, one[None], 0 * both])
    markers = blocks.Markers(image=eye.config.ids)
    groups = blocks.groups(rolled, markers)
    narrow = gemma.make(dataclasses.replace(config, window=NARROW))
    logits = jax.jit(narrow.apply)(params, rolled, soft=vectors, groups=groups)
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(logits[row, :n], e["narrow_logits"][row, width - n :], atol=1e-5)

    # Left-padded, with the window of the file: the prompt in one call, then a token at a time.
    model, length = gemma.make(config), e["greedy"].shape[1]

    @jax.jit
    def decode(params, tokens, cache, **images):
        features, cache = model.decode(params, tokens, cache, **images)
        return model.unembed(params, features), cache

    cache = model.init_cache(len(tokens), width + length, lengths, width)
    images = {"soft": vectors, "groups": blocks.groups(tokens, markers)}
    logits, cache = decode(params, tokens, cache, **images)
    for row, n in enumerate(lengths):
        of_row = logits[row, width - n :], e["logits"][row, width - n :]
        np.testing.assert_allclose(*of_row, atol=1e-5)
    written = []
    for _ in range(length):
        written.append(np.argmax(logits[:, -1], -1))
        logits, cache = decode(params, written[-1][:, None], cache)
    np.testing.assert_array_equal(np.stack(written, 1), e["greedy"])
    assert e["gaps"].min() > 1e-3


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_every_layout_is_read_to_equal_bits(layout, folder, caplog):
    config, params, _ = hugging_face.load(folder, sees=True)
    eye = vision_files.load(folder, config.embed_dim)
    text, tower, before = LAYOUTS[layout]

    def change(tensors):
        renamed = {}
        for name, tensor in tensors.items():
            name = name.replace("language_model.model.", text, 1)
            name = name.replace("vision_tower.", tower, 1)
            name = name.replace("multi_modal_projector.", f"{before}multi_modal_projector.", 1)
            renamed[name] = tensor
        # A plain SigLIP's pooling is no part of the model.
        return renamed | {f"{tower}head.probe": np.ones(3, np.float32)}

    rewrite(folder, change)
    _, again, _ = hugging_face.load(folder, sees=True)
    assert_equal(again, params)
    assert not caplog.records
    got = vision_files.load(folder, config.embed_dim)
    assert got.config == eye.config
    assert_equal(got[1:], eye[1:])
    hugging_face.load(folder)
    assert "images are ignored" in caplog.text and len(caplog.records) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_read_again(dtype, folder, tmp_path):
    config, params, _ = hugging_face.load(folder, dtype, sees=True)
    config = dataclasses.replace(config, eos_ids=(1, 7))
    eye = vision_files.load(folder, config.embed_dim, dtype)
    assert eye.encoder["embedding"]["patch"]["w"].dtype == dtype
    out = tmp_path / "out"
    vision_files.save(out, config, params, eye, extra={"note": 1}, notice="Terms.")
    again = vision_files.load(out, config.embed_dim, dtype)
    assert again.config == eye.config and hugging_face_config.read(out, dtype) == config
    assert_equal(again[1:], eye[1:])
    assert_equal(hugging_face.load(out, dtype, sees=True)[1], params)
    # The tensors of transformers' file, by the names of its version 4.
    before = safetensors_numpy.load_file(folder / "model.safetensors")
    after = safetensors_numpy.load_file(out / "model.safetensors")
    renamed = {re.sub("^vision_tower.", vision_files.OLD, name): x for name, x in before.items()}
    assert set(after) == set(renamed)
    for name, tensor in renamed.items():
        np.testing.assert_array_equal(after[name], tensor.astype(after[name].dtype))
    prepared, num_soft = preprocessor_config.read(out)
    assert (prepared.side, num_soft) == (56, 4)
    fields = json.loads((out / "config.json").read_text())
    assert fields["note"] == 1 and fields["eos_token_id"] == [1, 7]
    assert "Terms." in (out / "NOTICE").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("vision_tower.post_layernorm.bias"), "misses tensors: vision_tower.post"),
        (
            lambda t: t.update({"vision_tower.encoder.layers.2.mlp.fc1.bias": np.ones(28)}),
            r"has unknown tensors: vision_tower\.encoder\.layers\.2",
        ),
        (
            lambda t: t.update({f"{vision_files.OLD}post_layernorm.bias": np.ones(18)}),
            r"has both vision_tower\.(vision_model\.)?post_layernorm\.bias and vision_tower",
        ),
        (
            lambda t: t.update({vision_files.PROJECTOR["weight"]: np.ones((16, 18), np.float32)}),
            r"wrong shape: .*mm_input_projection_weight \[16, 18\], expected \[18, 16\]",
        ),
        (
            lambda t: t.update(
                {f"{vision_files.TOWER}embeddings.patch_embedding.weight": np.ones((18, 147))}
            ),
            r"patch_embedding\.weight \[18, 147\], expected \[18, 3, 7, 7\]",
        ),
    ],
    ids=["missing", "extra", "twice", "turned", "flat"],
)
def test_tensors_that_do_not_belong_are_named(change, message, folder):
    def changed(tensors):
        change(tensors)
        return tensors

    rewrite(folder, changed)
    with pytest.raises(ValueError, match=message) as caught:
        vision_files.load(folder, 16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "fields", "message"),
    [
        (["vision_config"], {"hidden_act": "gelu"}, 'vision_config.hidden_act must be "gelu_pyt'),
        (["vision_config"], {"num_channels": 1}, "num_channels must be 3"),
        (["vision_config"], {"model_type": "clip"}, "model_type must be"),
        (["vision_config"], {"image_size": 57}, "image_size must be a multiple of patch_size"),
        (["vision_config"], {"num_hidden_layers": 10**9}, r"num_layers must lie in \[1, 1024\]"),
        (["vision_config"], {"hidden_size": 36}, "wrong shape"),
        ([], {"mm_tokens_per_image": 9}, "num_soft must be the square of a divisor"),
        ([], {"vision_config": {}}, "has no vision_config: it is a model of text alone"),
        ([], {"vision_config": 3}, "vision_config must be an object"),
    ],
)
def test_configurations_that_we_cannot_run_are_refused(keys, fields, message, folder, monkeypatch):
    edit(folder, *keys, **fields)
    monkeypatch.setattr(np, "empty", None)  # Nothing is made before all is checked.
    with pytest.raises(ValueError, match=message) as caught:
        vision_files.load(folder, 16)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_fields_that_are_missing_have_the_values_of_transformers(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"] = {"model_type": "siglip_vision_model"}
    kept = ("model_type", "text_config", "vision_config")
    path.write_text(json.dumps({name: config[name] for name in kept}))
    with pytest.raises(ValueError, match="num_soft must be the square"):
        vision_files.read_config(folder)  # Their image of 224 has 196 patches.
    config["vision_config"] |= {"image_size": 256}
    path.write_text(json.dumps({name: config[name] for name in kept}))
    got = vision_files.read_config(folder)
    assert got is not None and got.unwritten_ids == (255_999, 262_144)
    assert (got.encoder.embed_dim, got.encoder.num_layers, got.num_soft) == (768, 12, 256)


def test_an_eye_that_is_not_of_its_configuration_is_not_written(folder, tmp_path):
    config, params, _ = hugging_face.load(folder, sees=True)
    eye = vision_files.load(folder, config.embed_dim)
    wrong = eye._replace(projector={**eye.projector, "norm": jnp.ones(3)})
    with pytest.raises(ValueError, match="params are not those of its config, see projector/norm"):
        vision_files.save(tmp_path / "out", config, params, wrong)
    assert not (tmp_path / "out").exists()
