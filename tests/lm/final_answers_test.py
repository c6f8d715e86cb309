"""Tests of lm/final_answers.py."""

import fractions

import hypothesis
import hypothesis.strategies as st
import pytest

from kullback.lm import final_answers

TEXTS = {
    # Signs; a hyphen behind a number or a name is none.
    "42": 42,
    "-7": -7,
    "+7": 7,
    "2\u22123=\u22121": -1,
    "12-7": 7,
    "so x-2": 2,
    "f(x)-3": 3,
    # Thousands separators, which stand between groups of three.
    "1,234,567": 1_234_567,
    "1{,}000": 1_000,
    "10,\\!000": 10_000,
    "1\u202f000": 1_000,
    "12,34": 34,
    "1,2345": 2345,
    # Decimals and exponents.
    "3.50": "7/2",
    ".5": "1/2",
    "-.25": "-1/4",
    "it is 42.": 42,
    "well...5": 5,
    "1.5e-3": "3/2000",
    "1E3": 1_000,
    "007": 7,
    # Fractions.
    "3/4": "3/4",
    "-1/2": "-1/2",
    "6 / 3": 2,
    "1 3/4": "7/4",
    "\\frac{3}{4}": "3/4",
    "-\\dfrac{1}{-2} and \\tfrac12": "1/2",
    "2\\frac{1}{3}": "7/3",
    "1/0 of 5/0": None,
    "0.5/2": "1/4",
    # Currency, percent, units.
    "$5": 5,
    "-$5": -5,
    "US$1,000.50": "2001/2",
    "\\$18": 18,
    "$\\frac{1}{2}$": "1/2",
    "50%": 50,
    "50\\%": 50,
    "12 cm^2": 12,
    "12 cm^{2}": 12,
    "5kg": 5,
    "x_2 is none": None,
    # Where the answer stands.
    "12+7=19": 19,
    "first 3, then 4": 4,
    "The answer is 6. I took 3 steps": 6,
    "answer is 1; no, the answer is: -2 in 3 steps": -2,
    "Answer: 9 of 10": 9,
    "12*6=72\n#### 72": 72,
    "answer is:\n\n 4": 4,
    "The answer is clear: none.\nOr 8": 8,
    "\\boxed{5} is the answer, in 3 steps": 5,
    "\\boxed{1} or \\boxed{12 \\text{ cm}^2}": 12,
    "\\boxed{\\frac{1}{2}} after 4": "1/2",
    "\\boxed{x+y} after 4": None,  # An answer that is no number.
    "\\boxed{7": 7,
    "": None,
    "no number": None,
}


@pytest.mark.parametrize("text", TEXTS)
def test_golden_numbers(text: str):
    expected = TEXTS[text]
    assert final_answers.number(text) == (
        None if expected is None else fractions.Fraction(expected)
    )


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(
    top=st.integers(-(10**9), 10**9), bottom=st.integers(1, 10**6), places=st.integers(0, 6)
)
def test_each_way_to_write_a_number_is_that_number(top: int, bottom: int, places: int):
    exact, decimal = fractions.Fraction(top, bottom), fractions.Fraction(top, 10**places)
    assert final_answers.number(f"{top}/{bottom}") == exact
    sign = "-" if top < 0 else ""
    assert final_answers.number(f"{sign}\\frac{{{abs(top)}}}{{{bottom}}}") == exact
    shifted = f"{abs(top):0{places + 1}d}"
    whole, part = shifted[: len(shifted) - places], shifted[len(shifted) - places :]
    for text in (
        f"{sign}{whole}.{part}0 m",
        f"is {sign}${int(whole):,}.{part}0",
        f"{top}e-{places}",
    ):
        assert final_answers.number(text) == decimal, text


def test_comparison_is_exact_and_of_one_normaliser():
    same = final_answers.same_number
    for text in ("42", "42.0", " $42", "42 apples", "so 84/2", "\\boxed{42}", "the answer is 42."):
        assert same(text, "#### 42") == 1.0, text
    assert same("0.1", "1/10") == 1.0
    assert same("0.3333333333333333", "1/3") == 0.0
    assert same("9007199254740993", "9007199254740992") == 0.0  # Equal as floats.
    assert same("none", "none") == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "1e999999999",  # Would fill the memory.
        "1e-999999999",
        "9" * 5_000,  # Python refuses so long an integer.
        "0." + "1" * 5_000,
    ],
)
def test_numbers_that_are_too_large_are_not_read(text: str):
    assert final_answers.number(text) is None
    assert final_answers.number(f"{text} or 7") == 7


@pytest.mark.parametrize(
    "piece", [" ", "1", "1,", "1 ", "1/", "answer: ", "\\frac", "\\boxed{", "{", "-", "$", "\n"]
)
def test_long_texts_take_a_time_that_is_linear(piece: str):
    # Quadratic time would take hours.
    final_answers.number(piece * 100_000)
    final_answers.wording(piece * 100_000)


def test_golden_wordings():
    wording = final_answers.wording
    assert wording("  Paris.\n") == wording("The answer is  PARIS") == wording("\\boxed{paris}")
    assert wording("Think.\nAnswer: New\tYork\nBye") == "new york"
    assert wording("a  b\nc") == "a b c"
    assert wording(" .") is None and wording("\\boxed{}") is None
