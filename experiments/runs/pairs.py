"""Pairs of answers from which a policy learns, and what its frozen reference says of them.

The log-probabilities of all pairs under a reference that stays are computed once, when the run
begins, and kept beside its config.json: no reference is in memory while the policy learns, and a
run that goes on reads the same numbers.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from kullback.core import folders, sequences, types, weights
from kullback.experiments.runs import language, plans, reward_models, text_work
from kullback.experiments.runs.lessons import Lessons
from kullback.experiments.runs.text_work import Splits
from kullback.lm import (
    batches,
    data,
    dpo,
    evaluation,
    examples,
    gemma,
    preferences,
    quantisation,
    reward_model,
)

REFERENCE = "reference.safetensors"  # Beside config.json.
DATA = "data_sha256"  # Key of config.json.

Table = dict[str, np.ndarray]  # By split, float32 [N, 2]: of chosen and rejected answers.


@dataclasses.dataclass
class Reference:
    """Log-probabilities of pairs under a reference, which are computed or read once."""

    pairs: Mapping[str, list[preferences.Pair]]  # By split.
    # Pairs -> [N, 2], by the reference.
    log_probabilities: Callable[[list[preferences.Pair]], np.ndarray]
    known: Table | None = None  # None: they are computed when they are asked for.

    @property
    def table(self) -> Table:
        """The log-probabilities of all pairs."""
        if self.known is None:
            table = {split: self.log_probabilities(pairs) for split, pairs in self.pairs.items()}
            self.known = _checked(table, "the reference")
        return self.known


def read(home: pathlib.Path, pairs: Mapping[str, list[preferences.Pair]]) -> Table:
    """Returns the log-probabilities that a run's folder has.

    Raises:
      ValueError: if the file is missing, damaged, or of another number of pairs.
    """
    present = folders.present(home, (REFERENCE,))
    if REFERENCE not in present:
        raise ValueError(
            f"{home / REFERENCE} is missing: the log-probabilities of the run's pairs under its "
            "reference; put it back, or start a new run"
        )
    like = {split: jax.ShapeDtypeStruct((len(x), 2), np.float32) for split, x in pairs.items()}
    try:
        table = weights.import_params(present[REFERENCE], like)
    except ValueError as error:
        raise ValueError(
            f"{error}; it has a row for each pair that the run began with: put the data and the "
            "file back, or start a new run"
        ) from None
    return _checked({split: np.asarray(x) for split, x in table.items()}, home / REFERENCE)


def _checked(table: Table, name: Any) -> Table:
    """Raises ValueError for a log-probability that is not finite; d has no value there."""
    for split, numbers in table.items():
        if not (is_finite := np.isfinite(numbers).all(1)).all():
            raise ValueError(
                f"{name}: the log-probability of an answer of pair {np.argmin(is_finite) + 1} in "
                f"{split} is not finite; leave the pair out"
            )
    return table


def chosen(splits: Splits[preferences.Pair]) -> Splits[data.Example]:
    """Returns the chosen answers, which a policy of pairs is evaluated by as others are."""
    train, test = ([pair.chosen for pair in pairs] for pairs in (splits.train, splits.test))
    return Splits(train, test, splits.reports, splits.rule)


def over_pairs(
    evaluator: evaluation.Evaluator,
    program: Callable[..., jax.Array],
    params: types.Params,
    pairs: list[preferences.Pair],
) -> np.ndarray:
    """Returns log-probabilities of chosen and rejected answers, float32 [n, 2], by a `program`."""
    width, pad_id = evaluator.learning.width, evaluator.tokenizer.pad_id

    def spread(params: types.Params, rows: batches.Sequences) -> jax.Array:
        return program(params, evaluator.spread(rows))

    both = reward_models.over_pairs(spread, params, pairs, width, pad_id, evaluator.features)
    return np.stack(both, 1)


def program(model: gemma.Model, chunk: int) -> Callable[..., jax.Array]:
    """Returns the compiled (parameters, sequences) -> log-probabilities of answers, [B]."""
    return jax.jit(functools.partial(dpo.log_probabilities, model, chunk=chunk))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Lessons):
    """Pairs of answers, of which a policy learns which was chosen."""

    objective: dpo.Objective
    evaluator: evaluation.Evaluator
    train: list[preferences.Pair]
    test: list[preferences.Pair]
    reference: Reference  # Of both splits; of those held out alone if the learner's own moves.
    num_swapped: int  # Pairs that are learnt from whose label is wrong on purpose.
    shares_prompts: bool
    per_row: int = 2

    def source(self, seed: int) -> sequences.Source:
        """Returns batches of pairs, with what a fixed reference says of them."""
        c, pad_id = self.evaluator.learning, self.evaluator.tokenizer.pad_id
        drawn = preferences.batched(
            self.train,
            batches.Config(
                batch_size=c.batch_size,
                widths=c.widths,
                batches_per_sort=c.batches_per_sort,
                seed=seed,
            ),
            pad_id,
            self.evaluator.features,
        )
        log_reference = None if self.objective.targets else self.reference.table["train"]

        def batch(indices: np.ndarray) -> dpo.Referred:
            rows = None if log_reference is None else log_reference[indices]
            return dpo.Referred(drawn.padded(indices), rows)

        first = batch(np.zeros(c.batch_size, int))
        return sequences.Source(
            num_rows=c.batch_size,
            example=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), first),
            stored=lambda step, rows: jax.tree.map(lambda x: x[:rows], batch(drawn.indices(step))),
        )

    def scores(self, acting: Any, count: int, key: types.Key) -> np.ndarray:
        """Returns 1 for each held-out pair that the policy ranks as it was, 1/2 for a tie, else 0.

        The reference is the policy before it learnt.
        """
        del key  # Nothing is random here.
        log_pi = over_pairs(self.evaluator, self._program, acting["params"], self.test[:count])
        log_reference = self.reference.table["test"][:count]
        lengths = np.array([[len(x.completion) for x in pair] for pair in self.test[:count]])
        chosen, rejected = (
            dpo.Scores(*(jax.numpy.asarray(x[:, n]) for x in (log_pi, log_reference, lengths)))
            for n in (0, 1)
        )
        return reward_model.accuracy(dpo.differences(self.objective, chosen, rejected))

    @functools.cached_property
    def _program(self) -> Callable[..., jax.Array]:
        return program(self.evaluator.model, self.evaluator.learning.chunk)

    def details(self) -> Mapping[str, Any]:
        """Returns the hash of the pairs, in the order of the reference's file."""
        both = examples.fingerprint([*self.train, *self.test])
        return {DATA: both, "swapped_pairs": self.num_swapped}

    def save(self, folder: pathlib.Path) -> None:
        """Writes what the reference says of the pairs."""
        weights.export_params(folder / REFERENCE, self.reference.table)


def with_pairs(
    base: language.Setup,
    plan: plans.Plan,
    decoder: gemma.Model,
    start: Callable[[], types.Params | None],
    home: pathlib.Path | None,
) -> language.Setup:
    """Returns the set-up of a policy that learns from pairs, and begins as its reference.

    Args:
      base: with the pairs as they were read.
      plan: of the run.
      decoder: the model without adapters.
      start: () -> its parameters before anything is learnt; called if nobody has computed what
        they say of the pairs.
      home: folder of a run that goes on.

    Raises:
      ValueError: without a pair to learn from, or to hold out; as `read` does.
    """
    text_work.require_both(plan, base.splits)
    config, test = base.agent.config, base.splits.test
    train = preferences.corrupt(base.splits.train, config.corruption, plan.seed)

    def log_probabilities(of: list[preferences.Pair]) -> np.ndarray:
        params = base.whole(start() or {})
        if not config.learning.lora:
            params = quantisation.held(params, config.learning.scheme)
        compiled = program(decoder, config.learning.chunk)
        return over_pairs(base.evaluator, compiled, params, of)

    judged = {"train": train, "test": test}
    if config.objective.targets:  # The learner's own reference moves.
        del judged["train"]
    known = None if home is None else read(home, judged)
    swapped = preferences.is_swapped(len(train), config.corruption, plan.seed)
    return dataclasses.replace(
        base,
        splits=base.splits._replace(train=train),
        lessons=Pairs(
            objective=config.objective,
            evaluator=base.evaluator,
            train=train,
            test=test,
            reference=Reference(judged, log_probabilities, known),
            num_swapped=int(swapped.sum()),
            shares_prompts=config.share_prompts,
        ),
    )
