"""Kinds of experience: a replay of the past, or what the present policy has just done.

Here alone the two are told apart; a loop asks a `Source`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from kullback.core import chunks, loops, metrics, online, replay, rollout, types

__all__ = ["Kind", "Source", "learning_begins", "schedule", "source"]

# Settings of an agent's experience.
Kind = replay.Config | online.Experience


class Source(NamedTuple):
    """The part of a compiled iteration between acting and the next."""

    ticks: int  # Ticks of the environment in an iteration.
    begins: int  # Agent steps after which iterations learn.
    names: dict[str, Any]  # Names of the learner's metrics, as keys.
    init: Callable[[], Any]  # () -> what is kept of the past.
    # (what is kept, learner's state, metrics, acting parameters, trajectory, key, constants) ->
    # (what is kept, learner's state, metrics); the first learns nothing.
    keep: Callable[..., tuple[Any, types.LearnerState, metrics.Metrics]]
    learn: Callable[..., tuple[Any, types.LearnerState, metrics.Metrics]]


def learning_begins(kind: Kind, num_envs: int, *, is_compiled: bool) -> int:
    """Returns the agent steps before the first learner step.

    Args:
      kind: of the agent's experience.
      num_envs: B.
      is_compiled: whether the environment is; its iterations learn after their own ticks.

    Raises:
      ValueError: if a batch can never be drawn, or the environment is not of this kind.
    """
    if isinstance(kind, online.Experience):
        if not is_compiled:
            raise ValueError(
                "an agent without replay learns in compiled environments (minatar/..., toy/..., a "
                "types.Environment), and this one is stepped outside XLA: take an agent with replay"
            )
        kind.config.num_items(num_envs)
        return 0
    schedule(kind, num_envs, is_compiled=is_compiled)
    loops.pace(kind, num_envs)
    return loops.learning_begins(kind, num_envs, sees_own_ticks=is_compiled)


def schedule(kind: Kind, num_envs: int, *, is_compiled: bool) -> chunks.Schedule | None:
    """Returns how a run on the host is cut into chunks; None in a compiled environment.

    Raises:
      ValueError: for shards that do not fit, or that nobody would act.
    """
    if isinstance(kind, online.Experience):
        return None
    if not is_compiled:
        return chunks.schedule(kind, num_envs)
    if (kind.shards, kind.lag, kind.chunk_ticks) != (1, 0, 0):
        raise ValueError(
            f"shards={kind.shards}, lag={kind.lag} and chunk_ticks={kind.chunk_ticks} are for "
            "environments on the host (atari/..., gym/...); a compiled one acts in the program "
            "that learns: leave them at 1, 0 and 0"
        )
    return None


def source(
    agent: types.Agent[Kind], environment: types.Environment, constants: types.Constants
) -> Source:
    """Returns the source of an agent's experience in a compiled environment.

    Raises:
      ValueError: as `learning_begins` does.
    """
    begins = learning_begins(agent.experience, environment.num_envs, is_compiled=True)
    if isinstance(agent.experience, online.Experience):
        return _online(agent, agent.experience, environment, constants, begins)
    return _replayed(agent, agent.experience, environment, constants, begins)


def _online(
    agent: types.Agent,
    experience: online.Experience,
    environment: types.Environment,
    constants: types.Constants,
    begins: int,
) -> Source:
    config = experience.config

    def learn(
        kept: None,
        learner: types.LearnerState,
        sums: metrics.Metrics,
        acting: types.Params,
        trajectory: rollout.Trajectory,
        key: types.Key,
        constants: types.Constants,
    ) -> tuple[None, types.LearnerState, metrics.Metrics]:
        sums, _ = jax.lax.scan(
            lambda s, t: (metrics.observe(s, t), None), sums, trajectory.timestep
        )
        items = experience.label(acting, trajectory)
        learner, sums = online.learn(config, agent.learner, items, learner, sums, key, constants)
        return kept, learner, sums

    def example(constants: types.Constants) -> dict[str, jax.Array]:
        key = jax.random.key(0)
        state = agent.learner.init(key)
        acting = agent.actor_params(state, loops.count(0), False, constants)
        actor = rollout.start(agent.policy, environment, acting, key)
        trajectory, _ = rollout.rollout(
            agent.policy, environment, acting, actor, key, config.length
        )
        items = jax.tree.map(lambda x: x[0], experience.label(acting, trajectory))
        return agent.learner.step(state, types.Batch.of(items), constants)[1].metrics

    return Source(
        ticks=config.length,
        begins=begins,
        names=dict.fromkeys(jax.eval_shape(example, constants)),
        init=lambda: None,
        keep=learn,  # There is no iteration that only fills a replay.
        learn=learn,
    )


def _replayed(
    agent: types.Agent,
    config: replay.Config,
    environment: types.Environment,
    constants: types.Constants,
    begins: int,
) -> Source:
    pace = loops.pace(config, environment.num_envs)
    store = replay.device(environment.spec, config, environment.num_envs)

    def take(
        updates: int,
        kept: replay.State,
        learner: types.LearnerState,
        sums: metrics.Metrics,
        acting: types.Params,
        trajectory: rollout.Trajectory,
        key: types.Key,
        constants: types.Constants,
    ) -> tuple[replay.State, types.LearnerState, metrics.Metrics]:
        del acting

        def add(carry: Any, item: rollout.Trajectory) -> tuple[Any, None]:
            contents, sums = carry
            contents = store.add(contents, item.observation, item.action, item.timestep)
            return (contents, metrics.observe(sums, item.timestep)), None

        def step(carry: Any, key: types.Key) -> tuple[Any, None]:
            learner, sums, priorities = carry
            current = contents._replace(priorities=priorities)
            batch = store.sample(current, key)
            learner, feedback = agent.learner.step(learner, batch, constants)
            priorities = store.update(current, batch.indices, feedback.priorities).priorities
            return (learner, metrics.learn(sums, feedback), priorities), None

        (contents, sums), _ = jax.lax.scan(add, (kept, sums), trajectory)
        if updates:
            keys = jax.random.split(key, updates)
            carry = (learner, sums, contents.priorities)  # All that updates change of the replay.
            (learner, sums, priorities), _ = jax.lax.scan(step, carry, keys)
            contents = contents._replace(priorities=priorities)
        return contents, learner, sums

    return Source(
        ticks=pace.ticks,
        begins=begins,
        names=loops.feedback_names(agent, environment.spec, constants),
        init=store.init,
        keep=functools.partial(take, 0),
        learn=functools.partial(take, pace.updates),
    )
