"""Processes that the tests of theory share."""

import jax
import numpy as np
import pytest

from kullback.theory import garnet, solve
from kullback.theory.mdp import MDP

CONFIG = garnet.Config(num_states=12, num_actions=3, branching=3, discount=0.9)


@pytest.fixture(scope="session")
def garnets() -> MDP:
    """Makes twenty Garnets of 12 states and 3 actions."""
    return garnet.make(jax.random.split(jax.random.key(7), 20), CONFIG)


@pytest.fixture(scope="session")
def optimum(garnets: MDP) -> solve.Solution:
    """Solves for the Garnets' optimal values."""
    return solve.policy_iteration(garnets, tolerance=1e-12)


@pytest.fixture(scope="session")
def errors() -> np.ndarray:
    """Draws normal errors of 60 iterations of each Garnet, [20, 60, 12, 3]."""
    return 0.1 * np.random.default_rng(3).normal(size=(20, 60, 12, 3))
