"""Tests of lm/chat.py."""

import json
import pathlib
from typing import Any

import pytest
import tokenizers

from kullback.lm import blocks, chat, forms, interleaved
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
    sighted = chat.with_template(tokenizer, forms.IMAGES)
    assert b"<start_of_image>" in sighted.sources["chat_template.jinja"]
    save(templated, tmp_path)
    assert chat.has_template(load(tmp_path))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "chat_template.jinja").unlink()
    assert not chat.has_template(load(tmp_path))
    # As older folders have it.
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{a}}"}))
    assert chat.has_template(load(tmp_path))


REFERENCE = json.loads((pathlib.Path(__file__).parent / "fixtures" / "layouts.json").read_text())
IMAGE = {"type": "image"}
CAT, DOG = (interleaved.Image(name, 0, REFERENCE["soft_tokens"]) for name in ("cat", "dog"))


def item(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.fixture(scope="module")
def sighted(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Returns the tokenizer of the conversations that transformers' processor has rendered."""
    folder = tmp_path_factory.mktemp("sighted")
    (folder / "tokenizer.json").write_text(json.dumps(REFERENCE["tokenizer"]))
    return load(folder)


@pytest.mark.parametrize(
    "number, content, images",
    [
        (0, [IMAGE, item(" What is this?\n")], [CAT]),
        (1, [item("What is "), IMAGE, item("\nthis?")], [CAT]),
        (3, [IMAGE, IMAGE, item("How many?")], [CAT, DOG]),
        (5, [item("What is"), IMAGE, item("?")], [CAT._replace(crops=3)]),
    ],
)
def test_images_are_written_as_transformers_writes_them(
    sighted: Tokenizer, number: int, content: list[Any], images: list[interleaved.Image]
):
    case = REFERENCE["cases"][number]
    messages = [{"role": "user", "content": content}]
    segments = chat.chat(messages, sighted, shown=images, add_generation_prompt=number == 1)
    expected = case["ids"]
    if number == 5:  # There the text before the image ends in a space.
        expected = interleaved.encode(
            [(2, 4), "user\nWhat is", *images, "?", (5,), "\n"],
            sighted.encode,
            blocks.markers_of(sighted),
        ).ids
        assert len(expected) == len(case["ids"]) - 1
    assert flat(segments) == expected
    views = [view for image in images for view in interleaved.views(image)]
    assert [medium for segment in segments for medium in segment.media] == views


def test_images_of_several_turns_are_in_order(sighted: Tokenizer):
    messages = [
        {"role": "system", "content": [item("Here ")]},
        {"role": "user", "content": [IMAGE, item("this?")]},
        {"role": "model", "content": [item(" red "), item(" is")]},
        {"role": "user", "content": [item("<start_of_image>"), IMAGE]},
    ]
    segments = chat.chat(messages, sighted, shown=[CAT, DOG], add_generation_prompt=True)
    assert [[medium.source for medium in segment.media] for segment in segments] == [
        ["cat"],
        [],
        ["dog"],
    ]
    ids = flat(segments)
    assert len(blocks.find(ids, blocks.markers_of(sighted))) == 2
    assert sighted.decode(ids) == (
        "user\nHere \n\n\n\n\n\nthis?\nmodel\nredis\nuser\n<start_of_image>\n\n\n\n\nmodel\n"
    )
    turn = chat.Turn("this?", tuple(sighted.encode("redis")), (CAT,))
    given = chat.continued([turn], "", sighted, "Here ", [DOG])
    messages[3]["content"] = [IMAGE]
    again = chat.chat(messages, sighted, shown=[CAT, DOG], add_generation_prompt=True)
    assert given == flat(again)


@pytest.mark.parametrize(
    "contents, count, message",
    [
        (["Hi"], 1, "the messages have 0 images or clips and 1 were given"),
        ([[IMAGE, IMAGE]], 1, "the messages have 2 images or clips and 1 were given"),
        ([[IMAGE]], 0, "the messages have 1 images or clips and 0 were given"),
        (["Hi", [IMAGE]], 1, "turn 2, of the model's, has an image"),
    ],
)
def test_images_out_of_place_are_refused(
    sighted: Tokenizer, contents: list[Any], count: int, message: str
):
    roles = ("user", "model")
    messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
    with pytest.raises(ValueError, match=message):
        chat.chat(messages, sighted, shown=[CAT] * count)


def test_the_systems_items_are_refused_where_the_template_reads_one(
    sighted: Tokenizer, tokenizer: Tokenizer
):
    user = {"role": "user", "content": "Hi"}
    with pytest.raises(ValueError, match="has 2 items, of which the template reads the first"):
        chat.chat([{"role": "system", "content": [item("a"), item("b")]}, user], sighted)
    with pytest.raises(ValueError, match="the system's message has an image"):
        chat.chat([{"role": "system", "content": [IMAGE]}, user], sighted, shown=[CAT])
    with pytest.raises(ValueError, match="has no <start_of_image>"):
        chat.chat([{"role": "user", "content": [IMAGE]}], tokenizer, shown=[CAT])


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
    template = environment.from_string(chat.IMAGE_TEMPLATE)
    assert template.render(messages=MESSAGES, **given) == RENDERED % "<end_of_turn>"
    items = [
        {"role": "system", "content": [item("Be brief.")]},
        {"role": "user", "content": [item(" What is "), IMAGE, item(" 1+2?\n")]},
    ]
    assert template.render(messages=items, **given) == (
        "<bos><start_of_turn>user\nBe brief.\n\nWhat is<start_of_image>1+2?<end_of_turn>\n"
    )
