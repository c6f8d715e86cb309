"""gymnasium's environments as B rows: by id (classic control), or handed over in Python."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import cartpole
from gymnasium.envs.registration import EnvSpec, load_env_creator

from kullback import environments
from kullback.core import modules, names, types
from kullback.environments import rows

__all__ = ["from_gymnasium", "ids", "is_known", "make", "parameters"]

GAMES = ("Acrobot-v1", "CartPole-v1", "MountainCar-v0")
# What `pip install 'gymnasium[...]'` takes for packages of environments, where it has another name.
_EXTRAS = {"phys2d": "jax", "tabular": "jax"}

# The velocities of CartPole have no bounds; these are those of Vieillard et al. (and Dopamine), by
# which the network's input is scaled: x, its velocity, angle, its velocity.
_CARTPOLE = (2.4, 5.0, np.pi / 12, 2 * np.pi)


def make(game: str, num_envs: int, **flags: Any) -> rows.Rows:
    """Returns the environment of gymnasium id `game`, its time limit included, as `num_envs` rows.

    Args:
      game: One of GAMES, or another id with a Discrete action space and a Box to observe;
        MODULE:ID, if importing a module registers it.
      num_envs: B.
      **flags: `max_episode_steps` and what the environment's constructor takes.

    Raises:
      ValueError: if the id or a flag is unknown, it needs packages that are missing, or the spaces
        are none of ours.
    """
    found, creator = _registered(game)
    limit = flags.get("max_episode_steps")
    if limit not in (None, -1) and not 1 <= limit < 2**31:
        raise ValueError(
            f"max_episode_steps must lie in [1, 2^31), or be -1 for no limit or None for that of "
            f"{game}, got {limit}"
        )
    modes = getattr(creator, "metadata", {}).get("render_modes", ())
    drawn = {"render_mode": "rgb_array"} if "rgb_array" in modes else {}

    def make_row(row: int) -> gymnasium.Env:
        more = flags if row else {**drawn, **flags}  # Only row 0 is drawn.
        with _using(found, "making it"):
            return gymnasium.make(found.id, disable_env_checker=True, **more)

    makers = [functools.partial(make_row, row) for row in range(num_envs)]
    return rows.Rows([functools.partial(_made, maker) for maker in makers])


def ids() -> list[str]:
    """Returns the ids that gymnasium knows; most need more packages.

    Those of the ALE are there only once its package is imported, and are `environments/atari.py`'s.
    """
    return [
        name
        for name, found in gymnasium.registry.items()
        if not str(found.entry_point).startswith("ale_py.")
    ]


def is_known(game: str) -> bool:
    """Whether `make` takes an id; of MODULE:ID, whether it reads as one: nothing is imported."""
    module, has_module, name = game.rpartition(":")
    if not has_module:
        return game in ids()
    return bool(name) and all(part.isidentifier() for part in module.split("."))


def parameters(game: str) -> dict[str, environments.Parameter]:
    """Returns the flags that `make` takes for an id: its constructor's arguments, and its limit."""
    found, creator = _registered(game)
    try:
        own = inspect.signature(creator, eval_str=True)
    except NameError:  # A type that its module imports for type checkers alone.
        own = inspect.signature(creator)
    limit = found.max_episode_steps
    return {
        "max_episode_steps": environments.Parameter(hint=int | None, default=limit),
        **{
            one.name: environments.Parameter(hint=_hint(one), default=one.default)
            for one in own.parameters.values()
            if one.name != "render_mode"
            and one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
        },
    }


def _hint(argument: inspect.Parameter) -> Any:
    """The declared type of an argument, or what its default says: of False no text is a value."""
    hint, default = argument.annotation, argument.default
    if hint is argument.empty and isinstance(default, bool):
        return bool
    if hint is argument.empty and isinstance(default, int | float):
        return int | float
    if hint is argument.empty or isinstance(hint, str):
        return Any
    return hint | None if default is None else hint


def from_gymnasium(
    environment: gymnasium.Env | Callable[[], gymnasium.Env], num_envs: int = 1
) -> rows.Rows:
    """Returns a gymnasium environment of the caller's, as B rows.

    Args:
      environment: The environment itself (then B is 1), or a function that makes a row. To be
        drawn it must have render_mode="rgb_array".
      num_envs: B.

    Raises:
      ValueError: if its spaces are none of ours, or one object should be several rows.
    """
    if not isinstance(environment, gymnasium.Env):
        return rows.Rows([functools.partial(_made, environment)] * num_envs)
    if num_envs != 1:
        raise ValueError(f"one object is one row, not {num_envs}; give a function that makes it")
    return rows.Rows([functools.partial(Row, environment, is_owned=False)])


class Row:
    """A gymnasium environment as a `rows.Row`."""

    def __init__(self, environment: gymnasium.Env, *, is_owned: bool) -> None:
        self._environment = environment
        self.underlying = environment.unwrapped
        self.is_owned = is_owned
        name = environment.spec.id if environment.spec else type(self.underlying).__name__
        self.name = f"environment {name}"
        action_space = environment.action_space
        if not isinstance(action_space, gymnasium.spaces.Discrete):
            raise ValueError(f"{self.name} needs a Discrete action space, got {action_space}")
        self._first_action = int(action_space.start)
        self.spec = _spec(environment, int(action_space.n), self.name)

    def reset(self, seed: int | None) -> Any:
        """Begins an episode and returns its first observation; None goes on drawing."""
        found = rows.called(self.name, "reset", lambda: self._environment.reset(seed=seed))
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(
                f"{self.name}: reset must return (observation, info), got {_counted(found)}"
            )
        return found[0]

    def step(self, action: int) -> rows.Step:
        """Acts; the infos are nobody's, and dropped."""
        sent = np.int64(action + self._first_action)
        found = rows.called(self.name, "step", self._environment.step, sent)
        if not isinstance(found, tuple) or len(found) != 5:
            raise ValueError(
                f"{self.name}: step must return (observation, reward, terminated, truncated, "
                f"info), got {_counted(found)}"
            )
        observation, reward, terminated, truncated, _ = found
        return rows.Step(
            observation, reward, 0.0 if terminated else 1.0, bool(terminated or truncated)
        )

    def render(self) -> np.ndarray:
        """Returns a picture, RGB, uint8, [H, W, 3]."""
        row = self._environment
        if row.render_mode != "rgb_array":
            raise ValueError(f"{row} has render_mode {row.render_mode!r}; make it with 'rgb_array'")
        with _using(row.spec, "render") if row.spec else contextlib.nullcontext():
            return np.asarray(row.render(), np.uint8)

    def close(self) -> None:
        """Closes the environment."""
        self._environment.close()


def _made(make_environment: Callable[[], gymnasium.Env]) -> Row:
    """Returns the row of a new environment, which is closed if it cannot be one."""
    environment = make_environment()
    if not isinstance(environment, gymnasium.Env):
        raise ValueError(
            f"the function of an environment must return a gymnasium.Env, got {environment!r}"
        )
    try:
        return Row(environment, is_owned=True)
    except BaseException:
        environment.close()
        raise


def _counted(found: Any) -> str:
    kind = type(found).__name__
    return f"a {kind} of {len(found)}" if isinstance(found, tuple | list) else f"a {kind}"


def _registered(game: str) -> tuple[EnvSpec, Any]:
    """Returns what gymnasium knows of an id, or of MODULE:ID once imported, and what makes it."""
    module, has_module, name = game.rpartition(":")
    if has_module:
        try:
            modules.load(module)
        except ValueError as error:
            raise ValueError(f"environment {game}: {error}") from error
    known = list(gymnasium.registry) if has_module else ids()
    if name not in known:
        what = f"gymnasium id, with those of {module}," if has_module else "gymnasium id"
        raise ValueError(names.unknown(what, name, known))
    found = gymnasium.registry[name]
    if not isinstance(found.entry_point, str):
        return found, found.entry_point
    # The module's own may be beside it; one that gymnasium knows is not looked for there.
    where = modules.current_folder() if has_module else contextlib.nullcontext()
    with _using(found, "importing it"), where:
        return found, load_env_creator(found.entry_point)


@contextlib.contextmanager
def _using(found: EnvSpec, call: str) -> Iterator[None]:
    """Says in one line what an environment raises, and which packages it needs if one is missing.

    Raises:
      ValueError: in place of any exception inside the block.
    """
    try:
        yield
    except Exception as error:
        name, text = f"environment {found.id}", rows.one_line(error)
        if needed := _missing(found, error):
            raise ValueError(
                f"{name} needs packages that are missing: pip install {needed} ({text})"
            ) from error
        raise ValueError(f"{name}: {call} raised {text}") from error


def _missing(found: EnvSpec, error: Exception) -> str:
    """Returns what `pip install` takes to mend an error; "" if it is of another kind."""
    if not isinstance(error, ImportError | gymnasium.error.DependencyNotInstalled):
        return ""
    place = str(found.entry_point).split(".")
    if place[:2] == ["gymnasium", "envs"]:
        extra = _EXTRAS.get(place[2], place[2].replace("_", "-"))
        return f"'gymnasium[{extra}]'"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.split(".")[0]
    return ""  # It says itself what it lacks.


def _spec(row: gymnasium.Env, num_actions: int, name: str) -> types.Spec:
    space = row.observation_space
    if not isinstance(space, gymnasium.spaces.Box):
        raise ValueError(f"{name} needs observations in a Box, got {space}")
    is_image = space.dtype == np.uint8
    bounds = None
    if _shows_cartpole(row):
        bounds = (tuple(-bound for bound in _CARTPOLE), _CARTPOLE)
    elif not is_image and len(space.shape) == 1 and space.is_bounded():
        bounds = (tuple(space.low.tolist()), tuple(space.high.tolist()))
    return types.Spec(
        shape=space.shape,
        dtype=np.uint8 if is_image else np.float32,
        num_actions=num_actions,
        bounds=bounds,
        max_episode_steps=None if row.spec is None else row.spec.max_episode_steps,
        largest_byte=max(int(space.high.max()), 1) if is_image else 255,
    )


def _shows_cartpole(row: gymnasium.Env) -> bool:
    """Whether a registered CartPole is observed as it is, however it is wrapped."""
    inner = row
    while isinstance(inner, gymnasium.Wrapper):
        if isinstance(inner, gymnasium.ObservationWrapper):
            return False
        inner = inner.env
    return (
        isinstance(inner, cartpole.CartPoleEnv)
        and row.spec is not None
        and row.spec.id.startswith("CartPole-")
        # A wrapper that changes what is observed declares a space of its own.
        and row.observation_space is inner.observation_space
        and inner.observation_space.shape == (len(_CARTPOLE),)
    )
