"""Runs of language models: the model, tokenizer, data and loop that a plan names."""

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
from kullback.core import loops, platform, regularizers, sequences, trees, types
from kullback.experiments import plots
from kullback.experiments.evaluate import warp_front
from kullback.experiments.limits import STEPS
from kullback.experiments.runs import (
    episodes,
    models,
    plans,
    pretrained,
    resolved,
    rewards,
    schedules,
    settings,
)
from kullback.experiments.runs.work import Abandons, Epoch, OnTexts, Work
from kullback.lm import (
    answers,
    batches,
    chat,
    completions,
    data,
    distillation,
    evaluation,
    folder_meaning,
    gemma,
    kl_excursions,
    memory,
    power_law,
    rlhf,
    sharding,
    shared_ids,
    tasks,
    terms,
    texts,
    tokenizer,
    tuning,
    value_network,
)

COMPUTE = folder_meaning.COMPUTE
NEW_VOCABULARY = 512  # The most ids of a tokenizer that is trained on the task's texts.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup(Work):
    """The agent, models, data and evaluator of a run of a language model."""

    agent: types.Agent
    spec: types.Spec
    student: models.Checkpoint
    teacher: models.Checkpoint | None
    train: list[data.Example]
    reports: dict[str, data.Report]
    rule: int  # The rule by which files are split, see `lm/splits.py`.
    begins_with: str  # The plan's model.
    evaluator: evaluation.Evaluator
    # Parameters to begin with; None: those that the learner draws.
    initial_params: Callable[[], types.Params] | None
    placement: sharding.Placement | None = None  # Over a mesh; None is one device.
    # For reinforcement learning: the actor, and the frozen supervised start.
    actor: episodes.Actor | None = None
    start: types.Params | None = None
    # The hash of the model that later seeds read again; None if no seed does.
    start_sha256: Callable[[], str | None] = lambda: None
    eval_episodes: int = 0  # The plan's held-out examples of an evaluation; 0: no evaluations.
    leaves_front: bool = False  # Whether it ends with WARP's front.
    axes: plots.Axes = plots.TEXTS
    has_texts: bool = True
    seeds_together: bool = False
    columns: Sequence[str] = ()
    epoch: Epoch | None = None

    def notes(self) -> Iterator[str]:
        """Yields lines about ends of text, data, evaluated examples, and the memory of learning."""
        if (ends := models.ends_notice(self.student)) is not None:
            yield ends
        yield from data.notices(self.reports)
        kept = self.evaluator.kept(self.eval_episodes)
        if kept != self.eval_episodes:
            yield (
                f"an evaluation is of the {kept} examples that are held out, each of them once, "
                f"where --eval-episodes asks for {self.eval_episodes}"
            )
        if self.placement is None:
            yield f"memory: {self._needs(self._setting)}"
        num_ids = self.evaluator.model.num_ids
        if (num_rows := self.student.config.vocab_size) > num_ids:
            yield (
                f"of the {num_rows:,} rows of the model's table {num_rows - num_ids:,} are beyond "
                f"the {num_ids:,} ids that are compared: they are padding, and have no probability"
            )

    def beginning(self) -> Iterator[str]:
        """Yields a line if the weights are drawn."""
        if self.initial_params is None:
            yield models.preset_notice(self.begins_with)

    @property
    def learning(self) -> Any:
        """Settings that all learners of language models share."""
        return self.agent.config.learning

    @property
    def _setting(self) -> memory.Setting:
        """Settings that decide how much memory a learner step takes."""
        c = self.learning
        has_value = self.actor is not None and self.agent.experience.has_value
        return memory.Setting(
            rows=c.batch_size,
            width=c.max_prompt_length + c.max_new_tokens,
            micro_batches=c.micro_batches,
            chunk=c.chunk,
            remat=self.student.config.remat,
            networks=1 + has_value,
        )

    @property
    def _frozen(self) -> Any:
        """Parameters that are read only, and are in memory already: a reward model's, too."""
        return self.constants, () if self.actor is None else self.actor.reward.params

    def _needs(self, setting: memory.Setting) -> memory.Needs:
        state = jax.eval_shape(self.agent.learner.init, jax.random.key(0))
        return memory.of_learning(self.student.config, state, self._frozen, setting)

    def check(self) -> None:
        """Raises ValueError if a learner step does not fit into memory."""
        if self.placement is None:
            free = platform.available_memory() + trees.num_bytes(self._frozen)
            memory.require(self._needs, self._setting, free)

    def details(self) -> dict[str, Any]:
        """Returns hashes of frozen models and reports on the data, for config.json."""
        teacher = None if self.teacher is None else models.fingerprint(self.teacher.params)
        start = self.start_sha256() if self.start is None else models.fingerprint(self.start)
        return {
            "loop": "host",
            "teacher_sha256": teacher,
            **({} if start is None else {"start_sha256": start}),
            **models.origins(model=self.student, teacher=self.teacher),
            "data": data_details(self.rule, self.reports),
        }

    def save(self, folder: pathlib.Path) -> None:
        """Writes model and tokenizer, without parameters, beside config.json."""
        models.save(self.student, folder)

    @functools.cached_property
    def _distance(self) -> Callable[..., jax.Array]:
        teacher = self.teacher
        if teacher is None:
            raise ValueError("no teacher to be distant from")
        divergence = self.agent.config.token_divergence(regularizers.named(teacher.divergence))

        @jax.jit
        def mean(params: types.Params, teacher_params: types.Params, padded: Any) -> jax.Array:
            losses, is_answer = answers.per_token(
                lambda logits, teacher_logits, labels: divergence(logits, teacher_logits),
                padded,
                (self.evaluator.model, params),
                (teacher.model, teacher_params),
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
        """Returns the loss's divergence from the teacher on held-out completions.

        It is in nats, a mean over tokens. Without a teacher there is none.
        """
        if self.teacher is None:
            return {}
        acting = self.agent.actor_params(learner, loops.count(steps), True, self.constants)
        width = self.learning.max_prompt_length + self.learning.max_new_tokens
        examples = self.evaluator.test[: evaluation.ROWS]
        padded = batches.pad(examples, width, self.student.tokenizer.pad_id)
        padded = self.evaluator.spread(padded)
        distance = self._distance(acting["params"], self.teacher.params, padded)
        return {"teacher_distance": float(distance)}

    def remember(
        self, notes: dict[str, Any], steps: int, measured: Mapping[str, float]
    ) -> str | None:
        """Adds the distance to the notes; returns a warning, once, if it leaves its power law."""
        notes.setdefault("distances", []).append([steps, measured["teacher_distance"]])
        warning = power_law.warning(*zip(*notes["distances"], strict=True))
        if not warning or notes.get("has_departed"):
            return None
        notes["has_departed"] = True
        return warning

    def watch(
        self, notes: dict[str, Any], steps: int, row: Mapping[str, float]
    ) -> tuple[dict[str, float], str | None]:
        """Adds `kl_runaway` to a row of reinforcement learning; warns where an excursion begins."""
        if self.actor is None:
            return {}, None
        name, weight = self.agent.config.penalty
        remedy = (
            f"in another run, lower learning_rate={self.learning.learning_rate:g} or raise "
            f"{name}={weight:g}"
        )
        return kl_excursions.watch(notes, steps, row, remedy)

    def texts(self, learner: types.LearnerState, steps: int) -> list[dict[str, Any]]:
        """Returns greedy answers to the first few held-out examples, for a reader."""
        acting = self.agent.actor_params(learner, loops.count(steps), True, self.constants)
        lines = self.evaluator.greedy_lines(acting, jax.random.key(steps))
        return [{"greedy": True, **line} for line in lines]

    def finish(self, folder: pathlib.Path, learner: types.LearnerState) -> None:
        """Writes the front of a run of WARP."""
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

        In each interval of `every` learner steps, `on_texts` receives some texts of the last batch
        that the student samples. Which batch that is depends on the step's number alone, so that a
        resumed run shows the same texts. `abandons` is as for `sequences.make`.
        """
        (seed,) = seeds
        if self.actor is None:
            source, evaluate = self.source(seed), self.evaluator.scores
            lines = self.evaluator.lines
        else:
            source, evaluate = self.actor.source(self.train, seed), self.actor.scores
            lines = self.actor.lines

        def on_sampled(step: int, sampled: Any, examples: Any, scores: Any) -> None:
            if _is_last_sampled(source.sampling, step, every):
                texts = [{"greedy": False, **x} for x in lines(sampled, examples, scores)]
                on_texts(step + 1, texts)

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
        """Returns batches of the data set, and of sequences that the policy samples."""
        c, mixture = self.learning, self.agent.experience
        stored = _stored(self.train, c, mixture, self.student.tokenizer.pad_id, seed)
        share = round(mixture.student_fraction * c.batch_size)
        sampler = completions.of_policy(self.agent.policy, self.evaluator.model, c.max_new_tokens)
        program = completions.compiled(sampler.sequences)

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

        return sequences.Source(
            num_rows=c.batch_size,
            example=episodes.sequence_shapes(c.batch_size, c.max_prompt_length + c.max_new_tokens),
            stored=lambda step, rows: jax.tree.map(lambda x: x[:rows], stored.sequences(step).data),
            sampling=sequences.Sampling(
                num_rows=num_sampled,
                prompts=prompts,
                sample=sample,
                score=self.evaluator.task_scores,
                max_age=mixture.max_age,
            ),
        )


def _stored(
    train: Sequence[data.Example], c: tuning.Config, mixture: tuning.Mixture, pad_id: int, seed: int
) -> batches.Sampler:
    """Returns batches of the data set."""
    width = c.max_prompt_length + c.max_new_tokens
    is_mixed = 0 < mixture.student_fraction < 1 and mixture.mixing == "row"
    config = batches.Config(
        batch_size=c.batch_size,
        # A mixed batch has one width; else several widths need less padding.
        lengths=(width,) if is_mixed or c.pack else None,
        pack=c.pack,
        batches_per_sort=c.batches_per_sort,
        seed=seed,
    )
    return batches.make(train, config, pad_id)


def _epoch(
    train: Sequence[data.Example],
    c: tuning.Config,
    experience: tuning.Mixture | rlhf.OnPolicy,
    pad_id: int,
) -> Epoch:
    """Returns a pass over the examples, or over their prompts if the policy answers all of them."""
    if isinstance(experience, rlhf.OnPolicy):
        return Epoch(len(train), "prompts", c.batch_size // experience.samples_per_prompt)
    noun = "packed rows" if c.pack else "examples"
    return Epoch(_stored(train, c, experience, pad_id, 0).num_items, noun, c.batch_size)


def _is_last_sampled(sampling: sequences.Sampling | None, step: int, every: int) -> bool:
    """Returns whether `step` is the last to sample in its interval of `every` steps."""
    later = range(step + 1, (step // every + 1) * every)
    return sampling is not None and not any(sampling.samples_at(s) for s in later)


def setup(named: resolved.Resolved, home: pathlib.Path | None = None) -> Setup:
    """Builds what a plan names; a run that goes on has its model and tokenizer in `home`.

    Raises:
      ValueError: for an unknown name, a teacher that is missing, not wanted or of another
        tokenizer, and data that do not fit.
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
        student = student._replace(notice=terms.joined(student.notice, teacher.notice))
        distillation.check_compatible(student.info, teacher.info)
    decoders, teacher_options = [student.model], {}  # The student's, and the teacher's if any.
    if teacher is not None:
        decoders = shared_ids.shared([student.model, teacher.model])
        teacher_options = {"teacher_divergence": regularizers.named(teacher.divergence)}
    c, num_ids = config.learning, decoders[0].num_ids
    fitting = dataclasses.replace(limits(c, student.config), vocab_size=num_ids)
    train, train_report = task.examples("train", student.tokenizer, fitting)
    test, test_report = task.examples("test", student.tokenizer, fitting)
    if home is None and any(data.is_conversation(x, student.tokenizer) for x in train):
        student = student._replace(tokenizer=chat.with_template(student.tokenizer))

    make_agent = functools.partial(entry.make, *decoders, **teacher_options)
    epoch = None
    if plan.epochs:
        # Whatever the length of its schedule, an agent experiences the same.
        longest = dataclasses.replace(plan, steps=STEPS, epochs=0)
        experience = make_agent(config=schedules.planned(longest, config)).experience
        epoch = _epoch(train, c, experience, student.tokenizer.pad_id)
        named = epoch.in_steps(named)
        plan, config = named.plan, named.config
    initial_params, start_sha256 = None, lambda: None
    if plan.model not in gemma.PRESETS:
        initial_params = _Initial(student.params, lambda: models.load(plan.model, mesh=mesh).params)
        if plan.num_seeds > 1:
            start_sha256 = initial_params.sha256
    base = Setup(
        agent=make_agent(config=config),
        spec=spec_of(student.config),
        student=student._replace(params=None),
        teacher=teacher,
        train=train,
        reports={"train": train_report, "test": test_report},
        rule=named.rule,
        begins_with=plan.model,
        evaluator=evaluation.Evaluator(
            decoders[0], student.tokenizer, task, test, c, config.output_divergence, mesh
        ),
        initial_params=initial_params,
        start_sha256=start_sha256,
        placement=sharding.placement(mesh, *(model.config for model in decoders)),
        eval_episodes=plan.eval_episodes if plan.eval_every else 0,
        leaves_front=entry.leaves_front,
        columns=("teacher_distance",) if teacher is not None else (),
        epoch=epoch,
    )
    base.evaluator.parts(1)  # Raises now, rather than at the first evaluation, without examples.
    if not entry.takes_reward:
        if plan.reward:
            raise ValueError(f"{plan.agent} takes no --reward, got {plan.reward!r}")
        return base
    plan.require_trust()
    reward = rewards.parse(plan.reward, task, student.tokenizer, num_ids)
    return _with_actor(base, plan, reward, student)


@dataclasses.dataclass
class _Initial:
    """Parameters to begin with; those that were read are handed over, and not kept."""

    params: types.Params | None  # None: they are read when learning begins.
    read: Callable[[], types.Params | None]

    def __call__(self) -> types.Params:
        """Returns them; another seed of the run has them read anew."""
        params, self.params = self.params, None
        return self.read() if params is None else params

    def sha256(self) -> str:
        """Returns their fingerprint; they are read for it if they were handed over."""
        return models.fingerprint(self.read() if self.params is None else self.params)


def _with_actor(
    base: Setup, plan: plans.Plan, reward: rewards.Reward, student: models.Checkpoint
) -> Setup:
    """Returns the set-up of reinforcement learning from a supervised start.

    That start is what the student was read as; a run that goes on reads it again.
    """
    if plan.model in gemma.PRESETS:
        raise ValueError(
            f"{plan.agent} starts from a supervised model, a folder or a run, and the preset "
            f"{plan.model} has learnt nothing: its random weights are drawn; --model DIR"
        )
    if plan.mesh:
        raise ValueError(f"{plan.agent} runs on one device, got --mesh {plan.mesh}")
    if base.leaves_front:
        base.agent.config.check(plan.steps)
    start = models.load(plan.model) if student.params is None else student
    if start.divergence != "kl":
        raise ValueError(
            f"{plan.agent} is of models that sample by softmax, and {plan.model} was trained with "
            f"the operator of {start.divergence}"
        )

    on_policy: rlhf.OnPolicy = base.agent.experience

    def initial_params() -> types.Params:
        return value_network.with_value(start.params) if on_policy.has_value else start.params

    return dataclasses.replace(
        base,
        initial_params=initial_params,
        actor=episodes.Actor(
            sampler=completions.of_policy(
                base.agent.policy,
                base.evaluator.model,
                base.learning.max_new_tokens,
                on_policy.samples_per_prompt,
            ),
            evaluator=base.evaluator,
            reward=reward,
            temperature=on_policy.temperature,
        ),
        start=start.params,
        axes=plots.REWARDED,
    )


def spec_of(config: gemma.Config) -> types.Spec:
    """Returns the spec of tokens, which a model observes and which are its actions."""
    return types.Spec(shape=(), dtype=np.int32, num_actions=config.vocab_size)


def data_details(rule: int, reports: Mapping[str, data.Report]) -> dict[str, Any]:
    """Returns what config.json says of a run's data, by split."""
    return {"rule": rule, **{split: report._asdict() for split, report in reports.items()}}


def limits(learning: tuning.Config, config: gemma.Config) -> data.Limits:
    """Returns the lengths that examples must fit."""
    return data.Limits(
        max_length=learning.max_prompt_length + learning.max_new_tokens,
        max_prompt_length=learning.max_prompt_length,
        overlong=learning.overlong,
        unusable=learning.unusable,
        vocab_size=config.vocab_size,
    )


def student_of(
    plan: plans.Plan,
    task: tasks.Task,
    teacher: models.Checkpoint | None,
    mesh: sharding.Mesh | None,
) -> models.Checkpoint:
    """Returns the model that a plan names, or a preset's shape, with its tokenizer.

    Raises:
      ValueError: if the plan names none, or changes the shape of a trained model.
    """
    if not plan.model:
        raise ValueError(
            f"{plan.agent} needs --model: a folder, a .gguf file, a run, pretrained:NAME "
            f"({', '.join(pretrained.MODELS)}), or a preset whose weights are drawn "
            f"({', '.join(gemma.PRESETS)})"
        )
    if plan.model not in gemma.PRESETS:
        trained = models.load(plan.model, mesh=mesh)
        if plan.tokenizer:
            raise ValueError(f"--tokenizer goes with a preset; {plan.model} brings its own")
        return trained.computing(plan.model_flags, plan.model)
    if teacher is not None and plan.tokenizer:
        raise ValueError(f"--tokenizer goes with no teacher; {plan.teacher} brings its own")
    if teacher is not None:
        student_tokenizer = teacher.tokenizer
    elif plan.tokenizer:
        student_tokenizer = models.tokenizer_of(plan.tokenizer)
    else:
        student_tokenizer = tokenizer.train_bpe(task.texts("train"), NEW_VOCABULARY)
    preset = dataclasses.replace(
        gemma.PRESETS[plan.model],
        vocab_size=student_tokenizer.vocab_size,
        bos_id=student_tokenizer.bos_id,
        eos_ids=student_tokenizer.eos_ids,
        pad_id=student_tokenizer.pad_id,
    )
    shape = texts.with_all_ends(settings.apply(preset, plan.model_flags), student_tokenizer)
    return models.Checkpoint(shape, student_tokenizer, None)
