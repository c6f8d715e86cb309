"""Tests of lm/formats/gguf_files.py."""

import pathlib
import struct

import gguf
import numpy as np
import pytest

from kullback.lm.formats import gguf_files
from tests import damage, gguf_models

NUMBERS = np.random.default_rng(0).normal(size=(6, 512)).astype(np.float32)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    """Writes a file with values of every type, and two tensors."""

    def metadata(writer: gguf.GGUFWriter) -> None:
        writer.add_uint8("a.uint8", 7)
        writer.add_int64("a.int64", -(2**40))
        writer.add_float32("a.float32", 1e-6)
        writer.add_bool("a.bool", True)
        writer.add_string("a.text", "é")
        writer.add_array("a.texts", ["one", "two"])
        writer.add_array("a.numbers", [1, -2, 3])
        writer.add_array("a.bools", [True, False])

    path = tmp_path / "m.gguf"
    gguf_models.write(path, {"one": NUMBERS, "two": NUMBERS[0]}, metadata)
    return path


def test_metadata_and_tensors(path):
    file = gguf_files.read(path)
    values = dict(file.metadata.items())
    assert values.pop("a.text") == "é"
    assert values == {
        "general.architecture": "gemma3",
        "a.uint8": 7,
        "a.int64": -(2**40),
        "a.float32": 1e-6,
        "a.bool": True,
        "a.texts": ["one", "two"],
        "a.numbers": [1, -2, 3],
        "a.bools": [True, False],
    }
    np.testing.assert_array_equal(file.tensors["one"].rows(slice(2, 5)), NUMBERS[2:5])
    np.testing.assert_array_equal(file.tensors["two"].rows(slice(None)), NUMBERS[0])


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_rows_are_dequantised_as_the_whole_is(kind, tmp_path):
    number = gguf.GGMLQuantizationType[kind]
    quantised = gguf.quants.quantize(NUMBERS, number)
    path = tmp_path / "m.gguf"
    gguf_models.write(path, {"x": (quantised, number)})
    tensor = gguf_files.read(path).tensors["x"]
    whole = gguf.quants.dequantize(quantised, number)
    assert (tensor.kind, tensor.shape) == (kind, NUMBERS.shape)
    np.testing.assert_array_equal(tensor.rows(slice(None)), whole)
    np.testing.assert_array_equal(tensor.rows(slice(1, 4)), whole[1:4])
    np.testing.assert_allclose(whole, NUMBERS, atol=0.3)


def test_a_block_by_hand(tmp_path):
    # Q4_0: d = -0.5; byte j has numbers j and j + 16: (q - 8) d, with q = j and 15 - j.
    codes = bytes(j | (15 - j) << 4 for j in range(16))
    block = np.frombuffer(struct.pack("<e", -0.5) + codes, np.uint8)[None]
    path = tmp_path / "m.gguf"
    gguf_models.write(path, {"x": (block, gguf.GGMLQuantizationType.Q4_0)})
    expected = [(j - 8) * -0.5 for j in range(16)] + [(7 - j) * -0.5 for j in range(16)]
    assert gguf_files.read(path).tensors["x"].rows(slice(None)).tolist() == [expected]


@pytest.mark.parametrize("kind", gguf_files.KINDS)
def test_every_type_that_is_read_is_known(kind, tmp_path):
    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    columns = -(-256 // block) * block
    zeros = np.zeros((3, columns // block * size), np.uint8)
    path = tmp_path / "m.gguf"
    gguf_models.write(path, {"x": (zeros, number)})
    rows = gguf_files.read(path).tensors["x"].rows(slice(0, 2))
    assert (rows.shape, rows.dtype) == ((2, columns), np.float32)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "m.gguf"
    block = np.frombuffer(struct.pack("<e", np.inf) + bytes(16), np.uint8)[None]
    gguf_models.write(path, {"x": (block, gguf.GGMLQuantizationType.Q4_0)})
    with pytest.raises(ValueError, match=r"tensor x \(Q4_0\) has numbers that are not finite"):
        gguf_files.read(path).tensors["x"].rows(slice(None))


def fault_of(path: pathlib.Path, data: bytes) -> str:
    path.write_bytes(data)

    def read() -> None:
        for tensor in gguf_files.read(path).tensors.values():
            try:
                tensor.rows(slice(None))
            except ValueError as error:
                assert "not finite" in str(error)

    return damage.fault_of(read, path.name)


def test_a_file_cut_anywhere_is_a_line(path):
    sound = path.read_bytes()
    for length in range(0, len(sound), 1 + len(sound) // 300):
        assert not fault_of(path, sound[:length]), length
    path.write_bytes(sound[:-64])
    with pytest.raises(ValueError, match=r"m.gguf: tensor two must stand once, .* damaged"):
        gguf_files.read(path)


def test_flipped_bits_and_enlarged_sizes_are_a_line(path):
    sound = path.read_bytes()
    end = sound.index(b"two", sound.index(b"a.bools")) + 64
    for at in range(end):
        flipped = sound[:at] + bytes([sound[at] ^ (1, 0x80)[at % 2]]) + sound[at + 1 :]
        assert not fault_of(path, flipped), at
        size = (2**33, 2**63 + 5)[at % 2]
        assert not fault_of(path, sound[:at] + struct.pack("<Q", size) + sound[at + 8 :]), at


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"GGUF", b"GGML", r"is no GGUF file: it must begin with b'GGUF', got b'GGML'"),
        (b"GGUF\3\0\0\0", b"GGUF\1\0\0\0", r"version must be one of \(2, 3\), got 1;"),
        (b"GGUF\3\0\0\0", b"GGUF\0\0\0\3", r"of big-endian machines"),
        (b"GGUF\3\0\0\0\2", b"GGUF\3\0\0\0\0\0\0\1", r"number of (tensors|keys) must be at most"),
        (b"a.int64", b"a.uint8", r'key "a.uint8" must be printable and stand once'),
        (b"a.texts\x09\0\0\0\x08", b"a.texts\x09\0\0\0\x09", r"entries no lists, got 9"),
        (b"one\2\0\0\0", b"one\7\0\0\0", r"one must have 1 to 4 axes, got 7"),
    ],
)
def test_what_is_wrong_is_said(old, new, message, path):
    sound = path.read_bytes()
    assert old in sound
    path.write_bytes(sound.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        gguf_files.read(path)


def test_one_place_cannot_be_two_tensors(path):
    sound = path.read_bytes()
    place = sound.index(b"two", sound.index(b"a.bools")) + 3 + 4 + 8 + 4
    path.write_bytes(sound[:place] + bytes(8) + sound[place + 8 :])
    with pytest.raises(ValueError, match=r"two must stand once, at 12288 .* got 2048 bytes at 0"):
        gguf_files.read(path)


def test_a_type_that_is_not_read_is_named(tmp_path):
    path = tmp_path / "m.gguf"
    gguf_models.write(path, {"x": np.zeros((1, 8), np.int8)})
    with pytest.raises(ValueError, match=r"x is of type 24 \(I8\); expected F32, F16"):
        gguf_files.read(path)


def test_a_pointer_is_no_file(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        gguf_files.read(path)
