"""Tests of lm/terms.py."""

import pathlib

import pytest

from kullback.core import json_files
from kullback.lm import terms

# Section 3.1 of https://ai.google.dev/gemma/terms asks for it, word for word.
SENTENCE = (
    "Gemma is provided under and subject to the Gemma Terms of Use found at "
    "ai.google.dev/gemma/terms"
)


def test_gemmas_notice_has_the_sentence_of_its_terms():
    assert terms.GEMMA.notice.startswith(f"{SENTENCE}\n")


def test_the_notice_of_a_folder_is_its_file(tmp_path: pathlib.Path):
    assert terms.of_folder(tmp_path) is None
    terms.write(tmp_path, None)
    assert list(tmp_path.iterdir()) == []
    terms.write(tmp_path, "Any text.\n")
    assert terms.of_folder(tmp_path) == "Any text.\n" == (tmp_path / "NOTICE").read_text()


@pytest.mark.parametrize(
    ("card", "has_notice"),
    [
        ("---\nlicense: gemma\ntags: [x]\n---\n# A model\n", True),
        ("---\ntags: [x]\nlicense: Gemma\n---\n", True),
        ("---\nlicense: apache-2.0\n---\nlicense: gemma\n", False),
        ("license: gemma\n", False),
        ("# A model\n\n---\nlicense: gemma\n---\n", False),
    ],
)
def test_a_model_card_names_its_license(tmp_path: pathlib.Path, card: str, has_notice: bool):
    (tmp_path / "README.md").write_text(card)
    assert terms.of_folder(tmp_path) == (terms.GEMMA.notice if has_notice else None)


def test_a_notice_is_small_and_in_its_folder(tmp_path: pathlib.Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "elsewhere").write_text("A secret.")
    (tmp_path / "model" / "NOTICE").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="NOTICE is a link out of the folder"):
        terms.of_folder(tmp_path / "model")
    (tmp_path / "NOTICE").write_bytes(b"x" * (1 << 17))
    with pytest.raises(ValueError, match="NOTICE must have at most 65536 bytes"):
        terms.of_folder(tmp_path)


def test_metadata_name_the_license():
    def of(values: dict[str, str]) -> str | None:
        return terms.of_gguf(json_files.Record("m.gguf", (), values))

    assert of({"general.license": "gemma"}) == terms.GEMMA.notice
    assert of({"general.license": "mit"}) is None
    assert of({}) is None


@pytest.mark.parametrize(
    ("notice", "license"), [(f"Mine.\n\n{terms.GEMMA.notice}", "gemma"), ("Mine.", "other")]
)
def test_metadata_keep_a_notice_and_name_its_license(notice: str, license: str):
    values = terms.metadata(notice)
    assert values["general.license"] == license
    assert terms.of_gguf(json_files.Record("m.gguf", (), values)) == notice
    assert terms.metadata(None) == {}


def test_a_notice_in_metadata_is_small():
    values = {"kullback.notice": "x" * (1 << 17)}
    with pytest.raises(ValueError, match=r"kullback\.notice must be a text of at most 65536 bytes"):
        terms.of_gguf(json_files.Record("m.gguf", (), values))


def test_a_notice_beside_a_file_replaces_no_other(tmp_path: pathlib.Path):
    terms.write_beside(tmp_path / "m.gguf", None)
    assert list(tmp_path.iterdir()) == []
    terms.write_beside(tmp_path / "m.gguf", "Mine.\n")
    (tmp_path / "NOTICE").write_text("Mine.\nAnd more.\n")
    terms.write_beside(tmp_path / "n.gguf", "Mine.\n")
    assert (tmp_path / "NOTICE").read_text() == "Mine.\nAnd more.\n"
    with pytest.raises(ValueError, match="NOTICE is another notice than that of the weights"):
        terms.check_beside(tmp_path / "n.gguf", "Yours.\n")


def test_joined_notices_stand_once():
    assert terms.joined(None, None) is None
    assert terms.joined("a\n", None, "a\n") == "a\n"
    assert terms.joined("a\n", "b\n") == "a\n\nb\n"
