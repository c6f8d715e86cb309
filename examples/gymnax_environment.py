"""A game of gymnax, compiled with the agent into one program: `pip install 'kullback[gymnax]'`.

Anything of gymnax's form runs so: Craftax's environments
(`craftax.craftax_env.make_craftax_env_from_name(name, auto_reset=False)`) and your own, with
`reset_env`, `step_env`, `action_space` and `observation_space`.
"""

import importlib

from kullback import environments, experiments
from kullback.core import types


def catch(num_envs: int) -> types.Environment:
    """Makes `num_envs` boards of 10 x 5 places on which a ball is to be caught, 1 or -1."""
    environment, params = importlib.import_module("gymnax").make("Catch-bsuite")
    return environments.from_gymnax(environment, params, num_envs)


def main(steps: int = 20_000, out: str | None = None) -> experiments.Run:
    """Trains DQN with the presets of gymnasium's classic control and returns the run."""
    path = experiments.train("dqn", catch, family="gym", steps=steps, out=out)
    return experiments.load(path, environment=catch)


if __name__ == "__main__":
    run = main()
    print(f"mean return {run.evaluate(100).mean()}; by chance {run.evaluate_random(100).mean()}")
