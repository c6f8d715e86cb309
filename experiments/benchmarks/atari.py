"""Pong from end to end: emulator, acting, replay, and one gradient step of 32 per 4 agent steps."""

from collections.abc import Callable, Sequence

from kullback import agents
from kullback.core import host
from kullback.environments import atari
from kullback.experiments.benchmarks import machine, peer, rows, timing
from kullback.experiments.runs import settings

NUM_ENVS = (4, 16)
PEER_NUM_ENVS = (1, 4, 16)
WARM_UP, CAPACITY = 1_000, 10_000


def runner(
    name: str, num_envs: int, warm_up: int = WARM_UP, assignments: Sequence[str] = ()
) -> Callable[[], float]:
    """Makes a function that does one iteration of the host loop and returns its agent steps."""
    entry = agents.AGENTS[name]
    environment = atari.make("pong", num_envs)
    sizes = [f"min_replay_size={warm_up}", f"capacity={max(CAPACITY, warm_up)}"]
    config = settings.apply(entry.presets("atari"), [*sizes, *assignments])
    loop = host.make(entry.make(None, environment.spec, config), environment, 0)
    return timing.advancing(loop, 1, WARM_UP + 100)


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures DQN beside Stable-Baselines3's fastest, M-DQN, and the share of acting."""
    names = ("dqn", "m-dqn")
    work = {f"{name} {n}": runner(name, n) for name in names for n in NUM_ENVS}
    work |= {f"acting {n}": runner("dqn", n, warm_up=100_000) for n in NUM_ENVS}  # Never learns.
    ours = timing.rates(work, budget.seconds)

    def theirs() -> dict[str, float]:
        rates = {}
        for num_envs in PEER_NUM_ENVS:
            rates |= run_peer("sb3", "atari", budget.seconds, num_envs)
        return rates

    best = timing.interleave([machine.sgemm(), ours, theirs], budget.rounds)
    peers = {key: rate for key, rate in best.items() if key.startswith("sb3")}
    results = []
    for name in names:
        num_envs = max(NUM_ENVS, key=lambda n, name=name: best[f"{name} {n}"])
        rate, acting = best[f"{name} {num_envs}"], best[f"acting {num_envs}"]
        results.append(
            rows.Row(
                name=f"atari/pong, {name}, {num_envs} envs",
                ours=rate,
                unit="steps/s",
                peer=f"SB3 DQN, {max(peers, key=peers.__getitem__)[4:]} envs" if peers else "",
                peer_value=max(peers.values(), default=None),
                target_ratio=1.5 if name == "dqn" else None,
                details={
                    "acting_steps_per_second": acting,
                    "acting_share": rate / acting,
                    **{key: value for key, value in best.items() if key.startswith(name)},
                    **peers,
                },
            )
        )
    return results
