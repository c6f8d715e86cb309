"""Checks of the environments that a user's function makes."""

import weakref
from collections.abc import Callable
from typing import Any

from kullback.core import types

AnyEnvironment = types.Environment | types.HostEnvironment


def checked(make: Callable[[int], Any]) -> Callable[[int], AnyEnvironment]:
    """Returns `make`, number of rows -> environment, with each of its results checked.

    Raises:
      ValueError: if it is no function; when it is called, if it returns no environment, another
        number of rows, another kind or spec than the first time, or, on the host, an object that
        it has returned before: evaluation would step the environment that is trained in.
    """
    if not callable(make):
        raise ValueError(
            f"an environment must be a name or a function of the number of rows, got {make!r}"
        )
    handed_out: list[Callable[[], Any]] = []  # Weak references.
    kinds: list[tuple[bool, types.Spec]] = []

    def make_checked(num_envs: int) -> AnyEnvironment:
        environment = make(num_envs)
        name = f"the environment that a function returned for {num_envs} rows"
        if not isinstance(environment, types.Environment | types.HostEnvironment):
            raise ValueError(
                f"{name} must be a types.Environment or a types.HostEnvironment, got "
                f"{environment!r}; environments/gym.py and dm.py make one of a gymnasium.Env or a "
                "dm_env.Environment"
            )
        if environment.num_envs != num_envs:
            raise ValueError(
                f"{name} has {environment.num_envs}; make as many as are asked for, e.g. "
                "lambda rows: from_gymnasium(make_one, rows)"
            )
        is_compiled = isinstance(environment, types.Environment)
        if not is_compiled:
            if any(reference() is environment for reference in handed_out):
                raise ValueError(
                    f"{name} is an object that it returned before; training and evaluation need "
                    "one each, so make a new one at each call"
                )
            handed_out.append(_reference(environment))
        if not kinds:
            kinds.append((is_compiled, environment.spec))
        elif kinds[0] != (is_compiled, environment.spec):
            raise ValueError(f"{name} differs from the first: {_difference(kinds[0], environment)}")
        return environment

    return make_checked


def _reference(environment: types.HostEnvironment) -> Callable[[], Any]:
    try:
        return weakref.ref(environment)
    except TypeError:  # A class with slots.
        return lambda: environment


def _difference(first: tuple[bool, types.Spec], environment: AnyEnvironment) -> str:
    is_compiled, spec = first
    if is_compiled != isinstance(environment, types.Environment):
        return "one is compiled and one is not"
    return f"{environment.spec.against(spec)}, not {spec.against(environment.spec)}"
