"""Building the work of a plan: the only place that chooses between the kinds of runs."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from kullback import lm
from kullback.core import platform
from kullback.experiments.runs import games, resolved, staffing
from kullback.experiments.runs.work import MakeAgent, MakeEnvironment, Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A resolved plan, and the functions that were handed over in place of its names."""

    named: resolved.Resolved
    make_agent: MakeAgent | None = None
    make_environment: MakeEnvironment | None = None
    recorded: Mapping[str, Any] | None = None  # config.json of a run that goes on.
    staff: staffing.Staff = staffing.NOBODY  # Who acts.

    def in_steps(self, work: Work, quiet: bool) -> "Recipe":
        """Returns the recipe with the plan's epochs as steps, and says how many these are.

        Raises:
          ValueError: as `work.Epoch.in_steps` does.
        """
        plan, epoch = self.named.plan, work.epoch
        if epoch is None:
            return self
        if not quiet:
            print(epoch.describe(plan.epochs))
        return dataclasses.replace(self, named=epoch.in_steps(self.named))

    @contextlib.contextmanager
    def built(self, home: pathlib.Path | None = None) -> Iterator[Work]:
        """Builds the work of a run; its environment is closed when the block ends.

        Args:
          home: folder of a run that goes on, or of which another seed begins.

        Raises:
          ValueError: if the plan's parts do not fit each other.
        """
        kind = self.named.plan.kind
        if kind == "games":
            with games.built(
                self.named, self.make_agent, self.make_environment, self.recorded, self.staff
            ) as work:
                yield work
            return
        algorithm, config = self.named.plan.agent, self.named.config
        may_write_ahead = lm.ALGORITHMS[algorithm].may_write_ahead
        self.staff.check_texts(algorithm, config.ahead if may_write_ahead else None)
        from kullback.experiments.runs import language_setup, preferences

        platform.run_large_programs()  # Before JAX is used.
        if kind == "preferences":
            yield preferences.setup(self.named, home)
        else:
            yield language_setup.setup(self.named, home, self.staff)
