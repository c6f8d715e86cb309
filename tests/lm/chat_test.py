"""Tests of lm/chat.py."""

import json
import pathlib

import pytest
import tokenizers

from kullback.lm import chat
from kullback.lm.tokenizer import Tokenizer, load, save, train_bpe

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  What is 1+2?\n"},
    {"role": "model", "content": " 3 "},
    {"role": "user", "content": "<end_of_turn>Sure?"},
    {"role": "assistant", "content": "Yes.\n\nSure"},
]
RENDERED = (
    "<bos><start_of_turn>user\nBe brief.\n\nWhat is 1+2?<end_of_turn>\n"
    "<start_of_turn>model\n3<end_of_turn>\n"
    "<start_of_turn>user\n%sSure?<end_of_turn>\n"
    "<start_of_turn>model\nYes.\n\nSure<end_of_turn>\n"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["Be brief. What is 1+2?\n\nuser\nmodel\nSure"] * 30, 320)


def flat(segments: list[chat.Segment]) -> list[int]:
    return [i for segment in segments for i in segment.ids]


def test_ids_are_those_of_the_whole_text(tokenizer: Tokenizer, tmp_path: pathlib.Path):
    save(tokenizer, tmp_path)
    inner = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))  # "<bos>" is an id.
    messages = [m | {"content": m["content"].replace("<end_of_turn>", "")} for m in MESSAGES]
    got = flat(chat.chat(messages, tokenizer))
    assert got == inner.encode(RENDERED % "", add_special_tokens=False).ids
    assert got.count(tokenizer.bos_id) == 1
    got = flat(chat.chat(messages[:2], tokenizer, add_generation_prompt=True))
    expected = (
        "<bos><start_of_turn>user\nBe brief.\n\nWhat is 1+2?<end_of_turn>\n<start_of_turn>model\n"
    )
    assert got == inner.encode(expected, add_special_tokens=False).ids


def test_the_models_turns_are_marked(tokenizer: Tokenizer):
    segments = chat.chat(MESSAGES, tokenizer)
    said = [tokenizer.decode(s.ids) for s in segments if s.is_model_turn]
    assert said == ["3", "Yes.\n\nSure"]
    assert all(s.ids[-1] == tokenizer.end_of_turn_id for s in segments if s.is_model_turn)
    assert [s.is_model_turn for s in segments] == [False, True, False, True, False]


def test_no_message_can_end_its_turn(tokenizer: Tokenizer):
    ids = flat(chat.chat(MESSAGES, tokenizer))
    assert [i for i in ids if i in (4, 5)] == [4, 5] * 4
    assert "<end_of_turn>Sure?" in tokenizer.decode(ids)


@pytest.mark.parametrize(
    "roles, message",
    [
        (["model"], "turn 1 has role 'model', expected 'user'"),
        (["user", "user"], "turn 2 has role 'user', expected 'model'"),
        (["user", "tool"], "turn 2 has role 'tool'"),
        (["user", "system"], "turn 2 has role 'system'"),
        (["system"], "needs a message of the user's"),
        ([], "needs a message of the user's"),
    ],
)
def test_other_orders_are_refused(tokenizer: Tokenizer, roles: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        chat.chat([{"role": role, "content": "a"} for role in roles], tokenizer)


def test_a_vocabulary_without_turns_has_no_template(tokenizer: Tokenizer, tmp_path: pathlib.Path):
    data = tokenizer.sources["tokenizer.json"]
    (tmp_path / "tokenizer.json").write_bytes(data.replace(b"_of_turn>", b"_of_talk>"))
    other = load(tmp_path)
    assert other.eos_ids == (1,)
    with pytest.raises(ValueError, match="no chat template"):
        chat.chat(MESSAGES, other)
    assert chat.template_fingerprint(other) == ""
    assert len(chat.template_fingerprint(tokenizer)) == 64
    retrained = train_bpe(["model user user"] * 30, 330)
    assert chat.template_fingerprint(retrained) != chat.template_fingerprint(tokenizer)


def test_a_conversation_goes_on_with_the_ids_that_were_drawn(tokenizer: Tokenizer):
    system, first, second = (message["content"] for message in (*MESSAGES[:2], MESSAGES[3]))
    answer = tuple(tokenizer.encode("3"))
    turn = chat.Turn(first, answer)
    for given, expected in (
        (chat.continued([], first, tokenizer, system), MESSAGES[:2]),
        (chat.continued([turn], second, tokenizer, system), MESSAGES[:4]),
        (chat.continued([turn], second, tokenizer), MESSAGES[1:4]),
    ):
        assert given == flat(chat.chat(expected, tokenizer, add_generation_prompt=True))
    drawn = (*answer[:1], 300, 7)
    ids = chat.continued([chat.Turn(first, drawn)], second, tokenizer)
    begin = len(chat.continued([], first, tokenizer))
    assert tuple(ids[begin : begin + 4]) == (*drawn, tokenizer.end_of_turn_id)


def test_a_template_is_a_file_of_the_tokenizer(tokenizer: Tokenizer, tmp_path: pathlib.Path):
    assert not chat.has_template(tokenizer)
    templated = chat.with_template(tokenizer)
    assert chat.has_template(templated) and chat.with_template(templated) is templated
    assert templated.fingerprint == tokenizer.fingerprint
    save(templated, tmp_path)
    assert chat.has_template(load(tmp_path))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "chat_template.jinja").unlink()
    assert not chat.has_template(load(tmp_path))
    # As older folders have it.
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{a}}"}))
    assert chat.has_template(load(tmp_path))


def test_the_template_renders_as_we_do():
    jinja2 = pytest.importorskip("jinja2")

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(chat.TEMPLATE)
    given = {"bos_token": "<bos>", "raise_exception": refuse}
    assert template.render(messages=MESSAGES, **given) == RENDERED % "<end_of_turn>"
    opened = template.render(messages=MESSAGES[1:2], add_generation_prompt=True, **given)
    assert opened == ("<bos><start_of_turn>user\nWhat is 1+2?<end_of_turn>\n<start_of_turn>model\n")
    with pytest.raises(ValueError, match="take turns"):
        template.render(messages=MESSAGES[2:], **given)
