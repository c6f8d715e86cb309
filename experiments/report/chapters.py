"""The part of a report on one family of environments."""

import dataclasses
import functools

from kullback.experiments.report import collect, figures, page, scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chapter:
    """A family's runs, the page that they are described on, and how a user wants them compared."""

    out: page.Page
    family: collect.Family
    score: str = "training"  # A key of `scores.KINDS`.
    baseline: str | None = None  # The agent that others are compared with.
    denominator: str = "baseline"  # One of `scores.DENOMINATORS`.

    @functools.cached_property
    def colour(self) -> figures.Colours:
        """The colour of each agent, in all figures."""
        return figures.colours(self.family.labels)

    @property
    def kind(self) -> scores.Kind:
        """The kind of score."""
        return scores.KINDS[self.score]
