"""Tests of runs that see or hear over a mesh: two devices that one processor plays."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import clips, several, small_models

STEPS = 4
SETTINGS = ("batch_size=8", "max_prompt_length=64", "max_new_tokens=4", "warmup_steps=0")
SETTINGS += ("learning_rate=1e-2",)
# By name: the algorithm, its data, its flags and the mesh.
SEEN: dict[str, tuple[str, str, tuple[str, ...], str]] = {
    "sft": ("sft", "tokens/jsonl:seen", ("--set=learns_projector=true",), "2x1"),
    "adapters": ("sft", "tokens/jsonl:seen", ("--set=lora.rank=2",), "1x2"),
    "gkd": ("gkd", "tokens/jsonl:seen", ("--set=student_fraction=0.5", "--teacher=teacher"), "1x2"),
    "rlhf": ("rlhf", "tokens/jsonl:seen", ("--set=samples_per_prompt=2", "--reward=length"), "2x1"),
    "judge": ("reward-model", "tokens/preferences:pairs", (), "2x1"),
}
HEARD = {"heard": ("sft", "tokens/jsonl:heard", (), "2x1")}

PROGRAM = """
import contextlib, io, json, pathlib, sys
from kullback.experiments import cli
from kullback.experiments.runs import run_folder

results = {}
for name, (arguments, mesh, steps) in json.loads(sys.argv[1]).items():
    for kind, meshes in (("one", ()), ("mesh", ("--mesh", mesh)), ("resumed", ("--mesh", mesh))):
        out = f"{name}-{kind}"
        parts = (steps // 2, steps) if kind == "resumed" else (steps,)
        for part in parts:
            line = ["train", *arguments, *meshes, "--out", out]
            if pathlib.Path(out).exists():
                line = ["train", "--resume", out]
            with contextlib.redirect_stdout(io.StringIO()):
                assert cli.main([*line, "--steps", str(part)]) == 0, line
        rows = run_folder.RunFolder(pathlib.Path(out)).rows()
        results[out] = [[float(row["loss"]), float(row["return_mean"])] for row in rows]
print(json.dumps(results))
"""


def write_rows(path: pathlib.Path, key: str, suffix: str, answers: tuple[str, ...]) -> None:
    """Writes rows that name a file each, with an answer, or two of which one is right."""
    names = ("chosen", "rejected") if len(answers) == 2 else ("completion",)
    rows = [
        {"prompt": "n", key: [f"{n}.{suffix}"], **dict(zip(names, answers, strict=True))}
        for n in range(16)
    ]
    for split, part in (("train", rows[:12]), ("test", rows[12:])):
        text = "".join(json.dumps(row) + "\n" for row in part)
        (path / f"{split}.jsonl").write_text(text)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Returns losses and returns by run, of a process with two devices."""
    root = tmp_path_factory.mktemp("sensing")
    for name in ("seen", "pairs", "heard"):
        (root / name).mkdir()
    random = np.random.default_rng(0)
    for n in range(16):
        pixels = random.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        for name in ("seen", "pairs"):
            Image.fromarray(pixels).save(root / name / f"{n}.png")
        clips.write(root / "heard" / f"{n}.wav", 300.0 + 50 * n)
    write_rows(root / "seen", "images", "png", ("ab",))
    write_rows(root / "pairs", "images", "png", ("ab", "c"))
    write_rows(root / "heard", "audios", "wav", ("ab",))
    start = small_models.that_sees(root / "start")
    small_models.that_sees(root / "taught", seed=1)
    (root / "taught" / "model").rename(root / "teacher")
    common = [*(f"--set={setting}" for setting in SETTINGS), "--log-every=1"]
    given = {
        name: [[agent, task, "--images", f"--model={start}", *flags, *common], mesh, STEPS]
        for name, (agent, task, flags, mesh) in SEEN.items()
    }
    for name, (agent, task, flags, mesh) in HEARD.items():
        small = ["--model=tiny", "--model-flag=num_layers=1", "--audio"]
        given[name] = [[agent, task, *small, *flags, *common], mesh, STEPS]
    devices = f"--xla_force_host_platform_device_count=2 {several.FAST}"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(given)],
        env=os.environ | {"XLA_FLAGS": devices},
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SEEN, *HEARD])
def test_over_a_mesh_is_as_on_one_device_and_goes_on_to_the_bit(results: dict[str, Any], name: str):
    one, mesh, resumed = (results[f"{name}-{kind}"] for kind in ("one", "mesh", "resumed"))
    assert len({loss for loss, _ in one}) == STEPS
    np.testing.assert_allclose(mesh, one, rtol=1e-4, atol=1e-4)
    assert repr(mesh) == repr(resumed)  # nan is itself.
