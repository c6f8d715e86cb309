"""Agent steps a second of Stable-Baselines3's DQN on Pong: SECONDS, NUM_ENVS.

One gradient step of 32 for each 4 agent steps, the network of Mnih et al., gymnasium's wrappers.
"""

import json
import os
import sys

import ale_py
import gymnasium
import sb3_rate
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv

LEARNING_STARTS = 1_000


def make():
    """Makes Pong by the protocol of Machado et al. 2018."""
    env = gymnasium.make("ALE/Pong-v5", frameskip=1, repeat_action_probability=0.25)
    env = gymnasium.wrappers.AtariPreprocessing(env, noop_max=0)
    env = gymnasium.wrappers.ClipReward(env, -1, 1)
    return gymnasium.wrappers.FrameStackObservation(env, 4)


def main():
    """Prints the rate."""
    seconds, num_envs = float(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    gymnasium.register_envs(ale_py)
    model = DQN(
        "CnnPolicy",
        DummyVecEnv([make] * num_envs),
        learning_rate=5e-5,
        buffer_size=10_000,
        learning_starts=LEARNING_STARTS,
        batch_size=32,
        train_freq=max(1, 4 // num_envs),
        gradient_steps=max(1, num_envs // 4),
        target_update_interval=8_000,
        exploration_initial_eps=0.01,
        exploration_final_eps=0.01,
        device="cpu",
        seed=0,
    )
    rate = sb3_rate.measure(model, seconds, LEARNING_STARTS + 40)
    print(json.dumps({f"sb3 {num_envs}": rate}))


if __name__ == "__main__":
    main()
