"""Runs that are on disk: load one, act with it, evaluate it, film it."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import checkpoints, compiled, host, rollout, types
from kullback.experiments import opened
from kullback.experiments import plan as plans
from kullback.experiments.saver import Saver


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A trained agent, ready to act."""

    path: pathlib.Path
    plan: plans.Plan
    agent: types.Agent
    spec: types.Spec
    make_arena: plans.MakeEnvironment  # To be evaluated in.
    learner: types.LearnerState  # Of one seed.
    env_steps: int
    seed: int

    def acting(self) -> Any:
        """Parameters that the policy takes, with the exploration of evaluation."""
        return self.agent.actor_params(self.learner, jnp.asarray(self.env_steps), True)

    def act(self, observation: np.ndarray, key: types.Key, state: Any = None) -> np.ndarray:
        """Actions, int32 [B], for observations [B, ...]; `state` is a recurrent policy's memory."""
        action, _, _ = jax.jit(self.agent.policy.step)(self.acting(), observation, state, key)
        return np.asarray(action)

    def evaluate(self, episodes: int = 10) -> np.ndarray:
        """Returns of so many episodes, [episodes]; the same each time."""
        return _play(self.agent, self, episodes)

    def evaluate_random(self, episodes: int = 100) -> np.ndarray:
        """Returns of a policy that acts uniformly at random in the same environment."""

        def uniform(acting: Any, observation: Any, state: Any, key: types.Key) -> Any:
            action = jax.random.randint(key, (observation.shape[0],), 0, self.spec.num_actions)
            return action, state, {}

        policy = types.Policy(lambda params, context, max_length: None, uniform)
        return _play(self.agent._replace(policy=policy), self, episodes)

    def frames(self, limit: int = 3_000) -> Iterator[np.ndarray]:
        """Pictures of one episode, RGB uint8 [H, W, 3], one an agent step, at most `limit`."""
        environment = self.make_arena(1)
        if isinstance(environment, types.Environment):
            yield from _compiled_frames(self, environment, limit)
        else:
            pictures: list[np.ndarray] = []
            try:
                host.play(
                    self.agent,
                    environment,
                    self.learner,
                    self.env_steps,
                    self.seed,
                    on_tick=lambda env: pictures.append(env.render()),
                    limit=limit,
                )
            finally:
                environment.close()
            yield from pictures

    def export(self, path: str | pathlib.Path) -> None:
        """Writes the parameters that act as safetensors."""
        acting = self.acting()
        params = acting["params"] if isinstance(acting, dict) and "params" in acting else acting
        checkpoints.export_params(path, params)


def load(
    path: str | pathlib.Path,
    *,
    seed: int | None = None,
    best: bool = False,
    agent: plans.MakeAgent | None = None,
    environment: plans.MakeEnvironment | None = None,
) -> Run:
    """The newest whole checkpoint of a run, or its best.

    Args:
      path: of the run's folder.
      seed: which of its seeds; None is the first.
      best: the checkpoint of the highest evaluation (without evaluations, of the highest mean of
        the last 100 episodes) in place of the newest.
      agent, environment: what was handed to `train` if not names.

    Raises:
      ValueError: if this is no run, has no such seed, or no checkpoint with a score.
    """
    run = opened.open(path)
    plan, folder = run.plan, run.folder(seed)
    seed = run.seeds[0] if seed is None else seed
    for name, given in (("agent", agent), ("environment", environment)):
        if getattr(plan, name) == plans.CUSTOM and given is None:
            raise ValueError(f"the run's {name} was handed over in Python: pass it to load()")
    arena = (environment or plan.make_environment)(plan.num_envs)
    built = (agent or plan.make_agent)(arena.spec)
    if isinstance(arena, types.Environment):
        loop = compiled.make(built, arena, run.seeds)
        saved = loop.restore(Saver(folder, loop).load_snapshot(best=best))
        learner = compiled.seed_of(saved.learner, k=seed - plan.seed, num_seeds=plan.num_seeds)
    else:
        saved = Saver(folder, host.make(built, arena, seed)).load_snapshot(best=best)
        arena.close()
        learner = saved.learner
    return Run(
        path=folder.path,
        plan=plan,
        agent=built,
        spec=arena.spec,
        make_arena=environment or plan.make_arena,
        learner=learner,
        env_steps=int(saved.env_steps),
        seed=seed,
    )


def _play(agent: types.Agent, run: Run, episodes: int) -> np.ndarray:
    environment = run.make_arena(episodes)
    if isinstance(environment, types.Environment):
        evaluate = compiled.evaluator(agent, environment)
        return evaluate(run.learner, run.env_steps, jax.random.key(run.seed), episodes)
    try:
        return host.play(agent, environment, run.learner, run.env_steps, run.seed)
    finally:
        environment.close()


def _compiled_frames(run: Run, environment: types.Environment, limit: int) -> Iterator[np.ndarray]:
    if environment.render is None:
        raise ValueError(f"{run.plan.environment} cannot be drawn: its `render` is None")
    policy, params = run.agent.policy, run.acting()
    key = jax.random.fold_in(jax.random.key(run.seed), 0xF17)

    @jax.jit
    def proceed(state: rollout.ActorState, key: types.Key) -> Any:
        trajectory, state = rollout.rollout(policy, environment, params, state, key, 100)
        return trajectory.observation, trajectory.timestep.last(), state

    state = jax.jit(lambda key: rollout.start(policy, environment, params, key))(key)
    count = 0
    while count < limit:
        observations, last, state = proceed(state, jax.random.fold_in(key, count))
        for observation, end in zip(np.asarray(observations), np.asarray(last), strict=True):
            yield environment.render(observation[0])
            count += 1
            if end[0] or count >= limit:
                return
