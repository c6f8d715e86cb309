"""Measures how fast a model of Stable-Baselines3 runs once it learns."""

import time

from stable_baselines3.common.callbacks import BaseCallback

WINDOW_SECONDS = 0.5


class Rate(BaseCallback):
    """Stops `learn` after `seconds` of learning; `best` is the best window's steps a second.

    Windows begin and end where the collection of data does, so that each holds as many gradient
    steps as belong to its agent steps.
    """

    def __init__(self, seconds, warm_up):
        """Measures from `warm_up` agent steps on."""
        super().__init__()
        self.seconds, self.warm_up, self.best = seconds, warm_up, 0.0
        self.start = self.window = None
        self.over = False

    def _on_rollout_start(self):
        now = time.perf_counter()
        if self.num_timesteps < self.warm_up:
            return
        if self.start is None:
            self.start, self.window = now, (now, self.num_timesteps)
            return
        since, steps = self.window
        if now - since >= min(WINDOW_SECONDS, self.seconds):
            self.best = max(self.best, (self.num_timesteps - steps) / (now - since))
            self.window = (now, self.num_timesteps)
            self.over = now - self.start >= self.seconds

    def _on_step(self):
        return not self.over


def measure(model, seconds, warm_up):
    """Measures agent steps a second."""
    rate = Rate(seconds, warm_up)
    model.learn(10**9, callback=rate, log_interval=None)
    return rate.best
