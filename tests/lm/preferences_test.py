"""Tests of lm/preferences.py, and of the task that lm/tasks.py makes of it."""

import json
import pathlib
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kullback.lm import batches, data, epochs, preferences, tasks
from kullback.lm.tokenizer import Tokenizer, train_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["a"], 262)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [message("user", question), message("model", answer)]


def row(prompt: str = "p", chosen: Any = "good", rejected: Any = "bad") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def write(path: pathlib.Path, rows: list[Any]) -> pathlib.Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def numbered(count: int) -> list[preferences.Pair]:
    """Returns different pairs, of lengths 3 to 6."""
    return [
        preferences.Pair(
            data.Example((2,), (10 + n, 11, 1)[-2 - n % 2 :]), data.Example((2,), (10 + n,) * 4)
        )
        for n in range(count)
    ]


def test_a_row_is_two_answers_to_one_prompt(tokenizer: Tokenizer, tmp_path: pathlib.Path):
    rows = [row(), {"chosen": chat("q", "yes"), "rejected": chat("q", "no"), "margin": 1}]
    rows += [row(chosen=[70, 71], rejected=[70])]
    pairs, report = preferences.read_jsonl(write(tmp_path / "a.jsonl", rows), tokenizer)
    assert (report.rows, report.dropped, report.truncated) == (3, 0, 0)
    assert report.ignored_keys == {"margin": 1}
    assert report.tokens == sum(e.length for pair in pairs for e in pair)
    for pair in pairs:
        assert pair.chosen.prompt == pair.rejected.prompt
        assert pair.chosen.prompt[0] == tokenizer.bos_id
        assert pair.length == max(pair.chosen.length, pair.rejected.length)
    texts = [[tokenizer.decode(e.completion) for e in pair] for pair in pairs[:2]]
    assert texts == [["good", "bad"], ["yes", "no"]]
    assert pairs[2].chosen.completion == (70, 71, tokenizer.eos_id)
    assert tokenizer.decode(pairs[1].chosen.prompt).endswith("model\n")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            {"prompt": "p", "chosen": "a"},
            r"keys \['chosen', 'prompt'\]; expected those of one form",
        ),
        ({"text": "a"}, r"one form: \{prompt, chosen, rejected\}"),
        ({"chosen": "a", "rejected": "b"}, "without a prompt chosen must be a list of messages"),
        (row(chosen="same", rejected="same"), "chosen and rejected are equal"),
        (row(chosen=[70, 1], rejected=[70, 5]), "equal but for their end at most"),
        (row(chosen=""), "chosen: completion is empty"),
        (
            row(rejected=3),
            "rejected: completion must be a string, a list of ids or messages, got 3",
        ),
        ({"chosen": chat("q", "a"), "rejected": chat("r", "b")}, "must be the same but for the"),
        (
            {"chosen": chat("q", "a"), "rejected": [message("user", "q")]},
            r"they differ in number \(2 and 1\)",
        ),
        ({"chosen": [], "rejected": []}, "chosen: messages must be a list of at least one"),
    ],
)
def test_a_row_that_is_no_pair_is_an_error_with_its_line(
    tokenizer: Tokenizer, tmp_path: pathlib.Path, bad: Any, message: str
):
    path = write(tmp_path / "a.jsonl", [row(), bad])
    with pytest.raises(ValueError, match=rf"a\.jsonl:2.*{message}"):
        preferences.read_jsonl(path, tokenizer)


def test_pairs_are_read_as_others_write_them(tokenizer: Tokenizer):
    """UltraFeedback's, TRL's with a prompt of messages, and hh-rlhf's."""
    rows = [
        {
            "prompt": "q",
            "prompt_id": "f",
            "chosen": chat("q", "yes"),
            "rejected": chat("q", "no"),
            "messages": chat("q", "yes"),
            "score_chosen": 8.5,
            "score_rejected": 6.0,
        },
        {"prompt": chat("q", "")[:1], "chosen": chat("", "yes")[1:], "rejected": "no"},
        {
            "chosen": "\n\nHuman: q\n\nAssistant: yes",
            "rejected": "\n\nHuman: q\n\nAssistant: no",
        },
        {"chosen": chat("q", "yes"), "rejected": chat("q", "no")},
    ]
    pairs, report = preferences.from_rows([("r", row) for row in rows], tokenizer)
    assert pairs == [pairs[-1]] * 4
    assert report.ignored_keys == {
        key: 1 for key in ("prompt_id", "messages", "score_chosen", "score_rejected")
    }


def test_pairs_that_compare_no_two_answers_may_be_left_out(tokenizer: Tokenizer):
    """Dialogues of hh-rlhf have a few that differ before the last turn, or in their number."""
    human, answer = "\n\nHuman: q", "\n\nAssistant: yes"
    other = {"chosen": human + answer, "rejected": human.replace("q", "r") + answer}
    longer = {"chosen": human + answer, "rejected": (human + answer) * 2}
    same = row(chosen="same", rejected="same")
    for record, message in (
        (other, "same but for the last; they differ in an earlier one"),
        (longer, r"differ in number \(2 and 4\)"),
        (same, "are equal but for"),
    ):
        with pytest.raises(ValueError, match=rf"^r: .*{message}.*unusable=drop"):
            preferences.from_rows([("r", record)], tokenizer)
    rows = [(f"r{n}", record) for n, record in enumerate((row(), other, longer, same, row()))]
    limits = data.Limits(unusable="drop")
    pairs, report = preferences.from_rows(rows, tokenizer, limits)
    assert (len(pairs), report.rows, report.unusable) == (2, 5, 3)
    assert report.first_unusable.startswith("r1: the messages of chosen and rejected must be")
    # All of their chosen answers can be learnt.
    examples, _ = data.from_rows(preferences.chosen_rows(rows), tokenizer)
    assert len(examples) == 5


def test_both_answers_are_fitted_alike(tokenizer: Tokenizer):
    rows = [("r", row(prompt="0123456789", chosen="a", rejected="bcdef"))]  # 1 + 10, and 2 or 6.
    with pytest.raises(ValueError, match="r: prompt and completion have 11 and 6 tokens"):
        preferences.from_rows(rows, tokenizer, data.Limits(max_length=15))
    pairs, report = preferences.from_rows(
        rows, tokenizer, data.Limits(max_length=15, overlong="truncate-left")
    )
    assert report.truncated == 1
    assert [tokenizer.decode(e.prompt) for e in pairs[0]] == ["23456789"] * 2
    assert [tokenizer.decode(e.completion) for e in pairs[0]] == ["a", "bcdef"]
    pairs, report = preferences.from_rows(
        rows, tokenizer, data.Limits(max_length=15, overlong="drop")
    )
    assert not pairs and report.dropped == 1


@hypothesis.settings(deadline=None)
@hypothesis.given(
    count=st.integers(0, 60), fraction=st.integers(0, 100), seed=st.integers(0, 2**31)
)
def test_corruption_swaps_so_many_and_twice_none(count: int, fraction: int, seed: int):
    pairs = numbered(count)
    corrupted = preferences.corrupt(pairs, fraction / 100, seed)
    swapped = preferences.is_swapped(count, fraction / 100, seed)
    assert swapped.sum() == fraction * count // 100  # Exact, in integers.
    for before, after, is_swapped in zip(pairs, corrupted, swapped, strict=True):
        assert after == (preferences.Pair(*before[::-1]) if is_swapped else before)
    assert corrupted == preferences.corrupt(pairs, fraction / 100, seed)
    assert preferences.corrupt(corrupted, fraction / 100, seed) == pairs


def test_corruption_depends_on_its_seed_and_has_a_range():
    choices = {preferences.is_swapped(100, 0.29, seed).tobytes() for seed in range(5)}
    assert len(choices) == 5 and all(sum(one) == 29 for one in choices)
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"fraction of pairs to swap must lie in \[0, 1\]"):
            preferences.is_swapped(3, fraction, 0)


def test_batches_are_of_one_width_and_in_the_order_of_the_seed():
    pairs = numbered(7)
    config = batches.Config(batch_size=3, lengths=(4, 6), seed=5)
    sample = preferences.sampler(pairs, config, pad_id=0)
    for step in (0, 4):
        batch = sample(step)
        drawn = epochs.indices(step, num_items=7, batch_size=3, seed=5)
        for rows, side in zip(batch, ("chosen", "rejected"), strict=True):
            assert rows.tokens.shape == (3, 6)
            for b, i in enumerate(drawn):
                example = getattr(pairs[i], side)
                ids = (*example.prompt, *example.completion)
                np.testing.assert_array_equal(rows.tokens[b], [*ids, *[0] * (6 - len(ids))])
                assert rows.lengths[b] == len(ids)


def test_batches_that_cannot_be():
    with pytest.raises(ValueError, match="no pairs to make batches of"):
        preferences.sampler([], batches.Config(), 0)
    with pytest.raises(ValueError, match="pack=False"):
        preferences.sampler(numbered(2), batches.Config(pack=True), 0)
    with pytest.raises(ValueError, match=r"a pair has 5 tokens, more than .* lengths=\(4,\)"):
        preferences.sampler(numbered(2), batches.Config(lengths=(4,)), 0)


def test_the_task_of_a_file(tokenizer: Tokenizer, tmp_path: pathlib.Path):
    rows = [row(f"p{n % 50}:", f"c{n}", f"r{n}") for n in range(200)]
    rows += [{"chosen": chat(f"q{n}", "a"), "rejected": chat(f"q{n}", "b")} for n in range(20)]
    task = tasks.make(f"tokens/preferences:{write(tmp_path / 'a.jsonl', rows)}")
    assert task.score is None and task.pairs is not None
    train, report = task.pairs("train", tokenizer, None)
    test, _ = task.pairs("test", tokenizer, None)
    assert len(train) + len(test) == 220 and report.rows == len(train)
    prompts = [{pair.chosen.prompt for pair in pairs} for pairs in (train, test)]
    assert prompts[0] and prompts[1] and not prompts[0] & prompts[1]
    examples, _ = task.examples(
        "test", tokenizer, None
    )  # Supervised tuning learns what was chosen.
    assert examples == [pair.chosen for pair in test]
    texts = task.texts("train")
    assert len(texts) == len(train)
    assert any(text.split("\n") == ["p0:", "c0", "r0"] for text in (*texts, *task.texts("test")))
    assert any(text.endswith("a\nb") for text in texts)
    for read_split in (task.texts, lambda split: task.pairs(split, tokenizer, None)):  # pyright: ignore[reportOptionalCall]
        with pytest.raises(ValueError, match="split must be train or test, got 'val'"):
            read_split("val")  # pyright: ignore[reportArgumentType]


def test_other_tasks_have_no_pairs(tmp_path: pathlib.Path):
    assert tasks.make("tokens/arithmetic").pairs is None
    with pytest.raises(ValueError, match="which tokens/preferences:PATH names"):
        tasks.make(f"tokens/preferences:{tmp_path / 'none'}")
    with pytest.raises(ValueError, match=r"lacks train\.jsonl"):
        tasks.make(f"tokens/preferences:{tmp_path}")
