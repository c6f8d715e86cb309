"""Runs that are on disk: load one, act with it, evaluate it, film it."""

import dataclasses
import pathlib
from collections.abc import Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import checkpoints, compiled, finite, loops, types
from kullback.experiments.runs import games, opened, plans, resolved, simulators


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A trained agent, ready to act."""

    path: pathlib.Path
    plan: plans.Plan
    agent: types.Agent
    spec: types.Spec
    make_eval_environment: plans.MakeEnvironment  # Makes what it is evaluated in.
    learner: types.LearnerState  # Of one seed.
    env_steps: int
    seed: int

    def acting(self) -> Any:
        """Parameters that the policy takes, with the exploration of evaluation."""
        return self._acting(evaluate=True)

    def _acting(self, *, evaluate: bool) -> Any:
        steps = jnp.asarray(self.env_steps)
        return self.agent.actor_params(self.learner, steps, evaluate, types.NO_CONSTANTS)

    def act(self, observation: np.ndarray, key: types.Key, state: Any = None) -> np.ndarray:
        """Actions, int32 [B], for observations [B, ...]; `state` is a recurrent policy's memory."""
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
        """Plays episodes, [episodes]; says of each whether it was cut.

        Args:
          episodes: how many.
          max_steps: agent steps after which one is cut; 0 is the run's own limit.
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
        """Pictures of one episode, RGB uint8 [H, W, 3], one an agent step, at most `limit`."""
        with simulators.closing(self.make_eval_environment(1)) as simulator:
            if simulator.environment.render is None:
                raise ValueError(f"{self.plan.environment} cannot be drawn: its `render` is None")
            yield from simulator.frames(self.agent, self.learner, self.env_steps, self.seed, limit)

    def export(self, path: str | pathlib.Path) -> None:
        """Writes the parameters that act in training as safetensors: all there are of them."""
        acting = self._acting(evaluate=False)
        params = acting["params"] if isinstance(acting, dict) and "params" in acting else acting
        checkpoints.export_params(path, params)


def load(
    path: str | pathlib.Path,
    *,
    seed: int | None = None,
    best: bool = False,
    agent: plans.MakeAgent | None = None,
    environment: plans.MakeEnvironment | None = None,
    trust_code: bool = False,
) -> Run:
    """Loads the newest whole checkpoint of a run, or its best.

    Args:
      path: of the run's folder.
      seed: which of its seeds; None is the first.
      best: the checkpoint of the highest evaluation (without evaluations, of the highest mean of
        the last 100 episodes) in place of the newest.
      agent, environment: what was handed to `train` if not names.
      trust_code: whether a module that config.json names as the environment's may run.

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
    agent: plans.MakeAgent | None = None,
    environment: plans.MakeEnvironment | None = None,
) -> Run:
    """Loads a checkpoint as `load` does, of a run that has been read."""
    plan, folder = run.plan, run.folder(seed)
    seed = run.seeds[0] if seed is None else seed
    for name, given in (("agent", agent), ("environment", environment)):
        if getattr(plan, name) == plans.CUSTOM and given is None:
            raise ValueError(f"the run's {name} was handed over in Python: pass it to load()")
    named = resolved.of(run, with_environment=environment is None)
    with games.built(named, agent, environment, run.config) as built:
        pass  # What it trained in is not acted in.
    num_seeds = plan.num_seeds if built.seeds_together else 1  # Whose states a checkpoint has.
    saved = _acting_part(folder.checkpoints, built, num_seeds, best)
    learner = compiled.seed_of(saved["learner"], k=seed - plan.seed, num_seeds=num_seeds)
    finite.check(learner.params, folder.checkpoints)
    return Run(
        path=folder.path,
        plan=plan,
        agent=built.agent,
        spec=built.spec,
        make_eval_environment=built.make_eval_environment,
        learner=learner,
        env_steps=int(saved["env_steps"]),
        seed=seed,
    )


def _acting_part(
    folder: pathlib.Path, built: games.Games, num_seeds: int, best: bool
) -> dict[str, Any]:
    """Reads what of a checkpoint is needed to act: nothing of a replay, whatever its size."""
    like = {
        "env_steps": jax.ShapeDtypeStruct((), built.simulator.steps_dtype),
        "learner": compiled.learner_shapes(built.agent, num_seeds),
    }
    saved, _, _ = checkpoints.restore_latest(folder, like, part=True, best=best)
    return {**saved, "learner": jax.tree.map(jnp.asarray, saved["learner"])}
