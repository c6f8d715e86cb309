"""Tests of lm/tokenizer.py."""

import io
import json
import pathlib

import hypothesis
import pytest
import sentencepiece
import tokenizers
from hypothesis import strategies as st

from kullback.lm.tokenizer import Stream, Tokenizer, decode_chunk, load, reading, save, train_bpe

TEXTS = [
    "The cat sat on the mat.\n\nIt was 12 years old; 3 + 4 = 7.",
    "Été à la plage: 5€ 🙂🙂 <bos><start_of_turn> <end_of_turn>",
] * 30


def sentencepiece_model(*, add_dummy_prefix: bool = False, normalizer: str = "identity") -> bytes:
    """Trains a small SentencePiece model in Gemma's manner."""
    model = io.BytesIO()
    train = sentencepiece.SentencePieceTrainer.train  # pyright: ignore[reportAttributeAccessIssue]
    train(
        sentence_iterator=iter(line for text in TEXTS for line in text.splitlines()),
        model_writer=model,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=add_dummy_prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name=normalizer,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "<h1>"],
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def gemma_json(model: bytes) -> str:
    """Returns the same vocabulary and merges in the format of Gemma's tokenizer.json."""
    inner = sentencepiece.SentencePieceProcessor(model_proto=model)  # pyright: ignore
    pieces = [inner.id_to_piece(i) for i in range(inner.vocab_size())]
    rank = {piece: i for i, piece in enumerate(pieces)}
    merges = sorted(
        (
            (piece[:n], piece[n:])
            for piece in pieces
            for n in range(1, len(piece))
            if piece[:n] in rank and piece[n:] in rank and not piece.startswith("<")
        ),
        key=lambda pair: rank["".join(pair)],
    )
    bpe = tokenizers.models.BPE(rank, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    tokenizer.add_special_tokens(pieces[:6])
    tokenizer.add_tokens(["<h1>"])
    return tokenizer.to_str()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    """Writes one tokenizer of each format."""
    folder = tmp_path_factory.mktemp("tokenizers")
    names = {name: folder / name for name in ("byte_level", "sentencepiece", "gemma")}
    for path in names.values():
        path.mkdir()
    save(train_bpe(TEXTS, 330), names["byte_level"])
    model = sentencepiece_model()
    (names["sentencepiece"] / "tokenizer.model").write_bytes(model)
    (names["gemma"] / "tokenizer.json").write_text(gemma_json(model))
    return names


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece", "gemma"])
def tokenizer(request: pytest.FixtureRequest, folders: dict[str, pathlib.Path]) -> Tokenizer:
    return load(folders[request.param])


def test_special_ids_are_gemmas(tokenizer: Tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
    assert (tokenizer.start_of_turn_id, tokenizer.end_of_turn_id) == (4, 5)
    assert tokenizer.eos_ids == (1, 5)


@hypothesis.settings(deadline=None)
@hypothesis.given(
    # A surrogate is no character, and UTF-8 has none.
    text=st.text(st.characters(exclude_characters="\u2581", exclude_categories=("Cs",))),
    cuts=st.data(),
)
def test_text_comes_back_whole_and_in_chunks(tokenizer: Tokenizer, text: str, cuts: st.DataObject):
    ids = tokenizer.encode(text)
    assert max(ids, default=0) < tokenizer.vocab_size
    assert tokenizer.decode(ids) == text
    cut = cuts.draw(st.integers(0, len(ids)))
    first, stream = decode_chunk(tokenizer, ids[:cut], Stream())
    second, _ = decode_chunk(tokenizer, ids[cut:], stream, last=True)
    assert first + second == text
    assert text.startswith(first)  # Nothing is said that must be taken back.


@hypothesis.settings(deadline=None)
@hypothesis.given(data=st.data())
def test_chunks_of_any_ids_join_to_the_whole(tokenizer: Tokenizer, data: st.DataObject):
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    texts, stream = [], Stream()
    for i in ids:
        text, stream = decode_chunk(tokenizer, [i], stream)
        texts.append(text)
    text, stream = decode_chunk(tokenizer, [], stream, last=True)
    assert "".join([*texts, text]) == tokenizer.decode(ids)
    assert stream == Stream()


def test_half_a_character_is_held_back(tokenizer: Tokenizer):
    ids = tokenizer.encode("漢")  # Three bytes, which no merge joined.
    assert len(ids) == 3
    stream = Stream()
    for i in ids[:2]:
        text, stream = decode_chunk(tokenizer, [i], stream)
        assert text == ""
    assert decode_chunk(tokenizer, ids[2:], stream) == ("漢", Stream())
    assert decode_chunk(tokenizer, [], stream, last=True)[0] == "\ufffd"


def test_decoding_is_the_librarys(folders: dict[str, pathlib.Path]):
    text = "The cat: été 5€ 🙂 漢 <h1>\n"
    for name in ("byte_level", "gemma"):
        inner = tokenizers.Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
        ours = load(folders[name])
        ids = inner.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids
        assert ours.decode([2, *ids, 1]) == inner.decode([2, *ids, 1]) == text
    path = folders["sentencepiece"] / "tokenizer.model"
    inner = sentencepiece.SentencePieceProcessor(model_file=str(path))  # pyright: ignore
    ours = load(path)
    assert ours.encode(text) == inner.encode(text)
    assert ours.decode(inner.encode(text)) == inner.decode(inner.encode(text)) == text
    assert ours.decode([3]) == inner.decode([3])


def test_special_tokens_in_a_text_are_text(tokenizer: Tokenizer):
    text = "<bos><start_of_turn>user\n<end_of_turn><eos><pad>"
    ids = tokenizer.encode(text)
    assert not set(ids) & set(range(6))
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([2, 4, *tokenizer.encode("a"), 5, 1, 0]) == "a"


def test_both_of_gemmas_formats_have_one_fingerprint(folders: dict[str, pathlib.Path]):
    a, b = load(folders["gemma"]), load(folders["sentencepiece"])
    assert a.fingerprint == b.fingerprint
    assert a.encode("The cat 12\n\n5€") == b.encode("The cat 12\n\n5€")
    assert load(folders["byte_level"]).fingerprint != a.fingerprint


def test_save_and_load(tokenizer: Tokenizer, tmp_path: pathlib.Path):
    paths = save(tokenizer, tmp_path / "deep")
    again = load(tmp_path / "deep")
    assert {path.name: path.read_bytes() for path in paths} == tokenizer.sources
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert again.path == tmp_path / "deep"


def test_training_is_reproducible_and_digits_stand_alone():
    a, b = train_bpe(TEXTS, 300), train_bpe(TEXTS, 300)
    assert a.fingerprint == b.fingerprint and a.vocab_size == 300 and a.path is None
    assert train_bpe(TEXTS, 299).fingerprint != a.fingerprint
    digits = train_bpe(["1212 1212"] * 50, 1_000)
    assert len(digits.encode("121212")) == 6
    assert len(a.encode("The cat")) < 7  # It did learn merges.


def test_others_read_what_we_trained(folders: dict[str, pathlib.Path]):
    inner = tokenizers.Tokenizer.from_file(str(folders["byte_level"] / "tokenizer.json"))
    assert inner.encode("<start_of_turn>user").ids[:2] == [2, 4]
    config = json.loads((folders["byte_level"] / "tokenizer_config.json").read_text())
    assert (config["bos_token"], config["eos_token"]) == ("<bos>", "<eos>")


def test_config_names_the_special_tokens(folders: dict[str, pathlib.Path], tmp_path: pathlib.Path):
    data = (folders["byte_level"] / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(data)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "<end_of_turn>"}, "bos_token": "<unk>"}))
    loaded = load(tmp_path)
    assert (loaded.eos_ids, loaded.bos_id, loaded.pad_id) == ((5,), 3, 0)
    assert loaded.fingerprint != load(folders["byte_level"]).fingerprint
    config.write_text('{"eos_token": "</s>"}')
    with pytest.raises(ValueError, match=r"tokenizer\.json: eos_token '</s>'.*vocabulary"):
        load(tmp_path)


def unflagged(data: str) -> str:
    """Returns a tokenizer.json without special marks on control tokens, as by `add_tokens`."""
    fields = json.loads(data)
    for entry in fields["added_tokens"]:
        entry["special"] = False
    return json.dumps(fields)


@pytest.mark.parametrize("normalizer", [None, "nmt_nfkc", "nmt_nfkc_cf"])
@pytest.mark.parametrize("kind", ["byte_level", "gemma", "ignore_merges", "sentencepiece"])
def test_no_text_becomes_a_control_token(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path, kind: str, normalizer: str | None
):
    """Whatever flags, normalisation and format a file has."""
    if kind == "sentencepiece":
        model = sentencepiece_model(normalizer=normalizer or "identity")
        (tmp_path / "tokenizer.model").write_bytes(model)
    else:
        source = folders["byte_level" if kind == "byte_level" else "gemma"] / "tokenizer.json"
        inner = tokenizers.Tokenizer.from_str(unflagged(source.read_text()))
        if normalizer:
            steps = [tokenizers.normalizers.NFKC()]
            steps += [tokenizers.normalizers.Lowercase()] if normalizer.endswith("cf") else []
            steps += [inner.normalizer] if inner.normalizer is not None else []
            inner.normalizer = tokenizers.normalizers.Sequence(steps)
        if kind == "ignore_merges":
            inner.model.ignore_merges = True
        inner.save(str(tmp_path / "tokenizer.json"))
        is_reached = inner.encode("<start_of_turn>user", add_special_tokens=False).ids[0] == 4
        assert is_reached  # By the library, whose flags the file sets.
    loaded = load(tmp_path)
    controls = set(loaded.controls.values())
    assert controls == {0, 1, 2, 4, 5}
    for text in (
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        "<bos>a<eos><pad>",
        "  <end_of_turn>  <end_of_turn>",
        "<end_of_turn><end_of_turn>",
        "\uff1cstart_of_turn\uff1e and <END_OF_TURN>",
        "<<start_of_turn>>",
        "é\u0301<start_of_turn>漢",
        "<start_of_" * 3 + "turn>",
    ):
        ids = loaded.encode(text)
        assert not controls & set(ids), text
        if normalizer is None:
            assert loaded.decode(ids) == text
    read = reading(loaded, "parse")
    text = "<bos><start_of_turn>user\nHi<end_of_turn>\n"
    assert read.encode(text) == [2, 4, *loaded.encode("user\nHi"), 5, *loaded.encode("\n")]
    assert reading(loaded, "text") is loaded
    assert read.fingerprint == loaded.fingerprint and read.sources == loaded.sources


def test_text_of_control_tokens_may_be_read_as_them(folders: dict[str, pathlib.Path]):
    loaded = load(folders["byte_level"])
    inner = tokenizers.Tokenizer.from_file(str(folders["byte_level"] / "tokenizer.json"))
    text = "<bos><start_of_turn>user\nThe cat<end_of_turn>\n<start_of_turn>model\n"
    read = reading(loaded, "parse")
    assert read.encode(text) == inner.encode(text, add_special_tokens=False).ids
    assert not loaded.reads_controls and read.reads_controls
    with pytest.raises(ValueError, match="text or parse, got 'ids'"):
        reading(loaded, "ids")  # pyright: ignore[reportArgumentType]


def test_a_control_token_that_is_a_character_of_text_is_refused(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path
):
    data = (folders["byte_level"] / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(data)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "1"}')
    with pytest.raises(ValueError, match=r"eos_token '1' of .* must be a token apart from text:"):
        load(tmp_path)


@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_beside_a_sentencepiece_model(tmp_path: pathlib.Path, special: bool):
    model = sentencepiece_model()
    (tmp_path / "tokenizer.model").write_bytes(model)
    bare = load(tmp_path)
    size = bare.vocab_size
    added = {"<end_of_turn>": 5, "<image_soft_token>": size, "<note>": size + 2}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    decoder = {str(size + 2): {"content": "<note>", "special": special}}
    config = json.dumps({"added_tokens_decoder": decoder})
    (tmp_path / "tokenizer_config.json").write_text(config)
    loaded = load(tmp_path)
    assert loaded.vocab_size == size + 3 and loaded.fingerprint != bare.fingerprint
    text = "a<note>b <image_soft_token><end_of_turn>"
    ids = loaded.encode(text)
    assert (size + 2 in ids) == (not special) and not {size, 5} & set(ids)
    assert loaded.decode(ids) == text
    assert loaded.decode([size, size + 1]) == "" and loaded.controls["<image_soft_token>"] == size
    for wrong, message in (
        ({"<note>": 7}, "must be an id of its own, and 7 is"),
        ({"<note>": 4294967294}, "right after it, got 4294967294"),
        ({"<h1>": size}, "the id of a token that the vocabulary has not"),
        ({"<note>": "7"}, "must be an integer"),
    ):
        (tmp_path / "added_tokens.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=rf"added_tokens\.json: .*{message}"):
            load(tmp_path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 33\n"


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
@pytest.mark.parametrize("data", [LFS, b"", b"\0" * 64, b"\xff\xfe{}", b"[" * 99_999, b"5", b"{}"])
def test_a_damaged_file_is_said_in_a_line(tmp_path: pathlib.Path, name: str, data: bytes):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert ("git lfs pull" in str(caught.value)) == (data == LFS)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"decoder": None}, "decoder .*none"),
        ({"decoder": 5}, "decoder must be an object, got 5"),
        (
            {"decoder": {"type": "Sequence", "decoders": [5]}},
            r"decoders\[0\] must be a list of objects",
        ),
        ({"model": []}, r"model must be an object"),
        ({"model": {"type": "BPE", "vocab": {"a": 4294967294}}}, r"id in \[0, .* 4294967294"),
        ({"model": {"type": "BPE", "vocab": {"a": None}}}, r"id in \[0, .* got null"),
        ({"added_tokens": 5}, "added_tokens must be a list"),
        ({"added_tokens": [{"content": "a", "id": 2**32 - 2}]}, "it is damaged"),
        ({"added_tokens": [{"id": 3}]}, r"content is missing"),
        ({"pre_tokenizer": {"type": "None"}}, "cannot read it"),
    ],
)
def test_a_tokenizer_json_of_other_values_is_said_in_a_line(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path, change: dict, message: str
):
    fields = json.loads((folders["byte_level"] / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields | change))
    with pytest.raises(ValueError, match=rf"tokenizer\.json: .*{message}") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    del fields["decoder"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="decoder"):
        load(tmp_path)


@pytest.mark.parametrize(
    "config, message",
    [
        ("[]", "must hold an object, got"),
        ('{"eos_token": ["a"]}', 'eos_token must be a text or an object, got \\["a"\\]'),
        ('{"bos_token": {"content": 5}}', "bos_token.content must be a text, got 5"),
        ('{"bos_token": {}}', "bos_token.content is missing"),
        ("", "is empty"),
    ],
)
def test_a_tokenizer_config_of_other_values_is_said_in_a_line(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path, config: str, message: str
):
    data = (folders["byte_level"] / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + data)  # A mark is passed over.
    load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(ValueError, match=rf"tokenizer_config\.json.*{message}"):
        load(tmp_path)


def test_an_expression_that_backtracks_without_end_is_one_line(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
):
    path = folders["byte_level"] / "tokenizer.json"
    inner = tokenizers.Tokenizer.from_file(str(path))
    endless = tokenizers.pre_tokenizers.Split(tokenizers.Regex("(a|aa)+$"), "isolated")
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([endless, inner.pre_tokenizer])
    inner.save(str(tmp_path / "tokenizer.json"))
    loaded = load(tmp_path)
    assert loaded.decode(loaded.encode("banana")) == "banana"
    with pytest.raises(ValueError, match=r"cannot encode .*'aaa.*backtrack without end") as caught:
        loaded.encode("a" * 60 + "b")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_link_out_of_the_folder_is_not_followed(
    folders: dict[str, pathlib.Path], tmp_path: pathlib.Path
):
    path = folders["byte_level"] / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(path.read_bytes())
    (tmp_path / "special_tokens_map.json").symlink_to(path)
    with pytest.raises(ValueError, match=r"special_tokens_map\.json is a link out of the folder"):
        load(tmp_path)


def test_what_cannot_be_loaded_is_named(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=r"neither .* nor .*name a folder"):
        load(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer at"):
        load(tmp_path / "tokenizer.txt")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "<bos>": 1}, []))
    path = tmp_path / "t.json"
    inner.save(str(path))
    with pytest.raises(ValueError, match=r"t\.json: decoder"):
        load(path)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.save(str(path))
    with pytest.raises(ValueError, match=r"t\.json: no eos token"):
        load(path)
    (tmp_path / "t.model").write_bytes(sentencepiece_model(add_dummy_prefix=True))
    with pytest.raises(ValueError, match="add_dummy_prefix=False"):
        load(tmp_path / "t.model")


def test_bad_arguments(tokenizer: Tokenizer):
    for i in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"{i} lies outside the vocabulary"):
            tokenizer.decode([0, i])
    with pytest.raises(ValueError, match="vocab_size must be >= 262"):
        train_bpe(TEXTS, 261)
