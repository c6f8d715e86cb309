"""The report on a language model: means over held-out prompts with intervals, and its answers.

A quantity per token (nats, accuracy) is a sum over all tokens divided by their number. Intervals
are bootstrap intervals over prompts.
"""

import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from kullback import lm
from kullback.core import files, types
from kullback.experiments import statistics
from kullback.experiments.evaluate import best_of, reports, reward_report
from kullback.experiments.evaluate.subjects import Subject
from kullback.experiments.runs import language_setup, opened, resolved, rewards, run_folder
from kullback.lm import best_of_n, data, evaluation, final_answers, votes


def run(
    subject: Subject,
    *,
    count: int,
    num_samples: int,
    out: pathlib.Path | None = None,
    num_candidates: int = 0,
    reward: str = "",
) -> tuple[reports.Report, pathlib.Path | None]:
    """Returns the report on a run or a folder of weights, and the JSONL file of its answers.

    Args:
      subject: the model and the task.
      count, num_samples: as for `evaluate`.
      out: a new file; None is the next evaluation-NNN.jsonl of a run, and no file for weights.
      num_candidates: N of best-of-N by `reward`, which is evaluated too; 0 leaves it out.
      reward: see rewards.py; "" is the task's own rule.

    Raises:
      ValueError: as `Subject` and `rewards.parse` do, and if something is at `out`.
    """
    if out is None and subject.run is not None:
        out = run_folder.next_free(subject.path / "evaluation", ".jsonl")
    if out is not None:
        files.check_new_file(out)
    if subject.run is not None and subject.run.kind == "preferences":
        if num_candidates:
            raise ValueError(
                f"{subject.path} is of a reward model, which answers nothing: no --best-of"
            )
        report = reward_report.report(subject, subject.run, count=count)
    else:
        evaluator, params = evaluator_of(subject), subject.checkpoint.params
        acting, key, n = {"params": params}, jax.random.key(subject.seed or 0), num_candidates
        chosen_by = None
        if n:
            chosen_by = rewards.parse(
                *(reward, evaluator.task, evaluator.tokenizer, evaluator.model.num_ids),
                images=subject.checkpoint.images,
            )
            chosen_by.check_references(map(evaluator.target, evaluator.test))
        report = evaluate(evaluator, acting, count=count, num_samples=num_samples, key=key)
        report.notes.extend(evaluator.notices)
        if subject.run is not None and not subject.task_name:
            report.estimates.update(of_pairs(subject.run, acting, count=count))
        if chosen_by is not None:
            measures = best_of.measures(evaluator, acting, chosen_by, n=n, count=count, key=key)
            report.estimates.update({k: statistics.ratio(x) for k, x in measures.items()})
            bound = statistics.Estimate(best_of_n.kl_bound(n))
            report.estimates[f"kl_of_best_of_{n}_at_most"] = bound
    if out is not None:
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in report.lines]
        files.atomic_write_text(out, "".join(lines))
    return report, out


def of_pairs(run: opened.Opened, acting: Any, *, count: int) -> dict[str, statistics.Estimate]:
    """Returns the implicit accuracy of a policy of pairs, of its held-out ones; of others nothing.

    Args:
      run: of the policy, whose folder has what its reference says of the pairs.
      acting: parameters of the policy.
      count: pairs, at most.
    """
    if not lm.ALGORITHMS[run.plan.agent].reads_pairs:
        return {}
    lessons = language_setup.setup(resolved.of(run), run.path).lessons
    scores = lessons.scores(acting, count, jax.random.key(0))  # Nothing is random there.
    return {"implicit_accuracy": statistics.ratio(scores)}


def evaluator_of(subject: Subject) -> evaluation.Evaluator:
    """Returns the evaluator of a language model on the held-out examples of a task.

    Raises:
      ValueError: as `Subject` does, and for lengths that exceed the model's context.
    """
    learning, task, checkpoint = subject.learning, subject.task, subject.checkpoint
    given = {"max_prompt_length", "max_new_tokens"} & {*subject.lengths}
    if given and learning.width > checkpoint.config.context_length:
        raise ValueError(
            f"max_prompt_length={learning.max_prompt_length} and max_new_tokens="
            f"{learning.max_new_tokens} together exceed the model's context of "
            f"{checkpoint.config.context_length}"
        )
    test, report = task.examples("test", checkpoint.tokenizer, subject.limits, subject.rows)
    evaluator = evaluation.Evaluator(
        *(checkpoint.model, checkpoint.tokenizer, task, test, learning, checkpoint.divergence),
        notices=tuple(data.notices({"test": report})),
    )
    return evaluator if checkpoint.sense is None else evaluator.sensing(checkpoint.sense, test)


def evaluate(
    evaluator: evaluation.Evaluator, acting: Any, *, count: int, num_samples: int, key: types.Key
) -> reports.Report:
    """Returns likelihoods of held-out completions, and measures of the model's own answers.

    Args:
      evaluator: of a task.
      acting: parameters of the policy.
      count: prompts, at most: there may be fewer.
      num_samples: K >= 1, answers at temperature 1 to each prompt.
      key: of them.
    """
    count = evaluator.kept(count)
    estimates, notes = _likelihoods(evaluator, acting, count)
    greedy = evaluator.answers(acting, count, key, evaluator.greedy)
    samples = [
        evaluator.answers(acting, count, jax.random.fold_in(key, n), evaluator.sampled)
        for n in range(num_samples)
    ]
    for suffix, answers in (("greedy", [greedy]), ("temperature_1", samples)):
        for name, estimate in _answer_estimates(answers):
            estimates[f"{name}_{suffix}"] = estimate
    if evaluator.task.score is not None:
        right = sum((answers.measures["score"] == 1).astype(int) for answers in samples)
        for k in sorted({1, num_samples}):
            chances = votes.pass_at_k(np.asarray(right), num_samples, k)
            estimates[f"pass@{k}"] = statistics.ratio(chances)
        if num_samples > 1:
            estimates[f"majority@{num_samples}"] = statistics.ratio(majority_scores(samples))
    nats, tokens = (sum(getattr(a, name) for a in samples) for name in ("nats", "tokens"))
    # The mean of minus the log-probability of samples estimates the entropy.
    estimates["entropy_temperature_1"] = statistics.ratio(np.asarray(nats), np.asarray(tokens))
    lines = [
        {
            **evaluator.example_texts(evaluator.test[n]),
            "greedy": greedy.line(n),
            "samples": [answers.line(n) for answers in samples],
        }
        for n in range(count)
    ]
    title = (
        f"{evaluator.task.name}, {count} held-out examples, {num_samples} samples of each at "
        f"temperature 1, operator of {evaluator.divergence}; [95% intervals over examples]"
    )
    return reports.Report(title, estimates, notes, lines)


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Returns the share of n-grams of all texts that are distinct, in [0, 1]; NaN without any.

    Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models", 2016,
    https://arxiv.org/abs/1510.03055; of token ids here, not of words.
    """
    grams = [tuple(ids[i : i + n]) for ids in texts for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def _likelihoods(
    evaluator: evaluation.Evaluator, acting: Any, count: int
) -> tuple[dict[str, statistics.Estimate], list[str]]:
    sums = evaluator.likelihoods(acting, count)
    estimates: dict[str, statistics.Estimate] = {}
    notes: list[str] = []
    if evaluator.divergence != "kl":
        estimates[evaluator.f.loss_name] = statistics.ratio(sums.loss, sums.tokens)
    if evaluator.f.is_sparse:
        notes.append(
            f"no nats_per_token and no perplexity: the operator of {evaluator.divergence} gives "
            f"some tokens the probability 0; {evaluator.f.loss_name} is its own loss, in nats a "
            "token"
        )
    else:
        estimates["nats_per_token"], estimates["perplexity"] = perplexity(sums.nats, sums.tokens)
    estimates["accuracy"] = statistics.ratio(sums.right, sums.tokens)
    return estimates, notes


def majority_scores(samples: Sequence[evaluation.Answers]) -> np.ndarray:
    """Returns the score of the answer that most of K samples gave, by prompt, [n]."""
    texts = zip(*(answers.texts for answers in samples), strict=True)
    (codes,) = votes.encode([[*map(final_answers.wording, row)] for row in texts])
    scores = np.stack([answers.measures["score"] for answers in samples], 1)  # [n, K]
    return scores[np.arange(len(scores)), votes.majority(codes).winners]


def perplexity(
    nats: np.ndarray, tokens: np.ndarray
) -> tuple[statistics.Estimate, statistics.Estimate]:
    """Returns nats a token and their exponential; too large a one is infinite.

    Args:
      nats, tokens: sums of each completion, [n].
    """
    a_token = statistics.ratio(nats, tokens)
    with np.errstate(over="ignore"):
        return a_token, statistics.Estimate(*np.exp(a_token).tolist())


def _answer_estimates(
    answers: Sequence[evaluation.Answers],
) -> Iterator[tuple[str, statistics.Estimate]]:
    """Yields names and estimates over prompts of the mean over `answers` to each."""
    columns: dict[str, list[np.ndarray]] = {
        name: [a.measures[name] for a in answers] for name in answers[0].measures
    }
    columns["answer_tokens"] = [a.tokens for a in answers]
    columns["truncated"] = [~a.done for a in answers]
    for name, column in columns.items():
        yield name, statistics.ratio(np.mean(column, axis=0))
    texts = [ids for a in answers for ids in a.ids]
    for n in (1, 2, 3):
        yield f"distinct_{n}", statistics.Estimate(distinct(texts, n))
