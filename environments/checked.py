"""Functions that make environments, checked: what they hand back is what they were asked for."""

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
    handed_out: list[Callable[[], Any]] = []  # References that keep nothing alive.
    kinds: list[tuple[bool, types.Spec]] = []

    def make_checked(num_envs: int) -> AnyEnvironment:
        made = make(num_envs)
        name = f"the environment that a function returned for {num_envs} rows"
        if not isinstance(made, types.Environment | types.HostEnvironment):
            raise ValueError(
                f"{name} must be a types.Environment or a types.HostEnvironment, got {made!r}; "
                "environments/gym.py and dm.py make one of a gymnasium.Env or a dm_env.Environment"
            )
        if made.num_envs != num_envs:
            raise ValueError(
                f"{name} has {made.num_envs}; make as many as are asked for, e.g. "
                "lambda rows: from_gymnasium(make_one, rows)"
            )
        is_compiled = isinstance(made, types.Environment)
        if not is_compiled:
            if any(reference() is made for reference in handed_out):
                raise ValueError(
                    f"{name} is an object that it returned before; training and evaluation need "
                    "one each, so make a new one at each call"
                )
            handed_out.append(_reference(made))
        if not kinds:
            kinds.append((is_compiled, made.spec))
        elif kinds[0] != (is_compiled, made.spec):
            raise ValueError(f"{name} differs from the first: {_difference(kinds[0], made)}")
        return made

    return make_checked


def _reference(made: types.HostEnvironment) -> Callable[[], Any]:
    try:
        return weakref.ref(made)
    except TypeError:  # A class with slots.
        return lambda: made


def _difference(first: tuple[bool, types.Spec], made: AnyEnvironment) -> str:
    is_compiled, spec = first
    if is_compiled != isinstance(made, types.Environment):
        return "one is compiled and one is not"
    found, wanted = made.spec.against(spec), spec.against(made.spec)
    return f"{found}, not {wanted}"
