"""Stages of a pipeline: the commands that its TOML file asks for, checked before the first one.

    out = "runs/post"
    [stage.start]
    run = "train"
    agent = "sft"
    environment = "tokens/arithmetic"
    model = "tiny"
    settings = { learning_rate = 1e-3 }
    [stage.tuned]
    run = "train"
    agent = "rlhf"
    environment = "tokens/arithmetic"
    model = "{start}"

A stage is a command of `kullback`; its keys are the command's arguments, with "_" for "-". A list
is an argument of several values, a table one of field=value. "{name}" stands for what the stage of
that name has made: a run, a folder or a file.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kullback.core import names
from kullback.experiments import toml_files

# A name in braces; numbers in braces are of regular expressions, which rewards may have.
_REFERENCE = re.compile(r"\{([A-Za-z][\w-]*)\}")
_NAME = re.compile(r"[A-Za-z][\w-]{0,63}")
_OWN = ("run", "instead")  # Keys of a stage that are no arguments.
TOP = ("out", "stage", "report")


class Form(NamedTuple):
    """The arguments of a command that stages may run."""

    positional: tuple[str, ...]  # Keys of arguments that have no flag, in their order.
    begins_with: str = ""  # Key of the model, or of the models, that it begins with.
    paths: tuple[str, ...] = ()  # Keys of values that are paths, or have some in them.
    ending: str = ""  # Of the file that it makes; "" is a folder.
    tables: Mapping[str, str] = {}  # Flags of keys whose value is a table of field=value.


FORMS: Mapping[str, Form] = {
    "train": Form(
        ("agent", "environment"),
        "model",
        ("environment", "model", "teacher", "tokenizer", "adapter", "reward"),
        tables={"settings": "set", "model_flags": "model-flag"},
    ),
    "merge": Form(("models",), "models", ("models", "base")),
    "quantize": Form(("model", "task"), "model", ("model", "task")),
    "export": Form(("model",), "model", ("model", "base", "adapter")),
    "label": Form(("model", "task"), "", ("model", "task", "reward", "earlier"), ".jsonl"),
    "evaluate": Form(("model", "task"), "", ("model", "task", "reward", "adapter"), ".jsonl"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A command, whose arguments may name what earlier stages have made."""

    name: str
    command: str
    fields: Mapping[str, Any]  # Arguments by key, as they stand in the file.
    instead: str | None = None  # What stands in place of the stage's output where it is left out.

    @property
    def form(self) -> Form:
        """Arguments of the command."""
        return FORMS[self.command]

    @property
    def ending(self) -> str:
        """Ending of the file that it makes; "" is a folder."""
        return ".gguf" if self.fields.get("format") == "gguf" else self.form.ending

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the stages that it refers to, in the order of their first mention."""
        return (*dict.fromkeys(n for text in _texts(self.fields) for n in references(text)),)

    @property
    def begins_with(self) -> str:
        """Model that it begins with, as it stands in the file; "" if it has none."""
        value = self.fields.get(self.form.begins_with, "")
        return value[0] if isinstance(value, list) and value else str(value or "")

    def arguments(self, place: Callable[[str], str], out: str) -> list[str]:
        """Returns the arguments of `kullback`.

        Args:
          place: name of an earlier stage -> path of what it has made.
          out: path of what this one makes.
        """
        form, fields = self.form, _filled(self.fields, place)
        given = [
            str(x) for key in form.positional if key in fields for x in _listed(fields.pop(key))
        ]
        flags = []
        for key in sorted(fields):
            flag, value = f"--{form.tables.get(key, key).replace('_', '-')}", fields[key]
            if isinstance(value, Mapping):
                flags += [f"{flag}={field}={_shown(value[field])}" for field in value]
            elif isinstance(value, list):
                flags += [flag, *map(str, value)]
            elif isinstance(value, bool):
                flags += [flag] if value else []
            else:
                flags.append(f"{flag}={value}")
        return [self.command, *given, f"--out={out}", *flags]

    def named_paths(self, place: Callable[[str], str]) -> list[str]:
        """Returns texts in which the command's arguments name files, of values as in `place`."""
        fields = _filled(self.fields, place)
        return [str(x) for key in self.form.paths if key in fields for x in _listed(fields[key])]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The contents of a pipeline's file."""

    stages: Mapping[str, Stage]  # By name, in their order.
    out: str | None
    report: Mapping[str, Any]  # Fields of `summary.Settings`; empty: there is no report.

    def without(self, left_out: Sequence[str]) -> "Pipeline":
        """Returns the pipeline without some stages, in whose place stands what they began with.

        Raises:
          ValueError: for an unknown stage, or one of which others need what nothing can replace.
        """
        for name in left_out:
            if name not in self.stages:
                raise ValueError(names.unknown("stage", name, self.stages))

        def place(name: str) -> str:
            if name not in left_out:
                return f"{{{name}}}"
            stage = self.stages[name]
            text = stage.begins_with if stage.instead is None else stage.instead
            if not references(text) and stage.instead is None:
                raise ValueError(
                    f"stage {name} cannot be left out: others need it, and it begins with none of "
                    'them; say what they take in its place by instead = "{stage}"'
                )
            return filled(text, place)

        kept = {
            name: dataclasses.replace(stage, fields=_filled(stage.fields, place))
            for name, stage in self.stages.items()
            if name not in left_out
        }
        if not kept:
            raise ValueError("all stages are left out")
        return dataclasses.replace(self, stages=kept, report=_filled(self.report, place))


def read(source: str | pathlib.Path | Mapping[str, Any]) -> Pipeline:
    """Reads a pipeline's file, or its contents.

    Raises:
      ValueError: for a file that is no TOML; for what is unknown, missing or of another type; for a
        reference to a stage that does not come before.
    """
    contents, file = toml_files.read(source)
    toml_files.check_known("key", contents, TOP)
    tables = toml_files.table(contents, "stage")
    if not tables:
        raise ValueError(f"{file or 'the pipeline'}: no stage; expected tables [stage.NAME]")
    stages: dict[str, Stage] = {}
    for name, table in tables.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"stage {name!r} must be a letter, then letters, digits, _ or -")
        stages[name] = _stage(name, toml_files.mapping(f"stage.{name}", table), stages)
    out = contents.get("out")
    if out is not None and not isinstance(out, str):
        raise ValueError(f"out must be the folder of the pipeline, got {out!r}")
    report = toml_files.table(contents, "report")
    for text in _texts(report):
        _check_references("report", text, stages)
    return Pipeline(stages=stages, out=out, report=report)


def check(stage: Stage, *, trust_code: bool) -> None:
    """Checks a command as far as that is possible before earlier stages have run.

    Raises:
      ValueError: with the stage's name, for arguments that the command does not take, settings that
        the agent does not have, or code that is not trusted.
    """
    try:
        _check_command(stage)
        for text in _texts(stage.fields):
            check_trust(text, trust_code=trust_code)
    except (ValueError, TypeError) as error:
        raise ValueError(f"stage {stage.name}: {error}") from error


def check_trust(reward: str, *, trust_code: bool) -> None:
    """Raises ValueError for a reward that runs code or asks a server, unless it may."""
    from kullback.experiments.runs import plans

    if plans.names_code(reward) and not trust_code:
        raise ValueError(
            f"{reward!r} would run code of that module, or send texts to that server; if you know "
            "it, add --trust-code"
        )


def references(text: str) -> list[str]:
    """Returns the names in braces of a text."""
    return _REFERENCE.findall(text)


def filled(text: str, place: Callable[[str], str]) -> str:
    """Returns a text with what `place` says for each name in braces."""
    return _REFERENCE.sub(lambda match: place(match[1]), text)


def _check_command(stage: Stage) -> None:
    from kullback.experiments import catalog, cli
    from kullback.experiments.runs import plans, resolved

    arguments = stage.arguments(lambda name: f"_{name}", "_out")
    options = cli.parse(arguments)
    if stage.command != "train":
        return
    catalog.check(options.agent, options.environment)
    fields = {n: x for n in plans.FLAGS if (x := getattr(options, n, None)) not in (None, [])}
    plan = plans.Plan(agent=options.agent, environment=options.environment, **fields)
    if plan.kind == "games":
        raise ValueError(f"a stage trains a language or reward model, got {plan.environment}")
    if plan.num_seeds > 1 and plan.kind == "language":
        raise ValueError("a stage makes one model: give num_seeds to reward models alone")
    resolved.resolve(plan)


def _stage(name: str, table: Mapping[str, Any], before: Mapping[str, Stage]) -> Stage:
    command = str(table.get("run"))
    if command not in FORMS:
        raise ValueError(f"stage {name}: " + names.unknown("run", command, FORMS))
    fields = {key: value for key, value in table.items() if key not in _OWN}
    instead, form = table.get("instead"), FORMS[command]
    if instead is not None and not isinstance(instead, str):
        raise ValueError(f"stage {name}: instead must be a text, got {instead!r}")
    for key, value in fields.items():
        if key == "out":
            raise ValueError(f"stage {name}: out follows from the pipeline's")
        if isinstance(value, Mapping) != (key in form.tables):
            wanted = "a table of field = value" if key in form.tables else "no table"
            raise ValueError(f"stage {name}: {key} must be {wanted}, got {value!r}")
        for item in value.values() if isinstance(value, Mapping) else _listed(value):
            if not all(isinstance(x, str | int | float) for x in _listed(item)):
                raise ValueError(
                    f"stage {name}: {key} must be a number, a text, true or false, got {value!r}"
                )
    for text in (*_texts(fields), instead or ""):
        _check_references(f"stage {name}", text, before)
    return Stage(name=name, command=command, fields=fields, instead=instead)


def _check_references(where: str, text: str, before: Mapping[str, Stage]) -> None:
    for name in references(text):
        if name not in before:
            known = ", ".join(before) or "none"
            raise ValueError(
                f"{where}: {{{name}}} must be a stage that comes before it ({known}), in {text!r}"
            )


def _filled(fields: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, Any]:
    """Returns fields with what `place` says for each name in braces."""

    def of(value: Any) -> Any:
        if isinstance(value, str):
            return filled(value, place)
        if isinstance(value, list):
            return [of(x) for x in value]
        return {k: of(x) for k, x in value.items()} if isinstance(value, Mapping) else value

    return {key: of(value) for key, value in fields.items()}


def _texts(value: Any) -> list[str]:
    """Returns all texts in a value."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [text for x in value for text in _texts(x)] if isinstance(value, list) else []


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
