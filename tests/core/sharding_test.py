"""Tests of core/sharding.py: the table on meshes without devices, a learner on eight of them."""

import logging
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from kullback.core import learners, sharding
from kullback.core.sharding import Rule

MESH = AbstractMesh((4, 2), ("data", "model"))
RULES = (
    Rule(r".*/heads", 3, (None, ("model", 3))),
    Rule(r"block/.*", 3, ("model", None)),
    Rule(r"block/.*", 2, ("model",)),
    Rule(r"table", 2, ("model", "data")),
    Rule(r".*", 1, (None,)),
)


def spec(path: str, *shape: int) -> tuple:
    return tuple(sharding.match(RULES, path, shape, MESH).spec)


def test_path_and_rank_decide_and_no_layer_axis_is_cut():
    assert spec("block/w", 8, 4, 4) == (None, "model", None)  # 8 layers.
    assert spec("block/b", 8, 4) == (None, "model")
    assert spec("block/b", 8) == (None,)
    assert spec("table", 4, 8) == ("model", "data")


def test_an_indivisible_dimension_is_whole_and_said_once(caplog: pytest.LogCaptureFixture):
    sharding._report.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert spec("table", 5, 8) == (None, "data")
            assert spec("block/heads", 2, 4, 12) == (None, None, None)  # 3 heads of 4 numbers.
    assert [record.message.split(":")[0] for record in caplog.records] == ["table", ".*/heads"]
    assert "5 parts do not divide by 2 (model)" in caplog.text
    one = AbstractMesh((8, 1), ("data", "model"))
    assert tuple(sharding.match(RULES, "block/w", (1, 3, 3), one).spec) == (None, None, None)


@pytest.mark.parametrize("path, shape", [("other/w", (2, 2)), ("block/w", ()), ("a table", (4, 8))])
def test_what_no_rule_is_for_is_refused(path, shape):
    with pytest.raises(ValueError, match=rf"parameter '{path}' of shape \[.*\] is cut"):
        sharding.match(RULES, path, shape, MESH)


@pytest.mark.parametrize("cuts", [("model", "model"), ("rows", None), (None, None, None)])
def test_rules_that_cannot_be_are_refused(cuts):
    with pytest.raises(ValueError, match="rule 'w'"):
        Rule("w", 2, cuts)


@pytest.mark.parametrize("text", ["", "4", "4x", "0x2", "4x2x1", "4 x 2", "-4x2", "4X2"])
def test_a_mesh_is_two_numbers(text):
    assert sharding.shape_of("4x2") == (4, 2)
    with pytest.raises(ValueError, match="a mesh is DATAxMODEL devices"):
        sharding.shape_of(text)


def test_a_mesh_has_all_devices():
    with pytest.raises(ValueError, match=r"mesh 3x5 is of 15 devices, and there are 1; e\.g\. 1x1"):
        sharding.make_mesh("3x5")


def test_batches_divide_and_other_rows_need_not():
    sharding.check_batch(MESH, 12)
    with pytest.raises(ValueError, match=r"batch_size=6 .* 4, the data axis of mesh 4x2; .* is 8"):
        sharding.check_batch(MESH, 6)
    assert sharding.of_rows(MESH, 8).spec == PartitionSpec("data")
    assert sharding.of_rows(MESH, 6).is_fully_replicated


def test_what_mirrors_a_parameter_is_cut_as_it_is():
    def init(key: jax.Array) -> dict:
        del key
        return {"block": {"w": jnp.zeros((8, 4, 6)), "b": jnp.zeros((8, 4))}, "b": jnp.zeros(4)}

    optimizer = optax.partition(
        {"slow": optax.chain(optax.clip(1.0), optax.adam(1e-3)), "fast": optax.sgd(0.1, 0.9)},
        lambda params: {"block": {"w": "slow", "b": "fast"}, "b": "fast"},
    )
    learner = learners.sgd(
        init,
        lambda *_: None,  # pyright: ignore[reportArgumentType]  # Nobody learns.
        optimizer,
        {"old": learners.periodic(2)},
        init_aux=lambda params: {"b": jnp.zeros(3), "mean": jnp.zeros(())},
    )
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    homes = sharding.of_state(RULES, shapes, MESH)
    assert jax.tree.structure(homes) == jax.tree.structure(shapes)
    cut = {(8, 4, 6): (None, "model", None), (8, 4): (None, "model")}
    pairs = list(zip(jax.tree.leaves(shapes), jax.tree.leaves(homes), strict=True))
    for leaf, home in pairs:
        assert tuple(home.spec) in {(), (None,)} | {cut.get(leaf.shape, ())}
        assert (leaf.shape in cut) == (not home.is_fully_replicated)
    # Parameters, targets, two moments of Adam for w, a trace for each of both b.
    assert sum(leaf.shape == (8, 4, 6) for leaf, _ in pairs) == 4
    assert sum(leaf.shape == (8, 4) for leaf, _ in pairs) == 3


def test_spread_does_nothing_on_one_device():
    x = jnp.ones((4, 2))
    assert sharding.spread(x) is x


# A Q-network of two layers, whose columns and then rows are cut.
PROGRAM = """
import sys, tempfile
import jax, jax.numpy as jnp, numpy as np, optax
from kullback.core import checkpoints, learners, sharding, trees, types

def q(params, x):
    return jax.nn.relu(x @ params["in"]["w"][0] + params["in"]["b"]) @ params["out"]

def loss(params, targets, aux, batch, key, constants):
    t = batch.data
    target = t.reward + t.discount * jnp.max(q(targets["old"], t.next_observation), -1)
    td = target - jnp.take_along_axis(q(params, t.observation), t.action[:, None], 1)[:, 0]
    value = jnp.mean(batch.weights * jnp.square(td)) + constants.base
    return value, (aux, types.Feedback({"td": td}))

def init(key):
    one, two = jax.random.split(key)
    w = jax.random.normal(one, (1, 4, 32))
    return {"in": {"w": w, "b": jnp.zeros(32)}, "out": jax.random.normal(two, (32, 2)) / 5}

def batch(step, rows=16):
    random = np.random.default_rng(step)
    x, y = random.normal(size=(2, rows, 4)).astype(np.float32)
    action, ones = random.integers(0, 2, rows, np.int32), np.ones(rows, np.float32)
    return types.Batch(types.Transition(x, action, ones, 0.9 * ones, y), action, ones, ones)

def run(step, state, begin, end):
    losses = []
    for n in range(begin, end):
        state, feedback = step(state, batch(n), types.Constants(base=jnp.float32(0)))
        losses.append(float(feedback.metrics["loss"]))
    return state, np.array(losses)

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
learner = learners.sgd(init, loss, optimizer, {"old": learners.periodic(3)})
rules = (
    sharding.Rule("in/w", 3, (None, "model")),
    sharding.Rule("in/b", 1, ("model",)),
    sharding.Rule("out", 2, ("model", None)),
)
_, expected = run(jax.jit(learner.step), learner.init(jax.random.key(0)), 0, 10)
assert np.ptp(expected) > 0.1
for text in ("8x1", "4x2", "1x8"):
    mesh = sharding.make_mesh(text)
    placement = sharding.Placement(mesh=mesh, rules=rules)
    placed = sharding.over_mesh(learner, placement)
    state = placed.init(jax.random.key(0))
    first = state.params["in"]["w"]
    whole, losses = run(placed.step, state, 0, 10)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert first.is_deleted()  # Donated.
    homes = sharding.of_state(rules, whole, mesh)
    for leaf, home in zip(jax.tree.leaves(whole), jax.tree.leaves(homes), strict=True):
        assert leaf.sharding == home, (leaf.sharding, home)
    moment = whole.opt_state[1][0].mu["in"]["w"]
    assert moment.addressable_shards[0].data.shape == (1, 4, 32 // mesh.shape["model"])

# The run that goes on from a checkpoint, on the last mesh.
state, _ = run(placed.step, placed.init(jax.random.key(0)), 0, 6)
shapes = jax.eval_shape(learner.init, jax.random.key(0))
with tempfile.TemporaryDirectory() as folder:
    checkpoints.save(folder, 6, state, {})
    saved, _ = checkpoints.restore(folder, 6, sharding.annotated(shapes, homes))
assert saved.opt_state[1][0].nu["out"].sharding == homes.params["out"]
again, _ = run(placed.step, jax.device_put(saved, homes), 6, 10)
for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(whole), strict=True):
    np.testing.assert_array_equal(trees.to_numpy(one), trees.to_numpy(other))

def cost(spread):
    def step(w, x):
        x = x[jnp.argsort(x[:, 0])]  # A sort over all rows.
        y = jax.lax.map(lambda part: jnp.tanh(part @ w), spread(x.reshape(2, 32, 64)))
        return jnp.sum(y)

    mesh = sharding.make_mesh("8x1")
    rows = sharding.of_rows(mesh, 64)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        program = jax.jit(step, in_shardings=(sharding.replicated(mesh), rows))
        compiled = program.lower(jnp.ones((64, 64)), jnp.ones((64, 64))).compile()
    return compiled.cost_analysis()["flops"]

assert cost(lambda x: sharding.spread(x, 1)) < 0.3 * cost(lambda x: x)
print("done")
"""


@pytest.mark.slow
def test_a_learner_over_eight_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    program = [sys.executable, "-W", "error", "-c", PROGRAM]
    done = subprocess.run(program, env=os.environ | flags, capture_output=True, text=True)
    assert done.stdout == "done\n", done.stderr[-3000:]
