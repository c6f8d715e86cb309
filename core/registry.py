"""Algorithms by name, whose modules are imported once they are used."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """How an algorithm is built, and what `kullback list` says of it, which imports nothing."""

    module: str  # Dotted name of the module with `make` and the presets.
    description: str  # A line.
    presets_name: str = "presets"  # Of the module's function.
    # Environments side by side, by family, where the algorithm's protocol has a number of its own.
    num_envs: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def presets(self) -> Callable[[Any], Any]:
        """Family -> Config."""
        return getattr(importlib.import_module(self.module), self.presets_name)

    @property
    def make(self) -> Callable[..., Any]:
        """The constructor of the agent."""
        return importlib.import_module(self.module).make
