"""GGUF files of llama.cpp, versions 2 and 3: metadata, and tensors that are dequantised in parts.

    header, {key: value} of metadata, descriptions of tensors, padding, tensors one after another

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file may be a stranger's or damaged.
Each of its counts, lengths, types and offsets is compared with the file's own size and with the
limits below before memory is asked for. The reader of the package `gguf` is not used: it believes
counts and lengths (a slice beyond the end is short, silently), keeps several Python objects for
each entry of a list, and looks at no offset. What its quantised numbers mean is the package's.

R rows, C columns: a tensor is [R, C] as in torch, [out, in], or [C].
"""

import functools
import math
import pathlib
import struct
from typing import Any, NamedTuple

import numpy as np

from kullback.core import files, folders, json_files, mapped

MAX_ENTRIES = 1 << 16  # Keys of metadata, and tensors; the largest models have some thousands.
MAX_ITEMS = 1 << 24  # Of a list in the metadata: twice the largest vocabulary that we take.
MAX_KEY = (1 << 16) - 1  # Bytes of a key, as the format says.
MAX_NAME = 64  # Bytes of a tensor's name, as the format says.
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 20
SUFFIX = ".gguf"
VERSIONS = (2, 3)
# Types whose numbers are read; `gguf` knows how.
KINDS = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"),
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"),
)
_MAGIC = b"GGUF"
# The types of metadata by number.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _LIST = 7, 8, 9
_GROUP = 1 << 14  # Numbers of a row that is dequantised: `gguf` takes sixteen rows at once.


class Tensor(NamedTuple):
    """A tensor of a file that is memory-mapped: its numbers are read when they are used."""

    name: str
    kind: str  # "Q4_K", of KINDS.
    shape: tuple[int, ...]  # [R, C] or [C].
    data: np.ndarray  # uint8, flat; a row lies in one piece.

    def rows(self, part: slice) -> np.ndarray:
        """Returns a part of the first axis in float32.

        Args:
          part: without a step, of whole blocks for a tensor of one axis.

        Raises:
          ValueError: if one of its numbers is not finite, as in a damaged file.
        """
        import gguf  # Late: most commands need none of it.

        kind = gguf.GGMLQuantizationType[self.kind]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        begin, end, _ = part.indices(self.shape[0])
        row = math.prod(self.shape[1:])
        data = self.data[begin * row // block * size : end * row // block * size]
        # Blocks lie in one piece, so the rows that `gguf` sees may be long ones.
        width = math.gcd(data.size // size, max(1, _GROUP // block)) * size
        with np.errstate(all="ignore"):  # What overflows is found below.
            numbers = gguf.quants.dequantize(data.reshape(-1, width), kind)
        mapped.release(data)
        numbers = numbers.reshape(end - begin, *self.shape[1:])
        if not np.isfinite(numbers).all():
            raise ValueError(f"tensor {self.name} ({self.kind}) has numbers that are not finite")
        return numbers


class File(NamedTuple):
    """Contents of a GGUF file."""

    metadata: json_files.Record  # Numbers, texts, and lists of them by key: "gemma3.block_count".
    tensors: dict[str, Tensor]


def read(path: files.Path) -> File:
    """Opens a GGUF file; its tensors are memory-mapped.

    Raises:
      CorruptError: if it is no whole GGUF file of a version and byte order that we read, claims
        more than it holds, or has a tensor of another type than KINDS.
      ValueError: if it is no regular file.
    """
    path = pathlib.Path(path)
    folders.check_regular(path)
    memory = mapped.open_bytes(path)
    cursor = _Cursor(memory.data, str(path))
    _check_beginning(cursor)
    num_tensors = cursor.count("number of tensors", 24, MAX_ENTRIES)
    num_keys = cursor.count("number of keys", 13, MAX_ENTRIES)
    values: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.text("key", MAX_KEY)
        if not key.isprintable() or key in values:
            raise cursor.error(f"key {json_files.shown(key)} must be printable and stand once")
        values[key] = _value(cursor, key)
    metadata = json_files.Record(str(path), (), values)
    alignment = metadata.get("general.alignment", int, 32)
    if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise metadata.error("general.alignment", f"a power of two up to {MAX_ALIGNMENT}")
    described = [_description(cursor) for _ in range(num_tensors)]
    begin = -(-cursor.at // alignment) * alignment
    return File(metadata, _tensors(str(path), described, memory[begin:], alignment))


class _Description(NamedTuple):
    name: str
    kind: str
    shape: tuple[int, ...]
    num_bytes: int
    offset: int


class _Cursor:
    """A place in a file, which never moves beyond its end."""

    def __init__(self, data: memoryview, file: str) -> None:
        self.data, self.file, self.at = data, file, 0

    def error(self, complaint: str) -> files.CorruptError:
        return files.CorruptError(f"{self.file}: {complaint}; it is damaged")

    def take(self, num_bytes: int, what: str) -> memoryview:
        left = len(self.data) - self.at
        if num_bytes > left:
            raise self.error(
                f"{what} at byte {self.at} takes {num_bytes} bytes, and the file has {left} more"
            )
        self.at += num_bytes
        return self.data[self.at - num_bytes : self.at]

    def number(self, code: str, what: str) -> int | float:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code), what))[0]

    def count(self, what: str, num_bytes: int, most: int) -> int:
        """Reads how many things of at least `num_bytes` follow."""
        count = int(self.number("Q", what))
        left = len(self.data) - self.at
        if count > most or count * num_bytes > left:
            raise self.error(
                f"{what} must be at most {min(most, left // num_bytes)}, for which there is room, "
                f"got {count}"
            )
        return count

    def text(self, what: str, most: int) -> str:
        data = self.take(self.count(f"length of {what}", 1, most), what)
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError:
            raise self.error(f"{what} at byte {self.at - len(data)} must be UTF-8") from None


def _check_beginning(cursor: _Cursor) -> None:
    magic = bytes(cursor.data[: len(json_files.LFS)])
    if magic == json_files.LFS.encode():
        raise files.CorruptError(
            f"{cursor.file} is a git-lfs pointer, not the file; fetch it by git lfs pull"
        )
    if magic[:4] != _MAGIC:
        raise files.CorruptError(
            f"{cursor.file} is no GGUF file: it must begin with {_MAGIC!r}, got {magic[:4]!r}"
        )
    cursor.take(4, "magic")
    version = int(cursor.number("I", "version"))
    if version not in VERSIONS:
        order = " (it is of big-endian machines)" if not version & 0xFFFF else ""
        raise files.CorruptError(
            f"{cursor.file}: GGUF version must be one of {VERSIONS}, got {version}{order}; convert "
            "the model by a newer llama.cpp"
        )


def _value(cursor: _Cursor, key: str) -> Any:
    """Reads a value of the metadata."""
    shown = json_files.shown(key)
    kind = int(cursor.number("I", f"type of {shown}"))
    if kind == _LIST:
        kind = int(cursor.number("I", f"type of {shown}"))
        if kind == _STRING:
            count = cursor.count(f"length of {shown}", 8, MAX_ITEMS)
            return [cursor.text(f"{shown}[{n}]", json_files.MAX_BYTES) for n in range(count)]
        return _numbers(cursor, shown, kind, None)
    if kind == _STRING:
        return cursor.text(shown, json_files.MAX_BYTES)
    return _numbers(cursor, shown, kind, 1)[0]


def _numbers(cursor: _Cursor, shown: str, kind: int, count: int | None) -> list[Any]:
    """Reads numbers or booleans of one type; as many as the file says if `count` is None."""
    if kind not in (_BOOL, *_NUMBERS):
        raise cursor.error(
            f"{shown} must be of a type in [0, 12], a list's entries no lists, got {kind}"
        )
    dtype = np.dtype(_NUMBERS.get(kind, "B")).newbyteorder("<")
    if count is None:
        count = cursor.count(f"length of {shown}", dtype.itemsize, MAX_ITEMS)
    numbers = np.frombuffer(cursor.take(count * dtype.itemsize, shown), dtype)
    if kind == _BOOL:
        if (numbers > 1).any():
            raise cursor.error(f"{shown} must be true or false, got byte {numbers.max()}")
        return numbers.astype(bool).tolist()
    if dtype.kind == "f" and not np.isfinite(numbers).all():
        raise cursor.error(f"{shown} must be finite")
    # A scalar is meant as the decimal number that was rounded to it: 1e-6, not 9.99999997e-07.
    return [float(str(numbers[0]))] if dtype.kind == "f" and count == 1 else numbers.tolist()


@functools.cache
def _sizes() -> dict[int, tuple[str, int, int]]:
    """Returns name, numbers of a block and its bytes by the number of a type."""
    import gguf

    return {kind.value: (kind.name, *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}


def _description(cursor: _Cursor) -> _Description:
    name = cursor.text("name of a tensor", MAX_NAME)
    if not name.isprintable() or not name:
        raise cursor.error(f"name of a tensor must be printable, got {json_files.shown(name)}")
    num_dims = int(cursor.number("I", f"axes of {name}"))
    if not 1 <= num_dims <= MAX_DIMS:
        raise cursor.error(f"{name} must have 1 to {MAX_DIMS} axes, got {num_dims}")
    dims = struct.unpack(f"<{num_dims}Q", cursor.take(8 * num_dims, f"shape of {name}"))
    number = int(cursor.number("I", f"type of {name}"))
    offset = int(cursor.number("Q", f"offset of {name}"))
    kind, block, size = _sizes().get(number, ("unknown", 1, 1))
    if kind not in KINDS:
        raise files.CorruptError(
            f"{cursor.file}: {name} is of type {number} ({kind}); expected {', '.join(KINDS)}"
        )
    if not all(dims) or math.prod(dims) >= 2**63 or dims[0] % block:
        raise cursor.error(
            f"{name} must have axes >= 1, the last of its rows a multiple of {block} for {kind}, "
            f"got {[*dims[::-1]]}"
        )
    return _Description(name, kind, dims[::-1], math.prod(dims) // block * size, offset)


def _tensors(
    file: str, described: list[_Description], data: np.ndarray, alignment: int
) -> dict[str, Tensor]:
    """Returns the tensors; each must begin where the one before it ends, as ggml demands too.

    Otherwise a small file could have any number of large tensors, all of the same bytes.
    """
    tensors: dict[str, Tensor] = {}
    expected = 0
    for tensor in described:
        end = tensor.offset + tensor.num_bytes
        if tensor.name in tensors or tensor.offset != expected or end > data.size:
            raise files.CorruptError(
                f"{file}: tensor {tensor.name} must stand once, at {expected} and within "
                f"{data.size} bytes of data, got {tensor.num_bytes} bytes at {tensor.offset}; it "
                "is cut or damaged"
            )
        tensors[tensor.name] = Tensor(
            tensor.name, tensor.kind, tensor.shape, data[tensor.offset : end]
        )
        expected = -(-end // alignment) * alignment
    return tensors
