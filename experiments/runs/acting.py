"""Trained agents of runs on disk: loading, acting, evaluation and films."""

import dataclasses
import pathlib
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import checkpoints, compiled, finite, loops, types
from kullback.experiments.runs import games, opened, plans, resolved, simulators
from kullback.experiments.runs.work import MakeAgent, MakeEnvironment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A trained agent, ready to act."""

    path: pathlib.Path
    plan: plans.Plan
    agent: types.Agent
    spec: types.Spec
    make_eval_environment: MakeEnvironment  # Makes the environment of evaluations.
    learner: types.LearnerState  # One seed's.
    env_steps: int
    seed: int

    def acting(self) -> Any:
        """Returns the policy's parameters, with the exploration of evaluation."""
        return self._acting(evaluate=True)

    def _acting(self, *, evaluate: bool) -> Any:
        steps = jnp.asarray(self.env_steps)
        return self.agent.actor_params(self.learner, steps, evaluate, types.NO_CONSTANTS)

    def act(self, observation: np.ndarray, key: types.Key, state: Any = None) -> np.ndarray:
        """Returns actions, int32 [B], for observations [B, ...].

        `state` is the memory of a recurrent policy.
        """
        action, _, _ = jax.jit(self.agent.policy.step)(self.acting(), observation, state, key)
        return np.asarray(action)

    def evaluate(self, episodes: int = 10, max_steps: int = 0) -> np.ndarray:
        """Returns of so many episodes, [episodes]; the same each time.

        `max_steps` is as for `play`.
        """
        return self.play(episodes, max_steps).returns

    def evaluate_random(self, episodes: int = 100, max_steps: int = 0) -> np.ndarray:
        """Returns of a policy that acts uniformly at random in the same environment."""
        return self.play_random(episodes, max_steps).returns

    def play(self, episodes: int = 10, max_steps: int = 0) -> loops.Episodes:
        """Plays episodes; returns their returns, [episodes], and which were cut.

        Args:
          episodes: how many.
          max_steps: agent steps after which an episode is cut; 0 is the run's own limit.
        """
        return self._play(self.agent, episodes, max_steps)

    def play_random(self, episodes: int = 100, max_steps: int = 0) -> loops.Episodes:
        """Plays as `play` does, by a policy that acts uniformly at random."""

        def uniform(acting: Any, observation: Any, state: Any, key: types.Key) -> Any:
            action = jax.random.randint(key, (observation.shape[0],), 0, self.spec.num_actions)
            return action, state, {}

        policy = types.Policy(lambda params, context, max_length: None, uniform)
        return self._play(self.agent._replace(policy=policy), episodes, max_steps)

    def _play(self, agent: types.Agent, episodes: int, max_steps: int) -> loops.Episodes:
        with simulators.closing(self.make_eval_environment(episodes)) as simulator:
            spec = simulator.environment.spec
            limit = loops.evaluation_limit(spec, max_steps or self.plan.eval_max_steps)
            return simulator.play(agent, self.learner, self.env_steps, self.seed, limit)

    def frames(self, limit: int = 3_000) -> Generator[np.ndarray, None, None]:
        """Yields pictures of one episode, RGB uint8 [H, W, 3], one per agent step up to `limit`."""
        with simulators.closing(self.make_eval_environment(1)) as simulator:
            if simulator.environment.render is None:
                raise ValueError(f"{self.plan.environment} cannot be drawn: its `render` is None")
            yield from simulator.frames(self.agent, self.learner, self.env_steps, self.seed, limit)

    def export(self, path: str | pathlib.Path) -> None:
        """Writes all parameters of the policy, as it acts in training, as safetensors."""
        acting = self._acting(evaluate=False)
        params = acting["params"] if isinstance(acting, dict) and "params" in acting else acting
        checkpoints.export_params(path, params)


def load(
    path: str | pathlib.Path,
    *,
    seed: int | None = None,
    best: bool = False,
    agent: MakeAgent | None = None,
    environment: MakeEnvironment | None = None,
    trust_code: bool = False,
) -> Run:
    """Loads the newest whole checkpoint of a run, or its best.

    Args:
      path: of the run's folder.
      seed: which of its seeds; None is the first.
      best: the checkpoint of the highest evaluation (without evaluations, of the highest mean of
        the last 100 episodes) in place of the newest.
      agent, environment: the functions that were handed to `train`, if not names.
      trust_code: whether the environment's module may run, if config.json names one.

    Raises:
      ValueError: if this is no run, names code that is not trusted, has no such seed, no
        checkpoint with a score, or a parameter that is not finite.
    """
    run = opened.open(path, trust_code=trust_code)
    return of_run(run, seed=seed, best=best, agent=agent, environment=environment)


def of_run(
    run: opened.Opened,
    *,
    seed: int | None = None,
    best: bool = False,
    agent: MakeAgent | None = None,
    environment: MakeEnvironment | None = None,
) -> Run:
    """Loads a checkpoint, as `load` does, of a run that has been opened."""
    plan, folder = run.plan, run.folder(seed)
    seed = run.seeds[0] if seed is None else seed
    plan.require_functions("load()", agent=agent, environment=environment)
    named = resolved.of(run, with_environment=environment is None)
    with games.built(named, agent, environment, run.config) as work:
        pass  # The environment of training is closed at once: nothing acts in it.
    num_seeds = plan.num_seeds if work.seeds_together else 1  # Seeds in one checkpoint.
    saved = _acting_part(folder.checkpoints, work, num_seeds, best)
    learner = compiled.seed_of(saved["learner"], k=seed - plan.seed, num_seeds=num_seeds)
    finite.check(learner.params, folder.checkpoints)
    return Run(
        path=folder.path,
        plan=plan,
        agent=work.agent,
        spec=work.spec,
        make_eval_environment=work.make_eval_environment,
        learner=learner,
        env_steps=int(saved["env_steps"]),
        seed=seed,
    )


def _acting_part(
    folder: pathlib.Path, work: games.Games, num_seeds: int, best: bool
) -> dict[str, Any]:
    """Reads the part of a checkpoint that is needed to act, which is without the replay."""
    like = {
        "env_steps": jax.ShapeDtypeStruct((), work.simulator.steps_dtype),
        "learner": compiled.learner_shapes(work.agent, num_seeds),
    }
    saved, _, _ = checkpoints.restore_latest(folder, like, part=True, best=best)
    return {**saved, "learner": jax.tree.map(jnp.asarray, saved["learner"])}
