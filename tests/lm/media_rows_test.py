"""Tests of lm/media_rows.py, and of rows with images in lm/data.py."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import PIL.Image
import pytest

from kullback.lm import (
    batches,
    blocks,
    data,
    forms,
    interleaved,
    media_rows,
    pictures,
    preferences,
    splits,
    tasks,
)
from kullback.lm.tokenizer import Tokenizer, reading, train_bpe
from tests import clips

IMAGE, TEXT = {"type": "image"}, {"type": "text", "text": "How many?"}
ANSWER = {"role": "assistant", "content": "2"}
NUM_SOFT = 3


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = [*["user\n\n\nHow many?\n\n\nmodel 2"] * 20, "ZQ", "ZQ"]  # ZQ is the last piece.
    return train_bpe(texts, 330, further_controls=blocks.IMAGE_TOKENS)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "deeper").mkdir()
    PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    PIL.Image.new("RGB", (40, 8), "blue").save(tmp_path / "deeper" / "b.png")
    return tmp_path


def how(**settings: Any) -> media_rows.ImageSettings:
    return media_rows.ImageSettings(pictures.Config(side=8, min_crop_side=4, **settings), NUM_SOFT)


def reader(folder: pathlib.Path, **settings: Any) -> media_rows.Reader:
    return media_rows.Reader(folder=folder, settings=how(**settings))


def written(folder: pathlib.Path, *records: dict[str, Any]) -> pathlib.Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


EQUAL = [  # One image before the question.
    {"prompt": "How many?", "images": ["a.png"], "completion": "2"},
    {"prompt": "How many?", "image": "a.png", "completion": "2"},
    {"prompt": [IMAGE, TEXT], "images": ["./a.png"], "completion": "2"},
    {"prompt": [{**IMAGE, "path": "a.png"}, TEXT], "completion": "2"},
    {"prompt": [user([IMAGE, TEXT])], "images": ["a.png"], "completion": [ANSWER]},
    {"prompt": [user("How many?")], "images": ["a.png"], "completion": [ANSWER]},
    {"messages": [user([IMAGE, TEXT]), ANSWER], "images": [{"bytes": None, "path": "a.png"}]},
    {"messages": [user([{**IMAGE, "image": "a.png"}, TEXT]), ANSWER]},
    {"messages": [user([{**IMAGE, "url": "a.png"}, TEXT]), ANSWER]},
    {"messages": [user([TEXT]), ANSWER], "images": ["a.png"]},
    {"messages": [user("How many?"), ANSWER], "image": {"path": "a.png"}},
    {"messages": [user([IMAGE, TEXT]), ANSWER], "images": ["a.png"], "prompt": "How many?"},
]


@pytest.mark.parametrize("record", EQUAL)
def test_a_row_is_the_same_in_every_form(
    record: dict[str, Any], folder: pathlib.Path, tokenizer: Tokenizer
):
    examples, report = data.read_jsonl(written(folder, record), tokenizer, media=reader(folder))
    (example,) = examples
    assert tokenizer.decode(example.prompt) == "user\n\n\n\n\nHow many?\nmodel\n"
    assert tokenizer.decode(example.completion) == "2"
    (block,) = blocks.find(example.prompt, blocks.markers_of(tokenizer))
    assert block.end - block.begin == NUM_SOFT + 2
    (medium,) = example.media
    assert medium.source.endswith("a.png") and pathlib.Path(medium.source).is_file()
    assert not report.ignored_keys
    (question,) = data.read_questions(folder / "rows.jsonl", tokenizer, media=reader(folder))
    assert (question.ids, question.media) == (example.prompt, example.media)


def test_images_of_a_conversation_are_in_order(folder: pathlib.Path, tokenizer: Tokenizer):
    turns = [user([TEXT, IMAGE, IMAGE]), ANSWER, user([IMAGE, TEXT]), ANSWER]
    record = {"messages": turns, "images": ["deeper/b.png", "a.png", "a.png"]}
    path = written(folder, record)
    (example,) = data.read_jsonl(path, tokenizer, media=reader(folder, pan_and_scan=True))[0]
    views = [(pathlib.Path(m.source).name, m.view) for m in example.media]
    crops = [("b.png", n) for n in range(5)]  # 40 x 8 has four crops.
    assert views == [*crops, ("a.png", 0), ("a.png", 0)]
    ((begin, end),) = example.answers
    spans = blocks.find(example.prompt, blocks.markers_of(tokenizer))
    assert len(spans) == 7 and spans[5].end <= begin and end <= spans[6].begin


REFUSED = [
    ({"prompt": "a", "images": ["none.png"], "completion": "2"}, r"none\.png is missing"),
    ({"prompt": "a", "images": ["../a.png"], "completion": "2"}, r"'\.\./a\.png' must be a name"),
    ({"prompt": "a", "images": ["/etc/passwd"], "completion": "2"}, "must be a name inside"),
    ({"prompt": "a", "images": ["link.png"], "completion": "2"}, "is a link out of the folder"),
    ({"prompt": "a", "images": ["rows.jsonl"], "completion": "2"}, "is no image that we read"),
    ({"prompt": "a", "images": ["http://x/a.png"], "completion": "2"}, "is no file; fetch it"),
    ({"prompt": "a", "images": "a.png", "completion": "2"}, "images must be a list"),
    ({"prompt": "a", "images": [3], "completion": "2"}, r"must be the names of files, got 3"),
    ({"prompt": "a", "image": {"bytes": "Qk0="}, "completion": "2"}, "must be the names of files"),
    ({"prompt": "a", "images": [], "image": "a.png", "completion": "2"}, "images or image, not"),
    ({"prompt": [IMAGE, TEXT], "completion": "2"}, "have 1 images and 0 files are named"),
    (
        {"prompt": [IMAGE, TEXT, IMAGE], "images": ["a.png"], "completion": "2"},
        "have 2 images and 1 files are named",
    ),
    (
        {"prompt": [{**IMAGE, "path": "a.png"}, IMAGE, TEXT], "completion": "2"},
        "have 2 images and 0 files are named",
    ),
    (
        {"prompt": [{**IMAGE, "path": "a.png"}], "images": ["a.png"], "completion": "2"},
        "named by items and by a column",
    ),
    ({"text": "a", "images": ["a.png"]}, "images need messages, or a prompt"),
    ({"prompt": [1, 2], "images": ["a.png"], "completion": [3]}, "images need messages"),
    ({"messages": [ANSWER], "images": ["a.png"]}, "need a message of the user's"),
    (
        {"messages": [user("a"), {"role": "model", "content": [{**IMAGE, "path": "a.png"}]}]},
        "content of message 2 has a part of the type .*: nothing but text is read",
    ),
    (
        {"messages": [user([{"type": "audio"}, {**IMAGE, "path": "a.png"}]), ANSWER]},
        "content of message 1 has a part of .*: nothing but text and images is read",
    ),
]


@pytest.mark.parametrize("record, message", REFUSED)
def test_other_rows_are_refused_with_file_and_line(
    record: dict[str, Any],
    message: str,
    folder: pathlib.Path,
    tokenizer: Tokenizer,
    tmp_path_factory: pytest.TempPathFactory,
):
    outside = tmp_path_factory.mktemp("outside") / "a.png"
    PIL.Image.new("RGB", (8, 8)).save(outside)
    os.symlink(outside, folder / "link.png")
    path = written(folder, EQUAL[0], record)
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: .*{message}") as caught:
        data.read_jsonl(path, tokenizer, media=reader(folder))
    assert "\n" not in str(caught.value)


def test_without_a_reader_images_are_refused(folder: pathlib.Path, tokenizer: Tokenizer):
    path = written(folder, EQUAL[7])
    with pytest.raises(ValueError, match=r'rows\.jsonl:1: .*type "image".*nothing but text is'):
        data.read_jsonl(path, tokenizer)


def test_an_example_that_would_lose_an_image_is_dropped(folder: pathlib.Path, tokenizer: Tokenizer):
    turns = [user([TEXT, IMAGE]), ANSWER, user([TEXT]), ANSWER]
    path = written(folder, {"messages": turns, "images": ["a.png"]})
    (whole,) = data.read_jsonl(path, tokenizer, media=reader(folder))[0]
    (block,) = blocks.find(whole.prompt, blocks.markers_of(tokenizer))
    for max_length in range(whole.length - block.begin - 3, whole.length + 1):
        limits = data.Limits(max_length=max_length, overlong="truncate-left")
        examples, report = data.read_jsonl(path, tokenizer, limits, reader(folder))
        # BOS stays, so that all before the image but BOS may go.
        is_kept = whole.length - max_length <= block.begin - 1
        assert (len(examples), report.dropped) == ((1, 0) if is_kept else (0, 1))
        assert not examples or len(examples[0].media) == 1


def test_names_in_texts_stay_text(folder: pathlib.Path, tokenizer: Tokenizer):
    record = {"prompt": "<start_of_image>?", "images": ["a.png"], "completion": "2"}
    (example,) = data.read_jsonl(written(folder, record), tokenizer, media=reader(folder))[0]
    assert "<start_of_image>?" in tokenizer.decode(example.prompt)
    assert len(blocks.find(example.prompt, blocks.markers_of(tokenizer))) == 1
    with pytest.raises(ValueError, match="begins an image, a frame or a clip that is not whole"):
        data.read_jsonl(folder / "rows.jsonl", reading(tokenizer, "parse"), media=reader(folder))


def test_soft_ids_may_lie_beyond_the_embedding(folder: pathlib.Path, tokenizer: Tokenizer):
    path, last = written(folder, EQUAL[0]), tokenizer.vocab_size - 1
    controls = {**tokenizer.controls, "<image_soft_token>": last}
    other = dataclasses.replace(tokenizer, controls=controls)
    (example,) = data.read_jsonl(path, other, data.Limits(vocab_size=last), reader(folder))[0]
    assert example.prompt.count(last) == NUM_SOFT
    beyond = {"prompt": [last], "completion": "2"}
    with pytest.raises(ValueError, match=f"token id {last} lies outside"):
        data.read_jsonl(written(folder, beyond), other, data.Limits(vocab_size=last))


def test_each_file_is_read_once(
    folder: pathlib.Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    names: list[str] = []
    read = pictures.read
    monkeypatch.setattr(pictures, "read", lambda path: names.append(path.name) or read(path))
    path = written(folder, *EQUAL)
    data.read_jsonl(path, tokenizer, media=reader(folder))
    assert names == ["a.png"]


CLIP = {"type": "audio"}
HEARD = [  # One clip before the question.
    {"prompt": "How many?", "audio": "a.wav", "completion": "2"},
    {"prompt": "How many?", "audios": ["./a.wav"], "completion": "2"},
    {"prompt": [{**CLIP, "audio": "a.wav"}, TEXT], "completion": "2"},
    {"messages": [user([CLIP, TEXT]), ANSWER], "audio": {"path": "a.wav", "bytes": None}},
]


@pytest.fixture(scope="module")
def hears() -> Tokenizer:
    return train_bpe(["user\n\n\nHow many?\n\n\nmodel 2"] * 2, 330, further_controls=HEARS)


HEARS = blocks.AUDIO_TOKENS
SOUNDS = media_rows.SoundSettings(4)


def test_a_row_with_a_clip_is_the_same_in_every_form(folder: pathlib.Path, hears: Tokenizer):
    clips.write(folder / "a.wav", 440, 5000)
    sounds = media_rows.Reader(folder=folder, settings=SOUNDS)
    read, report = data.read_jsonl(written(folder, *HEARD), hears, media=sounds)
    assert len({(example.prompt, example.completion) for example in read}) == 1
    (block,) = blocks.find(read[0].prompt, blocks.markers_of(hears))
    assert block.delimiters == blocks.audio_ids(hears) and block.end - block.begin == 2 + 2
    assert read[0].media == (interleaved.Medium(str(folder / "a.wav"), 0, 2),)
    assert not report.ignored_keys
    # Read as text alone, the columns are ignored and counted.
    _, report = data.read_jsonl(written(folder, *HEARD[:2]), hears)
    assert report.ignored_keys == {"audio": 1, "audios": 1}
    on_test = {splits.is_on(row, "test", hears, modality=forms.AUDIO) for row in HEARD}
    assert len(on_test) == 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "audio": "none.wav", "completion": "2"}, "none.wav is missing"),
        ({"prompt": "a", "audio": "../a.wav", "completion": "2"}, "must be a name inside"),
        ({"prompt": "a", "audio": "a.png", "completion": "2"}, "a.png is no WAV file"),
        ({"prompt": "a", "audio": "long.wav", "completion": "2"}, "more than the 4 of a clip"),
        ({"prompt": "a", "audio": "short.wav", "completion": "2"}, "no longer than 32 ms"),
        ({"prompt": "a", "audio": "fast.wav", "completion": "2"}, "at 44100 Hz, expected 1"),
        ({"prompt": "a", "audio": "http://x/a.wav", "completion": "2"}, "of clips, is no file"),
        ({"prompt": [IMAGE, TEXT], "completion": "2"}, "nothing but text and clips is read"),
        ({"prompt": [CLIP, TEXT], "completion": "2"}, "have 1 clips and 0 files are named"),
    ],
)
def test_other_clips_are_refused_with_file_and_line(
    record: dict[str, Any], message: str, folder: pathlib.Path, hears: Tokenizer
):
    for name, samples, rate in (
        ("long.wav", 20_000, 16_000),
        ("short.wav", 512, 16_000),
        ("fast.wav", 5_000, 44_100),
    ):
        clips.write(folder / name, 440, samples, rate)
    sounds = media_rows.Reader(folder=folder, settings=SOUNDS)
    with pytest.raises(ValueError, match=rf"rows\.jsonl:1: .*{message}") as caught:
        data.read_jsonl(written(folder, record), hears, media=sounds)
    assert "\n" not in str(caught.value)


def pairs() -> list[dict[str, Any]]:
    """Returns one pair of answers about one image in each form."""
    before = [user([IMAGE, TEXT])]
    chosen, rejected = [ANSWER], [{"role": "assistant", "content": "3"}]
    named = [user([{**IMAGE, "path": "a.png"}, TEXT])]
    return [
        {"prompt": "How many?", "images": ["a.png"], "chosen": "2", "rejected": "3"},
        {"prompt": before, "images": ["a.png"], "chosen": chosen, "rejected": rejected},
        {"prompt": named, "chosen": chosen, "rejected": rejected},
        {"images": ["a.png"], "chosen": before + chosen, "rejected": before + rejected},
        {"chosen": named + chosen, "rejected": named + rejected},
        {
            "prompt": "How many?",
            "image": "a.png",
            "chosen": before + chosen,
            "rejected": before + rejected,
        },
    ]


@pytest.mark.parametrize("record", pairs())
def test_a_pair_has_the_image_of_its_prompt(
    record: dict[str, Any], folder: pathlib.Path, tokenizer: Tokenizer
):
    read, report = preferences.read_jsonl(written(folder, record), tokenizer, media=reader(folder))
    (pair,) = read
    (expected,) = data.read_jsonl(written(folder, EQUAL[0]), tokenizer, media=reader(folder))[0]
    assert pair.chosen == expected
    assert pair.rejected == expected._replace(completion=pair.rejected.completion)
    assert tokenizer.decode(pair.rejected.completion) == "3"
    assert not report.ignored_keys
    (block,) = blocks.find(pair.chosen.prompt, blocks.markers_of(tokenizer))
    limits = data.Limits(max_length=pair.length - block.begin, overlong="truncate-left")
    path = written(folder, record)
    assert preferences.read_jsonl(path, tokenizer, limits, reader(folder))[1].dropped == 1


def test_a_pair_of_different_images_is_refused(folder: pathlib.Path, tokenizer: Tokenizer):
    one, other = ([user([{**IMAGE, "path": n}, TEXT])] for n in ("a.png", "deeper/b.png"))
    record = {"chosen": [*one, ANSWER], "rejected": [*other, {**ANSWER, "content": "3"}]}
    with pytest.raises(ValueError, match="must be the same but for the last"):
        preferences.read_jsonl(written(folder, record), tokenizer, media=reader(folder))


def test_an_image_is_on_one_side_with_all_of_its_questions(
    folder: pathlib.Path, tokenizer: Tokenizer
):
    sides = {}
    for n in range(60):
        name = f"{n}.png"
        rows = [
            {"prompt": "How many?", "images": [name], "completion": "2"},
            {"prompt": f"Are there {n}?", "image": f"./{name}", "completion": "2"},
            {"messages": [user([{**IMAGE, "path": name}, TEXT]), ANSWER]},
            {"chosen": [user([{**IMAGE, "path": name}, TEXT]), ANSWER], "rejected": []},
        ]
        on_test = {splits.is_on(row, "test", tokenizer, modality=forms.IMAGES) for row in rows}
        assert len(on_test) == 1
        sides[name] = on_test.pop()
    assert 0 < sum(sides.values()) < 20
    # Read as text the question decides, as before.
    rows = [{"prompt": "How many?", "images": [name], "completion": "2"} for name in sides]
    assert len({splits.is_on(row, "test", tokenizer) for row in rows}) == 1
    malformed = {"prompt": "How many?", "images": [3], "completion": "2"}
    assert all(
        splits.is_on(malformed, side, tokenizer, modality=forms.IMAGES)
        for side in ("train", "test")
    )
    for name in sides:
        PIL.Image.new("RGB", (2, 2)).save(folder / name)
    task = tasks.jsonl(written(folder, *rows))
    train, test = (task.examples(side, tokenizer, None, how())[0] for side in ("train", "test"))
    assert len(test) == sum(sides.values()) and len(train) == 60 - len(test)
    held_out = {pathlib.Path(example.media[0].source).name for example in test}
    assert held_out == {name for name, on_test in sides.items() if on_test}
    assert task.texts("train") == ["How many?2"] * 60


def test_pairs_of_a_folder_have_images(folder: pathlib.Path, tokenizer: Tokenizer):
    for name in ("train", "test"):
        (folder / f"{name}.jsonl").write_text(json.dumps(pairs()[0]) + "\n")
    task = tasks.preference_pairs(folder)
    assert task.pairs is not None
    (pair,), _ = task.pairs("train", tokenizer, None, how())
    assert len(pair.chosen.media) == 1
    (example,), _ = task.examples("test", tokenizer, None, how())
    assert example == pair.chosen
    assert not task.pairs("train", tokenizer, None)[0][0].chosen.media
    with pytest.raises(ValueError, match="examples have images or clips, which this"):
        preferences.batched([pair], batches.Config(batch_size=1), 0)
