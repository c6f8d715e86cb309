"""Processes a second: SECONDS, STATES, ACTIONS, BRANCHING, DISCOUNT, TOLERANCE.

Garnets with dense transitions, one after the other, by value and by policy iteration.
"""

import itertools
import json
import sys

import numpy as np
from quantecon.markov import DiscreteDP
from rate import best_rate

NUM_PROCESSES, MAX_ITERATIONS = 20, 100_000


def garnet(rng, states, actions, branching):
    """Draws rewards [S, A] and transitions [S, A, S]."""
    q = np.zeros((states, actions, states))
    for state in range(states):
        for action in range(actions):
            successors = rng.choice(states, branching, replace=False)
            q[state, action, successors] = rng.dirichlet(np.ones(branching))
    reward = np.zeros(states)
    reward[rng.choice(states, max(1, states // 10), replace=False)] = rng.random(
        max(1, states // 10)
    )
    return np.repeat(reward[:, None], actions, 1), q


def solver(method, processes, tolerance):
    """Makes a function that solves the next process to within the tolerance and returns 1."""
    turn = itertools.cycle(processes)

    def work():
        # Its values are within epsilon / 2.
        next(turn).solve(method=method, epsilon=2 * tolerance, max_iter=MAX_ITERATIONS)
        return 1

    return work


def main():
    """Prints rates by method."""
    seconds, discount, tolerance = float(sys.argv[1]), float(sys.argv[5]), float(sys.argv[6])
    sizes = map(int, sys.argv[2:5])
    states, actions, branching = sizes
    rng = np.random.default_rng(0)
    processes = [
        DiscreteDP(*garnet(rng, states, actions, branching), discount) for _ in range(NUM_PROCESSES)
    ]
    rates = {}
    for method in ("value_iteration", "policy_iteration"):
        work = solver(method, processes, tolerance)
        work()  # Compiles.
        rates[method] = best_rate(work, seconds)
    print(json.dumps(rates))


if __name__ == "__main__":
    main()
