"""Runs that are on disk: load one, act with it, evaluate it, film it."""

import dataclasses
import pathlib
from collections.abc import Generator, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback import environments
from kullback.core import checkpoints, compiled, finite, host, loops, rollout, types
from kullback.experiments.runs import inputs, opened, plans, resolved


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
        return _play(self.agent, self, episodes, max_steps)

    def play_random(self, episodes: int = 100, max_steps: int = 0) -> loops.Episodes:
        """Plays as `play` does, by a policy that acts uniformly at random."""

        def uniform(acting: Any, observation: Any, state: Any, key: types.Key) -> Any:
            action = jax.random.randint(key, (observation.shape[0],), 0, self.spec.num_actions)
            return action, state, {}

        policy = types.Policy(lambda params, context, max_length: None, uniform)
        return _play(self.agent._replace(policy=policy), self, episodes, max_steps)

    def frames(self, limit: int = 3_000) -> Generator[np.ndarray, None, None]:
        """Pictures of one episode, RGB uint8 [H, W, 3], one an agent step, at most `limit`."""
        with plans.closing(self.make_arena(1)) as environment:
            if isinstance(environment, types.Environment):
                yield from _compiled_frames(self, environment, limit)
                return
            for _ in host.playing(
                self.agent, environment, self.learner, self.env_steps, self.seed, limit
            ):
                yield environment.render()

    def export(self, path: str | pathlib.Path) -> None:
        """Writes the parameters that act in training as safetensors: all there are of them."""
        acting = self.agent.actor_params(self.learner, jnp.asarray(self.env_steps), False)
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
    """The newest whole checkpoint of a run, or its best.

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
    plan, folder = run.plan, run.folder(seed)
    seed = run.seeds[0] if seed is None else seed
    for name, given in (("agent", agent), ("environment", environment)):
        if getattr(plan, name) == plans.CUSTOM and given is None:
            raise ValueError(f"the run's {name} was handed over in Python: pass it to load()")
    named = resolved.of(run, with_environment=environment is None)
    given = environments.checked(environment) if environment is not None else None
    with plans.closing((given or named.make_environment)(plan.num_envs)) as probe:
        spec, is_compiled = probe.spec, isinstance(probe, types.Environment)
        spec = inputs.as_recorded(spec, run.config)
        built = (agent or named.make_agent)(spec)
    # Seeds of a compiled run share its checkpoints.
    num_seeds = plan.num_seeds if is_compiled else 1
    saved = _acting_part(folder.checkpoints, built, num_seeds, is_compiled, best)
    learner = compiled.seed_of(saved["learner"], k=seed - plan.seed, num_seeds=num_seeds)
    finite.check(learner.params, folder.checkpoints)
    return Run(
        path=folder.path,
        plan=plan,
        agent=built,
        spec=spec,
        make_arena=given or named.make_arena,
        learner=learner,
        env_steps=int(saved["env_steps"]),
        seed=seed,
    )


def _acting_part(
    folder: pathlib.Path, agent: types.Agent, num_seeds: int, is_compiled: bool, best: bool
) -> dict[str, Any]:
    """What of a checkpoint is needed to act: nothing of a replay, whatever its size."""
    count = np.int32 if is_compiled else np.int64  # As each loop keeps it.
    like = {
        "env_steps": jax.ShapeDtypeStruct((), count),
        "learner": compiled.learner_shapes(agent, num_seeds),
    }
    saved, _, _ = checkpoints.restore_latest(folder, like, part=True, best=best)
    return {**saved, "learner": jax.tree.map(jnp.asarray, saved["learner"])}


def _play(agent: types.Agent, run: Run, episodes: int, max_steps: int) -> loops.Episodes:
    with plans.closing(run.make_arena(episodes)) as environment:
        limit = loops.evaluation_limit(environment.spec, max_steps or run.plan.eval_max_steps)
        if isinstance(environment, types.Environment):
            evaluate = compiled.evaluator(agent, environment, limit=limit)
            return evaluate(run.learner, run.env_steps, jax.random.key(run.seed), episodes)
        return host.play(agent, environment, run.learner, run.env_steps, run.seed, limit=limit)


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
