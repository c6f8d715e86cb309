"""Tests of theory/garnet.py."""

import itertools

import jax
import numpy as np
import pytest
from scipy import stats

from kullback.theory import garnet, mdp
from kullback.theory.mdp import MDP


def test_a_batch_is_of_garnets(garnets: MDP):
    assert garnets.batch_shape == (20,) and garnets.probabilities.shape == (20, 12, 3, 3)
    assert garnets.reward.dtype == np.float64
    checked = mdp.make(**garnets._asdict())  # Rows sum to one, and so on.
    jax.tree.map(np.testing.assert_array_equal, checked, garnets)
    assert np.all(garnets.probabilities > 0)
    ordered = np.sort(np.asarray(garnets.successors), -1)
    assert np.all(np.diff(ordered) > 0)  # Without replacement.
    np.testing.assert_array_equal(np.sum(garnets.reward[:, :, 0] > 0, 1), 1)  # round(1.2)
    assert np.all(garnets.reward == garnets.reward[:, :, :1])


def test_a_key_gives_the_same_process_alone(garnets: MDP):
    keys = jax.random.split(jax.random.key(7), 20)
    config = garnet.Config(num_states=12, num_actions=3, branching=3, discount=0.9)
    alone = garnet.make(keys[3], config)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[3]), alone, garnets)


def test_every_set_of_successors_is_as_likely_and_probabilities_are_dirichlet():
    config = garnet.Config(num_states=5, num_actions=400, branching=3)
    process = garnet.make(jax.random.key(0), config)
    rows = np.sort(np.reshape(np.asarray(process.successors), (-1, 3)), -1)
    sets = list(itertools.combinations(range(5), 3))
    counts = [np.sum(np.all(rows == each, -1)) for each in sets]
    assert sum(counts) == 2_000
    assert stats.chisquare(counts).pvalue > 1e-3
    # Of Dirichlet(1, 1, 1) every margin is Beta(1, 2).
    for n in range(3):
        margin = process.probabilities[..., n].ravel()
        assert stats.kstest(margin, stats.beta(1, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("branching", [1, 4])
def test_extremes_of_branching(branching: int):
    config = garnet.Config(num_states=4, num_actions=2, branching=branching)
    process = garnet.make(jax.random.key(1), config)
    if branching == 1:
        np.testing.assert_array_equal(process.probabilities, 1)
    else:
        ordered = np.sort(np.asarray(process.successors), -1)
        np.testing.assert_array_equal(ordered, np.broadcast_to(np.arange(4), ordered.shape))


@pytest.mark.parametrize(
    "arguments",
    [{"branching": 0}, {"branching": 31}, {"discount": 1.0}, {"rewarded": 2}, {"num_states": 0}],
)
def test_impossible_garnets_are_refused(arguments: dict):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        garnet.Config(**arguments)
