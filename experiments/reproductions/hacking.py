"""Teacher hacking in small: the oracle, its teacher and student, and the arms of distillation.

See teacher_hacking.py, which judges. Everything of a seed, the oracle too, is drawn anew with it.
B rows, P tokens of a prompt, T of a completion.
"""

import dataclasses
import functools
import itertools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import learners, ranges, types
from kullback.experiments.reproductions import setups, small_models, study
from kullback.lm import batches, distillation, gemma, gkd, power_law, sft, tuning

Source = Literal["offline", "online-teacher", "online-student"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of models and data; all arms make the same number of learner steps."""

    seeds: int = 3
    first_seed: int = 100  # Lower ones have chosen settings, and are not judged.
    vocab_size: int = 16
    prompt_length: int = 4  # Tokens, drawn uniformly.
    horizon: int = 12  # Tokens of each completion.
    num_layers: int = 2
    oracle_width: int = 64
    oracle_scale: float = 2.5  # Standard deviation of the oracle's logits.
    # Of what each of its sublayers adds to the embedding: the less, the simpler is the language.
    oracle_branch: float = 0.2
    oracle_samples: int = 1_000  # What teacher and student are fine-tuned on.
    teacher_width: int = 64
    teacher_epochs: int = 10
    student_width: int = 48
    student_steps: int = 300  # Learner steps of the student's fine-tuning.
    batch_size: int = 64
    learning_rate: float = 1e-3
    divergence: str = "kl"  # What the student minimises against the teacher, token by token.
    prompts: int = 512  # To distil on; others than those of fine-tuning.
    epochs: int = 100  # Of these prompts.
    evaluation_prompts: int = 1_024
    # Measurements, evenly spaced: what a training run would evaluate, and the power law is fitted
    # to. A few more at the beginning are for the picture.
    checkpoints: int = 25
    sources: tuple[Source, ...] = ("offline", "online-teacher", "online-student")
    # Offline arms of prompts / d prompts with d completions each: the data are as large.
    diversity: tuple[int, ...] = ()  # d; the paper: 1, 2, 5.
    # Offline arms of prompts / 4 prompts with so many completions each: the data grow.
    budget: tuple[int, ...] = ()  # The paper: 1, 2, 4.

    def __post_init__(self) -> None:
        positive = "seeds oracle_samples evaluation_prompts epochs prompt_length"
        ranges.at_least(1, self, *positive.split())
        ranges.at_least(0, self, "first_seed")
        # A metric of the learner looks at so many tokens.
        ranges.at_least(tuning.TOP_K, self, "vocab_size")
        ranges.inside("[batch_size, inf)", self, "prompts")  # An epoch has a step at least.
        ranges.inside("[1, prompts]", self, "diversity", "budget", may_be_empty=True)
        ranges.inside("[4, epochs]", self, "checkpoints")  # A power law is fitted to them.
        distillation.named(self.divergence)

    @property
    def epoch_steps(self) -> int:
        """Learner steps of an epoch of `prompts` prompts, in each arm."""
        return self.prompts // self.batch_size

    @property
    def steps(self) -> int:
        """Learner steps of an arm."""
        return self.epochs * self.epoch_steps

    @property
    def learning(self) -> tuning.Config:
        """Settings of every learner."""
        sizes = self.batch_size, self.prompt_length, self.horizon
        return small_models.learning(*sizes, self.learning_rate)


class Arm(NamedTuple):
    """An arm: whose completions are learnt from, of how many prompts, and how many of each."""

    name: str
    source: Source
    prompts: int
    completions: int


def varied(config: Config) -> dict[str, list[Arm]]:
    """Returns arms of fixed completions, by what they differ in."""
    whole, few = config.prompts, max(1, config.prompts // 4)
    sizes = {
        "prompts": [(whole // d, d) for d in config.diversity],
        "completions": [(few, n) for n in config.budget],
    }
    return {
        what: [Arm(f"offline-{n}x{k}", "offline", n, k) for n, k in of_arms]
        for what, of_arms in sizes.items()
    }


def arms(config: Config) -> list[Arm]:
    """Returns all arms, each once."""
    plain = [Arm(source, source, config.prompts, 1) for source in config.sources]
    return [*plain, *dict.fromkeys(itertools.chain(*varied(config).values()))]


def checkpoints(config: Config) -> tuple[list[int], list[int]]:
    """Returns epochs after which distances are measured, and the evenly spaced ones of them."""
    even = np.linspace(0, config.epochs, config.checkpoints + 1).round().astype(int).tolist()[1:]
    early = np.geomspace(1, max(1, even[0]), 4).round().astype(int).tolist()
    return sorted({0, *early, *even}), even


class Models(NamedTuple):
    """The three models, and their compiled programs, for all seeds."""

    oracle: gemma.Model
    teacher: gemma.Model
    student: gemma.Model
    writers: setups.Writers
    tune_teacher: small_models.Trainer
    tune_student: small_models.Trainer
    distil: dict[Source, small_models.Trainer]


def make_models(config: Config) -> Models:
    """Builds them; programs compile at their first use."""
    context = config.prompt_length + config.horizon
    oracle, teacher, student = (
        gemma.make(small_models.decoder(config.vocab_size, width, config.num_layers, context))
        for width in (config.oracle_width, config.teacher_width, config.student_width)
    )
    oracle = small_models.untied(oracle, config.oracle_scale, config.oracle_branch)
    writers = setups.writers(config.horizon, ())
    tune_teacher, tune_student = (
        small_models.trainer(sft.make(model, sft.Config(learning=config.learning)).learner)
        for model in (teacher, student)
    )
    settings = gkd.Config(divergence=config.divergence, learning=config.learning)
    learner = gkd.make(student, teacher, settings).learner

    def of_teacher(state: Any, constants: types.Constants, prompts: Any, key: Any) -> Any:
        return writers(teacher, "kl")({"params": constants.teacher}, prompts, key)

    def of_student(state: types.LearnerState, constants: Any, prompts: Any, key: Any) -> Any:
        return writers(student, "kl")({"params": state.params}, prompts, key)

    distil: dict[Source, small_models.Trainer] = {
        "offline": small_models.trainer(learner),
        "online-teacher": small_models.trainer(learner, of_teacher),
        "online-student": small_models.trainer(learner, of_student),
    }
    return Models(oracle, teacher, student, writers, tune_teacher, tune_student, distil)


# Held-out sequences that the oracle or the teacher wrote, and its own logits on them.
Reference = tuple[batches.Sequences, jax.Array]


@functools.partial(jax.jit, static_argnums=0)
def distance(
    model: gemma.Model, params: types.Params, rows: batches.Sequences, reference: jax.Array
) -> jax.Array:
    """Returns the mean distance of sequences to what has the logits `reference` on them, []."""
    return jnp.mean(
        small_models.sequence_distance(model.apply(params, rows.tokens), reference, rows)
    )


class Prepared(NamedTuple):
    """The parameters and prompts from which all arms of a seed start, and how they are measured."""

    teacher: types.Params
    student: types.Params
    prompts: batches.Prompts  # [prompts, P].
    golden: Reference
    proxy: Reference
    golden_of_teacher: float


def draw_prompts(config: Config, key: types.Key, count: int) -> batches.Prompts:
    """Draws prompts, [count, P]."""
    return setups.uniform_prompts(key, count, config.prompt_length, config.vocab_size)


def references(
    models: Models, oracle: types.Params, teacher: types.Params, prompts: batches.Prompts, key: Any
) -> list[Reference]:
    """Returns what golden and proxy are measured on: the same prompts and random numbers."""
    both: list[Reference] = []
    for model, params in ((models.oracle, oracle), (models.teacher, teacher)):
        rows = models.writers(model, "kl")({"params": params}, prompts, key)
        both.append((rows, jax.jit(model.apply)(params, rows.tokens)))
    return both


def prepare(config: Config, models: Models, seed: int) -> Prepared:
    """Draws the oracle, and fine-tunes teacher and student on what it writes."""
    names = "oracle teacher student tune distil held_out samples evaluation".split()
    keys = dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))
    oracle = models.oracle.init(keys["oracle"])
    prompts = draw_prompts(config, keys["tune"], config.oracle_samples)
    samples = models.writers(models.oracle, "kl")({"params": oracle}, prompts, keys["samples"])
    tune_steps = config.teacher_epochs * config.oracle_samples // config.batch_size

    def tuned(trainer: small_models.Trainer, key: Any, steps: int) -> types.Params:
        return small_models.trained(trainer, samples, steps, config.batch_size, seed, key)

    teacher = tuned(models.tune_teacher, keys["teacher"], tune_steps)
    student = tuned(models.tune_student, keys["student"], config.student_steps)
    held_out = draw_prompts(config, keys["held_out"], config.evaluation_prompts)
    golden, proxy = references(models, oracle, teacher, held_out, keys["evaluation"])
    return Prepared(
        teacher=teacher,
        student=student,
        prompts=draw_prompts(config, keys["distil"], config.prompts),
        golden=golden,
        proxy=proxy,
        golden_of_teacher=float(distance(models.teacher, teacher, *golden)),
    )


def completed(models: Models, prepared: Prepared, arm: Arm, key: types.Key) -> batches.Sequences:
    """Returns the fixed sequences of an offline arm, the teacher's, [prompts * completions]."""
    chosen = np.tile(np.arange(arm.prompts), arm.completions)
    prompts = jax.tree.map(lambda x: x[chosen], prepared.prompts)
    return models.writers(models.teacher, "kl")({"params": prepared.teacher}, prompts, key)


def distil(
    config: Config, models: Models, prepared: Prepared, arm: Arm, seed: int, journal: study.Journal
) -> study.Rows:
    """Returns distances and training loss of an arm at its checkpoints, a row each."""
    key, offline_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    data: Any = prepared.prompts
    if arm.source == "offline":
        data = completed(models, prepared, arm, offline_key)
    learner, run = models.distil[arm.source]
    state = learners.with_params(learner.init(jax.random.key(seed)), prepared.student)
    rows: study.Rows = []
    measured, even = checkpoints(config)
    losses = jnp.full(1, jnp.nan)
    for epoch in range(config.epochs + 1):
        if epoch:
            first = (epoch - 1) * config.epoch_steps
            items = small_models.take(data, config.epoch_steps, config.batch_size, seed, first)
            constants = types.Constants(teacher=prepared.teacher)
            state, losses = run(state, constants, items, key)
        if epoch in measured:
            row = {"arm": arm.name, "seed": seed, "epoch": epoch}
            row |= {"step": epoch * config.epoch_steps, "is_evenly_spaced": epoch in even}
            for name, reference in {"golden": prepared.golden, "proxy": prepared.proxy}.items():
                row[name] = float(distance(models.student, state.params, *reference))
            row |= {"train_loss": float(jnp.mean(losses))}
            rows.append({**row, "golden_of_teacher": prepared.golden_of_teacher})
            journal.tick(epoch * config.epoch_steps, row["golden"], "golden")
    return rows


def end(rows: study.Rows, arm: str, seed: int) -> dict[str, Any]:
    """Returns where an arm ended, and whether its proxy left its power law."""
    measurements = study.where(rows, arm=arm, seed=seed)
    golden, proxy, steps = (
        [row[name] for row in measurements] for name in ("golden", "proxy", "step")
    )
    best = int(np.argmin(golden))
    even = [i for i, row in enumerate(measurements) if row["is_evenly_spaced"]]
    curve = [steps[i] for i in even], [proxy[i] for i in even]
    first, law = power_law.departure(*curve), power_law.early(*curve)
    late = [i for i in even if steps[i] >= 0.3 * steps[-1]]
    late_law = power_law.fit([steps[i] for i in late], [proxy[i] for i in late])
    return {
        "arm": arm,
        "seed": seed,
        "golden_end": golden[-1],
        "golden_least": golden[best],
        "golden_rise": golden[-1] / golden[best],
        "step_of_golden_least": steps[best],
        "proxy_end": proxy[-1],
        "proxy_fall_since": proxy[best] - proxy[-1],
        "proxy_always_falls": bool(np.all(np.diff(proxy) < 0)),
        "train_loss_end": measurements[-1]["train_loss"],
        "golden_of_teacher": measurements[-1]["golden_of_teacher"],
        "left_power_law_at_step": -1 if first is None else steps[even[first]],
        "law_scale": law.value(1),
        "law_exponent": law.exponent,
        "late_exponent": late_law.exponent,
    }
