"""Learning rates that fall over a run: how many steps that takes, and what prolonging it means.

A schedule's length is decided when a run begins, and recorded: a run that goes on, is cut or is
prolonged takes at step n the rate that it would have taken. Beyond the schedule the rate stays as
low as it has become; a run whose rate is 0 there cannot be prolonged.
"""

from typing import Any

from kullback import lm
from kullback.experiments.runs import plans, settings

LENGTH = "decay_steps"  # The setting, by its bare name.


def planned(plan: plans.Plan, config: Any) -> Any:
    """Returns an algorithm's configuration, with the length of its schedule from the plan.

    Args:
      plan: of a run that begins.
      config: of any agent; only language models have a schedule, and only a length of 0 is set.

    Raises:
      ValueError: if the warm-up is as long as the run.
    """
    if plan.agent not in lm.ALGORITHMS:
        return config
    rate = config.learning.rate
    if rate.schedule == "constant" or rate.decay_steps:
        return config
    return settings.apply(config, [f"{LENGTH}={_optimiser_steps(plan, config)}"])


def notes(plan: plans.Plan, config: Any) -> list[str]:
    """Returns a line if a run goes on beyond its schedule.

    Raises:
      ValueError: if its learning rate is 0 from there on.
    """
    if plan.agent not in lm.ALGORITHMS:
        return []
    rate, steps = config.learning.rate, _optimiser_steps(plan, config)
    if rate.schedule == "constant" or steps <= rate.decay_steps:
        return []
    if not rate.final_fraction:
        raise ValueError(
            f"the learning rate is 0 from step {rate.decay_steps:,} on ({LENGTH}), and steps="
            f"{steps:,} would learn nothing there: a new run may begin where this one ends, "
            "--model RUN, or have a final_fraction > 0"
        )
    return [
        f"the learning rate falls until step {rate.decay_steps:,}, and stays at "
        f"{rate.peak * rate.final_fraction:g} until step {steps:,}"
    ]


def _optimiser_steps(plan: plans.Plan, config: Any) -> int:
    """Returns the learner steps after which an optimiser is done: WARP's members have their own."""
    return config.member_steps if lm.ALGORITHMS[plan.agent].leaves_front else plan.steps
