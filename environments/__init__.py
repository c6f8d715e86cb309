"""Things to act in, by name: `make("atari/pong", num_envs=8)`.

A family is a module of this package with `GAMES` (the names it lists), `make(game, num_envs,
**flags)` and, where the flags are not in `make`'s signature, `parameters(game)`; where it knows
more games than it lists, `is_known(game)` and `ids()`; if some flags stand for others,
`complete(flags)`. What a family needs is imported when it is asked for.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from kullback.core import names as names_of
from kullback.core import typed, types
from kullback.environments.checked import checked as checked

__all__ = [
    "FAMILIES",
    "MOST_ROWS",
    "Parameter",
    "check_name",
    "complete",
    "make",
    "names",
    "parameters",
]

# The module of each family of environments, imported when it is asked for.
FAMILIES = {
    "atari": "kullback.environments.atari",
    "minatar": "kullback.environments.minatar",
    "gym": "kullback.environments.gym",
    "toy": "kullback.environments.toy",
}
# On the host a row is an object or an emulator of its own.
MOST_ROWS = {"atari": 1 << 12, "minatar": 1 << 20, "gym": 1 << 14, "toy": 1 << 20}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameter:
    """A flag of an environment."""

    hint: Any  # Its type, as `core.typed` reads it; `Any` where nothing is declared.
    default: Any  # `inspect.Parameter.empty` where a value has to be given.


def make(name: str, num_envs: int = 1, **flags: Any) -> types.Environment | types.HostEnvironment:
    """The environment `family/game` with `num_envs` rows.

    Args:
      name: One of `names()`, or `gym/` and any other id that gymnasium knows; `gym/MODULE:ID`
        imports the module, which registers the id.
      num_envs: B, at least 1 and at most MOST_ROWS of the family.
      **flags: What the family's constructor takes besides.

    Raises:
      ValueError: if the name, a flag or a flag's value is none of those.
    """
    module, game = _find(name)
    most = MOST_ROWS[name.split("/")[0]]
    if not 1 <= typed.check("num_envs", int, num_envs) <= most:
        raise ValueError(f"{name}: rows (num_envs) must lie in [1, {most:,}], got {num_envs}")
    valid = _parameters(module, game)
    for flag in flags:
        if flag not in valid:
            raise ValueError(f"{name}: {names_of.unknown('flag', flag, valid, show_all=True)}")
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
    """Returns flags of `make` as the family reads them: one that stands for others as those.

    Two environments whose complete flags are the same, defaults included, are the same.
    """
    module, _ = _find(name)
    return module.complete(flags) if hasattr(module, "complete") else dict(flags)


def check_name(name: str) -> None:
    """Raises ValueError, with the nearest names, unless `make` knows `name`."""
    _find(name)


def names() -> list[str]:
    """Every `family/game` that is listed; `make` takes further gymnasium ids too."""
    return [f"{family}/{game}" for family in FAMILIES for game in sorted(_module(family).GAMES)]


def _find(name: str) -> tuple[ModuleType, str]:
    family, _, game = name.partition("/")
    if family not in FAMILIES:
        if names_of.alike(name, names()):  # Others call it so.
            raise ValueError(names_of.unknown("environment", name, names()))
        raise ValueError(f"{names_of.unknown('family', family, FAMILIES)} (names are family/game)")
    module = _module(family)
    is_open = hasattr(module, "is_known")  # To more than it lists.
    if game in module.GAMES or (is_open and module.is_known(game)):
        return module, game
    own = [f"{family}/{game}" for game in (module.ids() if is_open else module.GAMES)]
    valid = own if names_of.alike(name, own) else {*names(), *own}
    raise ValueError(names_of.unknown("environment", name, valid))


def _module(family: str) -> ModuleType:
    return importlib.import_module(FAMILIES[family])


def _parameters(module: ModuleType, game: str) -> dict[str, Parameter]:
    if hasattr(module, "parameters"):
        return module.parameters(game)
    return keywords(module.make)


def keywords(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Returns the keyword-only arguments of a function, by name."""
    found = inspect.signature(function, eval_str=True).parameters.values()
    return {
        one.name: Parameter(hint=one.annotation, default=one.default)
        for one in found
        if one.kind == one.KEYWORD_ONLY
    }
