"""MinAtar Breakout, acting and learning: 16 environments, one step of 32 per 4 agent steps."""

import functools
from collections.abc import Callable, Sequence

from kullback import agents
from kullback.core import compiled
from kullback.environments import minatar
from kullback.experiments.benchmarks import machine, peer, rows, timing
from kullback.experiments.runs import settings

NUM_ENVS, SEEDS, WARM_UP = 16, 4, 1_000
PIECE = 100_000  # Steps that are asked for; the loop cuts them to half a second or so.


def runner(seeds: int, name: str = "m-dqn", assignments: Sequence[str] = ()) -> Callable[[], float]:
    """Makes a function that advances the compiled loop once; it returns the steps of each seed."""
    entry = agents.AGENTS[name]
    environment = minatar.make("breakout", NUM_ENVS)
    assignments = [f"min_replay_size={WARM_UP}", *assignments]
    config = settings.apply(entry.presets("minatar"), assignments)
    agent = entry.make(None, environment.spec, config)
    return timing.advancing(compiled.make(agent, environment, range(seeds)), PIECE, 3 * WARM_UP)


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures one seed beside Stable-Baselines3, and four seeds in one program beside one."""
    ours = timing.rates({"one": runner(1), "four": runner(SEEDS)}, budget.seconds)
    theirs = functools.partial(run_peer, "sb3", "minatar", budget.seconds, NUM_ENVS)
    best = timing.interleave([machine.sgemm(), ours, theirs], budget.rounds)
    return [
        rows.Row(
            name="minatar/breakout, m-dqn",
            ours=best["one"],
            unit="steps/s",
            **rows.of_peer(best, "sb3", "SB3 DQN"),
            target=4_000,
        ),
        rows.Row(
            name=f"time of {SEEDS} seeds in one program",
            ours=best["one"] / best["four"],
            unit="runs",
            lower_is_better=True,
            target=1.3 * SEEDS,
            details={"steps_per_second_of_each": best["four"]},
        ),
    ]
