"""A language model with its tokenizer and origin, and what a run writes of it: all but weights."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from kullback.core import files, folders, json_files, types
from kullback.core.trees import fingerprint as fingerprint
from kullback.experiments.runs import converted, settings
from kullback.lm import (
    blocks,
    chat,
    control_tokens,
    distillation,
    encoded,
    folder_meaning,
    gemma,
    gemma_config,
    heard,
    hearing,
    narrow_weights,
    quantisation,
    senses,
    shared_ids,
    sight,
    terms,
    texts,
    tokenizer,
    vision,
)

MODEL = "model.json"  # The model's shape, beside config.json.
HEARING = "hearing.json"  # The shape of what it hears by, if it hears.
TOKENIZER = "tokenizer"  # A folder.


class Shape(NamedTuple):
    """All that decides a model but its parameters; it can be pickled."""

    config: gemma.Config
    num_ids: int  # Ids of its tokenizer.
    images: vision.Config | None = None  # What it sees by.
    sounds: tuple[hearing.Config, blocks.Markers] | None = None  # What it hears by.
    draws_projector: bool = True  # Whether its `init` draws the projector of images.

    def make(self) -> gemma.Model:
        """Makes the model over the ids of its tokenizer; other rows of its table are padding."""
        model = gemma.make(self.config)
        if self.images is not None:
            model = sight.seeing(model, self.images, draws=self.draws_projector)
        if self.sounds is not None:
            model = hearing.hearing(model, *self.sounds)
        return shared_ids.over(model, self.num_ids)


class Checkpoint(NamedTuple):
    """A model with its tokenizer, trained or not."""

    config: gemma.Config  # Its `eos_ids` are all ids that end a text.
    tokenizer: tokenizer.Tokenizer
    params: types.Params | None  # None: they are drawn when learning begins.
    divergence: str = "kl"  # f of the operator that it was trained with.
    origin: converted.Origin | None = None  # Of a published model or a GGUF file.
    notice: str | None = None  # That copies of its weights carry, see lm/terms.py.
    # What its images are seen by, if it was read with it: its parameters then have a projector.
    images: encoded.Images | None = None
    sounds: heard.Sounds | None = None  # What it hears by, likewise: `hearing.HEARING`.
    sha256: str = ""  # Of the parameters before their matrices got few bits, if a run records it.

    @property
    def model(self) -> gemma.Model:
        """The model over the ids of its tokenizer; other rows of its table are padding."""
        return self.learner_model()

    def learner_model(self, *, projector: bool = True) -> gemma.Model:
        """Returns the model, whose `init` draws what learns: the projector only if it does."""
        return self.shape(projector=projector).make()

    def shape(self, *, projector: bool = True) -> Shape:
        """Returns the shape of `learner_model`."""
        sounds = None
        if self.sounds is not None:
            sounds = self.sounds.config, blocks.markers_of(self.tokenizer)
        return Shape(
            config=self.config,
            num_ids=self.tokenizer.vocab_size,
            images=None if self.images is None else self.images.config,
            sounds=sounds,
            draws_projector=projector,
        )

    @property
    def sense(self) -> senses.Sense | None:
        """The sense by which it sees or hears; None reads text alone."""
        return self.images or self.sounds

    @property
    def info(self) -> distillation.TokenizerInfo:
        """The facts of a tokenizer that teacher and student must share."""
        t = self.tokenizer
        return distillation.TokenizerInfo(
            t.vocab_size, t.fingerprint, t.eos_ids, chat.template_fingerprint(t)
        )

    def with_all_ends(self) -> "Checkpoint":
        """Returns the model whose texts end with all that its tokenizer, too, names as ends."""
        return self._replace(config=texts.with_all_ends(self.config, self.tokenizer))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the parameters, or of what they were before they got few bits."""
        return self.sha256 or fingerprint(self.params)

    def frozen(self, storage: gemma_config.Storage) -> "Checkpoint":
        """Returns a model that learns nothing in this run, its matrices in a format of few bits."""
        if storage == "float32":
            return self
        return self._stored(storage)._replace(sha256=self.fingerprint)

    def _stored(self, storage: gemma_config.Storage) -> "Checkpoint":
        config = dataclasses.replace(self.config, storage=storage)
        if self.params is None or storage == self.config.storage:
            return self._replace(config=config)
        params = narrow_weights.narrowed(self.params, quantisation.of_storage(storage))
        return self._replace(config=config, params=params)

    def computing(self, assignments: Sequence[str], name: str) -> "Checkpoint":
        """Returns the model with other fields of COMPUTE, which decide how it is computed.

        Args:
          assignments: "field=value" each.
          name: of the model, for messages.

        Raises:
          ValueError: for another field, which would change what is computed.
        """
        compute = {field: getattr(self.config, field) for field in folder_meaning.COMPUTE}
        config = settings.apply(self.config, assignments)
        if dataclasses.replace(config, **compute) != self.config:
            *fields, last = compute
            raise ValueError(
                f"--model-flag changes the shape of a preset; {name} is as it was trained, "
                f"but for {', '.join(fields)} and {last}"
            )
        changed = dataclasses.replace(config, storage=self.config.storage)
        return self._replace(config=changed)._stored(config.storage)

    def cutting(self, crops: bool | None) -> "Checkpoint":
        """Returns the model that sees images with pan and scan or without; None is as it is.

        Raises:
          ValueError: if it was read without what it sees by.
        """
        if crops is None:
            return self
        if self.images is None:
            raise ValueError(
                "--pan-and-scan is of a model that is read with images: give it some, or leave it "
                "out"
            )
        return self._replace(images=self.images.cutting(crops))

    def reading(self, how: control_tokens.Reading) -> "Checkpoint":
        """Returns the model with a tokenizer that reads control tokens in a text as `how` says."""
        return self._replace(tokenizer=tokenizer.reading(self.tokenizer, how))


def read_flags(assignments: Sequence[str]) -> dict[str, Any]:
    """Returns the values of --model-flag by name; no model is needed.

    Raises:
      ValueError: for a field that no model has, or a value of a wrong type.
    """
    hints = {name: hint for name, hint, _ in settings.fields(gemma.PRESETS["tiny"])}
    return settings.read(hints, assignments)


def save(checkpoint: Checkpoint, folder: pathlib.Path) -> None:
    """Writes model, tokenizer and notice, without parameters, beside the config.json of a run."""
    shape = dataclasses.asdict(checkpoint.config)
    files.atomic_write_text(folder / MODEL, json.dumps(shape, indent=2))
    if checkpoint.sounds is not None:
        encoder = dataclasses.asdict(checkpoint.sounds.config)
        files.atomic_write_text(folder / HEARING, json.dumps(encoder, indent=2))
    tokenizer.save(checkpoint.tokenizer, folder / TOKENIZER)
    terms.write(folder, checkpoint.notice)


def saved(home: pathlib.Path) -> Checkpoint:
    """Reads what `save` wrote, which has no parameters: a run keeps its ends of text."""
    loaded = tokenizer.load(folders.subfolder(home, TOKENIZER))
    return Checkpoint(saved_config(home), loaded, None, notice=terms.of_folder(home))


def saved_config(home: pathlib.Path) -> gemma.Config:
    """Reads the model's shape as `save` wrote it.

    Raises:
      ValueError: if model.json is missing or damaged.
    """
    return json_files.read(home / MODEL).build(gemma.Config)


def saved_sounds(home: pathlib.Path) -> heard.Sounds:
    """Reads what a model hears by, as `save` wrote it.

    Raises:
      ValueError: if hearing.json is missing or damaged.
    """
    return heard.Sounds(config=json_files.read(home / HEARING).build(hearing.Config))


def ends_notice(checkpoint: Checkpoint) -> str | None:
    """Returns a line for a run that began when texts ended with fewer ids than today, or None."""
    config = checkpoint.config
    missing = set(checkpoint.with_all_ends().config.eos_ids) - set(config.eos_ids)
    if not missing:
        return None
    return (
        f"this run's texts end with the ids {sorted(config.eos_ids)} and do not with "
        f"{sorted(missing)}, which its tokenizer has as ends too: it goes on as it began; a new "
        "run from it, evaluate, generate and export take all of them"
    )


def origins(**models: Checkpoint | None) -> dict[str, Any]:
    """Returns, for config.json, the published files that models were read from, by their role."""
    by_role = {
        role: checkpoint.origin._asdict()
        for role, checkpoint in models.items()
        if checkpoint is not None and checkpoint.origin is not None
    }
    return {"origins": by_role} if by_role else {}
