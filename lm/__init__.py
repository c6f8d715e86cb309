"""Language models as policies: one file an algorithm, one line here."""

from collections.abc import Callable
from typing import Any, NamedTuple

from kullback.lm import gkd, sft


class Entry(NamedTuple):
    """How an algorithm is built: its presets, and its constructor."""

    presets: Callable[[Any], Any]  # family -> Config; there is one, "tokens".
    make: Callable[..., Any]  # (model, config) -> Agent, or (model, teacher, config).
    has_teacher: bool


ALGORITHMS: dict[str, Entry] = {
    "sft": Entry(sft.presets, sft.make, has_teacher=False),
    "distill": Entry(gkd.offline_presets, gkd.make, has_teacher=True),
    "gkd": Entry(gkd.presets, gkd.make, has_teacher=True),
}
