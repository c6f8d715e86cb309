"""Tests of experiments/evaluate/evaluation.py, and of lm/evaluation.py on the same models."""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from kullback.core import regularizers
from kullback.core.sampling import Sampling
from kullback.environments import tokens
from kullback.experiments import cli
from kullback.experiments.evaluate import best_of, evaluation, generate, reports
from kullback.experiments.runs import episodes, model_files, reward_models, rewards
from kullback.lm import (
    data,
    gemma,
    preferences,
    reward_model,
    tasks,
    tokenizer,
    tuning,
)
from kullback.lm.evaluation import Answers, Evaluator
from tests import small_models

# An untrained model on sums. With the task's rule answers have a score, without it ROUGE.
SUMS = tasks.arithmetic(tasks.Arithmetic(digits=1, num_train=50, num_test=9))
LEARNING = tuning.Config(max_prompt_length=6, max_new_tokens=3, chunk=7)


@pytest.fixture(scope="module", autouse=True)
def few_rows() -> Iterator[None]:
    """Makes all programs of this module those of four rows."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("kullback.lm.evaluation.ROWS", 4)
        yield


def alike(evaluator: Evaluator, **changes: Any) -> Evaluator:
    """Returns an evaluator of another task or of other examples, with the same programs."""
    other = dataclasses.replace(evaluator, **changes)
    programs = {name: getattr(evaluator, name) for name in ("greedy", "sampled", "_measure")}
    vars(other).update(programs)
    return other


@functools.cache
def evaluator_of(divergence: str) -> Evaluator:
    bpe = tokenizer.train_bpe(SUMS.texts("train"), 300)
    config = small_models.shape_for(
        bpe,
        vocab_size=bpe.vocab_size + 1,  # A row of the table that the tokenizer does not know.
        num_layers=1,
        pattern=6,
        num_heads=1,
        embed_dim=8,
        hidden_dim=8,
    )
    test, _ = SUMS.examples("test", bpe, None)
    return Evaluator(gemma.make(config), bpe, SUMS, test, LEARNING, divergence)


def actor_of(evaluator: Evaluator, reward: rewards.Reward) -> episodes.Actor:
    sampler = evaluator.sampler(samples_per_prompt=2)
    return episodes.Actor(sampler=sampler, evaluator=evaluator, reward=reward)


@pytest.fixture(scope="module")
def acting() -> dict[str, Any]:
    # Sharper than initial parameters, so that the sparse operator excludes tokens.
    params = jax.jit(evaluator_of("kl").model.init)(jax.random.key(0))
    return {"params": jax.tree.map(lambda x: 3.0 * x, params)}


@pytest.fixture(scope="module")
def by_operator(acting: dict[str, Any]) -> dict[str, reports.Report]:
    evaluators = {
        "kl": evaluator_of("kl"),
        "alpha-1.5": alike(evaluator_of("alpha-1.5"), task=SUMS._replace(score=None)),
    }
    return {
        name: evaluation.evaluate(evaluator, acting, count=50, num_samples=3, key=jax.random.key(1))
        for name, evaluator in evaluators.items()
    }


@pytest.mark.parametrize("divergence", ["kl", "alpha-1.5", "reverse_kl"])
def test_likelihoods_are_those_of_the_operator(divergence: str, acting: dict[str, Any]):
    evaluator = evaluator_of(divergence)
    sums = evaluator.likelihoods(acting, 3)
    assert sums.loss.shape == (3,)

    @jax.jit
    def of_all(params: Any, ids: jax.Array) -> tuple[jax.Array, ...]:
        logits, labels = evaluator.model.apply(params, ids[None])[0, :-1], ids[1:]
        p = regularizers.softargmax(logits, evaluator.f)
        return logits, p, regularizers.loss(logits, labels, evaluator.f)

    for n, example in enumerate(evaluator.test[:3]):
        ids = np.array([*example.prompt, *example.completion], np.int32)
        logits, p, loss = of_all(acting["params"], np.pad(ids, (0, 9 - len(ids))))
        at = np.arange(len(example.prompt) - 1, len(ids) - 1)
        labels = ids[at + 1]
        with np.errstate(divide="ignore"):
            nats = -np.log(np.asarray(p, np.float64)[at, labels])
        np.testing.assert_allclose(sums.nats[n], nats.sum(), rtol=2e-4)
        np.testing.assert_allclose(sums.loss[n], np.asarray(loss, np.float64)[at].sum(), rtol=2e-4)
        assert sums.right[n] == np.sum(np.argmax(np.asarray(logits)[at], -1) == labels)
        assert sums.tokens[n] == len(example.completion)


@pytest.mark.parametrize("divergence", ["kl", "alpha-1.5"])
@pytest.mark.slow
def test_answers_are_drawn_from_the_operator(divergence: str, acting: dict[str, Any]):
    evaluator = evaluator_of(divergence)
    sampled = evaluator.answers(acting, 9, jax.random.key(2), evaluator.sampled)
    greedy = evaluator.answers(acting, 9, jax.random.key(2), evaluator.greedy)
    for n, example in enumerate(evaluator.test):
        nats = 0.0
        ends = [*sampled.ids[n], *([evaluator.tokenizer.eos_id] if sampled.done[n] else [])]
        assert sampled.tokens[n] == len(ends) <= LEARNING.max_new_tokens
        for count, token in enumerate(ends):
            ids = np.array([*example.prompt, *ends[:count]], np.int32)
            logits = evaluator.model.apply(acting["params"], ids[None])[0, -1]
            nats -= np.log(float(regularizers.softargmax(logits, evaluator.f)[token]))
        np.testing.assert_allclose(sampled.nats[n], nats, rtol=1e-3, atol=1e-5)
        best = np.argmax(evaluator.model.apply(acting["params"], np.array([example.prompt]))[0, -1])
        first = greedy.ids[n][0] if greedy.ids[n] else evaluator.tokenizer.eos_id
        assert first == best


def test_a_report_of_softmax_on_a_task_with_a_rule(by_operator: dict[str, reports.Report]):
    report = by_operator["kl"]
    estimates = report.estimates
    assert estimates["perplexity"].mean == pytest.approx(math.exp(estimates["nats_per_token"].mean))
    low, mean, high = estimates["nats_per_token"].low, *estimates["nats_per_token"][::2]
    assert low < mean < high
    assert estimates["pass@1"].mean == pytest.approx(estimates["score_temperature_1"].mean)
    assert estimates["pass@1"].mean <= estimates["pass@3"].mean
    assert 0 <= estimates["majority@3"].mean <= estimates["pass@3"].mean
    assert 0 < estimates["entropy_temperature_1"].mean < math.log(300)
    assert not report.notes and not any("rouge" in name or "loss" in name for name in estimates)
    assert "9 held-out examples, 3 samples" in report.title  # Fewer than were asked for.
    assert len(report.lines) == 9
    for line in report.lines:
        assert line.keys() == {"prompt", "target", "greedy", "samples"}
        assert line["prompt"].endswith("=") and len(line["samples"]) == 3
        right = line["greedy"]["completion"].strip() == line["target"]
        assert line["greedy"]["score"] == float(right)
    shares = [sample["done"] for line in report.lines for sample in line["samples"]]
    assert estimates["truncated_temperature_1"].mean == pytest.approx(1 - np.mean(shares))


def test_a_report_of_a_sparse_operator_refuses_perplexity(by_operator: dict[str, reports.Report]):
    report = by_operator["alpha-1.5"]
    assert not {"nats_per_token", "perplexity"} & set(report.estimates)
    assert report.estimates["alpha-1.5_loss"].mean > 0
    assert "no nats_per_token and no perplexity: the operator of alpha-1.5" in report.notes[0]
    shown = reports.show(report)
    assert "alpha-1.5_loss" in shown and report.notes[0] in shown
    # No rule judges these answers.
    assert {"rouge_1_greedy", "rouge_l_temperature_1"} <= set(report.estimates)
    assert not any("pass@" in name or "score" in name for name in report.estimates)
    assert report.lines[0]["greedy"].keys() >= {"completion", "done", "rouge_1", "rouge_2"}
    json.dumps(report.lines, allow_nan=False)


def test_the_majority_is_scored_by_the_answer_that_most_samples_gave():
    # Of the first prompt "7" has two votes, of the second all answers differ: the first counts.
    texts, scores = [["7", "8"], ["3", "9"], [" 7\n", "1"]], [[0.5, 0], [0, 1], [0.5, 1]]
    samples = [
        Answers(x, [], np.zeros(2), np.zeros(2), np.zeros(2), {"score": np.array(y)})
        for x, y in zip(texts, scores, strict=True)
    ]
    np.testing.assert_array_equal(evaluation.majority_scores(samples), [0.5, 0])


def test_distinct_golden():
    # 5 tokens, of which 3 differ; 3 pairs, (1, 2) twice: none across texts.
    texts = [[1, 2, 1], [1, 2], []]
    assert evaluation.distinct(texts, 1) == pytest.approx(2 / 5)
    assert evaluation.distinct(texts, 2) == pytest.approx(2 / 3)
    assert evaluation.distinct(texts, 3) == 1.0
    assert math.isnan(evaluation.distinct(texts, 4))


def test_what_is_no_language_model_takes_none_of_its_options(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    for wrong in (["tokens/arithmetic"], ["--samples", "3"], ["--max-new-tokens", "4"]):
        assert cli.main(["evaluate", str(tmp_path), *wrong]) == 2
        error = capsys.readouterr().err
        assert "is for language models" in error and error.count("\n") == 1


@pytest.mark.parametrize("score", [SUMS.score, None])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_no_held_out_example_counts_twice(score: Any, count: int, acting: dict[str, Any]):
    """A batch is filled up with examples from the beginning; each still has one score."""
    evaluator = alike(evaluator_of("kl"), task=SUMS._replace(score=score))
    three = alike(evaluator, test=evaluator.test[:3])
    alone = [
        alike(evaluator, test=[example]).scores(acting, 1, jax.random.key(0))
        for example in three.test[:count]
    ]
    scores = three.scores(acting, count, jax.random.key(0))
    np.testing.assert_allclose(scores, np.concatenate(alone), rtol=1e-5)
    assert len(three.likelihoods(acting, count).nats) == len(
        three.greedy_lines(acting, jax.random.key(0))[:count]
    )


def test_rewards_of_held_out_prompts_are_of_each_one_once(acting: dict[str, Any]):
    evaluator = evaluator_of("kl")
    three = alike(evaluator, test=evaluator.test[:3])
    length = rewards.parse("length", SUMS, evaluator.tokenizer)
    actor = actor_of(three, length)
    written = actor.episodes(acting, three.parts(3)[0], jax.random.fold_in(jax.random.key(5), 0))
    by_hand = np.asarray(written.sequences.is_answer).sum(1).reshape(-1, 2).mean(1)[:3]
    np.testing.assert_allclose(actor.scores(acting, 10, jax.random.key(5)), by_hand)
    held_out = actor.held_out(acting, acting["params"], 10, jax.random.key(5))
    assert {len(column) for column in held_out} == {3}
    np.testing.assert_allclose(held_out.rewards, by_hand)
    np.testing.assert_allclose(held_out.lengths, by_hand)
    best = best_of.measures(three, acting, length, n=2, count=10, key=jax.random.key(5))
    assert {len(column) for column in best.values()} == {3}


def test_a_reward_gets_the_document_of_each_text(acting: dict[str, Any]):
    evaluator = evaluator_of("kl")
    named = [example._replace(document=f"d{n}") for n, example in enumerate(evaluator.test[:2])]
    seen: list[rewards.TextBatch] = []

    def score(batch: rewards.TextBatch) -> list[float]:
        seen.append(batch)
        return [0.0] * len(batch.texts)

    actor = actor_of(evaluator, rewards.Reward("none", (), ((1.0, "none", score),)))
    actor.episodes(acting, [*named, *evaluator.test[2:4]], jax.random.key(0))
    (batch,) = seen
    assert batch.documents == [*("d0", "d0", "d1", "d1"), *batch.prompts[4:]]
    assert len(batch.prompts) == len(batch.texts) == 8


@pytest.mark.parametrize("weight", [1.0, 3e38])
def test_a_reward_that_is_not_finite_is_nobodys_best(weight: float, acting: dict[str, Any]):
    """One scorer, in JAX, gives NaN; the other, in Python, is finite and its weight too large."""

    def nan(params: Any, completion: Any, context: Any) -> Any:
        return completion.length * np.nan

    evaluator = evaluator_of("kl")
    jax_terms = ((weight, tokens.Scorer("nan", nan)),)
    python_terms = ((weight, "two", lambda batch: [2.0] * len(batch.texts)),)
    broken = [rewards.Reward("two", (), python_terms)] if weight > 1 else []
    for reward in (rewards.Reward("nan", jax_terms, ()), *broken):
        actor = actor_of(evaluator, reward)
        with pytest.raises(ValueError, match=f"reward '{reward.name}' must be finite"):
            actor.scores(acting, 2, jax.random.key(0))
        with pytest.raises(ValueError, match=f"reward '{reward.name}' must be finite"):
            best_of.measures(evaluator, acting, reward, n=2, count=2, key=jax.random.key(0))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_is_not_finite_is_not_evaluated_and_writes_nothing(
    temperature: float, acting: dict[str, Any]
):
    evaluator = evaluator_of("kl")
    norm = np.asarray(acting["params"]["final_norm"]).copy()
    norm[3] = np.nan
    broken = {**acting["params"], "final_norm": norm}
    said = r"not finite: parameter 'final_norm' is nan at \[3\]"
    with pytest.raises(ValueError, match=said):
        evaluator.likelihoods({"params": broken}, 2)
    with pytest.raises(ValueError, match=said):
        evaluator.answers({"params": broken}, 2, jax.random.key(0), evaluator.greedy)
    checkpoint = model_files.Checkpoint(evaluator.model.config, evaluator.tokenizer, broken)
    shown: list[str] = []
    sampling = Sampling(temperature=temperature)
    writer = generate.Writer(checkpoint=checkpoint, max_new_tokens=3, sampling=sampling)
    with pytest.raises(ValueError, match=said):
        generate.complete(
            writer,
            [evaluator.test[0].prompt],
            on_text=lambda number, text: shown.append(text),
        )
    assert not shown


def test_a_reward_model_that_is_not_finite_judges_nothing(acting: dict[str, Any]):
    model = reward_model.on_decoder(evaluator_of("kl").model)
    params = reward_model.with_head(acting["params"], 8)
    pairs = [preferences.Pair(*(data.Example((2, 5), (n, 1)) for n in (6, 7)))]
    columns = reward_models.over_pairs(jax.jit(model.rewards), params, pairs, 8, 0)
    assert [len(column) for column in columns] == [1, 1]
    params["head"]["w"] = np.array([1.0] * 7 + [np.inf], np.float32) * np.inf
    with pytest.raises(ValueError, match=r"not finite: parameter 'head/w' is inf at \[0\] and 7"):
        reward_models.over_pairs(jax.jit(model.rewards), params, pairs, 8, 0)
