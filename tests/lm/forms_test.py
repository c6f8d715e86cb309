"""Tests of lm/forms.py, by what lm/data.py and lm/preferences.py make of each form."""

import json
import pathlib
from typing import Any

import pytest

from kullback.lm import data, forms
from kullback.lm.tokenizer import Tokenizer, train_bpe

USER, MODEL = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}
MORE = [{"role": "user", "content": "Sure?"}, {"role": "model", "content": "No"}]
QUESTION = {"type": "text", "text": "Hi"}
DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Yes\n\nHuman: Sure?\n\nAssistant: "


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["a"], 262)  # Bytes, and the tokens of turns.


def example(record: dict[str, Any], tokenizer: Tokenizer) -> data.Example:
    ((read,), report) = data.from_rows([("rows.jsonl:1", record)], tokenizer)
    assert report.ignored_keys == {}
    return read


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, MODEL]},
        {"messages": [{"role": "user", "content": [QUESTION]}, MODEL]},
        {"messages": [USER, {"role": "model", "content": [{"type": "text", "text": " Yes\n"}]}]},
        {"prompt": [USER], "completion": [MODEL]},
        {"prompt": [{"role": "user", "content": [QUESTION]}], "completion": [MODEL]},
        {"prompt": [USER], "target": "Yes"},
        {"prompt": "Hi", "messages": [USER, MODEL]},
        {"prompt": " Hi\n", "messages": [USER, MODEL]},
    ],
)
def test_a_conversation_is_the_same_in_every_form(record: dict[str, Any], tokenizer: Tokenizer):
    expected = example({"messages": [USER, MODEL]}, tokenizer)
    assert tokenizer.decode(expected.prompt) == "user\nHi\nmodel\n"
    assert tokenizer.decode(expected.completion) == "Yes"
    assert example(record, tokenizer) == expected


def test_the_models_turns_of_a_prompt_are_not_learnt(tokenizer: Tokenizer):
    whole = example({"messages": [USER, MODEL, *MORE]}, tokenizer)
    assert len(whole.answers) == 1
    last = example({"prompt": [USER, MODEL, MORE[0]], "completion": MORE[1:]}, tokenizer)
    assert last == whole._replace(answers=())
    # And those of a completion of several turns all are.
    assert example({"prompt": [USER], "completion": [MODEL, *MORE]}, tokenizer) == whole


def test_parts_of_a_content_are_joined_as_gemmas_template_joins_them():
    parts = [{"type": "text", "text": text} for text in ("  Say: ", "\nA", "b ")]
    assert forms.messages([{"role": "user", "content": parts}]) == [
        {"role": "user", "content": "Say:Ab"}
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"messages": [{"role": "user", "content": [QUESTION, {"type": "image_url"}]}]},
            'content of message 1 has a part of the type "image_url".*nothing but text is read',
        ),
        ({"messages": [{"role": "user", "content": [{"text": "a"}]}]}, "a part of no type"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "a part of no type"),
        ({"messages": [{"role": "user", "content": []}]}, "must have at least one part of text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]},
            "text of a part in content of message 1 must be a string, got 3",
        ),
        ({"messages": [{"role": "user", "content": None}]}, "must be a string, or a list of parts"),
        ({"prompt": "Hi", "completion": [MODEL]}, "both be messages, or neither, got a text and"),
        (
            {"prompt": [USER], "completion": [3]},
            "both be messages, or neither, got messages and id",
        ),
        ({"prompt": [USER, 3], "completion": "a"}, "message 2 must be an object with role and"),
        ({"prompt": [USER], "completion": [MORE[0]]}, "last message has role 'user'"),
        ({"prompt": [USER], "completion": " "}, "message 2 of the model's is empty"),
        ({"prompt": "No", "messages": [USER, MODEL]}, "no message of the user's in messages says"),
        ({"prompt": [USER], "messages": [USER, MODEL]}, "prompt beside messages must be a string"),
        ({"prompt": "a"}, r"of one form: \{prompt, completion\} or .*; \{text\}; \{messages\}"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "tokens/preferences:PATH reads pairs"),
    ],
)
def test_a_record_of_no_form_says_what_was_expected(
    record: dict[str, Any], message: str, tokenizer: Tokenizer
):
    with pytest.raises(ValueError, match=rf"^rows\.jsonl:1: .*{message}") as caught:
        example(record, tokenizer)
    assert "\n" not in str(caught.value)


def pairs() -> list[dict[str, Any]]:
    """Returns one pair in each form that holds a conversation."""
    before, chosen, rejected = [USER, MODEL, MORE[0]], MORE[1], {"role": "model", "content": "Sure"}
    as_parts = [{**USER, "content": [QUESTION]}, *before[1:]]
    return [
        {"chosen": [*before, chosen], "rejected": [*before, rejected]},
        {"chosen": [*as_parts, chosen], "rejected": [*before, rejected]},
        {"prompt": "Hi", "chosen": [*before, chosen], "rejected": [*before, rejected]},
        {"prompt": before, "chosen": [chosen], "rejected": [rejected]},
        {"prompt": as_parts, "chosen": [chosen], "rejected": "Sure"},
        {"chosen": f"{DIALOGUE}No", "rejected": f"{DIALOGUE}Sure"},
        {"chosen": f"{DIALOGUE}No".strip(), "rejected": f"{DIALOGUE}Sure\n"},
    ]


@pytest.mark.parametrize("record", pairs())
def test_a_pair_is_the_same_in_every_form(record: dict[str, Any], tokenizer: Tokenizer):
    answers = forms.answers(record)
    for name, said in (("chosen", "No"), ("rejected", "Sure")):
        read = example(answers[name], tokenizer)
        assert tokenizer.decode(read.completion) == said
        assert tokenizer.decode(read.prompt) == "user\nHi\nmodel\nYes\nuser\nSure?\nmodel\n"
    texts = ["Hi", "Yes", "Sure?", "No", "Sure"]
    assert forms.texts_of_pair(record) == texts
    assert forms.messages(forms.question(record)) == forms.unanswered(record)
    assert [m["content"] for m in forms.unanswered(record)] == texts[:3]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, r"of one form: \{prompt, chosen, rejected\}, all of text"),
        (
            {"chosen": "a", "rejected": "b"},
            "without a prompt chosen must be a list of messages, or",
        ),
        ({"chosen": "\n\nAssistant: a", "rejected": "b"}, "a dialogue, whose turns begin"),
        (
            {"prompt": "Hi", "chosen": [MODEL], "rejected": [MODEL]},
            "in chosen says it; leave it out",
        ),
    ],
)
def test_a_record_of_no_pair_says_what_was_expected(record: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        forms.answers(record)


def test_prompts_are_read_in_every_form(tokenizer: Tokenizer, tmp_path: pathlib.Path):
    before = [USER, MODEL, MORE[0]]
    records = [
        {"messages": before},
        {"messages": [*before, MORE[1]]},
        {"prompt": "Sure?", "messages": before},
        {"prompt": before},
        {"prompt": before, "completion": [MORE[1]]},
        *pairs(),
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (first, *others) = (question.ids for question in data.read_questions(path, tokenizer))
    assert tokenizer.decode(first) == "user\nHi\nmodel\nYes\nuser\nSure?\nmodel\n"
    assert others == [first] * len(others)
    # A text beside texts is itself, as it is learnt from.
    path.write_text(json.dumps({"prompt": "a", "chosen": DIALOGUE, "rejected": "c"}))
    (question,) = data.read_questions(path, tokenizer)
    assert question.ids == (tokenizer.bos_id, *tokenizer.encode("a"))
