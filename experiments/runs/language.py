"""Runs of language models: from the names of a plan to a model, a tokenizer, data and a loop."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kullback import lm
from kullback.core import loops, regularizers, sequences, types
from kullback.experiments import plots
from kullback.experiments.evaluate import warp_front
from kullback.experiments.runs import episodes, models, plans, resolved, rewards, settings
from kullback.experiments.runs.work import Abandons, OnTexts, Work
from kullback.lm import (
    answers,
    batches,
    completions,
    data,
    distillation,
    evaluation,
    folder_meaning,
    gemma,
    power_law,
    rlhf,
    sharding,
    shared_ids,
    tasks,
    texts,
    tokenizer,
    tuning,
)

COMPUTE = folder_meaning.COMPUTE
NEW_VOCABULARY = 512  # At most; of a tokenizer that is trained on the task's texts.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup(Work):
    """All that a run of a language model is made of."""

    agent: types.Agent
    spec: types.Spec
    student: models.Checkpoint
    teacher: models.Checkpoint | None
    train: list[data.Example]
    reports: dict[str, data.Report]
    rule: int  # By which files are split, see `lm/splits.py`.
    evaluator: evaluation.Evaluator
    # Where learning starts; None: where the learner draws.
    initial_params: Callable[[], types.Params] | None
    placement: sharding.Placement | None = None  # Over a mesh; None is one device.
    # Of reinforcement learning: what acts and is scored, and the supervised start, which is frozen.
    actor: episodes.Actor | None = None
    start: types.Params | None = None
    eval_episodes: int = 0  # Held-out examples of an evaluation, as the plan has it; 0 without any.
    leaves_front: bool = False  # Whether it ends in WARP's front.
    axes: plots.Axes = plots.TEXTS
    has_texts: bool = True
    seeds_together: bool = False
    columns: Sequence[str] = ()

    def notes(self) -> Iterator[str]:
        """Yields what is not as it may be expected: ends of text, rows, examples evaluated."""
        warnings = (models.ends_notice(self.student), data.notice(self.reports))
        yield from (one for one in warnings if one is not None)
        kept = self.evaluator.kept(self.eval_episodes)
        if kept != self.eval_episodes:
            yield (
                f"an evaluation is of the {kept} examples that are held out, each of them once, "
                f"where --eval-episodes asks for {self.eval_episodes}"
            )
        num_ids = self.evaluator.model.num_ids
        if (rows := self.student.config.vocab_size) > num_ids:
            yield (
                f"of the {rows:,} rows of the model's table {rows - num_ids:,} are beyond the "
                f"{num_ids:,} ids that are compared: they are padding, and have no probability"
            )

    @property
    def learning(self) -> Any:
        """Settings that all learners of language models share."""
        return self.agent.config.learning

    def details(self) -> dict[str, Any]:
        """For config.json: frozen models by their hashes, and what became of the data's rows."""
        teacher = None if self.teacher is None else models.fingerprint(self.teacher.params)
        rows = {split: report._asdict() for split, report in self.reports.items()}
        rows = {"rule": self.rule, **rows}
        start = {} if self.start is None else {"start_sha256": models.fingerprint(self.start)}
        return {"loop": "host", "teacher_sha256": teacher, **start, "data": rows}

    def save(self, folder: pathlib.Path) -> None:
        """Writes model and tokenizer, without parameters, beside config.json."""
        models.save(self.student, folder)

    @functools.cached_property
    def _distance(self) -> Callable[..., jax.Array]:
        teacher = self.teacher
        if teacher is None:
            raise ValueError("no teacher to be distant from")
        operator = regularizers.named(teacher.divergence)
        divergence = self.agent.config.token_divergence(operator)

        @jax.jit
        def mean(params: types.Params, of_teacher: types.Params, rows: Any) -> jax.Array:
            losses, is_answer = answers.per_token(
                lambda logits, teacher_logits, labels: divergence(logits, teacher_logits),
                rows,
                (self.evaluator.model, params),
                (teacher.model, of_teacher),
                chunk=self.learning.chunk,
            )
            return distillation.sequence_loss(losses, is_answer, jnp.ones(len(is_answer)))[0]

        return mean

    @property
    def constants(self) -> types.Constants:
        """Frozen parameters that the learner and the policy read."""
        teacher = None if self.teacher is None else self.teacher.params
        return types.Constants(teacher=teacher, start=self.start)

    def measures(self, learner: types.LearnerState, steps: int) -> dict[str, float]:
        """Returns the divergence that is learnt by, from the teacher on held-out completions.

        It is in nats, a mean over tokens; nothing without a teacher.
        """
        if self.teacher is None:
            return {}
        acting = self.agent.actor_params(learner, loops.count(steps), True, self.constants)
        width = self.learning.max_prompt_length + self.learning.max_new_tokens
        rows = batches.pad(
            self.evaluator.test[: evaluation.ROWS], width, self.student.tokenizer.pad_id
        )
        rows = self.evaluator.spread(rows)
        distance = self._distance(acting["params"], self.teacher.params, rows)
        return {"teacher_distance": float(distance)}

    def remember(
        self, notes: dict[str, Any], steps: int, measured: Mapping[str, float]
    ) -> str | None:
        """Adds the distance to the notes; returns a warning, once, where it leaves its law."""
        notes.setdefault("distances", []).append([steps, measured["teacher_distance"]])
        text = power_law.warning(*zip(*notes["distances"], strict=True))
        if not text or notes.get("has_departed"):
            return None
        notes["has_departed"] = True
        return text

    def texts(self, learner: types.LearnerState, steps: int) -> list[dict[str, Any]]:
        """Greedy answers to the first few held-out examples, for a reader."""
        acting = self.agent.actor_params(learner, loops.count(steps), True, self.constants)
        lines = self.evaluator.greedy_lines(acting, jax.random.key(steps))
        return [{"greedy": True, **line} for line in lines]

    def finish(self, folder: pathlib.Path, learner: types.LearnerState) -> None:
        """Makes the front of a run of WARP."""
        if self.actor is not None and self.leaves_front:
            warp_front.finish(folder, self.actor, self.student, self.start, learner)

    def loop(
        self,
        seeds: Sequence[int],
        on_texts: OnTexts = lambda steps, texts: None,
        every: int = 1,
        abandons: Abandons = contextlib.nullcontext,
    ) -> loops.Loop:
        """Returns the loop of one seed.

        Of what its student samples, `every` learner steps have some texts shown.

        They are of the last batch of that interval that the student made, which the number of the
        step alone decides: a run that is resumed shows what the uninterrupted one did. `abandons`
        is as for `sequences.make`.
        """
        (seed,) = seeds
        if self.actor is None:
            source, evaluate = self.source(seed), self.evaluator.scores
            lines = self.evaluator.lines
        else:
            source, evaluate = self.actor.source(self.train, seed), self.actor.scores
            lines = self.actor.lines

        def on_sampled(step: int, rows: Any, examples: Any, scores: Any) -> None:
            if _is_last_sampled(source.sampling, step, every):
                on_texts(step + 1, [{"greedy": False, **x} for x in lines(rows, examples, scores)])

        return sequences.make(
            self.agent,
            source,
            seed,
            params=self.initial_params,
            constants=self.constants,
            evaluate=evaluate,
            placement=self.placement,
            abandons=abandons,
            on_sampled=on_sampled,
        )

    def source(self, seed: int) -> sequences.Source:
        """Returns batches of the data set and of the policy."""
        c, mixture = self.learning, self.agent.experience
        width = c.max_prompt_length + c.max_new_tokens
        is_mixed = 0 < mixture.student_fraction < 1 and mixture.mixing == "row"
        stored = batches.make(
            self.train,
            batches.Config(
                batch_size=c.batch_size,
                # Rows of both kinds stand in one batch; else a few lengths waste less.
                lengths=(width,) if is_mixed or c.pack else None,
                pack=c.pack,
                batches_per_sort=c.batches_per_sort,
                seed=seed,
            ),
            self.student.tokenizer.pad_id,
        )
        share = round(mixture.student_fraction * c.batch_size)
        sampler = completions.of_policy(self.agent.policy, self.evaluator.model, c.max_new_tokens)
        program = jax.jit(sampler.sequences)

        def num_sampled(step: int) -> int:
            if mixture.mixing == "row":
                return share
            coin = np.random.default_rng([seed, step]).random()  # In [0, 1).
            return c.batch_size if coin < mixture.student_fraction else 0

        def prompts(step: int, rows: int) -> list[data.Example]:
            drawn = batches.indices(
                step, num_items=stored.num_items, batch_size=c.batch_size, seed=seed
            )
            return [self.train[i] for i in drawn[-rows:].tolist()]

        def sample(acting: Any, examples: list[data.Example], key: types.Key) -> batches.Sequences:
            return program(acting, self.evaluator.spread(self.evaluator.prompts(examples)), key)

        shape = (c.batch_size, width)
        int_, bool_ = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (np.int32, np.bool_))
        lengths = jax.ShapeDtypeStruct(shape[:1], np.int32)
        return sequences.Source(
            num_rows=c.batch_size,
            example=batches.Sequences(int_, bool_, int_, int_, lengths),  # pyright: ignore[reportArgumentType]
            stored=lambda step, rows: jax.tree.map(lambda x: x[:rows], stored.sequences(step).data),
            sampling=sequences.Sampling(
                num_rows=num_sampled,
                prompts=prompts,
                sample=sample,
                score=self.evaluator.task_scores,
                max_age=mixture.max_age,
            ),
        )


def _is_last_sampled(sampling: sequences.Sampling | None, step: int, every: int) -> bool:
    """Returns whether nothing more is sampled in the interval of `every` steps that has `step`."""
    later = range(step + 1, (step // every + 1) * every)
    return sampling is not None and not any(sampling.samples_at(s) for s in later)


def setup(named: resolved.Resolved, home: pathlib.Path | None = None) -> Setup:
    """What a plan names; a run that goes on has its model and tokenizer in its folder, `home`.

    Raises:
      ValueError: for names that are none, a teacher too many or too few or of other tokens, and
        data that do not fit.
    """
    plan, config = named.plan, named.config
    entry = lm.ALGORITHMS[plan.agent]
    has_teacher = entry.has_teacher or (entry.may_distil and config.distillation_weight > 0)
    if has_teacher != bool(plan.teacher):
        needs = "needs --teacher" if has_teacher else "takes no --teacher"
        raise ValueError(f"{plan.agent} {needs} (a folder, or a run), got {plan.teacher!r}")
    mesh = sharding.make_mesh(plan.mesh) if plan.mesh else None
    if mesh is not None:
        sharding.check_batch(mesh, config.learning.batch_size)
    task = tasks.make(plan.environment, rule=named.rule)
    teacher = models.load(plan.teacher, mesh=mesh) if plan.teacher else None
    if home is not None:
        student = models.saved(home)
    else:
        student = student_of(plan, task, teacher, mesh)
    student = student.reading(plan.control_tokens)
    if teacher is not None:
        distillation.check_compatible(student.info, teacher.info)
    made, of_teacher = [student.model], {}
    if teacher is not None:
        made = shared_ids.shared([student.model, teacher.model])
        of_teacher = {"teacher_divergence": regularizers.named(teacher.divergence)}
    c = config.learning
    fitting = dataclasses.replace(limits(c, student.config), vocab_size=made[0].num_ids)
    train, train_report = task.examples("train", student.tokenizer, fitting)
    test, test_report = task.examples("test", student.tokenizer, fitting)

    def initial_params() -> types.Params:
        # A folder in which a second seed begins has none at hand.
        return (
            models.load(plan.model, mesh=mesh).params if student.params is None else student.params
        )

    found = Setup(
        agent=entry.make(*made, config=config, **of_teacher),
        spec=spec_of(student.config),
        student=student,
        teacher=teacher,
        train=train,
        reports={"train": train_report, "test": test_report},
        rule=named.rule,
        evaluator=evaluation.Evaluator(
            made[0], student.tokenizer, task, test, c, config.output_divergence, mesh
        ),
        initial_params=None if plan.model in gemma.PRESETS else initial_params,
        placement=sharding.placement(mesh, *(model.config for model in made)),
        eval_episodes=plan.eval_episodes if plan.eval_every else 0,
        leaves_front=entry.leaves_front,
        columns=("teacher_distance",) if teacher is not None else (),
    )
    found.evaluator.parts(1)  # Without an example there is nothing to show, now rather than later.
    if not entry.takes_reward:
        if plan.reward:
            raise ValueError(f"{plan.agent} takes no --reward, got {plan.reward!r}")
        return found
    plan.require_trust()
    return _acting(
        found, plan, rewards.parse(plan.reward, task, student.tokenizer, made[0].num_ids)
    )


def _acting(setup: Setup, plan: plans.Plan, reward: rewards.Reward) -> Setup:
    """The set-up of reinforcement learning from a supervised start."""
    if plan.model in gemma.PRESETS:
        raise ValueError(
            f"{plan.agent} starts from a supervised model, a folder or a run, and the preset "
            f"{plan.model} has learnt nothing: --model DIR"
        )
    if plan.mesh:
        raise ValueError(f"{plan.agent} runs on one device, got --mesh {plan.mesh}")
    if setup.leaves_front:
        setup.agent.config.check(plan.steps)
    start = models.load(plan.model)
    if start.divergence != "kl":
        raise ValueError(
            f"{plan.agent} is of models that sample by softmax, and {plan.model} was trained with "
            f"the operator of {start.divergence}"
        )

    on_policy: rlhf.OnPolicy = setup.agent.experience

    def initial_params() -> types.Params:
        return rlhf.with_value(start.params) if on_policy.has_value else start.params

    return dataclasses.replace(
        setup,
        initial_params=initial_params,
        actor=episodes.Actor(
            sampler=completions.of_policy(
                setup.agent.policy,
                setup.evaluator.model,
                setup.learning.max_new_tokens,
                on_policy.samples_per_prompt,
            ),
            evaluator=setup.evaluator,
            reward=reward,
            temperature=on_policy.temperature,
        ),
        start=start.params,
    )


def spec_of(config: gemma.Config) -> types.Spec:
    """Returns the spec of tokens, which are what a model observes and what it does."""
    return types.Spec(shape=(), dtype=np.int32, num_actions=config.vocab_size)


def limits(learning: tuning.Config, config: gemma.Config) -> data.Limits:
    """What examples must fit in."""
    return data.Limits(
        max_length=learning.max_prompt_length + learning.max_new_tokens,
        max_prompt_length=learning.max_prompt_length,
        overlong=learning.overlong,
        vocab_size=config.vocab_size,
    )


def student_of(
    plan: plans.Plan,
    task: tasks.Task,
    teacher: models.Checkpoint | None,
    mesh: sharding.Mesh | None,
) -> models.Checkpoint:
    """The model that a plan names, or a preset's shape, with its tokenizer.

    Raises:
      ValueError: if the plan names none, or changes the shape of one that was trained.
    """
    if not plan.model:
        raise ValueError(
            f"{plan.agent} needs --model: a folder, a run, or a preset made on the spot "
            f"({', '.join(gemma.PRESETS)})"
        )
    if plan.model not in gemma.PRESETS:
        trained = models.load(plan.model, mesh=mesh)
        shape = dataclasses.replace(
            settings.apply(trained.config, plan.model_flags),
            **{n: getattr(trained.config, n) for n in COMPUTE},
        )
        if plan.tokenizer:
            raise ValueError(f"--tokenizer goes with a preset; {plan.model} brings its own")
        if shape != trained.config:
            raise ValueError(
                f"--model-flag changes the shape of a preset; {plan.model} is as it was trained, "
                f"but for {' and '.join(COMPUTE)}"
            )
        return trained._replace(config=settings.apply(trained.config, plan.model_flags))
    if teacher is not None and plan.tokenizer:
        raise ValueError(f"--tokenizer goes with no teacher; {plan.teacher} brings its own")
    if teacher is not None:
        words = teacher.tokenizer
    elif plan.tokenizer:
        words = tokenizer.load(pathlib.Path(plan.tokenizer))
    else:
        words = tokenizer.train_bpe(task.texts("train"), NEW_VOCABULARY)
    preset = dataclasses.replace(
        gemma.PRESETS[plan.model],
        vocab_size=words.vocab_size,
        bos_id=words.bos_id,
        eos_ids=words.eos_ids,
        pad_id=words.pad_id,
    )
    shape = texts.with_all_ends(settings.apply(preset, plan.model_flags), words)
    return models.Checkpoint(shape, words, None)
