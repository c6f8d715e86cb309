"""Pipelines: stages that take what earlier ones made. `run` is `kullback pipeline`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kullback.experiments.pipelines.running import run as run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    # On first use: a process that does one stage needs none of it.
    if name == "run":
        from kullback.experiments.pipelines import running

        return running.run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
