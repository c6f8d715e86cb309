"""Every agent on MinAtar's Breakout beside M-DQN, and what priorities cost.

Acting and learning in one program, one seed, 16 environments. Agents whose loss costs what M-DQN's
does, or a few times it, should reach half of its speed; those that ask for many quantiles a share
of what the products in their networks allow at the machine's rate of matrix products. The last rows
say how much longer Rainbow takes with priorities than without, compiled and beside a host.
"""

import functools
from collections.abc import Callable

from kullback import agents
from kullback.agents import quantile
from kullback.core import host, impala
from kullback.environments import gym
from kullback.experiments.benchmarks import flops, machine, minatar, peer, rows, timing
from kullback.experiments.runs import settings

ACTIONS, CHANNELS, FEATURES = 6, 4, 8 * 8 * 16
IMPLICIT = ("btr", "iqn", "m-iqn")
UNIFORM = ("priority_exponent=0",)
MOST_OF_PRIORITIES = 1.1  # Time of a step with priorities, in times that without.


def host_runner(name: str, assignments: tuple[str, ...] = ()) -> Callable[[], float]:
    """Makes a function as `minatar.runner` does, for CartPole on the host."""
    entry = agents.AGENTS[name]
    environment = gym.make("CartPole-v1", 4)
    config = settings.apply(entry.presets("gym"), assignments)
    loop = host.make(entry.make(None, environment.spec, config), environment, 0)
    return timing.advancing(loop, minatar.PIECE, 3 * minatar.WARM_UP)


def torso(name: str) -> tuple[flops.Layer, ...]:
    """Returns the layers of an agent's torso on MinAtar's 10 x 10 cells."""
    if name != "btr":
        return (flops.Layer(FEATURES, 3 * 3 * CHANNELS),)
    return flops.impala(CHANNELS, 10, impala.BLOCKS["impala_small"])


def implicit_flops(name: str) -> float:
    """Counts the operations of IQN, M-IQN or BTR on MinAtar per agent step: acting and learning."""
    config = agents.AGENTS[name].presets("minatar")
    samples: quantile.Samples = config.samples
    hidden, replay = config.network.hidden, config.learning.replay
    layers, is_btr = torso(name), name == "btr"
    pass_of_torso = flops.forward(layers)
    features = 5 * 5 * 32 if is_btr else FEATURES
    streams = 2 if is_btr else 1  # The second has one output, the value.
    head = (
        flops.Layer(features, config.network.num_cosines),
        flops.Layer(streams * hidden, features),
        flops.Layer(ACTIONS + streams - 1, hidden),
    )
    each = flops.forward(head)  # For one quantile.
    # Forward at s, and its gradient: of the first layers by their weights alone.
    online = samples.online * (2 * each + flops.forward(head[1:]))
    online += 2 * pass_of_torso + flops.forward(layers[1:])
    target = samples.target * each + pass_of_torso
    if not is_btr:  # Its policy at s' is of the same quantiles.
        target += samples.policy * each
    if name != "iqn":  # The policy at s, which for BTR is the online network's.
        target += samples.policy * each + (0 if is_btr else pass_of_torso)
    learning = replay.batch_size * (online + target) / replay.samples_per_update
    return learning + samples.policy * each + pass_of_torso


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures each agent beside M-DQN, in turn; no other library takes part."""
    del run_peer
    works = {name: minatar.runner(1, name) for name in agents.AGENTS}
    works["rainbow uniform"] = minatar.runner(1, "rainbow", UNIFORM)
    works["host"] = host_runner("rainbow")
    works["host uniform"] = host_runner("rainbow", UNIFORM)

    def measure(name: str) -> dict[str, float]:
        return {name: timing.best_rate(works[name], budget.seconds)}

    sides = [machine.sgemm(), *(functools.partial(measure, name) for name in works)]
    best = timing.interleave(sides, budget.rounds)
    results = []
    for name in sorted(agents.AGENTS):
        is_implicit = name in IMPLICIT
        share = best[name] * implicit_flops(name) / best["sgemm"] if is_implicit else None
        results.append(
            rows.Row(
                name=f"{name}, minatar/breakout",
                ours=best[name],
                unit="steps/s",
                peer="m-dqn",
                peer_value=best["m-dqn"],
                target_ratio=None if is_implicit else 0.5,
                limit_share=share,
                target_limit_share=0.3 if is_implicit else None,
            )
        )
    for where, with_, without in (
        ("compiled", "rainbow", "rainbow uniform"),
        ("host", "host", "host uniform"),
    ):
        results.append(
            rows.Row(
                name=f"rainbow's step with priorities, {where}",
                ours=best[without] / best[with_],
                unit="times that without",
                lower_is_better=True,
                target=MOST_OF_PRIORITIES,
                details={"with": best[with_], "without": best[without]},
            )
        )
    return results
