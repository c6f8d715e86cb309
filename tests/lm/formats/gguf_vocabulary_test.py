"""Tests of lm/formats/gguf_vocabulary.py."""

import json
import pathlib

import gguf
import numpy as np
import pytest
import sentencepiece

from kullback.experiments.runs import pretrained
from kullback.lm import tokenizer
from kullback.lm.formats import gguf_files, gguf_vocabulary
from tests import damage, gguf_models
from tests.lm import tokenizer_test

ODD = [
    *("", " ", "  a", "a\n\n\tb", "def f(x):\n    return x\n", "🙂👍🏽", "日本語", "Это", "مرحبا"),
    *("<bos>", "<start_of_turn>user\nhi<end_of_turn>", "<0x41>", "<h1>x</h1>", "e\u0301", "\0"),
    *tokenizer_test.TEXTS[:2],
]


def write(path: pathlib.Path, add, **special: int) -> pathlib.Path:
    def metadata(writer: gguf.GGUFWriter) -> None:
        add(writer)
        for role, number in {"bos": 2, "eos": 1, "pad": 0, "unk": 3, **special}.items():
            getattr(writer, f"add_{role}_token_id")(number)

    gguf_models.write(path, {"x": np.zeros(1, np.float32)}, metadata)
    return path


def pieces(model: bytes, *, prefix: bool = False, template: str | None = None):
    """Adds the tokenizer of a SentencePiece model as llama.cpp's converter does."""
    inner = sentencepiece.SentencePieceProcessor(model_proto=model)  # pyright: ignore
    names = [inner.id_to_piece(i) for i in range(inner.vocab_size())]
    kinds = [6 if inner.is_byte(i) else 1 for i in range(inner.vocab_size())]
    kinds[:6] = [3] * 6  # The unknown piece too, and the ends of turns, for it is marked special.
    kinds[names.index("<h1>")] = 4

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(names)
        writer.add_token_scores([inner.get_score(i) for i in range(len(names))])
        writer.add_token_types(kinds)
        writer.add_add_space_prefix(prefix)
        if template is not None:
            writer.add_chat_template(template)

    return add


@pytest.fixture(scope="module")
def model() -> bytes:
    return tokenizer_test.sentencepiece_model()


def test_pieces_with_scores_encode_as_the_model_that_they_come_from(model, tmp_path):
    path = write(tmp_path / "m.gguf", pieces(model))
    (tmp_path / "tokenizer.model").write_bytes(model)
    ours, theirs = tokenizer.load(path), tokenizer.load(tmp_path / "tokenizer.model")
    assert [ours.encode(text) for text in ODD] == [theirs.encode(text) for text in ODD]
    assert [ours.decode(ours.encode(text)) for text in ODD] == ODD
    assert (ours.fingerprint, ours.pieces) == (theirs.fingerprint, theirs.pieces)
    assert (ours.bos_id, ours.eos_ids, ours.pad_id) == (2, (1, 5), 0)
    # Bytes outside of the vocabulary, and none of the tokens that end a turn.
    assert len(ours.encode("日")) == 3
    assert set(ours.encode("<start_of_turn><end_of_turn>")).isdisjoint(ours.controls.values())


def test_spaces_that_are_a_piece_of_their_own_are_one(model, tmp_path):
    def add(writer: gguf.GGUFWriter) -> None:
        inner = sentencepiece.SentencePieceProcessor(model_proto=model)  # pyright: ignore
        names = [inner.id_to_piece(i) for i in range(inner.vocab_size())]
        kinds = [6 if inner.is_byte(i) else 1 for i in range(len(names))]
        writer.add_tokenizer_model("llama")
        writer.add_token_list([*names, "   "])  # As the converter writes it.
        writer.add_token_scores([*map(inner.get_score, range(len(names))), -1000.0])
        writer.add_token_types([3] * 6 + kinds[6:] + [4])
        writer.add_add_space_prefix(False)

    ours = tokenizer.load(write(tmp_path / "m.gguf", add))
    assert ours.encode("   ") == [ours.vocab_size - 1]
    assert ours.decode(ours.encode("a   b")) == "a   b"


def test_the_end_of_a_turn_named_as_the_end_is_one_beside_the_end_of_a_text(model, tmp_path):
    template = "{{ bos_token }}"
    path = write(tmp_path / "m.gguf", pieces(model, template=template), eos=5)
    ours = tokenizer.load(path)
    assert ours.eos_ids == (1, 5)
    tokenizer.save(ours, tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_text() == template
    assert tokenizer.load(tmp_path / "saved").fingerprint == ours.fingerprint


def test_byte_level_bpe_encodes_as_what_it_comes_from(tmp_path):
    trained = tokenizer.train_bpe(tokenizer_test.TEXTS, 330)
    whole = json.loads(trained.sources["tokenizer.json"])["model"]

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list([*whole["vocab"]])
        writer.add_token_types([3] * 6 + [1] * (len(whole["vocab"]) - 6))
        writer.add_token_merges([" ".join(pair) for pair in whole["merges"]])

    ours = tokenizer.load(write(tmp_path / "m.gguf", add))
    assert [ours.encode(text) for text in ODD] == [trained.encode(text) for text in ODD]
    assert ours.fingerprint == trained.fingerprint


def test_what_is_no_tokenizer_of_ours_is_refused(model, tmp_path):
    path = tmp_path / "m.gguf"
    with pytest.raises(ValueError, match=r"m.gguf, its .*space before every text"):
        tokenizer.load(write(path, pieces(model, prefix=True)))
    with pytest.raises(ValueError, match=r"m.gguf: .*eos_token_id must be in \[0, "):
        tokenizer.load(write(path, pieces(model), eos=10**6))
    with pytest.raises(ValueError, match=r"m.gguf: tokenizer.ggml.model must be llama .* \"t5\""):
        tokenizer.load(write(path, lambda writer: writer.add_tokenizer_model("t5")))

    def unlike(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["a", "b"])
        writer.add_token_types([1])

    with pytest.raises(ValueError, match=r"m.gguf: .*token_type must be one number for each of 2"):
        tokenizer.load(write(path, unlike, bos=0, eos=1, pad=0, unk=0))


def test_damaged_pieces_are_a_line(model, tmp_path):
    path = write(tmp_path / "m.gguf", pieces(model))
    sound = path.read_bytes()
    random = np.random.default_rng(0)
    for at in random.integers(24, len(sound) - 64, 120):
        changed = bytearray(sound)
        changed[at] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        fault = damage.fault_of(lambda: tokenizer.load(path), path.name)
        assert not fault, (at, fault)


@pytest.mark.gemma
def test_gemmas_own_file(gemma3_270m: str, tmp_path):
    """Ids of llama.cpp (xllamacpp 2026.10) on gemma-3-270m-q4_k_m.gguf."""
    path = tmp_path / "m.gguf"
    pretrained.assemble(pretrained.named(gemma3_270m)[0], path)
    ours = tokenizer.load(path)
    assert len(gguf_vocabulary.sources(gguf_files.read(path))) == 2
    expected = json.loads(
        (pathlib.Path(__file__).parents[1] / "fixtures" / "gemma3_ids.json").read_text()
    )
    assert {text: ours.encode(text) for text in expected} == expected
