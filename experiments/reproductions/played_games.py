"""Games that language models play: how they learn, are measured, and filmed; see players.py.

B games side by side, A actions.
"""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from kullback import environments
from kullback.core import compiled, files, learners, loops, networks, online, rollout, types
from kullback.environments.minatar import games
from kullback.experiments import video
from kullback.experiments.reproductions import players, students, study
from kullback.experiments.runs import acting

CAPTION = 76  # Pixels below a frame, for the actions and their probabilities.


class Teacher(NamedTuple):
    """An agent of games: its action values, and how it acts in evaluation."""

    params: types.Params
    values: players.Values
    greedy: types.Policy  # Its params are `acting`.
    acting: Any


def teacher_of(run: pathlib.Path, seed: int) -> Teacher:
    """Reads a seed of a run of an agent that learns q(s, a), such as M-DQN."""
    trained = acting.load(run, seed=seed)
    torso = networks.torso(trained.agent.config.learning.torso, trained.spec)
    network = networks.action_values(torso, trained.spec.num_actions)
    params = trained.learner.params
    return Teacher(params, network.apply, trained.agent.policy, trained.acting())


def make(name: str, num_envs: int) -> types.Environment:
    """Returns B games of an environment that is compiled."""
    environment = environments.make(name, num_envs)
    assert isinstance(environment, types.Environment), name
    return environment


def learn(
    agent: types.Agent[online.Experience],
    environment: types.Environment,
    constants: types.Constants,
    *,
    seed: int,
    steps: int,
    records: int,
    start: types.Params | None = None,
    tick: students.Tick = students.ignore,
) -> tuple[types.Params, study.Rows]:
    """Returns parameters that have learnt in the compiled loop, and rows of the way there.

    Rows have `frames`, the mean return of the episodes that ended since the last row (`return`,
    None where none did), and the learner's metrics.

    Args:
      agent: of players.py.
      environment: B games.
      constants: that it reads.
      seed: of all that is drawn.
      steps: agent steps over all games.
      records: rows.
      start: parameters to begin with; None draws them.
      tick: told how far it is.
    """
    loop = compiled.make(agent, environment, [seed], constants=constants)
    state, rows = loop.init(), list[study.Row]()
    if start is not None:
        state = state._replace(learner=learners.with_params(state.learner, start))
    for record in range(1, records + 1):
        until = steps * record // records
        while loop.steps(state) < until:
            state = loop.advance(state, until)
            tick(min(loop.steps(state), steps), float(state.metrics.return_sum))
        state, (row,) = loop.rows(state)
        numbers = {name: _number(row[name]) for name in ("return_mean", "loss", "entropy")}
        rows.append({"frames": loop.steps(state), **numbers})
    return state.learner.params, rows


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def uniform(num_actions: int) -> types.Policy:
    """Returns the policy that acts at random."""

    def step(params: Any, observation: Any, state: None, key: types.Key) -> Any:
        del params
        action = jax.random.randint(key, (observation.shape[0],), 0, num_actions, jnp.int32)
        return action, state, {}

    return types.Policy(lambda params, context, max_length: None, step)


def evaluator(
    policy: types.Policy, environment: types.Environment, limit: int
) -> Callable[[Any, int], loops.Episodes]:
    """Returns (the policy's params, seed) -> an episode of each of B games, cut after `limit`."""
    agent = types.Agent(
        policy=policy,
        learner=types.Learner(lambda key: None, lambda *state: None),  # pyright: ignore[reportArgumentType]  # Nothing learns.
        actor_params=lambda params, *rest: params,  # pyright: ignore[reportArgumentType]
        experience=None,
    )
    play = compiled.evaluator(agent, environment, limit=limit)
    return lambda params, seed: play(params, 0, jax.random.key(seed), environment.num_envs)


def film(
    player: players.Player,
    params: Mapping[str, types.Params],
    environment: types.Environment,
    path: pathlib.Path,
    *,
    seed: int,
    limit: int,
) -> int:
    """Writes an episode of a player as a GIF, with the words' probabilities; returns its frames.

    Args:
      player: that plays by drawing its actions.
      params: of its policy.
      environment: one game.
      path: of the film, in place of one that is there.
      seed: of the episode.
      limit: frames at most.
    """
    policy, key = players.policy(player), jax.random.key(seed)

    @jax.jit
    def play(params: Any, key: types.Key) -> rollout.Trajectory:
        state = rollout.start(policy, environment, params, key)
        return rollout.rollout(policy, environment, params, state, key, limit)[0]

    trajectory = play(params, key)
    is_last = np.asarray(trajectory.timestep.last())[:, 0]
    count = int(np.argmax(is_last)) + 1 if is_last.any() else limit
    frames, actions = np.asarray(trajectory.observation)[:, 0], np.asarray(trajectory.action)[:, 0]
    probabilities = np.exp(np.asarray(trajectory.extras["log_policy"]))[:, 0]
    files.remove(path)
    return video.write(pictures(frames, actions, probabilities, count), path)


def pictures(
    frames: np.ndarray, actions: np.ndarray, probabilities: np.ndarray, count: int
) -> Iterator[np.ndarray]:
    """Yields the first frames with their captions, uint8 [H, W, 3].

    Args:
      frames: bool, [n, 10, 10, C].
      actions: int32, [n].
      probabilities: [n, A].
      count: of frames.
    """
    for frame, action, of_words in zip(frames[:count], actions, probabilities, strict=False):
        yield captioned(games.render(frame), int(action), of_words)


def captioned(
    picture: np.ndarray, action: int, probabilities: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Returns a picture with a line below it for each word: its probability as a bar.

    Args:
      picture: uint8, [H, W, 3].
      action: that is taken, of which the word is bright.
      probabilities: [A].
    """
    height, width, _ = picture.shape
    canvas = Image.new("RGB", (width, height + CAPTION), games.BACKGROUND)
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for n, (word, probability) in enumerate(zip(players.WORDS, probabilities, strict=True)):
        top = height + 2 + 12 * n
        colour = (250, 250, 250) if n == action else (130, 130, 140)
        draw.text((4, top), word, fill=colour)
        length = round((width - 44) * float(probability))
        draw.rectangle((40, top + 3, 40 + length, top + 9), fill=colour)
    return np.asarray(canvas)


def score(episodes: loops.Episodes) -> dict[str, float]:
    """Returns the mean return of episodes, and the share of them that were cut."""
    return {"return": float(np.mean(episodes.returns)), "cut": float(np.mean(episodes.cut))}
