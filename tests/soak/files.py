"""Damaged files, and those of people who mean harm, under every command that reads them.

A command may refuse in one line, and then nothing has changed; or it does what it does with whole
files; or says what it leaves out. What carries checksums never computes anything else unsaid. In a
file without, such as one of weights, bytes may be others and nobody can know.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any

import numpy as np

from tests.soak import damage, runs, server, stock, trials

LIMITS = server.Limits(seconds=120)
TIMES = re.compile(r"[\d.,:]+ ?(s|ms|MB|kB|steps/s|tokens/s|GB|seconds)\b")


@dataclasses.dataclass(frozen=True)
class Reader:
    """A command, and the files among what it reads."""

    command: str
    needs: tuple[str, ...]
    files: tuple[str, ...]  # Patterns of names.
    has_checksums: bool = False
    run: str = ""  # The kind of run that it goes on with, whose end is compared.


STEPS = "--steps=2 --out=new --set=batch_size=4 --set=max_prompt_length=8 --set=max_new_tokens=4"
PARTS = "checkpoints/*/*.json", "checkpoints/*/**/*"
READERS = {
    "resume toy": Reader(
        "train --resume toy --steps=500",
        ("toy",),
        ("toy/config.json", "toy/metrics.csv", *(f"toy/{part}" for part in PARTS)),
        has_checksums=True,
        run="toy",
    ),
    "resume seeds": Reader(
        "train --resume gym_seeds --steps=400",
        ("gym_seeds",),
        ("gym_seeds/**/*.json", "gym_seeds/**/metrics.csv", "gym_seeds/*/replay/*"),
        has_checksums=True,
        run="gym_seeds",
    ),
    "resume sft": Reader(
        "train --resume sft --steps=10",
        ("sft",),
        ("sft/*.json", "sft/*.csv", "sft/*.jsonl", "sft/tokenizer/*", f"sft/{PARTS[1]}"),
        has_checksums=True,
        run="sft",
    ),
    "resume warm": Reader(
        "train --resume warm --steps=8",
        ("warm", "sft", "pairs.jsonl"),
        ("warm/**/*.json", "warm/**/*.csv", f"warm/*/{PARTS[1]}", "pairs.jsonl"),
        has_checksums=True,
        run="warm",
    ),
    "resume warp": Reader(
        "train --resume warp --steps=12",
        ("warp", "sft"),
        ("warp/*.json", "warp/*.csv", "warp/*.jsonl", f"warp/{PARTS[1]}"),
        has_checksums=True,
        run="warp",
    ),
    "evaluate toy": Reader(
        "evaluate toy --episodes=2",
        ("toy",),
        ("toy/config.json", *(f"toy/{part}" for part in PARTS)),
    ),
    "evaluate best": Reader(
        "evaluate gym --episodes=2 --best",
        ("gym",),
        ("gym/config.json", "gym/metrics.csv", *(f"gym/{part}" for part in PARTS)),
    ),
    "export toy": Reader(
        "export toy --out=new.safetensors",
        ("toy",),
        ("toy/config.json", f"toy/{PARTS[0]}"),
    ),
    "report": Reader(
        "report toy sft sweep --out=new",
        ("toy", "sft", "sweep"),
        ("toy/config.json", "toy/metrics.csv", "sft/*.json", "sweep/*.json", "sweep/*/*.csv"),
    ),
    "generate run": Reader(
        "generate --model=sft --prompt=1+1= --max-new-tokens=4",
        ("sft",),
        ("sft/*.json", "sft/tokenizer/*", f"sft/{PARTS[0]}"),
    ),
    "generate": Reader(
        "generate --model=model --prompts=prompts.jsonl --max-new-tokens=4",
        ("model", "prompts.jsonl"),
        ("model/*", "model/*", "model/*", "prompts.jsonl"),
    ),
    "chat": Reader(
        "chat --model=converses --max-new-tokens=4",
        ("converses",),
        ("converses/*.json", "converses/tokenizer/*", f"converses/{PARTS[0]}"),
    ),
    "generate gguf": Reader(
        "generate --model=model.gguf --prompt=1+1= --max-new-tokens=4",
        ("model.gguf",),
        ("model.gguf",),
    ),
    "evaluate model": Reader(
        "evaluate model tokens/jsonl:rows.jsonl --episodes=4 --out=new --max-new-tokens=4",
        ("model", "rows.jsonl"),
        ("model/*", "rows.jsonl"),
    ),
    "answer": Reader(
        "answer model rows.jsonl --samples=2 --limit=4 --answers=text --out=new --max-new-tokens=4",
        ("model", "rows.jsonl"),
        ("model/*", "rows.jsonl"),
    ),
    "export": Reader("export sft --out=new", ("sft",), ("sft/*.json", "sft/tokenizer/*")),
    "export gguf": Reader(
        "export model --format=gguf --quantize=f16 --out=new.gguf", ("model",), ("model/*",)
    ),
    "export from gguf": Reader(
        "export model.gguf --format=gguf --quantize=f32 --out=new.gguf",
        ("model.gguf",),
        ("model.gguf",),
    ),
    "quantize": Reader(
        "quantize sft --format=int8 --episodes=2 --out=new",
        ("sft",),
        ("sft/*.json", "sft/tokenizer/*", f"sft/{PARTS[0]}"),
    ),
    "merge": Reader(
        "merge model sft --method=mean --out=new",
        ("model", "sft"),
        ("model/*", "sft/*.json", "sft/tokenizer/*"),
    ),
    "tune": Reader(
        f"train sft tokens/jsonl:rows.jsonl --model=model {STEPS}",
        ("model", "rows.jsonl"),
        ("model/*", "rows.jsonl"),
    ),
    "teach": Reader(
        f"train gkd tokens/arithmetic --model=tiny --teacher=model {STEPS} {runs.TINY}",
        ("model",),
        ("model/*",),
    ),
    "prefer": Reader(
        "train reward-model tokens/preferences:pairs.jsonl --model=model --set=probe_pairs=8 "
        f"{STEPS}",
        ("model", "pairs.jsonl"),
        ("pairs.jsonl", "pairs.jsonl", "model/*"),
    ),
    "reward": Reader(
        f"train rlhf tokens/arithmetic --model=sft {STEPS} --reward=reward-model:reward_model",
        ("sft", "reward_model"),
        ("reward_model/*.json", "reward_model/tokenizer/*", f"reward_model/{PARTS[0]}"),
    ),
    "entail": Reader(
        f"train rlhf tokens/arithmetic --model=sft {STEPS} --reward=entailment:bert",
        ("sft", "bert"),
        ("bert/config.json", "bert/config.json", "bert/model.safetensors", "bert/vocab.txt"),
    ),
    "sweep": Reader(
        "sweep sweep.toml --out=sweep --jobs=1",
        ("sweep.toml", "sweep"),
        ("sweep.toml", "sweep.toml", "sweep/sweep.json", "sweep/*/config.json"),
    ),
    "pipeline": Reader(
        "pipeline pipeline.toml --out=new --dry-run", ("pipeline.toml",), ("pipeline.toml",)
    ),
    "label": Reader(
        "label model tokens/arithmetic --reward=length --prompts=4 --earlier=pairs.jsonl --out=new",
        ("model", "pairs.jsonl"),
        ("model/*", "pairs.jsonl"),
    ),
    "plan": Reader("sweep sweep.toml --dry-run --out=new", ("sweep.toml",), ("sweep.toml",)),
    "reproduce": Reader(
        "reproduce connections --out=theory --set=num_garnets=2",
        ("theory",),
        ("theory/*.json", "theory/*.csv", "theory/*/*"),
    ),
}


def attempt(workshop: trials.Workshop, random: np.random.Generator, number: int) -> trials.Attempt:
    """Damages one file, and gives one command."""
    names = list(READERS)
    name = names[number % len(names)]
    reader = READERS[name]
    expected = reference(workshop, name)
    scratch = workshop.scratch()
    stock.place(workshop, scratch, *reader.needs)
    (scratch / "evil.py").write_text(damage.EVIL)
    file, said = damaged(scratch, reader, random)
    what = f"{name}, {file.relative_to(scratch)}: {said}"
    before, print_before = trials.contents(scratch), fingerprint(scratch)
    outcome = server.run(workshop.call(scratch, *reader.command.split()), LIMITS)
    judged = trials.judged(what, outcome, (0, 2))
    if judged.fault:
        return judged
    if fault := _harm(scratch):
        return trials.Attempt(what=what, fault="wrong", said=fault)
    if outcome.status:
        left = trials.left_behind(before, scratch)
        changed = "" if fingerprint(scratch) == print_before else "something has changed"
        if left or changed:
            said = f"refused, and left {left or changed}: {outcome.err!r}"
            return trials.Attempt(what=what, fault="lost", said=said)
        return judged
    if file.name in runs.DATA and said.startswith(damage.lead.__name__):
        return judged  # There it is another text, as good as the first.
    return compared(what, reader, expected, result(scratch, reader, outcome), outcome, said)


def damaged(
    scratch: pathlib.Path, reader: Reader, random: np.random.Generator
) -> tuple[pathlib.Path, str]:
    """Damages one of the files that a command reads; says which, and how."""
    ways = [name for name in damage.WAYS if name != "remove" or reader.has_checksums]
    while True:
        pattern = reader.files[random.integers(len(reader.files))]
        files = [path for path in sorted(scratch.glob(pattern)) if path.is_file()]
        file = files[random.integers(len(files))]
        way = ways[random.integers(len(ways))]
        before = file.read_bytes()
        said = damage.WAYS[way](file, random) if before else ""
        if said and not (file.is_file() and file.read_bytes() == before and not file.is_symlink()):
            return file, f"{way}: {said}"


def compared(
    what: str,
    reader: Reader,
    expected: dict[str, Any],
    actual: dict[str, Any],
    outcome: server.Outcome,
    said: str,
) -> trials.Attempt:
    """Judges a command that succeeded on a damaged file."""
    if actual == expected or (said.startswith(tuple(damage.UNSEEN)) and not reader.has_checksums):
        return trials.Attempt(what=what)
    text = " ".join((*trials.complaint(outcome), outcome.out))
    if any(word in text for word in ("warning", "skipped", "not whole", "changed: ")):
        return trials.Attempt(what=what)
    differs = [key for key in {*expected, *actual} if expected.get(key) != actual.get(key)]
    first = f"{expected.get(differs[0])!r:.300} became {actual.get(differs[0])!r:.300}"
    told = f"exit 0, {sorted(differs)[:4]} differ: {first}; stderr: {outcome.err[-300:]!r}"
    return trials.Attempt(what=what, fault="wrong", said=told)


def reference(workshop: trials.Workshop, name: str) -> dict[str, Any]:
    """Returns what a command makes of whole files."""
    note = workshop.home / f"{name.replace(' ', '_')}.reader.json"
    if not note.is_file():
        reader = READERS[name]
        scratch = workshop.scratch()
        stock.place(workshop, scratch, *reader.needs)
        keeps = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        call = workshop.call(scratch, *reader.command.split(), environment=keeps)
        outcome = server.run(call, server.Limits(seconds=300))
        if outcome.status:
            raise trials.Failed(f"{name} failed on whole files: {outcome.err}")
        note.write_text(json.dumps(result(scratch, reader, outcome)))
    return json.loads(note.read_text())


def result(scratch: pathlib.Path, reader: Reader, outcome: server.Outcome) -> dict[str, Any]:
    """Returns what a command has computed; JSON-able."""
    if reader.run:
        return server.compute(runs.digest_of, scratch / reader.run)
    digest: dict[str, Any] = {}
    if reader.command.startswith(("evaluate", "generate", "sweep")):
        digest["stdout"] = TIMES.sub("-", outcome.out)
    for path in sorted(scratch.glob("new*/**/*")) + sorted(scratch.glob("new*")):
        name = str(path.relative_to(scratch))
        if path.name == "metrics.csv":
            digest[name] = runs.rows_of(path.read_text())
        elif (
            path.suffix in (".safetensors", ".gguf", ".csv", ".jsonl") and "checkpoints" not in name
        ):
            digest[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return digest


def fingerprint(folder: pathlib.Path) -> str:
    """Returns a hash of all regular files of a folder, but for the locks of runs."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.name != ".lock":
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


def _harm(scratch: pathlib.Path) -> str:
    """Says whether code was executed that a file named, or a file copied that a link led to."""
    if (scratch / damage.EXECUTED).exists():
        return "a module that a file names was executed"
    for path in scratch.glob("new*/**/*"):
        if path.is_file() and damage.SECRET in path.read_bytes():
            return f"{path.relative_to(scratch)} is a copy of what a link out of a folder leads to"
    return ""


CATEGORY = trials.Category("files", 1_000, attempt)
