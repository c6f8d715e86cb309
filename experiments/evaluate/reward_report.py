"""The report on a reward model: its accuracy and calibration on held-out pairs.

For a population of models it covers their average, their ensemble and each member.
"""

from typing import Any

import jax
import numpy as np

from kullback.experiments import statistics
from kullback.experiments.evaluate import reports
from kullback.experiments.evaluate.subjects import Subject
from kullback.experiments.runs import models, opened, reward_models
from kullback.lm import batches, data, reward_model


def report(subject: Subject, run: opened.Opened, *, count: int) -> reports.Report:
    """Returns the report on a run of reward models.

    Args:
      subject: the model; without a seed it is the first seed's, of a population its average and
        more. Its task is "tokens/preferences:...".
      run: the subject's.
      count: pairs, at most.

    Raises:
      ValueError: for a task without pairs, or none that fits; as `models.of_run` does.
    """
    learning, task = subject.learning, subject.task
    if task.pairs is None:
        raise ValueError(f"a reward model judges pairs, tokens/preferences:PATH, got {task.name}")
    checkpoint = subject.checkpoint
    tokenizer = checkpoint.tokenizer
    pairs, data_report = task.pairs("test", tokenizer, subject.limits, subject.rows)
    pairs = pairs[:count]
    rewards = jax.jit(reward_model.on_decoder(checkpoint.model).rewards)
    features = None if checkpoint.images is None else checkpoint.images.features
    features = batches.of_media([pair.chosen for pair in pairs], features)

    def predict(params: Any) -> tuple[np.ndarray, np.ndarray]:
        width, pad_id = learning.width, tokenizer.pad_id
        return reward_models.over_pairs(rewards, params, pairs, width, pad_id, features)

    chosen, rejected = predict(checkpoint.params)
    by_name = estimates(chosen, rejected)
    notes = _reliability(chosen - rejected)
    notes += data.notices({"test": data_report})
    if subject.seed is None and models.is_population(run):
        sees = checkpoint.images is not None
        each = models.members(run, best=subject.best, images=sees)
        members = [predict(params) for params in each]
        ensemble = tuple(np.mean(column, axis=0) for column in zip(*members, strict=True))
        by_name |= {f"{name}_of_ensemble": x for name, x in estimates(*ensemble).items()}
        for number, member in zip(run.seeds, members, strict=True):
            by_name[f"accuracy_of_seed_{number}"] = estimates(*member)["accuracy"]
    lines = [
        reward_models.line(tokenizer, *judged)
        for judged in zip(pairs, chosen, rejected, strict=True)
    ]
    title = f"{task.name}, {len(pairs)} held-out pairs; [95% intervals over pairs]"
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
