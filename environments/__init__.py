"""Environments by name: `make("atari/pong", num_envs=8)`.

A family is a module of this package with `GAMES` (the names it lists), `make(game, num_envs,
**flags)` and, where the flags are not in `make`'s signature, `parameters(game)`; where it knows
more games than it lists, `is_known(game)` and `ids()`; if some flags stand for others,
`complete(flags)`. A family's packages are imported at its first use.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from kullback.core import typed, types
from kullback.core.names import alike, unknown
from kullback.environments.checked import checked as checked
from kullback.environments.gymnax import from_gymnax, from_navix

__all__ = [
    "FAMILIES",
    "MOST_ROWS",
    "Parameter",
    "check_name",
    "complete",
    "from_gymnax",
    "from_navix",
    "make",
    "names",
    "parameters",
]

# The module of each family of environments, imported when it is asked for.
FAMILIES = {
    "atari": "kullback.environments.atari",
    "minatar": "kullback.environments.minatar",
    "gym": "kullback.environments.gym",
    "gymnax": "kullback.environments.gymnax",
    "toy": "kullback.environments.toy",
}
# Largest B. On the host each row is an object or an emulator.
MOST_ROWS = {
    **{"atari": 1 << 12, "gym": 1 << 14},
    **dict.fromkeys(("minatar", "gymnax", "toy"), 1 << 20),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """A flag of an environment."""

    hint: Any  # The type, as `core.typed` reads it; `Any` where none is declared.
    default: Any  # `inspect.Parameter.empty` if a value is required.


def make(name: str, num_envs: int = 1, **flags: Any) -> types.Environment | types.HostEnvironment:
    """Makes the environment `family/game` with `num_envs` rows.

    Args:
      name: One of `names()`, or `gym/` and any other id that gymnasium knows; `gym/MODULE:ID`
        imports the module, which registers the id; `gymnax/` and an id of gymnax or Craftax, where
        they are installed.
      num_envs: B, at least 1 and at most MOST_ROWS of the family.
      **flags: The family's own, see `parameters`.

    Raises:
      ValueError: if the name, a flag or a flag's value is not valid.
    """
    module, game = _find(name)
    most = MOST_ROWS[name.split("/")[0]]
    if not 1 <= typed.check("num_envs", int, num_envs) <= most:
        raise ValueError(f"{name}: rows (num_envs) must lie in [1, {most:,}], got {num_envs}")
    valid = _parameters(module, game)
    for flag in flags:
        if flag not in valid:
            raise ValueError(f"{name}: {unknown('flag', flag, valid, show_all=True)}")
    values = {
        flag: typed.check(f"{name}: {flag}", valid[flag].hint, value)
        for flag, value in flags.items()
    }
    return module.make(game, num_envs, **values)


def parameters(name: str) -> dict[str, Parameter]:
    """Returns the flags that `make` takes for an environment, by name, with type and default.

    Raises:
      ValueError: if `name` is none that `make` knows.
    """
    return _parameters(*_find(name))


def complete(name: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns flags of `make` in which one that stands for others is replaced by them.

    Two environments are the same if their complete flags, defaults included, are.
    """
    module, _ = _find(name)
    return module.complete(flags) if hasattr(module, "complete") else dict(flags)


def check_name(name: str) -> None:
    """Raises ValueError, with the nearest names, unless `make` knows `name`."""
    _find(name)


def is_compiled(name: str) -> bool:
    """Returns whether `make` makes pure functions, `types.Environment`, of which seeds share one.

    Raises:
      ValueError: if `name` is none that `make` knows.
    """
    module, _ = _find(name)
    return inspect.signature(module.make, eval_str=True).return_annotation is types.Environment


def names() -> list[str]:
    """Lists every `family/game`; `make` takes further gymnasium ids too."""
    return [f"{family}/{game}" for family in FAMILIES for game in sorted(_module(family).GAMES)]


def _find(name: str) -> tuple[ModuleType, str]:
    family, _, game = name.partition("/")
    if family not in FAMILIES:
        if alike(name, names()):  # A name without the family, or as others spell it.
            raise ValueError(unknown("environment", name, names()))
        raise ValueError(f"{unknown('family', family, FAMILIES)} (names are family/game)")
    module = _module(family)
    is_open = hasattr(module, "is_known")  # It knows more games than it lists.
    if game in module.GAMES or (is_open and module.is_known(game)):
        return module, game
    siblings = [f"{family}/{game}" for game in (module.ids() if is_open else module.GAMES)]
    valid = siblings if alike(name, siblings) else {*names(), *siblings}
    raise ValueError(unknown("environment", name, valid))


def _module(family: str) -> ModuleType:
    return importlib.import_module(FAMILIES[family])


def _parameters(module: ModuleType, game: str) -> dict[str, Parameter]:
    if hasattr(module, "parameters"):
        return module.parameters(game)
    return keywords(module.make)


def keywords(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Returns the keyword-only arguments of a function, by name."""
    arguments = inspect.signature(function, eval_str=True).parameters.values()
    return {
        argument.name: Parameter(hint=argument.annotation, default=argument.default)
        for argument in arguments
        if argument.kind == argument.KEYWORD_ONLY
    }
