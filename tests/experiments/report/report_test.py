"""Tests of `report.write`: of real runs and of chosen ones, what the page and its files hold."""

import csv
import html.parser
import json
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest

from kullback.experiments import report, statistics
from kullback.experiments.report import figures, page, published
from kullback.experiments.runs import record, run_folder

WriteRun = Callable[..., pathlib.Path]
RANDOM = {"minatar/breakout": 0.5, "minatar/asterix": 0.5, "minatar/freeway": 0.1}
ATARI = {"atari/pong": (-20.7, 14.6), "atari/breakout": (1.7, 30.5), "atari/pooyan": (0.0, 1.0)}


class Parsed(html.parser.HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(
    runs: list[pathlib.Path], out: pathlib.Path, **options: Any
) -> tuple[Parsed, pathlib.Path, list[str]]:
    said: list[str] = []
    index = report.write(runs, out, say=said.append, **options)
    assert said[-1] == f"report: {index}"
    parsed = Parsed(index.read_text())
    assert not parsed.open
    check_stands_alone(parsed, index.parent)
    return parsed, index.parent, said


def check_stands_alone(parsed: Parsed, folder: pathlib.Path) -> None:
    """Checks that nothing is fetched, and that each link leads to a whole file."""
    files = {"index.html"}
    for tag, attributes in parsed.tags:
        assert tag not in ("script", "iframe", "object", "embed")
        if tag in ("img", "link"):
            assert (attributes.get("src") or attributes.get("href") or "").startswith("data:")
        elif target := attributes.get("href"):
            if not target.startswith("#"):
                files.add(target)
    assert files == {path.name for path in folder.iterdir()}
    for path in folder.glob("*.png"):
        with PIL.Image.open(path) as picture:
            picture.load()


@pytest.fixture(scope="module")
def minatar(tmp_path_factory: pytest.TempPathFactory, write_run: WriteRun) -> pathlib.Path:
    """Makes runs whose last scores are, plus the seed, RANDOM + 10 for dqn, + 15 for m-dqn."""
    sweep = tmp_path_factory.mktemp("minatar")
    for agent, gain in (("dqn", 10), ("m-dqn", 15)):
        for game, random in RANDOM.items():
            write_run(
                sweep / f"{agent}-{game.split('/')[1]}",
                agent,
                game,
                lambda seed, step, r=random, g=gain: r + (g + seed - 1) * step / 400,
                **({"config": {"temperature": 0.03}} if agent == "m-dqn" else {}),
            )
    return sweep


def test_a_real_run(tmp_path: pathlib.Path, chain_run: Any):
    parsed, folder, said = write([chain_run.path], tmp_path / "out")
    (row,) = rows(folder / "toy-scores.csv")
    assert float(row["score"]) == chain_run.rows[-1]["recent_return"]
    assert row["seeds"] == "1" and row["score low"] == row["score high"] == row["score"]
    curve = rows(folder / "toy-chain-curve.csv")
    assert [int(row["steps"]) for row in curve] == [row["steps"] for row in chain_run.rows]
    assert len(said) == 1 and "missing" not in parsed.text.replace("foundmissing", "")
    by_evaluation = write([chain_run.path], tmp_path / "out", score="evaluation")[1]
    (row,) = rows(by_evaluation / "toy-scores.csv")
    assert float(row["score"]) == chain_run.rows[-1]["evaluation"]


def test_a_run_that_is_not_as_it_was_saved_is_said(tmp_path: pathlib.Path, chain_run: Any):
    shutil.copytree(chain_run.path, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.csv"
    metrics.write_text(metrics.read_text().replace(",1000,", ",1001,"))
    parsed, _, said = write([tmp_path / "run"], tmp_path / "out")
    (line,) = [line for line in said if line.startswith("changed: ")]
    assert str(metrics) in line and "Some runs are not as they were saved." in parsed.text


def test_without_human_scores_nothing_is_put_together(
    tmp_path: pathlib.Path, minatar: pathlib.Path
):
    parsed, folder, _ = write([minatar], tmp_path / "out")
    assert "not put together over games" in parsed.text
    assert not list(folder.glob("*aggregates*")) and not list(folder.glob("*profile*"))
    row = rows(folder / "minatar-scores.csv")[1]
    assert (row["environment"], row["agent"]) == ("minatar/asterix", "m-dqn")
    assert float(row["score"]) == 15.5 and float(row["score - random"]) == 15
    assert (float(row["lowest"]), float(row["highest"])) == (14.5, 16.5)
    assert "human" not in row
    # Of seeds 9, 10, 11 over random and 14, 15, 16: none of dqn is better than one of m-dqn.
    (chance,) = rows(folder / "minatar-improvement.csv")
    assert (chance["agent"], chance["over"], chance["probability"]) == ("dqn", "m-dqn", "0.0")


def test_a_baseline_normalises(tmp_path: pathlib.Path, minatar: pathlib.Path):
    parsed, folder, _ = write([minatar], tmp_path / "out", baseline="dqn")
    by_agent = {row["agent"]: row for row in rows(folder / "minatar-by-dqn-aggregates.csv")}
    # Nine runs of m-dqn, (14, 15, 16) / 10 in each game; dqn is 1 by definition.
    for name in ("median", "IQM", "mean"):
        assert float(by_agent["m-dqn"][name]) == pytest.approx(1.5)
        assert float(by_agent["dqn"][name]) == pytest.approx(1)
    assert float(by_agent["m-dqn"]["optimality gap"]) == pytest.approx(0)
    assert float(by_agent["m-dqn"]["mean low"]) < 1.5 < float(by_agent["m-dqn"]["mean high"])
    for row in rows(folder / "minatar-over-dqn.csv"):
        assert float(row["m-dqn, %"]) == pytest.approx(50)
    efficiency = rows(folder / "minatar-by-dqn-sample-efficiency.csv")
    reached = {int(r["steps"]): float(r["IQM"]) for r in efficiency if r["agent"] == "m-dqn"}
    assert reached == pytest.approx({100: 0.375, 200: 0.75, 300: 1.125, 400: 1.5})
    # Of values 1.4, 1.5, 1.6 all are above 1 and none is above 1.6.
    profile = [
        row for row in rows(folder / "minatar-by-dqn-profile.csv") if row["agent"] == "m-dqn"
    ]
    above = {float(row["threshold"]): float(row["fraction"]) for row in profile}
    assert {f for t, f in above.items() if t < 1.39} == {1} and min(above.values()) == 0
    # Each figure says its set of games.
    for tag, attributes in parsed.tags:
        if tag == "img" and "curve" not in str(attributes["alt"]):
            alt = str(attributes["alt"])
            assert "3 games of MinAtar: asterix, breakout, freeway" in alt or "minatar/" in alt
    settings = {row["setting"]: row for row in rows(folder / "minatar-settings.csv")}
    assert settings["temperature"] == {"setting": "temperature", "dqn": "-", "m-dqn": "0.03"}


def test_human_scores_and_what_is_published(tmp_path: pathlib.Path, write_run: WriteRun):
    for agent, share in (("dqn", 0.5), ("m-dqn", 2.0)):
        for game, (random, human) in ATARI.items():
            write_run(
                tmp_path / "runs" / f"{agent}{game[5:]}",
                agent,
                game,
                lambda seed, step, x=random + share * (human - random): x,
                seeds=(0, 1),
                planned_steps=1_000,
            )
    parsed, folder, said = write(
        [tmp_path / "runs"], tmp_path / "out", baseline="dqn", with_published=["munchausen"]
    )
    by_agent = {row["agent"]: row for row in rows(folder / "atari-human-aggregates.csv")}
    assert [float(by_agent["m-dqn"][name]) for name in ("mean", "median", "IQM")] == pytest.approx(
        [2, 2, 2]
    )
    assert float(by_agent["dqn"]["optimality gap"]) == pytest.approx(0.5)
    assert by_agent["dqn"]["games"] == "2"  # Pooyan has no human score, and that is said.
    assert "not published of atari/pooyan" in parsed.text
    (chance,) = rows(folder / "atari-improvement.csv")
    assert chance["over"] == "dqn" and float(chance["probability"]) == 1
    # 2 - 0.5 of |human - random|, over 0.5.
    over = [float(row["m-dqn, %"]) for row in rows(folder / "atari-over-dqn.csv")]
    assert over == pytest.approx([300, 300])
    table = rows(folder / "published.csv")
    assert len(table) == len(published.TABLE) + 2
    assert all(row["games"].startswith("60 games") for row in table if row["source"] == "published")
    ours = [row for row in table if row["source"] == "this report"]
    assert [row["games"] for row in ours] == [
        "2 games of Atari: breakout, pong; sticky actions, 4 runs"
    ] * 2
    assert float(ours[1]["human-normalised mean, %"]) == pytest.approx(200)
    assert ours[0]["frames"] == "1600"  # 400 steps of 4.
    assert "unfinished: seed 1 of dqn on atari/pong: 400 of 1,000 steps" in said


def test_what_has_diverged_is_not_called_unfinished(tmp_path: pathlib.Path, write_run: WriteRun):
    runs = tmp_path / "runs"
    write_run(runs / "a", "dqn", "minatar/breakout", seeds=(0,), planned_steps=1_000)
    folder = write_run(runs / "b", "m-dqn", "minatar/breakout", seeds=(0,), planned_steps=1_000)
    run_folder.RunFolder(folder).write_diverged("the loss is not finite at step 450")
    parsed, _, said = write([runs], tmp_path / "out")
    assert "unfinished: seed 0 of dqn on minatar/breakout: 400 of 1,000 steps" in said
    how = "seed 0 of m-dqn on minatar/breakout: the loss is not finite at step 450"
    assert f"diverged: {how}" in said and how in parsed.text
    assert not any(line.startswith("unfinished: seed 0 of m-dqn") for line in said)


def test_what_is_missing_or_cut_or_left_out_is_said(tmp_path: pathlib.Path, write_run: WriteRun):
    runs = tmp_path / "runs"
    write_run(runs / "a", "dqn", "minatar/breakout")
    write_run(runs / "b", "m-dqn", "minatar/breakout", steps=(100, 200), seeds=(0, 1))
    write_run(runs / "c", "dqn", "minatar/asterix")
    parsed, folder, said = write([runs], tmp_path / "out")
    assert "missing: m-dqn on minatar/breakout: seeds 2" in said
    assert "missing: m-dqn on minatar/asterix: no run" in said
    assert any(line.startswith("cut: scores are read after 200 steps") for line in said)
    for sentence in ("m-dqn on minatar/breakout: seeds 2", "m-dqn on minatar/asterix: no run"):
        assert sentence in parsed.text
    assert "read after 200 steps" in parsed.text and "the 1 of 2 games" in parsed.text
    assert {row["steps"] for row in rows(folder / "minatar-scores.csv")} == {"200"}
    _, folder, said = write([runs], tmp_path / "later", steps=300)
    assert "cut: scores are read after 300 steps, as asked for" in said
    assert any("seed 0 of m-dqn" in line for line in said if line.startswith("left out: "))
    assert {row["steps"] for row in rows(folder / "minatar-scores.csv")} == {"300"}
    with pytest.raises(ValueError, match="nothing can be compared after 1 steps: seed 0 of"):
        write([runs], tmp_path / "early", steps=1)
    assert not (tmp_path / "early").exists()


def test_a_language_model_has_its_measures_and_texts(tmp_path: pathlib.Path, write_run: WriteRun):
    task = "tokens/arithmetic"
    run = write_run(
        tmp_path / "run",
        "sft",
        task,
        lambda seed, step: float("nan"),
        seeds=(0,),
        extra=lambda seed, step: {"entropy": 1 / step, "loss": 2 / step},
        model="tiny",
    )
    evil = "<script>alert('x')</script> & \"quoted\""
    texts = record.Record(run_folder.RunFolder(run), has_texts=True)
    texts.write_texts(
        100, 0, [{"greedy": True, "prompt": "old", "completion": "early", "score": 0.0}]
    )
    line = {"greedy": False, "prompt": evil, "completion": "y" * 5_000, "score": 1.0}
    texts.write_texts(400, 0, [line] * 12)
    parsed, folder, said = write([run], tmp_path / "out")
    curve = rows(folder / "tokens-arithmetic-entropy.csv")
    assert [float(row["entropy"]) for row in curve] == [1 / 100, 1 / 200, 1 / 300, 1 / 400]
    assert (folder / "tokens-arithmetic-loss.png").is_file()
    assert not (folder / "tokens-scores.csv").exists()
    assert evil in parsed.text and "early" not in parsed.text
    assert sum(tag == "pre" for tag, _ in parsed.tags) == 12
    assert "(1,000 more characters)" in parsed.text
    assert any(re.match("left out: seed 0 of sft", line) for line in said)


def test_an_old_report_is_replaced_and_nothing_else_is(
    tmp_path: pathlib.Path, chain_run: Any, write_run: WriteRun
):
    out = tmp_path / "out"
    write([chain_run.path], out)
    write([write_run(tmp_path / "a", "dqn", "minatar/breakout")], out)
    assert not (out / "toy-scores.csv").exists() and (out / "minatar-scores.csv").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "a"}
    with pytest.raises(ValueError, match="exists and holds no report"):
        report.write([chain_run.path], chain_run.path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"baseline": "c51"}, "unknown baseline 'c51'; expected one of m-dqn"),
        ({"compare": ["m-dqn:c52"]}, "unknown agent to compare 'c52'; expected one of m-dqn"),
        ({"compare": ["m-dqn"]}, "--compare takes AGENT:AGENT, such as m-dqn:dqn, got 'm-dqn'"),
        ({"denominator": "c51"}, "denominator must be one of"),
        ({"score": "best"}, "score must be one of training, last-tenth, evaluation"),
        ({"steps": 10**6}, "no run has done 1,000,000 steps"),
    ],
)
def test_what_is_asked_wrongly_is_refused_before_anything_is_written(
    tmp_path: pathlib.Path, chain_run: Any, options: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        report.write([chain_run.path], tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_the_next_free_folder(
    tmp_path: pathlib.Path, chain_run: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "report-001").mkdir(parents=True)
    said: list[str] = []
    report.write([chain_run.path], say=said.append)
    assert said == ["report: runs/report-002/index.html"]


def test_a_curve_of_one_row_is_seen():
    one, two = (statistics.Estimate(*np.ones((3, rows))) for rows in (1, 2))
    by_label = {
        "cut": figures.Curve(np.array([500]), one),
        "whole": figures.Curve(np.array([500, 1_000]), two),
    }
    drawn = figures.curves(by_label, figures.colours(list(by_label)), "", "", "")
    markers = {line.get_label(): line.get_marker() for line in drawn.axes[0].lines}
    assert markers == {"cut": "o", "whole": "None"}


def test_the_head_of_a_column_stands_over_its_numbers(tmp_path: pathlib.Path):
    out = page.Page(tmp_path, "tables")
    row = {"agent": "dqn", "score": 1.5, "seeds": 2, "is best": True, "games": "x" * 40}
    out.table("scores", [row], "")
    out.write()
    parsed = Parsed((tmp_path / page.INDEX).read_text())
    classes = [[given.get("class") for tag, given in parsed.tags if tag == t] for t in ("th", "td")]
    assert classes == [[None, "number", "number", None, "long"]] * 2


def test_an_estimate_is_shown_with_its_interval(tmp_path: pathlib.Path):
    out = page.Page(tmp_path, "title")
    wide, narrow = (
        statistics.Estimate(12345.6, 12000.0, 13000.0),
        statistics.Estimate(0.25, 0.25, 0.25),
    )
    out.table("one", [{"score": wide}, {"score": narrow}], "")
    out.write()
    shown = (tmp_path / page.INDEX).read_text()
    assert "12,346 [12,000, 13,000]" in shown and ">0.25<" in shown


def test_what_runs_say_is_text_and_nothing_else(tmp_path: pathlib.Path, write_run: WriteRun):
    evil = r"<script>alert(1)</script>$\frac$"
    for name, value in (("a", "=1+1"), ("b", evil)):
        run = write_run(
            tmp_path / "runs" / name,
            "sft",
            f"tokens/jsonl:{evil}.jsonl",
            config={"learning": {evil: value}},
            extra=lambda seed, step: {f"=loss {evil}": 1.0 + seed},
            settings=(f"learning_rate={1 + (name == 'b')}",),
        )
        line = {"step": 400, "seed": 0, "prompt": evil, "completion": evil}
        (run / "samples.jsonl").write_text(json.dumps(line) + "\n")
    index = report.write([tmp_path / "runs"], tmp_path / "out", say=lambda line: None)
    text = index.read_text()
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    for table in (tmp_path / "out").glob("*.csv"):
        with table.open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "@"))]
