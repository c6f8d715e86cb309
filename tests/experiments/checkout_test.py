"""Tests of experiments/checkout.py, in a git repository of their own."""

import pathlib
import subprocess

import pytest

from kullback.experiments import checkout


def git(folder: pathlib.Path, *arguments: str) -> str:
    names = ("-c", "user.name=t", "-c", "user.email=t@example.com")
    command = ["git", "-C", str(folder), *names, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Returns a checkout with the module in it, everything committed."""
    folder = tmp_path / "checkout"
    (folder / "experiments").mkdir(parents=True)
    (folder / "experiments" / "checkout.py").touch()
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "all")
    monkeypatch.setattr(checkout, "__file__", str(folder / "experiments" / "checkout.py"))
    return folder


def test_a_clean_checkout_is_named_by_its_revision(repository: pathlib.Path):
    assert checkout.clean_root() == repository.resolve()
    assert checkout.revision() == git(repository, "rev-parse", "HEAD")


def test_changed_and_new_files_are_refused_by_name(repository: pathlib.Path):
    (repository / "a new one").touch()
    assert checkout.revision() == git(repository, "rev-parse", "HEAD")
    with pytest.raises(ValueError, match=r"changes, .* has \"a new one\": commit them first"):
        checkout.clean_root()
    (repository / "experiments" / "checkout.py").write_text("changed")
    with pytest.raises(ValueError, match=r"experiments/checkout\.py and 1 more: commit"):
        checkout.clean_root()
    assert str(checkout.revision()).endswith("-dirty")


@pytest.mark.parametrize("is_ours", [True, False])
def test_outside_of_a_checkout_or_in_somebody_elses(
    repository: pathlib.Path, is_ours: bool, monkeypatch: pytest.MonkeyPatch
):
    folder = repository if not is_ours else repository.parent
    (folder / "installed").mkdir()
    monkeypatch.setattr(checkout, "__file__", str(folder / "installed" / "checkout.py"))
    assert checkout.root() is None and checkout.revision() is None
    with pytest.raises(ValueError, match="this code is in none; leave it out"):
        checkout.clean_root()
