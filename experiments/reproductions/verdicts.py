"""How reproductions judge: by a confidence interval over seeds or processes, never of one."""

from collections.abc import Sequence

import numpy as np

from kullback.experiments import reproduce, statistics


def above(
    claim: str,
    values: Sequence[float] | np.ndarray,
    threshold: float = 0.0,
    units: tuple[str, str] = ("seed", "seeds"),
) -> reproduce.Check:
    """Whether the 95% interval of the mean lies above the threshold; a value a unit (a seed)."""
    one, many = units
    if len(values) < 2:
        return reproduce.Check(claim, None, f"{values[0]:.4g}; one {one} has no interval")
    found = statistics.t_interval(values)
    evidence = f"{found} over {len(values)} {many}, against {threshold:g}"
    return reproduce.Check(claim, bool(found.low > threshold), evidence)


def every(claim: str, held: Sequence[bool], evidence: str) -> reproduce.Check:
    """Whether something was so with every seed; [seeds]."""
    return reproduce.Check(claim, all(held), f"{sum(held)} of {len(held)} seeds; {evidence}")
