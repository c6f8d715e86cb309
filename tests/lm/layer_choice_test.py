"""Tests of lm/layer_choice.py."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.lm import gemma, layer_choice
from tests.states import fresh_params

CONFIG = dataclasses.replace(gemma.PRESETS["tiny"], vocab_size=32, num_layers=8, pattern=4)
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 12)).astype(np.int32)


@pytest.fixture(scope="module")
def params() -> Any:
    """Returns random parameters, norms among them."""
    random = np.random.default_rng(1)

    def noisy(x: jax.Array) -> np.ndarray:
        return np.asarray(x) + 0.1 * random.normal(size=x.shape).astype(np.float32)

    return jax.tree.map(noisy, fresh_params(gemma.make(CONFIG).init))


WHOLE = jax.jit(gemma.make(CONFIG).apply)


def without(params: Any, dropped: set[int]) -> Any:
    """Returns the model whose dropped layers add nothing: a norm's scale is 1 + w."""
    params = jax.tree.map(np.copy, params)
    for layer in dropped:
        period, place = divmod(layer, CONFIG.pattern)
        for branch in ("attention", "feed_forward"):
            norm = params["periods"][f"layer_{place}"][branch]
            norm["post_norm"][period] = -1.0
    return params


@pytest.mark.parametrize(
    ("layers", "pattern"), [([1, 3, 5, 7], 2), ([0, 2, 3, 4, 5, 7], 3), ([0, 1, 2], 4), ([3], 1)]
)
def test_a_shallower_model_is_one_whose_other_layers_add_nothing(
    params: Any, layers: list[int], pattern: int
):
    config, kept = layer_choice.choose(CONFIG, params, layers)
    assert (config.num_layers, config.pattern) == (len(layers), pattern)
    assert jax.tree.map(jnp.shape, kept) == jax.tree.map(
        jnp.shape, jax.eval_shape(gemma.make(config).init, jax.random.key(0))
    )
    expected = WHOLE(without(params, {*range(8)} - {*layers}), TOKENS)
    got = jax.jit(gemma.make(config).apply)(kept, TOKENS)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_all_layers_are_the_model_itself(params: Any):
    config, kept = layer_choice.choose(CONFIG, params, range(8))
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, kept, params)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "must be numbers from 0 on that rise"),
        ([2, 1], "that rise"),
        ([1, 1], "that rise"),
        ([-1, 3], "from 0 on"),
        ([3, 8], "must lie below 8"),
        ([0, 3, 6, 5], "that rise"),
        ([2, 3, 7], "at a regular distance, got"),
    ],
)
def test_refusals(layers: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        layer_choice.chosen_config(CONFIG, layers)


def test_the_270m_halves_to_every_other_layer():
    config = layer_choice.chosen_config(gemma.PRESETS["gemma3-270m"], range(1, 18, 2))
    assert (config.num_layers, config.pattern) == (9, 3)
    assert [config.is_global(n) for n in range(9)] == [False, False, True] * 3
