"""Tests of experiments/programs.py."""

import os
import pathlib

import jax
import pytest

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
