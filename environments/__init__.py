"""Things to act in, by name: `make("atari/pong", num_envs=8)`.

A family is a module of this package with `GAMES` (the names it lists), `make(game, num_envs,
**flags)` and, where the flags are not in `make`'s signature, `flags(game)`. What a family needs is
imported when it is asked for.
"""

import importlib
import inspect
from types import ModuleType
from typing import Any

from kullback.core import names as names_of
from kullback.core import types
from kullback.environments.checked import checked as checked

FAMILIES = {
    "atari": "kullback.environments.atari",
    "minatar": "kullback.environments.minatar",
    "gym": "kullback.environments.gym",
    "toy": "kullback.environments.toy",
}


def make(name: str, num_envs: int = 1, **flags: Any) -> types.Environment | types.HostEnvironment:
    """The environment `family/game` with `num_envs` rows.

    Args:
      name: One of `names()`, or `gym/` and any other id that gymnasium knows.
      num_envs: B, at least 1.
      **flags: What the family's constructor takes besides.

    Raises:
      ValueError: if the name, a flag or a flag's value is none of those.
    """
    module, game = _find(name)
    if num_envs < 1:
        raise ValueError(f"num_envs must be >= 1, got {num_envs}")
    valid = _flags(module, game)
    for flag in flags:
        if flag not in valid:
            raise ValueError(f"{name}: {names_of.unknown('flag', flag, valid, show_all=True)}")
    return module.make(game, num_envs, **flags)


def check_name(name: str) -> None:
    """Raises ValueError, with the nearest names, unless `make` knows `name`."""
    _find(name)


def names() -> list[str]:
    """Every `family/game` that is listed; `make` takes further gymnasium ids too."""
    return [f"{family}/{game}" for family in FAMILIES for game in sorted(_module(family).GAMES)]


def _find(name: str) -> tuple[ModuleType, str]:
    family, _, game = name.partition("/")
    if family not in FAMILIES:
        raise ValueError(f"{names_of.unknown('family', family, FAMILIES)} (names are family/game)")
    module = _module(family)
    if game not in module.GAMES and game not in getattr(module, "UNLISTED", ()):
        valid = [f"{family}/{game}" for game in module.GAMES]
        raise ValueError(names_of.unknown("environment", name, valid))
    return module, game


def _module(family: str) -> ModuleType:
    return importlib.import_module(FAMILIES[family])


def _flags(module: ModuleType, game: str) -> list[str]:
    if hasattr(module, "flags"):
        return module.flags(game)
    return keywords(module.make)


def keywords(function: Any) -> list[str]:
    """Names of the keyword-only arguments of a function."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY]
