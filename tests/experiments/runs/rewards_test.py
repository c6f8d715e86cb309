"""Tests of experiments/runs/rewards.py: how names become terms; runs are in episodes_test.py."""

import pathlib
import sys
from typing import Any

import numpy as np
import pytest

from kullback.experiments import interrupts
from kullback.experiments.runs import rewards
from kullback.lm import tasks
from kullback.lm.entailment import scorers

TASK = tasks.make("tokens/arithmetic")
WORDS: Any = None  # A reward model alone reads the policy's tokenizer.


def parse(text: str) -> rewards.Reward:
    return rewards.parse(text, TASK, WORDS)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", [(1, "exact")]),
        (" exact ", [(1, "exact")]),
        ("2*exact", [(2, "exact")]),
        ("-.5*exact", [(-0.5, "exact")]),
        ("exact+length", [(1, "exact"), (1, "length")]),
        ("exact-0.01*length", [(1, "exact"), (-0.01, "length")]),
        ("exact + -1e-3 * length", [(1, "exact"), (-1e-3, "length")]),
        ("1e-3*length-2e+1*exact", [(1e-3, "length"), (-20, "exact")]),
        ("exact+exact", [(1, "exact"), (1, "exact")]),
        # Folders keep "+", "-", "*", digits and spaces unless a known name comes after.
        ("entailment:runs/a-b+c-2*d", [(1, "entailment:runs/a-b+c-2*d")]),
        ("0.5*entailment:a-b+c+2*exact", [(0.5, "entailment:a-b+c"), (2, "exact")]),
        ("entailment:my runs/x+exact", [(1, "entailment:my runs/x"), (1, "exact")]),
        ("entailment:runs/rm1e-0.5*length", [(1, "entailment:runs/rm1e"), (-0.5, "length")]),
        ("entailment:seed-1-1*exact", [(1, "entailment:seed-1"), (-1, "exact")]),
        ("entailment:a+exactly", [(1, "entailment:a+exactly")]),
        ("entailment:a+0.2*entailment:b-c", [(1, "entailment:a"), (0.2, "entailment:b-c")]),
        ("math-0.01*length", [(1, "math"), (-0.01, "length")]),
        ("0.2*format:a+b*c?-2{3}+math", [(0.2, "format:a+b*c?-2{3}"), (1, "math")]),
    ],
)
def test_terms_of_a_sum(text: str, terms: list[tuple[float, str]], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scorers, "load", lambda folder: None)
    reward = parse(text)
    named = [(w, name) for w, name, _ in reward.python_terms]
    named += [(w, scorer.name) for w, scorer in reward.jax_terms]
    assert sorted(named) == sorted(terms)
    assert reward.name == (text or "exact")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exat", "unknown reward 'exat'; expected one of entailment:DIR, exact, format:REGEX"),
        ("2*exat+length", "unknown reward 'exat'"),
        ("exact+lenght", r"unknown reward 'exact\+lenght'"),
        ("exact-length", "unknown reward 'exact-length'"),  # A minus is of a weight.
        ("-exact", "unknown reward '-exact'"),
        ("length:3", "unknown reward 'length:3'"),
        ("entailment", "unknown reward 'entailment'"),
        ("entailment:", "unknown reward 'entailment:'"),
        ("python:", "unknown reward 'python:'"),
        ("entailment:no/such", r"no/such.*config\.json is missing"),
        ("reward-model:no/such", "no/such"),
        ("python:no_such:f", "No module named 'no_such'; expected MODULE:FUNCTION"),
        ("python:json:no_such", "reward python:json:no_such: .*no attribute 'no_such'"),
        ("python:json", "reward python:json"),
        ("python:json:__name__", "must be a function, got str"),
        ("math:3", "unknown reward 'math:3'"),
        ("format:", "unknown reward 'format:'"),
        ("format:(a", r"reward format:REGEX: '\(a' is no regular expression: missing \)"),
        (r"format:(a)\1", r"reward format:REGEX: .* at character 4: only what is regular"),
    ],
)
def test_what_cannot_be_is_refused_by_name(text: str, said: str):
    with pytest.raises(ValueError, match=said) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_a_sum_is_weighed():
    reward = parse("2*exact-0.5*python:builtins:print")
    ones = tuple((w, name, lambda written: [1.0, 2.0]) for w, name, _ in reward.python_terms)
    scores = rewards.Reward("r", (), ones).python_score(["a", "b"], ["", ""], ["", ""])
    np.testing.assert_allclose(scores, [1.5, 3.0])
    assert scores.dtype == np.float32
    empty = rewards.Reward("r", (), ()).python_score(["a"], ["b"], ["c"])
    assert empty.tolist() == [0.0]


@pytest.mark.parametrize(
    "text", ["1e39*exact", "-1e39*length", "1e400*exact", "exact+3.5e38*length"]
)
def test_a_weight_beyond_float32_is_refused_where_it_is_named(text: str):
    with pytest.raises(
        ValueError, match=r"the weight of reward .* must be below 3.4e38, got -?[13i]"
    ):
        parse(text)


def test_what_is_finite_is_the_sum_after_the_weights():
    reward = parse("3e38*exact-3e38*length")  # Twice the first is too large, the difference is 0.
    twos = tuple((w, name, lambda written: [1.0, 2.0]) for w, name, _ in reward.python_terms)
    scores = rewards.Reward("r", (), twos).python_score(["a", "b"], ["", ""], ["", ""])
    with pytest.raises(
        ValueError, match=r"reward '3e38.*' must be finite, got inf for text 1 of 2"
    ):
        reward.checked(scores)
    np.testing.assert_array_equal(reward.checked(scores[:1]), scores[:1])


MODULE = """
def lengths(prompts, texts, references):
    return [len(prompt) + 10 * len(text) + 100 * len(r) for prompt, text, r in
            zip(prompts, texts, references)]
def one(prompts, texts, references):
    return [1.0]
def two_each(prompts, texts, references):
    return [[1.0, 1.0] for _ in texts]
def infinite(prompts, texts, references):
    return [float("inf")] * len(texts)
def none(prompts, texts, references):
    print(len(texts))
def words(prompts, texts, references):
    return texts
def too_large(prompts, texts, references):
    return [1e39] * len(texts)
def divides(prompts, texts, references):
    return [1 / 0 for _ in texts]
def ends(prompts, texts, references):
    raise SystemExit(0)
def undefined(prompts, texts, references):
    return [float("nan")] * len(texts)
"""


def test_functions_of_a_module_in_this_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "rewards_of_a_user.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    batch = (["p"] * 2, ["a", "bb"], ["", "r"])
    scores = parse("python:rewards_of_a_user:lengths").python_score(*batch)
    assert scores.tolist() == [11.0, 121.0]
    for name, said in {
        "one": r"must give 2 finite numbers, one a text, got shape \(1,\): \[1.0\]",
        "two_each": r"got shape \(2, 2\)",
        "infinite": r"got shape \(2,\): \[inf, inf\]",
        "undefined": r"\[nan, nan\]",
        "none": r"must give 2 finite numbers, one a text, got shape \(\): \[None\]",
        "words": r"got \['a', 'bb'\] \(could not convert string to float: 'a'\)",
        "too_large": r"got shape \(2,\): \[1e\+39, 1e\+39\]",
    }.items():
        reward = parse(f"exact+python:rewards_of_a_user:{name}")
        with pytest.raises(ValueError, match=said) as error:
            reward.python_score(*batch)
        assert f"python:rewards_of_a_user:{name}" in str(error.value)
    for name, said in {
        "divides": r"raised ZeroDivisionError\('division by zero'\) \(rewards_of_a_user\.py, line",
        "ends": r"raised SystemExit\(0\)",
    }.items():
        with pytest.raises(
            interrupts.Failure, match=f"reward python:rewards_of_a_user:{name} {said}"
        ):
            parse(f"python:rewards_of_a_user:{name}").python_score(*batch)


def test_answers_are_held_against_the_document_that_the_data_names(
    monkeypatch: pytest.MonkeyPatch,
):
    seen = []

    def probability(premises, hypotheses):
        seen.extend(zip(premises, hypotheses, strict=True))
        return np.full(len(premises), 0.5)

    monkeypatch.setattr(scorers, "load", lambda folder: scorers.make(probability))
    reward = parse("0.1*entailment:dir")
    prompts = ["Summarize the following article:\n\nParis is in France.", "No question."]
    scores = reward.python_score(prompts, ["a", "b"], ["", ""], ["Paris is in France.", "Yes."])
    np.testing.assert_allclose(scores, 0.1 * np.log([0.5, 0.5]), rtol=1e-6)
    assert seen == [("Paris is in France.", "a"), ("Yes.", "b")]
    seen.clear()
    reward.python_score(prompts, ["a", "b"], ["", ""])
    assert seen == [(prompts[0], "a"), (prompts[1], "b")]


def test_verifiable_rewards():
    reward = parse(r"math+0.5*format:(?s).*#### -?\d+")
    texts = ["#### 1000", "12 - 2\n#### 10", "1,000.0", "#### none", ""]
    scores = reward.python_score([""] * 5, texts, ["1000"] * 5)
    np.testing.assert_array_equal(scores, [1.5, 0.5, 1, 0, 0])


def test_references_are_numbers_where_numbers_are_compared():
    reward = parse("exact+0.1*math")
    reward.check_references(["1", "#### 2"])
    with pytest.raises(ValueError, match="'math' compares numbers, and a reference has none: 'x'"):
        reward.check_references(["1", "x"])
    parse("exact").check_references(["x"])


def test_terms_of_jax_have_their_parameters_as_arguments():
    reward = parse("length")
    assert reward.params == (None,) and not reward.python_terms
