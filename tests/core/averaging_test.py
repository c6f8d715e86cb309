"""Tests of core/averaging.py."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kullback.core import averaging, flat_arrays, learners

SETTINGS = hypothesis.settings(deadline=None)
# Multiples of 1/8: what is moved by 1 is moved exactly.
vectors = hnp.arrays(np.int32, (3, 6), elements=st.integers(-72, 72)).map(
    lambda x: (x / 8).astype(np.float32)
)
fractions = st.floats(0, 1, allow_subnormal=False)


def tree(seed, like=np.asarray):
    """Draws parameters: two modules of two leaves, and one whose leaves have a layer axis."""
    random = np.random.default_rng(seed)
    shapes = {"mlp/one": {"w": (2, 3), "b": (3,)}, "mlp/two": {"w": (3, 2), "b": (2,)}}
    return jax.tree.map(
        lambda shape: like(random.normal(size=shape).astype(np.float32)),
        {**shapes, "layers": {"w": (2, 3, 2), "b": (2, 3)}},
        is_leaf=lambda x: isinstance(x, tuple),
    )


def stacked_layers(path):
    if path.startswith("layers/"):
        return averaging.Group("layers", is_stacked=True)
    return averaging.by_module(path)


GROUPINGS = [averaging.by_tensor, averaging.by_module, averaging.whole, stacked_layers]


def assert_close(one, two, **tolerance):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    tolerance = {"atol": 1e-6, **tolerance}
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), one, two)


def slerp(base, one, two, t):
    """Computes SLERP from its definition, in float64."""
    base, one, two = (x.astype(np.float64) for x in (base, one, two))
    deltas = one - base, two - base
    norms = [np.linalg.norm(delta) for delta in deltas]
    if not all(norms):
        return (1 - t) * one + t * two
    angle = np.arccos(np.clip(deltas[0] @ deltas[1] / np.prod(norms), -1, 1))
    if np.sin(angle) < 1e-6:
        return (1 - t) * one + t * two
    return base + sum(
        np.sin(c * angle) / np.sin(angle) * d for c, d in zip((1 - t, t), deltas, strict=True)
    )


def of_vectors(base, one, two, t):
    return averaging.slerp([{"w": one}, {"w": two}], {"w": base}, t=t)["w"]


def test_golden():
    # At a right angle: cos(pi/4) of each; then lambda = 1/3: sin(pi/3) of these, sin(pi/6).
    weights = averaging.slerp_weights(np.eye(3))
    np.testing.assert_allclose(weights, [0.61237244, 0.61237244, 0.5], rtol=1e-8)
    # 60 degrees, t = 1/2: sin(30) / sin(60).
    gram = np.array([[4.0, 2.0], [2.0, 4.0]])
    np.testing.assert_allclose(averaging.slerp_weights(gram), np.full(2, 0.57735027), rtol=1e-8)
    np.testing.assert_allclose(averaging.mean_weights(3, [1, 1, 2]), [0.25, 0.25, 0.5])
    np.testing.assert_allclose(averaging.ema_weights(3, 0.25), [0.5625, 0.1875, 0.25])
    np.testing.assert_allclose(averaging.from_base(np.array([0.5, 0.7]), 0.5), [0.4, 0.25, 0.35])


@SETTINGS
@hypothesis.given(vectors, fractions)
def test_oracle(vectors, t):
    base, one, two = vectors
    merged = of_vectors(base, one, two, t)
    expected = slerp(base, one, two, t)
    # Of vectors that are nearly opposite the weights are as large as 1 / sin(Omega).
    scale = max(1, np.abs(averaging.slerp_weights(flat_arrays.gram([one, two], base), t)).max())
    np.testing.assert_allclose(merged, expected, atol=2e-5 * scale)
    assert merged.dtype == np.float32


@SETTINGS
@hypothesis.given(vectors, fractions)
def test_ends_symmetry_and_translation(vectors, t):
    base, one, two = vectors
    np.testing.assert_array_equal(of_vectors(base, one, two, 0.0), one)
    np.testing.assert_array_equal(of_vectors(base, one, two, 1.0), two)
    np.testing.assert_allclose(of_vectors(base, one, one, t), one, atol=1e-5)
    gram = flat_arrays.gram([one, two], base)
    hypothesis.assume(averaging.cosine(gram)[0, 1] > -0.99)  # Else weights are large.
    merged = of_vectors(base, one, two, t)
    np.testing.assert_allclose(of_vectors(base, two, one, 1 - t), merged, atol=1e-4)
    moved = of_vectors(base + 1, one + 1, two + 1, t)
    np.testing.assert_allclose(moved, merged + 1, atol=1e-4)


@SETTINGS
@hypothesis.given(st.floats(0.01, 3.1), fractions, st.floats(0.1, 10))
def test_lemmas_of_norms(angle, t, length):
    deltas = length * np.array([[1, 0], [np.cos(angle), np.sin(angle)]])
    weights = averaging.slerp_weights(deltas @ deltas.T, t)
    # Lemma 1: of equal norms, slerp keeps the norm. Lemma 2: what lerp keeps of it.
    np.testing.assert_allclose(np.linalg.norm(weights @ deltas), length, rtol=1e-9)
    lerp = np.array([1 - t, t]) @ deltas
    kept = np.sqrt(1 - 2 * (1 - np.cos(angle)) * (t - t * t))
    np.testing.assert_allclose(np.linalg.norm(lerp), length * kept, rtol=1e-7, atol=1e-9)


@SETTINGS
@hypothesis.given(st.floats(0.01, 3.1), st.floats(0.1, 10), st.floats(0.1, 10))
def test_in_the_middle_slerp_is_a_longer_mean_for_any_norms(angle, one, two):
    deltas = np.array([[one, 0], [two * np.cos(angle), two * np.sin(angle)]])
    merged = averaging.slerp_weights(deltas @ deltas.T) @ deltas
    np.testing.assert_allclose(merged * np.cos(angle / 2), deltas.mean(0), atol=1e-9 * (one + two))
    # And an angle is halved where norms are equal.
    half = averaging.slerp_weights(np.array([[1, np.cos(angle)], [np.cos(angle), 1]]), 0.25)
    np.testing.assert_allclose(half, np.sin(np.array([0.75, 0.25]) * angle) / np.sin(angle))


def test_without_an_angle_it_is_linear():
    for gram in ([[1, -1], [-1, 1]], [[0, 0], [0, 2]], [[0, 0], [0, 0]], [[1, 2], [2, 4]]):
        weights = averaging.slerp_weights(np.array(gram, float), 0.25)
        np.testing.assert_allclose(weights, [0.75, 0.25], atol=1e-7)


def test_three_models_are_merged_recursively():
    base, *models = (tree(seed) for seed in range(4))
    merged = averaging.slerp(models, base)
    two = averaging.slerp(models[:2], base)
    expected = averaging.slerp([two, models[2]], base, t=1 / 3)
    assert_close(merged, expected)
    assert_close(averaging.slerp(models[:1], base), models[0])


@pytest.mark.parametrize("group_of", GROUPINGS)
def test_each_group_has_an_angle_of_its_own(group_of):
    base, one, two = (tree(seed) for seed in range(3))
    merged = averaging.slerp([one, two], base, t=0.3, group_of=group_of)
    parts: dict = {}
    for module, leaves in base.items():
        for name in leaves:
            group = group_of(f"{module}/{name}")
            for p in (0, 1) if group.is_stacked else (slice(None),):
                parts.setdefault((group.name, repr(p)), []).append((module, name, p))
    assert (
        len(parts)
        == {"by_tensor": 6, "by_module": 3, "whole": 1, "stacked_layers": 4}[group_of.__name__]
    )
    for members in parts.values():
        flat = [
            np.concatenate([x[module][name][p].ravel() for module, name, p in members])
            for x in (base, one, two, merged)
        ]
        np.testing.assert_allclose(flat[3], slerp(flat[0], flat[1], flat[2], 0.3), atol=1e-6)
        deltas = flat[1].astype(np.float64) - flat[0], flat[2].astype(np.float64) - flat[0]
        cosine = deltas[0] @ deltas[1] / np.linalg.norm(deltas[0]) / np.linalg.norm(deltas[1])
        name = group_of("/".join(members[0][:2])).name
        given = averaging.cosines([one, two], base, group_of)[name]
        p = members[0][2]
        given = given if isinstance(p, slice) else given[p]
        np.testing.assert_allclose(given[0, 1], cosine, atol=1e-9)


@pytest.mark.usefixtures("optimized")  # Digits are compared.
@pytest.mark.parametrize("group_of", GROUPINGS)
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(lambda f: f, id="eager", marks=pytest.mark.slow),
        pytest.param(jax.jit, id="jit"),
    ],
)
def test_jax_gives_what_numpy_gives_and_keeps_its_arrays(variant, group_of):
    base, one, two = (tree(seed) for seed in range(3))
    merge = variant(lambda a, b, c: averaging.slerp([a, b], c, t=0.3, group_of=group_of))
    merged = merge(*jax.tree.map(jnp.asarray, (one, two, base)))
    expected = averaging.slerp([one, two], base, t=0.3, group_of=group_of)
    assert all(isinstance(x, jax.Array) and x.dtype == "float32" for x in jax.tree.leaves(merged))
    assert all(type(x) is np.ndarray for x in jax.tree.leaves(expected))
    assert_close(merged, expected)


def test_a_population_is_vmapped():
    ones, twos = (jax.tree.map(lambda *x: jnp.stack(x), tree(s), tree(s + 9)) for s in (1, 2))
    merged = jax.jit(jax.vmap(lambda a, b: averaging.slerp([a, b])))(ones, twos)
    for i, pair in enumerate(((tree(1), tree(2)), (tree(10), tree(11)))):
        assert_close(jax.tree.map(lambda x, i=i: x[i], merged), averaging.slerp(pair))


@pytest.mark.parametrize("like", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_means(like):
    models = [tree(seed, like=like) for seed in range(3)]
    expected = jax.tree.map(lambda *x: np.mean(np.asarray(x, np.float64), 0), *models)
    assert_close(averaging.mean(models), expected)
    assert_close(averaging.mean([models[2], models[0], models[1]]), expected)  # In any order.
    assert_close(averaging.mean([models[0]] * 3), models[0])
    weighted = averaging.mean(models, [1, 0, 3])
    assert_close(weighted, averaging.liti(models[0], models[2], 0.75))
    folded = averaging.ema(averaging.ema(models[0], models[1], 0.1), models[2], 0.1)
    assert_close(averaging.mean(models, averaging.ema_weights(3, 0.1).tolist()), folded)


@SETTINGS
@hypothesis.given(vectors, fractions, fractions)
def test_liti_composes_and_ends_at_its_ends(vectors, eta, zeta):
    base, one, _ = ({"w": vector} for vector in vectors)
    np.testing.assert_array_equal(averaging.liti(base, one, 0)["w"], base["w"])
    np.testing.assert_array_equal(averaging.liti(base, one, 1)["w"], one["w"])
    twice = averaging.liti(base, averaging.liti(base, one, eta), zeta)
    assert_close(twice, averaging.liti(base, one, eta * zeta), atol=1e-5)


def test_half_precision_is_rounded_once():
    random = np.random.default_rng(0)
    models = [{"w": random.normal(size=1_000).astype(ml_dtypes.bfloat16)} for _ in range(3)]
    exact = np.mean([model["w"].astype(np.float64) for model in models], 0).astype(
        ml_dtypes.bfloat16
    )
    for like in (np.asarray, jnp.asarray):
        mean = averaging.mean(jax.tree.map(like, models))["w"]
        assert mean.dtype == ml_dtypes.bfloat16
        different = np.asarray(mean) != exact
        assert different.mean() < 0.01  # Ties, where float32 is not enough to tell.


def test_dot_products_are_summed_in_float64():
    ones = jnp.ones(1 << 12, jnp.float32)
    cosines = averaging.cosines([{"w": ones}] * 2, None)["w"]
    np.testing.assert_allclose(cosines, np.ones((2, 2)), rtol=1e-15)


def test_target_of_dqn_and_anchor_of_warp_are_the_same_update():
    def loss(params, targets, aux, batch, key, constants):
        return jnp.sum(params["w"] ** 2), (aux, learners.types.Feedback({}))

    targets = {"anchor": learners.moving_average(0.01), "copy": learners.moving_average(1.0)}
    learner = learners.sgd(
        lambda key: {"w": jax.random.normal(key, (3,))},
        loss,
        optax.sgd(0.1),
        {**targets, "periodic": learners.periodic(1)},
    )
    state = learner.init(jax.random.key(0))
    anchor, step = state.params, jax.jit(learner.step)
    for _ in range(5):
        state, _ = step(state, None)
        anchor = averaging.ema(anchor, state.params, 0.01)
    np.testing.assert_array_equal(state.targets["anchor"]["w"], anchor["w"])
    np.testing.assert_array_equal(state.targets["copy"]["w"], state.params["w"])
    np.testing.assert_array_equal(state.targets["copy"]["w"], state.targets["periodic"]["w"])


def test_a_moving_average_forgets_geometrically_and_lags_behind_what_moves():
    average, velocity = {"w": np.ones(1)}, 0.5
    for _ in range(20):
        average = averaging.ema(average, {"w": np.zeros(1)}, 0.1)
    np.testing.assert_allclose(average["w"], 0.9**20)
    for step in range(1, 400):
        average = averaging.ema(average, {"w": np.array([velocity * step])}, 0.1)
    np.testing.assert_allclose(velocity * 399 - average["w"], velocity * 0.9 / 0.1)


def test_an_average_in_float32_follows_bfloat16():
    average = averaging.ema({"w": jnp.zeros(1)}, {"w": jnp.ones(1, jnp.bfloat16)}, 0.01)
    assert average["w"].dtype == "float32"
    np.testing.assert_allclose(average["w"], 0.01, rtol=1e-2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: averaging.slerp([]), "at least one tree"),
        (lambda a: averaging.mean([a, a], [1.0]), "got 1 for 2"),
        (lambda a: averaging.mean([a, a], [0.0, 0.0]), "not all 0"),
        (lambda a: averaging.mean([a, a], [1.0, -1.0]), ">= 0"),
        (lambda a: averaging.mean([a, a], [1e308, 1e308]), "finite as their sum is"),
        (lambda a: averaging.ema(a, a, 0.0), "got 0.0"),
        (lambda a: averaging.liti(a, a, -0.1), "got -0.1"),
        (lambda a: averaging.slerp([a, a], t=1.5), "got 1.5 for 2"),
        (lambda a: averaging.slerp([a, a, a], t=0.5), "got 0.5 for 3"),
        (lambda a: averaging.mean([a, {"w": np.ones(2)}]), "'w' of tree 2 is float64.2., expected"),
        (lambda a: averaging.mean([a, {"v": a["w"]}]), "tree 2 has no leaf 'w'"),
        (lambda a: averaging.mean([{"steps": np.ones(1, np.int32)}]), "'steps' must be floating"),
        (
            lambda a: averaging.ema(a, {"steps": np.ones(1, np.int32)}, 0.5),
            "'steps' must be floating, got int32",
        ),
        (
            lambda a: averaging.ema({"steps": jnp.ones(1, jnp.int32)}, a, 0.5),
            "'steps' must be floating, got int32",
        ),
    ],
)
def test_what_cannot_be_averaged_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call({"w": np.ones(3, np.float32)})


@pytest.mark.parametrize("like", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_what_counts_nothing_may_be_anything_in_both_back_ends(like, wrong):
    # By hand: 1 * 1 + 0 * wrong, where 0 is not multiplied.
    one, bad = ({"w": like(np.array(x, np.float32))} for x in ([1.0, 2.0], [wrong, 4.0]))
    for merged in (
        averaging.mean([one, bad], [1, 0]),
        averaging.mean([bad, one], [0, 2]),
        averaging.liti(bad, one, 1),
        averaging.liti(one, bad, 0),
        averaging.ema(bad, one, 1),
    ):
        np.testing.assert_array_equal(merged["w"], [1, 2])
    mixed = averaging.mean([one, bad], [1, 1])
    np.testing.assert_array_equal(mixed["w"], [(1 + wrong) / 2, 3])
