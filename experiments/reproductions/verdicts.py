"""How reproductions over seeds judge: by a confidence interval, and not at all of one seed."""

from collections.abc import Sequence

from kullback.experiments import reproduce


def above(claim: str, values: Sequence[float], threshold: float = 0.0) -> reproduce.Check:
    """Whether the 95% interval of the mean over seeds lies above the threshold; [seeds] values."""
    found = reproduce.interval(values)
    if len(values) < 2:
        return reproduce.Check(claim, None, f"{values[0]:.4g}; one seed has no interval")
    evidence = f"{found} over {len(values)} seeds, against {threshold:g}"
    return reproduce.Check(claim, found.low > threshold, evidence)


def every(claim: str, held: Sequence[bool], evidence: str) -> reproduce.Check:
    """Whether something was so with every seed; [seeds]."""
    return reproduce.Check(claim, all(held), f"{sum(held)} of {len(held)} seeds; {evidence}")
