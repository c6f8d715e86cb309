"""Runs of reward models: pairs of answers, a decoder with a head, and one loop a seed.

A run of `warm` has a member a seed, all of which begin with one head; see reward_models.py.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from kullback import lm
from kullback.core import checkpoints, loops, sequences, types
from kullback.experiments import plots
from kullback.experiments.runs import language, models, opened, plans, resolved, reward_models
from kullback.experiments.runs.work import Abandons, OnTexts, Work
from kullback.lm import batches, data, gemma, preferences, reward_model, tasks, warm

SHOWN = 4  # Pairs that are written down.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup(Work):
    """All that a run of reward models is made of."""

    spec: types.Spec
    agent: types.Agent  # With the configuration of the whole run.
    member: Callable[[int], types.Agent]  # Seed -> what it learns by.
    start: Callable[[int], types.Params]  # Seed -> where it begins to learn.
    student: models.Checkpoint  # The decoder and its tokenizer, without parameters.
    train: list[preferences.Pair]
    test: list[preferences.Pair]
    reports: dict[str, data.Report]
    rule: int  # By which files are split, see `lm/splits.py`.
    num_swapped: int  # Pairs of `train` whose label is wrong on purpose.
    members: dict[int, warm.Member]  # By seed, of a population; else empty.
    # Of what seeds that begin later read again; None where there is no such seed, or no model.
    start_sha256: Callable[[], str | None]
    axes: plots.Axes = plots.TEXTS
    has_texts: bool = True
    seeds_together: bool = False
    columns: Sequence[str] = ()

    @property
    def learning(self) -> Any:
        """Settings that all learners of language models share."""
        return self.agent.config.learning

    def notes(self) -> Iterator[str]:
        """Yields what the rows are, and what a population takes of memory."""
        spelled = data.notice(self.reports)
        if spelled:
            yield spelled
        if self.members:
            peak = warm.peak_bytes(self.student.config, len(self.members))
            yield (
                f"{len(self.members)} reward models, one after another: training takes "
                f"{_size(peak.training)}, their average {_size(peak.averaging)}, their ensemble "
                f"{_size(peak.ensemble)}, activations aside"
            )

    def details(self) -> dict[str, Any]:
        """For config.json: what became of the data's rows, and what members have drawn."""
        return {
            "loop": "host",
            "teacher_sha256": None,
            "start_sha256": self.start_sha256(),
            "data": {
                "rule": self.rule,
                **{split: report._asdict() for split, report in self.reports.items()},
            },
            "swapped_pairs": self.num_swapped,
            "members": {str(seed): one._asdict() for seed, one in self.members.items()},
        }

    def save(self, folder: pathlib.Path) -> None:
        """Writes the decoder's shape and the tokenizer beside config.json."""
        models.save(self.student, folder)

    def loop(
        self, seeds: Sequence[int], on_texts: OnTexts, every: int, abandons: Abandons
    ) -> loops.Loop:
        """Returns the loop of one seed, in which nothing is sampled, shown or waited for."""
        del on_texts, every, abandons
        (seed,) = seeds
        return sequences.make(
            self.member(seed),
            self._source(seed),
            seed,
            params=lambda: self.start(seed),
            evaluate=self._accuracies,
        )

    def texts(self, learner: types.LearnerState, steps: int) -> list[dict[str, Any]]:
        """The first few held-out pairs and their rewards, for a reader."""
        acting = self.agent.actor_params(learner, loops.count(steps), True, types.NO_CONSTANTS)
        pairs, words = self.test[:SHOWN], self.student.tokenizer
        rows = zip(pairs, *self.rewards(acting["params"], pairs), strict=True)
        return [reward_models.line(words, *row) for row in rows]

    def rewards(
        self, params: types.Params, pairs: list[preferences.Pair]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rewards of chosen and rejected answers, [n] each."""
        c = self.learning
        width = c.max_prompt_length + c.max_new_tokens
        return reward_models.over_pairs(
            self._program, params, pairs, width, self.student.tokenizer.pad_id
        )

    @functools.cached_property
    def _program(self) -> Callable[..., jax.Array]:
        return jax.jit(reward_model.on_decoder(gemma.make(self.student.config)).rewards)

    def _accuracies(self, acting: Any, count: int, key: types.Key) -> np.ndarray:
        del key  # Nothing is random when a model judges.
        chosen, rejected = self.rewards(acting["params"], self.test[:count])
        return reward_model.accuracy(chosen - rejected)

    def _source(self, seed: int) -> sequences.Source:
        c, pad_id = self.learning, self.student.tokenizer.pad_id
        stored = preferences.sampler(
            self.train,
            batches.Config(batch_size=c.batch_size, batches_per_sort=c.batches_per_sort, seed=seed),
            pad_id,
        )

        one = preferences.pad(self.train[:1] * c.batch_size, self.train[0].length, pad_id)
        return sequences.Source(
            num_rows=c.batch_size,
            example=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), one),
            stored=lambda step, rows: jax.tree.map(lambda x: x[:rows], stored(step)),
        )


def setup(named: resolved.Resolved, home: pathlib.Path | None = None) -> Setup:
    """What a plan names; a run that goes on has its model and tokenizer in its folder, `home`.

    Raises:
      ValueError: for a task without pairs, a teacher, a reward or a mesh, a population of one,
        starts that are no checkpoints, and data that do not fit.
    """
    plan, config = named.plan, named.config
    entry = lm.ALGORITHMS[plan.agent]
    population: warm.Config | None = config if entry.is_population else None
    # Runs that began with a --reward before it was refused go on: nothing ever read it.
    for name in ("teacher", "mesh", *(("reward",) if home is None else ())):
        if getattr(plan, name):
            raise ValueError(f"{plan.agent} takes no --{name}, got {getattr(plan, name)!r}")
    if population is not None and plan.num_seeds < 2:
        raise ValueError(
            f"{plan.agent} averages a model a seed: add --num-seeds M, at least 2; the paper has 6"
        )
    task = tasks.make(plan.environment, rule=named.rule)
    if task.pairs is None:
        raise ValueError(
            f"{plan.agent} learns from pairs, tokens/preferences:PATH, got {plan.environment}"
        )
    run = opened.find(plan.model)
    if home is not None:
        student = models.saved(home)
    elif run is not None and run.kind == "preferences":
        if plan.model_flags or plan.tokenizer:
            raise ValueError(
                f"--model-flag and --tokenizer go with a preset; {plan.model} brings its own"
            )
        student = models.decoder_of(run)
    else:
        student = language.student_of(plan, task, None, None)._replace(params=None)
    student = student.reading(plan.control_tokens)
    fitting = language.limits(config.learning, student.config)
    train, train_report = task.pairs("train", student.tokenizer, fitting)
    test, test_report = task.pairs("test", student.tokenizer, fitting)
    for split, pairs in (("train", train), ("test", test)):
        if not pairs:
            raise ValueError(
                f"no pair of {plan.environment} in {split} is short enough: they were dropped; "
                "raise max_prompt_length or max_new_tokens"
            )
    shared: reward_model.Config = config if population is None else population.reward
    seeds = plan.seeds
    train = preferences.corrupt(train, shared.corruption, plan.seed)
    model = gemma.make(student.config)
    members = {} if population is None else {s: warm.draw(population, s) for s in seeds}

    def start_sha256() -> str | None:
        if plan.num_seeds == 1 or plan.model in gemma.PRESETS:
            return None
        started = models.load(plan.model) if run is None else models.of_run(run)
        return models.fingerprint(started.params)

    def member(seed: int) -> types.Agent:
        return entry.make(model, config, *(() if population is None else (seed,)))

    return Setup(
        agent=entry.make(model, config),
        spec=language.spec_of(student.config),
        member=member,
        start=_starts(plan, run, student, train, shared, members),
        student=student,
        train=train,
        test=test,
        reports={"train": train_report, "test": test_report},
        rule=named.rule,
        num_swapped=int(preferences.is_swapped(len(train), shared.corruption, plan.seed).sum()),
        members=members,
        start_sha256=start_sha256,
    )


def _starts(
    plan: plans.Plan,
    run: opened.Opened | None,
    student: models.Checkpoint,
    train: list[preferences.Pair],
    config: reward_model.Config,
    members: dict[int, warm.Member],
) -> Callable[[int], types.Params]:
    """Returns seed -> where it begins. Members have one head, probed where `plan.model` ends.

    `run` is that of `plan.model`, None where it is a preset or a folder of weights.
    """
    model = gemma.make(student.config)
    if any(one.start is not None for one in members.values()):
        _check_starts(plan, run, members)

    def decoder(seed: int, step: int | None = None) -> types.Params:
        if plan.model in gemma.PRESETS:
            return jax.jit(model.init)(jax.random.key(seed))
        if step is None or run is None:
            return models.load(plan.model).params
        like = {"learner": {"params": jax.eval_shape(model.init, jax.random.key(0))}}
        folder = run.folder().checkpoints
        return checkpoints.restore(folder, step, like, part=True)[0]["learner"]["params"]

    def probed(params: types.Params) -> types.Params:
        c, features = config.learning, reward_model.on_decoder(model).features
        width, pairs = c.max_prompt_length + c.max_new_tokens, train[: config.probe_pairs]
        found = reward_models.over_pairs(
            jax.jit(features), params, pairs, width, student.tokenizer.pad_id
        )
        return reward_model.probe(*found, config.probe_penalty)

    def start(seed: int) -> types.Params:
        if run is not None and run.kind == "preferences":
            return models.of_run(run).params
        first = decoder(plan.seed if members else seed)
        params = reward_model.with_head(first, student.config.embed_dim)
        if config.probe_pairs:
            params["head"] = probed(first)
        step = members[seed].start if members else None
        return params if step is None else {**params, "decoder": decoder(seed, step)}

    return start


def _check_starts(
    plan: plans.Plan, run: opened.Opened | None, members: dict[int, warm.Member]
) -> None:
    if run is None or run.kind != "language":
        raise ValueError(
            f"starts are checkpoints of one run of supervised tuning, and --model {plan.model} "
            "is none"
        )
    found = checkpoints.steps(run.folder().checkpoints)
    for member in members.values():
        if member.start not in found:
            raise ValueError(
                f"{run.path} has no checkpoint of step {member.start} to start from, only {found}"
            )


def _size(count: int) -> str:
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{count / unit:.3g} {name}"
