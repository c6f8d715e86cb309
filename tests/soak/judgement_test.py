"""Tests of the soak itself: its judgement can fail, and it counts what was tried.

The soak is no part of the tests; `make soak` runs it.
"""

import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from tests.soak import __main__ as soak
from tests.soak import damage, files, runs, server, trials


def ended(code: str) -> server.Outcome:
    """Returns the outcome of a program in Python."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return server.Outcome(
        status=done.returncode, out=done.stdout, err=done.stderr, seconds=0.1, megabytes=10.0
    )


@pytest.mark.parametrize(
    ("code", "statuses", "fault"),
    [
        ("", (0,), ""),
        ("", (2,), "wrong"),
        ("raise ValueError('x')", (0, 2), "traceback"),
        ("import sys; sys.exit('kullback: no')", (1, 2), ""),
        ("import sys; sys.exit('kullback: no')", (0,), "lost"),
        ("import sys; sys.exit('kullback: no')", (2,), "unclear"),
        ("import sys; sys.exit('no')", (1,), "unclear"),
        ("import sys; sys.exit('kullback: no' + chr(10) + 'kullback: yes')", (1,), "unclear"),
        ("import os; os.abort()", (2,), "lost"),
        ("import os; os.kill(os.getpid(), 9)", (0, 2), "lost"),
        ("import os; os.kill(os.getpid(), 9)", (-9,), ""),
    ],
)
def test_an_end_is_judged(code: str, statuses: Sequence[int], fault: str):
    assert trials.judged("x", ended(code), statuses).fault == fault


def test_progress_is_no_complaint():
    lines = [
        "m-dqn toy: step 1 of 2",
        "3 of 4: m-dqn finished, return 1.00",
        "kullback: interrupted",
    ]
    outcome = ended(f"import sys; sys.exit({chr(10).join(lines)!r})")
    assert trials.complaint(outcome) == lines[2:]
    assert trials.judged("x", outcome, (1,)).fault == ""


def test_a_command_that_has_no_end_or_takes_all_memory_is_lost():
    outcome = ended("")
    for exceeded in ("time", "memory"):
        late = server.Outcome(**{**vars(outcome), "exceeded": exceeded})
        assert trials.judged("x", late, (0,)).fault == "lost"


def test_success_on_a_damaged_file_is_wrong_unless_it_is_said_or_changes_nothing():
    reader, expected, other = files.READERS["generate"], {"stdout": "7"}, {"stdout": "8"}
    silent, loud = ended("print(8)"), ended("import sys; print('warning: x', file=sys.stderr)")
    assert files.compared("x", reader, expected, other, silent, "cut: x").fault == "wrong"
    assert files.compared("x", reader, expected, expected, silent, "cut: x").fault == ""
    assert files.compared("x", reader, expected, other, loud, "cut: x").fault == ""
    # Nobody can know that a weight is another, but where there is a checksum.
    assert files.compared("x", reader, expected, other, silent, "flip: x").fault == ""
    checked = files.READERS["resume toy"]
    assert files.compared("x", checked, expected, other, silent, "flip: x").fault == "wrong"


def rows(*losses: float) -> list[dict[str, str]]:
    return [
        {"seed": "0", "steps": str(50 * n), "loss": str(loss)} for n, loss in enumerate(losses, 1)
    ]


def test_work_that_lost_something_or_computed_something_else_is_seen():
    whole = {"metrics.csv": rows(3.0, 2.0, 1.0), "checkpoints": {"w": "a0", "b": "b0"}}
    assert runs.compare(whole, whole, True, 50) == ""
    for name, other in (("metrics.csv", rows(3.0, 2.0)), ("checkpoints", {"w": "a1", "b": "b0"})):
        assert name in runs.compare(whole, {**whole, name: other}, True, 50)
        assert name in runs.compare(whole, {k: v for k, v in whole.items() if k != name}, True, 50)


def test_where_episodes_begin_anew_the_past_and_the_number_of_rows_have_to_agree():
    whole = {"metrics.csv": rows(3.0, 2.0, 1.0), "checkpoints": {"w": "a0"}}
    other = {"metrics.csv": rows(3.0, 2.5, 1.5), "checkpoints": {"w": "a1"}}
    assert runs.compare(whole, other, False, 50) == ""
    assert "before 100" in runs.compare(whole, other, False, 100)
    assert "differs" in runs.compare(whole, other, False, None)  # Nothing interrupted it.
    twice = {"metrics.csv": [*rows(3.0, 2.0), *rows(3.0)]}
    assert "rows at" in runs.compare(whole, twice, False, 50)


def test_what_is_left_behind_or_overwritten_is_seen(tmp_path: pathlib.Path):
    (tmp_path / "kept").write_text("1")
    before, whole = trials.contents(tmp_path), files.fingerprint(tmp_path)
    (tmp_path / ".lock").write_text("of a run")
    assert trials.left_behind(before, tmp_path) == []
    assert files.fingerprint(tmp_path) == whole
    (tmp_path / "kept").write_text("2")
    assert files.fingerprint(tmp_path) != whole
    (tmp_path / "run").mkdir()
    assert trials.left_behind(before, tmp_path) == ["run"]


@pytest.mark.parametrize("way", damage.WAYS)
def test_damage_changes_a_file_and_a_seed_repeats_it(tmp_path: pathlib.Path, way: str):
    said = []
    for name in ("one", "other"):
        file = tmp_path / name / "scratch" / "model" / "config.json"
        file.parent.mkdir(parents=True)
        before = json.dumps({"layers": 2, "name": "a", "inner": {"sizes": [3, 4]}})
        file.write_text(before)
        said.append(damage.WAYS[way](file, np.random.default_rng(5)))
        assert said[-1]
        assert not file.is_file() or file.is_symlink() or file.read_bytes() != before.encode()
    assert said[0] == said[1]


def test_sizes_in_a_gguf_file_are_enlarged(tmp_path: pathlib.Path):
    names = (b"tokenizer.ggml.tokens", b"tokenizer.ggml.token_type", b"token_embd.weight")
    whole = b"GGUF" + b"".join([*(bytes(40) + name for name in names), bytes(40)])
    whole += b"output_norm.weight" + bytes(40)
    path, places = tmp_path / "m.gguf", set()
    for seed in range(60):
        path.write_bytes(whole)
        assert damage.enlarge(path, np.random.default_rng(seed)).startswith("the size at byte ")
        data = path.read_bytes()
        assert len(data) == len(whole)
        changed = [n for n, (a, b) in enumerate(zip(data, whole, strict=True)) if a != b]
        places.add(changed[0] // 8)
    assert len(places) > 5


def test_pieces_add_up_and_an_attempt_that_is_made_again_counts_once(tmp_path: pathlib.Path):
    file = tmp_path / "results.jsonl"
    wrong = trials.Attempt(what="x", fault="wrong", said="y")
    trials.Ledger(file, 3, "a").add("files", 0, wrong)
    second = trials.Ledger(file, 3, "b")
    assert second.has("files", 0) and not second.has("files", 1)
    second.add("files", 1, trials.Attempt(what="x"))
    second.add("files", 2, trials.Attempt(what="x", fault="untried"))
    counts = trials.Ledger(file, 3, "b").counts(["files"])["files"]
    assert (counts["tried"], counts["wrong"], counts["untried"]) == (2, 1, 1)
    second.add("files", 0, trials.Attempt(what="x"))  # Mended.
    third = trials.Ledger(file, 3, "b")
    assert third.counts(["files"])["files"]["wrong"] == 0
    assert third.revisions == 1
    assert not trials.Ledger(file, 4, "b").has("files", 0)  # Another seed tries other things.
    assert "files" in trials.shown(third.counts(["files"]), {"files": 3})


def test_attempts_of_each_kind_are_spread_over_the_whole():
    names = list(soak.CATEGORIES)
    order = list(soak._order(names, None))
    assert len(order) == len(set(order)) == sum(c.count for c in soak.CATEGORIES.values())
    early = [name for name, _ in order[: len(order) // 10]]
    assert set(early) == set(names)
    assert list(soak._order(["files"], 7)) == [("files", 7)]
