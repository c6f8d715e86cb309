"""Batches a second of cpprb's replay, which keeps each frame once: SECONDS, CAPACITY."""

import json
import sys

import numpy as np
from cpprb import ReplayBuffer
from rate import best_rate

BATCH, EPISODE = 32, 1_000


def main():
    """Prints the rate."""
    seconds, capacity = float(sys.argv[1]), int(sys.argv[2])
    fields = {
        "obs": {"shape": (84, 84, 4), "dtype": np.uint8},
        "act": {"dtype": np.int32},
        "rew": {"dtype": np.float32},
        "done": {"dtype": np.float32},
    }
    buffer = ReplayBuffer(capacity, fields, next_of="obs", stack_compress="obs")
    frames = np.random.default_rng(0).integers(0, 256, (84, 84, EPISODE + 4), np.uint8)
    stacks = np.lib.stride_tricks.sliding_window_view(frames, 4, axis=2)
    stacks = np.ascontiguousarray(stacks.transpose(2, 0, 1, 3))  # [EPISODE + 1, 84, 84, 4]
    zeros = np.zeros(EPISODE, np.float32)
    for _ in range(-(-capacity // EPISODE)):
        buffer.add(
            obs=stacks[:-1], next_obs=stacks[1:], act=zeros.astype(np.int32), rew=zeros, done=zeros
        )
        buffer.on_episode_end()

    def work():
        buffer.sample(BATCH)
        return 1

    work()
    print(json.dumps({"cpprb": best_rate(work, seconds)}))


if __name__ == "__main__":
    main()
