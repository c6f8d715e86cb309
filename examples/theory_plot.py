"""A plot of two exact schemes: how far their policies are from the optimum, with sampled backups.

Value iteration levels off where the errors of its backups do. DA-VI, whose policy is the softmax of
the mean of all past action values, averages them (Vieillard et al., "Leverage the Average", 2020).
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

from kullback.theory import garnet, iteration, mirror, run, solve

SCHEMES = {"value iteration": iteration.value_iteration(), "DA-VI": mirror.da_vi(1.0)}


def gaps(iterations: int = 300, seeds: int = 10) -> dict[str, np.ndarray]:
    """Returns max_s v_*(s) - v_pi_k(s) for k = 0 .. iterations, [seeds, iterations + 1] each."""
    mdp = garnet.make(jax.random.key(0), garnet.Config(num_states=30, num_actions=4))
    optimum = solve.value_iteration(mdp)
    records = {}
    for name, scheme in SCHEMES.items():
        result = run.run(
            scheme,
            mdp,
            iterations,
            noise=run.sampled(),  # Each backup sees one successor, and not all.
            key=jax.random.split(jax.random.key(1), seeds),
            measure=run.policy_gap,
            context=optimum.v,
        )
        records[name] = np.asarray(result.records)
    return records


def main(iterations: int = 300, seeds: int = 10, out: str = "gaps.png") -> dict[str, np.ndarray]:
    """Prints how each scheme ends, and draws the means over seeds."""
    records = gaps(iterations, seeds)
    figure, axes = plt.subplots(figsize=(6, 4))
    for name, values in records.items():
        print(f"{name}: {values[:, -1].mean():.4f}")
        axes.semilogy(values.mean(0), label=name)
    axes.set(xlabel="iteration k", ylabel="max_s v_*(s) - v_pi_k(s), mean over seeds")
    axes.legend()
    figure.savefig(out, dpi=120)
    plt.close(figure)
    return records


if __name__ == "__main__":
    main()
