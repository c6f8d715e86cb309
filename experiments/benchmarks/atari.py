"""Pong from end to end: emulator, acting, replay, and one gradient step of 32 per 4 agent steps."""

from collections.abc import Callable

from kullback import agents
from kullback.core import host
from kullback.environments import atari
from kullback.experiments import settings
from kullback.experiments.benchmarks import machine, peer, rows, timing

NUM_ENVS, WARM_UP, CAPACITY = 4, 1_000, 10_000


def runner(name: str, warm_up: int = WARM_UP) -> Callable[[], float]:
    """A function that does one iteration of the host loop and returns its agent steps."""
    entry = agents.AGENTS[name]
    environment = atari.make("pong", NUM_ENVS)
    changes = [f"min_replay_size={warm_up}", f"capacity={max(CAPACITY, warm_up)}"]
    config = settings.apply(entry.presets("atari"), changes)
    loop = host.make(entry.make(None, environment.spec, config), environment, 0)
    state = loop.init()

    def work() -> float:
        nonlocal state
        before = loop.env_steps(state)
        state = loop.advance(state, before + 1)
        return loop.env_steps(state) - before

    while loop.env_steps(state) < WARM_UP + 100:
        work()
    return work


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """DQN beside Stable-Baselines3's, M-DQN, and the share of the time that acting takes."""
    learning = {name: runner(name) for name in ("dqn", "m-dqn")}
    acting = runner("dqn", warm_up=100_000)  # Never learns.

    def ours() -> dict[str, float]:
        found = {n: timing.best_rate(work, budget.seconds) for n, work in learning.items()}
        return {**found, "acting": timing.best_rate(acting, budget.seconds)}

    def theirs() -> dict[str, float]:
        one, four = (run_peer("sb3", "atari", budget.seconds, n) for n in (1, NUM_ENVS))
        return {**one, **four}

    best = timing.interleave([machine.sgemm(), ours, theirs], budget.rounds)
    peers = [key for key in best if key.startswith("sb3")]
    fastest = max(peers, key=best.__getitem__, default=None)
    return [
        rows.Row(
            name=f"atari/pong, {name}",
            ours=best[name],
            unit="steps/s",
            peer=f"SB3 DQN, {fastest.split()[1]} envs" if fastest else "",
            peer_value=best[fastest] if fastest else None,
            target_ratio=1.5 if name == "dqn" else None,
            details={
                "acting_steps_per_second": best["acting"],
                "acting_share": best[name] / best["acting"],
                **{key: best[key] for key in peers},
            },
        )
        for name in learning
    ]
