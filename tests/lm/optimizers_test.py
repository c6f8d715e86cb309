"""Tests of lm/optimizers.py: a few steps by hand, schedules, and the state that they keep."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kullback.core import trees
from kullback.lm import gemma, layers, optimizers, reward_model, tuning, value_network

RNG = np.random.default_rng(0)
PARAMS = {
    "embedding": RNG.normal(size=(5, 3)),
    "layer_0": {"pre_norm": RNG.normal(size=(2, 3)), "query": RNG.normal(size=(2, 3, 4))},
    "head": {"w": RNG.normal(size=3), "b": np.array(0.5)},
}
DECAYS = {
    "embedding": True,
    "layer_0": {"pre_norm": False, "query": True},
    "head": {"w": True, "b": False},
}
GRADS = [
    jax.tree.map(lambda x, scale=scale: scale * RNG.normal(size=x.shape), PARAMS)
    for scale in (0.1, 3, 1)
]
SETTINGS: dict[str, Any] = {"learning_rate": 0.02, "warmup_steps": 2, "max_grad_norm": 1.5}


def float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def after(transformation: optax.GradientTransformation, grads: list[Any] = GRADS) -> Any:
    """Returns parameters and the optimiser's state after some steps."""
    params = float32(PARAMS)
    state = transformation.init(params)
    for gradient in grads:
        updates, state = transformation.update(float32(gradient), state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def clipped(gradient: Any) -> Any:
    norm = np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(gradient)))
    return jax.tree.map(lambda x: x * min(1.0, SETTINGS["max_grad_norm"] / norm), gradient)


def adam(g: np.ndarray, m: np.ndarray, v: np.ndarray, n: int) -> Any:
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    return (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.999**n)) + 1e-8), m, v


def lion(g: np.ndarray, m: np.ndarray, v: np.ndarray, n: int) -> Any:
    return np.sign(0.9 * m + 0.1 * g), 0.99 * m + 0.01 * g, v


def sgd(g: np.ndarray, m: np.ndarray, v: np.ndarray, n: int) -> Any:
    return g, m, v


@pytest.mark.parametrize(
    ("name", "rule", "weight_decay"),
    [("adam", adam, 0.0), ("adamw", adam, 0.3), ("lion", lion, 0.3), ("sgd", sgd, 0.3)],
)
def test_a_few_steps_are_those_of_the_definition(name: Any, rule: Any, weight_decay: float):
    """Oracle: NumPy in float64. Decay is decoupled: no moment sees it, the learning rate does."""
    config = tuning.Config(optimizer=name, weight_decay=weight_decay, **SETTINGS)
    params, _ = after(tuning.optimizer(config))
    zeros = jax.tree.map(np.zeros_like, PARAMS)
    expected, first, second = PARAMS, zeros, zeros
    for n, (gradient, rate) in enumerate(zip(GRADS, (0.0, 0.01, 0.02), strict=True), 1):
        triples = jax.tree.map(lambda *x, n=n: rule(*x, n), clipped(gradient), first, second)
        steps, first, second = (
            jax.tree.map(lambda _, t, k=k: t[k], PARAMS, triples) for k in range(3)
        )
        expected = jax.tree.map(
            lambda p, u, d, rate=rate: p - rate * (u + d * weight_decay * p),
            expected,
            steps,
            DECAYS,
        )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-6), params, expected)


def test_the_default_is_bit_by_bit_what_it_always_was():
    """Old checkpoints name leaves by their place in optax's chains."""
    before = optax.chain(
        optax.clip_by_global_norm(1.5), optax.adam(optax.linear_schedule(0.0, 0.02, 2))
    )
    now = tuning.optimizer(tuning.Config(**SETTINGS))
    (params, state), (old_params, old_state) = after(now), after(before)
    assert list(trees.named_leaves(state)) == list(trees.named_leaves(old_state))
    for x, y in zip(*map(jax.tree.leaves, ((params, state), (old_params, old_state))), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("large", [0, 10**9])
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_gradients_are_clipped_as_optax_does(
    scale: float, large: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(layers, "LARGE", large)
    rng = np.random.default_rng(0)
    gradients = {n: jnp.asarray(scale * rng.normal(size=n), jnp.float32) for n in (2, 5)}
    got, expected = (
        clip.update(gradients, clip.init(gradients))[0]
        for clip in (optimizers.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0))
    )
    atol = 0.0 if large or scale < 1 else 1e-6
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), got, expected)
    norm = float(optax.tree.norm(got))
    assert norm == pytest.approx(1.0 if scale > 1 else float(optax.tree.norm(gradients)), rel=1e-6)


@pytest.mark.slow
def test_adafactor_is_optaxs_with_adams_learning_rates():
    params = {"embedding": RNG.normal(size=(130, 128)), "final_norm": RNG.normal(size=128)}
    grads = float32(jax.tree.map(lambda x: 0.01 * RNG.normal(size=x.shape), params))
    config = tuning.Config(optimizer="adafactor", **{**SETTINGS, "warmup_steps": 0})
    ours = tuning.optimizer(config)
    theirs = optax.adafactor(0.02, multiply_by_parameter_scale=False)
    state, their_state = ours.init(float32(params)), theirs.init(float32(params))
    norm, updates, their_updates = optax.tree.norm(grads), None, None
    for _ in range(2):
        updates, state = ours.update(grads, state, float32(params))
        scaled = jax.tree.map(lambda x: x * jnp.minimum(1.0, 1.5 / norm), grads)
        their_updates, their_state = theirs.update(scaled, their_state, float32(params))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), updates, their_updates)
    kept = sum(x.size for x in jax.tree.leaves(state))
    assert kept < 600, "rows and columns of a matrix's second moments, and no first ones"


@pytest.mark.parametrize("name", optimizers.WITH_MOMENTUM)
def test_bfloat16_halves_the_bytes_of_first_moments(name: Any):
    def moments(dtype: Any) -> tuple[Any, dict[str, jax.Array]]:
        config = tuning.Config(optimizer=name, first_moment_dtype=dtype, **SETTINGS)
        params, state = after(tuning.optimizer(config))
        return params, trees.named_leaves(state)

    (exact, whole), (near, half) = moments("float32"), moments("bfloat16")
    assert list(whole) == list(half)
    first = [path for path in whole if "/mu/" in path]
    sizes = [sum(leaves[path].nbytes for path in first) for leaves in (whole, half)]
    assert first and sizes[1] * 2 == sizes[0] == 4 * sum(x.size for x in jax.tree.leaves(PARAMS))
    assert all(half[path].dtype == whole[path].dtype for path in whole.keys() - {*first})
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=0.05), near, exact)


RATE = optimizers.Rate(peak=0.8, warmup_steps=4, decay_steps=12, final_fraction=0.25)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        # Step 0, half of the warm-up, its end, half of the fall, its end, and beyond.
        (RATE._replace(schedule="linear"), [0.0, 0.4, 0.8, 0.5, 0.2, 0.2]),
        (RATE._replace(schedule="cosine"), [0.0, 0.4, 0.8, 0.5, 0.2, 0.2]),
        (RATE._replace(decay_steps=0, final_fraction=0.0), [0.0, 0.4, 0.8, 0.8, 0.8, 0.8]),
    ],
)
def test_a_learning_rate_by_step(rate: optimizers.Rate, expected: list[float]):
    values = np.array([optimizers.schedule(rate)(n) for n in (0, 2, 4, 8, 12, 40)])
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_a_cosine_is_one_and_a_line_is_straight():
    for name in ("linear", "cosine"):
        rate = optimizers.Rate(peak=0.8, warmup_steps=0, schedule=name, decay_steps=8)
        shares = np.arange(9) / 8
        course = 1 - shares if name == "linear" else (1 + np.cos(np.pi * shares)) / 2
        values = np.array([optimizers.schedule(rate)(n) for n in range(9)])
        np.testing.assert_allclose(values, 0.8 * course, atol=1e-7)


def test_norms_and_biases_of_all_networks_do_not_decay():
    config = dataclasses.replace(gemma.PRESETS["tiny"], vocab_size=8)
    model = gemma.make(config)
    for init, spared in (
        (model.init, 0),
        (reward_model.on_decoder(model).init, 1),
        (lambda key: value_network.with_value(model.init(key)), 0),
    ):
        named = trees.named_leaves(optimizers.decays(jax.eval_shape(init, jax.random.key(0))))
        still = {path for path, decays in named.items() if not decays}
        norms = {path for path in named if path.endswith("norm")}
        assert norms and norms <= still and len(still - norms) == spared, still - norms
        assert any("embedding" in path for path in named.keys() - still)


def test_two_networks_decay_each_by_its_own_rate():
    """Under `optax.multi_transform` a network's parameters are masked from the other's."""
    learning = tuning.Config(
        optimizer="adamw", weight_decay=0.5, warmup_steps=0, learning_rate=0.1, max_grad_norm=1.0
    )
    slow = dataclasses.replace(learning, learning_rate=0.01)
    transformation = value_network.beside(tuning.optimizer(learning), tuning.optimizer(slow))
    params = float32({"embedding": PARAMS["embedding"], "final_norm": np.ones(3)})
    params = value_network.with_value(params)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transformation.update(zeros, transformation.init(params), params)
    for name, rate in (("embedding", 0.1), ("value/decoder/embedding", 0.01), ("final_norm", 0)):
        update, leaf = (trees.named_leaves(tree)[name] for tree in (updates, params))
        np.testing.assert_allclose(update, -rate * 0.5 * leaf, rtol=1e-6)


def test_optimiser_steps_of_a_learner_step_share_its_learning_rate():
    """Warm-up of 4 learner steps, of 3 updates each."""
    learning = tuning.Config(warmup_steps=4, learning_rate=0.4, optimizer="sgd", max_grad_norm=9.0)
    transformation = tuning.optimizer(learning, 3)
    params = {"w": jnp.ones(1)}
    state, rates = transformation.init(params), []
    for _ in range(15):
        updates, state = transformation.update({"w": jnp.ones(1)}, state, params)
        rates.append(-float(jax.tree.leaves(updates)[0][0]))
    expected = np.repeat([0.0, 0.1, 0.2, 0.3, 0.4], 3)
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_decay": 0.1}, r"weight_decay=0\.1 is decoupled .*: optimizer=adamw"),
        ({"weight_decay": -1.0}, "weight_decay must be >= 0, got -1"),
        (
            {"optimizer": "adafactor", "first_moment_dtype": "bfloat16"},
            "adafactor keeps no first moment",
        ),
        ({"final_fraction": 0.1}, "are of a learning rate that falls: schedule=linear"),
        ({"decay_steps": 50}, "are of a learning rate that falls"),
        ({"schedule": "cosine", "decay_steps": 20}, "decay_steps=20 must be more than warmup_step"),
        ({"schedule": "cosine", "decay_steps": -1}, "decay_steps must be >= 0, got -1"),
        ({"schedule": "linear", "final_fraction": 2.0}, "final_fraction must lie in .0, 1., got 2"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        tuning.Config(**settings)


def test_a_schedule_of_no_known_length_is_refused():
    with pytest.raises(ValueError, match="schedule=cosine needs decay_steps"):
        tuning.optimizer(tuning.Config(schedule="cosine"))
