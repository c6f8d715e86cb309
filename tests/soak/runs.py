"""Small runs of every kind, and what makes two of them the same."""

import csv
import dataclasses
import hashlib
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.soak import server, trials

WALL_TIME = ("steps_per_second", "wall_seconds")
GAME = ("torso=mlp_small", "capacity=256", "min_replay_size=32", "batch_size=8")
SHORT = ("batch_size=4", "max_prompt_length=8", "max_new_tokens=4")
ACTED = (*SHORT, "samples_per_prompt=2", "learning_rate=1e-3", "warmup_steps=2")
PAIRED = (*SHORT, "probe_pairs=16")
TINY = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
GAMES = "--num-envs 2 --log-every 50 --checkpoint-every 50 --eval-every 200 --eval-episodes 2"
TEXTS = "--log-every 2 --checkpoint-every 2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A run of some kind, as its command says."""

    agent: str
    environment: str
    flags: str
    settings: tuple[str, ...]
    model: str = ""  # Of which other run it starts.
    model_flags: tuple[str, ...] = ()
    teacher: str = ""
    reward: str = ""
    repeats: bool = True  # Bit by bit when it goes on; else episodes begin anew.


KINDS = {
    "toy": Kind(
        agent="m-dqn",
        environment="toy/chain",
        flags=f"--steps 400 {GAMES}",
        settings=(*GAME, "priority_exponent=0.5"),
    ),
    "toy_seeds": Kind(
        agent="iqn",
        environment="toy/chain",
        flags=f"--steps 400 --num-seeds 3 {GAMES}",
        settings=GAME,
    ),
    "minatar": Kind(
        agent="dqn",
        environment="minatar/breakout",
        flags=f"--steps 400 {GAMES}",
        settings=GAME,
    ),
    "minatar_seeds": Kind(
        agent="c51",
        environment="minatar/freeway",
        flags=f"--steps 300 --num-seeds 2 {GAMES}",
        settings=GAME,
    ),
    "gym": Kind(
        agent="dqn",
        environment="gym/CartPole-v1",
        flags=f"--steps 400 {GAMES}",
        settings=GAME,
        repeats=False,
    ),
    "gym_seeds": Kind(
        agent="rainbow",
        environment="gym/CartPole-v1",
        flags=f"--steps 300 --num-seeds 2 {GAMES}",
        settings=(*GAME, "num_atoms=11"),
        repeats=False,
    ),
    "atari": Kind(
        agent="dqn",
        environment="atari/pong",
        flags="--steps 120 --num-envs 2 --log-every 40 --checkpoint-every 40",
        settings=GAME,
        repeats=False,
    ),
    "sft": Kind(
        agent="sft",
        environment="tokens/arithmetic",
        flags=f"--steps 8 --eval-every 4 --eval-episodes 4 {TEXTS}",
        settings=(*SHORT, "learning_rate=1e-2"),
        model="tiny",
        model_flags=TINY,
    ),
    "sft_seeds": Kind(
        agent="sft",
        environment="tokens/jsonl:{home}/rows.jsonl",
        flags=f"--steps 6 --num-seeds 2 {TEXTS}",
        settings=(*SHORT, "learning_rate=1e-2"),
        model="tiny",
        model_flags=TINY,
    ),
    "gkd": Kind(
        agent="gkd",
        environment="tokens/arithmetic",
        flags=f"--steps 6 --eval-every 2 --eval-episodes 4 {TEXTS}",
        settings=SHORT,
        model="tiny",
        model_flags=TINY,
        teacher="sft",
    ),
    "rlhf": Kind(
        agent="rlhf",
        environment="tokens/arithmetic",
        flags=f"--steps 6 {TEXTS}",
        settings=(*ACTED, "reference=moving-average"),
        model="sft",
        reward="exact-0.01*length",
    ),
    "warp": Kind(
        agent="warp",
        environment="tokens/arithmetic",
        flags=f"--steps 8 {TEXTS}",
        settings=(*ACTED, "members=2", "member_steps=2"),
        model="sft",
        reward="length",
    ),
    "reward_model": Kind(
        agent="reward-model",
        environment="tokens/preferences:{home}/pairs.jsonl",
        flags=f"--steps 6 {TEXTS}",
        settings=(*PAIRED, "dropout=0.1"),
        model="sft",
    ),
    "warm": Kind(
        agent="warm",
        environment="tokens/preferences:{home}/pairs.jsonl",
        flags=f"--steps 6 --num-seeds 2 {TEXTS}",
        settings=(*PAIRED, "starts=4,8", "learning_rates=1e-2"),
        model="sft",
    ),
}


@dataclasses.dataclass(frozen=True)
class Reference:
    """A run that nothing disturbed."""

    path: pathlib.Path
    seconds: float
    digest: dict[str, Any]


def begin(workshop: trials.Workshop, name: str, out: str) -> tuple[str, ...]:
    """Returns the command that begins a run; what it starts from must be there."""
    kind, home = KINDS[name], workshop.home
    flags = list(kind.flags.split())
    for flag, value in (("--model", kind.model), ("--teacher", kind.teacher)):
        if value:
            flags += [flag, str(home / value) if value in KINDS else value]
    if kind.reward:
        flags.append(f"--reward={kind.reward}")
    flags += [f"--set={text}" for text in kind.settings]
    flags += [f"--model-flag={text}" for text in kind.model_flags]
    environment = kind.environment.format(home=home)
    return ("train", kind.agent, environment, f"--out={out}", *flags)


def begin_or_go_on(workshop: trials.Workshop, name: str, out: pathlib.Path) -> tuple[str, ...]:
    """Returns the command that a person gives after an interruption."""
    if out.is_dir() and any(out.iterdir()):
        return ("train", "--resume", out.name)
    return begin(workshop, name, out.name)


def reference(workshop: trials.Workshop, name: str) -> Reference:
    """Returns the undisturbed run of a kind, made where it is not there yet, with its needs."""
    path, note = workshop.home / name, workshop.home / f"{name}.json"
    if not note.is_file():
        kind = KINDS[name]
        for needed in (kind.model, kind.teacher):
            if needed in KINDS:
                reference(workshop, needed)
        write_data(workshop.home)
        shutil.rmtree(path, ignore_errors=True)
        keeps = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        call = workshop.call(workshop.home, *begin(workshop, name, name), environment=keeps)
        outcome = server.run(call, server.Limits(seconds=300))
        if outcome.status:
            raise RuntimeError(f"the undisturbed run {name} failed: {outcome.err}")
        digest = server.compute(digest_of, path)
        note.write_text(json.dumps({"seconds": outcome.seconds, "digest": digest}))
    noted = json.loads(note.read_text())
    return Reference(path, noted["seconds"], noted["digest"])


def write_data(home: pathlib.Path) -> None:
    """Writes rows to learn from, and pairs of answers."""
    sums = [(n, m) for n in range(8) for m in range(12)]
    rows = [{"prompt": f"{n}+{m}=", "completion": str(n + m)} for n, m in sums]
    pairs = [
        {"prompt": f"{n}+{m}=", "chosen": str(n + m), "rejected": str(n + m + 1 + n % 3)}
        for n, m in sums
    ]
    for name, lines in (("rows", rows), ("pairs", pairs)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (home / f"{name}.jsonl").write_text(text)


def digest_of(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a run has to repeat: rows of its tables, texts, and arrays of its checkpoints.

    Reads without the library under test: it would hide its own mistakes.
    """
    import orbax.checkpoint as ocp

    found: dict[str, Any] = {}
    for file in sorted((*path.rglob("*.csv"), *path.rglob("*.jsonl"))):
        name = str(file.relative_to(path))
        text = file.read_text("utf-8")
        found[name] = rows_of(text) if file.name == "metrics.csv" else text
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    for folder in sorted(path.rglob("checkpoints")):
        names = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
        newest = folder / max(names, key=lambda name: [int(n) for n in name.split(".")])
        arrays = reader.restore((newest / "arrays").absolute())
        hashes = {key: hashlib.sha256(np.asarray(x).tobytes()) for key, x in _leaves(arrays)}
        step = str(folder.relative_to(path))
        found[step] = {key: one.hexdigest() for key, one in hashes.items()}
    return found


def rows_of(text: str) -> list[dict[str, str]]:
    """Returns the rows of metrics.csv without what the clock decides."""
    rows = csv.DictReader(text.splitlines())
    return [{k: v for k, v in row.items() if k not in WALL_TIME} for row in rows]


def _leaves(tree: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(prefix, tree)]
    return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{prefix}/{key}")]


def newest_steps(path: pathlib.Path) -> int:
    """Returns the least step, over seeds, that the newest checkpoints of a run stand at."""
    folders = list(path.rglob("checkpoints"))
    steps = [
        max((int(one.name.split(".")[0]) for one in folder.glob("[0-9]*")), default=0)
        for folder in folders
    ]
    return min(steps, default=0)


def difference(name: str, expected: Reference, path: pathlib.Path, since: int | None) -> str:
    """Says how a finished run differs from the undisturbed one; "" where it does not.

    Args:
      name: of the kind.
      expected: the undisturbed run.
      path: the other one.
      since: the step at which it first went on after an interruption; None if it never did.
    """
    found = server.compute(digest_of, path)
    if KINDS[name].repeats or since is None:
        return _unequal(expected.digest, found)
    # Running episodes began anew: what was before is the same, and every row is there once.
    for file in (file for file in expected.digest if file.endswith("metrics.csv")):
        rows, others = expected.digest[file], found.get(file, [])
        if _places(rows) != _places(others):
            return f"{file} has rows at {_places(others)}, expected {_places(rows)}"
        for row, other in zip(rows, others, strict=True):
            if int(row["steps"]) <= since and row != other:
                return f"{file} differs at step {row['steps']}, before {since}: {other}"
    return ""


def _places(rows: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    return [(row["seed"], row["steps"]) for row in rows]


def _unequal(one: dict[str, Any], other: dict[str, Any]) -> str:
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if a != b:
            detail = ""
            if isinstance(a, dict) and isinstance(b, dict):
                detail = ": " + ", ".join(k for k in sorted({*a, *b}) if a.get(k) != b.get(k))[:200]
            elif isinstance(a, list) and isinstance(b, list):
                detail = f": {len(a)} rows and {len(b)}; " + str(
                    next(((x, y) for x, y in zip(a, b, strict=False) if x != y), "")
                )
            return f"{key} differs{detail}"
    return ""
