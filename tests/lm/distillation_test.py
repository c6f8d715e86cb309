"""Tests of lm/distillation.py."""

import functools
import math
import pathlib
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kullback.core import regularizers
from kullback.lm import distillation

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "trl_gkd.npz"
NAMES = [
    *("kl", "reverse_kl", "total_variation", "jsd-0.1", "jsd-0.5", "jsd-0.9"),
    *("fenchel_young-kl", "fenchel_young-alpha-1.5", "fenchel_young-chi_squared"),
]
DIVERGENCES = {
    "kl": regularizers.kl,
    "reverse_kl": regularizers.reverse_kl,
    "total_variation": distillation.total_variation,
    **{f"jsd-{b}": distillation.generalised_jsd(b) for b in (0.1, 0.5, 0.9)},
}
TEACHER, STUDENT = np.log([0.5, 0.3, 0.2]), np.log([0.2, 0.2, 0.6])
# D(TEACHER, STUDENT), by other code when the specification was written; total variation by hand.
VECTORS = {
    "kl": 0.36006244,
    "reverse_kl": 0.39481621,
    "jsd-0.1": 0.03225107,
    "jsd-0.5": 0.09056585,
    "jsd-0.9": 0.03463734,
    "total_variation": 0.4,
}
every_loss = pytest.mark.parametrize("name", NAMES)
every_divergence = pytest.mark.parametrize("name", list(DIVERGENCES))
logits = hnp.arrays(np.float64, (5,), elements=st.floats(-6, 6, allow_subnormal=False))
examples = hypothesis.settings(deadline=None)


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@functools.cache
def of_all_names(temperature: float):
    """Returns (student, teacher) logits [..., V] -> losses and their gradient, by name.

    One program of all names compiles several times faster than one of each.
    """

    def value_and_gradient(name, student, teacher):
        loss = distillation.named(name, temperature)
        value, pull_back = jax.vjp(lambda student: loss(student, teacher), student)
        return value, pull_back(jnp.ones_like(value))[0]

    return jax.jit(lambda *logits: {name: value_and_gradient(name, *logits) for name in NAMES})


def compiled(name: str, temperature: float = 1.0):
    """Returns (student, teacher) logits [..., V] -> losses and their gradient."""
    return lambda *logits: of_all_names(temperature)(*logits)[name]


@jax.jit
def gradients_by_the_teacher(student, teacher):
    losses = {name: distillation.named(name) for name in NAMES}
    return {name: jax.grad(loss, argnums=1)(student, teacher) for name, loss in losses.items()}


def random_logits(seed: int, *shape: int) -> np.ndarray:
    return 2 * np.random.default_rng(seed).normal(size=shape)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - np.logaddexp.reduce(x, axis=-1, keepdims=True))


# Divergences.


@every_divergence
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(lambda f: f, id="eager", marks=pytest.mark.slow),
        pytest.param(jax.jit, id="jit"),
        pytest.param(lambda f: jax.jit(jax.vmap(f)), id="vmap"),
    ],
)
def test_reference_values(name: str, variant):
    got = variant(DIVERGENCES[name])(*np.stack([[TEACHER, TEACHER], [STUDENT, STUDENT]]))
    np.testing.assert_allclose(got, [VECTORS[name]] * 2, atol=1e-8)


@every_divergence
@examples
@hypothesis.given(student=logits, teacher=logits)
def test_oracle(name: str, student: np.ndarray, teacher: np.ndarray):
    p, q = softmax(teacher), softmax(student)
    beta = float(name[4:]) if name.startswith("jsd") else 0.5
    m = beta * p + (1 - beta) * q
    expected = {
        "kl": np.sum(p * np.log(p / q)),
        "reverse_kl": np.sum(q * np.log(q / p)),
        "total_variation": np.sum(abs(p - q)) / 2,
    }.get(name, beta * np.sum(p * np.log(p / m)) + (1 - beta) * np.sum(q * np.log(q / m)))
    np.testing.assert_allclose(compiled(name)(student, teacher)[0], expected, atol=1e-12)


@examples
@hypothesis.given(student=logits, teacher=logits, index=st.integers(0, 2))
def test_generalised_jsd_is_bounded_and_mirrored(student, teacher, index):
    beta = (0.1, 0.5, 0.9)[index]
    names = [f"jsd-{b}" for b in (beta, round(1 - beta, 1))]
    value = compiled(names[0])(student, teacher)[0]
    mirrored = compiled(names[1])(teacher, student)[0]
    np.testing.assert_allclose(value, mirrored, atol=1e-14)
    distance = np.max(abs(softmax(student) - softmax(teacher)))
    assert value >= -1e-15 and (value > 1e-7 * distance**2 or distance < 1e-6)
    assert value <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)


def test_jsd_at_a_half_is_jensen_shannon():
    log_p, log_q = np.log(softmax(random_logits(0, 2, 7, 5)))
    expected = jax.jit(regularizers.jensen_shannon)(log_p, log_q)
    got = jax.jit(distillation.generalised_jsd(0.5))(log_p, log_q)
    np.testing.assert_allclose(got, expected, 1e-12)


def test_limits_of_jsd_are_the_two_kls():
    for beta, name in ((1e-4, "kl"), (1 - 1e-4, "reverse_kl")):
        value = jax.jit(distillation.generalised_jsd(beta))(TEACHER, STUDENT)
        np.testing.assert_allclose(float(value) / 1e-4, VECTORS[name], rtol=2e-4)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@every_divergence
def test_gradients(name: str, temperature: float):
    student, teacher = random_logits(1, 2, 5)  # The formulas hold for one token.
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    if name == "kl":
        expected = q - p
    elif name == "reverse_kl":
        expected = q * (np.log(q / p) - np.sum(q * np.log(q / p)))
    elif name == "total_variation":
        sign = np.sign(q - p)
        expected = q * (sign - np.sum(q * sign)) / 2
    else:
        beta = float(name[4:])
        ratio = np.log(q / (beta * p + (1 - beta) * q))
        expected = (1 - beta) * q * (ratio - np.sum(q * ratio))
    got = compiled(name, temperature)(student, teacher)[1]
    np.testing.assert_allclose(got, expected / temperature, atol=1e-12)
    np.testing.assert_allclose(np.sum(got), 0, atol=1e-12)


@pytest.mark.parametrize("beta", [0.1, pytest.param(0.5, marks=pytest.mark.slow)])
def test_generalised_jsd_has_derivatives_by_both(beta: float):
    log_p, log_q = np.log(softmax(random_logits(11, 2, 3, 5)))
    divergence = jax.jit(distillation.generalised_jsd(beta))
    jax.test_util.check_grads(divergence, (log_p, log_q), order=2)


@every_divergence
def test_tokens_of_no_probability_count_for_nothing(name: str):
    student, teacher = random_logits(2, 2, 5)
    expected, gradient = compiled(name)(student, teacher)
    hidden = np.full(3, -np.inf)  # Of both: as if the tokens did not exist.
    got, hidden_gradient = compiled(name)(np.r_[student, hidden], np.r_[teacher, hidden])
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(hidden_gradient, np.r_[gradient, 0, 0, 0], atol=1e-12)


@pytest.mark.parametrize("name", ["total_variation", "jsd-0.1", "jsd-0.5", "jsd-0.9"])
def test_disjoint_supports_reach_the_bound(name: str):
    none = -np.inf  # The last token is in neither support.
    student, teacher = [0.3, 1.0, none, none, none], [none, none, 0.2, -1.0, none]
    value, gradient = compiled(name)(np.array(student), np.array(teacher))
    beta = float(name[4:]) if name.startswith("jsd") else 0.5
    bound = -beta * math.log(beta) - (1 - beta) * math.log(1 - beta)
    np.testing.assert_allclose(value, 1.0 if name == "total_variation" else bound, rtol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-12)


@pytest.mark.parametrize("name", ["kl", "total_variation", "jsd-0.5", "fenchel_young-kl"])
def test_a_teacher_may_rule_tokens_out(name: str):
    student, teacher = random_logits(3, 5), np.array([0.5, -np.inf, 1.0, -np.inf, 0.0])
    value, gradient = compiled(name)(student, teacher)
    nearly = compiled(name)(student, np.where(np.isinf(teacher), -60.0, teacher))
    np.testing.assert_allclose(value, nearly[0], atol=1e-12)
    np.testing.assert_allclose(gradient, nearly[1], atol=1e-12)


# Losses of logits.


def test_a_label_as_teacher_gives_cross_entropy():
    student, label = random_logits(4, 5), 3
    teacher = np.where(np.arange(5) == label, 0.0, -np.inf)
    for name in ("kl", "fenchel_young-kl"):
        value, gradient = compiled(name)(student, teacher)
        np.testing.assert_allclose(value, -np.log(softmax(student))[label], rtol=1e-12)
        np.testing.assert_allclose(gradient, softmax(student) - np.exp(teacher), atol=1e-12)


@every_loss
def test_constants_of_logits_change_nothing(name: str):
    student, teacher = random_logits(5, 2, 5)
    for got, expected in zip(
        compiled(name)(student + 3, teacher - 7), compiled(name)(student, teacher), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-12)


@every_loss
def test_two_teachers_give_two_losses_and_gradients(name: str):
    student, teacher, other = random_logits(6, 3, 6, 9)
    for got, different in zip(
        compiled(name)(student, teacher), compiled(name)(student, other), strict=True
    ):
        assert np.max(abs(got - different)) > 1e-3


@every_loss
def test_a_teacher_gets_no_gradient(name: str):
    assert not np.any(gradients_by_the_teacher(*random_logits(7, 2, 5))[name])


@every_loss
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_precision(name: str, dtype):
    student, teacher = jnp.asarray(random_logits(8, 2, 6, 9), dtype)
    value, _ = compiled(name)(student, teacher)
    assert value.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    expected, _ = compiled(name)(np.float64(student), np.float64(teacher))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


@every_divergence
def test_self_distillation_is_at_rest(name: str):
    same = np.float32(random_logits(9, 6, 9))  # The shape of others, whose program this is.
    value, gradient = compiled(name)(same, same)
    assert value.dtype == gradient.dtype == np.float32
    np.testing.assert_allclose(value, 0, atol=1e-7)
    if name != "total_variation":  # It has a kink there: rounding decides the side.
        np.testing.assert_allclose(gradient, 0, atol=1e-8)


def test_fenchel_young_loss():
    student, teacher = random_logits(10, 2, 5)
    plain = compiled("kl")(student, teacher)
    for got, expected in zip(compiled("fenchel_young-kl")(student, teacher), plain, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-12)
    sparse = regularizers.alpha(1.5)
    value, gradient = compiled("fenchel_young-alpha-1.5")(student, teacher)
    expected = jax.jit(lambda x: regularizers.softargmax(x, sparse))(student) - softmax(teacher)
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    assert value > 0
    # A teacher with the student's operator: equal logits are the optimum.
    loss, scaled = (
        jax.jit(distillation.fenchel_young_loss(sparse, temperature, teacher_divergence=sparse))
        for temperature in (2.0, 1.0)
    )
    np.testing.assert_allclose(loss(student, student), 0, atol=1e-12)
    value = loss(student, teacher)
    np.testing.assert_allclose(value, scaled(student / 2, teacher / 2), rtol=1e-12)


@pytest.mark.parametrize(
    "name, message",
    [
        ("forward", "kl"),
        ("jsd-half", "number"),
        ("jsd-0", "limit of JSD_beta / beta at 0"),
        ("jsd-1", "reverse_kl of JSD_beta"),
        ("fenchel_young-nothing", "hellinger"),
    ],
)
def test_names_that_are_none(name: str, message: str):
    with pytest.raises(ValueError, match=message):
        distillation.named(name)


def test_temperatures_are_positive():
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        distillation.named("kl", 0.0)
    with pytest.raises(ValueError, match="temperature must be > 0, got -1"):
        distillation.fenchel_young_loss(regularizers.kl, -1.0)


def test_equals_trl():
    with np.load(FIXTURE) as file:
        trl = dict(file)
    is_answer = trl["labels"] != -100
    losses = [
        distillation.named({0: "kl", 1: "reverse_kl"}.get(beta, f"jsd-{beta}"), temperature)
        for beta, temperature in trl["settings"].tolist()
    ]

    def mean_loss(student, teacher, loss):
        weights = jnp.ones(len(is_answer), student.dtype)
        return distillation.sequence_loss(loss(student, teacher), is_answer, weights, "token")[0]

    @jax.jit
    def evaluate(student, teacher):
        return [jax.value_and_grad(mean_loss)(student, teacher, loss) for loss in losses]

    results = evaluate(np.float64(trl["student"]), np.float64(trl["teacher"]))
    for row, (value, gradient) in enumerate(results):
        np.testing.assert_allclose(value, trl["loss"][row], rtol=1e-12)
        np.testing.assert_allclose(gradient, trl["gradient"][row], atol=1e-12)
    for row, (value, _) in enumerate(evaluate(trl["student"], trl["teacher"])):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, trl["float32_loss"][row], rtol=1e-6)


# Sequences.


def test_sequence_loss():
    per_token = np.array([[9.0, 1.0, 2.0, 3.0], [np.nan, 4.0, np.inf, 8.0], [5.0, 5.0, 5.0, 5.0]])
    is_answer = np.array([[0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
    weights = np.array([1.0, 0.5, 2.0])
    sequence_loss: Any = jax.jit(distillation.sequence_loss, static_argnums=3)
    # Means of the sequences: 2, 4 and none.
    loss, means = sequence_loss(per_token, is_answer, weights, "sequence")
    np.testing.assert_allclose(means, [2, 4, 0])
    np.testing.assert_allclose(loss, (2 + 0.5 * 4 + 0) / 3)
    loss, means = sequence_loss(per_token, is_answer, weights, "token")
    np.testing.assert_allclose(means, [2, 4, 0])
    np.testing.assert_allclose(loss, (6 + 0.5 * 4) / 4)
    none = np.zeros_like(is_answer)
    assert sequence_loss(per_token, none, weights, "token")[0] == 0
    with pytest.raises(ValueError, match="sequence, token"):
        sequence_loss(per_token, is_answer, weights, "mean")


@pytest.mark.slow
@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_micro_batches_add_up(reduction: distillation.Reduction):
    rng = np.random.default_rng(11)
    per_token, weights = jnp.asarray(rng.normal(size=(8, 6))), jnp.asarray(rng.uniform(size=8))
    is_answer = jnp.asarray(np.arange(6) < rng.integers(0, 7, (8, 1)))
    expected, means = distillation.sequence_loss(per_token, is_answer, weights, reduction)
    total = distillation.loss_total(is_answer, reduction)
    parts = [
        distillation.sequence_loss(per_token[s], is_answer[s], weights[s], reduction, total)
        for s in (slice(0, 1), slice(1, 4), slice(4, 8))
    ]
    np.testing.assert_allclose(sum(part[0] for part in parts), expected, rtol=1e-12)
    np.testing.assert_allclose(np.concatenate([part[1] for part in parts]), means)


@pytest.mark.parametrize("reduction", ["sequence", "token"])
def test_what_is_masked_or_padded_does_not_matter(reduction: distillation.Reduction):
    student, teacher, junk = random_logits(12, 3, 2, 4, 5)
    is_answer = np.array([[0, 1, 1, 0], [1, 0, 0, 0]], bool)

    def loss(student, teacher, is_answer):
        per_token = distillation.named("jsd-0.5")(student, teacher)
        return distillation.sequence_loss(per_token, is_answer, jnp.ones(2), reduction)[0]

    evaluate = jax.jit(jax.value_and_grad(loss))
    value, gradient = evaluate(student, teacher, is_answer)
    assert np.all(np.any(gradient != 0, -1) == is_answer)
    # Huge logits, so that a leak would show.
    changed = [np.where(is_answer[..., None], x, 1e6 * junk) for x in (student, teacher)]
    padded = [np.concatenate([x, junk[:, :2]], 1) for x in (student, teacher)]
    wide = np.pad(is_answer, [(0, 0), (0, 2)])
    for arguments in ((*changed, is_answer), (*padded, wide)):
        other, other_gradient = evaluate(*arguments)
        np.testing.assert_allclose(other, value, rtol=1e-12)
        np.testing.assert_allclose(other_gradient[:, :4], gradient, atol=1e-12)


def test_align():
    tokens = np.array([[7, 5, 6, 2]])
    is_answer = np.array([[False, False, True, True]])
    # A model that knows the next token: what stands at t-1 says it.
    outputs = {"logits": np.eye(8)[[[5, 6, 2, 0]]], "value": tokens}
    align: Any = jax.jit(distillation.align)
    outputs, targets, is_target = align(outputs, tokens, is_answer)
    np.testing.assert_array_equal(np.argmax(outputs["logits"], -1), targets)
    np.testing.assert_array_equal(targets, [[5, 6, 2]])
    np.testing.assert_array_equal(outputs["value"], [[7, 5, 6]])
    np.testing.assert_array_equal(is_target, [[False, True, True]])
    with pytest.raises(AssertionError):
        align(np.zeros((1, 3, 8)), tokens, is_answer)


# Compatibility.


def test_check_compatible():
    student = distillation.TokenizerInfo(262_144, "abc", (1, 106), "t")
    distillation.check_compatible(student, student._replace(eos_ids=(106, 1)))
    for field, value, message in [
        ("vocab_size", 262_145, "vocab_size .*: 262144 of the student, 262145 of the teacher"),
        ("fingerprint", "abd", "fingerprint .*id of at least one token.*'abc'.*'abd'"),
        ("eos_ids", (1,), r"eos_ids .*ends a sequence.*\(1, 106\).*\(1,\)"),
        ("template_hash", "", "template_hash .*chat template"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            distillation.check_compatible(student, student._replace(**{field: value}))
        assert str(error.value).count("of the teacher") == 1
    with pytest.raises(ValueError, match=r"vocab_size.*; fingerprint.*; template_hash"):
        distillation.check_compatible(student, distillation.TokenizerInfo(3, "d", (106, 1), "u"))
