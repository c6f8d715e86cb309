"""Tests of lm/entailment/corruptions.py: the named thing is made wrong, and nothing else."""

import re

import numpy as np
import pytest

from kullback.lm.entailment import corruptions

TEXT = (
    "However , we show that the 2 parsers ( see Section 3 ) improve accuracy by 4.5 points , and "
    "significantly outperform the baseline , which is not always faster ."
)
POOL = corruptions.pool_of([TEXT, "The systems of Smith reach 88.1 and 7 on WSJ , mostly slowly ."])
SEEDS = range(40)


def corrupted(text: str, kind: str, pool: corruptions.Pool = POOL) -> set[str]:
    """Returns the different corruptions of a text over some seeds."""
    candidates = {corruptions.corrupt(text, kind, pool, np.random.default_rng(n)) for n in SEEDS}
    assert None not in candidates
    return {text for text in candidates if text is not None}


def changes(old: str, new: str) -> list[tuple[str, str]]:
    """Returns the pairs of different words at equal places of two texts of one length."""
    pairs = zip(corruptions.split_words(old), corruptions.split_words(new), strict=True)
    return [pair for pair in pairs if pair[0] != pair[1]]


def test_words_and_coverage():
    said = "BERT-base has 3.5 points."
    assert corruptions.split_words(said) == ["bert-base", "has", "3.5", "points"]
    # Of 4 words 3 are known; of its 3 pairs of neighbours "has 3.5" alone.
    assert corruptions.coverage("points : bert-base , it has 3.5", said) == (1.0, 1 / 3)
    assert corruptions.coverage("it has 3.5 points", said) == (0.75, 2 / 3)
    assert corruptions.coverage("anything", "") == (0.0, 0.0)


def test_a_pool_has_the_numbers_and_words_of_a_document_by_ending():
    pool = corruptions.pool_of(["Parsing 12 trees ( of 3 kinds ) quickly , on WSJ ."])
    assert pool.numbers == ("12", "3")
    # A first capital may be the sentence's; what stands in an aside is left out.
    assert pool.by_ending == {"s": ("trees",), "ly": ("quickly",), "name": ("WSJ",)}


@pytest.mark.parametrize("kind", corruptions.CORRUPTIONS)
def test_each_kind_changes_the_text_and_a_seed_repeats(kind: str):
    for seed in SEEDS:
        one, two = (
            corruptions.corrupt(TEXT, kind, POOL, np.random.default_rng(seed)) for _ in range(2)
        )
        assert one is not None and one == two
        assert corruptions.split_words(one) != corruptions.split_words(TEXT)


def test_one_number_becomes_another():
    texts = corrupted(TEXT, "number")
    for text in texts:
        ((old, new),) = changes(TEXT, text)
        assert float(old) != float(new) and old in ("2", "3", "4.5"), (old, new)
    assert {changes(TEXT, text)[0][0] for text in texts} == {"2", "3", "4.5"}
    assert any(changes(TEXT, text)[0][1] in ("88.1", "7") for text in texts)  # Of the document.
    for text in corrupted("We have two parts , the first is new .", "number"):
        ((old, new),) = changes("We have two parts , the first is new .", text)
        rows = [row for row in (corruptions.COUNTS, corruptions.ORDINALS) if old in row]
        assert rows and new in rows[0]


def test_a_change_that_leaves_the_meaning_is_no_corruption():
    pool = corruptions.pool_of(["It is 5 , 5.00 or 005 ."])
    for text in corrupted("The score is 5.0 here .", "number", pool):
        ((_, new),) = changes("The score is 5.0 here .", text)
        assert float(new) != 5
    # Methods and approaches are one thing: there is no other order.
    text = "The methods need other approaches ."
    assert {corruptions.corrupt(text, "order", pool, np.random.default_rng(n)) for n in SEEDS} == {
        None
    }


def test_numbers_inside_of_names_are_no_numbers():
    assert (
        corruptions.corrupt("F1 of GPT-2 and v1.2", "number", POOL, np.random.default_rng(0))
        is None
    )


def test_one_word_becomes_its_opposite():
    for text in corrupted(TEXT, "opposite"):
        ((old, new),) = changes(TEXT, text)
        row = next(row for row in corruptions.OPPOSITES.split("|") if old in row.split())
        assert {old, new} == set(row.split())
    assert corrupted("Improved parsers .", "opposite") == {"Degraded parsers ."}


def test_opposites_are_of_one_another_and_never_synonyms():
    rows = [row.split() for row in corruptions.OPPOSITES.split("|")]
    named = [word for row in rows for word in row]
    assert all(len(row) == 2 for row in rows) and len(named) == len(set(named))
    same = [set(row.split()) for row in corruptions.SYNONYMS.split("|")]
    assert not any(set(row) <= synonyms for row in rows for synonyms in same)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is new .", {"It is not new ."}),
        ("It is not new .", {"It is new ."}),
        ("It cannot fail .", {"It can fail ."}),
        ("They can no longer fail .", {"They can fail ."}),
        ("It is and may be .", {"It is not and may be .", "It is and may not be ."}),
        ("Here we train models .", {"Here we do not train models ."}),
    ],
)
def test_a_claim_is_turned_round(text: str, expected: set[str]):
    assert corrupted(text, "negation") == expected


def test_one_term_becomes_another_of_its_kind_from_the_document():
    pool = corruptions.pool_of(["parsers models corpora WSJ ATIS trees quickly methods"])
    text = "the methods beat parsers on WSJ"
    texts = corrupted(text, "term", pool)
    swaps = {pair for one in texts for pair in changes(text, one)}
    assert all(len(changes(text, one)) == 1 for one in texts)
    # Never a synonym ("approaches"), a word that is there, or one of another ending.
    for old, news in {"wsj": {"atis"}, "parsers": {"models", "trees"}}.items():
        assert {new for was, new in swaps if was == old} == news
    others = corruptions.pool_of(["approaches parsers"])
    assert corrupted("the methods", "term", others) == {"the parsers"}


def test_two_words_change_places():
    text = "parsers need models , and graphs or trees ."
    for changed in corrupted(text, "order"):
        assert sorted(corruptions.split_words(changed)) == sorted(corruptions.split_words(text))
        assert len(changes(text, changed)) == 2
    # Nor one with itself.
    assert corrupted("graphs need graphs of trees", "order") == {
        "trees need graphs of graphs",
        "graphs need trees of graphs",
    }
    # What "and" and "or" join would say the same.
    for joined in ("graphs and trees", "graphs , trees", "graphs , or trees"):
        assert corruptions.corrupt(joined, "order", POOL, np.random.default_rng(0)) is None


@pytest.mark.parametrize("kind", corruptions.CORRUPTIONS)
def test_what_has_nothing_of_the_kind_is_left(kind: str):
    assert corruptions.corrupt("So it goes .", kind, POOL, np.random.default_rng(0)) is None


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"kind must be one of .*, got 'spelling'"):
        corruptions.corrupt(TEXT, "spelling", POOL, np.random.default_rng(0))


def test_a_reworded_text_keeps_its_words_or_says_them_by_synonyms():
    same = [set(row.split()) for row in corruptions.SYNONYMS.split("|")]
    same += [{"we", "they"}, {"our", "their"}]
    texts = {corruptions.reword(TEXT, np.random.default_rng(n)) for n in SEEDS}
    assert len(texts) > 5
    for word in ("show", "However"):
        assert any(word not in text for text in texts)
    for text in texts:
        assert text == text.strip() and text[0].isupper()
        whole = re.sub(r" \(.*?\)", "", TEXT) if "Section" not in text else TEXT
        if "However" not in text:
            whole = whole.removeprefix("However , ")
        for old, new in changes(whole, text):
            assert any({old, new} <= synonyms for synonyms in same), (old, new)


def test_an_aside_at_the_beginning_leaves_no_space():
    for seed in SEEDS:
        text = corruptions.reword("( 1 ) it works .", np.random.default_rng(seed))
        assert text in ("It works .", "( 1 ) it works .")


def test_draws_are_of_all_texts():
    rng = np.random.default_rng(0)
    assert {corruptions.draw("abc", rng) for _ in SEEDS} == {"a", "b", "c"}
