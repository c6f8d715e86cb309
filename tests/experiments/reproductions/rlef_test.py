"""Tests of experiments/reproductions/{extractive,summarisers,rlef}.py."""

import csv
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from kullback.experiments import entailment, reproduce
from kullback.experiments.reproductions import extractive, rlef, study
from kullback.lm import batches
from kullback.lm.entailment import scorers

POOLS: dict[str, Any] = {
    "inside": 1,
    "elsewhere": 1,
    "others": 2,
    "inside_pool": 2,
    "elsewhere_pool": 3,
    "others_pool": 4,
}
SIZES = extractive.Sizes(least=1, most=3, **POOLS)


@pytest.fixture(scope="module")
def papers() -> extractive.Papers:
    return extractive.read("val", SIZES)


def small() -> extractive.Papers:
    """Returns one paper, of two own sentences and two others."""
    return extractive.Papers(
        names=["x"],
        documents=["a b c d"],
        references=["a b c"],
        sentences=[["a b .", "c x .", "y z .", "d ."]],
        is_there=np.ones((1, 4), bool),
        group=np.array([0, 1, 2, 2]),
        is_behind=np.array([[True, False, False, False]]),
        marks=np.zeros((1, 4, 2), int),
    )


def test_marks_are_length_and_share():
    assert extractive.marks("a b c d", "a b c z") == (0, 6)  # 4 words; 3 / 4 of eight levels.
    assert extractive.marks("a b", " ".join("ab" * 20)) == (7, 7)  # The last levels.
    assert extractive.marks("a b", "x y z u v") == (1, 0)


def test_a_document_is_the_end_of_the_abstract(papers: extractive.Papers):
    everything = {paper.name: paper for paper in extractive.faithfulness.read_papers("val")}
    for name, text in zip(papers.names, papers.documents, strict=True):
        abstract = everything[name].sections[0]
        [first] = [n for n in range(len(abstract)) if " ".join(abstract[n:]) == text]
        count = len(extractive.corruptions.split_words(text))
        assert count <= extractive.DOCUMENT_WORDS or first == len(abstract) - 1
        one_more = extractive.corruptions.split_words(" ".join(abstract[first - 1 :]))
        assert first == 0 or len(one_more) > extractive.DOCUMENT_WORDS


def test_pools_are_of_the_document_the_paper_and_others(papers: extractive.Papers):
    assert len(papers.names) == 47 and papers.group.tolist() == [0] * 2 + [1] * 3 + [2] * 4
    assert papers.is_own.tolist() == [True] * 5 + [False] * 4
    everything = {paper.name: paper for paper in extractive.faithfulness.read_papers("val")}
    for n, name in enumerate(papers.names):
        paper, document = everything[name], papers.documents[n]
        resting = {s for _, behind in paper.summaries for s in behind}
        for s, text in enumerate(papers.sentences[n]):
            assert bool(text) == papers.is_there[n, s]
            assert papers.is_behind[n, s] == (text in resting and papers.is_own[s])
            if text:
                assert (text in paper.sentences) == papers.is_own[s]
                assert (text in document) == (papers.group[s] == 0)
                assert tuple(papers.marks[n, s]) == extractive.marks(document, text)
    again = extractive.read.__wrapped__("val", SIZES)
    assert again is not papers and again.sentences == papers.sentences
    assert 0.1 < papers.is_behind[:, :5].mean() < 0.9
    assert (papers.marks[:, :2, 1][papers.is_there[:, :2]] == 7).all(), "they are in the document"


def test_prompts_show_own_sentences_and_others_in_random_order(papers: extractive.Papers):
    questions = extractive.ask(papers, SIZES, 120, np.random.default_rng(0))
    assert sorted(np.bincount(questions.papers, minlength=47).tolist()) == [2] * 21 + [3] * 26
    is_own = papers.is_own[questions.sentences]
    groups = np.sort(papers.group[questions.sentences], 1)
    np.testing.assert_array_equal(groups, np.tile([0, 1, 2, 2], (120, 1)))
    assert 0.3 < is_own[:, 0].mean() < 0.7, "own ones stand anywhere"
    assert all(len(set(row)) == 4 for row in questions.sentences.tolist())
    assert papers.is_there[questions.papers[:, None], questions.sentences].all()
    shown = extractive.prompts(papers, questions, SIZES)
    assert shown.tokens.shape == (120, SIZES.prompt_length) == (120, 10)
    for n in (0, 7):
        levels = papers.marks[questions.papers[n], questions.sentences[n]]
        expected = [1 + 1]
        for place, (length, share) in enumerate(levels.tolist()):
            expected += [3 + length, 3 + 8 + 8 * place + share]
        assert shown.tokens[n].tolist() == [*expected, 3 + 8 + 4 * 8 + 4]
    assert shown.tokens.max() < SIZES.model().config.vocab_size


def test_the_start_imitates_noisy_choices():
    rng = np.random.default_rng(0)
    sizes = extractive.Sizes(least=2, most=3)
    papers = extractive.read("val", sizes)
    questions = extractive.ask(papers, sizes, 4_000, rng)
    rows = jax.tree.map(np.asarray, extractive.imitated(papers, questions, sizes, rng))
    places, is_choice = map(np.asarray, extractive.choices(batches.Sequences(*rows), sizes))
    lengths = is_choice.sum(1)
    assert set(lengths) == {2, 3} and abs(lengths.mean() - 2.5) < 0.03
    assert places[is_choice].min() >= 0
    assert all(len(set(p[c])) == c.sum() for p, c in zip(places, is_choice, strict=True))
    chosen = np.take_along_axis(questions.sentences, np.maximum(places, 0), 1)
    others = ~np.take(papers.is_own, chosen)[is_choice]
    assert abs(others.mean() - 0.4) < 0.03
    # Of the first choices that are own, all rest on a summary where there is such a sentence.
    behind = papers.is_behind[questions.papers[:, None], questions.sentences].any(1)
    first = papers.is_behind[questions.papers, chosen[:, 0]]
    own_first = np.take(papers.is_own, chosen[:, 0])
    assert ((first == behind) | ~own_first).all()
    last = rows.tokens[np.arange(4_000), rows.lengths - 1]
    assert (last == extractive.EOS).all()


def answered(*answers: tuple[int, ...], sizes: extractive.Sizes = SIZES) -> batches.Sequences:
    """Returns answers as they would be written, -1 a token that is no sentence, 9 the end."""
    names = {-1: 3, 9: extractive.EOS}
    ids = [[names.get(a, sizes.first_number + a) for a in answer] for answer in answers]
    tokens = np.array([[*row, *[0] * (sizes.horizon - len(row))] for row in ids], np.int32)
    lengths = np.array([len(row) for row in ids])
    is_answer = np.arange(sizes.horizon)[None] < lengths[:, None]
    prompt = np.full((len(ids), sizes.prompt_length), 5, np.int32)
    prompts = batches.Prompts(prompt, np.full(len(ids), sizes.prompt_length, np.int32))
    return batches.join(prompts, tokens, is_answer)


P = np.array([0.9, 0.5, 0.2, 0.00001])
ANSWERS = ((0, 1, 9), (0, 1, 2, 9), (9,), (0, -1, 9), (3, 3, 9), (0, 0, 1, 1))


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        # A mean of 0.9 and 0.5; of three; nothing; half of 0.9; the floor; cut by the horizon.
        ("mean", [0.7, 1.6 / 3, 0, 0.45, 0.00001, 0.7]),
        ("min", [0.5, 0.2, 0, 0, 0.00001, 0.5]),
    ],
)
def test_what_answers_are_worth(aggregation: Any, expected: list[float]):
    sizes = extractive.Sizes(least=1, most=3, aggregation=aggregation, **POOLS)
    answers = extractive.choices(answered(*ANSWERS), sizes)
    of_sentences = jnp.broadcast_to(jnp.asarray(P, jnp.float32), (len(ANSWERS), 4))
    probabilities = jax.jit(extractive.probability, static_argnums=3)(of_sentences, *answers, sizes)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5, atol=1e-9)
    worth = extractive.reward(of_sentences, *answers, sizes)
    np.testing.assert_allclose(worth, np.log(np.maximum(expected, 1e-4)), rtol=1e-5)


@pytest.mark.parametrize("aggregation", ["mean", "min"])
def test_the_table_says_what_a_model_of_entailment_says_of_the_text(aggregation: Any):
    sentences = small().sentences[0]

    def probability(premises: Any, hypotheses: Any) -> np.ndarray:
        return np.array([P[sentences.index(text)] for text in hypotheses])

    config = scorers.Config(aggregation=aggregation)
    model = scorers.make(probability, config)
    sizes = extractive.Sizes(least=1, aggregation=aggregation, **POOLS)
    texts = [" ".join(sentences[i] for i in row if i != 9) for row in ANSWERS if -1 not in row]
    answers = answered(*(row for row in ANSWERS if -1 not in row))
    of_sentences = np.broadcast_to(P.astype(np.float32), (len(texts), 4))
    rewards = extractive.reward(of_sentences, *extractive.choices(answers, SIZES), sizes)
    np.testing.assert_allclose(rewards, model.log_probability(["x"] * len(texts), texts), rtol=1e-5)


def test_what_answers_are_like():
    questions = extractive.Questions(np.zeros(2, int), np.array([[0, 1, 2, 3], [0, 1, 2, 3]]))
    # "a b . d ." and nothing; of the first: words a b d, fragments a b and d.
    places = np.array([[0, 3, -1], [0, 0, 0]])
    is_choice = np.array([[True, True, False], [False] * 3])
    measurements = extractive.describe(small(), questions, places, is_choice)
    expected = {"sentences": 2, "words": 3, "coverage": 1, "density": 5 / 3, "own": 0.5}
    expected["inside"] = 0.5
    # Of the reference "a b c": two of three words, one of two pairs.
    expected |= {"behind": 0.5, "repeated": 0, "rouge_1": 2 / 3, "rouge_2": 0.5, "rouge_l": 2 / 3}
    assert measurements == pytest.approx({name: x / 2 for name, x in expected.items()})
    again = extractive.describe(small(), questions, np.array([[0, 0]] * 2), np.full((2, 2), True))
    assert again["repeated"] == 0.5


def test_each_sentence_of_a_pool_is_questions_about_once():
    papers = small()._replace(
        names=["x", "y"],
        documents=["d", "e"],
        sentences=[["s", "", "t"], ["u", "v", ""]],
        is_there=np.array([[True, False, True], [True, True, False]]),
    )
    seen: list[tuple[str, str]] = []
    done: list[int] = []

    def log_probability(premises: list[str], hypotheses: list[str]) -> np.ndarray:
        seen.extend(zip(premises, hypotheses, strict=True))
        return np.log(np.arange(1, len(premises) + 1) / 10)

    probabilities = extractive.pool_probabilities(
        papers, log_probability, done.append, papers_at_once=1
    )
    assert seen == [("d", "s"), ("d", "t"), ("e", "u"), ("e", "v")] and done == [1, 2]
    np.testing.assert_allclose(probabilities, [[0.1, 0, 0.2], [0.1, 0.2, 0]])


def rows(controls: dict[str, float]) -> study.Rows:
    """Returns measurements by arm: the control and ROUGE differ; KL is 1 a policy."""
    measured = []
    for (arm, p), seed in ((pair, seed) for pair in controls.items() for seed in range(3)):
        row: dict[str, Any] = dict.fromkeys(rlef.COLUMNS, 1.0)
        step = 400 if arm.startswith("alpha") else 0
        row |= {"arm": arm, "seed": seed, "step": step, "control": p + 0.01 * seed * (step > 0)}
        row |= {"kl": {"start": 0.0, "best of 4": 4.0}.get(arm, 1.0), "rouge_l": 0.5 - p / 2}
        # On the way, which counts in no verdict.
        measured += [{**row, "step": 200, "control": 9.0}, row] if step else [row]
    return measured


def test_the_control_is_judged_against_best_of_n_at_equal_kl_and_rouge():
    sizes = dataclasses.replace(rlef.extractive.SIZES, steps=400, batch_size=8, prompts=800)
    config = rlef.Config(best_of=(4,), sizes=sizes)
    assert config.counts == [4]
    # At a KL of 1 best of 4 has half of what it gains at 4: 0.4.
    values = {"start": 0.2, "best of 4": 0.6, "alpha 0.5": 0.5, "alpha 0.1": 0.3}
    checks = [c for c in rlef.claims(config, {"rlef": rows(values)}) if c.is_headline]
    assert [c.verdict for c in checks] == ["held", "held", "contradicted", "held"]
    assert "0.11 [" in checks[0].evidence  # 0.51 on average, less 0.4.
    one = [row for row in rows(values) if row["seed"] == 0]
    assert {c.verdict for c in rlef.claims(config, {"rlef": one})} == {"undecided", "reported"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rlef.Config(regularisations=(0.1,)), "two values or more"),
        (lambda: rlef.Config(regularisations=(0.1, 2.0)), "must lie in .0, 1., got 2.0"),
        (lambda: rlef.Config(measurements=7), "must divide sizes.steps=400"),
        (lambda: rlef.Config(best_of=(0,)), "best of N takes N >= 1"),
        (lambda: rlef.Config(reward_steps=0), "steps must be >="),
        (lambda: extractive.Sizes(inside_pool=1), "pools must hold what prompts show"),
        (lambda: extractive.Sizes(others_pool=60), r"others_pool must lie in \[0, 40\]"),
        (lambda: extractive.Sizes(most=9), r"most must lie in \[least=2, num_shown=8\]"),
        (lambda: extractive.Sizes(noise=2.0), "noise must lie in"),
        (lambda: extractive.Sizes(min_probability=0.0), "min_probability must lie in"),
        (lambda: extractive.Sizes(aggregation="whole"), "must be mean or min"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_settings_are_checked(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_folder_that_is_not_there_is_said_at_once(tmp_path: pathlib.Path):
    for role in rlef.ROLES:
        settings = [f"{role}={tmp_path / 'none'}"]
        with pytest.raises(ValueError, match=f"{role} must be a folder that `kullback entail"):
            reproduce.reproduce("rlef", tmp_path / role, settings, lambda line: None)


@pytest.mark.slow
def test_it_learns_what_is_entailed_and_goes_on_where_it_stopped(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """Models of entailment that know how many words two texts share."""
    trained: list[str] = []

    def train(out: pathlib.Path, config: entailment.Config, quiet: bool) -> None:
        assert quiet
        trained.append(config.kind)
        out.mkdir(parents=True)
        (out / entailment.REPORT).write_text('{"auc": 0.9}')

    def probability(premises: Any, hypotheses: Any) -> np.ndarray:
        pairs = zip(premises, hypotheses, strict=True)
        shared = np.array([extractive.corruptions.coverage(*pair)[0] for pair in pairs])
        return scipy.special.expit(20 * (shared - 0.35))

    monkeypatch.setattr(entailment, "train", train)
    monkeypatch.setattr(scorers, "load", lambda folder: scorers.make(probability))
    settings = ["seeds=2", "regularisations=0.02,0.7", "best_of=2", "measurements=2"]
    settings += ["sizes.steps=150", "sizes.start_steps=400", "sizes.prompts=300"]
    checks = reproduce.reproduce("rlef", tmp_path / "out", settings, lambda line: None)
    assert sorted(trained) == ["embeddings", "encoder"]
    assert not [*(tmp_path / "out" / "parts").glob("*-model")], "what was trained is not kept"
    with open(tmp_path / "out" / "rlef.csv") as file:
        table = list(csv.DictReader(file))

    with open(tmp_path / "out" / "judges.csv") as file:
        p_of = {
            (r["model"], r["split"], r["sentences"]): float(r["mean_p"])
            for r in csv.DictReader(file)
        }
    assert len(p_of) == 12 and p_of["control", "train", "inside"] > 0.99
    assert p_of["reward", "test", "elsewhere"] > p_of["reward", "test", "others"] + 0.1

    def mean(arm: str, column: str, step: str | None = None) -> float:
        last = [r for r in table if r["arm"] == arm and (step or r["step"]) == r["step"]]
        return float(np.mean([float(r[column]) for r in last]))

    arms = ["start", "best of 2", "best of 32", "alpha 0.02", "alpha 0.7"]
    assert sorted({r["arm"] for r in table}) == sorted(arms)
    p = {arm: mean(arm, "entailment", "150" if "alpha" in arm else None) for arm in arms}
    assert p["start"] < p["best of 2"] < p["best of 32"], p
    assert p["alpha 0.02"] > p["start"] + 0.05, p
    assert mean("start", "kl") == 0 and mean("alpha 0.02", "kl", "150") > 0.2
    assert abs(p["start"] - mean("start", "control")) < 1e-6, "they are the same model here"
    # Again: everything is there, and no model is questions.
    monkeypatch.setattr(scorers, "load", None)
    again = reproduce.reproduce("rlef", tmp_path / "out", settings, lambda line: None)
    assert again == checks
    assert rlef.seconds(rlef.Config()) < 15 * 60
