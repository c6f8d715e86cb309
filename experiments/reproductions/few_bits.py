"""Students in few bits, for `kullback reproduce quantisation`, which judges.

A student learns to continue texts of a teacher that is known exactly (token_line.py). Its matrices
are then rounded to a format (lm/quantisation.py), or it learns on, in the numbers of the format.
Norms and the table of tokens stay float. Over n tokens of what the teacher wrote,

    perplexity = exp(H + D),  D = E mean_n KL(teacher(. | y_<n) || student(. | y_<n)),

with H the teacher's entropy a token, so that no draw is in it but that of the prefixes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import types
from kullback.experiments.reproductions import small_models, students, study, token_line
from kullback.lm import batches, gkd, quantisation, sft
from kullback.lm.quantisation import Kept

# The next token of a text, the probabilities of the student in float, or those of the teacher.
Target = Literal["labels", "own", "teacher"]


class Stage(NamedTuple):
    """Learner steps of a student."""

    target: Target  # What they learn from.
    quantize: Kept  # The format that they learn in.
    steps: int
    rate: float  # The highest; it falls to 0.


_setups = functools.cache(token_line.setups_of)


@functools.cache
def trainer(sizes: token_line.Sizes, stage: Stage) -> small_models.Trainer:
    """Returns what takes the steps of a stage, compiled once for all seeds."""
    course = {"schedule": "linear", "decay_steps": stage.steps, "quantize": stage.quantize}
    learning = dataclasses.replace(sizes.learning(stage.rate), **course)
    setup = _setups(sizes)(0)
    if stage.target == "labels":
        return small_models.trainer(sft.make(setup.student, sft.Config(learning=learning)).learner)
    config = gkd.Config(student_fraction=0.0, learning=learning)
    whose = setup.student if stage.target == "own" else setup.teacher
    return small_models.trainer(gkd.make(setup.student, whose, config).learner)


@functools.cache
def learnt(sizes: token_line.Sizes, seed: int, stages: tuple[Stage, ...]) -> types.Params:
    """Returns the student of a seed after all stages, as it is learnt: float."""
    *before, stage = stages
    start = learnt(sizes, seed, tuple(before)) if before else None
    teacher = start if stage.target == "own" else {}  # The line's has no parameters.
    given = {"start": start, "teacher": teacher}
    setup = _setups(sizes)(seed)
    return students.learn(setup, trainer(sizes, stage), stage.steps, seed, **given)


def rounded(params: types.Params, quantize: Kept) -> types.Params:
    """Returns a student whose matrices have a format."""
    return quantisation.held(params, quantisation.Scheme(layers=quantize))


Nats = Callable[[types.Params, batches.Sequences], tuple[jax.Array, jax.Array]]


@functools.cache
def nats(sizes: token_line.Sizes) -> Nats:
    """Compiles (student, rows that the teacher wrote) -> D and H, nats of a text, []."""
    setup = _setups(sizes)(0)

    @jax.jit
    def of_student(params: types.Params, rows: batches.Sequences) -> tuple[jax.Array, jax.Array]:
        inputs = rows.tokens, rows.positions, rows.segments
        logits, of_teacher = setup.student.apply(params, *inputs), setup.teacher.apply({}, *inputs)
        above = small_models.sequence_distance(logits, of_teacher, rows)
        entropy = small_models.sequence_distance(of_teacher, of_teacher, rows, _entropy)
        return jnp.mean(above), jnp.mean(entropy)

    return of_student


def _entropy(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    return -jnp.sum(jnp.exp(log_p) * log_q, -1)


def rows(
    sizes: token_line.Sizes,
    seed: int,
    names: Mapping[Kept, str],
    stages: tuple[Stage, ...],
    journal: study.Journal,
) -> Iterator[study.Row]:
    """Yields the perplexity of a student after all stages, in each of some formats.

    Args:
      sizes: of all.
      seed: of the texts, the student and its batches.
      names: of the arm, by format.
      stages: of learning.
      journal: not used; a stage takes seconds.
    """
    del journal
    setup, params = _setups(sizes)(seed), learnt(sizes, seed, stages)
    held_out = students.prefixes(setup, setup.teacher, {}, seed)
    for form, arm in names.items():
        both = nats(sizes)(rounded(params, form), held_out)
        above, entropy = (float(x) / sizes.horizon for x in both)
        perplexity = math.exp(above + entropy)
        yield {"arm": arm, "format": form, "perplexity": perplexity, "nats_above_teacher": above}
