"""Tests of lm/sharding.py: the table on meshes without devices, loading onto eight of them."""

import dataclasses
import logging
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from kullback.core import sharding as meshes
from kullback.core import trees
from kullback.lm import batches, evaluation, gemma, lora, reward_model, sharding, value_network
from kullback.lm.formats import hugging_face


def cuts(config: gemma.Config, data: int, model: int) -> dict[str, tuple]:
    mesh = AbstractMesh((data, model), meshes.AXES)
    shapes = sharding.shapes(config, None)
    homes = meshes.of_params(sharding.rules(config), shapes, mesh)
    return {path: tuple(home.spec) for path, home in trees.named_leaves(homes).items()}


@pytest.mark.parametrize("name", gemma.PRESETS)
def test_every_parameter_of_every_preset_has_its_cut(name: str):
    specs = cuts(gemma.PRESETS[name], 4, 2)
    shapes = trees.named_leaves(sharding.shapes(gemma.PRESETS[name], None))
    for path, spec in specs.items():
        assert len(spec) == len(shapes[path].shape)
        if path.startswith(("periods", "remainder")):
            assert spec[0] is None  # The layer axis.
        assert ("model" in spec) == (not path.endswith("_norm")) or "1b" in name or "270m" in name
        assert "data" not in spec
    layer = "periods/layer_0"
    assert specs["embedding"] == ("model", None)
    assert specs[f"{layer}/attention/query"] == (None, None, "model")
    assert specs[f"{layer}/attention/output"] == (None, "model", None)
    assert specs[f"{layer}/feed_forward/up"] == (None, None, "model")
    assert specs[f"{layer}/feed_forward/down"] == (None, "model", None)


def test_heads_stay_whole(caplog: pytest.LogCaptureFixture):
    meshes._report.cache_clear()
    with caplog.at_level(logging.WARNING):
        specs = cuts(gemma.PRESETS["gemma3-1b"], 1, 8)  # 4 heads of 256, 1 of keys.
    attention = [spec for path, spec in specs.items() if "/attention/" in path]
    assert all(set(spec) == {None} for spec in attention)
    assert specs["periods/layer_5/feed_forward/gate"] == (None, None, "model")
    assert "4 parts do not divide by 8 (model)" in caplog.text and "1 parts do not" in caplog.text


def test_factors_are_cut_as_their_matrix_and_never_along_the_rank():
    config, mesh = gemma.PRESETS["tiny"], AbstractMesh((1, 2), meshes.AXES)
    shapes = sharding.shapes(config, None, lora.Config(rank=2, train_tokens=(3,)))
    homes = meshes.of_params(sharding.rules(config), shapes, mesh)
    factors = {path: tuple(home.spec) for path, home in trees.named_leaves(homes).items()}
    for path, spec in cuts(config, 1, 2).items():
        if path.rpartition("/")[2] in lora.TARGETS:
            assert factors[f"{path}/a"] == (None, spec[1], None)
            assert factors[f"{path}/b"] == (None, None, spec[2])
    assert factors["rows/update"] == (None, None)


@pytest.mark.parametrize("settings", [lora.Config(), lora.Config(rank=2, train_tokens=(3,))])
def test_value_networks_and_reward_models_are_cut_as_their_decoder(settings: lora.Config):
    config, mesh = gemma.PRESETS["tiny"], AbstractMesh((2, 2), meshes.AXES)
    model = gemma.make(config, settings)

    def both(key: jax.Array) -> dict[str, Any]:
        with_value = value_network.with_value(model.init(key), config.embed_dim)
        return {"policy": with_value, "judge": reward_model.on_decoder(model).init(key)}

    shapes = jax.eval_shape(both, jax.random.key(0))
    specs = {}
    for name, tree in shapes.items():
        homes = trees.named_leaves(meshes.of_params(sharding.rules(config), tree, mesh))
        specs[name] = {path: home.spec for path, home in homes.items()}
    for path, spec in specs["judge"].items():
        if path.startswith("decoder/"):
            assert specs["policy"][f"value/{path}"] == spec
            assert specs["policy"][path.removeprefix("decoder/")] == spec
    assert any("model" in spec for spec in specs["judge"].values())
    assert tuple(specs["judge"]["head/w"]) == (None,) and tuple(specs["judge"]["head/b"]) == ()


def test_rows_are_cut_over_the_mesh_by_whoever_evaluates():
    mesh = jax.make_mesh((1, 1), meshes.AXES)
    prompts = batches.pad_prompts([(3, 4)] * 8, 4, 0)
    placed: Any = sharding.spread(prompts, mesh)
    assert placed.tokens.sharding == placed.lengths.sharding == sharding.of_rows(mesh, 8)
    assert sharding.spread(prompts, None) is prompts
    nothing: Any = None
    evaluator = evaluation.Evaluator(nothing, nothing, nothing, [], nothing, mesh=mesh)
    spread: Any = evaluator.spread(prompts)
    assert spread.tokens.sharding == placed.tokens.sharding


def test_without_a_mesh_nothing_is_placed():
    config = gemma.PRESETS["tiny"]
    assert sharding.placement(None, config) is None and sharding.by_path(config, None) is None


# Anonymous memory alone: pages of the files themselves are the kernel's to drop.
MEASURE = """
import re, sys
import jax
from kullback.lm import sharding
from kullback.lm.formats import hugging_face, hugging_face_config
def anonymous(): return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
mesh = sharding.make_mesh("1x8")
homes = sharding.by_path(hugging_face_config.read(sys.argv[1]), mesh)
shapes = sharding.shapes(hugging_face_config.read(sys.argv[1]), mesh)
[jax.device_put(1.0, device).block_until_ready() for device in jax.devices()]
before, peak = anonymous(), 0
def sharding_of(path):
    global peak
    peak = max(peak, anonymous())
    return homes(path)
_, params, _ = hugging_face.load(sys.argv[1], sharding=sharding_of)
peak = max(peak, anonymous())
assert jax.tree.map(lambda x: x.sharding, params) == jax.tree.map(lambda x: x.sharding, shapes)
sizes = [sum(s.data.nbytes for s in x.addressable_shards) // 1024 for x in jax.tree.leaves(params)]
print(peak - before, sum(sizes), max(sizes))
"""


def test_loading_onto_a_mesh_holds_the_weights_and_one_stacked_tensor(tmp_path: pathlib.Path):
    config = dataclasses.replace(
        gemma.PRESETS["tiny"],
        num_layers=6,
        pattern=1,
        embed_dim=512,
        hidden_dim=4096,
        vocab_size=24_000,
        num_heads=8,
        num_kv_heads=8,
    )
    zeros = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, ml_dtypes.bfloat16), sharding.shapes(config, None)
    )
    hugging_face.save(tmp_path / "model", config, zeros)
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    program = [sys.executable, "-c", MEASURE, str(tmp_path / "model")]
    done = subprocess.run(program, env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    peak, weights, largest = (int(word) for word in done.stdout.split())
    assert weights > 190_000  # kB.
    assert 0.9 * weights < peak < weights + largest + 16_000
