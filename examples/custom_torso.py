"""A network of your own: any function that uses Haiku modules, observations [B, ...] -> [B, D].

The head, a linear layer to the action values, is the agent's. Here: two residual blocks with
layer normalisation, on a corridor in which a tenth of the steps goes the other way.
"""

import functools

import haiku as hk
import jax
import numpy as np

from kullback import experiments
from kullback.agents import munchausen
from kullback.core import types
from kullback.environments import toy

corridor = functools.partial(toy.chain, length=10, slip=0.1)


def torso(observation: jax.Array) -> jax.Array:
    """Maps observations [B, S] to features [B, 64]."""
    x = hk.Linear(64)(observation)
    for _ in range(2):
        y = hk.LayerNorm(axis=-1, create_scale=True, create_offset=True)(x)
        x = x + hk.nets.MLP([64, 64], activation=jax.nn.silu)(y)
    return jax.nn.relu(x)


def agent(spec: types.Spec) -> types.Agent:
    """Returns M-DQN with that network and the presets of the toys."""
    return munchausen.make(torso, spec, munchausen.presets("toy"))


def main(steps: int = 8_000, out: str | None = None) -> experiments.Run:
    """Trains it and returns the run; each row of its metrics.csv is shown as it is written."""
    path = experiments.train(
        agent,
        corridor,
        steps=steps,
        out=out,
        callback=lambda row: print(f"step {row['steps']}: return {row['recent_return']:.2f}"),
        quiet=True,
    )
    return experiments.load(path, agent=agent, environment=corridor)


if __name__ == "__main__":
    actions = main().act(np.eye(10, dtype=np.float32), jax.random.key(0))
    print("the way: " + "".join("<>"[action] for action in actions))
