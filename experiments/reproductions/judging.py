"""Verdicts: what data say of a sentence, with how many seeds, and what would have been seen.

A sentence is that some number lies above a threshold, and is judged by the number's 95% interval:
*held* where the interval lies above the threshold, *contradicted* where it lies below, *undecided*
where it has the threshold inside. What is only told is *reported*. Nothing is judged by one seed.

Beside a verdict stands the smallest effect that would have been seen: the distance from the
threshold from which on, with the spread that was observed, "held" has a probability of 0.8. It is
the quantile of the noncentral t distribution (Cohen, "Statistical Power Analysis", 1988).

Which interval it is depends on what arms share. Seeds of one arm: Student's. Two arms whose runs of
a seed share nothing that moves the number: Welch's, with its degrees of freedom. Two arms that
share a start or data: Student's of the differences, pair by pair; a check then says what is shared.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.stats

from kullback.core import json_files
from kullback.experiments import statistics
from kullback.experiments.reproductions import effects

Verdict = Literal["held", "contradicted", "undecided", "reported"]
ORDER: tuple[Verdict, ...] = ("contradicted", "undecided", "held", "reported")  # In tables.

SEEDS = ("seed", "seeds")


class Check(NamedTuple):
    """One statement of a paper, and the evidence for it."""

    claim: str  # The expected result, and how it is measured.
    verdict: Verdict
    evidence: str  # The figures, with their interval.
    is_headline: bool = False  # Whether it is what the paper is read for.
    test: str = ""  # The interval's kind, and for pairs what they share; "" for bounds and reports.
    num_seeds: int | None = None  # Of seeds, processes or games; of the smaller arm.
    smallest_effect: float | None = None  # Beyond the threshold, in the claim's units.


def decide(
    claim: str,
    effect: effects.Effect,
    threshold: float = 0.0,
    confidence: float = statistics.CONFIDENCE,
    units: str = SEEDS[1],
) -> Check:
    """Judges whether an effect lies above a threshold."""
    interval = effect.interval(confidence)
    verdict: Verdict = "undecided"
    if interval.low > threshold:
        verdict = "held"
    elif interval.high < threshold:
        verdict = "contradicted"
    least = effect.smallest(confidence)
    evidence = f"{interval} over {effect.num_seeds} {units}, against {threshold:g}"
    if verdict == "undecided":
        evidence += f"; from {least:.2g} beyond it would have been seen"
    return Check(claim, verdict, evidence, False, effect.test, effect.num_seeds, _finite(least))


def above(
    claim: str,
    values: effects.Numbers,
    threshold: float = 0.0,
    units: tuple[str, str] = SEEDS,
    shared: str = "",
) -> Check:
    """Judges whether a mean lies above a threshold, by Student's interval.

    Args:
      claim: the sentence.
      values: one a unit, [units]; differences of pairs, if `shared` says of what.
      threshold: what the interval must exceed.
      units: what there is one and many of.
      shared: see effects.py.
    """
    if few := _few(claim, values, units=units):
        return few
    return decide(claim, effects.mean_of(values, shared), threshold, units=units[1])


def beyond(
    claim: str, better: effects.Numbers, over: effects.Numbers, threshold: float = 0.0
) -> Check:
    """Judges whether one arm's mean is more than another's, whose runs share nothing.

    Args:
      claim: the sentence.
      better, over: one a run, [n] and [m].
      threshold: what the difference must exceed.
    """
    return _few(claim, better, over) or decide(claim, effects.difference(better, over), threshold)


def times(
    claim: str, better: effects.Numbers, over: effects.Numbers, threshold: float = 1.0
) -> Check:
    """Judges whether one arm is more than a multiple of another, whose runs share nothing.

    It is Welch's interval of the logarithms: of the quotient of geometric means. The smallest
    effect is a factor.

    Args:
      claim: the sentence.
      better, over: one a run, [n] and [m].
      threshold: what the quotient must exceed, > 0.
    """
    if unknown := _few(claim, better, over) or _without_logarithm(claim, better, over):
        return unknown
    effect = effects.difference(np.log(better), np.log(over))
    check = decide(claim, effect, float(np.log(threshold)))
    least = float(np.exp(effect.smallest()))
    evidence = f"{statistics.Estimate(*np.exp(effect.interval()))} over {effect.num_seeds} seeds, "
    evidence += f"against {threshold:g}"
    if check.verdict == "undecided":
        evidence += f"; from {least:.3g} times that it would have been seen"
    test = "Welch's t of logarithms"
    return check._replace(evidence=evidence, test=test, smallest_effect=_finite(least))


def trend(claim: str, x: effects.Numbers, samples: Sequence[effects.Numbers]) -> Check:
    """Judges whether something rises along an ordered factor; Spearman's rho stands beside it.

    Args:
      claim: the sentence; units of the slope are those of the samples a unit of x.
      x, samples: see effects.py.
    """
    if few := _few(claim, *samples):
        return few
    check = decide(claim, effects.slope(x, samples))
    at, runs = effects.stacked(x, samples)
    if not np.ptp(runs):
        return check  # Values that are all the same have no ranks.
    rho: Any = scipy.stats.spearmanr(at, runs)
    rank = f"; Spearman's rho {rho.statistic:.2g} (p = {rho.pvalue:.2g})"
    return check._replace(evidence=f"slope {check.evidence}{rank}")


def best_of(claim: str, arms: Mapping[str, effects.Numbers], over: effects.Numbers) -> Check:
    """Judges whether the best of several arms is more than another; runs share nothing.

    Each arm has an interval at 1 - 0.05 / m, the first step of Holm, "A simple sequentially
    rejective multiple test procedure", Scandinavian Journal of Statistics 1979: one that lies above
    0 decides. It is contradicted where each arm's 95% interval lies below 0.

    Args:
      claim: the sentence, with {best} for the name of the best arm.
      arms: one a run, by name; m arms.
      over: one a run, of the arm that they are compared with.
    """
    best = max(arms, key=lambda name: float(np.mean(arms[name])))
    claim = claim.format(best=best)
    if few := _few(claim, over, *arms.values()):
        return few
    by_arm = {name: effects.difference(x, over) for name, x in arms.items()}
    confidence = 1 - (1 - statistics.CONFIDENCE) / len(arms)
    checks = {name: decide(claim, effect, 0.0, confidence) for name, effect in by_arm.items()}
    held = [name for name, check in checks.items() if check.verdict == "held"]
    check = checks[best if best in held or not held else held[0]]
    is_below = all(effect.interval().high < 0 for effect in by_arm.values())
    verdict: Verdict = "held" if held else "contradicted" if is_below else "undecided"
    said = f"; at {confidence:.1%}, for the best of {len(arms)}"
    return check._replace(
        verdict=verdict, evidence=check.evidence + said, test=f"{check.test}, Holm's first step"
    )


def equal(
    claim: str,
    margin: float,
    one: effects.Numbers,
    other: effects.Numbers | None = None,
    shared: str = "",
) -> Check:
    """Judges whether there is no difference that matters, by two one-sided tests.

    Held where the 90% interval lies within the margin on both sides: each test is at 5%;
    contradicted where the 95% interval lies beyond it. Schuirmann, "A comparison of the two
    one-sided tests procedure and the power approach", Journal of Pharmacokinetics and
    Biopharmaceutics 1987. The smallest effect is the margin that no difference would have met with
    probability 0.8.

    Args:
      claim: the sentence.
      margin: what matters, > 0, declared before the runs.
      one: one a run, [n]; differences of pairs, where `other` is None.
      other: of the other arm, [m], whose runs share nothing with those.
      shared: what pairs share.
    """
    if few := _few(claim, one, one if other is None else other):
        return few
    effect = effects.mean_of(one, shared) if other is None else effects.difference(one, other)
    narrow, wide = effect.interval(0.9), effect.interval()
    verdict: Verdict = "undecided"
    if -margin < narrow.low and narrow.high < margin:
        verdict = "held"
    elif wide.low > margin or wide.high < -margin:
        verdict = "contradicted"
    least = effect.error * float(
        sum(scipy.stats.t.ppf([0.95, (1 + effects.POWER) / 2], effect.freedom))
    )
    evidence = f"{wide} over {effect.num_seeds} seeds, within {margin:g} of 0"
    if verdict == "undecided":
        evidence += f"; a margin of {least:.2g} would have been met"
    test, least = f"{effect.test}, TOST", _finite(least)
    return Check(claim, verdict, evidence, False, test, effect.num_seeds, least)


def alike(claim: str, share: float, one: effects.Numbers, other: effects.Numbers) -> Check:
    """Judges whether two arms are the same within a share, by `equal` of their logarithms.

    Args:
      claim: the sentence.
      share: > 0; the quotient of geometric means should lie in [1 / (1 + share), 1 + share].
      one, other: one a run, [n] and [m], > 0; their runs share nothing.
    """
    if unknown := _few(claim, one, other) or _without_logarithm(claim, one, other):
        return unknown
    check = equal(claim, float(np.log1p(share)), np.log(one), np.log(other))
    effect = effects.difference(np.log(one), np.log(other))
    least = float(np.expm1(check.smallest_effect or np.nan))
    evidence = f"{statistics.Estimate(*np.exp(effect.interval()))} times, over {effect.num_seeds} "
    evidence += f"seeds, within {share:.0%} of 1"
    if check.verdict == "undecided":
        evidence += f"; a share of {least:.0%} would have been met"
    return check._replace(evidence=evidence, smallest_effect=_finite(least))


def mostly(claim: str, held: Sequence[bool] | np.ndarray, evidence: str) -> Check:
    """Judges whether something is so of most seeds, by the exact interval of their share.

    Clopper & Pearson, Biometrika 1934. It takes six seeds of six to say so.

    Args:
      claim: the sentence.
      held: whether it was so, [seeds].
      evidence: figures.
    """
    hits, count = int(np.sum(held)), len(held)
    low, high = scipy.stats.binomtest(hits, count).proportion_ci(statistics.CONFIDENCE)
    verdict: Verdict = "held" if low > 0.5 else "contradicted" if high < 0.5 else "undecided"
    evidence = f"{hits} of {count} seeds, a share in [{low:.2f}, {high:.2f}]; {evidence}"
    return Check(claim, verdict, evidence, test="Clopper-Pearson", num_seeds=count)


def within(claim: str, largest_share: float, counted: str) -> Check:
    """Judges whether a bound was never broken; `largest_share` is the largest value / bound."""
    evidence = f"at most {largest_share:.3g} of it {counted}"
    return Check(claim, "held" if 0 <= largest_share <= 1 else "contradicted", evidence)


def small(
    claim: str, difference: float, limit: float, counted: str, remaining: float = 0.0
) -> Check:
    """Judges whether numbers that should be equal differ by `limit` at most.

    Args:
      claim: the sentence.
      difference: the largest that was seen.
      limit: the largest that may be.
      counted: where it was looked for, in words.
      remaining: what theory allows to be left of the difference after the iterations that were
        run; where it is more than the limit, these are too few to judge by.
    """
    evidence = f"at most {difference:.2g} {counted}, against {limit:g}"
    if remaining > limit and np.isfinite(difference):
        few = f"; after so few iterations {remaining:.2g} may be left"
        return Check(claim, "undecided", evidence + few)
    is_small = np.isfinite(difference) and difference <= limit
    return Check(claim, "held" if is_small else "contradicted", evidence)


def exactly(claim: str, is_so: bool, evidence: str) -> Check:
    """Judges what is so or is not, without chance."""
    return Check(claim, "held" if is_so else "contradicted", evidence)


def reported(claim: str, evidence: object) -> Check:
    """Returns figures that are not judged."""
    return Check(claim, "reported", str(evidence))


def unjudged(check: Check) -> Check:
    """Returns a check as a report, whatever its interval says."""
    return check._replace(verdict="reported", is_headline=False)


def headline(check: Check) -> Check:
    """Returns a check as one of what the paper is read for."""
    return check._replace(is_headline=True)


def _finite(number: float) -> float | None:
    return number if np.isfinite(number) else None


def _few(claim: str, *samples: effects.Numbers, units: tuple[str, str] = SEEDS) -> Check | None:
    """Returns that nothing can be decided, if a sample has one value only."""
    if min(len(sample) for sample in samples) > 1:
        return None
    means = " against ".join(f"{np.mean(sample):.4g}" for sample in samples)
    return Check(claim, "undecided", f"{means}; one {units[0]} has no interval", num_seeds=1)


def _without_logarithm(claim: str, *samples: effects.Numbers) -> Check | None:
    """Returns that nothing can be decided of quotients, if a value is not positive."""
    if min(np.min(sample) for sample in samples) > 0:
        return None
    return Check(claim, "undecided", "a value is not positive, and has no logarithm")


# Words, and files.


def mean(values: effects.Numbers) -> str:
    """Returns the mean over seeds with its interval, in words; of one seed its value."""
    return str(statistics.t_interval(values)) if len(values) > 1 else f"{values[0]:.4g}"


def means(values: Mapping[str, effects.Numbers], separator: str = ", ") -> str:
    """Returns means over seeds with their intervals, by name."""
    return separator.join(f"{name} {statistics.t_interval(x)}" for name, x in values.items())


def counts(checks: Sequence[Check]) -> str:
    """Returns how many were judged and how, in words, the contradicted first."""
    verdicts = [check.verdict for check in checks]
    told = [f"{verdicts.count(v)} {v}" for v in ORDER[:-1] if v in verdicts]
    return ", ".join(told) or "none judged"


def from_json(check: json_files.Record) -> Check:
    """Reads a check of a verdict.json.

    Files of version 0.2 and before have `held`: true, false or null. False did not tell what is
    contradicted from what is undecided, and is read as the latter.
    """
    claim, evidence = check.get("claim", str), check.get("evidence", str)
    fields = dict(check.items())
    if "verdict" not in fields:
        old: Any = fields.get("held")
        verdict: Verdict = "reported" if old is None else "held" if old else "undecided"
        return Check(claim, verdict, evidence)
    known = check.get("verdict", str)
    if known not in ORDER:
        raise ValueError(f"verdict must be {', '.join(ORDER)}, got {known!r}")
    return Check(**{name: fields[name] for name in Check._fields if name in fields})
