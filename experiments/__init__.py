"""The user's entry points: `train`, `resume` and `load` in Python, `kullback` on a terminal."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kullback.experiments.runs.acting import Run as Run
    from kullback.experiments.runs.acting import load as load
    from kullback.experiments.runs.training import resume as resume
    from kullback.experiments.runs.training import train as train

__all__ = ["Run", "load", "resume", "train"]


def __getattr__(name: str) -> Any:
    # On first use, so that `kullback --help` does not wait for JAX.
    if name in ("train", "resume"):
        from kullback.experiments.runs import training

        return getattr(training, name)
    if name in ("load", "Run"):
        from kullback.experiments.runs import acting

        return getattr(acting, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
