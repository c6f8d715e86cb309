"""Command lines that nobody could mean, over every command: refused in one line, nothing begun.

Each is one that works, in which one thing is changed: a value, a name, a flag that does not go with
the rest. What is changed is drawn, so that a soak of another seed tries others.
"""

import dataclasses
import functools
import shlex
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from tests.soak import runs, server, stock, trials, values

LIMITS = server.Limits(seconds=120)
KINDS = {
    "count": values.COUNTS,
    "period": values.PERIODS,
    "seed": values.SEEDS,
    "number": values.NUMBERS,
    "in": values.MISSING,
    "out": values.TAKEN,
    "shared": values.SHARED,
    "assignment": values.ASSIGNMENTS,
    "choice": values.CHOICES,
    "agent": values.AGENTS,
    "place": values.PLACES,
    "task": values.TASKS,
    "reward": values.REWARDS,
    "mesh": values.MESHES,
    "model": values.MODELS,
}


@dataclasses.dataclass(frozen=True)
class Line:
    """A command line that works, and what may be put in place of its parts."""

    positional: tuple[str, ...]  # The command and its positional arguments.
    kinds: tuple[str, ...] = ()  # Of the positional arguments, by place.
    flags: tuple[tuple[str, str], ...] = ()  # That it has.
    options: tuple[tuple[str, str], ...] = ()  # It may have, and their kinds.
    needs: tuple[str, ...] = ()

    def text(self) -> tuple[str, ...]:
        """Returns its arguments."""
        return (*self.positional, *(f"{flag}={value}" for flag, value in self.flags))


SHORT = (("--steps", "60"), ("--out", "new/run"))
PACES = tuple((f"--{name}", "count") for name in ("steps", "epochs", "num-envs", "num-seeds"))
PACES += tuple((f"--{name}", "period") for name in ("log-every", "checkpoint-every", "eval-every"))
PACES += (("--eval-episodes", "count"), ("--eval-max-steps", "period"), ("--seed", "seed"))
TRAIN = (*PACES, ("--out", "out"), ("--set", "assignment"), ("--environment-flag", "assignment"))
TEXT = (*PACES, ("--out", "out"), ("--set", "assignment"), ("--model", "model"))
TEXT += (("--model-flag", "assignment"), ("--tokenizer", "in"), ("--overlong", "choice"))
TEXT += (("--mesh", "mesh"),)
TINY = (*SHORT, ("--model", "tiny"), ("--model-flag", "num_layers=1"))
ROWS = "tokens/jsonl:rows.jsonl"
LINES = {
    "train": Line(("train", "dqn", "toy/chain"), ("agent", "place"), SHORT, TRAIN),
    "train_minatar": Line(("train", "iqn", "minatar/freeway"), ("agent", "place"), SHORT, TRAIN),
    "train_gym": Line(("train", "m-dqn", "gym/CartPole-v1"), ("agent", "place"), SHORT, TRAIN),
    "train_atari": Line(("train", "dqn", "atari/pong"), ("agent", "place"), SHORT, TRAIN),
    "train_sft": Line(("train", "sft", ROWS), ("agent", "task"), TINY, TEXT, ("rows.jsonl",)),
    "train_gkd": Line(
        ("train", "gkd", ROWS),
        ("agent", "task"),
        (*TINY, ("--teacher", "sft")),
        (*TEXT, ("--teacher", "model")),
        ("rows.jsonl", "sft"),
    ),
    "train_rlhf": Line(
        ("train", "rlhf", "tokens/arithmetic"),
        ("agent", "task"),
        (*SHORT, ("--model", "sft"), ("--reward", "exact")),
        (*TEXT, ("--reward", "reward")),
        ("sft",),
    ),
    "train_dpo": Line(
        ("train", "dpo", "tokens/preferences:pairs.jsonl"),
        ("agent", "task"),
        (*SHORT, ("--model", "sft")),
        TEXT,
        ("sft", "pairs.jsonl"),
    ),
    "train_rewards": Line(
        ("train", "reward-model", "tokens/preferences:pairs.jsonl"),
        ("agent", "task"),
        (*SHORT, ("--model", "sft")),
        TEXT,
        ("sft", "pairs.jsonl"),
    ),
    "resume": Line(
        ("train",), (), (("--resume", "toy"),), (("--resume", "in"), ("--steps", "count")), ("toy",)
    ),
    "evaluate": Line(
        ("evaluate", "toy"),
        ("in",),
        (("--episodes", "2"),),
        (
            ("--episodes", "count"),
            ("--seed", "seed"),
            ("--max-steps", "period"),
            ("--video", "out"),
        ),
        ("toy",),
    ),
    "evaluate_texts": Line(
        ("evaluate", "sft", "tokens/arithmetic"),
        ("model", "task"),
        (("--episodes", "2"), ("--out", "new")),
        (
            *(("--episodes", "count"), ("--samples", "count"), ("--best-of", "count")),
            *(("--out", "out"), ("--max-prompt-length", "count"), ("--max-new-tokens", "count")),
            *(("--overlong", "choice"), ("--reward", "reward"), ("--seed", "seed")),
        ),
        ("sft",),
    ),
    "answer": Line(
        ("answer", "sft", "rows.jsonl"),
        ("model", "in"),
        (("--samples", "2"), ("--limit", "2"), ("--out", "new"), ("--max-new-tokens", "2")),
        (
            *(("--samples", "count"), ("--limit", "count"), ("--batch-size", "count")),
            *(("--out", "out"), ("--max-new-tokens", "count"), ("--temperature", "number")),
            *(("--validation", "in"), ("--reward", "reward"), ("--seed", "seed")),
            *(("--answers", "choice"), ("--top-p", "number")),
        ),
        ("sft", "rows.jsonl"),
    ),
    "generate": Line(
        ("generate",),
        (),
        (("--model", "sft"), ("--prompt", "1+1="), ("--max-new-tokens", "2")),
        (
            *(("--model", "model"), ("--prompts", "in"), ("--max-new-tokens", "count")),
            *(("--temperature", "number"), ("--top-k", "seed"), ("--top-p", "number")),
            *(("--seed", "seed"), ("--stop-token", "seed"), ("--min-p", "number")),
            *(("--repetition-penalty", "number"), ("--batch-size", "count"), ("--out", "out")),
            *(("--model-flag", "assignment"), ("--image", "in"), ("--audio", "in")),
        ),
        ("sft",),
    ),
    # Nothing is typed: its input is empty.
    "chat": Line(
        ("chat",),
        (),
        (("--model", "converses"), ("--max-new-tokens", "2")),
        (
            *(("--model", "model"), ("--max-new-tokens", "count"), ("--context", "count")),
            *(("--temperature", "number"), ("--top-k", "seed"), ("--top-p", "number")),
            *(("--seed", "seed"), ("--stop-token", "seed"), ("--min-p", "number")),
            *(("--repetition-penalty", "number"), ("--model-flag", "assignment")),
        ),
        ("converses",),
    ),
    "export": Line(
        ("export", "sft"),
        ("in",),
        (("--out", "new"),),
        (("--out", "out"), ("--seed", "seed"), ("--format", "choice"), ("--quantize", "choice")),
        ("sft",),
    ),
    "export_gguf": Line(
        ("export", "model"),
        ("model",),
        (("--out", "new.gguf"), ("--format", "gguf"), ("--quantize", "f16")),
        (("--out", "out"), ("--seed", "seed"), ("--format", "choice"), ("--quantize", "choice")),
        ("model",),
    ),
    "quantize": Line(
        ("quantize", "sft", "tokens/arithmetic"),
        ("in", "task"),
        (("--format", "int8"), ("--episodes", "2"), ("--out", "new"), ("--report", "new.csv")),
        (
            *(("--format", "choice"), ("--table", "choice"), ("--episodes", "count")),
            *(("--seed", "seed"), ("--out", "out"), ("--report", "out")),
        ),
        ("sft",),
    ),
    "merge": Line(
        ("merge", "model", "model"),
        ("model", "model"),
        (("--method", "mean"), ("--out", "new")),
        (
            *(("--method", "choice"), ("--out", "out"), ("--weights", "number")),
            *(("--base", "model"), ("--group", "choice")),
        ),
        ("model",),
    ),
    "merge_slerp": Line(
        ("merge", "model", "model"),
        ("model", "model"),
        (("--method", "slerp"), ("--out", "new"), ("--base", "model")),
        (("--t", "number"), ("--interpolation", "number"), ("--base", "model"), ("--out", "out")),
        ("model",),
    ),
    "report": Line(
        ("report", "toy"),
        ("in",),
        (("--out", "new"),),
        (
            *(("--baseline", "agent"), ("--denominator", "choice"), ("--score", "choice")),
            *(("--steps", "count"),),
        ),
        ("toy",),
    ),
    "sweep": Line(
        ("sweep", "sweep.toml"),
        ("in",),
        (("--out", "new"), ("--jobs", "1")),
        (("--jobs", "count"), ("--out", "shared"), ("--ray", "choice")),
        ("sweep.toml",),
    ),
    "label": Line(
        ("label", "sft", "tokens/arithmetic"),
        ("model", "task"),
        (("--prompts", "4"), ("--reward", "length"), ("--out", "new")),
        (
            *(("--prompts", "count"), ("--swapped", "number"), ("--earlier", "in")),
            *(("--out", "out"), ("--reward", "reward"), ("--seed", "seed")),
            *(("--max-prompt-length", "count"), ("--max-new-tokens", "count")),
        ),
        ("sft",),
    ),
    "pipeline": Line(
        ("pipeline", "pipeline.toml"),
        ("in",),
        (("--out", "new"),),
        (("--out", "shared"), ("--without", "agent")),
        ("pipeline.toml",),
    ),
    "reproduce": Line(
        ("reproduce", "connections"),
        ("agent",),
        (("--out", "new"), ("--set", "num_garnets=1"), ("--set", "iterations=2")),
        (("--out", "out"), ("--set", "assignment"), ("--mdp", "in")),
    ),
    "entailment": Line(
        ("entailment",),
        (),
        (("--out", "new"), ("--set", "steps=1")),
        (("--kind", "choice"), ("--seed", "seed"), ("--out", "out"), ("--set", "assignment")),
    ),
    "fields": Line(("fields", "dqn", "toy"), ("agent", "place")),
    "list": Line(("list",)),
    "cache": Line(("cache",), options=(("--clear", "choice"),)),
}
FAMILIES = {
    "train": ("dqn", "toy"),
    "train_minatar": ("iqn", "minatar"),
    "train_gym": ("m-dqn", "gym"),
    "train_atari": ("dqn", "atari"),
    "train_sft": ("sft", "tokens"),
    "train_gkd": ("gkd", "tokens"),
    "train_rlhf": ("rlhf", "tokens"),
    "train_dpo": ("dpo", "tokens"),
    "train_rewards": ("reward-model", "tokens"),
    "reproduce": ("reproduce", "connections", "--fields"),
    "entailment": ("entailment", "--fields"),
}


@dataclasses.dataclass(frozen=True)
class Broken:
    """A command line that must be refused."""

    arguments: tuple[str, ...]
    sweep: str = ""  # What stands in sweep.toml, if not what works.


T = TypeVar("T")
Way = Callable[[trials.Workshop, np.random.Generator, str], Broken | None]


def _value(workshop: trials.Workshop, random: np.random.Generator, name: str) -> Broken | None:
    """Gives an option a useless value."""
    line = LINES[name]
    if not line.options:
        return None
    flag, kind = _one(random, line.options)
    return Broken(_with(line, flag, _one(random, KINDS[kind])))


def _setting(workshop: trials.Workshop, random: np.random.Generator, name: str) -> Broken | None:
    """Gives a configuration's field a useless value."""
    if name not in FAMILIES:
        return None
    field, kept = _one(random, fields(workshop, FAMILIES[name]))
    return Broken((*LINES[name].text(), f"--set={field}={_one(random, kept)}"))


def _flag(workshop: trials.Workshop, random: np.random.Generator, name: str) -> Broken | None:
    """Gives an environment's flag a useless value."""
    if name not in values.FLAGS:
        return None
    return Broken((*LINES[name].text(), f"--environment-flag={_one(random, values.FLAGS[name])}"))


def _place(workshop: trials.Workshop, random: np.random.Generator, name: str) -> Broken | None:
    """Replaces, drops or adds a positional argument."""
    line = LINES[name]
    place = int(random.integers(len(line.positional) + 1))
    arguments = list(line.positional)
    if place == len(arguments):
        return Broken((*line.text(), *arguments[1:], "extra", "extra"))
    if place == 0:
        arguments[0] = _one(random, (*values.CHOICES, "trian", "Train", "--version", "evaluate "))
    elif not line.kinds or random.random() < 0.2:
        del arguments[place]
        if len(arguments) > 1 and name.startswith(("merge", "evaluate_texts")):
            return None  # It takes fewer, too.
    else:
        arguments[place] = _one(random, KINDS[line.kinds[place - 1]])
    return Broken(dataclasses.replace(line, positional=tuple(arguments)).text())


def _stray(workshop: trials.Workshop, random: np.random.Generator, name: str) -> Broken | None:
    """Appends something that means nothing there."""
    return Broken((*LINES[name].text(), _one(random, values.STRAY)))


def _clash(workshop: trials.Workshop, random: np.random.Generator, name: str) -> Broken | None:
    """Adds an option that does not go with the rest."""
    if name not in values.CLASHES:
        return None
    return Broken((*LINES[name].text(), _one(random, values.CLASHES[name])))


def _file(workshop: trials.Workshop, random: np.random.Generator, name: str) -> Broken | None:
    """Puts an impossible value into a sweep's file."""
    if name != "sweep":
        return None
    key, offered = _one(random, values.SWEEPS)
    value = _one(random, offered)
    lines: list[str] = [*runs.SWEEP.splitlines()]
    entry = f"{key} = {value}" if key else value
    places = [n for n, line in enumerate(lines) if line.split(" ")[0] == key]
    if places:
        lines[places[0]] = entry
    else:
        lines.insert(int(random.integers(len(lines))), entry)
    return Broken(LINES[name].text(), "\n".join(lines) + "\n")


WAYS: tuple[Way, ...] = (_value, _value, _setting, _flag, _place, _stray, _clash, _file)


def attempt(workshop: trials.Workshop, random: np.random.Generator, number: int) -> trials.Attempt:
    """Tries one command line."""
    name = list(LINES)[number % len(LINES)]
    broken = None
    while broken is None:  # Not every way goes with every line.
        broken = _one(random, WAYS)(workshop, random, name)
    scratch = workshop.scratch()
    stock.place(workshop, scratch, *LINES[name].needs)
    (scratch / "notes.txt").write_text("Not what is looked for.\n")
    (scratch / "empty").mkdir()
    (scratch / "full").mkdir()
    (scratch / "full" / "notes.txt").write_text("Not to be overwritten.\n")
    what = f"kullback {shlex.join(broken.arguments)}".encode("utf-8", "backslashreplace")
    if broken.sweep:
        (scratch / "sweep.toml").write_text(broken.sweep)
        what += f" of {broken.sweep!r}".encode()
    before = trials.contents(scratch)
    outcome = server.run(workshop.call(scratch, *broken.arguments), LIMITS)
    judged = trials.judged(what.decode(), outcome, (2,))
    left = trials.left_behind(before, scratch)
    if not judged.fault and left:
        said = f"left behind: {', '.join(left[:5])}; stderr: {outcome.err!r}"
        return trials.Attempt(what=what.decode(), fault="lost", said=said)
    return judged


@functools.cache
def fields(
    workshop: trials.Workshop, command: tuple[str, ...]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Returns the fields of a configuration, each with values that it must refuse."""
    arguments = command if command[-1] == "--fields" else ("fields", *command)
    outcome = server.run(workshop.call(workshop.home, *arguments))
    refused = []
    for line in outcome.out.splitlines():
        kind = next(kind for kind in (*values.SETTINGS, "or") if f" {kind}" in line)
        refused.append((line.split()[0], values.SETTINGS[kind]))
    return tuple(refused)


def _one(random: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(random.integers(len(choices)))]


def _with(line: Line, flag: str, value: str) -> tuple[str, ...]:
    """Returns a line in which an option has another value, or has one more."""
    flags = (*(given for given in line.flags if given[0] != flag), (flag, value))
    return dataclasses.replace(line, flags=flags).text()


CATEGORY = trials.Category("commands", 600, attempt)
