"""Exact tabular schemes and their twins in convex optimisation; no neural network.

One file a family of schemes, one line here.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kullback.core import regularizers
from kullback.theory import (
    advantage,
    conservative,
    iteration,
    mirror,
    momentum,
    munchausen,
    munchausen_f,
    politex,
)
from kullback.theory.scheme import Scheme

__all__ = ["SCHEMES", "Entry"]


class Entry(NamedTuple):
    """A constructor of a scheme, and arguments to show it with."""

    make: Callable[..., Scheme]  # **arguments -> Scheme.
    defaults: Mapping[str, Any]


# Schemes by name.
SCHEMES: dict[str, Entry] = {
    "vi": Entry(iteration.value_iteration, {}),
    "pi": Entry(iteration.policy_iteration, {}),
    "mpi": Entry(iteration.modified_policy_iteration, {"m": 5}),
    "soft-vi": Entry(iteration.value_iteration, {"tau": 0.03}),
    "soft-pi": Entry(iteration.policy_iteration, {"tau": 0.03}),
    "soft-mpi": Entry(iteration.modified_policy_iteration, {"m": 5, "tau": 0.03}),
    "cpi": Entry(conservative.cpi, {"rate": 0.1}),
    "cpi-optimal": Entry(conservative.cpi, {"rate": conservative.optimal}),
    "cpi-adaptive": Entry(conservative.cpi, {"rate": conservative.adaptive}),
    "md-mpi-1": Entry(mirror.md_mpi, {"lambda_": 0.1, "m": 5}),
    "md-mpi-2": Entry(mirror.md_mpi, {"lambda_": 0.1, "m": 5, "regularized": False}),
    "md-vi": Entry(mirror.md_vi, {"lambda_": 0.1, "tau": 0.01}),
    "da-vi": Entry(mirror.da_vi, {"lambda_": 0.1, "tau": 0.01}),
    "da-mpi": Entry(mirror.da_mpi, {"lambda_": 0.1, "m": 5}),
    "politex": Entry(politex.politex, {"eta": 1.0}),
    "m-vi": Entry(munchausen.munchausen_vi, {"alpha": 0.9, "tau": 0.03}),
    "m-vi-f": Entry(
        munchausen_f.munchausen_f_vi,
        {"alpha": 0.9, "tau": 0.03, "divergence": regularizers.alpha(1.5)},
    ),
    "movi": Entry(momentum.momentum_vi, {}),
    "speedy": Entry(momentum.speedy_vi, {}),
    "al": Entry(advantage.advantage_learning, {"alpha": 0.9}),
}
