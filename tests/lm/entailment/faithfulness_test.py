"""Tests of lm/entailment/faithfulness.py: pairs of made-up papers, and of aclsum's."""

import collections
import math

import numpy as np
import pytest

from kullback.lm.entailment import corruptions, faithfulness

NAMES = ("alpha", "beta", "gamma", "delta")


def paper(name: str) -> faithfulness.Paper:
    """Returns a paper whose every noun has its name in it."""
    sections = tuple(
        tuple(
            f"We can train {n} {name}parsers{part}{n} on 1{n} {name}treebanks{part}{n} and see how "
            f"often {name}models{part}{n} improve ."
            for n in range(5)
        )
        for part in "ab"
    )
    summary = f"They train {name}parsersa0 , which improve {name}modelsa0 ."
    return faithfulness.Paper(name, sections, ((summary, sections[0][:2]),))


PAPERS = [paper(name) for name in NAMES]
PAIRS = faithfulness.pairs(PAPERS, 0, max_words=40, per_paper=60)


def of_kind(kind: str) -> list[faithfulness.Pair]:
    pairs = [pair for pair in PAIRS if pair.kind == kind]
    assert pairs, kind
    return pairs


def test_half_are_entailed_and_every_paper_has_as_many():
    assert len(PAIRS) == 4 * 60
    assert sum(pair.is_entailed for pair in PAIRS) == 2 * 60
    assert collections.Counter(pair.paper for pair in PAIRS) == dict.fromkeys(NAMES, 60)
    entailed = {pair.kind for pair in PAIRS if pair.is_entailed}
    assert entailed == {"sentence", "summary"}
    wrong = {pair.kind for pair in PAIRS if not pair.is_entailed}
    assert wrong == set(faithfulness.KINDS) - entailed
    # In random order: two halves of one class, or of one paper, would be none.
    assert 0.3 < np.mean([pair.is_entailed for pair in PAIRS[:120]]) < 0.7
    assert {pair.paper for pair in PAIRS[:60]} == set(NAMES)


def test_each_entailed_text_has_a_wrong_twin_of_the_same_premise():
    premises = [collections.Counter(p.premise for p in PAIRS if p.is_entailed is c) for c in (0, 1)]
    assert premises[0] == premises[1]


def test_what_is_entailed_is_in_the_premise_or_rests_on_it():
    same = [set(row.split()) for row in corruptions.SYNONYMS.split("|")]
    same += [{"we", "they"}]
    for pair in of_kind("sentence"):
        known = set(corruptions.split_words(pair.premise))
        for word in corruptions.split_words(pair.hypothesis):
            assert any(known & group for group in ({word}, *same) if word in group), word
    for pair in of_kind("summary"):
        paper = PAPERS[NAMES.index(pair.paper)]
        text, behind = paper.summaries[0]
        assert pair.hypothesis in (text, text.replace("They", "We"))
        assert pair.premise in (*behind, " ".join(behind))
    assert len({pair.hypothesis for pair in of_kind("summary")}) == 2 * len(NAMES)


def test_what_is_wrong_is_so_as_its_kind_says():
    known = {pair.premise: set(corruptions.split_words(pair.premise)) for pair in PAIRS}
    for pair in of_kind("other paper"):
        assert pair.paper not in pair.hypothesis
        assert any(name in pair.hypothesis for name in NAMES)
    for pair in of_kind("elsewhere"):
        assert pair.paper in pair.hypothesis
        assert corruptions.coverage(pair.premise, pair.hypothesis)[0] < 1
    for pair in of_kind("order"):
        # Reworded before: what is new are synonyms.
        assert pair.paper in pair.hypothesis
    for pair in of_kind("negation"):
        assert "not" in pair.hypothesis.split()
    for pair in of_kind("number"):
        numbers = {w for w in corruptions.split_words(pair.hypothesis) if w[0].isdigit()}
        # Unless another number of the premise took its place.
        assert numbers - known[pair.premise] or len(numbers) <= 2


def test_where_all_of_a_paper_is_the_same_what_is_wrong_is_another_papers():
    section = ("We train one large parser on many corpora .",)
    papers = [
        faithfulness.Paper(name, (section * 3,), ((section[0], section),)) for name in NAMES[:2]
    ]
    pairs = faithfulness.pairs(papers, 0, per_paper=100)
    assert "elsewhere" not in {pair.kind for pair in pairs}


def test_a_premise_is_a_run_of_sentences_and_has_room():
    lengths = [len(corruptions.split_words(pair.premise)) for pair in PAIRS]
    single = len(corruptions.split_words(PAPERS[0].sections[0][0]))
    assert set(lengths) == {2 * single} and 2 * single <= 40  # Two fit, three do not.
    for pair in PAIRS:
        paper = PAPERS[NAMES.index(pair.paper)]
        runs = {" ".join(some[i : i + 2]) for some in paper.sections for i in range(4)}
        assert pair.premise in runs
    # A sentence that is too long by itself is its own premise.
    short = faithfulness.pairs(PAPERS, 0, max_words=5, per_paper=10)
    sentences = {s for paper in PAPERS for s in paper.sentences}
    assert {pair.premise for pair in short} <= sentences


def test_a_seed_repeats_and_another_makes_other_pairs():
    assert faithfulness.pairs(PAPERS, 0, max_words=40, per_paper=60) == PAIRS
    others = faithfulness.pairs(PAPERS, 1, max_words=40, per_paper=60)
    assert {pair.hypothesis for pair in others} != {pair.hypothesis for pair in PAIRS}


@pytest.mark.parametrize(
    ("papers", "per_paper"), [(PAPERS[:1], 2), (PAPERS, 0), (PAPERS, 3)], ids=str
)
def test_too_few_papers_or_an_odd_number_are_refused(papers, per_paper):
    with pytest.raises(ValueError, match="two papers at least and an even per_paper >= 2"):
        faithfulness.pairs(papers, 0, per_paper=per_paper)


def test_the_papers_of_aclsum():
    papers_of = {split: faithfulness.read_papers(split) for split in ("train", "val", "test")}
    assert {split: len(papers) for split, papers in papers_of.items()} == {
        "train": 100,
        "val": 50,
        "test": 100,
    }
    names = [paper.name for papers in papers_of.values() for paper in papers]
    assert len(set(names)) == 250  # None is on two sides.
    titles = [paper.sentences[0] for papers in papers_of.values() for paper in papers]
    assert len(set(titles)) == 250
    for paper in papers_of["test"]:
        assert len(paper.summaries) == len(faithfulness.ASPECTS)
        for summary, behind in paper.summaries:
            assert summary.strip() and behind and set(behind) <= set(paper.sentences)


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"package no_such, .* is not installed; pip install"):
        faithfulness.data_folder("no_such", "model")


def make_pair(premise: str, hypothesis: str, is_entailed: bool) -> faithfulness.Pair:
    return faithfulness.Pair(premise, hypothesis, is_entailed, "sentence", "p")


def test_baselines_of_overlap_on_an_example():
    # Shares of words 1, 0.5 and 0.75, 0.25: no limit is right of all, from 0.5 or 1 on of three.
    pairs = [
        make_pair("a b c d", "b c d", True),
        make_pair("a b c d", "a b x y", True),
        make_pair("a b c d", "a b c x", False),
        make_pair("a b c d", "a x y z", False),
    ]
    baseline = faithfulness.overlap_baselines(pairs)["words"]
    right = np.mean((baseline(pairs) >= 0) == [True, True, False, False])
    assert right == 0.75
    # The share, from the limit on.
    np.testing.assert_allclose(baseline(pairs) - baseline(pairs)[0], [0, -0.5, -0.25, -0.75])
    unseen = [make_pair("e f", "e f", True), make_pair("e f", "g h", False)]
    assert (baseline(unseen) >= 0).tolist() == [True, False]


def test_logistic_regression_is_of_words_neighbours_and_length():
    # All words are known: neighbours alone tell the swapped ones.
    texts = [f"w{n} w{n + 1} w{n + 2} w{n + 3} w{n + 4}" for n in range(40)]
    pairs = [make_pair(text, text, True) for text in texts]
    pairs += [make_pair(text, " ".join(reversed(text.split())), False) for text in texts]
    baselines = faithfulness.overlap_baselines(pairs)
    labels = [pair.is_entailed for pair in pairs]
    assert np.mean((baselines["logistic"](pairs) >= 0) == labels) == 1
    assert np.mean((baselines["words"](pairs) >= 0) == labels) == 0.5
    # Of noise it is the share of the class.
    rng = np.random.default_rng(0)
    noise = [make_pair("a b", "a b", bool(rng.random() < 0.8)) for _ in range(200)]
    share = np.mean([pair.is_entailed for pair in noise])
    logits = faithfulness.overlap_baselines(noise)["logistic"](noise)
    np.testing.assert_allclose(logits, math.log(share / (1 - share)), rtol=1e-3)


def test_no_hypothesis_is_empty():
    """Papers most of whose sentences are asides, dots or of another script, which rules drop."""
    nothing = ("( see the other section for all of it )", ".", "\u2022", "\u4eba \u4eba .")
    papers = [
        faithfulness.Paper(one.name, (*one.sections, nothing * 5), one.summaries)
        for one in (paper(name) for name in NAMES)
    ]
    pairs = faithfulness.pairs(papers, 0, per_paper=200)
    assert len(pairs) == 4 * 200 and sum(pair.is_entailed for pair in pairs) == 2 * 200
    assert all(corruptions.split_words(pair.hypothesis) for pair in pairs)
    empty = faithfulness.Paper("dots", ((". .",),), papers[0].summaries)
    with pytest.raises(ValueError, match="paper 'dots' has no sentence of 6 to 40 words"):
        faithfulness.pairs([*papers, empty], 0)
