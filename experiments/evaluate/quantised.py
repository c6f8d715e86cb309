"""A model in few bits: bytes and error of each matrix, and what the text says of the loss.

The matrices are replaced by what their codes hold, in float32, so that all that is measured is of
the numbers that a program with such codes computes with.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import finite, regularizers, trees, types
from kullback.experiments import statistics
from kullback.experiments.evaluate import evaluation as evaluations
from kullback.experiments.evaluate import reports
from kullback.experiments.evaluate.subjects import Subject
from kullback.lm import answers, batches, evaluation, gemma, quantisation


class Matrix(NamedTuple):
    """A row of the table of matrices, for layers that are stacked one row."""

    tensor: str  # Path among the parameters.
    shape: str  # "18x640x2048".
    bits: float  # A weight, with its share of scales.
    num_bytes: int
    relative_error: float  # ||Q(w) - w|| / ||w||.


class Quantised(NamedTuple):
    """A model whose matrices are those of a format."""

    params: types.Params
    matrices: list[Matrix]
    num_bytes: int  # Of all parameters, norms and what is left out in float32.


def quantise(params: types.Params, scheme: quantisation.Scheme) -> Quantised:
    """Returns a model in a scheme's formats.

    Args:
      params: of `gemma`, float32.
      scheme: formats of its matrices.

    Raises:
      ValueError: for a matrix that a format cannot hold, or with a number that is not finite.
    """
    matrices: list[Matrix] = []
    saved = 0

    def change(
        w: jax.Array, name: quantisation.Name, axis: int, path: tuple[str, ...]
    ) -> jax.Array:
        nonlocal saved
        tensor = "/".join(path)
        try:
            num_bytes = quantisation.num_bytes(w.shape, name, axis)
        except ValueError as error:
            raise ValueError(f"{tensor}: {error}") from error
        held, relative = _held(w, name, axis)
        if not np.isfinite(relative):
            raise ValueError(f"{tensor} has numbers that are not finite: no format holds them")
        shape = "x".join(map(str, w.shape))
        matrices.append(Matrix(tensor, shape, 8 * num_bytes / w.size, num_bytes, float(relative)))
        saved += w.nbytes - num_bytes
        return held

    held = quantisation.map_matrices(change, params, scheme)
    return Quantised(held, matrices, trees.num_bytes(params) - saved)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _held(w: jax.Array, name: quantisation.Name, axis: int) -> tuple[jax.Array, jax.Array]:
    """Returns what a format holds in place of a matrix, and its relative error."""
    held = quantisation.round_trip(w, name, axis)
    size = jnp.sum(w**2)
    error = jnp.sqrt(jnp.sum((held - w) ** 2) / jnp.where(size == 0, 1, size))
    return held, jnp.where(jnp.isfinite(size), error, jnp.nan)


class Compared(NamedTuple):
    """Sums over the tokens of each completion, of two models of the same tokens, [n]."""

    kl: np.ndarray  # KL(p || q), nats; p of the first.
    nats: np.ndarray  # Minus the log-probability by the first,
    other_nats: np.ndarray  # and by the second.
    tokens: np.ndarray


def comparison(
    model: gemma.Model,
    other: gemma.Model,
    *,
    divergence: regularizers.Divergence = regularizers.kl,
    chunk: int,
) -> Callable[[types.Params, types.Params, batches.Sequences], Compared]:
    """Compiles the comparison of two models on rows: (params, other params, rows) -> [B] each.

    Args:
      model, other: the two.
      divergence: f of the softargmax_f of both.
      chunk: tokens whose logits are in memory at a time.
    """

    def measure(logits: jax.Array, others: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
        log_p, log_q = (regularizers.log_softargmax(x, divergence) for x in (logits, others))
        of_labels = (-jnp.take_along_axis(x, labels[:, None], 1)[:, 0] for x in (log_p, log_q))
        return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1), *of_labels

    @jax.jit
    def sums(params: types.Params, other_params: types.Params, rows: batches.Sequences) -> Compared:
        pair = (model, params), (other, other_params)
        measured, is_answer = answers.per_token(measure, rows, *pair, chunk=chunk)
        kl, nats, other_nats = (jnp.sum(x, 1) for x in measured)
        return Compared(kl, nats, other_nats, jnp.sum(is_answer, 1))  # pyright: ignore[reportArgumentType]  # Traced.

    return sums


def compared(
    evaluator: evaluation.Evaluator, params: types.Params, held: types.Params, count: int
) -> Compared:
    """Compares a model with what a format holds, on the first `count` held-out completions.

    Args:
      evaluator: as of `evaluator_of`.
      params: of the model, float.
      held: what the format holds.
      count: examples, at most: there may be fewer.

    Raises:
      ValueError: for log-probabilities that are not finite.
    """
    sums = comparison(
        *(evaluator.model, evaluator.model),
        divergence=evaluator.f,
        chunk=evaluator.learning.chunk,
    )
    parts = [sums(params, held, rows) for rows in evaluator.sequences(count)]
    kept = evaluator.kept(count)
    whole = Compared(*(np.concatenate(column)[:kept] for column in zip(*parts, strict=True)))
    finite.require(whole, held, "log-probabilities of held-out completions")
    return whole


def estimates(
    evaluator: evaluation.Evaluator,
    params: types.Params,
    held: types.Params,
    name: str,
    count: int,
) -> dict[str, statistics.Estimate]:
    """Returns nats a token and perplexity of both models, and KL a token, over `count` examples."""
    measured: dict[str, statistics.Estimate] = {}
    sums = compared(evaluator, params, held, count)
    for title, nats in (("float", sums.nats), (name, sums.other_nats)):
        a_token, perplexity = evaluations.perplexity(nats, sums.tokens)
        measured |= {f"nats_per_token_{title}": a_token, f"perplexity_{title}": perplexity}
    measured["kl_per_token"] = statistics.ratio(sums.kl, sums.tokens)
    return measured


def evaluator_of(subject: Subject) -> evaluation.Evaluator:
    """Returns the evaluator of a model whose perplexity is to be measured.

    Raises:
      ValueError: as `Subject` and `evaluation.evaluator_of` do, or for a model whose operator gives
        some tokens the probability 0.
    """
    evaluator = evaluations.evaluator_of(subject)
    if evaluator.f.is_sparse:
        raise ValueError(
            f"the operator of {evaluator.divergence} gives some tokens the probability 0: there is "
            "no perplexity; leave out the task"
        )
    return evaluator


def report(
    evaluator: evaluation.Evaluator,
    params: types.Params,
    quantised: Quantised,
    name: str,
    *,
    count: int,
) -> reports.Report:
    """Returns perplexities of held-out completions before and after, and the KL between.

    Args:
      evaluator: as of `evaluator_of`.
      params: of the model, float.
      quantised: the same in a format.
      name: of the format.
      count: examples, at most: there may be fewer.
    """
    count = evaluator.kept(count)
    measured = estimates(evaluator, params, quantised.params, name, count)
    title = (
        f"{evaluator.task.name}, {count} held-out examples, float32 and {name}; "
        "[95% intervals over examples]"
    )
    return reports.Report(title, measured, [*evaluator.notices], [])


def rows(quantised: Quantised) -> list[dict[str, Any]]:
    """Returns the table of matrices, for a CSV file."""
    return [matrix._asdict() for matrix in quantised.matrices]


def worst(quantised: Quantised) -> Matrix:
    """Returns the matrix with the largest relative error."""
    return max(quantised.matrices, key=lambda matrix: matrix.relative_error)
