"""Tests of core/checkpoints.py and core/trees.py."""

import json
import logging
import os
import pathlib
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import checkpoints, files, types

Paths = list[pathlib.Path]


def learner_state(seed: int = 0) -> types.LearnerState:
    params = {"mlp/~/linear_0": {"w": jnp.full((3, 4), float(seed)), "b": jnp.arange(4.0)}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    key = jax.random.key(seed)
    return types.LearnerState(
        params, optimizer.init(params), {"periodic": params}, jnp.int32(7), key
    )


def everything() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "learner": learner_state(),
        "keys": jax.random.split(jax.random.key(3, impl="rbg"), 2),
        "no_keys": jax.random.split(jax.random.key(3), 1)[:0],
        "dones": rng.random((50, 3)) < 0.5,
        "frames": jnp.asarray(rng.integers(0, 256, (5, 8, 8), np.uint8)),
        "half": jnp.ones((2, 3), jnp.bfloat16) / 3,
        "odd": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
        "beyond_int32": np.asarray(2**40),
        "view": np.arange(12.0).reshape(3, 4).T[::-1, ::2],
        "empty": np.zeros((0, 4), np.int8),
        "none": None,
        "numbers": (5, 0.1, True),
        "list": [jnp.zeros(()), {"deep": np.array([1.5], np.float16)}],
    }


def assert_identical(got: Any, expected: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert isinstance(one, jax.Array) == isinstance(other, jax.Array)
        if isinstance(other, int | float):
            assert type(one) is type(other) and one == other
            continue
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        if jnp.issubdtype(other.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def small(step: int) -> dict[str, Any]:
    return {"x": np.full((64,), step, np.float32), "key": jax.random.key(step)}


def save_steps(folder: pathlib.Path, *steps: int) -> None:
    for step in steps:
        checkpoints.save(folder, step, small(step), {"score": None}, keep=10)


@pytest.fixture(scope="module")
def three_steps(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("three")
    save_steps(folder, 1, 2, 3)
    return folder


@pytest.fixture
def folder(three_steps: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """Returns a copy of three checkpoints, to be damaged."""
    return shutil.copytree(three_steps, tmp_path / "checkpoints")


def test_round_trip_to_identical_bits(tmp_path: pathlib.Path):
    state, meta = everything(), {"score": 1.5, "name": "é", "list": [1, None, {"a": True}]}
    checkpoints.save(tmp_path, 12, state, meta)
    got, got_meta, step = checkpoints.restore_latest(tmp_path, state)
    assert_identical(got, state)
    assert (got_meta, step) == (meta, 12)


def test_a_restored_state_computes_on(tmp_path: pathlib.Path):
    state = learner_state()
    checkpoints.save(tmp_path, 0, state, {})
    got, _ = checkpoints.restore(tmp_path, 0, jax.eval_shape(learner_state))
    assert_identical(got, state)
    draw = jax.jit(jax.random.normal)
    assert draw(got.key) == draw(state.key)
    # Committed arrays would compile the learner a second time.
    assert not got.params["mlp/~/linear_0"]["w"].committed


def test_int64_survives_where_jax_has_none(tmp_path: pathlib.Path):
    state = {"env_steps": np.asarray(2**40)}
    checkpoints.save(tmp_path, 0, state, {})
    like = {"env_steps": jax.ShapeDtypeStruct((), np.int64)}
    assert_identical(checkpoints.restore(tmp_path, 0, like)[0], state)


def test_a_state_without_leaves(tmp_path: pathlib.Path):
    checkpoints.save(tmp_path, 0, {"nothing": None}, {"a": 1})
    assert checkpoints.restore_latest(tmp_path, {"nothing": None}) == (
        {"nothing": None},
        {"a": 1},
        0,
    )


def test_a_state_that_is_one_array(tmp_path: pathlib.Path):
    checkpoints.save(tmp_path, 0, np.arange(3), {})
    assert_identical(checkpoints.restore(tmp_path, 0, np.zeros(3, int))[0], np.arange(3))


def test_a_relative_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    checkpoints.save("runs/a", 1, small(1), {})
    assert_identical(checkpoints.restore_latest("runs/a", small(0))[0], small(1))


def flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [flip, truncate, pathlib.Path.unlink])
def test_damage_to_any_file_falls_back(
    folder: pathlib.Path, caplog: pytest.LogCaptureFixture, damage: Any
):
    newest = folder / "000000000003"
    backup = shutil.copytree(newest, folder.parent / "backup")
    paths = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert len(paths) > 4
    for path in paths:
        if not (newest / path).stat().st_size:
            continue  # Orbax leaves an empty file or two; nothing of those can be lost.
        damage(newest / path)
        caplog.clear()
        state, _, step = checkpoints.restore_latest(folder, small(0))
        assert step == 2, path
        assert_identical(state, small(2))
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert str(newest / path) in record.message and "\n" not in record.message
        with pytest.raises(checkpoints.CorruptError, match=path.name):
            checkpoints.restore(folder, 3, small(0))
        shutil.rmtree(newest)
        shutil.copytree(backup, newest)
    assert checkpoints.restore_latest(folder, small(0))[2] == 3


def rewrite(newest: pathlib.Path, old: str, new: str) -> None:
    """Changes contents.json and, as one who forges it would, the manifest."""
    file = newest / "contents.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    (newest / "manifest.json").unlink()
    files.write_manifest(newest)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('"meta":', '"mate":', "meta is missing"),
        ('"meta": {"score": null}', '"meta": [1]', "meta must be"),
        ('"score": null', '"score": "high"', "meta.score must be"),
        ('"score": null', '"segments": {"a": 1}', "meta.segments must be"),
        ('"leaves":', '"leafs":', "leaves is missing"),
        ("[[64], ", "[64, ", "leaves.x must be the shape and type of a leaf"),
        ("[[64], ", "[[-64], ", "leaves.x must be"),
        ('{"step"', '["step"', "is no JSON"),
    ],
)
@pytest.mark.parametrize("is_forged", [False, True])
def test_a_damaged_record_falls_back(
    is_forged: bool,
    old: str,
    new: str,
    key: str,
    three_steps: pathlib.Path,
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
):
    folder = tmp_path / "checkpoints"
    shutil.copytree(three_steps, folder)
    newest = folder / "000000000003"
    if is_forged:
        rewrite(newest, old, new)
    else:
        file = newest / "contents.json"
        file.write_text(file.read_text().replace(old, new))
    like = {"x": np.zeros((64,), np.float32), "key": jax.random.key(0)}
    seen: list[Any] = []
    assert checkpoints.restore_latest(folder, like, seen.append)[2] == 2
    assert len(seen) == 1  # What is damaged is not handed on.
    (record,) = caplog.records
    assert "is skipped, not whole" in record.message and "contents.json" in record.message
    assert not is_forged or key in record.message
    assert checkpoints.newest_meta(folder) == {"score": None}
    assert checkpoints.best_step(folder) is None and not checkpoints.live_segments(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"files": 5, "crc32": 1}', '{"files": {"a": 1}, "crc32": 1}']
)
def test_a_manifest_that_is_none_falls_back(text: str, folder: pathlib.Path):
    (folder / "000000000003" / "manifest.json").write_text(text)
    assert checkpoints.restore_latest(folder, small(0))[2] == 2


def test_a_manifest_names_nothing_outside(folder: pathlib.Path):
    newest = folder / "000000000003"
    listed = {"../000000000002/contents.json": {"bytes": 1, "crc32": 1}}
    text = json.dumps({"files": listed, "crc32": files._crc32_of(listed)})
    (newest / "manifest.json").write_text(text)
    with pytest.raises(checkpoints.CorruptError, match=r"\.\./000000000002"):
        checkpoints.restore(folder, 3, small(0))


def test_the_best_falls_back_to_the_next_best(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
):
    for step, score in ((1, 5.0), (2, 9.0), (3, 7.0), (4, None)):
        checkpoints.save(tmp_path, step, small(step), {"score": score}, keep=9)
    assert checkpoints.restore_latest(tmp_path, small(0), best=True)[2] == 2
    truncate(tmp_path / "000000000002" / "manifest.json")
    assert checkpoints.restore_latest(tmp_path, small(0), best=True)[2] == 3
    truncate(tmp_path / "000000000003" / "contents.json")
    assert checkpoints.restore_latest(tmp_path, small(0), best=True)[2] == 1
    assert "000000000002 is skipped" in caplog.text
    for step in (1, 2):
        files.remove(tmp_path / f"{step:012d}")
    with pytest.raises(ValueError, match=r"no checkpoint with a score: train with --eval-every"):
        checkpoints.restore_latest(tmp_path, small(0), best=True)


@pytest.mark.parametrize("other", [np.zeros(10**6), np.zeros(2), np.zeros((2, 1))])
def test_arrays_are_those_that_are_described_before_memory_is_asked_for(
    other: np.ndarray, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    like = {"x": np.zeros(2, np.float32), "key": jax.random.key(0)}
    path = checkpoints.save(tmp_path / "one", 1, like, {})
    more = checkpoints.save(tmp_path / "two", 1, {**like, "x": other}, {})
    shutil.rmtree(path / "arrays")
    (more / "arrays").rename(path / "arrays")
    (path / files.MANIFEST).unlink()
    files.write_manifest(path)  # All is as a stranger says that it was written.
    monkeypatch.setattr("orbax.checkpoint.args", None)
    said = rf"arrays holds 'x' as .*{re.escape(str([*other.shape]))}.*expected float32\[2\]"
    with pytest.raises(files.CorruptError, match=said):
        checkpoints.restore(tmp_path / "one", 1, like)


def test_an_empty_folder_of_a_step_falls_back(folder: pathlib.Path):
    (folder / "000000000004").mkdir()
    assert checkpoints.restore_latest(folder, small(0))[2] == 3


def test_two_damaged_ones_fall_back_twice(folder: pathlib.Path, caplog: pytest.LogCaptureFixture):
    for step in (2, 3):
        (folder / f"{step:012d}" / "manifest.json").unlink()
    assert checkpoints.restore_latest(folder, small(0))[2] == 1
    assert len(caplog.records) == 2


def test_none_left(folder: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture):
    for step in checkpoints.steps(folder):
        (folder / f"{step:012d}" / "manifest.json").write_text('{"files": [1]}')  # No checksum.
    with pytest.raises(FileNotFoundError, match=r"3 are damaged; of the first, \S+0003: .*json"):
        checkpoints.restore_latest(folder, small(0))
    assert not caplog.records, "the error alone says so, in one line"
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoints.restore_latest(tmp_path / "nowhere", small(0))
    with pytest.raises(FileNotFoundError, match=r"step 9, only \[1, 2, 3\]"):
        checkpoints.restore(folder, 9, small(0))


def test_what_stands_elsewhere_is_checked_too(folder: pathlib.Path):
    def check(meta: dict[str, Any]) -> None:
        seen.append(meta)
        if len(seen) == 1:
            raise files.CorruptError("segment-1 is missing")

    seen: list[Any] = []
    assert checkpoints.restore_latest(folder, small(0), check)[2] == 2
    assert seen == [{"score": None}] * 2


@pytest.mark.parametrize(
    "like, message",
    [
        (
            {"x": np.zeros((65,), np.float32), "key": jax.random.key(0)},
            r"leaf 'x' of .*000000000003 is float32\[64\], expected float32\[65\]",
        ),
        (
            {"x": np.zeros((64,), np.float64), "key": jax.random.key(0)},
            r"leaf 'x' of .* is float32\[64\], expected float64\[64\]",
        ),
        (
            {"x": np.zeros((64,), np.float32), "key": jax.random.key(0, impl="rbg")},
            r"leaf 'key' of .* is key<fry>\[\], expected key<rbg>\[\]",
        ),
        (
            {"x": {"y": np.zeros((64,), np.float32)}, "key": jax.random.key(0)},
            r"has no leaf 'x/y', expected float32\[64\]",
        ),
        ({"x": np.zeros((64,), np.float32)}, "has a leaf 'key'"),
    ],
)
def test_a_mismatch_names_the_leaf(three_steps: pathlib.Path, like: Any, message: str):
    with pytest.raises(ValueError, match=message) as raised:
        checkpoints.restore_latest(three_steps, like)
    assert not isinstance(raised.value, checkpoints.CorruptError)
    assert "\n" not in str(raised.value)


def test_what_cannot_be_saved_leaves_nothing(tmp_path: pathlib.Path):
    for state, message in [
        ({"a": np.array([object()])}, "leaf 'a' must be"),
        ({"a": "text"}, "leaf 'a' must be"),
        ({"a/b": np.zeros(1), "a": {"b": np.zeros(1)}}, "two leaves are named 'a/b'"),
    ]:
        with pytest.raises(ValueError, match=message):
            checkpoints.save(tmp_path, 0, state, {})
    with pytest.raises(TypeError):
        checkpoints.save(tmp_path, 0, small(0), {"score": object()})
    with pytest.raises(ValueError, match="keep >= 1, got 0 and 0"):
        checkpoints.save(tmp_path, 0, small(0), {}, keep=0)
    assert not list(tmp_path.iterdir())


def test_the_last_and_the_best_are_kept(tmp_path: pathlib.Path):
    scores = [float("nan"), 5.0, 2.0, None, 5.0, 3.0, float("nan"), 4.0, 0.0]
    kept, best = [], []
    for step, score in enumerate(scores):
        checkpoints.save(tmp_path, step, small(step), {"score": score}, keep=3)
        kept.append(checkpoints.steps(tmp_path))
        best.append(checkpoints.best_step(tmp_path))
    # Of equal scores (steps 1 and 4) the newest is the best.
    assert best == [None, 1, 1, 1, 4, 4, 4, 4, 4]
    assert kept[2:] == [
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
        [3, 4, 5],
        [4, 5, 6],
        [4, 5, 6, 7],
        [4, 6, 7, 8],
    ]
    assert_identical(checkpoints.restore(tmp_path, 4, small(0))[0], small(4))


def test_nothing_but_checkpoints_is_pruned(tmp_path: pathlib.Path):
    (tmp_path / "2024").mkdir()
    (tmp_path / "2024" / "photo").write_text("of somebody")
    for step in range(3):
        checkpoints.save(tmp_path, step, {}, {}, keep=1)
    assert (tmp_path / "2024" / "photo").is_file() and checkpoints.steps(tmp_path) == [2]


def test_of_equal_scores_that_are_kept_the_newest_is_best(tmp_path: pathlib.Path):
    for step in range(3):
        checkpoints.save(tmp_path, step, small(step), {"score": 1.0})
    assert checkpoints.best_step(tmp_path) == 2


def test_without_scores_none_is_best(tmp_path: pathlib.Path):
    assert checkpoints.best_step(tmp_path) is None
    for step in range(3):
        checkpoints.save(tmp_path, step, small(step), {}, keep=1)
    assert checkpoints.best_step(tmp_path) is None
    assert checkpoints.steps(tmp_path) == [2]


def test_the_same_step_again_replaces_the_first(folder: pathlib.Path):
    for other in (50, 51):
        checkpoints.save(folder, 3, small(other), {})
        assert checkpoints.steps(folder) == [1, 2, 3]
        assert len(list(folder.iterdir())) == 3
        assert_identical(checkpoints.restore_latest(folder, small(0))[0], small(other))


def test_a_new_save_is_kept_however_low_its_step(folder: pathlib.Path):
    checkpoints.save(folder, 0, small(0), {}, keep=1)
    assert checkpoints.steps(folder) == [0, 3]


class Killed(BaseException):
    """An end of the process, raised by a test."""


@pytest.mark.parametrize("step", [3, 4], ids=["the same step", "the next step"])
def test_a_kill_before_any_sync_or_rename_loses_nothing(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    def dies_at(call: int, function: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls.append(function)
            if len(calls) > call:
                if function is rmtree and len(calls) == call + 1:  # Dies half-way.
                    next(path for path in args[0].rglob("*") if path.is_file()).unlink()
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    rmtree, outcomes = shutil.rmtree, list[int]()
    for call in range(100):
        calls: list[Any] = []
        with monkeypatch.context() as patch:
            for where, name in [
                (files.os, "fsync"),
                (files.os, "replace"),
                (files.shutil, "rmtree"),
                (files.pathlib.Path, "write_text"),
            ]:
                patch.setattr(where, name, dies_at(call, getattr(where, name)))
            try:
                checkpoints.save(folder, step, small(90 + call), {}, keep=3)
            except Killed:
                pass  # What `finally` does meanwhile dies at its first call, as we do.
            else:
                break
        state, _, got_step = checkpoints.restore_latest(folder, small(0))
        value = int(state["x"][0])
        assert got_step == step or value == 3
        assert_identical(state, small(value))
        for other in checkpoints.steps(folder):  # Whatever bears the name of a step is whole.
            checkpoints.restore(folder, other, small(0))
        outcomes.append(value)
    else:
        pytest.fail("the save never ended")
    assert outcomes[0] == 3 and len(outcomes) > 10
    assert len(checkpoints.steps(folder)) == 3
    assert not list(folder.glob(".*"))


WORKER = """
import pathlib, sys
import jax, numpy as np
from kullback.core import checkpoints
state = lambda step: {"x": np.full((64,), step, np.float32), "key": jax.random.key(step)}
for step in range(int(sys.argv[2]), 1 << 30):
    checkpoints.save(sys.argv[1], step, state(step), {"score": None})
"""


def test_sigkill_at_any_time_leaves_something_whole(tmp_path: pathlib.Path):
    folders = [tmp_path / str(number) for number in range(2)]
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, folder, "1"], cwd=tmp_path)
        for folder in folders
    ]
    try:
        deadline = time.monotonic() + 60
        while not all(len(checkpoints.steps(folder)) > 1 for folder in folders):
            assert time.monotonic() < deadline, "the workers do not save"
            time.sleep(0.01)
        for worker in workers:
            time.sleep(random.random() * 0.1)
            worker.send_signal(signal.SIGKILL)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    for folder in folders:
        newest = checkpoints.steps(folder)[-1]
        state, _, step = checkpoints.restore_latest(folder, small(0))
        assert step == newest  # Whatever bears its name is whole.
        assert_identical(state, small(step))
        checkpoints.save(folder, step + 1, small(step + 1), {})
        assert not list(folder.glob(".*"))


def test_nothing_is_unpickled(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler", "dump", "dumps", "Pickler"):
        monkeypatch.setattr(pickle, name, refuse)
    checkpoints.save(folder, 4, everything(), {})
    checkpoints.restore(folder, 4, everything())


def test_orbax_is_silent(
    folder: pathlib.Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, logger="absl"):
        checkpoints.save(folder, 4, small(4), {})
        checkpoints.restore(folder, 4, small(4))
    assert not [record for record in caplog.records if "orbax" in record.pathname]
    assert capfd.readouterr() == ("", "")


def test_repeated_saves_leak_neither_threads_nor_files(folder: pathlib.Path):
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))

    checkpoints.save(folder, 4, small(4), {})
    threads, descriptors = held()
    filters = list(logging.getLogger("absl").filters)
    for step in range(5, 25):
        checkpoints.save(folder, step, small(step), {})
        checkpoints.restore(folder, step, small(step))
    more_threads, more_descriptors = held()
    assert more_threads - threads < 10  # TensorStore's own pool grows for a while.
    assert more_descriptors - descriptors < 10
    assert logging.getLogger("absl").filters == filters


def test_segments_of_every_kept_checkpoint_are_live(folder: pathlib.Path):
    entries = [{"file": f"segment-{number}.npz"} for number in range(3)]
    checkpoints.save(folder, 4, small(4), {"segments": entries[:2]})
    checkpoints.save(folder, 5, small(5), {"segments": entries[1:]})
    live = {entry["file"] for entry in checkpoints.live_segments(folder)}
    assert live == {entry["file"] for entry in entries}
    (folder / "000000000005" / "contents.json").write_text("{")
    live = {entry["file"] for entry in checkpoints.live_segments(folder)}
    assert live == {entry["file"] for entry in entries[:2]}


def test_the_files_are_for_others_to_read(three_steps: pathlib.Path):
    contents = json.loads((three_steps / "000000000002" / "contents.json").read_text())
    assert contents["step"] == 2
    assert contents["leaves"]["x"] == [[64], "float32", None]
    assert contents["leaves"]["key"] == [[], "key<fry>", "threefry2x32"]


FULL = """
import pathlib, resource, sys
import numpy as np
from kullback.core import checkpoints

state = {f"x{n}": np.random.default_rng(n).normal(size=200_000) for n in range(12)}
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
for n in range(20):
    try:
        checkpoints.save(pathlib.Path(sys.argv[1]) / str(n), 1, state, {})
    except OSError as error:
        print("cannot be written" in str(error))
"""


def test_a_write_that_fails_tells_of_nothing_else(tmp_path):
    # As on a full disk: several writes fail, and others find the writer gone.
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.stdout.split() == ["True"] * 20
    assert "Event loop" not in done.stderr and "Traceback" not in done.stderr
