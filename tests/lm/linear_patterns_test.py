"""Tests of lm/linear_patterns.py."""

import re
import warnings

import hypothesis
import hypothesis.strategies as st
import pytest

from kullback.lm import linear_patterns

atoms = st.sampled_from(
    ["a", "b", ".", "[ab]", "[^a]", r"\w", r"\s", r"\n", "^", "$", r"\b", r"\B", r"\A", r"\Z", "é"]
)


def grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    counts = st.sampled_from(["*", "+", "?", "*?", "{0}", "{2}", "{1,2}", "{,1}", "{1,}", "{2,}?"])
    group = inner.map(lambda x: f"(?:{x})")
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join),
        inner.map(lambda x: f"({x})"),
        st.tuples(group, counts).map("".join),
    )


patterns = st.recursive(atoms, grow, max_leaves=6)


@hypothesis.settings(deadline=None, max_examples=300)
@hypothesis.given(
    pattern=patterns,
    flags=st.sampled_from(["", "(?i)", "(?s)", "(?m)", "(?ims)"]),
    texts=st.lists(st.text("aAbB \né", max_size=6), min_size=1, max_size=6),
)
def test_matches_are_those_of_re(pattern: str, flags: str, texts: list[str]):
    matches = linear_patterns.whole(flags + pattern)
    for text in texts:
        assert matches(text) == bool(re.fullmatch(flags + pattern, text)), (pattern, text)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (
            r"(?s)<think>.*</think>\n<answer>-?\d+</answer>",
            "<think>a\nb</think>\n<answer>-3</answer>",
        ),
        (r"[]a]{3}", "]a]"),
        (r"[[a]+", "[a"),  # Of which `re` warns.
        (r"x{}", "x{}"),
        (r"(?P<first>a)\x41\u0042\101", "aABA"),
        (r"a{0}b", "b"),
        (r"(((((((((((a+)+)+)+)+)+)+)+)+)+)*)*", "aaa"),
    ],
)
def test_expressions_that_match(pattern: str, text: str):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matches = linear_patterns.whole(pattern)
    assert matches(text) and not matches(text + "!")


@pytest.mark.parametrize(
    "pattern", ["(a+)+b", "(a|a)*b", "(a*)*b", "(.*)(.*)(.*)(.*)(.*)b", "(a?){300}b"]
)
def test_hostile_expressions_end(pattern: str):
    # `re` would take longer than the universe is old for the first three.
    assert not linear_patterns.whole(pattern)("a" * 2_000)
    assert linear_patterns.whole(pattern)("a" * 20 + "b")


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("", "1 to 1,000 characters, got 0"),
        ("a" * 1_001, "1 to 1,000 characters, got 1,001"),
        ("(a", "is no regular expression: missing \\)"),
        ("*", "is no regular expression: nothing to repeat"),
        ("a{2,1}", "is no regular expression"),
        (r"(a)\1", "at character 4: only what is regular"),
        ("(?=a)b", "at character 1: only what is regular"),
        ("a(?<!a)b", "at character 2: only what is regular"),
        ("(?>a)", "only what is regular"),
        ("a*+", "only what is regular"),
        ("(?i:a)", "only what is regular"),
        ("(?x) a", "only what is regular"),
        ("a{3000}", "more than 2,000 places"),
        ("((a{20}){20}){20}", "more than 2,000 places"),
        ("a{1000000000}", "more than 2,000 places"),
        ("(" * 490 + "a" + ")" * 490, "too many groups in groups"),
    ],
)
def test_others_are_refused(pattern: str, said: str):
    with pytest.raises(ValueError, match=said) as error:
        linear_patterns.whole(pattern)
    assert "\n" not in str(error.value)
