"""Tests of runs of language models over a mesh: eight devices that one processor plays."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from kullback.experiments import cli
from kullback.experiments.runs import models, plans
from kullback.lm import gemma, tasks, tokenizer
from kullback.lm.formats import hugging_face

TASK = "tokens/arithmetic"
MODEL = {
    "num_layers": 2,
    "pattern": 1,
    "embed_dim": 32,
    "hidden_dim": 64,
    "window": 4,
    "num_heads": 8,
    "num_kv_heads": 4,
    "vocab_size": 264,  # Two more than the tokenizer has: eight divide it.
}
SETTINGS = (
    "batch_size=8",
    "max_prompt_length=8",
    "max_new_tokens=4",
    "warmup_steps=0",
    "student_fraction=0.5",
    "mixing=row",
)

PROGRAM = """
import contextlib, io, json, pathlib, sys
import jax, numpy as np
from kullback.core import checkpoints, trees
from kullback.experiments import cli
from kullback.experiments.runs import language_setup, models, plans, resolved

given = json.loads(sys.argv[1])
root, results = pathlib.Path(given["root"]), {}


ends = {}
for mesh in ("", "8x1", "4x2", "1x8"):
    setup = language_setup.setup(
        resolved.resolve(plans.Plan(
            agent="gkd",
            environment=given["task"],
            model="tiny",
            model_flags=given["flags"],
            teacher=given["teacher"],
            settings=given["settings"],
            mesh=mesh,
        ))
    )
    loop, losses = setup.loop((0,)), []
    state = loop.init()
    while loop.steps(state) < 10:
        state = loop.advance(state, loop.steps(state) + 1)
        state, (row,) = loop.rows(state)
        losses.append(row["loss"])
    arrays = {
        "embedding": state.learner.params["embedding"],
        "moment": state.learner.opt_state[1][0].mu["embedding"],
        "teacher": setup.teacher.params["periods"]["layer_0"]["attention"]["query"],
    }
    shapes = {name: x.addressable_shards[0].data.shape for name, x in arrays.items()}
    results[mesh], ends[mesh] = {"losses": losses, **shapes}, (loop, state)

# Adapters beside the teacher, which is cut as it is when it learns itself.
for mesh in ("", "4x2"):
    setup = language_setup.setup(
        resolved.resolve(plans.Plan(
            agent="sft",
            environment=given["task"],
            model=given["teacher"],
            settings=(*given["settings"][:4], "lora.rank=2", "lora.train_tokens=<eos>"),
            mesh=mesh,
        ))
    )
    loop, losses = setup.loop((0,)), []
    state = loop.init()
    while loop.steps(state) < 5:
        state = loop.advance(state, loop.steps(state) + 1)
        state, (row,) = loop.rows(state)
        losses.append(row["loss"])
    factor = state.learner.params["periods"]["layer_0"]["attention/query"]["b"]
    shape = factor.addressable_shards[0].data.shape
    results[f"adapters {mesh}"] = {"losses": losses, "factor": shape}

model = [f"--model-flag={flag}" for flag in given["flags"]]
settings = [f"--set={setting}" for setting in given["settings"]]
train = ["train", "gkd", given["task"], "--model", "tiny", "--teacher", given["teacher"]]
train += [*model, *settings, "--steps", "5", "--log-every", "1"]
out = str(root / "run")
commands = {
    "train": [*train, "--mesh", "4x2", "--out", out],
    "go on": ["train", "--resume", out, "--steps", "10"],
    "other": ["train", "--resume", out, "--mesh", "8x1"],
    "devices": [*train, "--mesh", "3x2"],
    "rows": [*train, "--set=batch_size=6", "--mesh", "4x2"],
    "text": [*train, "--mesh", "4"],
    "game": ["train", "dqn", "toy/chain", "--mesh", "4x2"],
}
results["said"] = {}
for name, command in commands.items():
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        results["said"][name] = [cli.main(command), error.getvalue()]

# The run that stopped half-way is the one that did not, to the last bit.
loop, whole = ends["4x2"]
saved, _, step = checkpoints.restore_latest(root / "run" / "checkpoints", loop.template())
part = loop.restore(saved)
assert step == part.steps == whole.steps == 10
pairs = zip(jax.tree.leaves(part[1:3]), jax.tree.leaves(whole[1:3]), strict=True)
for one, other in pairs:
    np.testing.assert_array_equal(trees.to_numpy(one), trees.to_numpy(other))
    assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("mesh")


@pytest.fixture(scope="module")
def results(root: pathlib.Path) -> dict[str, Any]:
    """Returns the results of a process with eight devices."""
    bpe = tokenizer.train_bpe(tasks.make(TASK).texts("train"), 512)
    tokenizer.save(bpe, root / "words")
    ids = {"bos_id": bpe.bos_id, "eos_ids": bpe.eos_ids, "pad_id": bpe.pad_id}
    config = gemma.Config(**MODEL, **ids, head_dim=8, query_scale=8.0)
    params = gemma.make(config).init(jax.random.key(1))
    hugging_face.save(root / "teacher", config, params, sorted((root / "words").iterdir()))
    given = {
        "root": str(root),
        "task": TASK,
        "teacher": str(root / "teacher"),
        "flags": [f"{name}={value}" for name, value in MODEL.items()],
        "settings": SETTINGS,
    }
    # What is compiled here runs for milliseconds.
    fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {fast}"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(given)],
        env=os.environ | flags,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("mesh", ["8x1", "4x2", "1x8"])
@pytest.mark.slow
def test_losses_over_a_mesh_are_those_of_one_device(results: dict[str, Any], mesh: str):
    """Ten steps of GKD, half of whose rows the student samples; the process resumes as well."""
    expected = results[""]["losses"]
    assert len(expected) == 10 and min(expected) > 0 and len(set(expected)) == 10
    np.testing.assert_allclose(results[mesh]["losses"], expected, rtol=1e-4)
    model = int(mesh[-1])
    assert results[mesh]["embedding"] == results[mesh]["moment"] == [264 // model, 32]
    assert results[mesh]["teacher"] == [2, 32, 64 // model]


@pytest.mark.slow
def test_adapters_over_a_mesh_learn_as_on_one_device(results: dict[str, Any]):
    expected, got = results["adapters "], results["adapters 4x2"]
    assert len(set(expected["losses"])) == 5
    np.testing.assert_allclose(got["losses"], expected["losses"], rtol=1e-4)
    assert got["factor"] == [2, 2, 32] and expected["factor"] == [2, 2, 64]


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("train", 0, ""),
        ("go on", 0, ""),
        ("other", 2, "a run cannot change its mesh"),
        ("devices", 2, "mesh 3x2 is of 6 devices, and there are 8"),
        ("rows", 2, "batch_size=6 does not divide by 4, the data axis of mesh 4x2"),
        ("text", 2, "a mesh is DATAxMODEL devices, such as 4x2, got '4'"),
        ("game", 2, "mesh is for language models"),
    ],
)
@pytest.mark.slow
def test_the_command_line(results: dict[str, Any], name: str, status: int, message: str):
    got, error = results["said"][name]
    assert got == status and message in error
    assert status == 0 or error.count("\n") == 1


@pytest.mark.slow
def test_a_run_over_a_mesh_needs_its_devices_and_is_a_model_as_any(
    results: dict[str, Any], root: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["train", "--resume", str(root / "run"), "--steps", "11"]) == 2
    assert "mesh 4x2 is of 8 devices, and there are 1" in capsys.readouterr().err
    saved = json.loads((root / "run" / "config.json").read_text())["plan"]
    assert plans.Plan.from_json(saved).mesh == "4x2" and saved["steps"] == 10
    assert not jax.tree.leaves(models.load(root / "run").params)[0].committed
