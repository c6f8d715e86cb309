"""Language models as policies: one file an algorithm, one line here."""

from collections.abc import Callable
from typing import Any, NamedTuple

from kullback.lm import gkd, reward_model, rlef, rlhf, sft, warm, warp

__all__ = ["ALGORITHMS", "Entry"]


class Entry(NamedTuple):
    """How an algorithm is built: its presets, and its constructor."""

    presets: Callable[[Any], Any]  # family -> Config; there is one, "tokens".
    make: Callable[..., Any]  # (model, config) -> Agent, or (model, teacher, config).
    has_teacher: bool  # Always; a weight of distillation asks for one too.
    reads_pairs: bool = False  # Learns from preferences, and becomes a reward model.


# Algorithms of language models by name.
ALGORITHMS: dict[str, Entry] = {
    "sft": Entry(sft.presets, sft.make, has_teacher=False),
    "distill": Entry(gkd.offline_presets, gkd.make, has_teacher=True),
    "gkd": Entry(gkd.presets, gkd.make, has_teacher=True),
    "rlhf": Entry(rlhf.presets, rlhf.make, has_teacher=False),
    "rlef": Entry(rlef.presets, rlef.make, has_teacher=False),
    "warp": Entry(warp.presets, warp.make, has_teacher=False),
    "reward-model": Entry(
        reward_model.presets, reward_model.make, has_teacher=False, reads_pairs=True
    ),
    "warm": Entry(warm.presets, warm.make, has_teacher=False, reads_pairs=True),
}
