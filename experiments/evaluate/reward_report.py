"""The report on a reward model: its accuracy and calibration on held-out pairs.

For a population of models it covers their average, their ensemble and each member.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from kullback.experiments import statistics
from kullback.experiments.evaluate import reports
from kullback.experiments.runs import language, models, opened, reward_models
from kullback.lm import data, gemma, reward_model, splits, tasks
from kullback.lm.control_tokens import Reading


def report(
    run: opened.Opened,
    task: str = "",
    *,
    count: int,
    seed: int | None = None,
    best: bool = False,
    control_tokens: Reading | None = None,
    model_flags: Sequence[str] = (),
    **lengths: Any,
) -> reports.Report:
    """Returns the report on a run of reward models.

    Args:
      run: of reward models.
      task: "tokens/preferences:..."; "" is the run's own.
      count: pairs, at most.
      seed: one of the run's; None is the first, of a population its average and more.
      best: the checkpoint of the highest accuracy in place of the newest.
      control_tokens: how a text that spells them is read; None is as the run has it.
      model_flags: "field=value" each, as for `models.Checkpoint.computing`.
      **lengths: max_prompt_length, max_new_tokens, overlong in place of the run's.

    Raises:
      ValueError: for a task without pairs, or none that fits; as `models.of_run` does.
    """
    learning = dataclasses.replace(models.algorithm_config(run).learning, **lengths)
    source = tasks.make(task or run.plan.environment, rule=splits.rule_of(run.config))
    if source.pairs is None:
        raise ValueError(f"a reward model judges pairs, tokens/preferences:PATH, got {source.name}")
    computed = models.of_run(run, seed, best=best).computing(model_flags, str(run.path))
    checkpoint = computed.reading(control_tokens or run.plan.control_tokens)
    tokenizer, limits = checkpoint.tokenizer, language.limits(learning, checkpoint.config)
    pairs, data_report = source.pairs("test", tokenizer, limits)
    pairs = pairs[:count]
    rewards = jax.jit(reward_model.on_decoder(gemma.make(checkpoint.config)).rewards)
    width = learning.max_prompt_length + learning.max_new_tokens

    def predict(params: Any) -> tuple[np.ndarray, np.ndarray]:
        return reward_models.over_pairs(rewards, params, pairs, width, tokenizer.pad_id)

    chosen, rejected = predict(checkpoint.params)
    by_name = estimates(chosen, rejected)
    notes = _reliability(chosen - rejected)
    notes += data.notices({"test": data_report})
    if seed is None and models.is_population(run):
        members = [predict(params) for params in models.members(run, best=best)]
        ensemble = tuple(np.mean(column, axis=0) for column in zip(*members, strict=True))
        by_name |= {f"{name}_of_ensemble": x for name, x in estimates(*ensemble).items()}
        for number, member in zip(run.seeds, members, strict=True):
            by_name[f"accuracy_of_seed_{number}"] = estimates(*member)["accuracy"]
    lines = [
        reward_models.line(tokenizer, *judged)
        for judged in zip(pairs, chosen, rejected, strict=True)
    ]
    title = f"{source.name}, {len(pairs)} held-out pairs; [95% intervals over pairs]"
    return reports.Report(title, by_name, notes, lines)


def estimates(chosen: np.ndarray, rejected: np.ndarray) -> dict[str, statistics.Estimate]:
    """Estimates means over n pairs of rewards, [n] each, and the calibration error."""
    margins = chosen - rejected
    return {
        "accuracy": statistics.ratio(reward_model.accuracy(margins)),
        "nats_per_pair": statistics.ratio(np.logaddexp(0, -margins.astype(np.float64))),
        "margin": statistics.ratio(margins),
        "reward_mean": statistics.ratio((chosen + rejected) / 2),
        "calibration_error": statistics.Estimate(reward_model.calibration(margins)[0]),
    }


def _reliability(margins: np.ndarray) -> list[str]:
    return [
        f"of {group.pairs} pairs it was {group.confidence:.2f} sure (in {group.low:.2f} to "
        f"{group.high:.2f}), and right of {group.accuracy:.2f}"
        for group in reward_model.calibration(margins)[1]
        if group.pairs
    ]
