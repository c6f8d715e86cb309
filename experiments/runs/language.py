"""Runs of language models: the loop of a student, what it is evaluated by, and what is said of it.

`language_setup.py` builds them.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kullback.core import loops, posts, regularizers, sequences, trees, types
from kullback.experiments.evaluate import warp_front
from kullback.experiments.runs import episodes, model_files, sights, staffing
from kullback.experiments.runs.lessons import Lessons
from kullback.experiments.runs.text_work import Splits, TextWork
from kullback.experiments.runs.work import Abandons, OnTexts
from kullback.lm import (
    answers,
    batches,
    data,
    distillation,
    evaluation,
    kl_excursions,
    lora,
    memory,
    narrow_weights,
    power_law,
    quantisation,
    rollouts,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup(TextWork):
    """The agent, models, data and evaluator of a run of a language model."""

    splits: Splits[Any]
    lessons: Lessons
    teacher: model_files.Checkpoint | None
    evaluator: evaluation.Evaluator
    # Parameters to begin with; None: those that the learner draws.
    initial_params: Callable[[], types.Params] | None
    # For reinforcement learning: the actor, and the frozen supervised start.
    actor: episodes.Actor | None = None
    start: types.Params | None = None
    eval_episodes: int = 0  # The plan's held-out examples of an evaluation; 0: no evaluations.
    leaves_front: bool = False  # Whether it ends with WARP's front.
    # Frozen parameters -> who writes the texts that are learnt from later; None: threads.
    writers: Callable[[types.Constants], posts.Workers] | None = None

    def notes(self) -> Iterator[str]:
        """Yields lines about ends of text, data, evaluated examples, and the memory of learning."""
        if (ends := model_files.ends_notice(self.student)) is not None:
            yield ends
        yield from data.notices(self.splits.reports)
        kept = self.evaluator.kept(self.eval_episodes)
        if kept != self.eval_episodes:
            yield (
                f"an evaluation is of the {kept} examples that are held out, each of them once, "
                f"where --eval-episodes asks for {self.eval_episodes}"
            )
        if self.placement is None:
            yield f"memory: {self.needs(self.setting)}"
        num_ids = self.evaluator.model.num_ids
        if (num_rows := self.student.config.vocab_size) > num_ids:
            yield (
                f"of the {num_rows:,} rows of the model's table {num_rows - num_ids:,} are beyond "
                f"the {num_ids:,} ids that are compared: they are padding, and have no probability"
            )

    @property
    def setting(self) -> memory.Setting:
        """Settings that decide how much memory a learner step takes."""
        c = self.learning
        setting = dataclasses.replace(super().setting, per_row=self.lessons.per_row)
        if self.lessons.shares_prompts:
            return self._sharing(setting, setting.per_row)
        lag = self.agent.experience.ahead.lag
        setting = dataclasses.replace(setting, versions=lag + 1 if lag else 0)
        if self.actor is None:
            return setting
        experience: rollouts.OnPolicy = self.agent.experience
        width = batches.static_lengths(c.max_prompt_length, c.widths)[-1] + c.max_new_tokens
        setting = dataclasses.replace(setting, width=width)
        if learnt := experience.learnt_per_prompt:
            prompts = setting.rows // experience.samples_per_prompt
            setting = dataclasses.replace(setting, rows=prompts, per_row=learnt)
        if experience.shares_prompts:
            setting = self._sharing(setting, learnt or experience.samples_per_prompt)
        return dataclasses.replace(setting, networks=1 + experience.has_value)

    def _sharing(self, setting: memory.Setting, texts: int) -> memory.Setting:
        """Returns the setting of rows that have so many texts of a prompt each."""
        width = setting.width + (texts - 1) * self.learning.max_new_tokens
        rows = setting.rows * setting.per_row // texts
        return dataclasses.replace(setting, rows=rows, width=width, per_row=1)

    def details(self) -> dict[str, Any]:
        """Returns hashes of frozen models and reports on the data, for config.json."""
        teacher = None if self.teacher is None else self.teacher.fingerprint
        mixed = self.evaluator.task.mixed
        start = self.start_sha256()
        if start is None and self.start is not None:
            start = model_files.fingerprint(self.start)
        return {
            "loop": "host",
            "teacher_sha256": teacher,
            **({} if start is None else {"start_sha256": start}),
            **self.base_details(),
            **model_files.origins(model=self.student, teacher=self.teacher),
            "data": self.splits.details(),
            **({} if mixed is None else {"mixture_sha256": mixed.fingerprint}),
            **self.lessons.details(),
        }

    def save(self, folder: pathlib.Path) -> None:
        """Writes the model's shape and tokenizer, and what its data have, beside config.json."""
        super().save(folder)
        self.lessons.save(folder)

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
        return super().constants._replace(teacher=teacher, start=self.start)

    @property
    def frozen(self) -> Any:
        """Parameters that are read only, and are in memory already: a reward model's, too."""
        reward = () if self.actor is None else self.actor.reward.params
        return self.constants, self.encoder, reward

    def measures(self, learner: types.LearnerState, steps: int) -> dict[str, float]:
        """Returns the loss's divergence from the teacher on held-out completions.

        It is in nats, a mean over tokens. Without a teacher there is none.
        """
        if self.teacher is None:
            return {}
        acting = self.acting(learner, steps)
        examples = self.evaluator.test[: evaluation.ROWS]
        rows = self.evaluator.rows(examples)
        distance = self._distance(acting["params"], self.teacher.params, rows)
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
        lines = self.evaluator.greedy_lines(self.acting(learner, steps), jax.random.key(steps))
        return [{"greedy": True, **line} for line in lines]

    def keep(self, folder: pathlib.Path) -> None:
        """Records what servers say of texts."""
        if self.actor is not None:
            self.actor.reward.keep(folder)

    def finish(self, folder: pathlib.Path, learner: types.LearnerState) -> None:
        """Writes the front of a run of WARP."""
        if self.actor is None or not self.leaves_front:
            return
        start, merged = self.start, learner.aux.merged
        settings, scheme = self.learning.lora, self.learning.scheme
        if settings:  # It begins with updates of 0.
            start = jax.tree.map(jnp.zeros_like, merged)
        elif self.projector:
            start, _ = sights.apart(start)

        def acts_by(learnt: types.Params) -> types.Params:
            state = learner._replace(params=learnt)
            return self.acting(state, int(learner.steps))["params"]

        def parameters() -> types.Params:
            if not settings:
                return self.whole(quantisation.held(merged, scheme) if scheme else merged)
            factors = trees.joined(self.shared, merged)
            base = narrow_weights.whole(self.base)
            return self.whole(lora.merged(self.student.config, settings, base, factors))

        ends, steps = warp_front.Ends(start, merged, acts_by), int(learner.steps)
        warp_front.finish(folder, self.actor, self.student, ends, parameters, steps)

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
        source, lines = self.lessons.source(seed), self.lessons.lines

        def on_sampled(step: int, sampled: Any, examples: Any, scores: Any) -> None:
            if _is_last_sampled(source.sampling, step, every):
                texts = [{"greedy": False, **x} for x in lines(sampled, examples, scores)]
                on_texts(step + 1, texts)

        constants, more = self.constants, {}
        if self.writers is not None:
            more = {"workers": self.writers(constants), "tell": staffing.tell}
        return sequences.make(
            self.agent,
            source,
            seed,
            params=self.initial_params,
            constants=constants,
            evaluate=self.lessons.scores,
            placement=self.placement,
            abandons=abandons,
            on_sampled=on_sampled,
            **more,
        )


def _is_last_sampled(sampling: sequences.Sampling | None, step: int, every: int) -> bool:
    """Returns whether `step` is the last to sample in its interval of `every` steps."""
    later = range(step + 1, (step // every + 1) * every)
    return sampling is not None and not any(sampling.samples_at(s) for s in later)
