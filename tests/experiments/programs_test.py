"""Tests of experiments/programs.py."""

import os
import pathlib
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from kullback.experiments import cache, programs


@pytest.fixture
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("KULLBACK_CACHE", str(tmp_path))
    return tmp_path / "programs"


def test_a_folder_that_was_chosen_stays(home: pathlib.Path):
    chosen = jax.config.values["jax_compilation_cache_dir"]
    assert chosen is not None  # By tests/conftest.py.
    programs.keep()
    assert jax.config.values["jax_compilation_cache_dir"] == chosen
    assert not home.exists()


def test_programs_are_kept_in_the_cache(home: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    given: dict[str, object] = {}
    chosen = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    with monkeypatch.context() as patched:
        patched.setattr(jax.config, "update", given.__setitem__)
        programs.keep()
    jax.config.update("jax_compilation_cache_dir", chosen)
    folder = given["jax_compilation_cache_dir"]
    assert isinstance(folder, str) and pathlib.Path(folder).parent == home
    assert [entry.name for entry in cache.entries()] == ["programs"]


def test_the_programs_that_were_used_longest_ago_go(
    home: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    folder = cache.begun("programs")
    assert folder == home
    for n in range(8):
        path = home / "machine" / str(n)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(10))
        os.utime(path, (n, n))
    monkeypatch.setattr(programs, "LARGEST", 80)
    programs._trim(home)
    assert len(list(home.rglob("?"))) == 8
    monkeypatch.setattr(programs, "LARGEST", 79)
    programs._trim(home)
    assert sorted(path.name for path in home.rglob("?")) == ["5", "6", "7"]
    assert cache.begun("programs") == home  # Its tag is there.


@pytest.fixture
def shown() -> list[str]:
    """Returns a list that grows with each warning that is shown."""
    return []


@pytest.fixture
def kept(
    home: pathlib.Path, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[pathlib.Path]:
    """Lets JAX keep programs in the cache, as in a process of its own."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    monkeypatch.setattr(programs, "LEAST_SECONDS", 0)
    with warnings.catch_warnings():  # Shown, as they are outside of tests.
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda text, *more: shown.append(str(text)))
        jax.config.update("jax_compilation_cache_dir", None)
        programs.keep()
        yield home
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compute() -> float:
    """Computes as a new process does, whose programs are all on disk."""
    compilation_cache.reset_cache()
    return float(jax.jit(lambda x: jnp.sum(jnp.cos(x) + 2))(jnp.ones(7)))


def damaged(data: bytes, how: str) -> bytes:
    half = len(data) // 2
    return {
        "cut": data[:half],
        "empty": b"",
        "zeros": data[:half] + bytes(len(data) - half),
        "flipped": data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :],
    }[how]


@pytest.mark.parametrize("how", ["cut", "empty", "zeros", "flipped"])
def test_a_damaged_program_is_compiled_and_kept_anew(
    how: str, kept: pathlib.Path, shown: list[str], capsys: pytest.CaptureFixture[str]
):
    expected = compute()
    entries = {path: path.read_bytes() for path in kept.rglob("jit__lambda*-cache")}
    assert len(entries) == 1 and not capsys.readouterr().err
    ((path, whole),) = entries.items()
    path.write_bytes(damaged(whole, how))
    assert compute() == expected
    said = capsys.readouterr().err
    assert said == f"a compiled program in {path.parent} was cut short, and is compiled anew\n"
    assert programs._is_whole(path) and len(path.read_bytes()) > len(whole) / 2
    assert compute() == expected
    assert not capsys.readouterr().err and not shown


def test_other_warnings_are_shown(kept: pathlib.Path, shown: list[str]):
    texts = ["Error writing persistent compilation cache entry for 'x'", "something else"]
    for text in texts:
        warnings.showwarning(text, UserWarning, "file.py", 1)
    assert shown == texts
