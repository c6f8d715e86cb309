"""Writes what entmax and sparsemax give on random logits: FOLDER (entmax.npz).

For an environment with entmax and torch (CPU). Arrays, float64 unless said: theta [N, V], labels
int64 [N], alphas [n]. For each alpha p [n, N, V], the loss of the labels [n, N] and its gradient
[n, N, V]; vjp [n, N, V], the product of `cotangent` [N, V] with the Jacobian of p. Bisection gives
alpha 1.25, the exact algorithms 1.5 and 2.
"""

import functools
import pathlib
import sys

import entmax
import numpy as np
import torch

N, V = 24, 33


def bisected(function, alpha):
    """Computes an operator or loss by bisection, to the last bit of float64."""
    return functools.partial(function, alpha=alpha, n_iter=100)


OPERATORS = {
    1.25: (
        bisected(entmax.entmax_bisect, 1.25),
        bisected(entmax.entmax_bisect_loss, 1.25),
    ),
    1.5: (entmax.entmax15, entmax.entmax15_loss),
    2.0: (entmax.sparsemax, entmax.sparsemax_loss),
}


def main():
    """Writes the file."""
    folder = pathlib.Path(sys.argv[1])
    rng = np.random.default_rng(0)
    # From nearly uniform to nearly certain, with ties in row 0.
    theta = rng.normal(size=(N, V)) * np.geomspace(0.05, 8, N)[:, None]
    theta[0] = np.round(theta[0], 1)
    labels, cotangent = rng.integers(0, V, N), rng.normal(size=(N, V))
    results = {"p": [], "loss": [], "gradient": [], "vjp": []}
    for operator, loss_of in OPERATORS.values():
        logits = torch.tensor(theta, requires_grad=True)
        p = operator(logits, dim=-1)
        (vjp,) = torch.autograd.grad(p, logits, torch.tensor(cotangent))
        loss = loss_of(logits, torch.tensor(labels))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        for name, value in (("p", p), ("loss", loss), ("gradient", gradient), ("vjp", vjp)):
            results[name].append(value.detach().numpy())
    np.savez_compressed(
        folder / "entmax.npz",
        theta=theta,
        labels=labels,
        cotangent=cotangent,
        alphas=np.array(list(OPERATORS)),
        **{name: np.stack(values) for name, values in results.items()},
    )


if __name__ == "__main__":
    main()
