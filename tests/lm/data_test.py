"""Tests of lm/data.py."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from kullback.lm import data
from kullback.lm.data import Example, Limits
from kullback.lm.tokenizer import Tokenizer, reading, train_bpe

BOS, EOS, START, END = 2, 1, 4, 5
Write = Callable[..., pathlib.Path]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["a"], 262)  # Bytes, so that lengths are easy to see.


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Write:
    def write(*rows: Any) -> pathlib.Path:
        path = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines) + b"\n")
        return path

    return write


def test_each_form_of_row(tokenizer: Tokenizer, write: Write):
    encode = tokenizer.encode
    path = write(
        {"prompt": "ab", "completion": " c"},
        {"prompt": "", "target": "c", "id": 7},
        {"text": "abc"},
        {"prompt": [BOS, 9], "completion": [8, EOS]},
        {"prompt": [9, END], "completion": [8]},
        b"  ",
        {"prompt": [9], "completion": [8, END]},
    )
    examples, report = data.read_jsonl(path, tokenizer)
    assert examples == [
        Example((BOS, *encode("ab")), (*encode(" c"), EOS)),
        Example((BOS,), (*encode("c"), EOS)),
        Example((BOS,), (*encode("abc"), EOS)),
        Example((BOS, 9), (8, EOS)),
        Example((BOS, 9, END), (8, EOS)),
        Example((BOS, 9), (8, END)),
    ]
    assert report == data.Report(6, 0, 0, {"id": 1}, sum(e.length for e in examples))


def test_conversations_are_learnt_where_the_model_speaks(tokenizer: Tokenizer, write: Write):
    said = ["A", "bb", "C", "dd"]
    roles = ["user", "model", "user", "assistant"]
    messages = [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]
    (example,), _ = data.read_jsonl(write({"messages": messages}), tokenizer)
    assert example.completion == (*tokenizer.encode("dd"), END)
    assert example.prompt[0] == BOS and BOS not in example.prompt[1:]
    assert tokenizer.decode(example.prompt) == "user\nA\nmodel\nbb\nuser\nC\nmodel\n"
    ((begin, end),) = example.answers
    assert example.prompt[begin:end] == (*tokenizer.encode("bb"), END)


VALID = {"prompt": "a", "completion": "b"}


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"prompt": "a", "target": " \n"}, "target is empty"),
        ({"prompt": [3], "completion": [EOS]}, "completion is empty"),
        ({"prompt": [3], "completion": []}, "completion is empty"),
        ({"text": ""}, "text is empty"),
        ({"prompt": [3, 262], "completion": [3]}, r"token id 262 .* \[0, 262\)"),
        ({"prompt": [3], "completion": [-1]}, "token id -1 lies outside"),
        ({"prompt": [3], "completion": [True]}, r"list of ids or messages, got true \(bool\)"),
        ({"prompt": [3], "completion": [3.0]}, r"list of ids or messages, got 3.0 \(float\)"),
        (
            {"prompt": 3, "completion": "b"},
            "prompt must be a string, a list of ids or messages, got 3",
        ),
        ({"prompt": "a", "completion": None}, "completion must be a string, a list of ids"),
        ({"text": ["a"]}, "text must be a string"),
        ({"prompt": [3, BOS], "completion": [3]}, "beginning of sequence, 2, within"),
        ({"prompt": [3], "completion": [3, EOS, 3]}, "special id 1 before its end"),
        ({"prompt": [3], "completion": [3, EOS, EOS]}, "special id 1 before its end"),
        ({"prompt": "a"}, r"expected those of one form: \{prompt, completion\}"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "expected those of one form"),
        ({"prompt": "a", "completion": "b", "target": "c"}, "expected those of one form"),
        ({"prompts": "a", "completion": "b"}, r"keys \['completion', 'prompts'\]"),
        ({"messages": []}, "messages must be a list of at least one"),
        ({"messages": "hi"}, "messages must be a list"),
        ({"messages": [{"role": "user"}]}, "message 1 must be an object with role and content"),
        ({"messages": [{"role": "user", "content": 3}]}, "content of message 1 must be a string"),
        ({"messages": [{"role": "user", "content": "a"}]}, "nothing to learn after it"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "model", "content": " "}]},
            "message 2 of the model's is empty",
        ),
        ({"messages": [{"role": "model", "content": "a"}]}, "turn 1 has role 'model'"),
        ([1], "must hold an object, got"),
        (b'{"prompt": "a", "prompt": "b", "completion": "c"}', "key .prompt. stands twice"),
        (b'{"prompt": "\xff", "completion": "c"}', "must be UTF-8"),
        (b'{"prompt": "\\ud800", "completion": "c"}', "prompt is not UTF-8"),
        (b'{"text": "\\ud800"}', "text is not UTF-8"),
        (b'{"prompt": ', "Expecting value"),
        (b"[" * 9_999, "nested too deeply"),
        ({"prompt": "a", "completion": "b", "document": 5}, "document must be a string, got 5"),
    ],
)
def test_a_bad_row_is_named(tokenizer: Tokenizer, write: Write, row: Any, message: str):
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2:? .*{message}"):
        data.read_jsonl(write(VALID, row), tokenizer)


def test_a_file_without_rows_is_refused(tokenizer: Tokenizer, write: Write):
    with pytest.raises(ValueError, match="has no rows"):
        data.read_jsonl(write(b""), tokenizer)


def test_the_models_table_may_be_smaller(tokenizer: Tokenizer, write: Write):
    path = write({"prompt": [200], "completion": [3]})
    data.read_jsonl(path, tokenizer, Limits(vocab_size=201))
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: token id 200 .* \[0, 200\)"):
        data.read_jsonl(path, tokenizer, Limits(vocab_size=200))


def test_overlong_rows(tokenizer: Tokenizer, write: Write):
    # With BOS and EOS: 6 + 3 and 4 + 3 tokens.
    path = write({"prompt": "abcde", "completion": "xy"}, {"prompt": "abc", "completion": "xy"})
    _, report = data.read_jsonl(path, tokenizer, Limits(max_length=9))
    assert report.dropped == report.truncated == 0
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: .* 6 and 3 tokens, .*max_length=8"):
        data.read_jsonl(path, tokenizer, Limits(max_length=8))
    kept, report = data.read_jsonl(path, tokenizer, Limits(max_length=8, overlong="drop"))
    assert [e.length for e in kept] == [7] and report[:3] == (2, 1, 0) and report.tokens == 7
    limits = Limits(max_length=8, max_prompt_length=4, overlong="truncate-left")
    kept, report = data.read_jsonl(path, tokenizer, limits)
    assert [tokenizer.decode(e.prompt) for e in kept] == ["cde", "abc"]
    assert all(e.prompt[0] == BOS for e in kept) and report[:3] == (2, 0, 1)
    limits = Limits(max_length=4, overlong="truncate-left")
    with pytest.raises(ValueError, match="even without its prompt"):
        data.read_jsonl(path, tokenizer, limits)


def test_a_text_loses_its_beginning(tokenizer: Tokenizer, write: Write):
    limits = Limits(max_length=4, overlong="truncate-left")
    (example,), report = data.read_jsonl(write({"text": "abcdef"}), tokenizer, limits)
    assert example == Example((BOS,), (*tokenizer.encode("ef"), EOS)) and report.truncated == 1


@hypothesis.settings(deadline=None)
@hypothesis.given(draw=st.data(), limit=st.integers(5, 12))
def test_truncation_moves_the_models_turns_along(draw: st.DataObject, limit: int):
    prompt = (BOS, *range(10, 10 + draw.draw(st.integers(3, 12))))
    ends = sorted(draw.draw(st.sets(st.integers(1, len(prompt)), min_size=4, max_size=4)))
    spans = ((ends[0], ends[1]), (ends[2], ends[3]))
    example = Example(prompt, (90, 91, EOS), spans)
    fitted = data.fit(example, Limits(max_length=limit, overlong="truncate-left"))
    assert fitted is not None and fitted.length == min(limit, example.length)
    expected = {i for b, e in spans for i in prompt[b:e]} & set(fitted.prompt)
    assert [i for b, e in fitted.answers for i in fitted.prompt[b:e]] == sorted(expected)


def test_prompts_to_generate_from(tokenizer: Tokenizer, write: Write):
    user, model = {"role": "user", "content": "a"}, {"role": "model", "content": "b"}
    path = write({"prompt": "ab", "id": 3}, {"messages": [user]}, {"messages": [user, model]})
    questions = data.read_questions(path, tokenizer, max_prompt_length=18)
    prompts = [question.ids for question in questions]
    assert prompts[0] == (BOS, *tokenizer.encode("ab"))
    assert prompts[1] == prompts[2] and prompts[1][:2] == (BOS, START)
    assert tokenizer.decode(prompts[1]) == "user\na\nmodel\n"
    with pytest.raises(ValueError, match=rf":2: the prompt has {len(prompts[1])} tokens"):
        data.read_questions(path, tokenizer, max_prompt_length=3)
    with pytest.raises(ValueError, match=r":1: .*expected prompt, messages, or"):
        data.read_questions(write({"text": "a"}), tokenizer)


def test_prompts_are_turns_on_request_and_lines_of_a_text_file(
    tokenizer: Tokenizer, write: Write, tmp_path: pathlib.Path
):
    user = {"role": "user", "content": "a"}
    path = write({"prompt": "a"}, {"messages": [user]})
    one, other = (x.ids for x in data.read_questions(path, tokenizer, as_turns=True))
    assert one == other and tokenizer.decode(one) == "user\na\nmodel\n"
    with pytest.raises(ValueError, match=r":1: prompt must be a string, got \[100\]"):
        data.read_questions(write({"prompt": [100]}), tokenizer, as_turns=True)
    lines = tmp_path / "lines.txt"
    lines.write_bytes(b'\xef\xbb\xbfab\r\n\n {"c"}\n')
    prompts = [question.ids for question in data.read_questions(lines, tokenizer)]
    assert prompts == [(BOS, *tokenizer.encode(text)) for text in ("ab", ' {"c"}')]
    lines.write_bytes(b"a\n\xff\n")
    with pytest.raises(ValueError, match=r"lines\.txt:2: 'utf-8' codec"):
        data.read_questions(lines, tokenizer)
    lines.write_text("\n \n")
    with pytest.raises(ValueError, match=r"lines\.txt has no lines; expected a prompt in each"):
        data.read_questions(lines, tokenizer)


def test_a_conversation_has_turns_in_whichever_form(tokenizer: Tokenizer, write: Write):
    messages = [{"role": r, "content": "a"} for r in ("user", "model")]
    rows = [{"messages": messages}, {"prompt": "a", "completion": "b"}, {"text": "a"}]
    examples, _ = data.read_jsonl(write(*rows), tokenizer)
    assert [data.is_conversation(x, tokenizer) for x in examples] == [True, False, False]
    parse = reading(tokenizer, "parse")
    text = "<bos><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
    (example,), _ = data.read_jsonl(write({"text": text}), parse)
    assert data.is_conversation(example, parse)


def test_prompts_to_generate_from_are_checked_before_work(tokenizer: Tokenizer, write: Write):
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: token id 290 lies outside .* \[0, 262\)"):
        data.read_questions(write({"prompt": "a"}, {"prompt": [290]}), tokenizer)
    path = write({"prompt": [200]})
    with pytest.raises(ValueError, match=r"token id 200 lies outside the vocabulary, \[0, 200\)"):
        data.read_questions(path, tokenizer, vocab_size=200)
    turns = [{"role": r, "content": "a"} for r in ("user", "model", "assistant")]
    with pytest.raises(ValueError, match=r":1: the last message is the model's, and a second"):
        data.read_questions(write({"messages": turns}), tokenizer)
    with pytest.raises(ValueError, match="turn 3 has role 'assistant', expected 'user'"):
        data.read_jsonl(write({"messages": turns}), tokenizer)


def test_a_byte_order_mark_is_passed_over(tokenizer: Tokenizer, write: Write):
    path = write(VALID)
    expected = data.read_jsonl(path, tokenizer)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert data.read_jsonl(path, tokenizer) == expected


def test_a_text_is_not_cut_to_its_end(tokenizer: Tokenizer, write: Write):
    path = write({"text": "abc"})
    for limit, said in ((3, "c"), (2, None)):
        limits = Limits(max_length=limit, overlong="truncate-left")
        if said is not None:
            (example,), _ = data.read_jsonl(path, tokenizer, limits)
            assert tokenizer.decode(example.completion) == said
        else:
            with pytest.raises(ValueError, match="nothing of a text but its end would be left"):
                data.read_jsonl(path, tokenizer, limits)


def test_a_row_names_its_document(tokenizer: Tokenizer, write: Write):
    rows = [VALID | {"document": "Paris."}, {"text": "a", "document": "Rome."}, VALID]
    examples, report = data.read_jsonl(write(*rows), tokenizer)
    assert [example.document for example in examples] == ["Paris.", "Rome.", ""]
    assert report.ignored_keys == {}
    long = Example((BOS, 7, 8, 9), (8, EOS), document="Paris.")
    fitted = data.fit(long, Limits(max_length=5, overlong="truncate-left"))
    assert fitted == Example((BOS, 8, 9), (8, EOS), document="Paris.")


RENDERED = (
    "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYes<end_of_turn>\n",
    "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
)
TURNS = [{"role": "user", "content": "Hi"}, {"role": "model", "content": "Yes"}]


def test_text_that_carries_a_template_is_said(tokenizer: Tokenizer, write: Write):
    path = write(
        VALID,
        {"prompt": "a <end_of_turn> b", "completion": "c"},
        {"text": RENDERED[0]},
        {"messages": [{"role": "user", "content": "<bos>a"}, TURNS[1]]},
        {"text": "of <bos> and <eos> in the middle"},
    )
    _, report = data.read_jsonl(path, tokenizer)
    assert (report.spelled, report.first_spelled) == (3, f"{path}:2: <end_of_turn>")
    (said,) = data.notices({"train": report, "test": report})
    assert "\n" not in said
    assert f"{path}:2 (and 5 more) spells <end_of_turn>" in said and "parse" in said
    path = write({"text": RENDERED[0]})
    _, report = data.read_jsonl(path, reading(tokenizer, "parse"))
    assert report.spelled == 0 and not [*data.notices({"train": report})]
    spelled: list[tuple[str, str]] = []
    path = write({"prompt": RENDERED[1]})
    data.read_questions(path, tokenizer, on_spelled=lambda *said: spelled.append(said))
    assert spelled == [(f"{path}:1", "<start_of_turn>")]


def test_text_that_carries_a_template_is_read_on_request(tokenizer: Tokenizer, write: Write):
    read = reading(tokenizer, "parse")
    (chat,), _ = data.read_jsonl(write({"messages": TURNS}), tokenizer)
    for completion in ("Yes<end_of_turn>", "Yes<end_of_turn>\n"):
        row = {"prompt": RENDERED[1], "completion": completion}
        (example,), _ = data.read_jsonl(write(row), read)
        assert example == chat
    (example,), _ = data.read_jsonl(write({"text": RENDERED[0]}), read)
    assert (*example.prompt, *example.completion) == (*chat.prompt, *chat.completion)
    (question,) = data.read_questions(write({"prompt": RENDERED[1]}), read)
    assert question.ids == chat.prompt
    for row, message in (
        ({"prompt": "a", "completion": "b<end_of_turn>c"}, "special id 5 before its end"),
        ({"text": "a<bos>b"}, "special id 2 before its end"),
        ({"messages": [TURNS[0], {"role": "model", "content": "a<eos>b"}]}, "special id 1 before"),
    ):
        with pytest.raises(ValueError, match=message):
            data.read_jsonl(write(row), read)


def test_rows_of_which_nothing_can_be_learnt_may_be_left_out(tokenizer: Tokenizer, write: Write):
    path = write(VALID, {"text": " "}, VALID, {"prompt": "a"})
    examples, report = data.read_jsonl(path, tokenizer, Limits(unusable="drop"))
    assert (len(examples), report.rows, report.unusable) == (2, 4, 2)
    assert report.first_unusable == f"{path}:2: text is empty; there is nothing to learn"
    (said,) = data.notices({"train": report, "test": data.Report(1, 0, 0, {}, 9)})
    assert said == f"warning: 2 of 5 rows are left out, first {report.first_unusable}"
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: .* more than max_length=2"):
        data.read_jsonl(path, tokenizer, Limits(unusable="drop", max_length=2))


def test_limits_are_checked():
    with pytest.raises(ValueError, match="unusable must be drop or error, got 'skip'"):
        Limits(unusable="skip")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"overlong must be .* 'truncate'"):
        Limits(overlong="truncate")  # pyright: ignore[reportArgumentType]
    for name in ("max_length", "max_prompt_length"):
        with pytest.raises(ValueError, match=f"{name} must be >= 2"):
            Limits(**{name: 1})  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="vocab_size must be >= 1"):
        Limits(vocab_size=0)
