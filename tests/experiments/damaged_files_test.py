"""Files of a run whose values have other types than were written, in all that read them."""

import json
import pathlib
import shutil

import pytest

from kullback.core import files
from kullback.experiments.report import collect, language, page, sections
from kullback.experiments.runs import model_files, opened, record, run_folder
from kullback.experiments.sweeps import sweeping
from tests import damage

OLD = pathlib.Path(__file__).parent / "fixtures" / "runs_of_0_1"


@pytest.fixture
def old(tmp_path: pathlib.Path) -> pathlib.Path:
    """Copies the old runs that are damaged here."""
    for name in ("host", "rlhf", "warm", "sweep"):
        shutil.copytree(OLD / name, tmp_path / name)
    return tmp_path


def report(path: pathlib.Path, out: pathlib.Path) -> None:
    """Writes the parts of a report that read a run's configuration."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for family in collect.families([path]):
        written = page.Page(out, "report")
        sections.speed(written, family)
        sections.settings(written, family)


# All damages of a run are some thousands.
SLOW = [pytest.param(name, None, marks=pytest.mark.slow) for name in ("host", "rlhf", "warm")]


@pytest.mark.parametrize(("name", "most"), [("host", 500), *SLOW])
def test_config(name: str, most: int | None, old: pathlib.Path):
    folder = run_folder.RunFolder(old / name)

    def read() -> None:
        run = opened.open(folder.path)
        record.complaints(run.folder(), run.config, run.plan.log_every)
        report(folder.path, old / "report")

    damage.check(folder.config_file, read, most=most)


def test_models_shape(old: pathlib.Path):
    damage.check(old / "rlhf" / "model.json", lambda: model_files.saved_config(old / "rlhf"))


def test_texts(old: pathlib.Path):
    damage.check(old / "rlhf" / "samples.jsonl", lambda: language.newest(old / "rlhf"), line=-1)


def test_record_of_a_sweep(old: pathlib.Path):
    def read() -> None:
        collect.not_begun(old / "sweep")
        sweeping.recorded(old / "sweep")

    damage.check(old / "sweep" / "sweep.json", read)


def test_what_a_checkpoint_says_of_the_record(old: pathlib.Path):
    folder = run_folder.RunFolder(old / "host")
    config = folder.config()
    checkpoint = sorted(folder.checkpoints.iterdir())[-1]
    contents = json.loads((checkpoint / "contents.json").read_text())
    sizes = {"bytes": 0, "crc32": 0}
    marks = {"config": config, "metrics.csv": sizes, "samples.jsonl": sizes}
    faults = []
    for damaged in damage.variants(json.dumps(marks)):
        contents["meta"]["record"] = json.loads(damaged.text)
        (checkpoint / "contents.json").write_text(json.dumps(contents))
        (checkpoint / "manifest.json").unlink()
        files.write_manifest(checkpoint)
        fault = damage.fault_of(lambda: record.complaints(folder, config, 100), "contents.json")
        faults += [f"{damaged.where}: {fault}"] if fault else []
    assert not faults, "\n".join(faults)
