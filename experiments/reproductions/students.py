"""Teachers and students in small: how they learn, and what is measured of them.

B rows, P tokens of a prompt, T of a completion, n learner steps, V vocabulary.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import learners, regularizers, types
from kullback.experiments.reproductions import setups, small_models, study
from kullback.experiments.reproductions.setups import Setup
from kullback.lm import batches, distillation, gemma, gkd, sft

STRETCH = 100  # Learner steps of a compiled call, at most.
Tick = Callable[[int, float], None]  # (steps done, loss); see study.Journal.


def ignore(steps: int, loss: float) -> None:
    """Does nothing: a `Tick` that nobody sees."""


class Problem(NamedTuple):
    """Students of all seeds and their teacher, before the students are distilled."""

    sizes: Any  # With `student_steps`, and `steps` of distillation.
    setup: Callable[[int], Setup]  # Of a seed.
    teacher: Callable[[study.Journal], types.Params]
    start: Callable[[int, study.Journal], types.Params]  # A seed's student.
    # (student's parameters, seed, its loss, journal) -> the worth of its sequences, by measure.
    quality: Callable[[types.Params, int, str, study.Journal], dict[str, float]]
    arms: Sequence[study.Arm] = ()  # Computed before those of students.


def texts(name: str, sizes: setups.Sizes, good: float = 1.0) -> Problem:
    """Returns a teacher that is trained once, and students that are fine-tuned to a good start.

    Args:
      name: of the part of the teacher's own quality, "NAME-teacher".
      sizes: of models and learning.
      good: share of the teacher's score, greedily, at which students' fine-tuning ends.
    """
    setup, part = functools.cache(lambda: setups.make(sizes)), f"{name}-teacher"
    tune = functools.cache(lambda: tuner(setup(), setup().student))

    @functools.cache
    def teacher(journal: study.Journal) -> types.Params:
        trainer = tuner(setup(), setup().teacher)
        return learn(setup(), trainer, sizes.teacher_steps, 0, tick=journal.tick)

    def measure_teacher(journal: study.Journal) -> study.Rows:
        return [quality(setup(), setup().teacher, teacher(journal), 0)]

    @functools.cache
    def start(seed: int, journal: study.Journal) -> types.Params:
        [of_teacher] = journal.kept(part)
        evaluator, key = setup().evaluator(setup().student, "kl"), jax.random.key(seed)

        def is_good(params: types.Params) -> bool:
            if "score_greedy" not in of_teacher:
                return False  # It has all of its steps.
            scores = evaluator.scores({"params": params}, sizes.evaluation, key)
            return bool(scores.mean() >= good * of_teacher["score_greedy"])

        steps = sizes.student_steps
        return learn(setup(), tune(), steps, seed, tick=journal.tick, is_enough=is_good)

    def beside_teacher(
        params: types.Params, seed: int, divergence: str, journal: study.Journal
    ) -> dict[str, float]:
        [of_teacher] = journal.kept(part)
        of_student = quality(setup(), setup().student, params, seed, f_of(divergence))
        if (taught := of_teacher.get("score_greedy")) is not None:
            of_student["share_of_teachers_score"] = (
                of_student["score_greedy"] / taught if taught else np.nan
            )
        return of_student | {f"{column}_of_teacher": value for column, value in of_teacher.items()}

    arm = study.Arm(part, sizes.teacher_steps, measure_teacher, table=None)
    return Problem(sizes, lambda seed: setup(), teacher, start, beside_teacher, [arm])


def tuner(setup: Setup, model: gemma.Model, divergence: str = "kl") -> small_models.Trainer:
    """Returns the trainer of SFT with the loss that a divergence generates."""
    config = sft.Config(divergence=divergence, learning=setup.fine_tuning)
    return small_models.trainer(sft.make(model, config).learner)


def supervised_distiller(setup: Setup, divergence: str) -> small_models.Trainer:
    """Returns the trainer on the data set alone, at the rate of fine-tuning, from the start."""
    config = gkd.Config(divergence=divergence, learning=setup.fine_tuning)
    return small_models.trainer(gkd.make(setup.student, setup.teacher, config).learner)


class Item(NamedTuple):
    """The sequences that a step of distillation may learn from."""

    is_sampled: jax.Array  # bool, []: whether the student writes the completions.
    rows: batches.Sequences
    prompts: batches.Prompts


def distiller(setup: Setup, divergence: str, temperature: float = 1.0) -> small_models.Trainer:
    """Returns GKD by a loss of `lm.distillation.LOSSES`, with a coin a step as in the paper."""
    learning = setup.distillation
    config = gkd.Config(divergence=divergence, temperature=temperature, learning=learning)
    sample = setup.writers(setup.student, config.output_divergence)

    def rows(
        state: types.LearnerState, constants: types.Constants, item: Item, key: types.Key
    ) -> batches.Sequences:
        del constants
        acting = {"params": state.params}
        return jax.lax.cond(
            item.is_sampled, lambda: sample(acting, item.prompts, key), lambda: item.rows
        )

    return small_models.trainer(gkd.make(setup.student, setup.teacher, config).learner, rows)


def f_of(divergence: str) -> str:
    """Returns the name of f of the output of a model that has learnt by this loss."""
    return gkd.Config(divergence=divergence).output_divergence


def learn(
    setup: Setup,
    trainer: small_models.Trainer,
    steps: int,
    seed: int,
    *,
    start: types.Params | None = None,
    teacher: types.Params = None,
    fraction: float | None = None,
    tick: Tick = ignore,
    is_enough: Callable[[types.Params], bool] = lambda params: False,
) -> types.Params:
    """Returns parameters that have learnt for `steps`, in equal stretches, the last one shorter.

    Args:
      setup: the data set, and the size of batches.
      trainer: of the learner.
      steps: learner steps, at most.
      seed: of what is drawn: parameters, batches, coins and sequences.
      start: parameters to start from; None draws them.
      teacher: its parameters, where the learner has one.
      fraction: lambda, for a trainer of `distiller`; None for others.
      tick: told how far it is.
      is_enough: asked after every stretch whether to stop there.
    """

    def items(first: int, count: int) -> Any:
        data, size = (setup.rows, setup.prompts), setup.fine_tuning.batch_size
        rows, prompts = small_models.take(data, count, size, seed, first)
        if fraction is None:
            return rows
        coins = [np.random.default_rng([seed, first + n]).random() for n in range(count)]
        return Item(jnp.asarray(np.array(coins) < fraction), rows, prompts)

    key, constants = jax.random.key(seed), types.Constants(teacher=teacher)
    state = trainer.learner.init(key)
    if start is not None:
        state, key = learners.with_params(state, start), jax.random.fold_in(key, 1)
    for first in range(0, steps, STRETCH):
        count = min(STRETCH, steps - first)
        state, losses = trainer.run(state, constants, items(first, count), key)
        tick(first + count, float(jnp.mean(losses)))
        if is_enough(state.params):
            break
    return state.params


def prefixes(
    setup: Setup, model: gemma.Model, params: types.Params, seed: int, divergence: str = "kl"
) -> batches.Sequences:
    """Returns what a model writes after the held-out prompts, at temperature 1."""
    key = jax.random.fold_in(jax.random.key(seed), 2)
    return setup.writers(model, divergence)({"params": params}, setup.held_out, key)


def distance(setup: Setup, divergence: str) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Compiles (student, teacher, rows) -> divergence and the student's entropy, a token, [].

    Means over held-out rows of the mean over each one's tokens, GKD's equation 2.
    """
    loss = distillation.named(divergence)
    f = regularizers.named(f_of(divergence))

    @jax.jit
    def mean(
        student: types.Params, teacher: types.Params, rows: batches.Sequences
    ) -> tuple[jax.Array, jax.Array]:
        inputs = rows.tokens, rows.positions, rows.segments
        logits = setup.student.apply(student, *inputs), setup.teacher.apply(teacher, *inputs)
        (of_student, of_teacher), _, is_answer = distillation.align(
            logits, jnp.asarray(rows.tokens), jnp.asarray(rows.is_answer)
        )
        p = regularizers.softargmax(of_student, f)
        entropy = -jnp.sum(jax.scipy.special.xlogy(p, p), -1)
        weights = jnp.ones(len(is_answer))
        value, entropy = (
            distillation.sequence_loss(x, is_answer, weights)[0]
            for x in (loss(of_student, of_teacher), entropy)
        )
        return value, entropy

    return mean


def measured(
    setup: Setup,
    measure: Callable[..., tuple[jax.Array, jax.Array]],
    student: types.Params,
    teacher: types.Params,
    seed: int,
    divergence: str,
) -> dict[str, float]:
    """Returns what `measure`, of `distance`, says after the teacher's prefixes and its own."""
    of_teacher = prefixes(setup, setup.teacher, teacher, seed)
    of_student = prefixes(setup, setup.student, student, seed, f_of(divergence))
    after_teacher, _ = measure(student, teacher, of_teacher)
    after_student, entropy = measure(student, teacher, of_student)
    return {
        "after_teachers_prefixes": float(after_teacher),
        "after_own_prefixes": float(after_student),
        "entropy": float(entropy),
    }


def support(setup: Setup, params: types.Params, seed: int, divergence: str) -> float:
    """Returns a student's tokens of positive probability, a mean over what it writes."""
    rows = prefixes(setup, setup.student, params, seed, divergence)
    logits = setup.student.apply(params, rows.tokens, rows.positions, rows.segments)
    count = jnp.sum(regularizers.softargmax(logits, regularizers.named(divergence)) > 0, -1)
    is_answer = jnp.asarray(rows.is_answer)[:, 1:]
    return float(jnp.sum(jnp.where(is_answer, count[:, :-1], 0)) / jnp.sum(is_answer))


def quality(
    setup: Setup, model: gemma.Model, params: types.Params, seed: int, divergence: str = "kl"
) -> dict[str, float]:
    """Returns means over held-out examples: scores of what is written, greedily and drawn, nats."""
    evaluator, acting = setup.evaluator(model, divergence), {"params": params}
    count, measures = len(setup.held_out.lengths), {}
    for way, program in (("greedy", evaluator.greedy), ("temperature_1", evaluator.sampled)):
        answers = evaluator.answers(acting, count, jax.random.key(seed), program)
        measures |= {f"{name}_{way}": float(x.mean()) for name, x in answers.measures.items()}
    likelihoods = evaluator.likelihoods(acting, count)
    tokens = likelihoods.tokens.sum()
    return {
        **measures,
        "accuracy": float(likelihoods.right.sum() / tokens),
        "nats_a_token": float(likelihoods.nats.sum() / tokens),
    }
