"""Tests of lm/value_network.py."""

import dataclasses
from typing import Any

import jax
import numpy as np
import optax

from kullback.lm import batches, gemma, value_network
from kullback.lm.data import Example
from tests.states import fresh_params

MODEL = gemma.make(
    dataclasses.replace(
        gemma.PRESETS["tiny"], vocab_size=8, num_layers=1, embed_dim=8, hidden_dim=8, window=4
    )
)


def test_it_predicts_nothing_at_first_and_then_what_its_head_reads():
    params = value_network.with_value(fresh_params(MODEL.init))
    rows = batches.pad([Example((2, 5), (3, 7)), Example((2, 4), (6, 1))], 4, 0)

    @jax.jit
    def both(params):
        features = MODEL.features(params[value_network.KEY]["decoder"], rows.tokens)
        return value_network.predict(MODEL, params, rows), features

    np.testing.assert_array_equal(both(params)[0], np.zeros((2, 3)))
    head = np.random.default_rng(0).normal(size=8).astype(np.float32)
    predicted, features = both(
        {**params, value_network.KEY: {**params[value_network.KEY], "head": head}}
    )
    np.testing.assert_allclose(predicted, np.asarray(features)[:, :3] @ head, atol=1e-5)


def test_a_policy_without_one_is_as_it_was_before():
    params = fresh_params(MODEL.init)
    for one in (params, value_network.with_value(params)):
        assert value_network.without(one).keys() == params.keys()


def test_each_of_the_two_is_moved_by_its_own_optimiser():
    params = {"embedding": np.ones(2, np.float32), value_network.KEY: {"head": np.ones(3)}}
    optimiser = value_network.beside(optax.sgd(1.0), optax.sgd(0.25))
    updates: Any
    updates, _ = optimiser.update(params, optimiser.init(params), params)
    np.testing.assert_array_equal(updates["embedding"], [-1, -1])
    np.testing.assert_array_equal(updates[value_network.KEY]["head"], [-0.25] * 3)
