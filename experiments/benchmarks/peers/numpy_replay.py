"""Batches a second out of a ring of frames by one fancy index: SECONDS, CAPACITY.

What a replay could be if there were no episodes: no ends, no zeros before a start, no wrapping.
"""

import json
import sys

import numpy as np
from rate import best_rate

BATCH, STACK = 32, 4


def main():
    """Prints the rate."""
    seconds, capacity = float(sys.argv[1]), int(sys.argv[2])
    frames = np.ones((capacity, 84, 84), np.uint8)
    action = np.zeros(capacity, np.int32)
    reward, discount = np.zeros(capacity, np.float32), np.ones(capacity, np.float32)
    around = np.arange(1 - STACK, 2)[None]  # The stack and the frame after it.
    generator = np.random.default_rng(0)

    def work():
        at = generator.integers(STACK - 1, capacity - 1, BATCH)
        pair = frames[at[:, None] + around]  # [BATCH, 5, 84, 84]
        _ = pair[:, :-1], pair[:, 1:], action[at], reward[at], discount[at]
        return 1

    work()
    print(json.dumps({"numpy": best_rate(work, seconds)}))


if __name__ == "__main__":
    main()
