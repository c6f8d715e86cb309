"""Tests of learning from rewards and preferences over a mesh: one processor plays four devices."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from kullback.experiments.runs import models
from kullback.lm import gemma, tasks, tokenizer
from kullback.lm.formats import hugging_face
from tests import small_models

TASK = "tokens/arithmetic"
STEPS = 4
SETTINGS = ("max_prompt_length=8", "max_new_tokens=4", "warmup_steps=0", "learning_rate=1e-3")
REWARDED = (*SETTINGS, "batch_size=8", "samples_per_prompt=2")
ADAPTERS = ("lora.rank=2", "lora.shared_a=true", "lora.train_tokens=<eos>")
# By name: the algorithm, and its settings. The reward of the first is of the judge over the mesh.
ALGORITHMS = {
    "judge": ("reward-model", (*SETTINGS, "batch_size=8", "probe_pairs=8")),
    "judge with adapters": ("reward-model", (*SETTINGS, *ADAPTERS, "batch_size=8")),
    "warm": ("warm", (*SETTINGS[:3], "batch_size=8", "probe_pairs=8", "learning_rates=1e-3")),
    "rlhf": ("rlhf", (*REWARDED, "reference=moving-average")),
    "grpo": ("rlhf", (*REWARDED, "variant=grpo", "epochs=2", "minibatches=2")),
    "dpo": ("dpo", (*SETTINGS, "batch_size=8")),
    "rlef": ("rlef", (*SETTINGS, "batch_size=8")),
    "warp": ("warp", (*REWARDED, "members=2", "member_steps=1")),
    "bond": ("bond", (*SETTINGS, "batch_size=12", "regularisation=0.5")),
    "bond with adapters": ("bond", (*SETTINGS, *ADAPTERS, "batch_size=12")),
}

PROGRAM = """
import contextlib, io, json, pathlib, sys
import jax, numpy as np
from kullback import lm
from kullback.core import checkpoints, trees
from kullback.experiments import cli
from kullback.experiments.runs import language_setup, plans, preferences, resolved

given = json.loads(sys.argv[1])
root, results, ends = pathlib.Path(given["root"]), {}, {}


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(trees.to_numpy(a), trees.to_numpy(b))
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


def train(name, mesh):
    agent, settings = given["algorithms"][name]
    entry = lm.ALGORITHMS[agent]
    named = resolved.resolve(plans.Plan(
        agent=agent,
        environment=given["pairs" if entry.reads_pairs else "task"],
        model=given["start"],
        settings=settings,
        steps=given["steps"],
        num_seeds=2 if entry.is_population else 1,
        reward=f"reward-model:{root / 'judge'}" if entry.takes_reward else "",
        mesh=mesh,
    ))
    work = (preferences if named.plan.kind == "preferences" else language_setup).setup(named)
    loop = work.loop((0,), lambda steps, texts: None, 1, contextlib.nullcontext)
    state, rows = loop.init(), []
    while loop.steps(state) < given["steps"]:
        if loop.steps(state) == given["steps"] // 2:
            saved = jax.tree.map(lambda x: x.copy(), loop.snapshot(state))
        state = loop.advance(state, loop.steps(state) + 1)
        state, (row,) = loop.rows(state)
        rows.append([row["loss"], row.get("kl_start", 0), row["return_mean"]])
    again = loop.restore(saved)
    while loop.steps(again) < given["steps"]:
        again = loop.advance(again, loop.steps(again) + 1)
        again, _ = loop.rows(again)
    if mesh:
        same(again.learner, state.learner)
        ends[name] = loop, state
    named = trees.named_leaves(state.learner.params)
    shapes = {path: x.addressable_shards[0].data.shape for path, x in named.items()}
    return {"rows": np.asarray(rows, float).tolist(), "shapes": shapes}


def run(*command):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        status = cli.main([*command])
    assert status == 0, error.getvalue()


def arguments(name, *more):
    agent, settings = given["algorithms"][name]
    return [agent, *more, "--model", given["start"], "--mesh", "2x2",
            *(f"--set={x}" for x in settings), "--log-every", "1", "--out", str(root / name)]


half, whole = str(given["steps"] // 2), str(given["steps"])
run("train", *arguments("judge", given["pairs"]), "--steps", half)
run("train", "--resume", str(root / "judge"), "--steps", whole)
for name in given["algorithms"]:
    results[name] = {mesh: train(name, mesh) for mesh in ("", "2x2")}
reward = f"reward-model:{root / 'judge'}"
run("train", *arguments("bond", given["task"]), "--reward", reward, "--steps", half)
run("train", "--resume", str(root / "bond"), "--steps", whole)
run("train", *arguments("warp", given["task"]), "--reward", reward, "--steps", whole)
for name in ("judge", "bond", "warp"):
    loop, state = ends[name]
    saved, _, step = checkpoints.restore_latest(root / name / "checkpoints", loop.template())
    assert step == given["steps"]
    same(loop.restore(saved).learner, state.learner)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("mesh")


@pytest.fixture(scope="module")
def results(root: pathlib.Path) -> dict[str, Any]:
    """Returns the results of a process with four devices, over a mesh and on one of them."""
    bpe = tokenizer.train_bpe(tasks.make(TASK).texts("train"), 512)
    tokenizer.save(bpe, root / "words")
    config = small_models.divisible(bpe)
    params = gemma.make(config).init(jax.random.key(1))
    hugging_face.save(root / "start", config, params, sorted((root / "words").iterdir()))
    rows = [
        {"prompt": f"{n}+{m}=", "chosen": str(n + m), "rejected": str(n + m + 1)}
        for n in range(8)
        for m in range(9)
    ]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "root": str(root),
        "task": TASK,
        "pairs": f"tokens/preferences:{root / 'pairs.jsonl'}",
        "start": str(root / "start"),
        "steps": STEPS,
        "algorithms": ALGORITHMS,
    }
    # What is compiled here runs for milliseconds.
    fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count=4 {fast}"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(given)],
        env=os.environ | flags,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_over_a_mesh_is_as_on_one_device(results: dict[str, Any], name: str):
    """The process resumes as well, to the last bit: half-way, and by the command line."""
    on_one, over_mesh = results[name][""], results[name]["2x2"]
    assert len({tuple(row) for row in on_one["rows"]}) == STEPS
    np.testing.assert_allclose(over_mesh["rows"], on_one["rows"], rtol=1e-3, atol=1e-4)
    halved = [x for x, shape in on_one["shapes"].items() if over_mesh["shapes"][x] != shape]
    assert any(name.endswith(("query", "query/b")) for name in halved)
    assert ("adapters" in name) == (not any(name.endswith("embedding") for name in halved))


@pytest.mark.slow
def test_what_it_leaves_is_a_model_as_any(results: dict[str, Any], root: pathlib.Path):
    assert results
    for path in (root / "bond", root / f"warp/merged-{STEPS:06d}"):
        assert not jax.tree.leaves(models.load(path).params)[0].committed
    assert (root / "warp" / "front.csv").is_file()
