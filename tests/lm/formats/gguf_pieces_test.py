"""Tests of lm/formats/gguf_pieces.py."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest

from kullback.core import json_files
from kullback.lm import tokenizer
from kullback.lm.formats import gguf_files, gguf_pieces
from tests.lm import tokenizer_test
from tests.lm.formats import gguf_vocabulary_test

KEY = "tokenizer.ggml."


@pytest.fixture(scope="module")
def model() -> bytes:
    return tokenizer_test.sentencepiece_model()


def load(folder: pathlib.Path, **sources: bytes | str) -> tokenizer.Tokenizer:
    """Reads the tokenizer of files, by names with one underscore for the dot."""
    folder.mkdir(exist_ok=True)
    for name, data in sources.items():
        path = folder / f"{'.'.join(name.rsplit('_', 1))}"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return tokenizer.load(folder)


def metadata(source: tokenizer.Tokenizer) -> dict[str, Any]:
    return gguf_pieces.metadata(source, source.vocab_size, source.eos_ids)


def read(values: dict[str, Any]) -> tokenizer.Tokenizer:
    return tokenizer.from_gguf(gguf_files.File(json_files.Record("m.gguf", (), values), {}))


def changed(text: str, **fields: Any) -> str:
    """Returns a tokenizer.json with other settings of its model, or of its own."""
    whole = json.loads(text)
    for name, value in fields.items():
        (whole if name in whole else whole["model"])[name] = value
    return json.dumps(whole)


@pytest.mark.parametrize("kind", ["bytes", "pieces", "gemma", "gemma and pieces"])
def test_what_is_written_is_read(kind: str, model: bytes, tmp_path: pathlib.Path):
    files = {
        "pieces": {"tokenizer_model": model},
        "gemma": {"tokenizer_json": tokenizer_test.gemma_json(model)},
    }
    if kind == "bytes":
        source = tokenizer.train_bpe(tokenizer_test.TEXTS, 330)
    else:
        named = [files[name] for name in kind.split(" and ")]
        source = load(tmp_path, **{k: v for one in named for k, v in one.items()})
    values = metadata(source)
    again = read(values)
    odd = [*gguf_vocabulary_test.ODD, *gguf_pieces.TEXTS]
    assert [again.encode(text) for text in odd] == [source.encode(text) for text in odd]
    assert again.fingerprint == source.fingerprint
    # What stands for the unknown piece is the libraries' own.
    unlike = {i for i, (a, b) in enumerate(zip(again.pieces, source.pieces, strict=True)) if a != b}
    assert unlike <= {3}
    assert (again.bos_id, again.eos_ids, again.pad_id) == (2, (1, 5), 0)
    kinds, names = values[f"{KEY}token_type"], values[f"{KEY}tokens"]
    ends = [kinds[names.index(name)] for name in ("<bos>", "<eos>", "<end_of_turn>", "<pad>")]
    assert ends == [3, 3, 3, 3]
    if kind != "bytes":  # Unknown, user-defined, byte.
        assert [kinds[names.index(name)] for name in ("<unk>", "<h1>", "<0x0A>")] == [2, 4, 6]
    assert values[f"{KEY}model"] == ("gpt2" if kind == "bytes" else "llama")
    ids = [values[f"{KEY}{role}_token_id"] for role in ("bos", "eos", "eot", "padding")]
    assert ids == [2, 1, 5, 0]


def test_scores_of_merges_are_in_their_order(model: bytes, tmp_path: pathlib.Path):
    values = metadata(load(tmp_path, tokenizer_json=tokenizer_test.gemma_json(model)))
    merges = json.loads(tokenizer_test.gemma_json(model))["model"]["merges"]
    scores = dict(zip(values[f"{KEY}tokens"], values[f"{KEY}scores"], strict=True))
    ordered = [scores["".join(pair)] for pair in merges]
    assert ordered == sorted(ordered, reverse=True) and ordered[0] == 0


def test_merges_to_a_piece_that_lie_apart_are_in_no_order_of_scores(
    model: bytes, tmp_path: pathlib.Path
):
    whole = json.loads(tokenizer_test.gemma_json(model))
    vocab, merges = whole["model"]["vocab"], whole["model"]["merges"]
    vocab |= {name: len(vocab) + n for n, name in enumerate(("q", "z", "v", "qz", "zv", "qzv"))}
    sound = [["q", "z"], ["z", "v"], ["qz", "v"], ["q", "zv"]]
    for number, order in enumerate(((0, 1, 2, 3), (0, 2, 1, 3))):
        whole["model"]["merges"] = [*merges, *(sound[n] for n in order)]
        source = load(tmp_path / str(number), tokenizer_json=json.dumps(whole))
        if number == 0:
            assert len(read(metadata(source)).encode("qzv")) == 1
            continue
        with pytest.raises(ValueError, match='merges to "qzv" are in no order that scores give'):
            metadata(source)


def test_tokens_beside_the_pieces(model: bytes, tmp_path: pathlib.Path):
    size = len(metadata(load(tmp_path / "plain", tokenizer_model=model))[f"{KEY}tokens"])
    added = {"<start_of_image>": size, "<b>": size + 2}
    source = load(tmp_path / "more", tokenizer_model=model, added_tokens_json=json.dumps(added))
    values = metadata(source)
    assert values[f"{KEY}tokens"][size:] == ["<start_of_image>", f"[PAD{size + 1}]", "<b>"]
    assert values[f"{KEY}token_type"][size:] == [3, 5, 4]
    # A control token without a row in the table is left out; another may stand in a text.
    image = {"<start_of_image>": size}
    source = load(tmp_path / "image", tokenizer_model=model, added_tokens_json=json.dumps(image))
    cut = gguf_pieces.metadata(source, size, source.eos_ids)
    assert len(cut[f"{KEY}tokens"]) == len(cut[f"{KEY}scores"]) == size
    with pytest.raises(ValueError, match=f"has token {size - 1}, .* table {size - 1} rows"):
        gguf_pieces.metadata(source, size - 1, source.eos_ids)


def test_the_template_is_that_of_the_files(tmp_path: pathlib.Path):
    bpe = tokenizer.train_bpe(tokenizer_test.TEXTS, 300)
    name, key = "tokenizer_config.json", "tokenizer.chat_template"
    assert key not in metadata(bpe)
    several = [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]
    for template, expected in (("{{ x }}", "{{ x }}"), (several, "b"), (several[:1], None)):
        config = {**json.loads(bpe.sources[name]), "chat_template": template}
        sources = {**bpe.sources, name: json.dumps(config).encode()}
        assert metadata(dataclasses.replace(bpe, sources=sources)).get(key) == expected
    sources = {**bpe.sources, "chat_template.jinja": b"{{ y }}"}
    values = metadata(dataclasses.replace(bpe, sources=sources))
    assert read(values).sources["chat_template.jinja"] == b"{{ y }}"


def test_what_llama_cpp_has_no_tokenizer_for_is_refused(model: bytes, tmp_path: pathlib.Path):
    bpe = tokenizer.train_bpe(tokenizer_test.TEXTS, 330).sources["tokenizer.json"].decode()
    gemma = tokenizer_test.gemma_json(model)
    merges = json.loads(gemma)["model"]["merges"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    for number, (text, message) in enumerate(
        (
            (changed(bpe, ignore_merges=True), "must be a BPE without .*ignore_merges"),
            (changed(bpe, pre_tokenizer=byte_level), "must be those of a byte-level BPE that"),
            (changed(bpe, normalizer={"type": "NFC"}), "must be those of a byte-level BPE that"),
            (changed(bpe, merges=[]), "has no merges"),
            (changed(gemma, normalizer=None), "must be Gemma's, a sign for each space"),
            (changed(gemma, merges=merges[1:]), "in no order that scores give"),
        )
    ):
        source = load(tmp_path / str(number), tokenizer_json=text)
        with pytest.raises(ValueError, match=message) as error:
            metadata(source)
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
    for normalizer in ("nmt_nfkc", "identity"):
        data = tokenizer_test.sentencepiece_model(normalizer=normalizer)
        source = load(tmp_path / normalizer, tokenizer_model=data)
        if normalizer == "identity":
            metadata(source)
            continue
        with pytest.raises(ValueError, match="changes characters or spaces of a text"):
            metadata(source)


def test_other_tokens_than_its_own_are_not_written(tmp_path: pathlib.Path):
    bpe = tokenizer.train_bpe(tokenizer_test.TEXTS, 330)
    reversed_bpe = dataclasses.replace(bpe, encode=lambda text: bpe.encode(text)[::-1])
    with pytest.raises(ValueError, match='makes other tokens of "  a" than it does; keep to'):
        metadata(reversed_bpe)
