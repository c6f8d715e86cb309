"""Runs of language models: from the names of a plan to a model, a tokenizer, data and a loop."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from kullback import lm
from kullback.core import checkpoints, files, loops, regularizers, sequences, trees, types
from kullback.experiments import judge as judges
from kullback.experiments import plan as plans
from kullback.experiments import run_folder, settings
from kullback.lm import (
    batches,
    chat,
    data,
    distillation,
    gemma,
    hugging_face,
    hugging_face_config,
    sharding,
    tasks,
    tokenizer,
    tuning,
)

COMPUTE = ("dtype", "remat")  # Fields of a model that say how it computes.
NEW_VOCABULARY = 512  # At most; of a tokenizer that is trained on the task's texts.
NOTES = "kullback"  # What we say of a model in the config.json that we export.

OnTexts = Callable[[int, list[dict[str, Any]]], Any]  # Receives learner steps done, and texts.


class Checkpoint(NamedTuple):
    """A model with its tokenizer, trained or not."""

    config: gemma.Config
    tokenizer: tokenizer.Tokenizer
    params: types.Params | None  # None: drawn when learning begins.
    divergence: str = "kl"  # f of the operator that it was trained with.

    @property
    def info(self) -> distillation.TokenizerInfo:
        """What teacher and student must share."""
        t = self.tokenizer
        return distillation.TokenizerInfo(
            t.vocab_size, t.fingerprint, t.eos_ids, chat.template_fingerprint(t)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """All that a run of a language model is made of."""

    agent: types.Agent
    student: Checkpoint
    teacher: Checkpoint | None
    train: list[data.Example]
    reports: dict[str, data.Report]
    judge: judges.Judge
    # Where learning starts; None: where the learner draws.
    initial_params: Callable[[], types.Params] | None
    placement: sharding.Placement | None = None  # Over a mesh; None is one device.

    @property
    def learning(self) -> Any:
        """Settings that all learners of language models share."""
        return self.agent.config.learning

    @property
    def num_envs(self) -> int:
        """Sequences of a learner step."""
        return self.learning.batch_size

    @property
    def spec(self) -> types.Spec:
        """Of tokens: what is observed and what is done."""
        return types.Spec(shape=(), dtype=np.int32, num_actions=self.student.config.vocab_size)

    def close(self) -> None:
        """There is nothing to close."""

    def details(self) -> dict[str, Any]:
        """For config.json: the teacher by its hash, and what became of the data's rows."""
        teacher = None if self.teacher is None else fingerprint(self.teacher.params)
        rows = {split: report._asdict() for split, report in self.reports.items()}
        return {"teacher_sha256": teacher, "data": rows}

    def save(self, folder: pathlib.Path) -> None:
        """Writes model and tokenizer, without parameters, beside config.json."""
        files.atomic_write_text(
            folder / "model.json", json.dumps(dataclasses.asdict(self.student.config), indent=2)
        )
        tokenizer.save(self.student.tokenizer, folder / "tokenizer")

    def texts(self, learner: types.LearnerState, steps: int) -> list[dict[str, Any]]:
        """Greedy answers to the first few held-out examples, for a reader."""
        acting = self.agent.actor_params(learner, np.asarray(steps, np.int32), True)
        lines = self.judge.greedy_lines(acting, jax.random.key(steps))
        return [{"greedy": True, **line} for line in lines]

    def loop(
        self, seed: int, on_texts: OnTexts = lambda steps, texts: None, every: int = 1
    ) -> loops.Loop:
        """The loop of one seed; of what its student samples, `every` steps have some texts shown.

        They are of the last batch of that interval that the student made, which the number of the
        step alone decides: a run that is resumed shows what the uninterrupted one did.
        """
        constants = None if self.teacher is None else self.teacher.params
        return sequences.make(
            self.agent,
            self.source(seed, on_texts, every),
            seed,
            params=self.initial_params,
            constants=constants,
            evaluate=self.judge.scores,
            placement=self.placement,
        )

    def source(
        self, seed: int, on_texts: OnTexts = lambda steps, texts: None, every: int = 1
    ) -> sequences.Source:
        """Batches of the data set and of the policy; for the arguments see `loop`."""
        c, mixture = self.learning, self.agent.replay
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
        program = self.judge.program(self.agent.policy)

        def num_sampled(step: int) -> int:
            if mixture.mixing == "row":
                return share
            coin = np.random.default_rng([seed, step]).random()  # In [0, 1).
            return c.batch_size if coin < mixture.student_fraction else 0

        def is_shown(step: int) -> bool:
            end = (step // every + 1) * every
            return not any(num_sampled(later) for later in range(step + 1, end))

        def prompts(step: int, rows: int) -> tuple[batches.Prompts, list[int], int]:
            drawn = batches.indices(
                step, num_items=stored.num_items, batch_size=c.batch_size, seed=seed
            )
            indices = drawn[-rows:].tolist()
            return self.judge.prompts([self.train[i] for i in indices]), indices, step

        def sample(acting: Any, drawn: Any, key: types.Key) -> batches.Sequences:
            rows = drawn[0]
            if self.placement is not None:
                home = sharding.of_rows(self.placement.mesh, len(drawn[1]))
                rows = jax.device_put(rows, home)
            return program(acting, rows, key)

        def score(made: batches.Sequences, drawn: Any) -> np.ndarray:
            examples, step = [self.train[i] for i in drawn[1]], drawn[2]
            scores = self.judge.judged(made, examples)
            if is_shown(step):
                lines = self.judge.lines(made, examples, scores)
                on_texts(step + 1, [{"greedy": False, **line} for line in lines])
            return scores

        shape = (c.batch_size, width)
        int_, bool_ = (jax.ShapeDtypeStruct(shape, dtype) for dtype in (np.int32, np.bool_))
        lengths = jax.ShapeDtypeStruct(shape[:1], np.int32)
        return sequences.Source(
            num_rows=c.batch_size,
            example=batches.Sequences(int_, bool_, int_, int_, lengths),  # pyright: ignore[reportArgumentType]
            num_sampled=num_sampled,
            stored=lambda step, rows: jax.tree.map(lambda x: x[:rows], stored.sequences(step).data),
            prompts=prompts,
            sample=sample,
            score=score,
        )


def setup(plan: plans.Plan, home: pathlib.Path | None = None) -> Setup:
    """What the plan names; a run that goes on has its model and tokenizer in its folder, `home`.

    Raises:
      ValueError: for names that are none, a teacher too many or too few or of other tokens, and
        data that do not fit.
    """
    entry = lm.ALGORITHMS[plan.agent]
    config = settings.apply(entry.presets(plan.family), plan.settings)
    if entry.has_teacher != bool(plan.teacher):
        needs = "needs --teacher" if entry.has_teacher else "takes no --teacher"
        raise ValueError(f"{plan.agent} {needs} (a folder, or a run), got {plan.teacher!r}")
    mesh = sharding.make_mesh(plan.mesh) if plan.mesh else None
    if mesh is not None:
        sharding.check_batch(mesh, config.learning.batch_size)
    task = tasks.make(plan.environment)
    teacher = load(plan.teacher, mesh=mesh) if plan.teacher else None
    if home is not None:
        student = Checkpoint(saved_config(home), tokenizer.load(home / "tokenizer"), None)
    else:
        student = _student(plan, task, teacher, mesh)
    if teacher is not None:
        distillation.check_compatible(student.info, teacher.info)
    c = config.learning
    fitting = limits(c, student.config)
    train, train_report = task.examples("train", student.tokenizer, fitting)
    test, test_report = task.examples("test", student.tokenizer, fitting)

    def initial_params() -> types.Params:
        # A folder in which a second seed begins has none at hand.
        return load(plan.model, mesh=mesh).params if student.params is None else student.params

    models = [gemma.make(student.config)]
    if teacher is not None:
        models.append(gemma.make(teacher.config))
    return Setup(
        agent=entry.make(*models, config),
        student=student,
        teacher=teacher,
        train=train,
        reports={"train": train_report, "test": test_report},
        judge=judges.Judge(models[0], student.tokenizer, task, test, c, config.operator),
        initial_params=None if plan.model in gemma.PRESETS else initial_params,
        placement=sharding.placement(mesh, *(model.config for model in models)),
    )


def limits(learning: tuning.Config, config: gemma.Config) -> data.Limits:
    """What examples must fit in."""
    return data.Limits(
        max_length=learning.max_prompt_length + learning.max_new_tokens,
        max_prompt_length=learning.max_prompt_length,
        overlong=learning.overlong,
        vocab_size=config.vocab_size,
    )


def _student(
    plan: plans.Plan, task: tasks.Task, teacher: Checkpoint | None, mesh: sharding.Mesh | None
) -> Checkpoint:
    if not plan.model:
        raise ValueError(
            f"{plan.agent} needs --model: a folder, a run, or a preset made on the spot "
            f"({', '.join(gemma.PRESETS)})"
        )
    if plan.model not in gemma.PRESETS:
        trained = load(plan.model, mesh=mesh)
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
    return Checkpoint(settings.apply(preset, plan.model_flags), words, None)


def is_run(path: pathlib.Path) -> bool:
    """Whether a folder is of a run of a language model."""
    return (path / "model.json").is_file()


def load(
    path: str | pathlib.Path,
    seed: int | None = None,
    *,
    best: bool = False,
    mesh: sharding.Mesh | None = None,
) -> Checkpoint:
    """The model of a folder as Hugging Face has them, or that a run has trained.

    Args:
      path: of the folder or the run.
      seed: which of a run's seeds; None is the first.
      best: of a run, the checkpoint of the highest evaluation in place of the newest.
      mesh: over which parameters go as they are read; None is one device.

    Raises:
      ValueError: if it is neither, or the run has no such seed, or no checkpoint with a score.
    """
    path = pathlib.Path(path)
    if is_run(path):
        words = tokenizer.load(path / "tokenizer")
        params = _trained(path, seed, best, mesh)
        return Checkpoint(saved_config(path), words, params, algorithm_config(path).operator)
    if seed is not None or best:
        raise ValueError(f"{path} is no run of a language model: it has no seeds and no best")
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{path} is no model: expected a folder with config.json and weights, a run of a "
            f"language model, or a preset ({', '.join(gemma.PRESETS)})"
        )
    homes = sharding.by_path(hugging_face_config.read(path), mesh)
    config, params, _ = hugging_face.load(path, sharding=homes)
    return Checkpoint(config, tokenizer.load(path), params, _exported_operator(path))


def _exported_operator(path: pathlib.Path) -> str:
    """What `export` noted; models of others have softmax."""
    file = path / "config.json"
    notes = hugging_face_config.read_json(file).get(NOTES, {})
    if not isinstance(notes, dict) or not isinstance(notes.get("divergence", ""), str):
        raise ValueError(f"{file}: {NOTES!r} must be an object with a divergence, got {notes!r}")
    name = notes.get("divergence", "kl")
    try:
        return regularizers.named(name).name
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _trained(
    path: pathlib.Path, seed: int | None, best: bool, mesh: sharding.Mesh | None
) -> types.Params:
    """The newest whole parameters of a run, or its best, and nothing else of it."""
    plan = plans.Plan.from_json(run_folder.RunFolder(path).config()["plan"])
    seed = plan.seed if seed is None else seed
    seeds = range(plan.seed, plan.seed + plan.num_seeds)
    if seed not in seeds:
        raise ValueError(f"{path} has seeds {seeds[0]} to {seeds[-1]}, not {seed}")
    part = path / f"seed_{seed}"
    folder = run_folder.RunFolder(part if part.is_dir() else path).checkpoints
    like = {"learner": {"params": sharding.shapes(saved_config(path), mesh)}}
    if not best:
        return checkpoints.restore_latest(folder, like, part=True)[0]["learner"]["params"]
    step = checkpoints.best_step(folder)
    if step is None:
        raise ValueError(
            f"{folder} has no checkpoint with a score: train with --eval-every, or take the newest"
        )
    return checkpoints.restore(folder, step, like, part=True)[0]["learner"]["params"]


def algorithm_config(path: pathlib.Path) -> Any:
    """The configuration of the algorithm of a run, by its plan."""
    plan = plans.Plan.from_json(run_folder.RunFolder(path).config()["plan"])
    return settings.apply(lm.ALGORITHMS[plan.agent].presets(plan.family), plan.settings)


def saved_config(home: pathlib.Path) -> gemma.Config:
    """The model's shape as `Setup.save` wrote it."""
    values = json.loads((home / "model.json").read_text())
    return gemma.Config(**{**values, "eos_ids": tuple(values["eos_ids"])})


def fingerprint(params: types.Params) -> str:
    """SHA-256 of names, shapes and numbers of parameters."""
    digest = hashlib.sha256()
    for name, leaf in sorted(trees.named_leaves(params).items()):
        digest.update(f"{name} {trees.describe(name, leaf)}".encode())
        digest.update(np.ascontiguousarray(trees.to_numpy(leaf)).tobytes())
    return digest.hexdigest()


def export(path: str | pathlib.Path, out: pathlib.Path, seed: int | None = None) -> None:
    """Writes the newest model of a run as a folder that Hugging Face's transformers load.

    Its operator goes with it, in a key of config.json that others pass over.
    """
    checkpoint = load(path, seed)
    words = pathlib.Path(path) / "tokenizer"
    hugging_face.save(
        out,
        checkpoint.config,
        checkpoint.params,
        tokenizer_files=sorted(words.iterdir()),
        extra={NOTES: {"divergence": checkpoint.divergence}},
    )
