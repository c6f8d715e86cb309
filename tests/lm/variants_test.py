"""Tests of lm/variants.py, rlhf_settings.py and policy_loss.py: what the variants compute."""

import dataclasses
import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import types
from kullback.lm import (
    gkd,
    lora,
    policy_gradient,
    rlhf,
    rollouts,
    tuning,
    value_network,
    variants,
    warp,
)
from tests.lm import rlhf_test
from tests.lm.rlhf_test import GROUP, LEARNING, MASK, MODEL, SIZE, drawn, params, texts
from tests.states import begun

RATE = 0.02
FAST = dataclasses.replace(LEARNING, learning_rate=RATE)
REWARDS = np.array([1.0, -0.5, 0.25, 2.0], np.float32)
ONES = np.ones(SIZE, np.float32)
NAMES = get_args(variants.Name)


def config(name: Any, learning: tuning.Config = FAST, **fields: Any) -> rlhf.Config:
    given = {"samples_per_prompt": GROUP, "learning": learning, "oversample": 1, **fields}
    return rlhf.of_variant(name, **given)


@functools.cache
def program(c: rlhf.Config) -> tuple[types.Agent, Any]:
    agent = rlhf.make(MODEL, config=c)
    return agent, jax.jit(agent.learner.step)


def stepped(
    c: rlhf.Config,
    steps: int = 1,
    rewards: np.ndarray = REWARDS,
    sampler: int = 0,
    weights: np.ndarray = ONES,
) -> tuple[types.LearnerState, list[dict[str, np.ndarray]]]:
    """Returns state and metrics of steps from `params(0)` with the texts of another policy."""
    agent, step = program(c)
    initial = value_network.with_value(params(0)) if agent.experience.has_value else params(0)
    state, metrics = begun(agent.learner, initial), []
    data = rollouts.Episodes(texts(), rewards, drawn(sampler))
    batch = types.Batch(data, np.arange(SIZE, dtype=np.int32), ONES / SIZE, weights)
    for _ in range(steps):
        state, feedback = step(state, batch, types.Constants(start=params(1)))
        metrics.append({name: np.asarray(x) for name, x in feedback.metrics.items()})
    return state, metrics


def close(a: Any, b: Any, atol: float = 1e-5) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4), a, b)


def test_rows_have_all_settings_that_a_variant_gives_and_the_first_is_the_default():
    settings = {field.name for field in dataclasses.fields(rlhf.Config)}
    for name in NAMES:
        assert variants.VARIANTS[name].keys() == variants.VARIANTS["reinforce"].keys() <= settings
        assert rlhf.of_variant(name, learning=tuning.Config(batch_size=32)).variant == name
    assert rlhf.of_variant("reinforce") == rlhf.Config()
    assert rlhf.of_variant("dapo", clip_high=0.5).clip_high == 0.5


# What the sources say; a row that changes must be meant to.
SAID = {
    "reinforce": "leave-one-out none 0.05 k1 reward none",
    "rloo": "leave-one-out product 0.05 k1 reward none",
    "ppo": "value token 0.05 k1 reward tokens",
    "grpo": "group token 0.04 k3 loss length",
    "dr-grpo": "group token 0.0 k3 loss constant",
    "dapo": "group token 0.0 k3 loss tokens",
    "gspo": "group sequence 0.0 k3 loss length",
    "cispo": "group token 0.0 k3 loss tokens",
}


@pytest.mark.parametrize("name", NAMES)
def test_golden_rows(name: str):
    c = rlhf.of_variant(name)  # pyright: ignore[reportArgumentType]
    names = (c.baseline, c.ratio, c.kl_coefficient, c.kl_estimator, c.kl_placement, c.normalisation)
    assert " ".join(map(str, names)) == SAID[name]
    assert c.scale_by_deviation == (name != "dr-grpo")
    bounds = {"dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "cispo": (0.0, 4.0)}
    assert (c.clip_low, c.clip_high) == bounds.get(name, (0.2, 0.2))


# Two between them take all ways: a value network and lambda returns; groups, and texts that cost.
LEARN = [n if n in ("ppo", "dapo") else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]


@pytest.mark.parametrize("name", LEARN)
def test_a_variant_learns_a_little(name: str):
    """The better text of each prompt becomes more probable than the other."""
    fields: dict[str, Any] = {"kl_coefficient": 0.0, "epochs": 1 if name == "reinforce" else 2}
    if name == "dapo":
        fields["truncation_penalty"] = 0.5
    state, metrics = stepped(config(name, **fields), 3)
    after = {n: state.params[n] for n in params(0)}

    def preference(of: Any) -> np.ndarray:
        log_p = np.where(MASK, rlhf_test.log_probabilities(of), 0).sum(1).reshape(-1, GROUP)
        return log_p[[0, 1], [0, 1]] - log_p[[0, 1], [1, 0]]

    assert np.all(preference(after) > preference(params(0)))
    assert all(np.all(np.isfinite(x)) for row in metrics for x in row.values())
    if name != "reinforce":
        assert metrics[0]["ratio_error"] < 1e-5, "the same texts, parameters and kernel"
        assert metrics[0]["ratio_max"] > 1.001, "and then the policy moves"
        assert np.mean(metrics[0]["kl_old"]) > 0
        np.testing.assert_array_equal(metrics[0]["equal_rewards"], np.zeros(SIZE))


@pytest.mark.slow
def test_learnt_from_once_all_surrogates_have_the_policy_gradient():
    """The ratio is 1, so that a variant is REINFORCE with its baseline and weights."""
    shared = {"baseline": "group", "kl_coefficient": 0.0, "epochs": 1}
    plain, _ = stepped(config("reinforce", **shared, normalisation="length"))
    for name in ("grpo", "gspo"):
        state, (metrics,) = stepped(config(name, **shared))
        close(state.params, plain.params)
        assert metrics["ratio_max"] == 1 and not np.any(metrics["clip_fraction"])


def oracle(c: rlhf.Config) -> Any:
    """Computes a learner step by its definition: all logits at once, explicit products and minima.

    Epochs with all of the batch; the advantages are those of two texts a prompt.
    """
    groups = REWARDS.reshape(-1, GROUP)
    centred = groups - groups.mean(1, keepdims=True)
    advantages = (centred / (groups.std(1, ddof=1, keepdims=True) + 1e-4)).reshape(-1)
    old = rlhf_test.log_probabilities(params(0))
    lengths = MASK.sum(1)

    def loss(of: Any) -> jax.Array:
        log_rho = jnp.where(MASK, rlhf_test.log_probabilities(of) - old, 0)
        total = jnp.zeros(())
        for b in range(SIZE):
            places = np.flatnonzero(MASK[b])
            if c.ratio == "sequence":
                rhos = [jnp.exp(jnp.sum(log_rho[b]) / lengths[b])]
            else:
                rhos = [jnp.exp(log_rho[b, n]) for n in places]
            for rho in rhos:
                bounded = jnp.clip(rho, 1 - c.clip_low, 1 + c.clip_high)
                term = jnp.minimum(rho * advantages[b], bounded * advantages[b])
                share = {"length": SIZE * len(rhos), "tokens": MASK.sum()}[c.normalisation]
                total = total - term / share
        return total

    optimizer = optax.adam(RATE)
    of, state = params(0), optimizer.init(params(0))
    gradient = jax.jit(jax.grad(loss))
    for _ in range(c.epochs):
        updates, state = optimizer.update(gradient(of), state)
        of = optax.apply_updates(of, updates)
    return of


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("grpo", {"kl_coefficient": 0.0, "clip_low": 0.03, "clip_high": 0.05}),
        pytest.param("gspo", {"clip_low": 0.02, "clip_high": 0.03}, marks=pytest.mark.slow),
    ],
)
def test_oracle_of_several_epochs(name: Any, fields: dict[str, Any]):
    c = config(name, epochs=3, **fields)
    state, (metrics,) = stepped(c)
    assert 0 < np.mean(metrics["clip_fraction"]) < 1, "some ratios are bounded"
    close(state.params, oracle(c), 2e-4)


@pytest.mark.slow
def test_prompts_whose_texts_are_equal_are_left_out():
    """The other prompt is what is learnt from, as if it were the batch."""
    rewards = np.array([1.0, 1.0, 0.25, 2.0], np.float32)
    fields = {"truncation_penalty": 0.0, "normalisation": "tokens"}
    state, (metrics,) = stepped(config("dapo", **fields), rewards=rewards)
    np.testing.assert_array_equal(metrics["equal_rewards"], [1, 1, 0, 0])
    chosen, (kept,) = stepped(config("dapo", **fields, oversample=2), rewards=rewards)
    close(state.params, chosen.params)
    np.testing.assert_array_equal(kept["answer_tokens"], MASK.sum(1)[2:])
    np.testing.assert_array_equal(kept["equal_rewards"], [1, 1, 0, 0])
    # So are prompts of no weight, whose rewards are missing, and their tokens do not count.
    half = np.array([0, 0, 1, 1], np.float32)
    missing, _ = stepped(config("dapo", **fields), weights=half)
    close(state.params, missing.params)
    chosen, (kept,) = stepped(config("dapo", **fields, oversample=2), weights=half)
    close(state.params, chosen.params)
    np.testing.assert_array_equal(kept["answer_tokens"], MASK.sum(1)[2:])
    nothing, _ = stepped(config("dapo", **fields), rewards=np.ones(SIZE, np.float32))
    close(nothing.params, params(0), atol=0)


@pytest.mark.slow
def test_minibatches_sum_to_the_batch():
    """By plain gradient descent that does not move: the mean of the parts is the whole."""
    still = dataclasses.replace(FAST, optimizer="sgd", learning_rate=1e-4)
    for normalisation in ("tokens", "none"):
        fields: Any = {"normalisation": normalisation, "kl_coefficient": 0.0, "epochs": 1}
        whole, _ = stepped(config("grpo", still, **fields))
        parts, _ = stepped(config("grpo", still, **fields, minibatches=2))

        def moved(state: types.LearnerState) -> Any:
            return jax.tree.map(lambda x, y: 1e4 * (x - y), state.params, params(0))

        # Two steps, each of which stands for the batch.
        close(moved(parts), jax.tree.map(lambda x: 2 * x, moved(whole)), 5e-3)


@pytest.mark.slow
def test_values_before_the_batch_stay_the_targets_of_ppo():
    """By lambda = 1 targets are returns; the bound holds values within e of what they were, 0."""
    fields = {"value_lambda": 1.0, "return_lambda": 1.0, "kl_coefficient": 0.0, "epochs": 3}
    free, _ = stepped(config("ppo", **fields, value_clip=0.0, value_learning_rate=0.05))
    held, _ = stepped(config("ppo", **fields, value_clip=1e-4, value_learning_rate=0.05))

    def largest(state: types.LearnerState) -> float:
        return float(
            jnp.max(jnp.where(MASK, value_network.predict(MODEL, state.params, texts()), 0))
        )

    assert largest(free) > largest(held) > 0


@pytest.mark.slow
@pytest.mark.parametrize("correction", ["truncate", pytest.param("mask", marks=pytest.mark.slow)])
def test_texts_of_another_sampler_are_weighed(correction: Any):
    """`params(3)` wrote them: ratios differ from 1, and what is too far away is cut."""
    fields: dict[str, Any] = {"kl_coefficient": 0.0, "epochs": 1}
    c = config("grpo", **fields, correction=correction, correction_limit=1.5)
    _, (same,) = stepped(c)
    np.testing.assert_allclose(same["sampler_kl"], np.zeros(SIZE), atol=1e-4)
    assert not np.any(same["sampler_cut"]) and abs(same["sampler_ratio"] - 1) < 1e-4
    state, (other,) = stepped(c, sampler=3)
    log_ratio = np.where(MASK, drawn(0)[:, 1:] - drawn(3)[:, 1:], 0)
    np.testing.assert_allclose(other["sampler_kl"], -log_ratio.sum(1), atol=1e-4)
    np.testing.assert_allclose(other["sampler_ratio"], np.exp(log_ratio.max()), rtol=1e-4)
    if correction == "truncate":
        cut = (log_ratio > np.log(1.5)).sum(1) / MASK.sum(1)
        np.testing.assert_allclose(other["sampler_cut"], cut, rtol=1e-5)
        return
    ratio = np.exp(log_ratio.sum(1))
    assert 0 < np.mean(ratio > 1.5) < 1, "some are dropped"
    np.testing.assert_array_equal(other["sampler_cut"], ratio > 1.5)
    # The same as weights of texts.
    weights = np.where(ratio > 1.5, 0, ratio).astype(np.float32)
    weighed, _ = stepped(config("grpo", **fields), weights=weights)
    close(state.params, weighed.params)


def test_long_texts_cost():
    got = policy_gradient.overlong(jnp.array([2, 8, 9, 10]), 10, 0.2)
    np.testing.assert_allclose(got, [0, 0, 0.5, 1])


@pytest.mark.slow
def test_masking_cut_texts_changes_nothing_where_none_is_cut():
    fields: dict[str, Any] = {"kl_coefficient": 0.0, "epochs": 1}
    one, _ = stepped(config("grpo", **fields))
    masked, _ = stepped(config("grpo", **fields, mask_truncated=True))
    close(one.params, masked.params, atol=0)


@pytest.mark.slow
def test_warp_averages_members_of_several_epochs():
    member = config("grpo", epochs=2, reference="moving-average", minibatches=2)
    settings = warp.Config(members=2, member_steps=1, member=member)
    agent = warp.make(MODEL, settings)
    state, step = begun(agent.learner, params(0)), jax.jit(agent.learner.step)
    state = state._replace(targets={"anchor": params(0)})
    data = rollouts.Episodes(texts(), REWARDS, drawn(0))
    batch = types.Batch(data, np.arange(SIZE, dtype=np.int32), ONES / SIZE, ONES)
    for number in range(2):
        state, feedback = step(state, batch, types.Constants(start=params(1)))
        assert float(feedback.metrics["iteration"]) == 0 and int(state.steps) == number + 1
        if number == 0:
            close(state.params, params(0), atol=0)
    assert np.any(state.params["embedding"] != params(0)["embedding"])
    with pytest.raises(ValueError, match="warp averages policies"):
        warp.Config(member=config("ppo"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rlhf.of_variant("trpo"), "unknown variant 'trpo'"),  # pyright: ignore[reportArgumentType]
        (lambda: rlhf.Config(variant="dapo"), r"needs a ratio.*rlhf.of_variant\('dapo'\)"),
        (lambda: rlhf.Config(epochs=2), "epochs=2 and minibatches=1 need a ratio"),
        (lambda: rlhf.Config(minibatches=2), "epochs=1 and minibatches=2 need a ratio"),
        (lambda: config("grpo", epochs=0), "epochs must be >= 1, got 0"),
        (lambda: config("grpo", minibatches=3), "minibatches=3 times micro_batches=1 must divide"),
        (lambda: config("grpo", oversample=2), "oversample=2 chooses prompts by drop_equal"),
        (lambda: config("dapo", oversample=4), "oversample=4 must divide the prompts .*, 2"),
        (
            lambda: config("ppo", samples_per_prompt=1, drop_equal=True),
            "drop_equal compares the texts of a prompt",
        ),
        (lambda: config("ppo", value_clip=-1.0), "value_clip must be >= 0, got -1.0"),
        (lambda: config("dapo", overlong_fraction=2.0), "overlong_fraction must lie in"),
        (lambda: config("grpo", clip_low=1.0), "clip_low must lie in"),
        (lambda: config("grpo", correction_limit=0.0), "correction_limit must be >= 1"),
    ],
)
def test_settings_are_checked(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"lora": lora.Config(rank=2)},
        {"quantize": "int8"},
        {"micro_batches": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_ratio_is_1_at_first_whatever_is_learnt(changes: dict[str, Any]):
    """Of adapters, of numbers in few bits, and a part at a time."""
    c = config("ppo" if "micro_batches" in changes else "gspo", epochs=2)
    c = dataclasses.replace(c, learning=dataclasses.replace(FAST, **changes))
    agent = rlhf.make(MODEL, config=c)
    state = agent.learner.init(jax.random.key(0))
    data = rollouts.Episodes(texts(), REWARDS, drawn(0))
    batch = types.Batch(data, np.arange(SIZE, dtype=np.int32), ONES / SIZE, ONES)
    base = params(0) if c.learning.lora else None  # What is joined to what learns.
    constants = types.Constants(start=params(1), base=base)
    step = jax.jit(agent.learner.step)
    state, first = step(state, batch, constants)
    _, feedback = step(state, batch, constants)  # At first B of adapters is 0.
    for metrics in (first.metrics, feedback.metrics):
        assert float(metrics["ratio_error"]) < 1e-5
    assert float(feedback.metrics["ratio_max"]) > 1.0001


@pytest.mark.slow
def test_texts_written_ahead_are_weighed_and_the_penalty_is_of_the_policy_that_learns():
    """`params(3)` wrote them some steps ago, `params(0)` learns, `params(1)` is the start."""
    fields: dict[str, Any] = {"correction": "truncate", "epochs": 1}
    _, (behind,) = stepped(config("rloo", **fields), sampler=3)
    _, (ahead,) = stepped(config("rloo", **fields, lag=1), sampler=3)
    for metrics, policy in ((behind, 3), (ahead, 0)):
        distance = np.where(MASK, drawn(policy)[:, 1:] - drawn(1)[:, 1:], 0).sum(1)
        np.testing.assert_allclose(metrics["kl_start"], distance, atol=1e-4)
    for name in ("sampler_kl", "sampler_ratio", "sampler_cut"):
        np.testing.assert_array_equal(behind[name], ahead[name])
    # Whoever wrote them now learns from them: nothing is weighed, and nothing differs.
    same, _ = stepped(config("rloo", **fields, lag=1))
    on_policy, _ = stepped(config("rloo", **fields))
    close(same.params, on_policy.params)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lag": -1}, "lag must be >= 0, got -1"),
        ({"lag": 1}, "lag=1 learns from texts of an older policy: set correction=truncate"),
        ({"lag": 1, "correction": "mask", "shards": 3}, "divide the 2 prompts of a batch, got 3"),
        ({"shards": 2}, "shards=2 are of texts that are written ahead: set lag=1"),
    ],
)
def test_a_lag_needs_what_makes_up_for_it(fields: Any, message: str):
    with pytest.raises(ValueError, match=message):
        config("rloo", **fields)


def test_no_member_of_warp_learns_from_texts_of_another():
    member = dataclasses.replace(warp.Config().member, lag=2, correction="truncate")
    agent = warp.make(MODEL, warp.Config(member=member, member_steps=4))
    ahead = agent.experience.ahead
    assert [ahead.version(n) for n in range(10)] == [0, 0, 0, 1, 4, 4, 4, 5, 8, 8]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lag": -1}, "lag must be >= 0, got -1"),
        ({"lag": 1, "student_fraction": 0.0}, "sequences, of which there are none: set"),
        ({"lag": 1, "max_age": 2}, "lag=1 and max_age=2 both learn from older sequences"),
        ({"lag": 1, "mixing": "row", "shards": 3}, "shards must be >= 1 and divide the 8 prompts"),
        ({"shards": 2}, "shards=2 are of texts that are written ahead: set lag=1"),
    ],
)
def test_a_student_that_writes_ahead_does_so_in_one_way(fields: Any, message: str):
    with pytest.raises(ValueError, match=message):
        gkd.Config(**fields)
