"""Runs of games: an agent, and the compiled or host environment that it learns in."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kullback import environments
from kullback.core import experience, loops, types
from kullback.experiments import plots
from kullback.experiments.runs import inputs, plans, resolved, simulators, staffing
from kullback.experiments.runs.work import Abandons, MakeAgent, MakeEnvironment, OnTexts, Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Games(Work):
    """An agent and its environments."""

    agent: types.Agent
    spec: types.Spec  # With the rules by which networks read observations.
    simulator: simulators.Simulator
    make_eval_environment: MakeEnvironment  # Makes the environment of evaluations.
    plan: plans.Plan
    is_given: bool  # Whether the environment was handed over in Python.
    seeds_together: bool
    crew: Mapping[str, Any]  # Who acts, see `staffing.crew`.
    restarts: staffing.Restarts
    axes: plots.Axes = plots.GAMES
    has_texts: bool = False
    columns: Sequence[str] = ()

    def loop(
        self, seeds: Sequence[int], on_texts: OnTexts, every: int, abandons: Abandons
    ) -> loops.Loop:
        """Returns the loop of some seeds, which has no texts and nothing to abandon."""
        del on_texts, every, abandons
        return self.simulator.loop(
            self.agent,
            seeds,
            self.make_eval_environment,
            self.plan.eval_max_steps,
            **self.crew,
        )

    def keep(self, folder: pathlib.Path) -> None:
        """Writes into the folder where emulators begin anew."""
        self.restarts.path = folder / staffing.RESTARTS

    def details(self) -> dict[str, Any]:
        """Returns what config.json says of the environment."""
        return {"loop": self.simulator.name}

    def notes(self) -> Iterator[str]:
        """Yields how networks read the observations, and whether the run will learn."""
        if self.plan.agent != plans.CUSTOM:
            yield from inputs.notes(self.spec)
        begins, steps = self.simulator.learning_begins(self.agent.experience), self.plan.steps
        if steps <= begins:
            yield (
                f"warning: learning begins after {begins:,} steps, and the run ends at {steps:,}: "
                "nothing is learnt; set more --steps or a smaller min_replay_size"
            )

    def check(self) -> None:
        """Checks the pace of learning, and the evaluation environment of a user's function.

        Raises:
          ValueError: if a batch can never be drawn, or that environment is invalid.
        """
        self.simulator.learning_begins(self.agent.experience)
        if self.is_given and self.plan.eval_every:
            with simulators.closing(self.make_eval_environment(self.plan.eval_episodes)):
                pass


@contextlib.contextmanager
def built(
    named: resolved.Resolved,
    make_agent: MakeAgent | None = None,
    make_environment: MakeEnvironment | None = None,
    recorded: Mapping[str, Any] | None = None,
    staff: staffing.Staff = staffing.NOBODY,
) -> Iterator[Games]:
    """Makes the agent and the environment of a run, which is closed when the block ends.

    Args:
      named: the plan, resolved.
      make_agent, make_environment: functions that were handed over in place of the plan's names.
      recorded: config.json of a run that goes on, whose networks read observations as before.
      staff: who acts.

    Raises:
      ValueError: if the environment is invalid, or differs from that of training; for shards that
        do not fit the run, or workers that do not fit these.
    """
    given = None if make_environment is None else environments.checked(make_environment)
    make = given or named.make_environment
    num_envs = named.plan.num_envs
    with contextlib.ExitStack() as stack:
        simulator = stack.enter_context(simulators.closing(make(num_envs)))
        spec = simulator.environment.spec
        if recorded is not None:
            spec = inputs.as_recorded(spec, recorded)
        agent = (make_agent or named.make_agent)(spec)
        plan = experience.schedule(agent.experience, num_envs, is_compiled=simulator.seeds_together)
        recipe = staffing.Recipe(
            named=named,
            make_agent=make_agent,
            make_environment=make_environment,
            spec=spec,
            rows=num_envs // (1 if plan is None else plan.shards),
        )
        restarts = staffing.Restarts()
        crew = staffing.crew(staff, plan, recipe, restarts)
        if crew:
            stack.close()  # Workers make environments of their own.
        yield Games(
            agent=agent,
            spec=spec,
            simulator=simulator,
            seeds_together=simulator.seeds_together,
            make_eval_environment=given or named.make_eval_environment,
            plan=named.plan,
            is_given=given is not None,
            crew=crew,
            restarts=restarts,
        )
