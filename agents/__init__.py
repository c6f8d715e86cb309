"""Value-based deep RL: one file an algorithm, one line here."""

from collections.abc import Callable
from typing import Any, NamedTuple

from kullback.agents import dqn, munchausen


class Entry(NamedTuple):
    """How an algorithm is built: its presets by family, and its constructor."""

    presets: Callable[[Any], Any]  # family -> Config.
    make: Callable[..., Any]  # (torso or None, spec, config) -> Agent.


AGENTS: dict[str, Entry] = {
    "dqn": Entry(dqn.presets, dqn.make),
    "m-dqn": Entry(munchausen.presets, munchausen.make),
}
