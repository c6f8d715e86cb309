"""Tests of the frame of `kullback reproduce`: parts, files, verdict, refusals."""

import csv
import dataclasses
import json
import pathlib
import shutil
import subprocess
import types

import numpy as np
import pytest

from kullback.core import files
from kullback.experiments import catalog, checkout, cli, plots, reproduce, statistics
from kullback.experiments.reproductions import judging, study
from tests import damage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of throws of a coin."""

    seeds: int = 3
    throws: int = 50
    sides: tuple[float, ...] = (0.1, 0.5, 1.0)

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be >= 1, got {self.seeds}")


@pytest.fixture
def thrown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Registers a reproduction `coin`; returns a list that takes the seeds it computes."""
    computed: list[int] = []

    def claims(config: Config, tables: study.Tables) -> list[judging.Check]:
        interval = statistics.t_interval(row["heads"] for row in tables["coin"])
        return [
            judging.exactly("half are heads", interval.low <= 0.5 <= interval.high, str(interval)),
            judging.exactly("all are heads", interval.low > 0.9, str(interval)),
            judging.reported("of the throws", config.throws),
        ]

    def run(config: Config, journal: study.Journal) -> study.Results:
        rows: study.Rows = []
        for seed in range(config.seeds):

            def compute(seed: int = seed) -> study.Rows:
                if seed == 2 and computed == [0, 1]:
                    computed.append(-1)
                    raise KeyboardInterrupt  # Once, in the third part.
                computed.append(seed)
                heads = np.random.default_rng(seed).integers(0, 2, config.throws)
                journal.tick(config.throws, heads.mean(), "heads")
                return [{"seed": seed, "heads": heads.mean()}]

            rows += journal.part(f"seed-{seed}", config.throws, compute)
        drawn = plots.grid()
        drawn.axes[0].plot([row["heads"] for row in rows])
        film = journal.path("thrown.gif")
        film.write_bytes(b"GIF89a")
        checks = claims(config, {"coin": rows})
        return study.Results({"coin": rows}, {"coin": drawn}, checks, {"thrown": film})

    entry = types.SimpleNamespace(
        claim="A coin is fair.",
        source="Bernoulli 1713",
        config=Config(),
        steps=lambda config: config.seeds * config.throws,
        seconds=lambda config: 600.0,
        before=lambda config: [f"{config.seeds} seeds can show little"],
        run=run,
        claims=claims,
    )
    monkeypatch.setattr(reproduce, "load", lambda name: entry)
    monkeypatch.setitem(catalog.REPRODUCTIONS, "coin", "a coin")
    return computed


def test_what_was_interrupted_goes_on_from_its_last_part(
    thrown: list[int], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        reproduce.reproduce("coin")
    folder = tmp_path / "runs" / "reproduce-coin"
    assert sorted(path.name for path in (folder / "parts").iterdir()) == [
        "seed-0.json",
        "seed-1.json",
    ]
    said: list[str] = []
    checks = reproduce.reproduce("coin", say=said.append)
    assert thrown == [0, 1, -1, 2]  # The first two seeds were not thrown again.
    assert [check.verdict for check in checks] == ["held", "contradicted", "reported"]
    with open(folder / "coin.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    wanted = [np.random.default_rng(seed).integers(0, 2, 50).mean() for seed in range(3)]
    assert [float(row["heads"]) for row in rows] == wanted
    assert (folder / "coin.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (folder / "coin.svg").read_text()
    assert (folder / "thrown.gif").read_bytes() == b"GIF89a"
    verdict = json.loads((folder / "verdict.json").read_text())
    assert [check["verdict"] for check in verdict["checks"]] == ["held", "contradicted", "reported"]
    assert verdict["machine"]["cpu"]
    assert said[0] == "claim: A coin is fair. (Bernoulli 1713)"
    assert "about 10 minutes" in said[1] and said[2] == "3 seeds can show little"
    assert said[3].startswith("CONTRADICTED: all are heads: ")
    assert said[4].startswith("held: half are heads: ")
    assert said[5].startswith("reported: of the throws: 50")
    assert said[6] == "of 3: 1 contradicted, 1 held"


def test_tables_are_judged_again(
    thrown: list[int], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thrown[:] = [-1]  # Nothing interrupts it.
    monkeypatch.chdir(tmp_path)
    folder, said = pathlib.Path("out"), []
    before = reproduce.reproduce("coin", folder, ["throws=20"], say=lambda line: None)
    assert reproduce.judge_again("coin", folder, say=said.append) == before
    assert not any("it was" in line for line in said) and said[-1] == "of 3: 1 contradicted, 1 held"
    # A verdict of an old version, whose tables say otherwise.
    verdict = json.loads((folder / "verdict.json").read_text())
    old = [{"claim": c.claim, "held": False, "evidence": "e"} for c in before]
    (folder / "verdict.json").write_text(json.dumps({**verdict, "checks": old}))
    files.write_csv(folder / "coin.csv", [{"seed": n, "heads": 1.0} for n in range(3)])
    _, heads, throws = reproduce.judge_again("coin", folder, say=said.append)
    assert heads.verdict == "held" and throws.evidence == "20"
    assert any(line.startswith("held (it was undecided): all are heads: 1 [") for line in said)
    verdict = json.loads((folder / "verdict.json").read_text())
    assert [c["verdict"] for c in verdict["checks"]] == ["contradicted", "held", "reported"]
    assert verdict["machine"]["cpu"] and "judged_by" in verdict
    files.write_csv(folder / "coin.csv", [{"seed": 0, "tails": 1.0}])
    with pytest.raises(ValueError, match=r"not what today's claims of coin need \(KeyError.*again"):
        reproduce.judge_again("coin", folder)
    (folder / "config.json").write_text('{"reproduction": "coin", "config": {"sides": [], "x": 1}}')
    with pytest.raises(ValueError, match="does not know x"):
        reproduce.judge_again("coin", folder)
    (folder / "config.json").write_text('{"reproduction": "dice"}')
    with pytest.raises(ValueError, match="out is of dice, not of coin"):
        reproduce.judge_again("coin", folder)
    assert cli.main(["reproduce", "coin", "--judge", "out", "--set", "throws=1"]) == 2


@pytest.mark.parametrize("name", ["gkd", "warm", "munchausen-minatar"])
def test_what_is_committed_can_be_judged_again(name: str, tmp_path: pathlib.Path) -> None:
    root = pathlib.Path(__file__).parents[2]
    folder = shutil.copytree(root / "results" / "reproduce" / name, tmp_path / name)
    lines: list[str] = []
    checks = reproduce.judge_again(name, folder, say=lines.append)
    assert lines[0].startswith("headline, ") and any(c.is_headline for c in checks)
    kept = json.loads((root / "results" / "reproduce" / name / "verdict.json").read_text())
    again = json.loads((folder / "verdict.json").read_text())
    assert again["checks"] == kept["checks"] and again["machine"] == kept["machine"]


def test_other_settings_go_to_another_folder(
    thrown: list[int], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del thrown
    monkeypatch.chdir(tmp_path)
    reproduce.reproduce("coin", assignments=["seeds=1"])
    reproduce.reproduce("coin", assignments=["seeds=2"])
    assert (tmp_path / "runs" / "reproduce-coin-2" / "verdict.json").is_file()
    taken = pathlib.Path("runs/reproduce-coin")
    with pytest.raises(ValueError, match="no coin with these settings; choose another"):
        reproduce.reproduce("coin", taken, ["seeds=2"])


def test_what_an_old_version_began_goes_on_with_its_seeds(
    thrown: list[int], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thrown[:] = [-1]  # Nothing interrupts it.
    monkeypatch.setattr(study, "EARLIER", {"throws": 50, "unknown": 1})
    reproduce.reproduce("coin", tmp_path / "out", say=lambda line: None)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    del config["config"]["throws"]
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert reproduce.reproduce("coin", tmp_path / "out", say=lambda line: None)
    assert thrown == [-1, 0, 1, 2]
    with pytest.raises(ValueError, match="no coin with these settings"):
        reproduce.reproduce("coin", tmp_path / "out", ["throws=60"])


def test_a_folder_that_was_never_begun_is_taken(
    thrown: list[int], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del thrown
    monkeypatch.chdir(tmp_path)
    # A process that is killed early leaves no more than that.
    for folder in (tmp_path / "out", tmp_path / "runs" / "reproduce-coin"):
        folder.mkdir(parents=True)
        (folder / ".tmp-config.json").touch()
    reproduce.reproduce("coin", tmp_path / "out", ["seeds=1"])
    reproduce.reproduce("coin", None, ["seeds=1"])
    for folder in (tmp_path / "out", tmp_path / "runs" / "reproduce-coin"):
        assert (folder / "verdict.json").is_file() and not list(folder.glob(".tmp-*"))
    (tmp_path / "runs" / "reproduce-coin-2").touch()  # A file is no folder to be taken.
    reproduce.reproduce("coin", None, ["seeds=2"])
    assert (tmp_path / "runs" / "reproduce-coin-3" / "verdict.json").is_file()


def test_a_part_is_whole_or_not_there(
    thrown: list[int], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del thrown
    monkeypatch.chdir(tmp_path)
    write = files.atomic_write_text

    def fail(path: pathlib.Path, text: str) -> None:
        if path.name == "seed-1.json":
            raise OSError("disk full")
        write(path, text)

    monkeypatch.setattr(files, "atomic_write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        reproduce.reproduce("coin")
    parts = tmp_path / "runs" / "reproduce-coin" / "parts"
    assert [path.name for path in parts.iterdir()] == ["seed-0.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["coyn"], "unknown reproduction 'coyn'; expected one of"),
        (["coin", "--set", "throw=1"], "unknown field 'throw'; did you mean throws?"),
        (["coin", "--set", "seeds=0"], "seeds must be >= 1, got 0"),
        (["coin", "--set", "seeds=many"], "seeds must be int, got 'many'"),
        (["coin", "--full"], "coin has one size; leave --full out"),
        (["coin", "--mdp", "own.npz"], "--mdp goes with the reproductions of theory"),
    ],
)
def test_what_is_asked_wrongly_is_one_line_and_exit_2(
    thrown: list[int],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    del thrown
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_fields_are_listed(thrown: list[int], capsys: pytest.CaptureFixture[str]) -> None:
    del thrown
    assert cli.main(["reproduce", "coin", "--fields"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["seeds", "3", "int"],
        ["throws", "50", "int"],
        ["sides", "(0.1,", "0.5,", "1.0)", "tuple[float,", "...]"],
    ]


def test_every_reproduction_of_the_catalog_is_there() -> None:
    for name in catalog.REPRODUCTIONS:
        entry = reproduce.load(name)
        assert entry.claim
        assert entry.steps(entry.config) >= 1
        assert entry.seconds(entry.config) > 0


def test_a_part_that_was_changed_is_said_with_its_file(
    thrown: list[int], tmp_path: pathlib.Path
) -> None:
    out = tmp_path / "coin"
    reproduce.reproduce("coin", out, ["seeds=2"])
    part = out / "parts" / "seed-1.json"
    damage.check(part, lambda: reproduce.reproduce("coin", out, ["seeds=2"], say=lambda line: None))
    part.write_text(part.read_text().replace('"heads": 0.', '"heads": 0.1'))
    with pytest.raises(ValueError, match=r"seed-1\.json has changed .*; remove it, and the part"):
        reproduce.reproduce("coin", out, ["seeds=2"])
    part.write_text('[{"seed": 1, "heads": 0.5}]')  # As version 0.1 wrote them.
    reproduce.reproduce("coin", out, ["seeds=2"])
    assert '"coin"' not in (out / "coin.csv").read_text() and thrown == [0, 1]


def test_a_folder_whose_configuration_is_damaged_is_no_other_one(
    thrown: list[int], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reproduce.reproduce("coin", assignments=["seeds=1"])
    (tmp_path / "runs" / "reproduce-coin" / "config.json").write_text('{"reproduction": ')
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        reproduce.reproduce("coin", assignments=["seeds=1"])
    assert thrown == [0]


def test_what_is_kept_is_copied_into_a_checkout_without_changes(
    thrown: list[int], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = tmp_path / "checkout", tmp_path / "out"
    monkeypatch.setattr(checkout, "__file__", str(root / "checkout.py"))
    kept = root / "results" / "reproduce" / "coin"
    kept.mkdir(parents=True)
    (root / "checkout.py").touch()
    (kept / "old.csv").touch()
    for command in ("init -q", "add -A", "-c user.name=t -c user.email=t@t.org commit -qm all"):
        subprocess.run(["git", "-C", str(root), *command.split()], check=True)
    said: list[str] = []
    reproduce.reproduce("coin", out, ["seeds=2"], said.append, keep=True)
    assert said[-1] == f"kept: {kept}"
    names = {"coin.csv", "coin.png", "coin.svg", "thrown.gif", "config.json", "verdict.json"}
    assert {path.name for path in kept.iterdir()} == names
    assert all((kept / name).read_bytes() == (out / name).read_bytes() for name in names)
    # Now it has changes: what was kept.
    monkeypatch.chdir(tmp_path)
    before = list(thrown)
    with pytest.raises(ValueError, match="--keep needs a checkout without changes"):
        reproduce.reproduce("coin", assignments=["seeds=3"], keep=True)
    assert thrown == before and not (tmp_path / "runs").exists()


def test_keeping_from_no_checkout_is_one_line_and_exit_2(
    thrown: list[int],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(checkout, "__file__", str(tmp_path / "checkout.py"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "coin", "--keep"]) == 2
    error = capsys.readouterr().err
    assert "--keep needs a checkout" in error and error.count("\n") == 1
    assert thrown == [] and not (tmp_path / "runs").exists()
