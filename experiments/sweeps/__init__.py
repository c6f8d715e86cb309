"""Sweeps: a product of runs, here or over several machines. `sweep` is `kullback sweep`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kullback.experiments.sweeps.sweeping import sweep as sweep

__all__ = ["sweep"]


def __getattr__(name: str) -> Any:
    # On first use: a process that does one run of a sweep needs none of it.
    if name == "sweep":
        from kullback.experiments.sweeps import sweeping

        return sweeping.sweep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
