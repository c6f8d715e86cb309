"""The parts that runs of language models and runs of reward models share.

Each seed has its own loop, on the host; shape and tokenizer of the model stand beside config.json.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np

from kullback import lm
from kullback.core import loops, platform, trees, types
from kullback.experiments import plots
from kullback.experiments.runs import (
    adapter_files,
    model_files,
    models,
    plans,
    run_folder,
    sights,
)
from kullback.experiments.runs.work import Epoch, Work
from kullback.lm import (
    batches,
    data,
    examples,
    gemma,
    memory,
    preferences,
    senses,
    sharding,
    tasks,
    tuning,
    vision,
)
from kullback.lm.tokenizer import Tokenizer

T = TypeVar("T", bound=examples.Learnt)


class Splits(NamedTuple, Generic[T]):
    """Examples, or pairs of answers, that are learnt from, and those that are held out."""

    train: list[T]
    test: list[T]
    reports: dict[str, data.Report]
    rule: int  # The rule by which files are split, see `lm/splits.py`.

    def details(self) -> dict[str, Any]:
        """Returns what config.json says of a run's data: counts, and a hash of the ids."""
        records = {"train": self.train, "test": self.test}
        return {
            "rule": self.rule,
            **{
                split: {**report._asdict(), "sha256": examples.fingerprint(records[split])}
                for split, report in self.reports.items()
            },
        }


def read_splits(
    read: Callable[..., tuple[list[T], data.Report]],
    tokenizer: Tokenizer,
    limits: data.Limits,
    rule: int,
    sense: senses.Sense | None = None,
) -> Splits[T]:
    """Reads both splits of a task; `read` is its `examples` or its `pairs`.

    With a `sense` rows have the media that they name.
    """
    rows = None if sense is None else sense.rows
    train, train_report = read("train", tokenizer, limits, rows)
    test, test_report = read("test", tokenizer, limits, rows)
    return Splits(train, test, {"train": train_report, "test": test_report}, rule)


def reader_of_pairs(
    plan: plans.Plan, task: tasks.Task
) -> Callable[..., tuple[list[preferences.Pair], data.Report]]:
    """Returns what reads the pairs of a task.

    Raises:
      ValueError: if it has none.
    """
    if task.pairs is None:
        raise ValueError(
            f"{plan.agent} learns from pairs, tokens/preferences:PATH, got {plan.environment}"
        )
    return task.pairs


def require_both(plan: plans.Plan, splits: Splits[Any]) -> None:
    """Raises ValueError if either split of the plan's pairs is empty."""
    for split, pairs in (("train", splits.train), ("test", splits.test)):
        if not pairs:
            raise ValueError(
                f"no pair of {plan.environment} in {split} is short enough: they were dropped; "
                "raise max_prompt_length or max_new_tokens"
            )


def limits(learning: tuning.Config, config: gemma.Config) -> data.Limits:
    """Returns the lengths that examples must fit."""
    return data.Limits(
        max_length=learning.width,
        max_prompt_length=learning.max_prompt_length,
        overlong=learning.overlong,
        unusable=learning.unusable,
        vocab_size=config.vocab_size,
    )


def mesh_of(plan: plans.Plan, learning: tuning.Config) -> sharding.Mesh | None:
    """Returns the mesh that a plan names; None is one device.

    Raises:
      ValueError: if there are not as many devices, if it does not divide the batch, or if models
        stay in few bits, which are on one device.
    """
    if not plan.mesh:
        return None
    mesh = sharding.make_mesh(plan.mesh)
    sharding.check_batch(mesh, learning.batch_size)
    if plan.frozen != "float32":
        raise ValueError(f"--frozen {plan.frozen} does not go with --mesh {plan.mesh}")
    return mesh


def require_media(plan: plans.Plan, train: Sequence[data.Example]) -> None:
    """Raises ValueError if no example that is learnt from has what is read beside text."""
    modality = plan.modality
    if modality is not None and train and not any(example.media for example in train):
        raise ValueError(
            f"no row of {plan.environment} that is learnt from has any {modality.nouns}: name some "
            f"in a column {modality.name}, or leave --{modality.name} out"
        )


def check_media(plan: plans.Plan, learning: tuning.Config) -> None:
    """Raises ValueError for media that a plan's algorithm does not take, or not with its settings.

    They are a projector that is to learn without images, or of a reward model; and audio where
    rewards, pairs or adapters are learnt from.
    """
    entry = lm.ALGORITHMS[plan.agent]
    if plan.audio and (entry.takes_reward or entry.reads_pairs or plan.kind == "preferences"):
        raise ValueError(f"--audio is of sft and distillation yet, not of {plan.agent}")
    if plan.audio and learning.lora:
        raise ValueError("--audio does not go with adapters (lora.rank) yet: leave one out")
    if learning.learns_projector and plan.kind == "preferences":
        raise ValueError(f"learns_projector=True is of policies, not of {plan.agent} yet")
    if learning.learns_projector and not plan.images:
        raise ValueError(
            "learns_projector=True is of a model that sees: add --images, or leave it out"
        )


def check_mixture(plan: plans.Plan, task: tasks.Task, learning: tuning.Config) -> None:
    """Raises ValueError for a mixture where its weights would not be what rows are drawn by."""
    if task.mixed is None:
        return
    entry = lm.ALGORITHMS[plan.agent]
    if entry.takes_reward or entry.reads_pairs or plan.kind == "preferences":
        raise ValueError(
            f"{plan.environment} is a mixture, which sft and distillation learn from, not "
            f"{plan.agent} yet"
        )
    if plan.epochs:
        raise ValueError(f"a mixture has no epochs, got epochs={plan.epochs}: give --steps")
    if learning.pack or learning.batches_per_sort > 1:
        raise ValueError(
            "a mixture's rows are drawn one by one: leave pack=True and batches_per_sort="
            f"{learning.batches_per_sort} out"
        )


def spec_of(config: gemma.Config) -> types.Spec:
    """Returns the spec of tokens, which a model observes and which are its actions."""
    return types.Spec(shape=(), dtype=np.int32, num_actions=config.vocab_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextWork(Work):
    """A model that learns from texts, and its data."""

    agent: types.Agent  # With the configuration of the whole run.
    spec: types.Spec
    student: model_files.Checkpoint  # Shape and tokenizer of what learns, without parameters.
    splits: Splits[Any]
    begins_with: str  # The plan's model.
    # The hash of the model that later seeds read again; None if no seed does.
    start_sha256: Callable[[], str | None] = lambda: None
    # Of adapters: the frozen model, and every A that the models of the run share.
    base: types.Params | None = None
    base_sha256: str = ""  # Of the base before its matrices got a format; "" if they have none.
    shared: types.Params = dataclasses.field(default_factory=dict)
    sight: sights.Sight | None = None  # As the run begins; None of texts alone.
    shown: Sequence[data.Example] = ()  # All examples, if some have media.
    placement: sharding.Placement | None = None  # Over a mesh; None is one device.
    axes: plots.Axes = plots.TEXTS
    has_texts: bool = True
    seeds_together: bool = False
    columns: Sequence[str] = ()
    epoch: Epoch | None = None

    @property
    def learning(self) -> tuning.Config:
        """Settings that all learners of texts share."""
        return self.agent.config.learning

    @property
    def constants(self) -> types.Constants:
        """Frozen parameters that the learner and the policy read."""
        base = None if self.base is None else trees.joined(self.base, self.shared)
        if frozen := self.projector:
            base = frozen if base is None else trees.joined(base, frozen)
        return types.Constants(base=base)

    @property
    def projector(self) -> types.Params:
        """The projector of images, by its name, if it is frozen; else nothing."""
        if self.sight is None or self.learning.learns_projector:
            return {}
        return {vision.PROJECTOR: self.sight.projector}

    def whole(self, decoder: types.Params) -> types.Params:
        """Returns the parameters of a decoder with those that are frozen beside it."""
        return {**decoder, **self.projector}

    def base_details(self) -> dict[str, Any]:
        """Returns hashes for config.json: of the base of adapters, and of what sees images."""
        hashes = {}
        if self.sight is not None:
            hashes = self.sight.details(learns=self.learning.learns_projector)
        if (sense := self.student.sense) is not None:
            files = sights.fingerprint(self.shown)
            hashes[sights.MEDIA.format(sense.rows.modality.name)] = files
        if self.base is None:
            return hashes
        return {**hashes, run_folder.BASE: self.base_sha256 or model_files.fingerprint(self.base)}

    @property
    def frozen(self) -> Any:
        """Parameters that are read only, and are in memory already."""
        return self.constants, self.encoder

    @property
    def encoder(self) -> Any:
        """Parameters of the encoder of images."""
        return () if self.sight is None else self.sight.images.params

    @property
    def setting(self) -> memory.Setting:
        """Settings that decide how much memory a learner step takes."""
        c = self.learning
        return memory.Setting(
            rows=c.batch_size,
            width=batches.static_lengths(c.width, c.widths)[-1],
            micro_batches=c.micro_batches,
            chunk=c.chunk,
            remat=self.student.config.remat,
            adapters=c.lora,
            is_quantized=bool(c.scheme) and not c.lora,
            media=self._media_bytes,
        )

    @property
    def _media_bytes(self) -> int:
        """Bytes of the features of all media, and of those of a batch."""
        if (sense := self.student.sense) is None:
            return 0
        media = {medium for example in self.shown for medium in example.media}
        most = max((len(example.media) for example in self.shown), default=0)
        fitted = sense.fitted([*media])
        return fitted.num_bytes(len(media) + self.learning.batch_size * most)

    def needs(self, setting: memory.Setting) -> memory.Needs:
        """Returns the memory that a learner step of some setting takes."""
        state = jax.eval_shape(self.agent.learner.init, jax.random.key(0))
        return memory.of_learning(self.student.config, state, self.frozen, setting)

    def check(self) -> None:
        """Raises ValueError if a learner step does not fit into memory."""
        if self.placement is None:
            # What is frozen has taken its memory already, but for pages of files: the system counts
            # these as available still.
            taken = trees.num_bytes(self.frozen) - platform.mapped_bytes(self.frozen)
            free = platform.available_memory() + taken
            memory.require(self.needs, self.setting, free)

    def beginning(self) -> Iterator[str]:
        """Yields a line if the weights are drawn."""
        if self.begins_with in gemma.PRESETS:
            yield models.preset_notice(self.begins_with)

    def save(self, folder: pathlib.Path) -> None:
        """Writes the model's shape and the tokenizer beside config.json."""
        model_files.save(self.student, folder)
        adapter_files.save(folder, self.shared)

    def acting(self, learner: types.LearnerState, steps: int) -> Any:
        """Returns the policy's parameters in an evaluation after so many learner steps."""
        return self.agent.actor_params(learner, loops.count(steps), True, self.constants)
