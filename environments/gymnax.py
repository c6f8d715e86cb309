"""Environments of gymnax's form, and of navix's, as compiled rows.

gymnax (https://github.com/RobertTLange/gymnax) and Craftax have `reset_env` and `step_env`, pure
functions of one row without a reset of their own. They are all that is called, so that a step has
its `next_observation`, and versions in which `step` returns five values or six run alike.

A time limit is an end, not a cut, in gymnax before 1.0 and in Craftax: `done` says both. So the
limit is taken out of the parameters and counted here. Where that is impossible, nothing tells one
from the other, and a caller says that every limit is an end.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import types
from kullback.environments import batched, rows

__all__ = ["from_gymnax", "from_navix", "ids", "is_known", "make"]

GAMES = ()  # Nothing is listed: what there is depends on what is installed.
CRAFTAX = (
    *("Craftax-Symbolic-v1", "Craftax-Pixels-v1"),
    *("Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1"),
)
INSTALL = {"gymnax": "pip install 'kullback[gymnax]'", "craftax": "pip install craftax"}
# Fields of an environment's parameters that are its time limit: gymnax's and Craftax's.
LIMITS = ("max_steps_in_episode", "max_timesteps")
NO_LIMIT = 2**31 - 1  # Steps are counted in int32.
# Classes of environments that observe the share of their limit that has passed.
OBSERVES_LIMIT = ("DiscountingChain",)
TRUNCATED, TERMINATED = 1, 2  # navix's types of steps, which are not dm_env's.

Observe = Callable[[Any], jax.Array]


def make(
    game: str,
    num_envs: int,
    *,
    max_episode_steps: int | None = None,
    limit_is_end: bool = False,
    resets: int = 0,
) -> types.Environment:
    """Makes an environment of gymnax, or of Craftax, with `num_envs` rows.

    Args:
      game: an id that gymnax knows, or one of CRAFTAX.
      num_envs: B.
      max_episode_steps: see `from_gymnax`.
      limit_is_end: see `from_gymnax`.
      resets: see `from_gymnax`.

    Raises:
      ValueError: if the package is not installed, or the environment cannot be a row.
    """
    name = f"environment gymnax/{game}"
    if game in CRAFTAX:
        create = _package("craftax", "craftax.craftax_env").make_craftax_env_from_name
        environment, params = rows.called(name, "making it", create, game, False), None
    else:
        create = _package("gymnax").make  # Some need packages, or fetch data.
        environment, params = rows.called(name, "making it", create, game)
    return from_gymnax(
        environment,
        params,
        num_envs,
        max_episode_steps=max_episode_steps,
        limit_is_end=limit_is_end,
        resets=resets,
    )


def ids() -> list[str]:
    """Returns the ids of gymnax, and those of Craftax.

    Raises:
      ValueError: if gymnax is not installed.
    """
    return [*_package("gymnax").registered_envs, *CRAFTAX]


def is_known(game: str) -> bool:
    """Returns whether `make` takes an id; any, where gymnax, which knows, is not installed.

    So a run of it can be read everywhere; `make` says what is missing.
    """
    return game in CRAFTAX or importlib.util.find_spec("gymnax") is None or game in ids()


def from_gymnax(
    environment: Any,
    params: Any = None,
    num_envs: int = 1,
    *,
    max_episode_steps: int | None = None,
    limit_is_end: bool = False,
    observation: Observe | None = None,
    auto_reset: bool = True,
    resets: int = 0,
) -> types.Environment:
    """Returns an environment of gymnax's form as B compiled rows.

    Args:
      environment: with `reset_env(key, params)`, `step_env(key, state, action, params)`,
        `action_space(params)`, which is discrete, and `observation_space(params)`.
      params: its parameters; None is `environment.default_params`.
      num_envs: B.
      max_episode_steps: steps after which an episode is cut, with discount 1; None is the limit
        among `params`.
      limit_is_end: whether the environment's own limit stays, as an end with discount 0. So must it
        be where the parameters have none that is known, or where it is observed.
      observation: makes one array of the environment's observation; None takes it as it is. A
        matrix becomes a vector; numbers other than bytes and booleans become float32.
      auto_reset: if False, finished rows stay where they are, with LAST and no more reward.
      resets: episodes begun a tick, see `batched.rows`; 0 is B. Craftax's worlds are dear.

    Raises:
      ValueError: for a wrapper, whose `step` would be passed over; for actions that are not
        discrete; for an observation that is no array; for a limit that cannot be told from an end.
    """
    name = _name(environment)
    if hasattr(environment, "_env"):
        raise ValueError(
            f"{name} is a wrapper, whose step and reset would be passed over; give the environment "
            "in it, and observation= for what it does to observations"
        )
    for method in ("reset_env", "step_env", "action_space", "observation_space"):
        if not callable(getattr(environment, method, None)):
            raise ValueError(f"{name} has no {method}, so it is not of gymnax's form")
    params = environment.default_params if params is None else params
    limit = max_episode_steps
    if not limit_is_end:
        params, limit_of_params = _without_limit(name, environment, params)
        limit = limit_of_params if limit is None else limit
    observe: Observe = observation or (lambda seen: seen)
    spec = batched.spec(
        name,
        rows.called(
            *(name, "reset_env", jax.eval_shape),
            lambda key: observe(environment.reset_env(key, params)[0]),
            batched.KEY,
        ),
        _num_actions(name, environment.action_space(params)),
        bounds=None if observation else _bounds(name, environment, params),
        max_episode_steps=limit,
    )

    def reset(key: types.Key) -> tuple[jax.Array, Any]:
        seen, state = environment.reset_env(key, params)
        return batched.array(observe(seen), spec), state

    def step(key: types.Key, state: Any, action: jax.Array) -> batched.Step:
        seen, state, reward, done, _ = environment.step_env(key, state, action, params)
        is_cut = jnp.zeros((), bool)
        if hasattr(environment, "is_truncated"):  # From gymnax 1.0 on; `done` is a true end then.
            is_cut = jnp.asarray(environment.is_truncated(state, params), bool)
        return batched.Step(
            batched.array(observe(seen), spec),
            state,
            jnp.asarray(reward),
            jnp.asarray(done, bool),
            is_cut,
        )

    single = batched.Single(name, spec, reset, step)
    return batched.rows(single, num_envs, auto_reset=auto_reset, resets=resets)


def from_navix(
    environment: Any,
    num_envs: int = 1,
    *,
    observation: Observe | None = None,
    auto_reset: bool = True,
    resets: int = 0,
) -> types.Environment:
    """Returns an environment of navix as B compiled rows; it tells its limit from an end.

    navix resets in the step after an end, whose action it drops; here each step is a real one.

    Args:
      environment: as `navix.make` gives it.
      num_envs: B.
      observation: as for `from_gymnax`.
      auto_reset: as for `from_gymnax`.
      resets: as for `from_gymnax`.

    Raises:
      ValueError: as `from_gymnax` does.
    """
    name = _name(environment)
    observe: Observe = observation or (lambda seen: seen)
    spec = batched.spec(
        name,
        jax.eval_shape(lambda key: observe(environment.reset(key).observation), batched.KEY),
        _num_actions(name, environment.action_space),
        max_episode_steps=int(environment.max_steps),
    )

    def reset(key: types.Key) -> tuple[jax.Array, Any]:
        timestep = environment.reset(key)
        return batched.array(observe(timestep.observation), spec), timestep

    def step(key: types.Key, state: Any, action: jax.Array) -> batched.Step:
        del key  # navix keeps one in its state.
        timestep = environment.step(state, action)
        return batched.Step(
            batched.array(observe(timestep.observation), spec),
            timestep,
            jnp.asarray(timestep.reward),
            timestep.step_type == TERMINATED,
            timestep.step_type == TRUNCATED,
        )

    single = batched.Single(name, spec, reset, step)
    return batched.rows(single, num_envs, auto_reset=auto_reset, resets=resets)


def _name(environment: Any) -> str:
    return str(getattr(environment, "name", None) or type(environment).__name__)


def _package(name: str, module: str = "") -> ModuleType:
    """Imports a package, or a module of it.

    Raises:
      ValueError: if it is not installed, with what installs it.
    """
    try:
        return importlib.import_module(module or name)
    except ImportError as error:
        raise ValueError(
            f"environments of {name} need its package, which cannot be imported ({error}); "
            f"{INSTALL[name]}"
        ) from error


def _without_limit(name: str, environment: Any, params: Any) -> tuple[Any, int | None]:
    """Returns parameters without a time limit, and the limit.

    Raises:
      ValueError: if the limit cannot be told from an end.
    """
    if type(environment).__name__ in OBSERVES_LIMIT:
        raise ValueError(
            f"{name} observes its time limit, so it cannot be taken out to tell it from an end; "
            "limit_is_end=True keeps it, as an end"
        )
    is_class = dataclasses.is_dataclass(params)
    fields = {field.name for field in dataclasses.fields(params)} if is_class else set()
    for field in LIMITS:
        if field in fields:
            removed: Any = dataclasses.replace(params, **{field: NO_LIMIT})
            return removed, int(getattr(params, field))
    if hasattr(environment, "is_truncated"):
        return params, None
    raise ValueError(
        f"{name} has none of {', '.join(LIMITS)} among its parameters and no is_truncated, so a "
        "time limit cannot be told from an end; limit_is_end=True takes each end for a true one"
    )


def _num_actions(name: str, space: Any) -> int:
    """Returns the number of actions of a discrete space.

    Raises:
      ValueError: for another space.
    """
    count = getattr(space, "n", None)
    if count is None or np.shape(count) != ():
        raise ValueError(f"{name} needs a discrete action space, got {type(space).__name__}")
    return int(count)


def _bounds(name: str, environment: Any, params: Any) -> tuple[Any, Any] | None:
    space = rows.called(name, "observation_space", environment.observation_space, params)
    return (space.low, space.high) if hasattr(space, "low") else None
