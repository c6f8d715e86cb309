"""Tests of experiments/reproductions/{setups,students,gkd}.py."""

import csv
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback.core import types
from kullback.experiments import reproduce, statistics
from kullback.experiments.reproductions import (
    gkd,
    judging,
    setups,
    small_models,
    students,
    token_line,
)
from kullback.lm import batches
from tests.states import begun, fresh_params

TINY = setups.Sizes(
    batch_size=4,
    teacher_width=8,
    teacher_layers=1,
    teacher_steps=2,
    student_width=8,
    student_layers=1,
    student_steps=2,
    steps=2,
    evaluation=8,
)


@pytest.fixture(scope="module")
def setup() -> setups.Setup:
    return setups.make(TINY)


def test_the_data_set_is_prompts_and_their_completions(setup: setups.Setup):
    rows, prompts = setup.rows, setup.prompts
    assert len(rows.tokens) == len(prompts.tokens) == 9_031
    decode = setup.evaluator(setup.student, "kl").tokenizer.decode
    for n in (0, 5, 9_030):
        length = prompts.lengths[n]
        np.testing.assert_array_equal(prompts.tokens[n, -length:], rows.tokens[n, :length])
        sum_ = decode(rows.tokens[n][np.asarray(rows.is_answer[n])].tolist())
        question = decode(rows.tokens[n, 1:length].tolist())
        a, b = question.rstrip("=").split("+")
        assert int(sum_) == int(a) + int(b)


@pytest.mark.slow
def test_lambda_0_learns_from_the_data_set_alone_and_lambda_1_from_none_of_it(
    setup: setups.Setup,
):
    trainer = students.distiller(setup, "kl")
    student, teacher = (jax.jit(setup.student.init)(jax.random.key(n)) for n in (0, 1))
    rows = np.asarray(setup.rows.tokens)
    broken = np.where(setup.rows.is_answer, (rows + 1) % 200, rows)  # Other completions.
    other = setup._replace(rows=setup.rows._replace(tokens=broken))

    def end(setup: setups.Setup, fraction: float, key: int) -> list[np.ndarray]:
        state = trainer.learner.init(jax.random.key(9))._replace(params=student)
        # Two steps: the rate of the first is 0.
        taken, prompts = (
            [np.asarray(x[:8]).reshape(2, 4, *x.shape[1:]) for x in jax.tree.leaves(data)]
            for data in (setup.rows, setup.prompts)
        )
        is_sampled = jnp.full(2, fraction == 1)
        item = students.Item(is_sampled, batches.Sequences(*taken), batches.Prompts(*prompts))
        constants = types.Constants(teacher=teacher)
        state, _ = trainer.run(state, constants, item, jax.random.key(key))
        return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)]

    def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
        return all((x == y).all() for x, y in zip(a, b, strict=True))

    # Updates are of the learning rate's size, however small the gradient: any difference shows.
    assert same(end(setup, 0, 0), end(setup, 0, 1)) and not same(end(setup, 0, 0), end(other, 0, 0))
    assert same(end(setup, 1, 0), end(other, 1, 0)) and not same(end(setup, 1, 0), end(setup, 1, 1))


def test_the_coins_follow_lambda(setup: setups.Setup, monkeypatch: pytest.MonkeyPatch):
    coins: list[bool] = []

    def run(state: Any, constants: Any, items: Any, key: Any) -> Any:
        coins.extend(np.asarray(items.is_sampled).tolist())
        return state, np.zeros(1)

    learner, params = students.distiller(setup, "kl").learner, fresh_params(setup.student.init)
    state = begun(learner, params)  # To draw parameters takes seconds, and they count for nothing.
    trainer = small_models.Trainer(learner._replace(init=lambda key: state), run)
    for fraction, low, high in ((0.0, 0, 0), (0.5, 80, 120), (1.0, 200, 200)):
        coins.clear()
        students.learn(setup, trainer, 200, 3, start=params, fraction=fraction)
        assert len(coins) == 200 and low <= sum(coins) <= high


@pytest.mark.slow
def test_distance_is_0_from_a_model_to_itself_and_a_mean_over_sequences(setup: setups.Setup):
    same = setup._replace(teacher=setup.student)
    params = jax.jit(setup.student.init)(jax.random.key(1))
    rows = students.prefixes(same, setup.student, params, seed=0)
    value, entropy = students.distance(same, "kl")(params, params, rows)
    assert abs(float(value)) < 1e-6 and 4 < float(entropy) < np.log(262)
    other = jax.jit(setup.student.init)(jax.random.key(2))
    measure = students.distance(same, "kl")
    each = [float(measure(params, other, batches.Sequences(*row))[0]) for row in _single(rows)]
    two = jax.tree.map(lambda x: x[:2], rows)
    value, _ = measure(params, other, two)
    np.testing.assert_allclose(value, np.mean(each), rtol=1e-5)


def _single(rows: batches.Sequences) -> list[list[np.ndarray]]:
    """Returns the first two rows, one by one."""
    return [[np.asarray(x)[n : n + 1] for x in jax.tree.leaves(rows)] for n in range(2)]


def row(fraction: float | str, seed: int, teacher: float, student: float) -> dict[str, Any]:
    return {
        "divergence": "kl",
        "student_fraction": fraction,
        "seed": seed,
        "after_teachers_prefixes": teacher + 0.001 * seed,
        "after_own_prefixes": student,
        "entropy": 1.0,
        "near_the_line": 0.5,
    }


@pytest.mark.parametrize("verdict", ["held", "contradicted"])
def test_the_worth_of_sequences_is_judged_and_distances_are_reported(verdict: str):
    config = gkd.Config(with_summaries=False)
    gain = 0.2 if verdict == "held" else -0.2
    rows = [
        {**row(fraction, seed, 1.0, 2.0), "near_the_line": 0.5 + gain * share + 0.01 * seed * share}
        for fraction, share in (("start", 0.0), (0.0, 0.0), (0.5, 0.5), (1.0, 1.0))
        for seed in range(3)
    ]
    on_sums = dict.fromkeys([*gkd.ON_SUMS, "share_of_teachers_score"], 0.5)
    sums = [{**on_sums, **r, "score_greedy": r["near_the_line"]} for r in rows]
    checks = [*gkd.claims(config, {"line": rows, "arithmetic": sums})]
    assert [c.verdict for c in checks if c.is_headline] == [verdict] * 2
    assert {c.verdict for c in checks if not c.is_headline} == {"reported"}


def test_what_is_reported_has_the_means_of_each_lambda_and_no_verdict():
    rows = [row(f, seed, 1.0, 2.0) for f in ("start", 0.0, 1.0) for seed in range(3)]
    [check] = gkd.reports("line", rows, "kl", {"after_teachers_prefixes": "distance"})
    interval = str(statistics.t_interval([1.0, 1.001, 1.002]))
    expected = f"start {interval}, lambda 0 {interval}, lambda 1 {interval}"
    assert check == judging.reported("line, kl: distance", expected)


@pytest.mark.slow
def test_it_runs_on_all_tasks(tmp_path: pathlib.Path):
    tiny = {f.name: getattr(TINY, f.name) for f in dataclasses.fields(TINY)}
    settings = [f"arithmetic.{name}={value}" for name, value in tiny.items()]
    other = {"task": "tokens/summaries", "max_vocab_size": 512}  # Rows hold a whole summary.
    other |= {"max_prompt_length": 120, "max_new_tokens": 24}
    settings += [f"summaries.{name}={value}" for name, value in {**tiny, **other}.items()]
    on_line = {"horizon": 4, "trajectories": 8, "evaluation": 8}
    on_line |= {name: tiny[name] for name in ("batch_size", "student_width", "student_steps")}
    settings += [f"line.{name}={value}" for name, value in {**on_line, "steps": 2}.items()]
    settings += ["seeds=2", "student_fractions=0,1"]
    checks = reproduce.reproduce("gkd", tmp_path / "out", settings, lambda line: None)
    assert [c.claim.split(",")[0] for c in checks if c.verdict != "reported"] == [
        "line",
        "arithmetic",
    ]
    assert len(checks) == 2 + 2 + 4 + 6 + 2
    tables = {}
    for name in ("line", "arithmetic", "summaries"):
        with open(tmp_path / "out" / f"{name}.csv") as file:
            tables[name] = list(csv.DictReader(file))
    for name in ("line", "arithmetic"):
        fractions = [r["student_fraction"] for r in tables[name]]
        assert fractions == ["start", "0.0", "1.0"] * 2
    assert {"rouge_l_greedy", "nats_a_token"} <= set(tables["summaries"][0])
    assert gkd.seconds(gkd.Config()) < 8 * 60


def test_a_set_up_without_texts_has_no_evaluator():
    setup = token_line.setups_of(token_line.Sizes(trajectories=4, evaluation=4))(0)
    with pytest.raises(ValueError, match="needs texts and their evaluator"):
        students.quality(setup, setup.student, {}, 0)


def test_both_ends_of_lambda_are_needed():
    with pytest.raises(ValueError, match="both ends among them"):
        gkd.Config(student_fractions=(0.0, 0.5))
