"""Tests of lm/splits.py."""

import json
import pathlib
from typing import Any

import pytest

from kullback.lm import chat, splits, tasks
from kullback.lm.tokenizer import Tokenizer, train_bpe


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["user model"], 262)


def turns(*texts: str, **keys: Any) -> list[dict[str, Any]]:
    roles = ("user", "assistant", "user", "model")
    return [
        {"role": role, "content": text, **keys} for role, text in zip(roles, texts, strict=False)
    ]


def test_one_question_is_on_one_side_however_it_is_written(tokenizer: Tokenizer):
    """And a question's ids, its text as rendered and longer conversations go with it."""
    seen = {"train": 0, "test": 0}
    for n in range(40):
        user, system = f"Question {n}?", {"role": "system", "content": "Be brief."}
        ids = chat.chat(turns(user), tokenizer, add_generation_prompt=True)
        flat = [i for segment in ids for i in segment.ids]
        rendered = f"<start_of_turn>user\n{user}<end_of_turn>\n<start_of_turn>model\n"
        rows = [
            {"messages": turns(user, "a")},
            {"messages": turns(user, "b", ts=n)},
            {"messages": turns(f"  {user}\n", "c")},
            {"messages": turns(user, "a", "And?", "b")},
            {"prompt": flat, "completion": "a"},
            {"prompt": flat[1:], "target": [70]},
            {"prompt": rendered, "completion": "a"},
            {"text": f"<bos>{rendered}a<end_of_turn>\n"},
            {"chosen": turns(user, "a", ts=1), "rejected": turns(user, "b")},
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": f" {user} "}]},
                    {},
                ]
            },
            {"prompt": turns(user), "completion": turns("x", "a")[1:]},
            {"prompt": turns(user), "chosen": turns("x", "a")[1:], "rejected": "b"},
            {"prompt": user, "messages": turns(user, "a")},
            {"prompt": user, "chosen": turns(user, "a"), "rejected": turns(user, "b")},
            {"chosen": f"\n\nHuman: {user}\n\nAssistant: a", "rejected": "\n\nHuman: {user}"},
        ]
        sides = {splits.side(row, tokenizer) for row in rows}
        assert len(sides) == 1, n
        seen[sides.pop() or ""] += 1
        plain = [
            {"prompt": user},
            {"prompt": tokenizer.encode(user)},
            {"prompt": [tokenizer.bos_id, *tokenizer.encode(user)]},
            {"prompt": f"Question  {n}\uff1f"},  # As normalisers write it.
            {"prompt": user, "chosen": "a", "rejected": "b"},
        ]
        assert len({splits.side(row, tokenizer) for row in plain}) == 1
        # A text of one line is where the first rule had it.
        assert splits.side(plain[0], None) == splits.side(plain[0], None, rule=1)
        with_system = [system, *turns(user, "a")], turns(f"Be brief.\n\n{user}", "a")
        assert len({splits.side({"messages": m}, None) for m in with_system}) == 1
    assert 0 < seen["test"] < 15


def test_what_differs_to_the_model_is_told_apart(tokenizer: Tokenizer):
    given = ["a", "b", turns("a"), turns("b"), "<start_of_turn>model\na", [70, 4]]
    assert len({splits.question(one, tokenizer) for one in given}) == len(given)
    assert splits.side({"prompt": [70]}, None) is None
    for bad in ({"prompt": [70, None, 10**9]}, {"messages": [5]}, {"prompt": {"a": 1}}, {}):
        assert splits.side(bad, tokenizer) in ("train", "test")


def test_a_run_has_the_rule_that_it_began_with(tmp_path: pathlib.Path):
    assert splits.rule_of({"plan": {}}) == splits.rule_of({"data": {"train": {}}}) == 1
    assert splits.rule_of({"data": {"rule": 2}}) == 2
    with pytest.raises(ValueError, match=r"data\.rule must be 1 to 2, got 3"):
        splits.rule_of({"data": {"rule": 3}})
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": turns(f" q{n % 50} ", f"a{n}", ts=n)} for n in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {}
    for rule in (1, 2):
        task = tasks.make(f"tokens/jsonl:{path}", rule=rule)
        questions = [{t.split("\n")[0] for t in task.texts(split)} for split in ("train", "test")]
        shared[rule] = questions[0] & questions[1]
    assert shared[1] and not shared[2]


def test_prompts_of_ids_are_sorted_by_the_tokenizer(tokenizer: Tokenizer, tmp_path: pathlib.Path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"p{n}", "completion": "text"} for n in range(100)]
    rows += [{"prompt": tokenizer.encode(f"p{n}"), "completion": "ids"} for n in range(100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = tasks.make(f"tokens/jsonl:{path}")
    sides = [{e.prompt for e in task.examples(s, tokenizer, None)[0]} for s in ("train", "test")]
    assert not sides[0] & sides[1] and sum(map(len, sides)) == 100
    assert not any("ids" in text for s in ("train", "test") for text in task.texts(s))
