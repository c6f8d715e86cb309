"""BTR on Pong from end to end, as it runs on Atari: 64 emulators, a step of 256 a tick of them."""

from kullback.experiments.benchmarks import atari, peer, rows, timing

NUM_ENVS = 64


def run(budget: timing.Budget, run_peer: peer.Peer) -> list[rows.Row]:
    """Measures acting with learning, by the memory of frames, and acting alone; no peer takes part.

    The authors' code takes 11.5 hours for 50 million agent steps on an RTX 4090 with an i9-13900K,
    15 on an H100 with 48 cores: 1,208 and 926 a second, evaluations included.
    """
    del run_peer
    work = {
        memory: atari.runner("btr", NUM_ENVS, assignments=[f"frames_on={memory}"])
        for memory in ("host", "device")
    }
    work["acting"] = atari.runner("btr", NUM_ENVS, warm_up=100_000)  # Never learns.
    best = timing.interleave([timing.rates(work, budget.seconds)], budget.rounds)
    return [
        rows.Row(
            name=f"atari/pong, btr, {NUM_ENVS} envs, frames on the device",
            ours=best["device"],
            unit="steps/s",
            peer="frames on the host",
            peer_value=best["host"],
            details={
                "acting_steps_per_second": best["acting"],
                "acting_share": best["device"] / best["acting"],
                "learner_steps_per_second": best["device"] / NUM_ENVS,
            },
        )
    ]
