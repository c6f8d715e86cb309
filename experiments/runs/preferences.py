"""Runs of reward models: pairs of answers, a decoder with a head, and a loop for each seed.

The seeds of a run of `warm` are members of a population, which begin with one head; see
reward_models.py.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from kullback import lm
from kullback.core import checkpoints, files, loops, sequences, types
from kullback.experiments.runs import (
    adapter_files,
    model_files,
    models,
    opened,
    plans,
    resolved,
    reward_models,
    run_folder,
    sights,
    starts,
    text_work,
)
from kullback.experiments.runs.text_work import Splits, TextWork
from kullback.experiments.runs.work import Abandons, Epoch, OnTexts
from kullback.lm import (
    adapters,
    batches,
    data,
    gemma,
    memory,
    preferences,
    reward_model,
    sharding,
    tasks,
    vision,
    warm,
)

SHOWN = 4  # Pairs that samples.jsonl has at each evaluation.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup(TextWork):
    """The agents, decoder and data of a run of reward models."""

    splits: Splits[preferences.Pair]
    member: Callable[[int], types.Agent]  # Seed -> its agent.
    start: Callable[[int], types.Params]  # Seed -> its parameters to begin with.
    trains_decoder: bool  # Whether more than the head learns.
    num_swapped: int  # Pairs that are learnt from whose label is wrong on purpose.
    members: dict[int, warm.Member]  # The population by seed; empty without one.

    def notes(self) -> Iterator[str]:
        """Yields lines about rows of the data, and about the memory of learning."""
        yield from data.notices(self.splits.reports)
        needs = self.needs(self.setting)
        if self.placement is None:
            yield f"memory: {needs}"
        if self.members:
            peak = warm.peak_bytes(needs, len(self.members))
            yield (
                f"{len(self.members)} reward models, one after another; their average takes "
                f"{files.size(peak.averaging)}, their ensemble {files.size(peak.ensemble)}"
            )

    @property
    def setting(self) -> memory.Setting:
        """Settings that decide how much memory a learner step takes."""
        networks = 1 if self.trains_decoder else 0
        return dataclasses.replace(super().setting, chunk=0, networks=networks, per_row=2)

    def details(self) -> dict[str, Any]:
        """Returns reports on the data, and the settings that members drew, for config.json."""
        return {
            "loop": "host",
            "teacher_sha256": None,
            "start_sha256": self.start_sha256(),
            **self.base_details(),
            **model_files.origins(model=self.student),
            "data": self.splits.details(),
            "swapped_pairs": self.num_swapped,
            "members": {str(seed): member._asdict() for seed, member in self.members.items()},
        }

    def loop(
        self, seeds: Sequence[int], on_texts: OnTexts, every: int, abandons: Abandons
    ) -> loops.Loop:
        """Returns the loop of one seed, which samples no texts and has nothing to abandon."""
        del on_texts, every, abandons
        (seed,) = seeds
        return sequences.make(
            self.member(seed),
            self._source(seed),
            seed,
            params=lambda: self.start(seed),
            constants=self.constants,
            evaluate=self._accuracies,
            placement=self.placement,
        )

    def texts(self, learner: types.LearnerState, steps: int) -> list[dict[str, Any]]:
        """Returns the first few held-out pairs and their rewards, for a reader."""
        pairs = self.splits.test[:SHOWN]
        judged = zip(
            pairs, *self.rewards(self.acting(learner, steps)["params"], pairs), strict=True
        )
        return [reward_models.line(self.student.tokenizer, *one_pair) for one_pair in judged]

    def rewards(
        self, params: types.Params, pairs: list[preferences.Pair]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns rewards of chosen and rejected answers, [n] each."""
        width, pad_id = self.learning.width, self.student.tokenizer.pad_id
        features = None if self.sight is None else self.sight.images.features
        return reward_models.over_pairs(self._program, params, pairs, width, pad_id, features)

    @functools.cached_property
    def _program(self) -> Callable[..., jax.Array]:
        model = adapters.adapted(self.student.model, self.learning.lora)
        mesh = None if self.placement is None else self.placement.mesh
        return _over(mesh, reward_model.on_decoder(model).rewards)

    def _accuracies(self, acting: Any, count: int, key: types.Key) -> np.ndarray:
        del key  # Nothing is random here.
        chosen, rejected = self.rewards(acting["params"], self.splits.test[:count])
        return reward_model.accuracy(chosen - rejected)

    def _source(self, seed: int) -> sequences.Source:
        c, train = self.learning, self.splits.train
        pad_id = self.student.tokenizer.pad_id
        features = None if self.sight is None else self.sight.images.features
        stored = preferences.sampler(
            train,
            batches.Config(
                batch_size=c.batch_size,
                widths=c.widths,
                batches_per_sort=c.batches_per_sort,
                seed=seed,
            ),
            pad_id,
            features,
        )
        batch = preferences.pad(train[:1] * c.batch_size, train[0].length, pad_id, features)
        return sequences.Source(
            num_rows=c.batch_size,
            example=jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch),
            stored=lambda step, rows: jax.tree.map(lambda x: x[:rows], stored(step)),
        )


def setup(named: resolved.Resolved, home: pathlib.Path | None = None) -> Setup:
    """Builds what a plan names; a run that goes on has its model and tokenizer in `home`.

    Raises:
      ValueError: for a task without pairs, a teacher or a reward, a population of one,
        starts that are no checkpoints, a mesh that does not fit, and data that do not.
    """
    plan, config = named.plan, named.config
    entry = lm.ALGORITHMS[plan.agent]
    # Older runs with a --reward, which was ignored before it was refused, go on.
    for name in ("teacher", *(("reward",) if home is None else ())):
        if getattr(plan, name):
            raise ValueError(f"{plan.agent} takes no --{name}, got {getattr(plan, name)!r}")
    if entry.is_population and plan.num_seeds < 2:
        raise ValueError(
            f"{plan.agent} averages a model a seed: add --num-seeds M, at least 2; the paper has 6"
        )
    text_work.check_media(plan, config.learning)
    mesh = text_work.mesh_of(plan, config.learning)
    task = tasks.make(plan.environment, rule=named.rule)
    text_work.check_mixture(plan, task, config.learning)
    read = text_work.reader_of_pairs(plan, task)
    run = opened.find(plan.model)
    decoder = _decoder(plan, task, run, home, mesh)
    sight = _sight(plan, home) if plan.images else None
    decoder = decoder._replace(images=None if sight is None else sight.images)
    limits = text_work.limits(config.learning, decoder.config)
    splits = text_work.read_splits(read, decoder.tokenizer, limits, named.rule, decoder.sense)
    text_work.require_both(plan, splits)
    shown = [pair.chosen for pair in (*splits.train, *splits.test)] if sight is not None else []
    if sight is not None:
        text_work.require_media(plan, [pair.chosen for pair in splits.train])
    epoch = None
    if plan.epochs:
        epoch = Epoch(len(splits.train), "pairs", config.learning.batch_size)
        named = epoch.in_steps(named)
        plan, config = named.plan, named.config
    population: warm.Config | None = config if entry.is_population else None
    shared: reward_model.Config = config if population is None else population.reward
    train = preferences.corrupt(splits.train, shared.corruption, plan.seed)
    model = decoder.learner_model(projector=False)
    members = {} if population is None else {s: warm.draw(population, s) for s in plan.seeds}

    lora_settings, base, base_sha256 = config.learning.lora, None, ""
    if lora_settings:
        adapter_files.check_base(plan)
        params = models.base_params(plan.model, mesh, says_ignored=sight is None)
        whole = decoder._replace(params=params)
        frozen = whole.frozen(plan.frozen)
        base, base_sha256 = frozen.params, frozen.sha256
    elif plan.frozen != "float32":
        raise ValueError(
            f"--frozen {plan.frozen} is of the base of adapters, of which {plan.agent} has none: "
            "--set lora.rank=N"
        )

    def start_sha256() -> str | None:
        if base is not None or plan.num_seeds == 1 or plan.model in gemma.PRESETS:
            return None
        if run is None:
            started = starts.read_again(plan, None, learns_projector=False)
        else:
            started = models.of_run(run)
        return model_files.fingerprint(started.params)

    def member(seed: int) -> types.Agent:
        return entry.make(model, config, *(() if population is None else (seed,)))

    return Setup(
        agent=entry.make(model, config),
        spec=text_work.spec_of(decoder.config),
        member=member,
        start=_starts(plan, run, decoder, train, shared, members, base, mesh, sight),
        sight=sight,
        shown=shown,
        student=decoder,
        splits=splits._replace(train=train),
        begins_with=plan.model,
        trains_decoder=shared.trains == "all",
        num_swapped=int(preferences.is_swapped(len(train), shared.corruption, plan.seed).sum()),
        members=members,
        start_sha256=start_sha256,
        base=base,
        base_sha256=base_sha256,
        shared=sharding.placed(
            decoder.config,
            adapter_files.shared(decoder.config, lora_settings, decoder.tokenizer, plan.seed, home),
            mesh,
        ),
        placement=sharding.placement(mesh, decoder.config),
        epoch=epoch,
    )


def _sight(plan: plans.Plan, home: pathlib.Path | None) -> sights.Sight:
    """Returns what a plan's model sees by, as a run in `home` has recorded if it goes on."""
    if home is None:
        return sights.of_model(plan.model).cutting(plan.crops)
    return sights.of_start(home, plan.model, run_folder.RunFolder(home).config())


def _decoder(
    plan: plans.Plan,
    task: tasks.Task,
    run: opened.Opened | None,
    home: pathlib.Path | None,
    mesh: sharding.Mesh | None,
) -> model_files.Checkpoint:
    """Returns shape and tokenizer of the decoder that a plan names, which `run` is of, if any."""
    if home is not None:
        decoder = model_files.saved(home)
    elif run is not None and run.kind == "preferences":
        if plan.model_flags or plan.tokenizer:
            raise ValueError(
                f"--model-flag and --tokenizer go with a preset; {plan.model} brings its own"
            )
        decoder = models.decoder_of(run)
    else:
        decoder = starts.student_of(plan, task, None, mesh)._replace(params=None)
    return decoder.reading(plan.control_tokens)


def _starts(
    plan: plans.Plan,
    run: opened.Opened | None,
    decoder: model_files.Checkpoint,
    train: list[preferences.Pair],
    config: reward_model.Config,
    members: dict[int, warm.Member],
    base: types.Params | None,
    mesh: sharding.Mesh | None,
    sight: sights.Sight | None,
) -> Callable[[int], types.Params]:
    """Returns a function from a seed to its initial parameters, on the mesh if there is one.

    Members of a population have one head, a linear probe of the decoder that `plan.model` names.
    `run` is the run of that name; None if it names a preset or a folder of weights. `base` is that
    decoder if adapters are learnt; else None. By the `sight` the decoder sees.
    """
    model = decoder.learner_model(projector=False)
    projector = {} if sight is None else {vision.PROJECTOR: sight.projector}
    image_features = None if sight is None else sight.images.features
    adapted = adapters.adapted(model, config.learning.lora)
    if any(member.start is not None for member in members.values()):
        _check_starts(plan, run, members)

    def decoder_params(seed: int, step: int | None = None) -> types.Params:
        if base is not None:
            return base
        if plan.model in gemma.PRESETS:
            return jax.jit(model.init)(jax.random.key(seed))
        if step is None or run is None:
            return starts.read_again(plan, mesh, learns_projector=False).params
        like = {"learner": {"params": sharding.shapes(decoder.config, mesh)}}
        folder = run.folder().checkpoints
        return checkpoints.restore(folder, step, like, part=True)[0]["learner"]["params"]

    def probed_head(params: types.Params) -> types.Params:
        c, features = config.learning, reward_model.on_decoder(model).features
        pairs, pad_id = train[: config.probe_pairs], decoder.tokenizer.pad_id
        program = _over(mesh, features)
        chosen, rejected = reward_models.over_pairs(
            program, {**params, **projector}, pairs, c.width, pad_id, image_features
        )
        return reward_model.probe(chosen, rejected, config.probe_penalty)

    def learnt(params: types.Params, seed: int) -> types.Params:
        """Returns what is learnt of a reward model: all of it, or adapters and the head."""
        if base is None:
            return params
        return {**params, "decoder": jax.jit(adapted.init)(jax.random.key(seed))}

    def start(seed: int) -> types.Params:
        if run is not None and run.kind == "preferences":
            return learnt(models.of_run(run, mesh=mesh).params, seed)
        first = decoder_params(plan.seed if members else seed)
        params = reward_model.with_head(first, decoder.config.embed_dim)
        if config.probe_pairs:
            params["head"] = probed_head(first)
        step = members[seed].start if members else None
        if step is None:
            return learnt(params, seed)
        return {**params, "decoder": decoder_params(seed, step)}

    return lambda seed: sharding.placed(decoder.config, start(seed), mesh)


def _over(mesh: sharding.Mesh | None, function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Compiles a function of parameters and sequences, whose rows are cut over a mesh, if any."""
    program = jax.jit(function)
    return lambda params, rows: program(params, sharding.spread(rows, mesh))


def _check_starts(
    plan: plans.Plan, run: opened.Opened | None, members: dict[int, warm.Member]
) -> None:
    if run is None or run.kind != "language":
        raise ValueError(
            f"starts are checkpoints of one run of supervised tuning, and --model {plan.model} "
            "is none"
        )
    saved = checkpoints.steps(run.folder().checkpoints)
    for member in members.values():
        if member.start not in saved:
            raise ValueError(
                f"{run.path} has no checkpoint of step {member.start} to start from, only {saved}"
            )
