"""Teacher hacking in small: the oracle, its teacher and student, and the arms of distillation.

See teacher_hacking.py, which judges. Everything of a seed, the oracle too, is drawn anew with it.
B rows, P tokens of a prompt, T of a completion.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import learners, types
from kullback.experiments import reproduce
from kullback.experiments.reproductions import small_models
from kullback.lm import batches, completions, distillation, gemma, gkd, sft, tuning

Source = Literal["offline", "online-teacher", "online-student"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of models and data; all arms make the same number of learner steps."""

    seeds: int = 3
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
        for name in ("seeds", "oracle_samples", "evaluation_prompts", "epochs", "prompt_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.vocab_size < tuning.TOP_K:  # A metric of the learner looks at so many tokens.
            raise ValueError(f"vocab_size must be >= {tuning.TOP_K}, got {self.vocab_size}")
        if self.prompts < self.batch_size:
            raise ValueError(
                f"prompts must be >= batch_size={self.batch_size}, got {self.prompts}: an epoch "
                "has a learner step at least"
            )
        for name, most in (("diversity", self.prompts), ("budget", self.prompts)):
            if not all(1 <= value <= most for value in getattr(self, name)):
                raise ValueError(f"{name} must lie in 1 to {most}, got {getattr(self, name)}")
        if not 4 <= self.checkpoints <= self.epochs:
            raise ValueError(
                f"checkpoints must lie in 4 to epochs={self.epochs}, got {self.checkpoints}; a "
                "power law is fitted to them"
            )
        distillation.named(self.divergence)

    @property
    def epoch_steps(self) -> int:
        """Learner steps of an epoch of `prompts` prompts, in each arm."""
        return self.prompts // self.batch_size

    @property
    def learning(self) -> tuning.Config:
        """Settings of every learner."""
        return tuning.Config(
            batch_size=self.batch_size,
            max_prompt_length=self.prompt_length,
            max_new_tokens=self.horizon,
            learning_rate=self.learning_rate,
            chunk=self.batch_size * (self.prompt_length + self.horizon),
        )


class Arm(NamedTuple):
    """Whose completions are learnt from, of how many prompts, and how many of each."""

    name: str
    source: Source
    prompts: int
    completions: int


def arms(config: Config) -> list[Arm]:
    """Those of a configuration."""
    whole, few = config.prompts, max(1, config.prompts // 4)
    found = [Arm(source, source, whole, 1) for source in config.sources]
    sizes = [(whole // d, d) for d in config.diversity] + [(few, g) for g in config.budget]
    named = [Arm(f"offline-{n}x{k}", "offline", n, k) for n, k in sizes]
    return found + list(dict.fromkeys(named))


def checkpoints(config: Config) -> tuple[list[int], list[int]]:
    """Epochs after which distances are measured, and those of them that are evenly spaced."""
    even = np.linspace(0, config.epochs, config.checkpoints + 1).round().astype(int).tolist()[1:]
    early = np.geomspace(1, max(1, even[0]), 4).round().astype(int).tolist()
    return sorted({0, *early, *even}), even


class Models(NamedTuple):
    """The three, and their compiled programs, for all seeds."""

    oracle: gemma.Model
    teacher: gemma.Model
    student: gemma.Model
    # (acting params, prompts, key) -> prompts and what was written after them.
    sample_oracle: Callable[..., batches.Sequences]
    sample_teacher: Callable[..., batches.Sequences]
    teacher_learner: types.Learner
    tune_teacher: Callable[..., Any]
    student_learner: types.Learner
    tune_student: Callable[..., Any]
    distill: dict[str, Callable[..., Any]]  # By source.
    # (params, rows, logits of the reference) -> mean distance of sequences, [].
    measure_teacher: Callable[..., jax.Array]
    measure_student: Callable[..., jax.Array]


def make_models(config: Config) -> Models:
    """Builds them; programs compile at their first use."""
    context = config.prompt_length + config.horizon
    decoder = functools.partial(
        small_models.decoder, config.vocab_size, num_layers=config.num_layers, context=context
    )
    oracle = small_models.untied(
        gemma.make(decoder(config.oracle_width)), config.oracle_scale, config.oracle_branch
    )
    teacher, student = (
        gemma.make(decoder(w)) for w in (config.teacher_width, config.student_width)
    )
    of_oracle, of_teacher, of_student = (
        completions.sampler(model, config.horizon, stop_tokens=())
        for model in (oracle, teacher, student)
    )
    tune = sft.Config(learning=config.learning)
    teacher_learner, tuner = (sft.make(model, tune).learner for model in (teacher, student))
    settings = gkd.Config(divergence=config.divergence, learning=config.learning)
    distilled = gkd.make(student, teacher, settings).learner

    def by_teacher(
        state: Any, constants: types.Constants, prompts: Any, key: Any
    ) -> batches.Sequences:
        return of_teacher.sequences({"params": constants.teacher}, prompts, key)

    def by_student(
        state: Any, constants: types.Constants, prompts: Any, key: Any
    ) -> batches.Sequences:
        return of_student.sequences({"params": state.params}, prompts, key)

    rows = {
        "offline": learners.stored,
        "online-teacher": by_teacher,
        "online-student": by_student,
    }

    def measure(model: gemma.Model) -> Callable[..., jax.Array]:
        @jax.jit
        def mean(params: types.Params, rows: batches.Sequences, reference: jax.Array) -> jax.Array:
            logits = model.apply(params, rows.tokens)
            return jnp.mean(small_models.sequence_distance(logits, reference, rows))

        return mean

    return Models(
        oracle=oracle,
        teacher=teacher,
        student=student,
        sample_oracle=jax.jit(of_oracle.sequences),
        sample_teacher=jax.jit(of_teacher.sequences),
        teacher_learner=teacher_learner,
        tune_teacher=jax.jit(learners.scan(teacher_learner, learners.stored)),
        student_learner=distilled,
        tune_student=jax.jit(learners.scan(tuner, learners.stored)),
        distill={name: jax.jit(learners.scan(distilled, made)) for name, made in rows.items()},
        measure_teacher=measure(teacher),
        measure_student=measure(student),
    )


class Prepared(NamedTuple):
    """What all arms of a seed start from."""

    teacher: types.Params
    student: types.Params
    prompts: batches.Prompts  # [prompts, P].
    golden: tuple[batches.Sequences, jax.Array]  # What the oracle wrote, and its logits on it.
    proxy: tuple[batches.Sequences, jax.Array]  # The same of the teacher.
    golden_of_teacher: float


def draw_prompts(config: Config, key: types.Key, count: int) -> batches.Prompts:
    """Uniform prompts, [count, P]."""
    shape = count, config.prompt_length
    tokens = jax.random.randint(key, shape, 0, config.vocab_size, jnp.int32)
    return batches.Prompts(tokens, jnp.full(count, config.prompt_length, jnp.int32))


def references(
    models: Models, oracle: types.Params, teacher: types.Params, prompts: batches.Prompts, key: Any
) -> tuple[tuple[batches.Sequences, jax.Array], tuple[batches.Sequences, jax.Array]]:
    """What golden and proxy are measured on: the same prompts and the same random numbers."""
    of_oracle = models.sample_oracle({"params": oracle}, prompts, key)
    of_teacher = models.sample_teacher({"params": teacher}, prompts, key)
    return (
        (of_oracle, jax.jit(models.oracle.apply)(oracle, of_oracle.tokens)),
        (of_teacher, jax.jit(models.teacher.apply)(teacher, of_teacher.tokens)),
    )


def prepare(config: Config, models: Models, seed: int) -> Prepared:
    """Draws the oracle, and fine-tunes teacher and student on what it writes."""
    names = "oracle teacher student tune distil held_out samples evaluation".split()
    keys = dict(zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True))
    oracle = models.oracle.init(keys["oracle"])
    prompts = draw_prompts(config, keys["tune"], config.oracle_samples)
    samples = models.sample_oracle({"params": oracle}, prompts, keys["samples"])
    tune_steps = config.teacher_epochs * config.oracle_samples // config.batch_size

    def tuned(run: Callable[..., Any], learner: types.Learner, key: Any, steps: int) -> Any:
        items = small_models.take(samples, steps, config.batch_size, seed)
        return run(learner.init(key), types.NO_CONSTANTS, items, key)[0].params

    teacher = tuned(models.tune_teacher, models.teacher_learner, keys["teacher"], tune_steps)
    student = tuned(
        models.tune_student, models.student_learner, keys["student"], config.student_steps
    )
    held_out = draw_prompts(config, keys["held_out"], config.evaluation_prompts)
    golden, proxy = references(models, oracle, teacher, held_out, keys["evaluation"])
    return Prepared(
        teacher=teacher,
        student=student,
        prompts=draw_prompts(config, keys["distil"], config.prompts),
        golden=golden,
        proxy=proxy,
        golden_of_teacher=float(models.measure_teacher(teacher, *golden)),
    )


def completed(models: Models, prepared: Prepared, arm: Arm, key: types.Key) -> batches.Sequences:
    """The fixed sequences of an offline arm, all of the teacher's, [prompts * completions]."""
    chosen = np.tile(np.arange(arm.prompts), arm.completions)
    prompts = jax.tree.map(lambda x: x[chosen], prepared.prompts)
    return models.sample_teacher({"params": prepared.teacher}, prompts, key)


def distil(
    config: Config, models: Models, prepared: Prepared, arm: Arm, seed: int, work: reproduce.Work
) -> reproduce.Rows:
    """Distances and training loss of an arm at its checkpoints, a row each."""
    key, offline_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1))
    data: Any = prepared.prompts
    if arm.source == "offline":
        data = completed(models, prepared, arm, offline_key)
    state = models.student_learner.init(jax.random.key(seed))
    state = learners.with_params(state, prepared.student)
    rows: reproduce.Rows = []
    measured, even = checkpoints(config)
    losses = jnp.full(1, jnp.nan)
    for epoch in range(config.epochs + 1):
        if epoch:
            first = (epoch - 1) * config.epoch_steps
            items = small_models.take(data, config.epoch_steps, config.batch_size, seed, first)
            run = models.distill[arm.source]
            constants = types.Constants(teacher=prepared.teacher)
            state, losses = run(state, constants, items, key)
        if epoch in measured:
            golden, proxy = (
                float(models.measure_student(state.params, *reference))
                for reference in (prepared.golden, prepared.proxy)
            )
            loss = float(jnp.mean(losses))
            rows.append(
                {
                    "arm": arm.name,
                    "seed": seed,
                    "epoch": epoch,
                    "step": epoch * config.epoch_steps,
                    "is_evenly_spaced": epoch in even,
                    "golden": golden,
                    "proxy": proxy,
                    "train_loss": loss,
                    "golden_of_teacher": prepared.golden_of_teacher,
                }
            )
            work.tick(epoch * config.epoch_steps, golden, "golden")
    return rows
