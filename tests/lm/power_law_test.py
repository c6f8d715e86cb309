"""Tests of lm/power_law.py."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.lm import power_law

STEPS = np.arange(1, 31) * 40


@hypothesis.settings(deadline=None)
@hypothesis.given(exponent=st.floats(-2, 3), log_scale=st.floats(-9, 9))
def test_of_an_exact_law_the_exponent_comes_back(exponent: float, log_scale: float):
    values = np.exp(log_scale) * STEPS**-exponent
    law = power_law.fit(STEPS.tolist(), values.tolist())
    np.testing.assert_allclose([law.exponent, law.log_scale], [exponent, log_scale], atol=1e-6)
    np.testing.assert_allclose(law.scatter, 0, atol=1e-6)
    np.testing.assert_allclose(law.value(123.0), np.exp(log_scale) * 123.0**-exponent, rtol=1e-6)
    assert power_law.departure(STEPS.tolist(), values.tolist()) is None
    assert power_law.warning(STEPS.tolist(), values.tolist()) is None


def test_golden_excess():
    # ln values 0, 1, 0, 1 at ln steps 0, 1, 2, 3: mean 1.5, spread 5, slope 1/5; about the line
    # .2, .4, .6, .8 residuals are -.2, .6, -.6, .2, so the scatter is sqrt(.8 / 2).
    steps, values = np.exp(np.arange(4.0)), np.exp([0.0, 1.0, 0.0, 1.0])
    law = power_law.fit(steps.tolist(), values.tolist())
    assert (law.mean, law.num_points) == (1.5, 4)
    np.testing.assert_allclose([law.exponent, law.spread], [-0.2, 5.0])
    np.testing.assert_allclose(law.scatter, np.sqrt(0.4))
    # At ln step 6 the line says 1.4, with sqrt(1 + 1/4 + 4.5^2 / 5) times that scatter.
    [excess] = law.excess([float(np.exp(6.0))], [float(np.exp(3.4))])
    np.testing.assert_allclose(excess, 2.0 / np.sqrt(0.4 * (1.25 + 4.05)))


def plateau(noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """Returns values 5 step^-0.5 until step 400, level from there."""
    noises = np.exp(noise * np.random.default_rng(seed).normal(size=len(STEPS)))
    return 5 * np.minimum(STEPS, 400) ** -0.5 * noises


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_plateau_is_flagged_soon(noise: float):
    checkpoint = power_law.departure(STEPS.tolist(), plateau(noise).tolist())
    assert checkpoint is not None and 400 < STEPS[checkpoint] <= 800
    message = power_law.warning(STEPS.tolist(), plateau(noise).tolist())
    assert (
        message is not None
        and f"since step {STEPS[checkpoint]}" in message
        and "step^-0.5" in message
    )


def test_noise_is_not_flagged():
    rng = np.random.default_rng(0)
    runs = 5 * STEPS**-0.5 * np.exp(0.1 * rng.normal(size=(300, len(STEPS))))
    flagged = [power_law.departure(STEPS.tolist(), run.tolist()) is not None for run in runs]
    assert np.mean(flagged) < 0.02


def test_falling_faster_and_two_bad_checkpoints_are_no_departure():
    faster = 5 * STEPS**-0.5 * np.where(STEPS > 600, 0.5, 1.0)
    assert power_law.departure(STEPS.tolist(), faster.tolist()) is None
    two = 5 * STEPS**-0.5
    two[20:22] *= 3
    assert power_law.departure(STEPS.tolist(), two.tolist()) is None
    three = two.copy()
    three[22] *= 3
    assert power_law.departure(STEPS.tolist(), three.tolist()) == 20


def test_too_few_checkpoints_say_nothing():
    rising = [1.0, 0.5, 0.3, 0.2, 9.0, 9.0]
    assert power_law.departure([1, 2, 3, 4, 5, 6], rising) is None
    assert power_law.departure([1, 2, 3, 4, 5, 6, 7], [*rising, 9.0]) == 4


@pytest.mark.parametrize(
    ("steps", "values", "message"),
    [
        ([1, 2], [1.0, 0.5], "need 3 points or more, got 2"),
        ([0, 1, 2], [1.0, 0.5, 0.2], "must be > 0 and increase"),
        ([1, 2, 2], [1.0, 0.5, 0.2], "must be > 0 and increase"),
        ([1, 2, 3], [1.0, -0.5, 0.2], "got -0.5 at step 2"),
        ([1, 2, 3], [1.0, float("nan"), 0.2], "got nan at step 2"),
        ([1, 2, 3], [1.0, 0.5], "must be as many"),
    ],
)
def test_what_has_no_logarithm_is_refused(steps: list[int], values: list[float], message: str):
    with pytest.raises(ValueError) as error:
        power_law.fit(steps, values)
    assert message in str(error.value)


def test_a_law_that_rises_is_not_called_one_that_falls():
    values = 0.5 * STEPS**0.13 * np.where(STEPS > 600, 3.0, 1.0)
    said = power_law.warning(STEPS.tolist(), values.tolist())
    assert said is not None and "rises faster than step^0.13" in said and "falls" not in said


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_distance_that_is_not_finite_is_said_and_no_point_of_the_law(wrong: float):
    values = plateau().tolist()
    others = [np.delete(x, 3).tolist() for x in (STEPS, values)]
    values[3] = wrong
    said = power_law.warning(STEPS[:4].tolist(), values[:4]) or ""
    assert said.startswith(f"at step 160 the distance to the teacher is {wrong:g}")
    assert power_law.warning(STEPS[:5].tolist(), values[:5]) is None
    warning = power_law.warning(STEPS.tolist(), values)
    assert warning is not None and warning == power_law.warning(*others)


@pytest.mark.parametrize("other", [float("nan"), 1.0])
def test_of_a_loss_that_may_be_negative_nothing_is_said(other: float):
    assert power_law.warning([1, 2, 3, 4], [other, 1.0, 0.0, 0.5]) is None
    assert power_law.warning([1, 2, 3, 4], [other, 1.0, -0.1, 0.5]) is None
