"""Tests of lm/narrow_weights.py: what is computed is of the numbers that a format holds."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import trees
from kullback.lm import adapters, gemma, gemma_config, layers, lora, narrow_weights, quantisation
from tests.states import fresh_params

CONFIG = dataclasses.replace(
    gemma.PRESETS["tiny"], num_layers=3, pattern=2, vocab_size=97, head_dim=16, query_scale=16.0
)
MODEL = gemma.make(CONFIG)
TOKENS = np.random.default_rng(0).integers(3, 97, (2, 6))
SCHEME = quantisation.Scheme("int4", "q8_0")


@functools.cache
def params() -> Any:
    """Returns random parameters, those of norms included."""

    def raised(x: jax.Array) -> jax.Array:
        more = 0.01 * np.arange(x.size).reshape(x.shape) / x.size
        return jnp.asarray(np.asarray(x) + more.astype(np.float32))

    return jax.tree.map(raised, fresh_params(MODEL.init))


def of_matrix(w: jax.Array, name: Any, axis: int, _: Any) -> Any:
    return narrow_weights.Narrow(quantisation.encode(w, name, axis), name, axis)


@functools.cache
def narrow() -> Any:
    """Returns them in few bits, by one program."""
    return jax.jit(lambda tree: quantisation.map_matrices(of_matrix, tree, SCHEME))(params())


@functools.cache
def held() -> Any:
    return quantisation.held(params(), SCHEME)


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opens the table in blocks of 19 rows, and 2 rows more."""
    monkeypatch.setattr(narrow_weights, "BLOCK_BYTES", 20 * 4 * CONFIG.embed_dim)


def test_every_storage_is_a_format():
    storages = gemma_config.Storage.__args__
    assert storages == ("float32", *quantisation.FORMATS)
    assert quantisation.of_storage("q4_0") == ("q4_0", "q4_0")
    assert not quantisation.of_storage("float32")


def test_matrices_have_few_bits_and_norms_have_not():
    shapes = {name: x.shape for name, x in trees.named_leaves(params()).items()}
    leaves = jax.tree_util.tree_leaves_with_path(
        narrow(), is_leaf=lambda x: isinstance(x, narrow_weights.Narrow)
    )
    assert {jax.tree_util.keystr(p, simple=True, separator="/"): x.shape for p, x in leaves} == (
        shapes
    )
    assert trees.num_bytes(narrow()) == sum(
        4 * x.size
        if (form := SCHEME.of(tuple(name.split("/")))) is None
        else quantisation.num_bytes(x.shape, *form)
        for name, x in trees.named_leaves(params()).items()
    )
    jax.tree.map(np.testing.assert_array_equal, narrow_weights.whole(narrow()), held())
    assert narrow_weights.narrowed(params(), quantisation.FLOAT) is params()
    some = {"embedding": params()["embedding"], "final_norm": params()["final_norm"]}
    got = narrow_weights.narrowed(some, SCHEME)
    jax.tree.map(np.testing.assert_array_equal, got, {name: narrow()[name] for name in some})


@pytest.mark.usefixtures("blocks")
def test_logits_are_those_of_what_is_held():
    apply = jax.jit(MODEL.apply)
    got, expected = apply(narrow(), TOKENS), apply(held(), TOKENS)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(expected - apply(params(), TOKENS)).max() > 0.01  # Or nothing was rounded.


@pytest.mark.parametrize("axis", [-2, -1])
def test_products_and_their_gradients_are_those_of_what_is_held(axis: int):
    """Of 37 output channels, which have two blocks of 18 and one of 1."""
    rng = np.random.default_rng(1)
    w = rng.normal(size=(64, 37) if axis == -2 else (37, 64)).astype(np.float32)
    x = rng.normal(size=(3, 64)).astype(np.float32)
    multiply = narrow_weights.product if axis == -2 else narrow_weights.logits

    def loss(x: jax.Array, w: Any) -> jax.Array:
        return jnp.mean(jnp.sin(multiply(x, w)) * jnp.arange(37)[None])

    @jax.jit
    def compute(x: jax.Array, w: jax.Array) -> Any:
        stored = {name: of_matrix(w, name, axis, None) for name in quantisation.FORMATS}
        return [
            {name: jax.value_and_grad(loss)(x, w) for name, w in weights.items()}
            for weights in (stored, narrow_weights.whole(stored))
        ]

    got, expected = compute(x, w)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, expected)


def test_a_matrix_is_read_piece_by_piece():
    table = np.asarray(params()["embedding"])
    pieces = [table[:50], table[50:51], table[51:]]
    path = "embedding"
    got = narrow_weights.read(path, table.shape, pieces, SCHEME)
    jax.tree.map(np.testing.assert_array_equal, got, narrow()[path])
    norm = np.ones((2, 32), np.float32)
    whole = narrow_weights.read("periods/layer_0/x/pre_norm", norm.shape, [norm], SCHEME)
    np.testing.assert_array_equal(whole, norm)


def test_what_a_format_cannot_hold_is_refused_by_name():
    table = {"embedding": jnp.zeros((97, 16))}
    with pytest.raises(ValueError, match=r"^embedding: q4_0 takes 32 weights at a time: 16"):
        narrow_weights.narrowed(table, quantisation.of_storage("q4_0"))


# A model whose weights are large beside its activations.
LARGE = dataclasses.replace(CONFIG, num_layers=5, embed_dim=128, hidden_dim=768, vocab_size=4_001)
LAYER = 4 * (gemma.num_params(LARGE).other // LARGE.num_layers)


def shapes(scheme: quantisation.Scheme, *, apart: bool) -> Any:
    """Returns the shapes of the large model's parameters."""

    def make(key: Any) -> Any:
        tree = quantisation.map_matrices(of_matrix, gemma.make(LARGE).init(key), scheme)
        if not apart:
            return tree
        return {n: layers.unstacked(x) if n in CONFIG.blocks else x for n, x in tree.items()}

    return jax.eval_shape(make, jax.random.key(0))


@pytest.mark.parametrize("is_apart", [False, True], ids=["scanned", "apart"])
def test_no_whole_float_copy_lives_across_the_loop_over_tokens(
    is_apart: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(narrow_weights, "BLOCK_BYTES", 2**15)
    model, small = gemma.make(LARGE), shapes(quantisation.of_storage("int4"), apart=is_apart)

    def write(params: Any, tokens: Any) -> Any:
        def step(carry: Any) -> Any:
            i, tokens, cache = carry
            features, cache = model.decode(params, tokens, cache)
            logits = model.unembed(params, features[:, -1])
            return i + 1, jnp.argmax(logits, -1)[:, None], cache

        cache = model.init_cache(2, 9, np.array([1, 1]), 1)
        return jax.lax.while_loop(lambda carry: carry[0] < 5, step, (0, tokens, cache))

    analysis = jax.jit(write).lower(small, np.zeros((2, 1), int)).compile().memory_analysis()
    assert analysis is not None
    # A scan copies a period's codes. All of it in float32 is five layers, and a table of two more.
    codes = 0 if is_apart else 2 * LAYER / 8
    assert analysis.temp_size_in_bytes - codes < 0.3 * LAYER
    assert 0 < narrow_weights.opened_bytes(small) <= 2**15


@pytest.mark.slow
def test_a_gradient_through_a_base_keeps_nothing_opened():
    settings = lora.Config(rank=2)
    model = adapters.adapted(gemma.make(LARGE), settings)
    learnt = jax.eval_shape(model.init, jax.random.key(0))

    def gradient(learnt: Any, base: Any) -> Any:
        def loss(learnt: Any) -> jax.Array:
            return jnp.mean(model.features(trees.joined(base, learnt), TOKENS) ** 2)

        return jax.grad(loss)(learnt)

    def num_bytes(scheme: quantisation.Scheme) -> int:
        base = shapes(scheme, apart=False)
        analysis = jax.jit(gradient).lower(learnt, base).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert num_bytes(quantisation.of_storage("int4")) < num_bytes(quantisation.FLOAT) + LAYER
