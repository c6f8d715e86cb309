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
# Extras of `pip install 'gymnasium[...]'` that are not called as their package of environments is.
_EXTRAS = {"phys2d": "jax", "tabular": "jax"}

# CartPole's velocities have no bounds. The network's input is scaled by those of Vieillard et al.
# (and Dopamine): x, its velocity, angle, its velocity.
_CARTPOLE = (2.4, 5.0, np.pi / 12, 2 * np.pi)


def make(game: str, num_envs: int, **flags: Any) -> rows.Rows:
    """Returns the environment of gymnasium id `game`, its time limit included, as `num_envs` rows.

    Args:
      game: One of GAMES, or another id with a Discrete action space and a Box to observe;
        MODULE:ID, if importing a module registers it.
      num_envs: B.
      **flags: `max_episode_steps` and arguments of the environment's constructor.

    Raises:
      ValueError: if the id or a flag is unknown, packages are missing, or the spaces are not
        supported.
    """
    spec, creator = _registered(game)
    limit = flags.get("max_episode_steps")
    if limit not in (None, -1) and not 1 <= limit < 2**31:
        raise ValueError(
            f"max_episode_steps must lie in [1, 2^31), or be -1 for no limit or None for that of "
            f"{game}, got {limit}"
        )
    modes = getattr(creator, "metadata", {}).get("render_modes", ())
    rendered = {"render_mode": "rgb_array"} if "rgb_array" in modes else {}

    def make_row(row: int) -> gymnasium.Env:
        arguments = flags if row else {**rendered, **flags}  # Only row 0 is rendered.
        with _using(spec, "making it"):
            return gymnasium.make(spec.id, disable_env_checker=True, **arguments)

    makers = [functools.partial(make_row, row) for row in range(num_envs)]
    return rows.Rows([functools.partial(_make_row, maker) for maker in makers])


def ids() -> list[str]:
    """Returns the ids that gymnasium knows; most need more packages.

    The ALE's are left out: gymnasium knows them only once its package is imported, and
    `environments/atari.py` makes them.
    """
    return [
        name
        for name, spec in gymnasium.registry.items()
        if not str(spec.entry_point).startswith("ale_py.")
    ]


def is_known(game: str) -> bool:
    """Returns whether `make` takes an id; of MODULE:ID only the form is checked, not imported."""
    module, has_module, name = game.rpartition(":")
    if not has_module:
        return game in ids()
    return bool(name) and all(part.isidentifier() for part in module.split("."))


def parameters(game: str) -> dict[str, environments.Parameter]:
    """Returns the flags that `make` takes for an id: its constructor's arguments, and its limit."""
    spec, creator = _registered(game)
    try:
        signature = inspect.signature(creator, eval_str=True)
    except NameError:  # A type that its module imports for type checkers alone.
        signature = inspect.signature(creator)
    limit = spec.max_episode_steps
    return {
        "max_episode_steps": environments.Parameter(hint=int | None, default=limit),
        **{
            argument.name: environments.Parameter(hint=_hint(argument), default=argument.default)
            for argument in signature.parameters.values()
            if argument.name != "render_mode"
            and argument.kind in (argument.POSITIONAL_OR_KEYWORD, argument.KEYWORD_ONLY)
        },
    }


def _hint(argument: inspect.Parameter) -> Any:
    """Returns the declared type of an argument, else the type of its default."""
    hint, default = argument.annotation, argument.default
    if hint is argument.empty and isinstance(default, bool):
        return bool  # Not a number, although a bool is an int.
    if hint is argument.empty and isinstance(default, int | float):
        return int | float
    if hint is argument.empty or isinstance(hint, str):
        return Any
    return hint | None if default is None else hint


def from_gymnasium(
    environment: gymnasium.Env | Callable[[], gymnasium.Env], num_envs: int = 1
) -> rows.Rows:
    """Returns the caller's gymnasium environment as B rows.

    Args:
      environment: The environment itself (then B is 1), or a function that makes a row. Videos
        need render_mode="rgb_array".
      num_envs: B.

    Raises:
      ValueError: if its spaces are not supported, or one object should be several rows.
    """
    if not isinstance(environment, gymnasium.Env):
        return rows.Rows([functools.partial(_make_row, environment)] * num_envs)
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
        result = rows.called(self.name, "reset", lambda: self._environment.reset(seed=seed))
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(
                f"{self.name}: reset must return (observation, info), got {_counted(result)}"
            )
        return result[0]

    def step(self, action: int) -> rows.Step:
        """Acts; gymnasium's infos are dropped."""
        shifted = np.int64(action + self._first_action)
        result = rows.called(self.name, "step", self._environment.step, shifted)
        if not isinstance(result, tuple) or len(result) != 5:
            raise ValueError(
                f"{self.name}: step must return (observation, reward, terminated, truncated, "
                f"info), got {_counted(result)}"
            )
        observation, reward, terminated, truncated, _ = result
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


def _make_row(make_environment: Callable[[], gymnasium.Env]) -> Row:
    """Makes an environment and its row, and closes the environment if it cannot be a row."""
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


def _counted(result: Any) -> str:
    kind = type(result).__name__
    return f"a {kind} of {len(result)}" if isinstance(result, tuple | list) else f"a {kind}"


def _registered(game: str) -> tuple[EnvSpec, Any]:
    """Returns the gymnasium spec and constructor of an id, or of MODULE:ID, which is imported."""
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
    spec = gymnasium.registry[name]
    if not isinstance(spec.entry_point, str):
        return spec, spec.entry_point
    # A user's module may name another in the current folder; gymnasium's are never sought there.
    where = modules.current_folder() if has_module else contextlib.nullcontext()
    with _using(spec, "importing it"), where:
        return spec, load_env_creator(spec.entry_point)


@contextlib.contextmanager
def _using(spec: EnvSpec, call: str) -> Iterator[None]:
    """Turns an environment's exceptions into one line, which names packages that are missing.

    Raises:
      ValueError: in place of any exception inside the block.
    """
    try:
        yield
    except Exception as error:
        name, text = f"environment {spec.id}", rows.one_line(error)
        if needed := _missing(spec, error):
            raise ValueError(
                f"{name} needs packages that are missing: pip install {needed} ({text})"
            ) from error
        raise ValueError(f"{name}: {call} raised {text}") from error


def _missing(spec: EnvSpec, error: Exception) -> str:
    """Returns the argument of `pip install` that mends an error; "" if none does."""
    if not isinstance(error, ImportError | gymnasium.error.DependencyNotInstalled):
        return ""
    place = str(spec.entry_point).split(".")
    if place[:2] == ["gymnasium", "envs"]:
        extra = _EXTRAS.get(place[2], place[2].replace("_", "-"))
        return f"'gymnasium[{extra}]'"
    if isinstance(error, ModuleNotFoundError) and error.name:
        return error.name.split(".")[0]
    return ""  # The error says itself what it lacks.


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
    """Returns whether a registered CartPole is observed as it is, under any wrappers."""
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
