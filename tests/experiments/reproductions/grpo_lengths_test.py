"""Tests of experiments/reproductions/{grpo_lengths,ended_letters}.py."""

import csv
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.environments import tokens
from kullback.experiments import reproduce
from kullback.experiments.reproductions import ended_letters, grpo_lengths, letters, study
from kullback.lm import gemma
from tests.states import fresh_params

LANGUAGE = letters.Sizes(letters=4, horizon=6, held_out=5, texts=4_000)


def test_texts_of_the_source_end_by_chance_and_have_a_first_letter():
    language = letters.make(LANGUAGE, 0)
    rows = ended_letters.corpus(language, LANGUAGE, 0, stop=0.25)
    ids, is_answer = (np.asarray(x)[:, letters.PROMPT :] for x in (rows.tokens, rows.is_answer))
    is_letter = is_answer & (ids >= letters.FIRST)
    lengths = is_letter.sum(1)
    assert lengths.min() == 1 and lengths.max() == LANGUAGE.horizon
    # The end is an answer's token, unless the horizon cuts the text before it.
    np.testing.assert_array_equal(is_answer.sum(1), np.minimum(lengths + 1, LANGUAGE.horizon))
    for n in range(1, LANGUAGE.horizon):
        assert abs(np.mean(lengths[lengths >= n] == n) - 0.25) < 0.05
    whole = letters.corpus(language, LANGUAGE, 0)
    written = np.asarray(whole.tokens)[:, letters.PROMPT :]
    np.testing.assert_array_equal(ids[is_letter], written[is_letter])


def completion(first: list[int]) -> tokens.Completion:
    ids = jnp.asarray([[x, letters.FIRST] for x in first])
    unread = jnp.zeros(ids.shape)
    return tokens.Completion(ids, jnp.ones(ids.shape, bool), unread[:, 0], unread[:, 0], unread)


def test_the_first_letter_decides_and_an_empty_text_teaches_nothing():
    language = letters.make(LANGUAGE, 0)
    unigram = jnp.zeros((4, 4)).at[1, 2].set(1.0)
    tables = language.tables._replace(gold_unigram=unigram)
    prompts = letters.as_prompts(jnp.asarray([[3, 2]] * 4 + [[2, 3]] * 4))
    right, wrong, end = 2 + letters.FIRST, 1 + letters.FIRST, letters.END
    given = completion([right, wrong, end, wrong, right, wrong, end, end])
    reward = ended_letters.scorer(4).score(tables, given, prompts)
    np.testing.assert_allclose(reward, [1, 0, 1 / 3, 0, 0, 0, 0, 0], rtol=1e-6)
    assert float(reward[2]) == pytest.approx(float(jnp.mean(reward[:4])), rel=1e-6)


@pytest.mark.slow
def test_lengths_of_a_policy_of_uniform_tokens():
    """Of 6 ids 4 are letters and one ends: letters of n more tokens are 4 (1 - (5/6)^n) on mean."""
    model, language = gemma.make(LANGUAGE.decoder(8, 1)), letters.make(LANGUAGE, 0)
    start = fresh_params(model.init)
    params = {**start, "final_norm": jnp.full_like(start["final_norm"], -1)}  # As 1 + w.
    tables = language.tables._replace(gold_unigram=jnp.asarray([[1.0, 0, 0, 0]] * 4))
    measure = ended_letters.measure(model, LANGUAGE.horizon, 400)
    lengths = measure(params, params, tables, language.held_out, jax.random.key(1))
    after, written = (4 * (1 - (5 / 6) ** n) for n in (LANGUAGE.horizon - 1, LANGUAGE.horizon))
    np.testing.assert_allclose([lengths.right, lengths.wrong], 1 + after, atol=0.35)
    np.testing.assert_allclose([lengths.written, lengths.accuracy], [written, 1 / 6], atol=0.15)


def rows(drifts: dict[str, float]) -> study.Rows:
    """Returns lengths of 3 seeds, in which wrong answers grow by so much."""
    table = []
    for name in grpo_lengths.VARIANTS:
        for seed in range(3):
            for step in (0, 10):
                grown = (drifts[name] + 0.01 * seed) * step / 10
                row = {"variant": name, "seed": seed, "step": step, "written": 4.0, "accuracy": 0.5}
                table.append({**row, "right": 3.0 + seed, "wrong": 3.5 + seed + grown})
    return table


@pytest.mark.parametrize("good", [True, False])
def test_what_is_judged(good: bool):
    still = 0.0 if good else 1.0
    drifts = dict.fromkeys(grpo_lengths.VARIANTS, 1.0 if good else -0.5)
    drifts |= {"dr-grpo": still, "dapo": still}
    tables = {"lengths": rows(drifts)}
    checks = [*grpo_lengths.claims(grpo_lengths.Config(), tables)]
    verdicts = [c.verdict for c in checks if c.verdict != "reported"]
    assert verdicts == ["held" if good else "contradicted"] * 6
    assert sum(c.is_headline for c in checks) == 2
    np.testing.assert_allclose(
        grpo_lengths.drift(tables["lengths"], "grpo"), drifts["grpo"] + np.array([0, 0.01, 0.02])
    )
    assert len(grpo_lengths.panels(tables["lengths"]).draw().axes) == 2


def test_arms_differ_in_advantages_and_aggregation_alone():
    arms = {name: grpo_lengths.Config().policy(name) for name in grpo_lengths.VARIANTS}
    said = {
        name: (c.normalisation, c.scale_by_deviation, c.kl_coefficient, c.epochs, c.drop_equal)
        for name, c in arms.items()
    }
    assert said == {
        "grpo": ("length", True, 0.0, 1, False),
        grpo_lengths.MEAN_ONLY: ("length", False, 0.0, 1, False),
        "dr-grpo": ("constant", False, 0.0, 1, False),
        "dapo": ("tokens", True, 0.0, 1, False),
    }
    assert not any(c.truncation_penalty or c.length_penalty for c in arms.values())


@pytest.mark.slow
def test_it_runs(tmp_path: pathlib.Path):
    settings = ["seeds=2", "first_seed=3", "width=8", "num_layers=1", "batch_size=8", "steps=4"]
    settings += ["samples_per_prompt=4", "records=2", "samples=4", "language.letters=4"]
    settings += ["language.horizon=3", "language.held_out=5", "language.texts=32"]
    settings += ["language.start_steps=2", "language.start_batch=8"]
    checks = reproduce.reproduce("grpo-lengths", tmp_path / "out", settings, lambda line: None)
    assert sum(c.verdict != "reported" for c in checks) == 6
    with open(tmp_path / "out" / "lengths.csv") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 2 * 4 * 3
    starts = {(r["seed"], r["wrong"], r["written"]) for r in table if r["step"] == "0"}
    assert len(starts) == 2, "arms of a seed share their start and its texts"
    assert all(1 <= float(r[name]) <= 3 for r in table for name in ("right", "wrong"))
    assert (tmp_path / "out" / "grpo_lengths.svg").is_file()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grpo_lengths.Config(seeds=0), "seeds must be >= 1"),
        (lambda: grpo_lengths.Config(stop=1.0), r"stop must lie in \(0, 1\)"),
        (lambda: grpo_lengths.Config(records=7), "steps must be a multiple of records=7"),
        (
            lambda: grpo_lengths.Config(language=letters.Sizes(horizon=1)),
            "horizon must be >= 2 letters",
        ),
        (lambda: grpo_lengths.Config(samples_per_prompt=3), "must be >= 1 and divide batch_size"),
    ],
)
def test_refusals(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
