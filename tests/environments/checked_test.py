"""Tests of environments/checked.py."""

import gymnasium
import numpy as np
import pytest

from kullback import environments
from kullback.environments import gym, toy


def cartpole() -> gymnasium.Env:
    return gymnasium.make("CartPole-v1")


def test_what_fits_is_handed_through():
    make = environments.checked(lambda rows: gym.from_gymnasium(cartpole, rows))
    first, second = make(2), make(5)
    assert (first.num_envs, second.num_envs) == (2, 5)
    compiled = environments.checked(lambda rows: toy.chain(rows))
    assert compiled(3).num_envs == 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda rows: gym.from_gymnasium(cartpole), "for 5 rows has 1; make as many as are asked"),
        (lambda rows: toy.chain(4), "for 5 rows has 4; make as many as are asked for"),
        (lambda rows: cartpole(), "must be a types.Environment or a types.HostEnvironment, got <T"),
        (lambda rows: None, "must be a types.Environment or a types.HostEnvironment, got None"),
    ],
)
def test_what_is_not_what_was_asked_for_is_refused(make, message):
    with pytest.raises(ValueError) as error:
        environments.checked(make)(5)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_object_is_no_function():
    with pytest.raises(ValueError, match="a name or a function of the number of rows, got <"):
        environments.checked(gym.from_gymnasium(cartpole))  # pyright: ignore # As users may.


def test_evaluation_has_an_object_of_its_own():
    shared = gym.from_gymnasium(cartpole, 2)
    make = environments.checked(lambda rows: shared)
    make(2)
    with pytest.raises(ValueError, match="is an object that it returned before"):
        make(2)
    inner = cartpole()
    make = environments.checked(lambda rows: gym.from_gymnasium(lambda: inner, rows))
    first = make(1)
    with pytest.raises(ValueError, match="environment CartPole-v1 object is in use already"):
        make(1)
    assert first.num_envs == 1


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (lambda rows: toy.chain(rows, length=9), r"shape \(9,\), not shape \(8,\)"),
        (lambda rows: gym.from_gymnasium(cartpole, rows), "one is compiled and one is not"),
    ],
)
def test_all_have_one_spec(second, message):
    makers = iter([toy.chain, second])
    make = environments.checked(lambda rows: next(makers)(rows))
    make(2)
    with pytest.raises(ValueError, match=f"for 3 rows differs from the first: {message}"):
        make(3)


def test_an_environment_without_weak_references_is_recognised():
    class Slots:
        __slots__ = ("environment",)
        num_envs, spec = 1, toy.chain(1).spec
        reset = send = recv = render = close = lambda self, *arguments: np.zeros(1)

    one = Slots()
    make = environments.checked(lambda rows: one)
    make(1)
    with pytest.raises(ValueError, match="is an object that it returned before"):
        make(1)
