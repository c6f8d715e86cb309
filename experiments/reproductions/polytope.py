"""The polytope of the values of a process with two states, and ways through it.

Dadashi, Taiga, Le Roux, Schuurmans & Bellemare, "The value function polytope in reinforcement
learning", ICML 2019, https://arxiv.org/abs/1901.11524. Its edges are values of policies that are
deterministic in one state.
"""

import numpy as np

from kullback.experiments.reproductions import charts, garnets, study
from kullback.theory import mdp, run, solve
from kullback.theory.mdp import MDP
from kullback.theory.scheme import Scheme


def two_states() -> MDP:
    """Returns two states with two actions each, whose values make a polytope that one can draw."""
    probabilities = np.array([[[0.12, 0.88], [0.63, 0.37]], [[0.0, 1.0], [0.0, 1.0]]])
    return mdp.make(probabilities, np.array([[-0.1, 0.5], [0.1, 0.0]]), 0.8)


def rows(schemes: dict[str, Scheme], iterations: int) -> study.Rows:
    """Returns values of both states, of the edges of the polytope and of iterates of schemes."""
    process = two_states()
    points: study.Rows = []

    def add(what: str, log_policies: np.ndarray) -> None:
        for k, log_policy in enumerate(log_policies):
            v, _ = solve.policy_values(process, log_policy)
            points.append({"what": what, "iteration": k, "v1": float(v[0]), "v2": float(v[1])})

    line = np.linspace(0, 1, 21)
    for state in (0, 1):
        for action in (0, 1):
            first = np.empty((len(line), 2))
            first[:, state], first[:, 1 - state] = action, line
            with np.errstate(divide="ignore"):
                edge = np.log(np.stack([first, 1 - first], -1))
            add(f"edge {state} {action}", edge)
    for label, scheme in schemes.items():
        add(label, run.run(scheme, process, iterations).records.state.log_policy)
    return points


def panel(rows: study.Rows) -> charts.Panel:
    """Returns edges as lines, iterates as points."""
    marks: list[charts.Line] = []
    for number, what in enumerate(dict.fromkeys(row["what"] for row in rows)):
        x, y = (study.column(rows, name, what=what) for name in ("v1", "v2"))
        if what.startswith("edge"):
            label = None if number else "one state deterministic"
            marks.append(charts.Line(x, y, label, {"color": "0.5", "lw": 1}))
        else:
            marks.append(charts.Line(x, y, what, {"marker": "o", "markersize": 3, "lw": 1}))
    axes = {"xlabel": r"$v_\pi(s_1)$", "xscale": "linear", "yscale": "linear"}
    return garnets.panel(marks, "Ways through the values", r"$v_\pi(s_2)$", 1, **axes)
