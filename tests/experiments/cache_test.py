"""Tests of experiments/cache.py and `kullback cache`."""

import pathlib
import subprocess
import sys
from collections.abc import Callable

import pytest

from kullback.core import files
from kullback.experiments import cache, cli


@pytest.fixture(autouse=True)
def home(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("KULLBACK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(folder: pathlib.Path) -> None:
    (folder / "inner").mkdir(parents=True)
    (folder / "large").write_bytes(bytes(range(256)) * 100)
    (folder / "inner" / "small").write_text("small")


def refuse(folder: pathlib.Path) -> None:
    raise AssertionError(f"{folder} is there")


def model(fill: Callable[[pathlib.Path], None], name: str = "m", num_bytes: int = 25_605):
    return cache.model(name, fill, description="a model", num_bytes=num_bytes)


def test_the_folder_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path):
    assert cache.root() == tmp_path / "cache"
    monkeypatch.setenv("KULLBACK_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.root() == pathlib.Path("/xdg/kullback")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache.root() == pathlib.Path("/home/someone/.cache/kullback")


def test_a_model_is_written_once_and_said_before(home, capsys: pytest.CaptureFixture[str]):
    def said_before(folder: pathlib.Path) -> None:
        assert f"a model is kept in {home / 'models' / 'm'}, 25.6 kB" in capsys.readouterr().err
        fill(folder)

    assert model(said_before) == home / "models" / "m"
    assert model(refuse) == home / "models" / "m"
    assert capsys.readouterr().err == ""


def test_a_model_that_is_made_of_another_one_does_not_wait_for_itself(home):
    with pytest.raises(RuntimeError, match="inner is asked for while another one is written"):
        model(lambda folder: model(fill, "inner") and None)
    assert cache.entries() == []
    inner = model(fill, "inner")

    def refill(folder: pathlib.Path) -> None:
        assert model(refuse, "inner") == inner
        fill(folder)

    assert model(refill) == home / "models" / "m"


@pytest.mark.parametrize("name", ["large", "inner/small"])
@pytest.mark.parametrize("damage", ["byte", "cut", "gone"])
def test_a_damaged_model_is_made_anew(
    home, name: str, damage: str, capsys: pytest.CaptureFixture[str]
):
    path = model(fill) / name
    sound = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(sound[:-1] if damage == "cut" else b"?" + sound[1:])
    model(fill)
    assert path.read_bytes() == sound
    said = capsys.readouterr().err
    assert str(path) in said and "it is made anew" in said


def test_a_model_of_another_version_is_made_anew(home, monkeypatch: pytest.MonkeyPatch):
    path = model(fill) / "large"
    path.touch()
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    with pytest.raises(AssertionError, match="is there"):
        model(refuse)
    assert not path.exists()


def test_a_failure_leaves_nothing(home):
    def fails(folder: pathlib.Path) -> None:
        fill(folder)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        model(fails)
    assert list((home / "models").iterdir()) == []


def test_there_must_be_room(home):
    with pytest.raises(ValueError, match=r"a model need .* of disk at .*cache/models/m"):
        model(refuse, num_bytes=1 << 62)


def test_two_processes_write_a_model_once(home):
    program = (
        "import sys, time\n"
        "from kullback.experiments import cache\n"
        "def fill(folder):\n"
        "    print('filling', flush=True)\n"
        "    time.sleep(0.5)\n"
        "    folder.mkdir()\n"
        "    (folder / 'x').write_text('x')\n"
        "cache.model('m', fill, description='a model', num_bytes=1)\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    assert sorted(outputs) == ["", "filling\n"]


def test_terms_are_shown_once(home, capsys: pytest.CaptureFixture[str]):
    for _ in range(2):
        cache.once("gemma", "It is under terms.")
    assert capsys.readouterr().err == "It is under terms.\n"
    assert "It is under terms." in (home / "terms" / "gemma").read_text()


def test_a_folder_of_somebody_else_is_left_alone(home, capsys: pytest.CaptureFixture[str]):
    (home / "programs").mkdir(parents=True)
    (home / "programs" / "mine").write_text("mine")
    (home / "models" / "mine").mkdir(parents=True)
    assert cache.begun("programs") is None
    assert cache.entries() == []
    model(fill)
    cache.once("gemma", "Terms.")
    assert [entry.name for entry in cache.clear()] == ["m", "terms"]
    assert (home / "programs" / "mine").exists() and (home / "models" / "mine").exists()
    assert not (home / "terms").exists()


def test_the_command_lists_and_clears(home, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["cache"]) == 0
    assert capsys.readouterr().out == f"{home}: 0 bytes\n"
    model(fill)
    model(fill, "n")
    cache.once("gemma", "Terms.")
    (home / "models" / f"{files.TEMPORARY}killed").mkdir()
    capsys.readouterr()
    assert cli.main(["cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["m", "n", "terms"]
    size = files.size(cache.entries()[0].num_bytes)
    assert lines[1].endswith(f"{size}  a model") and size.startswith("25.")
    assert cli.main(["cache", "--clear", "m"]) == 0
    assert f"cleared: {home / 'models' / 'm'} ({size})" in capsys.readouterr().out
    assert cli.main(["cache", "--clear", "N"]) == 2
    assert "unknown part of the cache 'N'; did you mean n?" in capsys.readouterr().err
    assert cli.main(["cache", "--clear"]) == 0
    assert list((home / "models").iterdir()) == []
    assert cli.main(["cache", "--clear", "m"]) == 2
    assert f"the cache {home} is empty: there is no 'm' to clear" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_a_line(
    home, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KULLBACK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ValueError, match=r"file/cache/models/m cannot be written"):
        model(refuse)
    assert cache.begun("programs") is None
