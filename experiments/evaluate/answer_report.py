"""Accuracy of answers from many samples, over the number of samples, and what each way costs.

Routing is Gemini's: where enough samples agree, their answer is taken, else the greedy one. Its
threshold is chosen on validation questions, for each number of samples, and frozen.

Shape letters: Q questions, k samples of each.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from kullback.experiments import plots, statistics
from kullback.experiments.evaluate import reports
from kullback.experiments.evaluate.answering import Responses
from kullback.lm import best_of_n, final_answers, votes


class Table(NamedTuple):
    """Answers to Q questions as codes, see lm/votes.py, with what weighs and costs them."""

    codes: np.ndarray  # int64, [Q, k].
    greedy: np.ndarray  # int64, [Q].
    references: np.ndarray  # int64, [Q].
    weights: np.ndarray  # [Q, k]: exp of the mean log-probability of a sample's tokens.
    rewards: np.ndarray  # [Q, k].
    tokens: np.ndarray  # [Q, k].
    greedy_tokens: np.ndarray  # [Q].

    def of(self, subset: np.ndarray) -> "Table":
        """Returns the table of some of the samples."""
        columns = ("codes", "weights", "rewards", "tokens")
        return self._replace(**{name: getattr(self, name)[:, subset] for name in columns})

    def is_right(self, answers: np.ndarray) -> np.ndarray:
        """Returns whether codes, [Q] or [Q, k], are those of the references."""
        right = answers == self.references.reshape(-1, *[1] * (answers.ndim - 1))
        return right & (answers != votes.NONE)


def table(responses: Sequence[Responses], kind: final_answers.Kind) -> Table:
    """Reads the answers to Q questions."""
    read = final_answers.READERS[kind]
    codes, greedy, references = votes.encode(
        [[read(answer.text) for answer in one.samples] for one in responses],
        [read(one.greedy.text) for one in responses],
        [read(one.reference) for one in responses],
    )

    def column(measure: Callable[[Any], float]) -> np.ndarray:
        return np.array(
            [[measure(answer) for answer in one.samples] for one in responses], np.float64
        )

    return Table(
        codes=codes,
        greedy=greedy,
        references=references,
        # exp of -700 is still > 0.
        weights=column(lambda x: math.exp(-min(x.nats / max(x.tokens, 1), 700))),
        rewards=column(lambda x: x.reward),
        tokens=column(lambda x: x.tokens),
        greedy_tokens=np.array([one.greedy.tokens for one in responses], np.float64),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Analysis:
    """The comparison of the ways to answer by many samples."""

    questions: Table
    validation: Table | None = None  # None: there is no routing, or its threshold is given.
    threshold: float | None = None  # tau, for any k; None: chosen on the validation questions.
    has_reward: bool = False

    @property
    def samples(self) -> int:
        """Samples of each question, k."""
        return self.questions.codes.shape[1]

    @functools.cached_property
    def counts(self) -> list[int]:
        """Numbers of samples that are compared: powers of two, and all."""
        powers = [2**i for i in range(self.samples.bit_length()) if 2**i < self.samples]
        return [*powers, self.samples]

    @functools.cached_property
    def thresholds(self) -> dict[int, float]:
        """The threshold tau for each number of samples: as it is given, or the best in validation.

        Without either there are none.
        """
        if self.validation is not None:
            return {k: chosen_threshold(self.validation, k) for k in self.counts}
        return {} if self.threshold is None else dict.fromkeys(self.counts, self.threshold)

    def ways(self, k: int) -> dict[str, Callable[[Table], Any]]:
        """Returns the ways to answer by k samples: table of k samples -> is it right, [Q]."""
        ways: dict[str, Callable[[Table], Any]] = {
            "pass": lambda x: x.is_right(x.codes).any(1),
            "majority": lambda x: x.is_right(votes.majority(x.codes).answers),
            "weighted majority": lambda x: x.is_right(votes.majority(x.codes, x.weights).answers),
        }
        if k in self.thresholds:
            tau = self.thresholds[k]
            ways["routed"] = lambda x: x.is_right(
                votes.route(votes.majority(x.codes), x.greedy, tau)
            )
        if self.has_reward:
            ways["best by reward"] = _best
        return ways

    def rows(self) -> list[dict[str, Any]]:
        """Returns accuracy and cost of each way, a row for each number of samples."""
        x = self.questions
        rows = [_row("greedy", 0, x.is_right(x.greedy).astype(float), x.greedy_tokens.mean())]
        right = x.is_right(x.codes)
        rows.append(_row("one sample", 1, right.mean(1), x.tokens.mean()))
        for k in self.counts:
            for way, measure in self.ways(k).items():
                if way == "pass":  # Exact, where there are many subsets.
                    values = votes.pass_at_k(right.sum(1), self.samples, k)
                else:
                    values = self._mean(measure, k)
                cost = k * x.tokens.mean()
                if way == "routed":
                    cost += self._greedy_cost(k)
                rows.append(_row(way, k, values, cost))
        return rows

    def _mean(self, measure: Callable[[Table], np.ndarray], k: int) -> np.ndarray:
        """Returns the mean of a measure over subsets of k samples, [Q]."""
        return votes.over_subsets(lambda s: measure(self.questions.of(s)), self.samples, k)

    def _greedy_cost(self, k: int) -> float:
        """Returns the mean tokens of greedy answers where routing asks for them."""

        def cost(x: Table) -> np.ndarray:
            agreed = votes.is_agreed(votes.majority(x.codes), self.thresholds[k])
            return np.where(agreed, 0, x.greedy_tokens)

        return float(self._mean(cost, k).mean())

    def estimates(self, rows: Sequence[dict[str, Any]]) -> dict[str, statistics.Estimate]:
        """Returns what is shown: accuracies by all samples, agreement, and tokens a question."""
        x, k = self.questions, self.samples
        shown: dict[str, statistics.Estimate] = {}
        costs: dict[str, statistics.Estimate] = {}
        for row in rows:
            if row["k"] in (0, k) or row["way"] == "one sample":
                name = row["way"].replace(" ", "_") + (f"@{k}" if row["k"] == k > 1 else "")
                shown[name] = statistics.Estimate(row["accuracy"], row["low"], row["high"])
                costs[f"tokens_{name}"] = statistics.Estimate(row["tokens"])
        counted = votes.majority(x.codes)
        right = x.is_right(counted.answers)
        shown["agreement"] = statistics.ratio(counted.shares)
        if 0 < right.sum() < len(right):
            ranks = statistics.chance_of_higher(counted.shares[right], counted.shares[~right])
            shown["agreement_tells_right"] = statistics.Estimate(ranks)
        shown["unread"] = statistics.ratio((x.codes == votes.NONE).mean(1))
        if k in self.thresholds:
            tau = self.thresholds[k]
            shown["threshold"] = statistics.Estimate(tau)
            shown["routed_to_greedy"] = statistics.ratio(1.0 - votes.is_agreed(counted, tau))
        return shown | costs

    def lines(
        self, responses: Sequence[Responses], kind: final_answers.Kind
    ) -> list[dict[str, Any]]:
        """Returns each question with the answers of all ways, JSON-able."""
        x, read = self.questions, final_answers.READERS[kind]
        counted, weighted = votes.majority(x.codes), votes.majority(x.codes, x.weights)
        best = _chosen(x)
        tau = self.thresholds.get(self.samples)
        agreed = None if tau is None else votes.is_agreed(counted, tau)
        lines = []
        for q, one in enumerate(responses):
            answers = [_shown(read(answer.text)) for answer in one.samples]
            greedy = _shown(read(one.greedy.text))
            majority = answers[counted.winners[q]]
            line = {
                "number": q + 1,
                "prompt": one.prompt,
                "reference": _shown(read(one.reference)),
                "greedy": greedy,
                "majority": majority,
                "agreement": float(counted.shares[q]),
                "weighted_majority": answers[weighted.winners[q]],
            }
            if agreed is not None:
                line["routed"] = majority if agreed[q] else greedy
            if self.has_reward:
                line["best_by_reward"] = answers[best[q]]
            lines.append({**line, "samples": answers, "texts": [a.text for a in one.samples]})
        return lines

    def report(
        self, title: str, rows: Sequence[dict[str, Any]], notes: list[str]
    ) -> reports.Report:
        """Returns the report that is shown, without lines."""
        return reports.Report(title, self.estimates(rows), notes, [])


def chosen_threshold(validation: Table, k: int) -> float:
    """Returns the threshold of the highest mean accuracy over subsets of k samples."""
    parts = [validation.of(s) for s in votes.subsets(validation.codes.shape[1], k)]
    counted = [votes.majority(part.codes) for part in parts]
    joined = votes.Votes(*map(np.concatenate, zip(*counted, strict=True)))
    greedy, references = (
        np.tile(column, len(parts)) for column in (validation.greedy, validation.references)
    )
    return votes.choose_threshold(joined, greedy, references, k)


def draw(rows: Sequence[dict[str, Any]], path: pathlib.Path, title: str) -> None:
    """Draws accuracy over the number of samples, with intervals, as a PNG."""
    with plots.plain_text():
        drawn = plots.grid(width=6.4, height=4.0)
        (axes,) = drawn.axes
        ways = list(dict.fromkeys(row["way"] for row in rows))
        for number, way in enumerate(ways):
            mine = [row for row in rows if row["way"] == way]
            mean, low, high = (
                np.array([row[name] for row in mine]) for name in ("accuracy", "low", "high")
            )
            color = f"C{number}"
            if len(mine) == 1 and way in ("greedy", "one sample"):
                axes.axhline(mean[0], color=color, linestyle="--", linewidth=1, label=way)
                continue
            counts = [row["k"] for row in mine]
            axes.plot(counts, mean, marker="o", markersize=3, color=color, label=way)
            axes.fill_between(counts, low, high, color=color, alpha=0.12, linewidth=0)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("samples k")
        axes.set_ylabel("accuracy")
        axes.set_title(title)
        axes.legend(loc="best", framealpha=0.8, edgecolor="none")
        plots.save(drawn, path)


def _row(way: str, k: int, values: np.ndarray, tokens: float) -> dict[str, Any]:
    mean, low, high = statistics.ratio(values)
    row = {"way": way, "k": k, "accuracy": mean, "low": low, "high": high}
    return {**row, "tokens": float(tokens)}


def _chosen(x: Table) -> np.ndarray:
    """Returns the sample of the highest reward, int64 [Q]."""
    k = x.rewards.shape[1]
    return best_of_n.choose(x.rewards.reshape(-1), k) - k * np.arange(len(x.rewards))


def _best(x: Table) -> np.ndarray:
    return x.is_right(x.codes[np.arange(len(x.codes)), _chosen(x)])


def _shown(answer: Any) -> str | None:
    return None if answer is None else str(answer)
