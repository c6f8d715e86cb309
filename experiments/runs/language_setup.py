"""Building runs of language models: the student, its teacher or reward, and the data of a plan."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
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
    pairs,
    plans,
    resolved,
    rewards,
    schedules,
    staffing,
    starts,
    text_work,
    writing,
)
from kullback.experiments.runs.language import Setup
from kullback.experiments.runs.work import Epoch
from kullback.lm import (
    adapters,
    chat,
    completions,
    data,
    evaluation,
    gemma,
    quantisation,
    rollouts,
    sharding,
    tasks,
    tuning,
    value_network,
)


def setup(
    named: resolved.Resolved,
    home: pathlib.Path | None = None,
    staff: staffing.Staff = staffing.NOBODY,
) -> Setup:
    """Builds what a plan names.

    Args:
      named: the plan, resolved.
      home: of a run that goes on, which has its model and tokenizer there.
      staff: who writes the texts that are learnt from later.

    Raises:
      ValueError: for an unknown name, a teacher that is missing, not wanted or of another
        tokenizer, data that do not fit, and a cluster that is not there.
    """
    plan, config = named.plan, named.config
    ray = staff.joined()  # Before JAX has threads, as it may start processes.
    entry = lm.ALGORITHMS[plan.agent]
    has_teacher = entry.has_teacher or (entry.may_distil and config.distillation_weight > 0)
    if has_teacher != bool(plan.teacher):
        needs = "needs --teacher" if has_teacher else "takes no --teacher"
        raise ValueError(f"{plan.agent} {needs} (a folder, or a run), got {plan.teacher!r}")
    takes_reward = entry.takes_reward
    if plan.reward and not takes_reward:
        raise ValueError(f"{plan.agent} takes no --reward, got {plan.reward!r}")
    text_work.check_media(plan, config.learning)
    mesh = text_work.mesh_of(plan, config.learning)
    _check_frozen(named, has_teacher)
    task = tasks.make(plan.environment, rule=named.rule)
    text_work.check_mixture(plan, task, config.learning)
    if config.learning.lora:
        adapter_files.check_base(plan)
    c = config.learning
    begun = starts.of_plan(plan, task, home, mesh, learns_projector=c.learns_projector)
    student, teacher, decoders, sight = begun
    shapes = [student.shape(projector=c.learns_projector)]
    shapes += [] if teacher is None else [teacher.shape()]
    num_ids = decoders[0].num_ids
    fitting = dataclasses.replace(text_work.limits(c, student.config), vocab_size=num_ids)
    splits, answered = _splits(plan, task, student, fitting, named.rule)
    if home is None and any(data.is_conversation(x, student.tokenizer) for x in answered.train):
        templated = chat.with_template(student.tokenizer, plan.modality)
        student = student._replace(tokenizer=templated)
    model = adapters.adapted(decoders[0], c.lora)
    evaluator = evaluation.Evaluator(
        *(model, student.tokenizer, task, answered.test, c, config.output_divergence, mesh)
    )
    shown = (*answered.train, *answered.test) if student.sense is not None else ()
    if student.sense is not None:
        text_work.require_media(plan, answered.train)
        evaluator = evaluator.sensing(student.sense, shown)
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
        epoch = _epoch(answered.train, evaluator, experience, noun)
        named = epoch.in_steps(named)
        plan, config = named.plan, named.config
    read_again = functools.partial(
        starts.read_again, plan, mesh, learns_projector=c.learns_projector
    )
    initial_params, start_sha256, frozen, base_sha256 = None, lambda: None, None, ""
    if c.lora:
        read = student if student.params is not None else read_again()
        frozen, base_sha256 = _base(plan, c, read)
        student = student._replace(params=None)
    elif plan.model not in gemma.PRESETS:
        initial_params = starts.Initial(student.params, lambda: read_again().params)
        if plan.num_seeds > 1:
            start_sha256 = initial_params.sha256
    agent = make_agent(config=config)
    written = writing.Policy(
        algorithm=plan.agent,
        config=config,
        shapes=tuple(shapes),
        teacher_divergence="" if teacher is None else teacher.divergence,
    )
    if plan.mesh:
        agent.experience.ahead.check_mesh(f"--mesh {plan.mesh}")
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
        sight=sight,
        shown=shown,
        placement=sharding.placement(mesh, *(model.config for model in decoders)),
        eval_episodes=plan.eval_episodes if plan.eval_every else 0,
        leaves_front=entry.leaves_front,
        columns=("teacher_distance",) if teacher is not None else (),
        epoch=epoch,
        writers=staffing.writers(staff, ray, written),
    )
    evaluator.parts(1)  # Raises now, rather than at the first evaluation, without examples.
    if entry.reads_pairs:
        _require_start(plan)
        _require_softmax(plan, student)
        # What adapters start from is their base.
        start = initial_params.shown if initial_params is not None else lambda: frozen
        return pairs.with_pairs(base, plan, decoders[0], start, home)
    return _with_actor(base, plan, _reward(base, plan, num_ids), student) if takes_reward else base


def _reward(base: Setup, plan: plans.Plan, num_ids: int) -> rewards.Reward:
    """Returns the reward that a plan names, of texts of so many ids."""
    plan.require_trust()
    task, tokenizer, mesh = base.evaluator.task, base.evaluator.tokenizer, base.evaluator.mesh
    images = None if base.sight is None else base.sight.images
    reward = rewards.parse(plan.reward, task, tokenizer, num_ids, plan.frozen, mesh, images)
    reward.check_references(map(base.evaluator.target, (*base.splits.train, *base.splits.test)))
    return reward


def _base(
    plan: plans.Plan, c: tuning.Config, read: model_files.Checkpoint
) -> tuple[types.Params, str]:
    """Returns the base of adapters in its format, and its hash before it got one; "" without."""
    if c.scheme:
        return quantisation.held(read.params, c.scheme), model_files.fingerprint(read.params)
    if plan.frozen == "float32":
        return read.params, ""
    narrow = read.frozen(plan.frozen)
    return narrow.params, narrow.sha256


def _splits(
    plan: plans.Plan,
    task: tasks.Task,
    student: model_files.Checkpoint,
    fitting: data.Limits,
    rule: int,
) -> tuple[text_work.Splits[Any], text_work.Splits[data.Example]]:
    """Returns pairs or examples to learn from, and examples that are answered: these, or chosen."""
    how = student.tokenizer, fitting, rule, student.sense
    if not lm.ALGORITHMS[plan.agent].reads_pairs:
        examples = text_work.read_splits(task.examples, *how)
        return examples, examples
    splits = text_work.read_splits(text_work.reader_of_pairs(plan, task), *how)
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
        learns = base.learning.learns_projector
        start = starts.read_again(plan, base.evaluator.mesh, learns_projector=learns)
    reference, begin = start, lambda: start.params
    if base.base is None and plan.frozen != "float32":
        # It is another copy, and the policy's is handed over.
        reference, begin = start.frozen(plan.frozen), base.initial_params or begin
    _require_softmax(plan, start)
    on_policy: rollouts.OnPolicy = base.agent.experience

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
        start=base.whole(reference.params) if base.base is None else None,
        start_sha256=lambda: reference.sha256 or None,
        axes=plots.REWARDED,
    )


def _epoch(
    train: Sequence[data.Example],
    evaluator: evaluation.Evaluator,
    experience: tuning.Mixture | rollouts.OnPolicy,
    noun: str,
) -> Epoch:
    """Returns a pass over the examples, or over their prompts if the policy answers all of them."""
    c = evaluator.learning
    if isinstance(experience, rollouts.OnPolicy):
        return Epoch(len(train), "prompts", c.batch_size // experience.samples_per_prompt)
    noun = "packed rows" if c.pack else noun
    return Epoch(
        lessons.stored_batches(train, experience, evaluator, 0).num_items, noun, c.batch_size
    )
