"""Tests of runs of `bond` and `warp-bond`, whose texts come from a policy and its anchor."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.core import trees
from kullback.experiments.evaluate import warp_front
from kullback.experiments.runs import language, language_setup, models, opened, resolved
from tests.records import as_killed, repeated

MODEL = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
SHORT = ("batch_size=6", "max_prompt_length=8", "max_new_tokens=4", "warmup_steps=0")
TASK = "tokens/arithmetic"
ADAPTERS = ("lora.rank=2", "lora.shared_a=true")
pytestmark = pytest.mark.usefixtures("few_sums")


def train(path: pathlib.Path, algorithm: str, model: Any, **fields: Any) -> pathlib.Path:
    given: dict[str, Any] = {
        "steps": 4,
        "log_every": 2,
        "checkpoint_every": 2,
        "quiet": True,
        "trust_code": True,
        **fields,
    }
    settings = (*SHORT, "learning_rate=1e-2", *given.pop("settings", ()))
    return experiments.train(
        algorithm, TASK, out=path, model=str(model), settings=settings, **given
    )


def value(prompts: list[str], texts: list[str], references: list[str]) -> list[float]:
    """Rewards a text by its letters; few are worth the same."""
    del prompts, references
    return [float(sum(map(ord, text))) for text in texts]


def cubed(*columns: list[str]) -> list[float]:
    return [(x + 1) ** 3 for x in value(*columns)]


def negative(*columns: list[str]) -> list[float]:
    return [-x for x in value(*columns)]


VALUE, CUBED, NEGATIVE = (f"python:{__name__}:{x.__name__}" for x in (value, cubed, negative))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return train(tmp_path_factory.mktemp("start") / "run", "sft", "tiny", model_flags=MODEL)


@pytest.fixture(scope="module")
def run(start: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("bond") / "run"
    return train(path, "bond", start, reward=VALUE, eval_every=4)


def equal(one: pathlib.Path, other: pathlib.Path) -> None:
    a, b = (models.load(path).params for path in (one, other))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def setup(path: pathlib.Path) -> language.Setup:
    return language_setup.setup(resolved.of(opened.open(path, trust_code=True)), path)


@pytest.mark.slow
def test_what_a_run_logs(run: pathlib.Path):
    table = repeated(run)
    wanted = {"return_mean", "kl_start", "kl_anchor", "won", "log_quantile", "reward_best"}
    assert wanted <= set(table[0]) and np.isfinite(float(table[-1]["evaluation"]))
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    sampled = [line for line in lines if not line["greedy"]]
    by_three = ["params", "anchor", "anchor"] * 2
    assert [line["writer"] for line in sampled] == (by_three[:4]) * 2
    assert sampled[0]["prompt"] == sampled[1]["prompt"] == sampled[2]["prompt"]
    for line in sampled:
        assert line["score"] == value([], [line["completion"]], [])[0]


@pytest.mark.slow
def test_returns_are_those_of_the_policys_texts(run: pathlib.Path):
    """The policy stands before those of its anchor, and alone writes in an evaluation."""
    work = setup(run)
    assert work.actor is not None
    state = jax.jit(work.agent.learner.init)(jax.random.key(0))
    acting = work.agent.actor_params(state, np.zeros(()), False, work.constants)
    examples = work.splits.train[:2]
    written = work.actor.episodes(acting, examples, jax.random.key(1))
    source = work.actor.source(work.splits.train, seed=0).sampling
    assert source is not None and len(written.rewards) == 6
    rewards = np.arange(6.0)
    scores = source.score(written._replace(rewards=rewards), examples)
    np.testing.assert_array_equal(scores, [0, 3])
    np.testing.assert_array_equal(work.actor.prompt_means(rewards), [1, 4])
    assert len(work.actor.scores({"params": acting["params"]}, 2, jax.random.key(2))) == 2


@pytest.mark.slow
def test_the_anchor_counts_in_memory(run: pathlib.Path):
    work = setup(run)
    needs = work.needs(work.setting)
    assert needs.moments >= 3 * needs.parameters, "Adam's two, and the anchor"
    assert (work.setting.rows, work.setting.per_row) == (2, 2), "of three texts two are learnt"


@pytest.mark.slow
def test_a_run_that_is_interrupted_goes_on_bit_by_bit(run: pathlib.Path, tmp_path: pathlib.Path):
    part = as_killed(run, tmp_path / "part", 2)
    experiments.resume(part, quiet=True, trust_code=True)
    equal(part, run)
    assert repeated(part) == repeated(run)


@pytest.mark.slow
def test_a_monotone_change_of_the_reward_leaves_a_run_as_it_is(
    run: pathlib.Path, start: pathlib.Path, tmp_path: pathlib.Path
):
    other = train(tmp_path / "other", "bond", start, reward=CUBED)
    equal(other, run)
    means = [float(repeated(path)[0]["return_mean"]) for path in (run, other)]
    assert means[1] > means[0] + 100
    opposite = train(tmp_path / "opposite", "bond", start, reward=NEGATIVE)
    ends = [trees.named_leaves(models.load(path).params) for path in (opposite, run)]
    assert np.any(ends[0]["embedding"] != ends[1]["embedding"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ADAPTERS,
        (*ADAPTERS, "anchor=periodic", "anchor_period=2"),
        ("anchor=fixed", "estimator=counted", "anchor_samples=3", "best_of=3", "batch_size=8"),
        ("quantize=int8",),
    ],
    ids=lambda settings: settings[-1],
)
def test_other_anchors_and_what_learns(
    settings: tuple[str, ...], start: pathlib.Path, tmp_path: pathlib.Path
):
    whole = train(tmp_path / "whole", "bond", start, reward=VALUE, settings=settings)
    part = as_killed(whole, tmp_path / "part", 2)
    experiments.resume(part, quiet=True, trust_code=True)
    equal(part, whole)
    assert repeated(part) == repeated(whole)


@pytest.mark.slow
def test_members_of_warp_learn_by_it(
    start: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """Cut inside the second member; the front is of the policy alone."""
    monkeypatch.setattr(warp_front, "PROMPTS", 8)
    settings = ("members=2", "member_steps=2", "regularisation=0.5")
    whole = train(tmp_path / "whole", "warp-bond", start, reward=VALUE, settings=settings)
    config = json.loads((whole / "config.json").read_text())["config"]
    assert config["member"]["regularisation"] == 0.5 and config["member"]["best_of"] == 2
    part = as_killed(whole, tmp_path / "part", 2)
    experiments.resume(part, quiet=True, trust_code=True)
    equal(part, whole)
    assert (part / "front.csv").read_text() == (whole / "front.csv").read_text()
    names = [
        set(trees.named_leaves(models.load(p).params)) for p in (whole / "merged-000004", start)
    ]
    assert names[0] == names[1]


@pytest.mark.slow
def test_rewards_rise(start: pathlib.Path, tmp_path: pathlib.Path):
    """Letters that are worth much, in 60 steps; two seeds."""
    for seed in (0, 1):
        settings = ("batch_size=48", "anchor_rate=0.1")
        fields = {"steps": 60, "log_every": 20, "checkpoint_every": 60, "seed": seed}
        path = train(tmp_path / str(seed), "bond", start, reward=VALUE, settings=settings, **fields)
        table = repeated(path)
        first, last = (float(table[n]["return_mean"]) for n in (0, -1))
        assert last > first + 5, (seed, first, last)
        assert float(table[-1]["kl_start"]) > float(table[0]["kl_start"])
