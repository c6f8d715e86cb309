"""Tests of core/regularizers.py and core/divergences.py."""

import functools
import math
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.test_util import check_grads

from kullback.core import regularizers

ALL = {
    "kl": regularizers.kl,
    "reverse_kl": regularizers.reverse_kl,
    "jeffreys": regularizers.jeffreys,
    "gan": regularizers.gan,
    "jensen_shannon": regularizers.jensen_shannon,
    "hellinger": regularizers.hellinger,
    "alpha-0.5": regularizers.alpha(0.5),
    "alpha-1.25": regularizers.alpha(1.25),
    "alpha-1.5": regularizers.alpha(1.5),
    "alpha-1.7": regularizers.alpha(1.7),  # No power of it is whole or half.
    "chi_squared": regularizers.chi_squared,
    "alpha-3": regularizers.alpha(3.0),
}
# The definitions, float64, unnormalised as long as f(1) = f'(1) = 0.
F = {
    "kl": lambda u: u * np.log(u) - (u - 1),
    "reverse_kl": lambda u: -np.log(u) + (u - 1),
    "jeffreys": lambda u: (u - 1) * np.log(u),
    "gan": lambda u: u * np.log(u) - (u + 1) * np.log((u + 1) / 2),
    "jensen_shannon": lambda u: (u * np.log(u) - (u + 1) * np.log((u + 1) / 2)) / 2,
    "hellinger": lambda u: (1 - np.sqrt(u)) ** 2,
    **{
        f"alpha-{a:g}": lambda u, a=a: (u**a - 1 - a * (u - 1)) / (a * (a - 1))
        for a in (0.5, 1.25, 1.5, 1.7, 3.0)
    },
    "chi_squared": lambda u: (u - 1) ** 2 / 2,
}
THETA = np.array([1.0, 0.5, 0.0, -1.0])
PRIOR = np.array([0.4, 0.3, 0.2, 0.1])
# Name, reference, softargmax_f, softmax_f, loss of label 0 (None: infinite): worked out with other
# code when the specification was written, to six digits.
VECTORS = [
    ("kl", None, (0.473991, 0.287490, 0.174371, 0.064148), -1.253433, 0.746567),
    ("gan", None, (0.535211, 0.268152, 0.147120, 0.049517), -0.560161, 0.519281),
    ("jensen_shannon", None, (0.744569, 0.186251, 0.061301, 0.007879), 0.090185, 0.129906),
    ("reverse_kl", None, (0.307645, 0.266631, 0.235266, 0.190458), -2.355558, None),
    ("alpha-1.5", None, (0.624198, 0.291667, 0.084136, 0.0), -0.796739, 0.203261),
    ("alpha-0.5", None, (0.366011, 0.276158, 0.215746, 0.142086), -1.750307, 3.249693),
    ("chi_squared", None, (0.75, 0.25, 0.0, 0.0), -0.4375, 0.0625),
    ("hellinger", None, (0.482000, 0.265600, 0.167914, 0.084487), -0.649558, 1.350442),
    ("jeffreys", None, (0.295438, 0.264862, 0.239522, 0.200178), -3.981403, None),
    ("kl", PRIOR, (0.597846, 0.271959, 0.109968, 0.020227), 0.598131, 0.514422),
    ("alpha-1.5", PRIOR, (0.602506, 0.286534, 0.105793, 0.005167), 0.610469, 0.385321),
    ("chi_squared", PRIOR, (0.6, 0.3, 0.1, 0.0), 0.625, 0.375),
    ("jensen_shannon", PRIOR, (0.876826, 0.101408, 0.020492, 0.001274), 0.780965, 0.055324),
]

# A solver of each kind is always looked at: closed, sparse, and sought with three signs of f'(0).
QUICK = {"kl", "reverse_kl", "jensen_shannon", "alpha-1.5", "chi_squared"}
every = pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ALL]
)
logits = hnp.arrays(np.float64, (5,), elements=st.floats(-4, 4, allow_subnormal=False))
measures = hnp.arrays(np.float64, (5,), elements=st.floats(0.05, 2, allow_subnormal=False))


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


class Compiled(NamedTuple):
    """The operators of a divergence and their derivatives, of (theta, q) or (theta, y, q)."""

    softmax: Any
    softargmax: Any
    loss: Any
    softmax_grad: Any
    jacobian: Any
    loss_grad: Any


@functools.cache
def compiled(name: str) -> Compiled:
    """Compiles the functions once, so that hypothesis pays for the arithmetic alone."""
    divergence = ALL[name]
    softmax = lambda theta, q: regularizers.softmax(theta, divergence, q)  # noqa: E731  # As its siblings.
    softargmax = lambda theta, q: regularizers.softargmax(theta, divergence, q)  # noqa: E731
    loss = lambda theta, y, q: regularizers.loss(theta, y, divergence, q)  # noqa: E731
    functions = softmax, softargmax, loss, jax.grad(softmax), jax.jacobian(softargmax)
    return Compiled(*map(jax.jit, (*functions, jax.grad(loss))))


# An operator that is called op by op compiles its solver anew at each call.
softargmax = jax.jit(regularizers.softargmax, static_argnums=1)
softmax = jax.jit(regularizers.softmax, static_argnums=1)
loss_of = jax.jit(regularizers.loss, static_argnums=2)
greedy = jax.jit(regularizers.greedy, static_argnums=(2, 3, 4))
divergence_of = jax.jit(lambda divergence, p, q: divergence(p, q), static_argnums=0)


def entropy_like(name: str, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Computes D_f(p, q) from the definition, p [..., V] inside the simplex."""
    return np.sum(q * F[name](p / q), -1)


@pytest.mark.parametrize(
    "name, reference, p, value, loss",
    [v if v[0] in QUICK else pytest.param(*v, marks=pytest.mark.slow) for v in VECTORS],
)
def test_golden(name, reference, p, value, loss):
    divergence = ALL[name]
    np.testing.assert_allclose(softargmax(THETA, divergence, reference), p, atol=6e-7)
    np.testing.assert_allclose(softmax(THETA, divergence, reference), value, atol=6e-7)
    got = loss_of(THETA, np.array(0), divergence, reference)
    if loss is None:
        assert divergence.loss_name.endswith("_without_constant")
        np.testing.assert_allclose(got, value - THETA[0], atol=6e-7)
    else:
        assert divergence.loss_name == f"{divergence.name}_loss"
        np.testing.assert_allclose(got, loss, atol=6e-7)


@pytest.mark.parametrize("a", [1.25, 1.5, 2.0, 3.0])
def test_the_slope_of_an_inverse_ends_where_the_inverse_does(a):
    divergence = regularizers.alpha(a)
    v = divergence.derivative_at_zero + np.array([-2.0, -1e-3, 0.0])
    assert divergence.inverse_slope is not None
    np.testing.assert_array_equal(divergence.inverse(v), 0)
    np.testing.assert_array_equal(divergence.inverse_slope(v), 0)


@pytest.mark.parametrize("name", list(ALL))
def test_the_table_of_a_divergence_agrees_with_its_f(name):
    divergence, f = ALL[name], F[name]
    u = np.geomspace(0.05, 5, 50)
    zero = np.zeros_like(u)
    np.testing.assert_allclose(divergence.term(np.log(u), zero), f(u), rtol=1e-9, atol=1e-12)
    step = 1e-6
    slope = (f(u + step) - f(u - step)) / (2 * step)
    np.testing.assert_allclose(divergence.derivative(u), slope, atol=1e-6)
    by_log = np.asarray(divergence.derivative_of_log(jnp.log(u)))
    np.testing.assert_allclose(by_log, divergence.derivative(u), atol=1e-12)
    assert divergence.derivative_of_log(jnp.zeros(())) == 0
    bend = (f(u + 1e-4) - 2 * f(u) + f(u - 1e-4)) / 1e-8
    np.testing.assert_allclose(divergence.curvature(u), 1 / bend, rtol=1e-3)
    v = divergence.derivative(u)
    np.testing.assert_allclose(divergence.inverse(v), u, rtol=1e-10)
    if divergence.inverse_slope is not None:
        np.testing.assert_allclose(divergence.inverse_slope(v), divergence.curvature(u), rtol=1e-9)
    offset = divergence.at_zero if math.isfinite(divergence.at_zero) else 0
    np.testing.assert_allclose(divergence.conjugate(v), u * v - f(u) + offset, atol=1e-9)
    np.testing.assert_allclose(divergence.excess(np.log(u), zero), f(u) - offset, atol=1e-12)
    tiny = 1e-12
    if math.isfinite(divergence.at_zero):
        np.testing.assert_allclose(divergence.at_zero, f(tiny), atol=1e-5)
    else:
        assert f(tiny) > 20
    if divergence.is_sparse:
        expected = divergence.derivative(np.zeros(()))
        np.testing.assert_allclose(divergence.derivative_at_zero, expected)
    else:
        assert divergence.derivative(np.array(tiny)) < -10


@every
@hypothesis.settings(deadline=None)
@hypothesis.given(theta=logits, q=measures)
def test_the_operator_attains_the_maximum(name, theta, q):
    """Oracle: no distribution of many, near and far, does better, and the value is what it is."""
    c = compiled(name)
    with jax.enable_x64(True):
        p, value = np.asarray(c.softargmax(theta, q)), float(c.softmax(theta, q))
    assert p.min() >= 0
    np.testing.assert_allclose(p.sum(), 1, atol=1e-12)
    rng = np.random.default_rng(0)
    others = rng.dirichlet(np.ones(5), 200)
    mixed = [(1 - w) * p + w * others for w in (1.0, 0.1, 1e-3)]
    objective = [m @ theta - entropy_like(name, m, q) for m in mixed]
    assert np.max(objective) <= value + 1e-9
    inside = np.maximum(p, 1e-300)
    np.testing.assert_allclose(p @ theta - entropy_like(name, inside, q), value, atol=1e-8)


@every
@hypothesis.settings(deadline=None, max_examples=10)
@hypothesis.given(theta=logits, q=measures)
def test_gradients_are_implicit(name, theta, q):
    c = compiled(name)
    with jax.enable_x64(True):
        p = c.softargmax(theta, q)
        np.testing.assert_allclose(c.softmax_grad(theta, q), p, atol=1e-12)
        y = np.random.default_rng(0).dirichlet(np.ones(5))
        np.testing.assert_allclose(c.loss_grad(theta, y, q), p - y, atol=1e-12)
        one_hot = np.eye(5)[2]
        np.testing.assert_allclose(c.loss_grad(theta, np.int32(2), q), p - one_hot, atol=1e-12)
        jacobian = np.asarray(c.jacobian(theta, q))
    np.testing.assert_allclose(jacobian, jacobian.T, atol=1e-10)
    np.testing.assert_allclose(jacobian.sum(0), 0, atol=1e-10)
    assert np.linalg.eigvalsh(jacobian).min() > -1e-10


@every
def test_derivatives_agree_with_differences(name):
    softargmax = compiled(name).softargmax
    theta = np.array([0.3, -0.1, 0.2, 0.9, 0.05])  # No class at the border of the support.
    check_grads(lambda x: softargmax(x, np.ones(5)), (theta,), order=1, atol=1e-6, rtol=1e-6)


@every
@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(theta=logits, q=measures)
def test_the_loss_is_that_of_fenchel_and_young(name, theta, q):
    c, divergence = compiled(name), ALL[name]
    y = np.random.default_rng(1).dirichlet(np.ones(5))
    with jax.enable_x64(True):
        got = float(c.loss(theta, y, q))
        best = np.asarray(c.softargmax(theta, q))
        at_best = float(c.loss(theta, best, q))
        shifted = float(c.loss(theta + 3, y, q))
    p = np.maximum(best, 1e-300)
    value = best @ theta - entropy_like(name, p, q)
    constant = entropy_like(name, y, q) if math.isfinite(divergence.at_zero) else 0
    np.testing.assert_allclose(got, value + constant - y @ theta, atol=1e-8)
    np.testing.assert_allclose(shifted, got, atol=1e-9)
    if math.isfinite(divergence.at_zero):
        assert got >= -1e-12
        np.testing.assert_allclose(at_best, 0, atol=1e-9)


@pytest.mark.parametrize("name", ["kl", "alpha-1.5", "jensen_shannon"])
def test_entropy_is_shannons(name):
    """Oracle: -sum_j p_j ln p_j of softargmax_f, a class without mass among them."""
    theta, divergence = np.array([[1.0, -2.0, 0.5, 0.4], [0.0, -np.inf, 3.0, 0.0]]), ALL[name]
    p = np.asarray(softargmax(theta, divergence), np.float64)
    expected = [-sum(x * math.log(x) for x in row if x > 0) for row in p]
    entropy = jax.jit(lambda theta: regularizers.entropy(theta, divergence))
    np.testing.assert_allclose(entropy(theta), expected, rtol=1e-5)


def test_kl_gives_softmax_and_cross_entropy():
    theta = np.random.default_rng(0).normal(size=(7, 11))
    labels = np.arange(7) % 11
    np.testing.assert_allclose(softargmax(theta), scipy.special.softmax(theta, 1), atol=1e-15)
    expected = np.logaddexp.reduce(theta, 1) - theta[np.arange(7), labels]
    np.testing.assert_allclose(loss_of(theta, labels), expected, atol=1e-14)
    q = np.random.default_rng(1).uniform(0.1, 1, 11)
    expected = scipy.special.softmax(theta + np.log(q), 1)
    np.testing.assert_allclose(softargmax(theta, reference=q), expected, atol=1e-15)


def sparsemax(z: np.ndarray) -> np.ndarray:
    """Computes sparsemax by sorting (Martins & Astudillo 2016)."""
    ordered = np.sort(z)[::-1]
    sums = np.cumsum(ordered)
    count = np.arange(1, len(z) + 1)
    size = count[1 + count * ordered > sums][-1]
    return np.maximum(z - (sums[size - 1] - 1) / size, 0)


@hypothesis.settings(deadline=None)
@hypothesis.given(theta=logits)
def test_chi_squared_gives_sparsemax(theta):
    with jax.enable_x64(True):
        got = compiled("chi_squared").softargmax(theta, np.ones(5))
    np.testing.assert_allclose(got, sparsemax(theta), atol=1e-12)


@every
def test_scaling_f_scales_the_logits_and_limits_of_alpha(name):
    theta = np.random.default_rng(3).normal(size=(4, 6))
    if name == "jensen_shannon":  # Half of GAN's f.
        expected = softargmax(2 * theta, regularizers.gan)
        np.testing.assert_allclose(softargmax(theta, ALL[name]), expected, atol=1e-12)
    elif name == "hellinger":  # alpha = 1/2 is twice its f.
        expected = softargmax(2 * theta, regularizers.alpha(0.5))
        np.testing.assert_allclose(softargmax(theta, ALL[name]), expected, atol=1e-12)
    elif name in ("kl", "reverse_kl"):
        near = regularizers.alpha(1 + 1e-6 if name == "kl" else 1e-6)
        expected = softargmax(theta, near)
        np.testing.assert_allclose(softargmax(theta, ALL[name]), expected, atol=1e-5)


@every
def test_sparsity_and_order(name):
    divergence = ALL[name]
    theta = np.array([4.0, 0.0, -1.0])
    p = np.asarray(softargmax(theta, divergence))
    assert np.all(np.diff(p) <= 0)
    if divergence.is_sparse and name != "alpha-1.25":  # Its margin is 4.
        # p is exactly one class where it leads by f'(1) - f'(0), and loss and gradient are 0.
        np.testing.assert_array_equal(p, [1, 0, 0])
        loss = jax.value_and_grad(lambda t: regularizers.loss(t, np.array(0), divergence))
        value, grad = jax.jit(loss)(theta)
        np.testing.assert_allclose(value, 0, atol=1e-12)
        np.testing.assert_allclose(grad, np.zeros(3), atol=1e-12)
    elif not divergence.is_sparse:
        assert p.min() > 0


@functools.partial(jax.jit, static_argnums=2)
def mass_and_loss(
    theta: jax.Array, labels: jax.Array, divergence: regularizers.Divergence
) -> tuple[jax.Array, jax.Array]:
    mass = regularizers.softargmax(theta, divergence)
    return mass, regularizers.loss(theta, labels, divergence)


@every
def test_many_classes_in_single_precision(name):
    """The same as in double precision, with as many classes as a language model has tokens."""
    divergence = ALL[name]
    theta = np.random.default_rng(0).normal(size=(2, 32_000)) * 4
    labels = np.argmax(theta, -1)
    exact, exact_loss = map(np.asarray, mass_and_loss(theta, labels, divergence))
    rounded = theta.astype(np.float32)
    single, single_loss = map(np.asarray, mass_and_loss(rounded, labels, divergence))
    assert single.dtype == single_loss.dtype == np.float32
    np.testing.assert_allclose(single.sum(-1, dtype=np.float64), 1, atol=1e-5)
    np.testing.assert_allclose(single, exact, atol=2e-5)
    # Losses without a constant are as large as the number of classes.
    scale = np.maximum(np.abs(exact_loss), 1)
    np.testing.assert_allclose(single_loss / scale, exact_loss / scale, atol=1e-4)


@every
def test_classes_that_are_masked_have_no_mass(name):
    divergence = ALL[name]
    theta = np.array([1.0, -np.inf, 0.5, -np.inf])
    kept = np.asarray(softargmax(np.array([1.0, 0.5]), divergence))
    q = np.array([1.0, 0.0, 1.0, 0.0])
    for p in (
        softargmax(np.nan_to_num(theta, neginf=7.0), divergence, q),
        softargmax(theta, divergence, q),
    ):
        np.testing.assert_allclose(p, [kept[0], 0, kept[1], 0], atol=1e-12)


@pytest.mark.slow
def test_bfloat16_is_promoted_and_variants_agree():
    theta = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 9)), jnp.bfloat16)
    divergence = regularizers.alpha(1.5)
    p = regularizers.softargmax(theta, divergence)
    assert p.dtype == jnp.float32
    inner = jax.vmap(jax.vmap(lambda t: regularizers.softargmax(t, divergence)))(theta)
    np.testing.assert_allclose(p, inner, atol=1e-7)
    jitted = jax.jit(lambda t: regularizers.softargmax(t, divergence))(theta)
    np.testing.assert_allclose(p, jitted, atol=1e-7)


@every
@hypothesis.settings(deadline=None)
@hypothesis.given(theta=logits, other=logits)
def test_a_divergence_is_positive_and_zero_between_equals(name, theta, other):
    divergence = ALL[name]
    log_p, log_q = scipy.special.log_softmax(theta), scipy.special.log_softmax(other)
    with jax.enable_x64(True):
        got = float(divergence_of(divergence, log_p, log_q))
        assert float(divergence_of(divergence, log_p, log_p)) == pytest.approx(0, abs=1e-14)
    assert got >= -1e-14
    expected = entropy_like(name, np.exp(log_p), np.exp(log_q))
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-12)


@every
def test_a_divergence_with_zeros_has_finite_gradients(name):
    divergence = ALL[name]
    log_p = np.array([np.log(0.5), np.log(0.5), -np.inf])
    log_q = scipy.special.log_softmax([0.0, 1.0, 2.0])
    value, grad = jax.jit(jax.value_and_grad(lambda q: divergence(log_p, q)))(log_q)
    if math.isfinite(divergence.at_zero):
        expected = entropy_like(name, np.array([0.5, 0.5]), np.exp(log_q[:2]))
        np.testing.assert_allclose(value, expected + divergence.at_zero * np.exp(log_q[2]))
        assert np.all(np.isfinite(grad))
    else:
        assert value == np.inf


def test_reference_values_of_kl():
    p, q = np.log([0.5, 0.3, 0.2]), np.log([0.2, 0.2, 0.6])
    np.testing.assert_allclose(regularizers.kl(p, q), 0.36006244, atol=1e-8)
    np.testing.assert_allclose(regularizers.reverse_kl(p, q), 0.39481621, atol=1e-8)
    np.testing.assert_allclose(regularizers.jensen_shannon(p, q), 0.09056585, atol=1e-8)


@pytest.mark.parametrize(
    "name",
    ["hellinger", *(pytest.param(n, marks=pytest.mark.slow) for n in ("alpha-1.5", "reverse_kl"))],
)
def test_a_function_of_the_users(name):
    """f as anyone would write it, unnormalised, gives what its closed form gives."""
    f = {
        "alpha-1.5": lambda u: u**1.5 / 0.75 + 7 * u - 1,
        "hellinger": lambda u: 1 - 2 * jnp.sqrt(u),
        "reverse_kl": lambda u: -jnp.log(u),
    }[name]
    at_zero = {"alpha-1.5": -1.0, "hellinger": 1.0, "reverse_kl": math.inf}[name]
    slope = 7.0 if name == "alpha-1.5" else -math.inf
    mine = regularizers.from_function(f, name="mine", at_zero=at_zero, derivative_at_zero=slope)
    theta = np.random.default_rng(0).normal(size=(3, 6))
    y = np.random.default_rng(1).dirichlet(np.ones(6), 3)
    q = np.linspace(0.1, 0.5, 6)

    @functools.partial(jax.jit, static_argnums=0)
    def both(divergence):
        p = softargmax(theta, divergence, q)
        jacobian = jax.jacobian(lambda t: softargmax(t, divergence))(theta[0])
        return p, loss_of(theta, y, divergence, q), jacobian

    for got, expected in zip(both(mine), both(ALL[name]), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-8)
    assert mine.is_sparse == ALL[name].is_sparse
    x = np.linspace(-3, 3, 7)
    by_log = [jax.jit(d.derivative_of_log)(x) for d in (mine, ALL[name])]
    np.testing.assert_allclose(*by_log, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["kl", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gan", "jensen_shannon"))]
)
def test_derivatives_of_ratios_that_are_no_floats(name):
    """ln u = -700 and 700 in float32: f'(u) and its slope there are finite."""
    x = np.array([-700, 0, 700], np.float32)
    expected = {"kl": x, "gan": np.array([np.log(2) - 700, 0, np.log(2)])}
    expected["jensen_shannon"] = expected["gan"] / 2
    slopes = {"kl": [1, 1, 1], "gan": [1, 0.5, 0], "jensen_shannon": [0.5, 0.25, 0]}
    of_log = ALL[name].derivative_of_log
    np.testing.assert_allclose(of_log(x), expected[name], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(of_log))(x), slopes[name], atol=1e-6)


@pytest.mark.parametrize("lambda_, tau", [(0.5, 0.0), (0.0, 0.5), (0.3, 0.2)])
def test_greedy_by_kl_and_entropy(lambda_, tau):
    rng = np.random.default_rng(0)
    q, prior = rng.normal(size=(4, 3)), rng.dirichlet(np.ones(3), 4)
    log_policy, value = map(np.asarray, greedy(q, np.log(prior), lambda_, tau))
    policy = np.exp(log_policy)
    np.testing.assert_allclose(policy.sum(-1), 1)

    def objective(pi):
        kl = np.sum(pi * np.log(pi / prior), -1)
        return np.sum(pi * q, -1) - lambda_ * kl - tau * np.sum(pi * np.log(pi), -1)

    np.testing.assert_allclose(objective(policy), value, atol=1e-12)
    for other in rng.dirichlet(np.ones(3), (200, 4)):
        assert np.all(objective(other) <= value + 1e-12)
        assert np.all(objective(0.99 * policy + 0.01 * other) <= value + 1e-12)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("prior", "alpha-1.5"),
        ("entropy", "jensen_shannon"),
        *(
            pytest.param(kind, name, marks=pytest.mark.slow)
            for kind in ("prior", "entropy")
            for name in ("alpha-1.5", "chi_squared", "hellinger", "jensen_shannon", "gan")
            if (kind, name) not in {("prior", "alpha-1.5"), ("entropy", "jensen_shannon")}
        ),
    ],
)
def test_greedy_by_other_divergences(name, kind):
    rng = np.random.default_rng(0)
    q, prior = rng.normal(size=(4, 3)), rng.dirichlet(np.ones(3), 4)
    temperatures = (0.5, 0.0) if kind == "prior" else (0.0, 0.5)
    log_policy, value = map(np.asarray, greedy(q, np.log(prior), *temperatures, ALL[name]))
    reference = prior if kind == "prior" else np.ones(3)
    # The entropy of a policy is 0 where it is deterministic.
    constant = (
        0 if kind == "prior" else entropy_like(name, np.array([1, 1e-300, 1e-300]), np.ones(3))
    )

    def objective(pi):
        return np.sum(pi * q, -1) - 0.5 * (entropy_like(name, pi, reference) - constant)

    policy = np.maximum(np.exp(log_policy), 1e-300)
    np.testing.assert_allclose(objective(policy), value, atol=1e-8)
    for other in rng.dirichlet(np.ones(3), (200, 4)):
        assert np.all(objective(other) <= value + 1e-9)


def test_greedy_of_chi_squared_is_that_of_tsallis():
    # tau [1/2 + 1/2 sum_{support} (z^2 - t^2)] for z = q / tau: the closed form of sparsemax.
    q, tau = np.array([0.4, 0.1, -1.0]), 0.5
    policy = sparsemax(q / tau)
    threshold = (q / tau - policy)[policy > 0][0]
    z = (q / tau)[policy > 0]
    expected = tau * (0.5 + 0.5 * np.sum(z**2 - threshold**2))
    _, value = greedy(q, np.zeros(3), 0.0, tau, regularizers.chi_squared)
    np.testing.assert_allclose(value, expected, atol=1e-12)


def test_greedy_limits():
    q = np.array([[1.0, 3.0, 3.0], [1e4, 1e4 - 1e-3, 0.0]])
    log_prior = np.log(np.array([0.2, 0.3, 0.5])) * np.ones((2, 1))
    log_policy, value = greedy(q, log_prior, 0.0, 0.0)
    np.testing.assert_array_equal(np.exp(log_policy), [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_array_equal(value, [3, 1e4])
    _, soft = greedy(q, log_prior, 0.0, 1e-3)
    assert np.all((np.asarray(soft) >= value) & (soft - value <= 1e-3 * np.log(3)))
    # A strong pull gives the prior, of the value of the prior.
    pulled, mean = greedy(q[:1], log_prior[:1], 1e9, 0.0)
    np.testing.assert_allclose(np.exp(pulled), np.exp(log_prior[:1]), atol=1e-8)
    np.testing.assert_allclose(mean, [2.6], rtol=1e-6)


def test_greedy_keeps_the_support_of_the_prior():
    q, log_prior = np.array([5.0, 0.0, 1.0]), np.array([-np.inf, np.log(0.5), np.log(0.5)])
    for divergence in (regularizers.kl, regularizers.alpha(1.5), regularizers.hellinger):
        log_policy, value = map(np.asarray, greedy(q, log_prior, 0.7, 0.0, divergence))
        assert log_policy[0] == -np.inf and np.isfinite(value)
        np.testing.assert_allclose(np.sum(np.exp(log_policy)), 1, atol=1e-12)


@pytest.mark.slow
def test_temperatures_of_kl_may_be_traced():
    q, log_prior = np.array([1.0, 2.0]), np.log([0.3, 0.7])
    temperatures = np.array([[0.0, 0.5], [0.5, 0.0], [0.2, 0.1], [0.0, 0.0]])
    f = jax.vmap(lambda t: regularizers.greedy(q, log_prior, t[0], t[1]))
    log_policy, value = f(temperatures)
    for row, (lambda_, tau) in enumerate(temperatures.tolist()):
        one_policy, one_value = greedy(q, log_prior, lambda_, tau)
        np.testing.assert_allclose(log_policy[row], one_policy, atol=1e-12)
        np.testing.assert_allclose(value[row], one_value, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    ["chi_squared", *(pytest.param(n, marks=pytest.mark.slow) for n in ("alpha-1.5", "gan"))],
)
def test_one_temperature_of_another_divergence_may_be_traced(name):
    q, log_prior = np.array([1.0, 2.0, 1.5]), np.log([0.3, 0.6, 0.1])
    kinds = {
        "prior": lambda function, t: function(q, log_prior, t, 0.0, ALL[name]),
        "entropy": lambda function, t: function(q, log_prior, 0.0, t, ALL[name]),
    }
    for f in kinds.values():
        traced = jax.jit(jax.vmap(functools.partial(f, regularizers.greedy)))
        log_policy, value = traced(np.array([0.3, 2.0]))
        for row, temperature in enumerate((0.3, 2.0)):
            one_policy, one_value = f(greedy, temperature)
            np.testing.assert_allclose(np.exp(log_policy[row]), np.exp(one_policy), atol=1e-12)
            np.testing.assert_allclose(value[row], one_value, atol=1e-12)
    with pytest.raises(ValueError, match="beside a traced one the other is the number 0"):
        jax.jit(lambda t: regularizers.greedy(q, log_prior, t, t, ALL[name]))(0.5)
    with pytest.raises(ValueError, match="must be scalars"):
        regularizers.greedy(q, log_prior, 0.0, np.ones(3), ALL[name])


@pytest.mark.parametrize(
    ("lambda_", "tau", "divergence", "message"),
    [
        (-1.0, 0.0, None, "lambda_ must be >= 0, got -1.0"),
        (0.0, -2.0, None, "tau must be >= 0, got -2.0"),
        (0.5, 0.5, regularizers.alpha(1.5), "exactly one of lambda_ and tau"),
        (0.0, 0.0, regularizers.chi_squared, "exactly one of lambda_ and tau"),
        (0.0, 0.5, regularizers.reverse_kl, "has no entropy"),
    ],
)
def test_greedy_refuses_what_it_cannot_do(lambda_, tau, divergence, message):
    with pytest.raises(ValueError, match=message):
        greedy(np.zeros(2), np.log([0.5, 0.5]), lambda_, tau, divergence)


def test_shapes_that_would_broadcast_are_refused():
    theta, row = np.zeros((3, 3)), np.zeros((1, 3))
    with pytest.raises(AssertionError):
        greedy(theta, row, 0.1, 0.1)
    with pytest.raises(AssertionError):
        loss_of(theta, row)
    with pytest.raises(AssertionError):
        loss_of(theta, np.zeros((3, 1), np.int32))


def test_names():
    assert regularizers.named("kl") is regularizers.kl
    assert regularizers.named("alpha-1.5") is regularizers.alpha(1.5)
    assert regularizers.named("alpha-3") is regularizers.alpha(3.0)
    for wrong in ("kll", "alpha-", "alpha-x"):
        with pytest.raises(ValueError, match=f"unknown divergence '{wrong}'"):
            regularizers.named(wrong)
    for wrong in (1.0, 0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="alpha must be > 0"):
            regularizers.alpha(wrong)


@pytest.mark.parametrize("name", ["kl", "alpha-1.5", "hellinger", "jensen_shannon"])
def test_the_loss_of_a_distribution_over_a_vocabulary_keeps_its_digits(name):
    theta = np.random.default_rng(0).normal(size=200_000).astype(np.float32) * 3
    y = np.asarray(softargmax(theta.astype(np.float64), ALL[name]))
    got = loss_of(theta, y.astype(np.float32), ALL[name])
    assert abs(float(got)) < 2e-4  # 0 in exact arithmetic; f(0) times V is some 1e5.


@every
def test_an_excluded_class_has_no_gradient(name):
    theta = np.array([1.0, 0.5, -np.inf])

    @jax.jit
    @jax.grad
    def slope(shift: jax.Array) -> jax.Array:
        return ALL[name](jax.nn.log_softmax(theta), jax.nn.log_softmax(theta + shift))

    if math.isfinite(ALL[name].at_zero):
        assert np.all(np.isfinite(slope(np.array([0.1, 0.0, 0.0]))))
