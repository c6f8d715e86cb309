r"""Final answers of texts, and one form of a number: for rewards, for scores, and for votes.

A text states its answer by the last \boxed{...}; without one, by what follows the last "answer is",
"answer:" or "####" (of GSM8K); without either, a number is the text's last, and a text the whole.

A number is exact, a fraction of integers. It may have a sign, thousands separators, decimals, an
exponent, and be a fraction (3/4, 1 3/4, \frac{3}{4}). Currency, percent and trailing units are left
out, as in the normalisers of Hendrycks et al. 2021 (https://arxiv.org/abs/2103.03874) and Lewkowycz
et al. 2022 (https://arxiv.org/abs/2206.14858): 50% is 50, not 1/2, since a question and its
reference have one unit. The point is the decimal mark, digits are those of ASCII.
"""

import fractions
import re
from collections.abc import Callable
from typing import Literal

Kind = Literal["number", "text"]  # Of answers, by which they are compared.

DIGITS = 400  # Most digits of a number, and the largest exponent: longer ones are not read.

_MARKER = re.compile(r"\banswer\s*(?:is\b\s*:?|:|=)|####", re.I)
_BOX = "\\boxed{"
# Rewritten before a number is looked for: marks of LaTeX, Unicode's minus sign, spaces in numbers.
_PLAIN = (
    (re.compile(r"\\[!,;]|(?<=[0-9])[\u00a0\u2009\u202f](?=[0-9]{3})"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\u2212"), "-"),
    # A sign keeps its place, and a name before the mark stays apart: US$5.
    (re.compile(r"([+-]?)\\?[$€£¥₹]"), r" \1"),
)
_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)"
_DECIMAL = rf"(?:{_INTEGER}(?:\.[0-9]++)?|(?<!\.)\.[0-9]++)(?:[eE][+-]?[0-9]++)?"
_PART = r"(?:\{{\s*+(?P<{0}>{1})\s*+\}}|(?P<{0}_digit>[0-9]))"
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])(?P<sign>[+-]))?"
    # Not inside of a name (x2), a power (cm^2) or a version (1.2.3).
    r"(?<!\w)(?<!\^)(?<!\^\{)(?<![0-9]\.)"
    r"(?:"
    rf"(?:(?P<whole>{_INTEGER})\s*+)?+\\[dt]?frac\s*+"
    rf"{_PART.format('top', _DECIMAL)}\s*+{_PART.format('bottom', _DECIMAL)}"
    rf"|(?P<units>[0-9]++)[ ](?P<over>[0-9]++)/(?P<under>[0-9]++)(?![0-9.]*[0-9])"
    rf"|(?P<number>{_DECIMAL})(?:\s?/\s?(?P<divisor>{_DECIMAL}))?"
    r")"
)


def number(text: str) -> fractions.Fraction | None:
    """Returns the number that a text gives as its answer; None without one.

    A box without a number is an answer that is no number. After "answer is" it is the first number,
    elsewhere the last. The time is linear in the text's length.
    """
    box = _boxed(text)
    if box is not None:
        return _last(box)
    _, *stated = _MARKER.split(text)
    for part in reversed(stated):
        for value in _values(_line(part)):
            return value
    return _last(text)


def wording(text: str) -> str | None:
    """Returns the answer of a text as words: in lower case, white space folded, no last full stop.

    It is the box, the rest of the line after the last "answer is", or all of the text; None if
    nothing is left.
    """
    answer = _boxed(text)
    if answer is None:
        before, *stated = _MARKER.split(text)
        answer = _line(stated[-1]) if stated else before
    return " ".join(answer.split()).removesuffix(".").rstrip().casefold() or None


# By kind: text -> its answer, in the form in which equal answers are equal; None without one.
READERS: dict[Kind, Callable[[str], fractions.Fraction | str | None]] = {
    "number": number,
    "text": wording,
}


def same_number(generated: str, target: str) -> float:
    """Returns 1 if both texts give the same number as their answer, else 0; exact."""
    value = number(generated)
    return float(value is not None and value == number(target))


def _boxed(text: str) -> str | None:
    """Returns the content of the last box; None without one. A box that is cut ends with it."""
    begin = text.rfind(_BOX)
    if begin < 0:
        return None
    begin += len(_BOX)
    depth = 1
    for place in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[begin:place]
    return text[begin:]


def _line(text: str) -> str:
    """Returns the first line that is not empty."""
    return text.lstrip().partition("\n")[0]


def _last(text: str) -> fractions.Fraction | None:
    return next(iter(_values(text)[-1:]), None)


def _values(text: str) -> list[fractions.Fraction]:
    """Returns the numbers of a text, in their order."""
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    values = map(_value, _NUMBER.finditer(text))
    return [value for value in values if value is not None]


def _value(match: re.Match[str]) -> fractions.Fraction | None:
    """Returns the number of a match; None if it divides by 0 or is too long to be read."""
    part = match.groupdict()
    whole = _decimal(part["whole"] or part["units"] or "0")
    top = _decimal(part["top"] or part["top_digit"] or part["over"] or part["number"])
    under = part["bottom"] or part["bottom_digit"] or part["under"] or part["divisor"]
    bottom = _decimal(under or "1")
    if whole is None or top is None or not bottom:
        return None
    return (whole + top / bottom) * (-1 if part["sign"] == "-" else 1)


def _decimal(text: str) -> fractions.Fraction | None:
    digits, _, exponent = text.replace(",", "").lower().partition("e")
    # Python refuses long integers, and a large exponent would fill the memory.
    if len(digits) > DIGITS or len(exponent) > 5 or abs(int(exponent or 0)) > DIGITS:
        return None
    return fractions.Fraction(f"0{digits}e{exponent or 0}")
