"""Building runs of language models: the student, its teacher or reward, and the data of a plan."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from kullback import lm
from kullback.core import regularizers, types
from kullback.experiments import plots
from kullback.experiments.limits import STEPS
from kullback.experiments.runs import (
    adapter_files,
    episodes,
    lessons,
    model_files,
    models,
    pairs,
    plans,
    pretrained,
    resolved,
    rewards,
    schedules,
    settings,
    text_work,
)
from kullback.experiments.runs.language import Setup
from kullback.experiments.runs.work import Epoch
from kullback.lm import (
    adapters,
    chat,
    completions,
    data,
    distillation,
    evaluation,
    gemma,
    quantisation,
    rollouts,
    sharding,
    shared_ids,
    tasks,
    terms,
    texts,
    tokenizer,
    tuning,
    value_network,
)

NEW_VOCABULARY = 512  # The most ids of a tokenizer that is trained on the task's texts.


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
    mesh = text_work.mesh_of(plan, config.learning)
    _check_frozen(named, has_teacher)
    task = tasks.make(plan.environment, rule=named.rule)
    if config.learning.lora:
        adapter_files.check_base(plan)
    student, teacher, decoders = _models(plan, task, home, mesh)
    c, num_ids = config.learning, decoders[0].num_ids
    fitting = dataclasses.replace(text_work.limits(c, student.config), vocab_size=num_ids)
    splits, answered = _splits(plan, task, student, fitting, named.rule)
    if home is None and any(data.is_conversation(x, student.tokenizer) for x in answered.train):
        student = student._replace(tokenizer=chat.with_template(student.tokenizer))

    make_agent = functools.partial(entry.make, *decoders)
    if teacher is not None:
        divergence = regularizers.named(teacher.divergence)
        make_agent = functools.partial(make_agent, teacher_divergence=divergence)
    epoch = None
    if plan.epochs:
        # Whatever the length of its schedule, an agent experiences the same.
        longest = dataclasses.replace(plan, steps=STEPS, epochs=0)
        experience = make_agent(config=schedules.planned(longest, config)).experience
        noun = "pairs" if entry.reads_pairs else "examples"
        epoch = _epoch(answered.train, c, experience, student.tokenizer.pad_id, noun)
        named = epoch.in_steps(named)
        plan, config = named.plan, named.config
    initial_params, start_sha256, frozen, base_sha256 = None, lambda: None, None, ""
    if c.lora:
        read = student if student.params is not None else models.load(plan.model, mesh=mesh)
        frozen = read.params
        if c.scheme:
            base_sha256 = model_files.fingerprint(frozen)
            frozen = quantisation.held(frozen, c.scheme)
        elif plan.frozen != "float32":
            narrow = read.frozen(plan.frozen)
            base_sha256, frozen = narrow.sha256, narrow.params
        student = student._replace(params=None)
    elif plan.model not in gemma.PRESETS:
        initial_params = _Initial(student.params, lambda: models.load(plan.model, mesh=mesh).params)
        if plan.num_seeds > 1:
            start_sha256 = initial_params.sha256
    agent = make_agent(config=config)
    evaluator = evaluation.Evaluator(
        adapters.adapted(decoders[0], c.lora),
        *(student.tokenizer, task, answered.test, c, config.output_divergence, mesh),
    )
    base = Setup(
        agent=agent,
        spec=text_work.spec_of(student.config),
        student=student._replace(params=None),
        teacher=teacher,
        splits=splits,
        begins_with=plan.model,
        lessons=lessons.Examples(agent=agent, evaluator=evaluator, train=answered.train),
        evaluator=evaluator,
        initial_params=initial_params,
        start_sha256=start_sha256,
        base=frozen,
        base_sha256=base_sha256,
        shared=sharding.placed(
            student.config,
            adapter_files.shared(student.config, c.lora, student.tokenizer, plan.seed, home),
            mesh,
        ),
        placement=sharding.placement(mesh, *(model.config for model in decoders)),
        eval_episodes=plan.eval_episodes if plan.eval_every else 0,
        leaves_front=entry.leaves_front,
        columns=("teacher_distance",) if teacher is not None else (),
        epoch=epoch,
    )
    evaluator.parts(1)  # Raises now, rather than at the first evaluation, without examples.
    if not entry.takes_reward:
        if plan.reward:
            raise ValueError(f"{plan.agent} takes no --reward, got {plan.reward!r}")
        if entry.reads_pairs:
            _require_start(plan)
            _require_softmax(plan, student)
            # What adapters start from is their base.
            start = initial_params.shown if initial_params is not None else lambda: frozen
            return pairs.with_pairs(base, plan, decoders[0], start, home)
        return base
    plan.require_trust()
    reward = rewards.parse(plan.reward, task, student.tokenizer, num_ids, plan.frozen, mesh)
    reward.check_references(map(base.evaluator.target, (*splits.train, *splits.test)))
    return _with_actor(base, plan, reward, student)


def _splits(
    plan: plans.Plan,
    task: tasks.Task,
    student: model_files.Checkpoint,
    fitting: data.Limits,
    rule: int,
) -> tuple[text_work.Splits[Any], text_work.Splits[data.Example]]:
    """Returns pairs or examples to learn from, and examples that are answered: these, or chosen."""
    if not lm.ALGORITHMS[plan.agent].reads_pairs:
        examples = text_work.read_splits(task.examples, student.tokenizer, fitting, rule)
        return examples, examples
    read = text_work.reader_of_pairs(plan, task)
    splits = text_work.read_splits(read, student.tokenizer, fitting, rule)
    return splits, pairs.chosen(splits)


def _check_frozen(named: resolved.Resolved, has_teacher: bool) -> None:
    """Raises ValueError if a plan has few bits for what there is not, or for what is learnt."""
    plan, c = named.plan, named.config.learning
    entry = lm.ALGORITHMS[plan.agent]
    if plan.frozen == "float32":
        return
    if not (has_teacher or entry.takes_reward or c.lora):
        raise ValueError(
            f"--frozen {plan.frozen} is of a teacher, a reference, a reward model or the base of "
            f"adapters, and this run of {plan.agent} has none"
        )
    if entry.leaves_front and not c.lora:
        raise ValueError(
            f"--frozen {plan.frozen} goes with adapters here (lora.rank): {plan.agent} merges its "
            "models with its start"
        )
    if c.lora and c.scheme:
        raise ValueError(
            f"--frozen {plan.frozen} and quantize both give the base of adapters a format: leave "
            "one out"
        )


def _models(
    plan: plans.Plan, task: tasks.Task, home: pathlib.Path | None, mesh: sharding.Mesh | None
) -> tuple[model_files.Checkpoint, model_files.Checkpoint | None, list[gemma.Model]]:
    """Returns student and teacher, and the models of both over the ids that they share."""
    teacher = models.load(plan.teacher, mesh=mesh) if plan.teacher else None
    student = model_files.saved(home) if home else student_of(plan, task, teacher, mesh)
    student = student.reading(plan.control_tokens)
    if teacher is None:
        return student, None, [student.model]
    teacher = teacher.frozen(plan.frozen)
    distillation.check_compatible(student.info, teacher.info)
    student = student._replace(notice=terms.joined(student.notice, teacher.notice))
    return student, teacher, shared_ids.shared([student.model, teacher.model])


@dataclasses.dataclass
class _Initial:
    """Parameters to begin with; those that were read are handed over, and not kept."""

    params: types.Params | None  # None: they are read when learning begins.
    read: Callable[[], types.Params | None]

    def __call__(self) -> types.Params:
        """Returns them; another seed of the run has them read anew."""
        params, self.params = self.params, None
        return self.read() if params is None else params

    def shown(self) -> types.Params | None:
        """Returns them without handing them over; they are read anew if they were."""
        return self.read() if self.params is None else self.params

    def sha256(self) -> str:
        """Returns their fingerprint; they are read for it if they were handed over."""
        return model_files.fingerprint(self.shown())


def _require_start(plan: plans.Plan) -> None:
    """Raises ValueError if a policy that keeps near its start would start from a preset."""
    if plan.model in gemma.PRESETS:
        raise ValueError(
            f"{plan.agent} starts from a supervised model, a folder or a run, and the preset "
            f"{plan.model} has learnt nothing: its random weights are drawn; --model DIR"
        )


def _require_softmax(plan: plans.Plan, start: model_files.Checkpoint) -> None:
    """Raises ValueError for a start that samples by another operator."""
    if start.divergence != "kl":
        raise ValueError(
            f"{plan.agent} is of models that sample by softmax, and {plan.model} was trained with "
            f"the operator of {start.divergence}"
        )


def _with_actor(
    base: Setup, plan: plans.Plan, reward: rewards.Reward, student: model_files.Checkpoint
) -> Setup:
    """Returns the set-up of reinforcement learning from a supervised start.

    That start is what the student was read as; a run that goes on reads it again.
    """
    _require_start(plan)
    if base.leaves_front:
        base.agent.config.check(plan.steps)
    start = student
    if base.base is not None:  # What adapters start from is their base.
        start = student._replace(params=base.base)
    elif student.params is None:
        start = models.load(plan.model, mesh=base.evaluator.mesh)
    reference, begin = start, lambda: start.params
    if base.base is None and plan.frozen != "float32":
        # It is another copy, and the policy's is handed over.
        reference, begin = start.frozen(plan.frozen), base.initial_params or begin
    _require_softmax(plan, start)
    on_policy: rollouts.OnPolicy = base.agent.experience
    if on_policy.ahead.lag and plan.mesh:
        raise ValueError(
            f"lag={on_policy.ahead.lag} does not go with --mesh {plan.mesh} yet: leave one out"
        )

    def initial_params() -> types.Params:
        return value_network.with_value(begin()) if on_policy.has_value else begin()

    actor = episodes.Actor(
        sampler=completions.of_policy(
            base.agent.policy,
            base.evaluator.model,
            base.learning.max_new_tokens,
            on_policy.samples_per_prompt,
        ),
        evaluator=base.evaluator,
        reward=reward,
        temperature=on_policy.temperature,
        draws=on_policy.draws,
        ahead=on_policy.ahead,
    )
    return dataclasses.replace(
        base,
        initial_params=initial_params if base.base is None else None,
        actor=actor,
        lessons=lessons.Prompts(actor=actor, train=base.splits.train),
        start=reference.params if base.base is None else None,
        start_sha256=lambda: reference.sha256 or None,
        axes=plots.REWARDED,
    )


def _epoch(
    train: Sequence[data.Example],
    c: tuning.Config,
    experience: tuning.Mixture | rollouts.OnPolicy,
    pad_id: int,
    noun: str,
) -> Epoch:
    """Returns a pass over the examples, or over their prompts if the policy answers all of them."""
    if isinstance(experience, rollouts.OnPolicy):
        return Epoch(len(train), "prompts", c.batch_size // experience.samples_per_prompt)
    noun = "packed rows" if c.pack else noun
    return Epoch(
        lessons.stored_batches(train, c, experience, pad_id, 0).num_items, noun, c.batch_size
    )


def student_of(
    plan: plans.Plan,
    task: tasks.Task,
    teacher: model_files.Checkpoint | None,
    mesh: sharding.Mesh | None,
) -> model_files.Checkpoint:
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
        if plan.tokenizer:
            raise ValueError(f"--tokenizer goes with a preset; {plan.model} brings its own")
        return _learns(models.load(plan.model, mesh=mesh, flags=plan.model_flags))
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
    return _learns(model_files.Checkpoint(shape, student_tokenizer, None))


def _learns(checkpoint: model_files.Checkpoint) -> model_files.Checkpoint:
    """Returns a model that is to learn.

    Raises:
      ValueError: if its weights are stored as those of one that does not.
    """
    if (storage := checkpoint.config.storage) != "float32":
        raise ValueError(
            f"what learns stays float32 in memory, got storage={storage}; --frozen {storage} is of "
            "what a run only reads"
        )
    return checkpoint
