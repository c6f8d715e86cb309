"""Value-based deep RL: one file an algorithm, one line here."""

from collections.abc import Callable
from typing import Any, NamedTuple

from kullback.agents import (
    advantage_learning,
    c51,
    dcpi,
    double_dqn,
    dqn,
    iqn,
    md_dqn,
    momentum_dqn,
    munchausen,
    munchausen_iqn,
    politex_dqn,
    qr_dqn,
    rainbow,
)

__all__ = ["AGENTS", "Entry"]


class Entry(NamedTuple):
    """How an algorithm is built: its presets by family, and its constructor."""

    presets: Callable[[Any], Any]  # family -> Config.
    make: Callable[..., Any]  # (torso or None, spec, config) -> Agent.


# Agents by name.
AGENTS: dict[str, Entry] = {
    "al-dqn": Entry(advantage_learning.presets, advantage_learning.make),
    "c51": Entry(c51.presets, c51.make),
    "dcpi": Entry(dcpi.presets, dcpi.make),
    "double-dqn": Entry(double_dqn.presets, double_dqn.make),
    "dqn": Entry(dqn.presets, dqn.make),
    "iqn": Entry(iqn.presets, iqn.make),
    "m-dqn": Entry(munchausen.presets, munchausen.make),
    "m-iqn": Entry(munchausen_iqn.presets, munchausen_iqn.make),
    "md-dqn": Entry(md_dqn.presets, md_dqn.make),
    "mo-dqn": Entry(momentum_dqn.presets, momentum_dqn.make),
    "politex-dqn": Entry(politex_dqn.presets, politex_dqn.make),
    "qr-dqn": Entry(qr_dqn.presets, qr_dqn.make),
    "rainbow": Entry(rainbow.presets, rainbow.make),
    "soft-dqn": Entry(munchausen.soft_presets, munchausen.make),
}
