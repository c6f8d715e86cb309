"""Pairs of a model's own answers, labelled by a reward: preferences without people.

Two answers at temperature 1 are sampled to each training prompt; the one of the higher reward is
chosen. Pairs of equal answers or rewards say nothing, answers that are cut or empty cannot be
learnt from: such pairs are left out, and counted. Of the labels a share may be wrong on purpose.

A record of the file has ids, so that what was sampled is what is learnt, and the texts beside them.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kullback.core import files
from kullback.experiments.evaluate import evaluation
from kullback.experiments.evaluate.subjects import Subject
from kullback.experiments.runs import episodes, rewards
from kullback.lm import data, epochs, preferences, rollouts


class Labelled(NamedTuple):
    """The pairs of a file, counted."""

    pairs: int  # New ones.
    earlier: int  # Of an earlier file, before them.
    prompts: int  # Prompts that were answered.
    swapped: int  # New pairs whose label is wrong on purpose.


class _Answer(NamedTuple):
    ids: list[int]  # With the end.
    text: str
    reward: float
    is_whole: bool  # Whether it ended, says something, and has no special id within.


def label(
    subject: Subject,
    reward_name: str,
    out: pathlib.Path,
    *,
    count: int,
    swapped: float = 0.0,
    seed: int = 0,
    earlier: pathlib.Path | None = None,
) -> Labelled:
    """Writes pairs of answers to training prompts, a JSONL file of `lm/preferences.py`.

    Args:
      subject: the model and the task.
      reward_name: see rewards.py; "" is the task's own rule.
      out: a new file.
      count: prompts, at most; which ones and their order follow from the seed.
      swapped: share of the labels that are wrong on purpose, in [0, 1].
      seed: of prompts, answers and wrong labels.
      earlier: a file of pairs that come before the new ones.

    Raises:
      ValueError: as `Subject` and `rewards.parse` do; if no pair is left; if something is at `out`.
    """
    preferences.is_swapped(0, swapped, seed)  # It refuses shares outside of [0, 1].
    files.check_new_file(out)
    before = [] if earlier is None else [record for _, record in data.read_rows(earlier)]
    evaluator = evaluation.evaluator_of(subject)
    tokenizer, task = evaluator.tokenizer, evaluator.task
    train, _ = task.examples("train", tokenizer, subject.limits)
    if not train:
        raise ValueError(f"no training example of {task.name} is short enough to be answered")
    order = epochs.permutation(len(train), seed, 0)[:count]
    answered = [train[i] for i in order.tolist()]
    actor = episodes.Actor(
        sampler=evaluator.sampler(samples_per_prompt=2),
        evaluator=dataclasses.replace(evaluator, test=answered),
        reward=rewards.parse(reward_name, task, tokenizer, evaluator.model.num_ids),
    )
    answers = _answers(actor, subject.checkpoint.params, jax.random.key(seed))
    labelled = [
        _row(evaluator.example_texts(example)["prompt"], example, answers[2 * n : 2 * n + 2])
        for n, example in enumerate(answered)
    ]
    rows = [row for row in labelled if row is not None]
    if not rows:
        raise ValueError(
            f"no pair of {len(answered)} can be labelled: the answers of {subject.path} are "
            "cut, empty, equal, or of equal reward"
        )
    wrong = preferences.is_swapped(len(rows), swapped, seed)
    for row, is_wrong in zip(rows, wrong.tolist(), strict=True):
        if is_wrong:
            _swap(row)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in [*before, *rows]]
    files.atomic_write_text(out, "".join(lines))
    return Labelled(len(rows), len(before), len(answered), int(wrong.sum()))


def _answers(actor: episodes.Actor, params: Any, key: jax.Array) -> list[_Answer]:
    """Returns the two answers to each example of the actor's evaluator, one after another."""
    evaluator, collected = actor.evaluator, list[_Answer]()
    ends = {*evaluator.model.config.eos_ids}
    special = {evaluator.tokenizer.bos_id, *ends}

    def collect(written: rollouts.Episodes, examples: Sequence[data.Example]) -> dict[str, Any]:
        tokens = np.asarray(written.sequences.tokens)
        is_answer = np.asarray(written.sequences.is_answer)
        texts = evaluator.answer_texts(written.sequences)
        rewards_of = np.asarray(written.rewards, np.float64)
        for row, mask, text, reward in zip(tokens, is_answer, texts, rewards_of, strict=True):
            ids = row[mask].tolist()
            has_ended = bool(ids) and ids[-1] in ends and not special & {*ids[:-1]}
            collected.append(_Answer(ids, text, float(reward), has_ended and bool(text.strip())))
        return {"reward": actor.prompt_means(written.rewards)}

    count = len(evaluator.test)
    actor.measured({"params": params}, count, key, collect)
    return collected[: 2 * count]  # The last part is filled up with examples that do not count.


def _row(prompt: str, example: data.Example, pair: Sequence[_Answer]) -> dict[str, Any] | None:
    """Returns the record of two answers; None if they say nothing of a preference."""
    rejected, chosen = sorted(pair, key=lambda answer: answer.reward)
    is_tie = chosen.reward == rejected.reward or chosen.ids == rejected.ids
    if is_tie or not (chosen.is_whole and rejected.is_whole):
        return None
    return {
        "prompt": list(example.prompt),
        "chosen": chosen.ids,
        "rejected": rejected.ids,
        **({"document": example.document} if example.document else {}),
        "texts": {"prompt": prompt, "chosen": chosen.text, "rejected": rejected.text},
        "rewards": {"chosen": chosen.reward, "rejected": rejected.reward},
    }


def _swap(row: dict[str, Any]) -> None:
    """Makes the label of a record wrong, texts and rewards with it."""
    for part in (row, row["texts"], row["rewards"]):
        part["chosen"], part["rejected"] = part["rejected"], part["chosen"]
