"""Changes of what is computed since a run began, which a user is told when the run goes on.

config.json keeps how many of `MENDS` were known when the run began; those that came later and
concern the run are printed. So the list only grows, at its end. It has no changes of settings and
defaults: those are recorded, see resolved.py.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from kullback.core import loops, metrics
from kullback.experiments.runs import plans
from kullback.lm import gemma, tasks

KEY = "mends"  # A key of config.json; a run without it began before the first change.

Recorded = Mapping[str, Any]  # All of a run's config.json.


class Mend(NamedTuple):
    """A change of the numbers that the same plan and configuration give."""

    concerns: Callable[[plans.Plan, Recorded], bool]  # Whether it may change a run's numbers.
    line: str  # The behaviour now, and before.


def since(plan: plans.Plan, recorded: Recorded) -> list[str]:
    """Returns a line for each change that concerns a run and came after it began.

    Args:
      plan: of the run.
      recorded: its config.json.
    """
    known = recorded.get(KEY, 0)
    known = known if type(known) is int and 0 <= known <= len(MENDS) else 0
    return [mend.line for mend in MENDS[known:] if mend.concerns(plan, recorded)]


def _is_evaluated_game(plan: plans.Plan) -> bool:
    return bool(plan.eval_every) and plan.kind == "games"


def _evaluated_by_lives(plan: plans.Plan, recorded: Recorded) -> bool:
    flags = {flag.replace(" ", "").lower() for flag in plan.environment_flags}
    by_lives = "life_loss=true" in flags or "protocol=classic" in flags
    return _is_evaluated_game(plan) and plan.family == "atari" and by_lives


def _is_evaluated_with_noise(plan: plans.Plan, recorded: Recorded) -> bool:
    config = recorded.get("config")
    noise = config.get("noise", 0) if isinstance(config, Mapping) else 0
    return _is_evaluated_game(plan) and plan.agent == "rainbow" and noise != 0


def _learns_from_empty_slots(plan: plans.Plan, recorded: Recorded) -> bool:
    config = recorded.get("config")
    leaves = dict(_sizes(config)) if isinstance(config, Mapping) else {}
    return leaves.get("n_step", 0) * plan.num_envs > leaves.get("min_replay_size", 0) > 0


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yields bare names and values of the integers in a recorded configuration."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _sizes(value)
        elif type(value) is int:
            yield name, value


def _is_rewarded(plan: plans.Plan, recorded: Recorded) -> bool:
    return plan.agent in ("rlhf", "rlef", "warp")


def _reads_texts(plan: plans.Plan, recorded: Recorded) -> bool:
    # A preset without a tokenizer's folder trains one, which has always read texts so.
    trains_one = plan.model in gemma.PRESETS and not plan.tokenizer and not plan.teacher
    return tasks.names_path(plan.environment) and not trains_one


MENDS = (
    Mend(
        # Toys and gymnasium's own environments end by themselves, or declare a longer limit.
        lambda plan, recorded: (
            _is_evaluated_game(plan) and plan.family in ("atari", "minatar", plans.CUSTOM)
        ),
        f"an episode of evaluation is now cut after {loops.EVALUATION_LIMIT:,} steps, or what "
        "eval_max_steps says, and counted as cut; before, it had no limit",
    ),
    Mend(
        _evaluated_by_lives,
        "evaluations are now of whole games; before, they were of lives",
    ),
    Mend(
        _learns_from_empty_slots,
        "learning now begins when each row has had n_step steps; before, it began after "
        "min_replay_size of all rows, and drew from empty slots",
    ),
    Mend(
        lambda plan, recorded: plan.kind == "games" and plan.num_envs > metrics.RECENT_EPISODES,
        f"of more than {metrics.RECENT_EPISODES} episodes that end in one tick, recent_return is "
        "now of the last ones; before, it was of those that were written last",
    ),
    Mend(
        lambda plan, recorded: plan.environment == plans.CUSTOM and recorded.get("loop") == "host",
        "observations of the environment are now copied before its next call; before, one that "
        "is written in place had the observation after a reset for that of an episode's end",
    ),
    Mend(
        lambda plan, recorded: bool(plan.eval_every) and plan.kind != "games",
        "each held-out example now counts once in an evaluation; before, some were repeated where "
        "there were fewer than were asked for, or than fill a batch",
    ),
    Mend(
        _is_rewarded,
        "rewards now see an answer's text without its end, as evaluations do; before, it had the "
        "end's text",
    ),
    Mend(
        _reads_texts,
        "a text that spells a control token is now the letters that it is; before, it was the "
        'token where the tokenizer\'s files say "special": false or normalise texts',
    ),
    Mend(
        lambda plan, recorded: (
            _is_rewarded(plan, recorded) and "entailment:" in plan.reward.lower()
        ),
        "an answer without a word, a lone dot say, now has an entailment reward's least; before, "
        "the model judged it",
    ),
    Mend(
        _is_evaluated_with_noise,
        "evaluations now act by the means of noisy layers, as Dopamine's do; before, noise was "
        "drawn there too",
    ),
)
