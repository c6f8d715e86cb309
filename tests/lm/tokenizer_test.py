"""Tests of lm/tokenizer.py."""

import io
import json
import pathlib

import hypothesis
import pytest
import sentencepiece
import tokenizers
from hypothesis import strategies as st

from kullback.lm import tokenizer as tokenizers_
from kullback.lm.tokenizer import Stream, Tokenizer, decode_chunk

TEXTS = [
    "The cat sat on the mat.\n\nIt was 12 years old; 3 + 4 = 7.",
    "Été à la plage: 5€ 🙂🙂 <bos><start_of_turn> <end_of_turn>",
] * 30


def sentencepiece_model(*, add_dummy_prefix: bool = False) -> bytes:
    """A small SentencePiece model in Gemma's manner."""
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
        normalization_rule_name="identity",
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
    """The same vocabulary and merges as Gemma's tokenizer.json writes them."""
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
    """One tokenizer of each format, as files."""
    folder = tmp_path_factory.mktemp("tokenizers")
    names = {name: folder / name for name in ("byte_level", "sentencepiece", "gemma")}
    for path in names.values():
        path.mkdir()
    tokenizers_.save(tokenizers_.train_bpe(TEXTS, 330), names["byte_level"])
    model = sentencepiece_model()
    (names["sentencepiece"] / "tokenizer.model").write_bytes(model)
    (names["gemma"] / "tokenizer.json").write_text(gemma_json(model))
    return names


@pytest.fixture(scope="module", params=["byte_level", "sentencepiece", "gemma"])
def tokenizer(request: pytest.FixtureRequest, folders: dict[str, pathlib.Path]) -> Tokenizer:
    return tokenizers_.load(folders[request.param])


def test_special_ids_are_gemmas(tokenizer: Tokenizer):
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id) == (0, 1, 2)
    assert (tokenizer.start_of_turn_id, tokenizer.end_of_turn_id) == (4, 5)
    assert tokenizer.eos_ids == (1, 5)


@hypothesis.settings(deadline=None, max_examples=25)
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


@hypothesis.settings(deadline=None, max_examples=25)
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
        ours = tokenizers_.load(folders[name])
        ids = inner.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids
        assert ours.decode([2, *ids, 1]) == inner.decode([2, *ids, 1]) == text
    path = folders["sentencepiece"] / "tokenizer.model"
    inner = sentencepiece.SentencePieceProcessor(model_file=str(path))  # pyright: ignore
    ours = tokenizers_.load(path)
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
    a, b = tokenizers_.load(folders["gemma"]), tokenizers_.load(folders["sentencepiece"])
    assert a.fingerprint == b.fingerprint
    assert a.encode("The cat 12\n\n5€") == b.encode("The cat 12\n\n5€")
    assert tokenizers_.load(folders["byte_level"]).fingerprint != a.fingerprint


def test_save_and_load(tokenizer: Tokenizer, tmp_path: pathlib.Path):
    paths = tokenizers_.save(tokenizer, tmp_path / "deep")
    again = tokenizers_.load(tmp_path / "deep")
    assert {path.name: path.read_bytes() for path in paths} == tokenizer.sources
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
    assert again.path == tmp_path / "deep"


def test_training_is_reproducible_and_digits_stand_alone():
    a, b = tokenizers_.train_bpe(TEXTS, 300), tokenizers_.train_bpe(TEXTS, 300)
    assert a.fingerprint == b.fingerprint and a.vocab_size == 300 and a.path is None
    assert tokenizers_.train_bpe(TEXTS, 299).fingerprint != a.fingerprint
    digits = tokenizers_.train_bpe(["1212 1212"] * 50, 1_000)
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
    loaded = tokenizers_.load(tmp_path)
    assert (loaded.eos_ids, loaded.bos_id, loaded.pad_id) == ((5,), 3, 0)
    assert loaded.fingerprint != tokenizers_.load(folders["byte_level"]).fingerprint
    config.write_text('{"eos_token": "</s>"}')
    with pytest.raises(ValueError, match=r"tokenizer\.json: eos_token '</s>'.*vocabulary"):
        tokenizers_.load(tmp_path)


def test_what_cannot_be_loaded_is_named(tmp_path: pathlib.Path):
    with pytest.raises(ValueError, match=r"neither .* nor .*name a folder"):
        tokenizers_.load(tmp_path)
    with pytest.raises(ValueError, match="no tokenizer at"):
        tokenizers_.load(tmp_path / "tokenizer.txt")
    inner = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "<bos>": 1}, []))
    path = tmp_path / "t.json"
    inner.save(str(path))
    with pytest.raises(ValueError, match=r"t\.json: decoder"):
        tokenizers_.load(path)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.save(str(path))
    with pytest.raises(ValueError, match=r"t\.json: no eos token"):
        tokenizers_.load(path)
    (tmp_path / "t.model").write_bytes(sentencepiece_model(add_dummy_prefix=True))
    with pytest.raises(ValueError, match="add_dummy_prefix=False"):
        tokenizers_.load(tmp_path / "t.model")


def test_bad_arguments(tokenizer: Tokenizer):
    for i in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"{i} lies outside the vocabulary"):
            tokenizer.decode([0, i])
    with pytest.raises(ValueError, match="vocab_size must be >= 262"):
        tokenizers_.train_bpe(TEXTS, 261)
