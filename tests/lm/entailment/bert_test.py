"""Tests of lm/entailment/bert.py; tests/parity/write_bert.py writes its fixtures."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.lm.entailment import bert, bert_folder

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
KINDS = ("bert", "roberta")
CONFIG = bert.Config(
    kind="bert",
    vocab_size=20,
    num_layers=2,
    embed_dim=8,
    num_heads=2,
    hidden_dim=12,
    num_positions=10,
    labels=("no", "yes"),
)


def rows(num_rows: int, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(2, 20, (num_rows, length), np.int32)
    return ids, np.ones(ids.shape, bool), rng.integers(0, 2, ids.shape, np.int32)


@functools.cache
def classifies(kind: str) -> Callable[..., jax.Array]:
    """Returns the stored model as a compiled function of its inputs."""
    classifier = bert_folder.load(FIXTURES / kind)
    logits = jax.jit(classifier.model.logits)

    def call(*inputs: np.ndarray) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return logits(classifier.params, *inputs)

    return call


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind):
    expected = np.load(FIXTURES / kind / "expected.npz")
    logits = classifies(kind)(expected["ids"], expected["mask"], expected["types"])
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_right_and_other_rows_change_nothing(kind):
    expected = np.load(FIXTURES / kind / "expected.npz")
    ids, mask, kinds = (expected[name] for name in ("ids", "mask", "types"))
    logits = classifies(kind)
    whole, lengths = logits(ids, mask, kinds), mask.sum(1)
    row = int(np.argmin(lengths))  # One alone: each length is a program.
    part = (slice(row, row + 1), slice(int(lengths[row])))
    assert 0 < lengths[row] < ids.shape[1]
    alone = logits(ids[part], mask[part], kinds[part])
    np.testing.assert_allclose(alone[0], whole[row], rtol=1e-4, atol=1e-6)
    other = np.where(mask == 1, ids, 7)  # What stands in the padding.
    np.testing.assert_array_equal(logits(other, mask, kinds), whole)


@pytest.mark.slow
def test_tokens_before_padding_do_matter():
    model = bert.make(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0))
    ids, mask, kinds = rows(1, 6)
    changed = ids.copy()
    changed[0, 5] = (ids[0, 5] + 1) % 20
    one, two = (model.features(params, x, mask, kinds)[0, 0] for x in (ids, changed))
    assert not np.allclose(one, two)
    other_kinds = model.features(params, ids, mask, 1 - kinds)[0, 0]
    assert not np.allclose(one, other_kinds)


@pytest.mark.slow
def test_layers_in_two_parts_are_all_layers_and_jit_changes_nothing():
    model = bert.make(dataclasses.replace(CONFIG, num_layers=3))
    params = jax.jit(model.init)(jax.random.key(1))
    inputs = rows(4, 10)
    x = model.embed(params["embeddings"], *inputs)
    for part in (slice(0, 1), slice(1, 3)):
        x = model.encode(jax.tree.map(lambda leaf, p=part: leaf[p], params["layers"]), x, inputs[1])
    np.testing.assert_allclose(
        model.classify(params["head"], x), jax.jit(model.logits)(params, *inputs), atol=1e-6
    )


@pytest.mark.slow
def test_members_of_a_population_are_models_by_themselves():
    model = bert.make(CONFIG)
    keys = jax.random.split(jax.random.key(0), 2)
    both = jax.vmap(model.init)(keys)
    inputs = rows(2, 5)
    got = jax.vmap(lambda params: model.logits(params, *inputs))(both)
    for n in range(2):
        one = model.logits(jax.tree.map(lambda leaf, n=n: leaf[n], both), *inputs)
        np.testing.assert_allclose(got[n], one, rtol=1e-4, atol=1e-6)


def test_the_program_is_of_one_size_whatever_the_depth():
    def size(num_layers: int) -> int:
        model = bert.make(dataclasses.replace(CONFIG, num_layers=num_layers))
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return len(str(jax.make_jaxpr(model.logits)(shapes, *rows(2, 4))).splitlines())

    assert size(2) == size(9)


@pytest.mark.slow
def test_a_bfloat16_model_is_near():
    model = bert.make(CONFIG)
    params = jax.jit(model.init)(jax.random.key(0))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    inputs = rows(2, 5)
    logits = model.logits(half, *inputs)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, model.logits(params, *inputs), atol=0.02)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "t5"}, "'bert' or 'roberta', got 't5'"),
        ({"num_heads": 3}, "multiple of num_heads, got 8 and 3"),
        ({"num_layers": 0}, r"num_layers must lie in \[1, 1024\], got 0"),
        ({"pad_id": 20}, "pad_id must lie in"),
        ({"kind": "roberta", "num_positions": 1}, "num_positions must be > 1, got 1"),
        ({"labels": ("a", "a")}, "two different names"),
    ],
)
def test_a_wrong_shape_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize(("kind", "most"), [("bert", 10), ("roberta", 9)])
def test_rows_longer_than_the_positions_are_refused(kind, most):
    config = dataclasses.replace(CONFIG, kind=kind)
    assert config.max_length == most
    model = bert.make(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    jax.eval_shape(model.logits, shapes, *rows(1, most))
    with pytest.raises(ValueError, match=f"at most {most} tokens, got {most + 1}"):
        jax.eval_shape(model.logits, shapes, *rows(1, most + 1))
