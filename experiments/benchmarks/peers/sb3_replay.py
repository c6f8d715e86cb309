"""Batches a second of Stable-Baselines3's replay: SECONDS, CAPACITY, COMPACT (0 or 1).

Compact, it keeps an observation once (28 kB a transition), else twice (56 kB).
"""

import json
import sys

import numpy as np
from gymnasium import spaces
from rate import best_rate
from stable_baselines3.common.buffers import ReplayBuffer

BATCH = 32


def main():
    """Prints the rate."""
    seconds, capacity, compact = float(sys.argv[1]), int(sys.argv[2]), bool(int(sys.argv[3]))
    buffer = ReplayBuffer(
        capacity,
        spaces.Box(0, 255, (4, 84, 84), np.uint8),
        spaces.Discrete(6),
        device="cpu",
        optimize_memory_usage=compact,
        handle_timeout_termination=not compact,  # The two exclude each other.
    )
    buffer.observations[:] = 1  # Pages that were never written are not read from memory.
    if not compact:
        buffer.next_observations[:] = 1
    buffer.full = True

    def work():
        buffer.sample(BATCH)
        return 1

    work()
    name = "sb3 compact" if compact else "sb3"
    print(json.dumps({name: best_rate(work, seconds)}))


if __name__ == "__main__":
    main()
