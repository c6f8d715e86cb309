"""The polytope of the values of a process with two states, and ways through it.

Dadashi, Taiga, Le Roux, Schuurmans & Bellemare, "The value function polytope in reinforcement
learning", ICML 2019, https://arxiv.org/abs/1901.11524. Its edges are values of policies that are
deterministic in one state.
"""

import numpy as np
from matplotlib.axes import Axes

from kullback.experiments import reproduce
from kullback.theory import mdp as mdps
from kullback.theory import run, solve
from kullback.theory.mdp import MDP
from kullback.theory.scheme import Scheme


def two_states() -> MDP:
    """Two states with two actions each, whose values make a polytope that one can draw."""
    probabilities = np.array([[[0.12, 0.88], [0.63, 0.37]], [[0.0, 1.0], [0.0, 1.0]]])
    return mdps.make(probabilities, np.array([[-0.1, 0.5], [0.1, 0.0]]), 0.8)


def rows(schemes: dict[str, Scheme], iterations: int) -> reproduce.Rows:
    """Values of both states: of the edges of the polytope, and of the iterates of schemes."""
    mdp = two_states()
    found: reproduce.Rows = []

    def add(what: str, log_policies: np.ndarray) -> None:
        for k, log_policy in enumerate(log_policies):
            v, _ = solve.policy_values(mdp, log_policy)
            found.append({"what": what, "iteration": k, "v1": float(v[0]), "v2": float(v[1])})

    line = np.linspace(0, 1, 21)
    for state in (0, 1):
        for action in (0, 1):
            first = np.empty((len(line), 2))
            first[:, state], first[:, 1 - state] = action, line
            with np.errstate(divide="ignore"):
                edge = np.log(np.stack([first, 1 - first], -1))
            add(f"edge {state} {action}", edge)
    for label, scheme in schemes.items():
        add(label, run.run(scheme, mdp, iterations).records.state.log_policy)
    return found


def draw(axes: Axes, rows: reproduce.Rows) -> None:
    """Edges as lines, iterates as points."""
    for number, what in enumerate(dict.fromkeys(row["what"] for row in rows)):
        x, y = zip(*((r["v1"], r["v2"]) for r in rows if r["what"] == what), strict=True)
        if what.startswith("edge"):
            axes.plot(x, y, color="0.5", lw=1, label=None if number else "one state deterministic")
        else:
            axes.plot(x, y, "o-", markersize=3, lw=1, label=what)
    axes.set(xlabel=r"$v_\pi(s_1)$", ylabel=r"$v_\pi(s_2)$", title="Ways through the values")
