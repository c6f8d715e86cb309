"""The report on a reward model: how often it is right of held-out pairs, and how sure it is.

Of a population: of its average, of the mean of its members' predictions, and of each member.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from kullback.experiments import statistics
from kullback.experiments.evaluate import reports
from kullback.experiments.runs import language, models, opened, reward_models
from kullback.lm import control_tokens as reading
from kullback.lm import data, gemma, reward_model, splits, tasks


def report(
    run: opened.Opened,
    task: str = "",
    *,
    count: int,
    seed: int | None = None,
    best: bool = False,
    control_tokens: reading.Reading | None = None,
    **lengths: Any,
) -> reports.Report:
    """What was found on held-out pairs.

    Args:
      run: of reward models.
      task: "tokens/preferences:..."; "" is the run's own.
      count: pairs, at most.
      seed: one of the run's; None is the first, of a population its average and more.
      best: the checkpoint of the highest accuracy in place of the newest.
      control_tokens: what text is that spells them; None is as the run has it.
      **lengths: max_prompt_length, max_new_tokens, overlong in place of the run's.

    Raises:
      ValueError: for a task without pairs, or none that fits; as `models.of_run` does.
    """
    learning = dataclasses.replace(models.algorithm_config(run).learning, **lengths)
    made = tasks.make(task or run.plan.environment, rule=splits.rule_of(run.config))
    if made.pairs is None:
        raise ValueError(f"a reward model judges pairs, tokens/preferences:PATH, got {made.name}")
    checkpoint = models.of_run(run, seed, best=best).reading(
        control_tokens or run.plan.control_tokens
    )
    words = checkpoint.tokenizer
    pairs, found_rows = made.pairs("test", words, language.limits(learning, checkpoint.config))
    pairs = pairs[:count]
    rewards = jax.jit(reward_model.on_decoder(gemma.make(checkpoint.config)).rewards)
    width = learning.max_prompt_length + learning.max_new_tokens

    def judged(params: Any) -> tuple[np.ndarray, np.ndarray]:
        return reward_models.over_pairs(rewards, params, pairs, width, words.pad_id)

    chosen, rejected = judged(checkpoint.params)
    found = estimates(chosen, rejected)
    notes = _reliability(chosen - rejected)
    if (spelled := data.notice({"test": found_rows})) is not None:
        notes.append(spelled)
    if seed is None and models.is_population(run):
        of_members = [judged(params) for params in models.members(run, best=best)]
        mean = tuple(np.mean(column, axis=0) for column in zip(*of_members, strict=True))
        found |= {f"{n}_of_ensemble": x for n, x in estimates(*mean).items()}
        for number, rows in zip(run.seeds, of_members, strict=True):
            found[f"accuracy_of_seed_{number}"] = estimates(*rows)["accuracy"]
    rows = [reward_models.line(words, *row) for row in zip(pairs, chosen, rejected, strict=True)]
    title = f"{made.name}, {len(pairs)} held-out pairs; [95% intervals over pairs]"
    return reports.Report(title, found, notes, rows)


def estimates(chosen: np.ndarray, rejected: np.ndarray) -> dict[str, statistics.Estimate]:
    """Means over pairs, [n] of rewards each, with intervals, and the calibration error."""
    margins = chosen - rejected
    return {
        "accuracy": statistics.ratio(reward_model.accuracy(margins)),
        "nats_per_pair": statistics.ratio(np.logaddexp(0, -margins.astype(np.float64))),
        "margin": statistics.ratio(margins),
        "reward_mean": statistics.ratio((chosen + rejected) / 2),
        "calibration_error": statistics.Estimate(reward_model.calibration(margins)[0]),
    }


def _reliability(margins: np.ndarray) -> list[str]:
    table = [row for row in reward_model.calibration(margins)[1] if row.pairs]
    return [
        f"of {row.pairs} pairs it was {row.confidence:.2f} sure (in {row.low:.2f} to "
        f"{row.high:.2f}), and right of {row.accuracy:.2f}"
        for row in table
    ]
