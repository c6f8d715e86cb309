"""Tests of evaluate/answering.py, answer_report.py and `kullback answer`."""

import collections
import contextlib
import csv
import io
import itertools
import json
import pathlib
import re
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kullback import experiments
from kullback.core import files
from kullback.core.sampling import Sampling
from kullback.experiments import cli
from kullback.experiments.evaluate import answer_report, answering, subjects
from kullback.lm import votes

pytestmark = pytest.mark.usefixtures("few_sums")
TASK = "tokens/arithmetic"
SHORT = ("--samples", "4", "--batch-size", "3", "--max-new-tokens", "4", "--seed", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns a run that writes numbers, most of them wrong."""
    return experiments.train(
        "sft",
        TASK,
        out=tmp_path_factory.mktemp("answers") / "run",
        quiet=True,
        model="tiny",
        model_flags=("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4"),
        settings=("batch_size=16", "max_prompt_length=8", "max_new_tokens=4", "learning_rate=2e-2"),
        steps=60,
        log_every=60,
        checkpoint_every=60,
    )


def write(path: pathlib.Path, problems: list[tuple[int, int]]) -> pathlib.Path:
    rows = [{"prompt": f"{a}+{b}=", "completion": f"{a + b}.0"} for a, b in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("questions")
    write(folder / "val.jsonl", [(1, b) for b in range(5)])
    return write(folder / "test.jsonl", [(a, b) for a in (2, 3) for b in range(4)])


def command(model: pathlib.Path, questions: pathlib.Path, *more: object) -> list[object]:
    validation = questions.with_name("val.jsonl")
    flags = ("--validation", validation, "--reward", "length", "--answers", "number")
    return ["answer", model, questions, *SHORT, *flags, *more]


@pytest.fixture(scope="module")
def printed_answers(
    model: pathlib.Path, questions: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, str]:
    """Answers the questions once; returns the folder and what was printed."""
    folder = tmp_path_factory.mktemp("printed_answers")
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = cli.main([*map(str, command(model, questions, "--out", "done"))])
    printed, said = (file.buffer.getvalue().decode() for file in (out, err))
    assert status == 0, said
    assert "test.jsonl: 8 of 8 questions" in said
    return folder / "done", printed


@pytest.fixture
def answered(
    printed_answers: tuple[pathlib.Path, str], kullback: Callable[..., tuple[int, str, str]]
) -> str:
    """Copies the answers into the folder of a test, `done`."""
    del kullback  # It has entered the test's folder.
    shutil.copytree(printed_answers[0], "done")
    return printed_answers[1]


def lines_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]


def test_the_table_is_that_of_the_answers(answered: str):
    lines = lines_of("done/answers.jsonl")
    assert [line["number"] for line in lines] == [*range(1, 9)]
    assert lines[0]["prompt"] == "2+0=" and lines[0]["reference"] == "2"
    read = [answer for line in lines for answer in line["samples"]]
    assert 0 < len(set(read)) and any(x is not None for x in read)
    tau = json.loads(pathlib.Path("done/threshold.json").read_text())["threshold_by_samples"]["4"]
    for line in lines:
        known = [x for x in line["samples"] if x is not None]
        if known:
            best, count = collections.Counter(known).most_common(1)[0]
            assert (line["majority"], line["agreement"]) == (best, count / 4)
        is_agreed = known and line["agreement"] >= tau
        assert line["routed"] == (line["majority"] if is_agreed else line["greedy"])
    rows = {(row["way"], row["k"]): row for row in files.read_csv("done/accuracy.csv")}
    for way in ("greedy", "majority", "weighted_majority", "routed", "best_by_reward"):
        right = np.mean([line[way] == line["reference"] for line in lines])
        row = rows[way.replace("_", " "), 0 if way == "greedy" else 4]
        assert row["accuracy"] == pytest.approx(right), way
        assert row["low"] - 1e-9 <= right <= row["high"] + 1e-9
    for k in (1, 2, 4):
        chances = [
            np.mean([r in subset for subset in itertools.combinations(line["samples"], k)])
            for line in lines
            for r in [line["reference"]]
        ]
        assert rows["pass", k]["accuracy"] == pytest.approx(np.mean(chances))
    assert rows["majority", 1]["accuracy"] == pytest.approx(rows["one sample", 1]["accuracy"])
    # What is routed has the greedy answers more.
    written = lines_of("done/samples.jsonl")[:8]  # Those of validation come after.
    tokens = np.array([[s["tokens"] for s in line["samples"]] for line in written])
    assert rows["majority", 4]["tokens"] == pytest.approx(tokens.sum(1).mean())
    assert rows["pass", 2]["tokens"] == pytest.approx(2 * tokens.mean())
    assert rows["routed", 4]["tokens"] >= rows["majority", 4]["tokens"]
    rewards = np.array([[s["reward"] for s in line["samples"]] for line in written])
    np.testing.assert_array_equal(rewards, tokens)  # It is the length.
    assert "routed@4" in answered and "tokens_greedy" in answered and "threshold" in answered
    assert pathlib.Path("done/accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_it_goes_on_as_if_nothing_had_happened(
    answered: str,
    model: pathlib.Path,
    questions: pathlib.Path,
    kullback: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
):
    ask, parts = answering.Respondent.ask, list[int]()

    def broken(self: answering.Respondent, part: int) -> list[answering.Responses]:
        if len(parts) == 2:
            raise KeyboardInterrupt
        parts.append(part)
        return ask(self, part)

    with monkeypatch.context() as patched:
        patched.setattr(answering.Respondent, "ask", broken)
        status, _, err = kullback(*command(model, questions, "--out", "part"))
    assert status == 130 and "part keeps what is done, and the same command goes on" in err
    file = pathlib.Path("part/samples.jsonl")
    # Killed as it wrote a line, of a part that was not all written.
    data = file.read_bytes()
    file.write_bytes(data[: data.rfind(b"\n", 0, -1) + 40])
    status, out, err = kullback(*command(model, questions, "--out", "part"))
    assert status == 0, err
    assert out.replace("answers: part", "answers: done") == answered
    for name in ("samples.jsonl", "answers.jsonl", "accuracy.csv", "threshold.json"):
        whole = pathlib.Path("done", name).read_bytes()
        assert pathlib.Path("part", name).read_bytes() == whole, name

    def never(self: answering.Respondent, part: int) -> list[answering.Responses]:
        raise AssertionError("it is done")

    monkeypatch.setattr(answering.Respondent, "ask", never)
    # A threshold does not change what is sampled, nor do fewer ways to answer.
    again = ["answer", model, questions, *SHORT, "--reward", "length", "--out", "done"]
    status, out, err = kullback(*again, "--route", "0.5")
    assert status == 0 and re.search(r"threshold +0\.5000", out), err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--samples", "5"), "samples was 4 and is 5: these are other answers; choose another"),
        (("--temperature", "0.5"), "sampling.temperature was 1.0 and is 0.5"),
        (("--seed", "2"), "seed was 1 and is 2"),
        (("--thought", " "), 'thought was "" and is " "'),
    ],
)
def test_other_answers_have_another_folder(
    answered: str,
    more: tuple[str, ...],
    said: str,
    model: pathlib.Path,
    questions: pathlib.Path,
    refused: Callable[..., str],
):
    assert said in refused(*command(model, questions, "--out", "done", *more))


def test_what_was_changed_is_refused(
    answered: str, model: pathlib.Path, questions: pathlib.Path, refused: Callable[..., str]
):
    file = pathlib.Path("done/samples.jsonl")
    file.write_text(file.read_text().replace('"tokens": ', '"tokens": 1', 1))
    said = refused(*command(model, questions, "--out", "done"))
    assert "samples.jsonl, line 1: it has changed since it was written" in said


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--route", "auto"), "--validation chooses the threshold of --route auto, and goes with"),
        (("--validation", "{val}", "--route", "0.5"), "goes with it alone, got --route 0.5"),
        (("--route", "3"), "expected auto, none, or a number from 0 (the majority) to 2, got 3"),
        (("--route", "nan"), "--route: expected a number"),
        (("--validation", "{test}"), "--limit N takes the first N, and the next N to validate"),
        (
            ("--validation", "{test}", "--limit", "8"),
            "has 8 questions, and none beyond the first 8",
        ),
        (("--validation", "{same}"), "1 questions of --validation "),
        (("--temperature", "0"), "--temperature 0 gives 4 equal samples"),
        (("--samples", "2000"), "--samples: expected a whole number from 1 to 1,024"),
        (("--max-new-tokens", "100000"), "exceed the model's context"),
        (("--reward", "nothing"), "unknown reward 'nothing'"),
        (("--out", "{test}"), "test.jsonl"),
    ],
)
def test_what_cannot_be_is_refused_before_work(
    more: tuple[str, ...],
    said: str,
    model: pathlib.Path,
    questions: pathlib.Path,
    tmp_path: pathlib.Path,
    refused: Callable[..., str],
):
    same = write(tmp_path / "same.jsonl", [(9, 9), (2, 3)])
    names = {"val": questions.with_name("val.jsonl"), "test": questions, "same": same}
    given = [text.format(**names) for text in more]
    assert said in refused("answer", model, questions, *SHORT, *given)


def test_references_are_of_the_kind_that_is_compared(
    model: pathlib.Path, tmp_path: pathlib.Path, refused: Callable[..., str]
):
    file = tmp_path / "words.jsonl"
    file.write_text('{"prompt": "1", "completion": "2"}\n{"prompt": "3", "completion": "+"}\n')
    said = refused("answer", model, file, *SHORT)
    assert "the reference of question 2 has no number: '+'; --answers text compares texts" in said


def test_held_out_questions_of_a_task_and_texts_after_prompts(model: pathlib.Path):
    subject = subjects.Subject(path=model, lengths={"max_new_tokens": 4})
    first, second = (answering.questions(TASK, subject, 5, skip=n) for n in (0, 5))
    assert len(first.examples) == len(second.examples) == 5
    assert not {x.prompt for x in first.examples} & {x.prompt for x in second.examples}
    assert first.label != second.label
    settings = answering.Settings(
        samples=2, sampling=Sampling(), batch_size=5, thought="1+", seed=3
    )
    respondent = answering.Respondent(subject=subject, settings=settings, questions=first)
    one, other = (x[0].prompt for x in (respondent.examples(""), respondent.examples("1+")))
    assert one == first.examples[0].prompt
    assert respondent.evaluator.tokenizer.decode(other).endswith("=1+")
    responses = respondent.ask(0)
    plain = answering.Respondent(
        subject=subject,
        settings=answering.Settings(samples=2, batch_size=5, seed=3),
        questions=first,
    ).ask(0)
    assert [x.greedy for x in responses] == [x.greedy for x in plain]
    assert [x.samples for x in responses] != [x.samples for x in plain]
    assert all(len(x.samples) == 2 and x.prompt.endswith("=") for x in responses)


def table(codes: list[list[int]], greedy: list[int]) -> answer_report.Table:
    shape = np.shape(codes)
    return answer_report.Table(
        codes=np.array(codes),
        greedy=np.array(greedy),
        references=np.zeros(len(codes), int),
        weights=np.ones(shape),
        rewards=np.tile(np.arange(shape[1], dtype=float), (shape[0], 1)),
        tokens=np.full(shape, 2.0),
        greedy_tokens=np.full(shape[0], 3.0),
    )


def test_the_threshold_of_validation_is_frozen():
    # In validation two of three agree on a wrong answer, and three on a right one.
    validation = table([[1, 1, 2], [0, 0, 0], [1, 2, 1]], [0, 1, 0])
    assert answer_report.chosen_threshold(validation, 3) == 1.0
    questions = table([[0, 0, 1], [0, 0, 0], [-1, -1, -1]], [1, 1, 0])
    analysis = answer_report.Analysis(questions=questions, validation=validation)
    rows = {(row["way"], row["k"]): row for row in analysis.rows()}
    assert analysis.thresholds[3] == 1.0
    assert rows["routed", 3]["accuracy"] == pytest.approx(2 / 3)  # With 2/3 it would be 1.
    assert rows["majority", 3]["accuracy"] == pytest.approx(2 / 3)
    assert rows["greedy", 0]["accuracy"] == pytest.approx(1 / 3)
    assert rows["routed", 3]["tokens"] == pytest.approx(6 + 3 * 2 / 3)
    shown = analysis.estimates(analysis.rows())
    assert shown["routed_to_greedy"].mean == pytest.approx(2 / 3)
    assert shown["agreement"].mean == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert shown["unread"].mean == pytest.approx(1 / 3)
    assert shown["agreement_tells_right"].mean == 1.0
    given = answer_report.Analysis(questions=questions, threshold=0.5, has_reward=True)
    rows = {(row["way"], row["k"]): row for row in given.rows()}
    assert rows["routed", 3]["accuracy"] == 1.0
    # The last sample has the highest reward: of two it is right in 1 of 3 subsets, and in all.
    assert rows["best by reward", 2]["accuracy"] == pytest.approx((1 / 3 + 1 + 0) / 3)


def test_the_threshold_of_fewer_samples_is_the_best_over_subsets():
    random = np.random.default_rng(0)
    codes, greedy = random.integers(-1, 3, (6, 5)), random.integers(-1, 2, 6)
    validation = table(codes.tolist(), greedy.tolist())
    accuracies = []
    for tau in (0, 1 / 3, 2 / 3, 1, 4 / 3):
        right = [
            votes.route(votes.majority(codes[:, subset]), greedy, tau) == 0
            for subset in itertools.combinations(range(5), 3)
        ]
        accuracies.append(np.mean(right))
    best = int(np.argmax(accuracies)) / 3
    assert answer_report.chosen_threshold(validation, 3) == best


def test_a_table_is_read_by_one_normaliser():
    def answers(*texts: str) -> list[answering.Answer]:
        return [answering.Answer(text, 2, 1.0) for text in texts]

    responses = [
        answering.Responses(
            "q", "#### 42", answers(" $42")[0], answers("42.0", "so 7", "none", "84/2")
        )
    ]
    x = answer_report.table(responses, "number")
    assert x.codes.tolist() == [[0, 1, -1, 0]] and (x.greedy, x.references) == (0, 0)
    np.testing.assert_allclose(x.weights, np.exp(-0.5))
    by_text = answer_report.table(responses, "text")
    assert by_text.codes.tolist() == [[0, 1, 2, 3]] and by_text.references.tolist() == [5]


def test_the_table_has_one_line_a_way_and_count(answered: str):
    with open("done/accuracy.csv", newline="") as file:
        rows = [(row["way"], row["k"]) for row in csv.DictReader(file)]
    assert len(rows) == len(set(rows)) == 2 + 3 * 5
