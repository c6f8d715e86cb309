"""The package is the same from a wheel and from a strict editable install, wherever one stands."""

import configparser
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

SITE = sysconfig.get_path("purelib")


def packages(root: pathlib.Path) -> dict[str, str]:
    """Maps each package of setup.cfg to its folder."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    folders = dict(
        [part.strip() for part in line.split("=")]
        for line in config["options"]["package_dir"].split("\n")
        if line
    )
    listed = config["options"]["packages"].split()
    assert set(listed) == set(folders)
    return {name: folders[name] for name in listed}


def python(code: str, cwd: pathlib.Path, *path: pathlib.Path) -> str:
    """Returns the output of `code` under -S, without the .pth that shows this checkout to .venv."""
    run = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, path), SITE])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def call(*command: str | pathlib.Path) -> None:
    run = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.fixture(scope="module")
def source(root: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Copies the packaged files, as builds leave files beside their source."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        if (root / name).exists():
            shutil.copy(root / name, copy)
    for folder in packages(root).values():
        if "/" not in folder:
            shutil.copytree(
                root / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", "*.tmp")
            )
    return copy


@pytest.fixture(scope="module")
def wheel(source: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Builds the wheel and unpacks it."""
    folder = tmp_path_factory.mktemp("wheel")
    call("build", "--wheel", "--no-isolation", "--outdir", folder / "dist", source)
    (archive,) = folder.glob("dist/*.whl")
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(folder / "site")
    return folder / "site"


def test_every_package_is_listed_and_typed(root: pathlib.Path):
    listed = set(packages(root).values())
    for folder in listed:
        assert (root / folder / "py.typed").is_file(), f"{folder} lacks py.typed"
    for room in {folder.partition("/")[0] for folder in listed} | {"lm", "theory"}:
        for path in (root / room).rglob("__init__.py"):
            folder = str(path.parent.relative_to(root))
            assert folder in listed, f"{folder} is a package that setup.cfg does not list"


def test_no_weights_are_committed(root: pathlib.Path):
    """Gemma's terms hold for its weights and for what is derived from them."""
    if not (root / ".git").exists():
        pytest.skip("no checkout of git")
    listed = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True)
    endings = (".gguf", ".ckpt", ".pt", ".pth", ".bin", ".safetensors")
    names = [name for name in listed.stdout.splitlines() if name.endswith(endings)]
    # Models of some thousand parameters, drawn at random for comparisons with other libraries.
    assert names and all(name.startswith("tests/") and "/fixtures/" in name for name in names)
    assert all((root / name).stat().st_size < 1 << 20 for name in names)
    for name in ("m.gguf", "runs/x/model.safetensors", "out/adapter_model.bin"):
        ignored = subprocess.run(["git", "check-ignore", "--quiet", name], cwd=root)
        assert ignored.returncode == 0, name


def test_nothing_shadows_the_namespace(root: pathlib.Path):
    assert not (root / "kullback").exists()
    assert not (root / "__init__.py").exists()


def test_the_wheel_holds_every_file(source: pathlib.Path, wheel: pathlib.Path):
    assert not (wheel / "kullback" / "__init__.py").exists()
    folders = {folder.partition("/")[0] for folder in packages(source).values()}
    paths = [path for folder in folders for path in (source / folder).rglob("*.py")]
    expected = {path.relative_to(source) for path in paths}
    got = {path.relative_to(wheel / "kullback") for path in wheel.rglob("*.py")}
    assert got == expected
    assert len(list(wheel.rglob("py.typed"))) == len(packages(source))
    assert (wheel / "kullback" / "lm" / "conversations.jsonl").is_file()


def test_the_command_is_in_the_wheel(wheel: pathlib.Path):
    entry_points = configparser.ConfigParser()
    (path,) = wheel.glob("*.dist-info/entry_points.txt")
    entry_points.read(path)
    module, function = entry_points["console_scripts"]["kullback"].split(":")
    text = (wheel / (module.replace(".", "/") + ".py")).read_text()
    assert f"def {function}(" in text


IMPORT = "import kullback.core.types as t; print(t.__file__)"


@pytest.mark.parametrize("place", ["elsewhere", "checkout"])
def test_the_wheel_imports(
    root: pathlib.Path, wheel: pathlib.Path, tmp_path: pathlib.Path, place: str
):
    cwd = root if place == "checkout" else tmp_path
    assert python(IMPORT, cwd, wheel) == str(wheel / "kullback" / "core" / "types.py")


@pytest.mark.slow
def test_a_strict_editable_install_imports(source: pathlib.Path, tmp_path: pathlib.Path):
    # Into a folder of its own: the install that the tests run from stays as it is.
    target = tmp_path / "target"
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    strict = ["--config-settings", "editable_mode=strict"]
    call("pip", "install", *options, *strict, "--target", target, "--editable", source)
    code = f"import site; site.addsitedir({str(target)!r}); {IMPORT}"
    for cwd in (tmp_path, source):
        assert pathlib.Path(python(code, cwd)).resolve() == source / "core" / "types.py"
