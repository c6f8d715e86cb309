"""Tests of experiments/reproductions/hearing_words.py."""

import csv
import pathlib
from typing import Any

import numpy as np
import pytest

from kullback.experiments import reproduce
from kullback.experiments.reproductions import hearing_words, spoken, study
from kullback.lm import hearing

SMALL = ("bins=8", "encoder_width=8", "encoder_layers=1", "width=8", "layers=1", "clips=12")
SMALL += ("steps=2", "batch_size=4", "held_out=3", "seeds=2")


@pytest.mark.slow
def test_it_runs_small(tmp_path: pathlib.Path):
    said: list[str] = []
    out = tmp_path / "out"
    checks = reproduce.reproduce("hearing-words", out, SMALL, said.append)
    assert len(checks) == 7 and sum(check.is_headline for check in checks) == 3
    with (out / "answers.csv").open(newline="") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 2 * 3 and {row["seed"] for row in rows} == {"100", "101"}
    assert (out / "hearing_words.png").stat().st_size > 10_000


def test_a_row_has_the_soft_tokens_of_its_clip_and_another_rows_in_the_control(
    monkeypatch: pytest.MonkeyPatch,
):
    sizes = {"bins": 8, "encoder_width": 8, "encoder_layers": 1, "width": 8, "layers": 1}
    world = hearing_words.World(hearing_words.Config(**sizes))
    questions = [spoken.Row("aio", "up", "word"), spoken.Row("uuu", "down", "tone")]
    frames = np.array([[17], [64]], np.int32)
    features = np.random.default_rng(0).normal(size=(2, 1, 64, 8)).astype(np.float32)
    rows = world.rows(questions, hearing.Clips(features, frames))
    assert world.markers.audio is not None
    soft = world.markers.audio.soft
    assert [example.prompt.count(soft) for example in rows.examples] == [2, 4]
    answers = [world.tokenizer.decode(example.completion) for example in rows.examples]
    assert answers == ["aio", "down"]
    padded = world.sequences(rows)
    assert padded.tokens.shape == (2, world.width + world.horizon)
    given: list[Any] = []
    monkeypatch.setattr(world, "is_right", lambda params, x: given.append(x) or np.ones(2, bool))
    world.right({}, rows)
    world.right({}, rows, shuffled=True)
    np.testing.assert_array_equal(given[0].sensed.features, features)
    np.testing.assert_array_equal(given[1].sensed.features, features[::-1])
    assert [np.sum(row == soft) for row in given[1].tokens] == [4, 2]
    np.testing.assert_array_equal(given[1].is_answer.sum(1), given[0].is_answer.sum(1))


def tables(**changed: float) -> study.Tables:
    """Returns a table of three seeds, as of a decoder that hears, with some values changed."""
    random = np.random.default_rng(0)
    right = {"word": 0.95, "tone": 0.97, "new word": 0.9}
    guess = {"word": 0.01, "tone": 0.5, "new word": 0.0}
    rows: list[study.Row] = []
    for seed in (100, 101, 102):
        for kind in hearing_words.KINDS:
            values = {"right": right[kind], "shuffled": guess[kind], "guessed": guess[kind]}
            for name in values:
                values[name] = changed.get(f"{name} {kind}", values[name])
            drawn = {name: x + 0.002 * random.normal() for name, x in values.items()}
            rows.append({"seed": seed, "questions": kind, **drawn})
    return {"answers": rows}


def verdicts(given: study.Tables) -> list[str]:
    return [check.verdict for check in hearing_words.claims(hearing_words.Config(), given)]


def test_claims_of_a_decoder_that_hears():
    assert verdicts(tables()) == ["held"] * 4 + ["reported"] * 3


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (0, {"right tone": 0.6}),
        (1, {"shuffled word": 0.3}),
        (2, {"shuffled tone": 0.9}),
        (3, {"right new word": 0.3}),
    ],
)
def test_a_claim_fails_where_its_number_does(number: int, change: dict[str, Any]):
    assert verdicts(tables(**change))[number] == "contradicted"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"encoder_width": 6}, "encoder_width must be a multiple of 4"),
        ({"new_share": 1.0}, r"new_share must lie in \(0, 1\)"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        hearing_words.Config(**fields)


def test_the_best_guess_is_what_was_learnt_most_often():
    def row(word: str) -> spoken.Row:
        return spoken.Row(word, "up", "word")

    learnt = [row("aio"), row("aio"), row("uuu")]
    assert hearing_words.guessed(learnt, [row("aio"), row("eee")]) == 0.5
