"""Agent steps a second of Stable-Baselines3's DQN on MinAtar's Breakout: SECONDS, NUM_ENVS.

One gradient step of 32 for each 4 agent steps; the network of Young & Tian.
"""

import json
import os
import sys

import gymnasium
import minatar
import numpy as np
import sb3_rate
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

LEARNING_STARTS = 1_000


class Breakout(gymnasium.Env):
    """The game as the `minatar` package plays it."""

    observation_space = gymnasium.spaces.Box(0, 1, (4, 10, 10), np.float32)
    action_space = gymnasium.spaces.Discrete(6)

    def __init__(self):
        """Builds the game."""
        self.game = minatar.Environment("breakout")

    def observe(self):
        """Moves the channels to the front."""
        return self.game.state().transpose(2, 0, 1).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        """Starts an episode."""
        self.game.reset()
        return self.observe(), {}

    def step(self, action):
        """Does one step."""
        reward, done = self.game.act(action)
        return self.observe(), float(reward), done, False, {}


class Torso(BaseFeaturesExtractor):
    """One convolution and one dense layer."""

    def __init__(self, space):
        """Builds the layers."""
        super().__init__(space, 128)
        nn = torch.nn
        layers = nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU()
        self.layers = nn.Sequential(*layers)

    def forward(self, observation):
        """Computes the features."""
        return self.layers(observation)


def main():
    """Prints the rate."""
    seconds, num_envs = float(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    network = {"features_extractor_class": Torso, "normalize_images": False, "net_arch": []}
    model = DQN(
        "CnnPolicy",
        DummyVecEnv([Breakout] * num_envs),
        learning_rate=2.5e-4,
        buffer_size=100_000,
        learning_starts=LEARNING_STARTS,
        batch_size=32,
        train_freq=1,
        gradient_steps=num_envs // 4,
        target_update_interval=4_000,
        policy_kwargs=network,
        device="cpu",
        seed=0,
    )
    print(json.dumps({"sb3": sb3_rate.measure(model, seconds, LEARNING_STARTS + 320)}))


if __name__ == "__main__":
    main()
