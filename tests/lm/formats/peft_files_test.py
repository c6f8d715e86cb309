"""Tests of lm/formats/peft_files.py: adapters in peft's files."""

import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from kullback.core import trees
from kullback.lm import gemma, lora
from kullback.lm.formats import hugging_face, peft_files
from tests.states import fresh_params

CONFIG = dataclasses.replace(
    gemma.PRESETS["tiny"], num_layers=3, pattern=2, embed_dim=16, hidden_dim=12
)
LORA = lora.Config(rank=2, alpha=6.0, targets=("query", "down"))
QUERY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
ROWS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


@functools.cache
def factors() -> Any:
    """Returns adapters of random numbers, none of which are alike."""
    rng = np.random.default_rng(0)
    zeros = lora.zeros(CONFIG, LORA)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), zeros)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    peft_files.save(tmp_path / "peft", CONFIG, LORA, factors(), base="mine", notice="Terms.")
    return tmp_path / "peft"


def changed(folder: pathlib.Path, **settings: Any) -> None:
    file = folder / peft_files.CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def tensors(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors_numpy.load_file(folder / peft_files.WEIGHTS)


def rewrite(folder: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    safetensors_numpy.save_file(arrays, folder / peft_files.WEIGHTS)


def deltas(settings: lora.Config, of: Any) -> dict[str, np.ndarray]:
    """Returns s A B of every matrix."""
    named = trees.named_leaves(of)
    pairs = {k[:-2]: (named[k], named[k[:-1] + "b"]) for k in named if k.endswith("/a")}
    return {k: settings.scale * np.einsum("pir,pro->pio", *pair) for k, pair in pairs.items()}


def test_what_is_written_is_read(folder: pathlib.Path):
    read = peft_files.read(folder, CONFIG)
    expected, got = deltas(LORA, factors()), deltas(read.settings, read.factors)
    assert expected.keys() == got.keys() and len(got) == 6
    for name, delta in expected.items():
        np.testing.assert_allclose(got[name], delta, rtol=1e-5, atol=1e-6)
    assert (folder / "NOTICE").read_text() == "Terms."


def test_logits_with_an_adapter_are_those_of_peft(tmp_path: pathlib.Path):
    """By tests/parity/peft_adapters.py: ranks 3 and 2, two alphas, rsLoRA, rows of two tokens."""
    fixtures = pathlib.Path(__file__).parents[1] / "fixtures"
    shutil.copyfile(fixtures / "one_period.json", tmp_path / "config.json")
    shutil.copyfile(fixtures / "one_period.safetensors", tmp_path / "model.safetensors")
    config, params, _ = hugging_face.load(tmp_path)
    read = peft_files.read(fixtures / "peft", config)
    assert read.settings.rank == 3 and set(read.settings.targets) == set(lora.TARGETS)
    expected = np.load(fixtures / "peft.npz")
    model = jax.jit(gemma.make(config).apply)
    assert list(read.rows) == [9, 4]
    merged = read.merged(config, params)
    np.testing.assert_allclose(model(merged, expected["tokens"]), expected["logits"], atol=1e-4)
    change = np.abs(model(params, expected["tokens"]) - expected["logits"]).max()
    assert change > 0.5


def test_names_and_shapes_are_those_of_peft(folder: pathlib.Path):
    """Layer 1 is the second of the first period; theirs are [r, in] and [out, r]."""
    arrays = tensors(folder)
    assert len(arrays) == 3 * 2 * 2
    a = factors()["periods"]["layer_1"]["attention/query"]["a"][0]
    np.testing.assert_array_equal(arrays[QUERY], a.T)
    b = factors()["remainder"]["layer_0"]["feed_forward/down"]["b"][0]
    name = "base_model.model.model.layers.2.mlp.down_proj.lora_B.weight"
    np.testing.assert_array_equal(arrays[name], b.T)
    config = json.loads((folder / peft_files.CONFIG).read_text())
    assert config["target_modules"] == ["q_proj", "down_proj"] and config["lora_alpha"] == 6


def test_ranks_and_scales_may_differ(folder: pathlib.Path):
    """One matrix of rank 1 with an alpha of its own: s is 5 there, 6 / 2 elsewhere."""
    arrays = tensors(folder)
    down = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
    arrays[down.format("A")] = arrays[down.format("A")][:1]
    arrays[down.format("B")] = np.ascontiguousarray(arrays[down.format("B")][:, :1])
    del arrays[QUERY], arrays[QUERY.replace("_A", "_B")]  # Of layer 1 alone.
    rewrite(folder, arrays)
    changed(folder, alpha_pattern={"down_proj": 5}, rank_pattern={"layers.0.mlp.down_proj": 1})
    read = peft_files.read(folder, CONFIG)
    got = deltas(read.settings, read.factors)
    pair = factors()["periods"]["layer_0"]["feed_forward/down"]
    expected = 5 * pair["a"][0, :, :1] @ pair["b"][0, :1]
    np.testing.assert_allclose(
        got["periods/layer_0/feed_forward/down"][0], expected, rtol=1e-5, atol=1e-6
    )
    assert not np.any(got["periods/layer_1/attention/query"])
    changed(folder, use_rslora=True)
    read = peft_files.read(folder, CONFIG)
    query = deltas(read.settings, read.factors)["periods/layer_0/attention/query"]
    of_sum = deltas(LORA, factors())["periods/layer_0/attention/query"] * np.sqrt(2)
    np.testing.assert_allclose(query, of_sum, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "prefix", ["base_model.model.model.language_model.", "base_model.model.language_model.model."]
)
def test_the_language_part_of_a_multimodal_model_is_read(folder: pathlib.Path, prefix: str):
    old = "base_model.model.model."
    rewrite(folder, {prefix + name.removeprefix(old): x for name, x in tensors(folder).items()})
    read = peft_files.read(folder, CONFIG)
    assert len(deltas(read.settings, read.factors)) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA"),
        ({"use_dora": True}, "use_dora.* is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save.* is not supported"),
        ({"lora_bias": True}, "lora_bias.* is not supported"),
        ({"bias": "all"}, "bias.* is not supported"),
        ({"trainable_token_indices": {"lm_head": [1]}}, "ids of embed_tokens alone"),
        ({"trainable_token_indices": [-1]}, "trainable_token_indices must be a list of ids"),
        ({"trainable_token_indices": [1]}, "has 0 rows of the embedding, and .* names 1"),
        ({"layer_replication": [[0, 2]]}, "layer_replication.* is not supported"),
        ({"of_tomorrow": 1}, "of_tomorrow.* is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "leaves the base's weights as they are"),
        ({"alpha_pattern": {"(a+)+": 1}}, "names of matrices alone"),
        ({"lora_alpha": "much"}, "lora_alpha must be a number"),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(
    folder: pathlib.Path, settings: dict[str, Any], message: str
):
    changed(folder, **settings)
    with pytest.raises(ValueError, match=message):
        peft_files.read(folder, CONFIG)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", (2, 16), "adapts no matrix"),
        (
            "base_model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.weight",
            (2, 16),
            "adapts no matrix",
        ),
        (QUERY.replace(".1.", ".3."), (2, 16), "without its twin"),
        (QUERY.replace("q_proj", "k_proj"), (2, 16), "without its twin"),
        (QUERY.replace(".1.", ".01."), (2, 16), r"has both .*A.weight and .*A.weight"),
        (QUERY.replace(".model.layers", ".language_model.model.layers"), (2, 16), "has both"),
        (QUERY, (2, 17), r"adapts self_attn.q_proj \[32, 17\] of layer 1.* \[32, 16\]"),
        (QUERY, (0, 16), r"expected \[r, in\]"),
        (QUERY, (2,), "expected a matrix of floats"),
        (QUERY, None, "is nan at"),
        (ROWS, (2, 16), "trainable_token_indices must be a list of ids"),
    ],
)
def test_tensors_of_something_else_are_refused_by_name(
    folder: pathlib.Path, name: str, array: tuple[int, ...] | None, message: str
):
    numbers = np.full((2, 16), np.nan) if array is None else np.zeros(array)
    rewrite(folder, {**tensors(folder), name: numbers.astype(np.float32)})
    with pytest.raises(ValueError, match=message):
        peft_files.read(folder, CONFIG)


def test_rows_of_the_embedding_replace_those_of_the_base(tmp_path: pathlib.Path):
    settings, rng = dataclasses.replace(LORA, train_tokens=("<eos>", 3)), np.random.default_rng(1)
    base = fresh_params(gemma.make(CONFIG).init)
    update = rng.normal(size=(2, 16)).astype(np.float32)
    learnt = {**factors(), "rows": {"ids": np.array([5, 3]), "update": update}}
    given = (tmp_path / "peft", CONFIG, settings, learnt)
    with pytest.raises(ValueError, match="written whole: give its table"):
        peft_files.save(*given, base="mine")
    peft_files.save(*given, base="mine", table=base["embedding"])
    read = peft_files.read(tmp_path / "peft", CONFIG)
    assert list(read.rows) == [5, 3] and tensors(tmp_path / "peft")[ROWS].shape == (2, 16)
    for i, row in zip((5, 3), update, strict=True):
        np.testing.assert_allclose(read.rows[i], base["embedding"][i] + 3 * row, rtol=1e-6)
    table = read.merged(CONFIG, base)["embedding"]
    ours = lora.merged(CONFIG, settings, base, learnt)["embedding"]
    np.testing.assert_allclose(table, ours, atol=1e-6)
    assert set(np.flatnonzero(np.any(table != base["embedding"], 1))) == {3, 5}
    changed(tmp_path / "peft", trainable_token_indices={"embed_tokens": [5, 3]})
    assert list(peft_files.read(tmp_path / "peft", CONFIG).rows) == [5, 3]
    changed(tmp_path / "peft", trainable_token_indices=[5, CONFIG.vocab_size])
    with pytest.raises(ValueError, match=r"has row 128 of the embedding, \[16\]"):
        peft_files.read(tmp_path / "peft", CONFIG)


def test_adapters_of_a_deeper_model_are_refused(folder: pathlib.Path):
    with pytest.raises(ValueError, match="of layer 2; the base has 2 layers"):
        peft_files.read(folder, dataclasses.replace(CONFIG, num_layers=2))


def test_what_is_no_folder_of_peft_is_refused(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=r"adapter_config.json is missing"):
        peft_files.read(tmp_path, CONFIG)
