"""The models that a run of texts begins with: its student, its teacher, and what they see by."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax

from kullback.core import types
from kullback.experiments.runs import (
    model_files,
    models,
    plans,
    pretrained,
    run_folder,
    settings,
    sights,
)
from kullback.lm import (
    blocks,
    distillation,
    forms,
    gemma,
    heard,
    hearing,
    sharding,
    shared_ids,
    tasks,
    terms,
    texts,
    tokenizer,
)

NEW_VOCABULARY = 512  # The most ids of a tokenizer that is trained on the task's texts.


class Begun(NamedTuple):
    """The models of a run as it begins or goes on."""

    # Without parameters if they are drawn, or the run goes on; else without those of a projector,
    # unless it learns.
    student: model_files.Checkpoint
    teacher: model_files.Checkpoint | None
    decoders: list[gemma.Model]  # Of both, over the ids that they share.
    sight: sights.Sight | None  # What both see images by; None without images.


def of_plan(
    plan: plans.Plan,
    task: tasks.Task,
    home: pathlib.Path | None,
    mesh: sharding.Mesh | None,
    *,
    learns_projector: bool,
) -> Begun:
    """Reads the models that a plan names.

    Args:
      plan: of the run.
      task: on whose texts a tokenizer is trained, if there is none.
      home: folder of a run that goes on, which has its model's shape and tokenizer.
      mesh: of the run.
      learns_projector: whether the projector of images learns.

    Raises:
      ValueError: as `student_of` and `models.load` do; for models whose tokens, or what they see
        images by, differ.
    """
    teacher = models.load(plan.teacher, mesh=mesh, modality=plan.modality) if plan.teacher else None
    student = model_files.saved(home) if home else student_of(plan, task, teacher, mesh)
    if plan.audio and home is not None:
        student = student._replace(sounds=model_files.saved_sounds(home))
    student = student.reading(plan.control_tokens)
    sight = None
    if plan.images and home is not None:  # Its folder has neither part.
        sight = sights.of_start(home, plan.model, run_folder.RunFolder(home).config())
        student = student._replace(images=sight.images)
    elif plan.images:
        decoder, projector = sights.apart(student.params or {})
        assert student.images is not None, "it was read with what it sees by"
        sight = sights.Sight(student.images, projector)
        student = student if learns_projector else student._replace(params=decoder)
    model = student.learner_model(projector=learns_projector)
    if teacher is None:
        return Begun(student, None, [model], sight)
    if sight is not None:
        as_recorded = sight.images.preparation.pan_and_scan
        teacher = teacher.cutting(plan.crops if home is None else as_recorded)
        sights.check_shared(f"the teacher {plan.teacher}", teacher.images, plan.model, sight.images)
        teacher = teacher._replace(images=sight.images)  # One encoder is in memory.
    if student.sounds is not None and teacher.sounds is not None:
        _check_heard(plan, student.sounds.config, teacher.sounds.config)
    teacher = teacher.frozen(plan.frozen)
    distillation.check_compatible(student.info, teacher.info)
    student = student._replace(notice=terms.joined(student.notice, teacher.notice))
    return Begun(student, teacher, shared_ids.shared([model, teacher.model]), sight)


def read_again(
    plan: plans.Plan, mesh: sharding.Mesh | None, *, learns_projector: bool
) -> model_files.Checkpoint:
    """Reads the model that a run began with, which is no preset, with parameters as of `Begun`."""
    if plan.audio:
        return _hearing(plan, _load(plan, mesh))
    modality = forms.IMAGES if learns_projector else None
    return models.load(plan.model, mesh=mesh, modality=modality, says_ignored=not plan.images)


def _load(plan: plans.Plan, mesh: sharding.Mesh | None) -> model_files.Checkpoint:
    """Reads the model that a plan names, with what it sees by, or hears by if it does already."""
    modality = plan.modality
    if plan.audio and models.modality_of(plan.model) is not forms.AUDIO:
        modality = None
    return models.load(plan.model, mesh=mesh, flags=plan.model_flags, modality=modality)


def _hearing(plan: plans.Plan, read: model_files.Checkpoint) -> model_files.Checkpoint:
    """Returns a model with what it hears by, which is drawn for one that does not hear yet.

    Raises:
      ValueError: for a vocabulary without ids of audio.
    """
    blocks.audio_ids(read.tokenizer)
    if read.sounds is not None:
        return read
    config = hearing.sized(read.config.embed_dim)
    read = read._replace(sounds=heard.Sounds(config=config))
    if read.params is None:
        return read
    drawn = hearing.init(jax.random.key(plan.seed), config, read.config.embed_dim)
    return read._replace(params={**read.params, hearing.HEARING: drawn})


def _check_heard(plan: plans.Plan, student: hearing.Config, teacher: hearing.Config) -> None:
    """Checks that both models hear the same features of a clip."""
    ours, theirs = ((c.bins, c.most_tokens) for c in (student, teacher))
    if ours != theirs:
        raise ValueError(
            f"{plan.model} hears {ours[0]} bins of {ours[1]} soft tokens at most and the teacher "
            f"{plan.teacher} {theirs[0]} and {theirs[1]}: take models that hear the same features"
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
        read = _learns(_load(plan, mesh)).cutting(plan.crops)
        return _hearing(plan, read) if plan.audio else read
    if plan.images:
        raise ValueError(
            f"--images needs a model that sees, a multimodal folder or a run of one, and the "
            f"preset {plan.model} has no encoder of images: --model DIR"
        )
    if teacher is not None and plan.tokenizer:
        raise ValueError(f"--tokenizer goes with no teacher; {plan.teacher} brings its own")
    if teacher is not None:
        student_tokenizer = teacher.tokenizer
    elif plan.tokenizer:
        student_tokenizer = models.tokenizer_of(plan.tokenizer)
    else:
        names = blocks.AUDIO_TOKENS if plan.audio else ()
        student_tokenizer = tokenizer.train_bpe(
            task.texts("train"), NEW_VOCABULARY, further_controls=names
        )
    preset = dataclasses.replace(
        gemma.PRESETS[plan.model],
        vocab_size=student_tokenizer.vocab_size,
        bos_id=student_tokenizer.bos_id,
        eos_ids=student_tokenizer.eos_ids,
        pad_id=student_tokenizer.pad_id,
    )
    shape = texts.with_all_ends(settings.apply(preset, plan.model_flags), student_tokenizer)
    drawn = _learns(model_files.Checkpoint(shape, student_tokenizer, None))
    return _hearing(plan, drawn) if plan.audio else drawn


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


@dataclasses.dataclass
class Initial:
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
