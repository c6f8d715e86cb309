"""Ways in which a file is damaged, or made by somebody who means harm."""

import json
import os
import pathlib
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# White space that a copy of a file keeps, and that what is read and written anew does not.
SECRET = b" \t \t\t \t \t \t\t\t \t\n"
EXECUTED = "executed"  # A file that the module evil.py writes if it is imported.
EVIL = f"import pathlib\npathlib.Path(__file__).with_name({EXECUTED!r}).touch()\n"
EVIL += "def f(prompts, texts, references):\n    return [0.0] * len(texts)\n"

OTHERS: tuple[Any, ...] = (None, True, False, 0, 5, -1, 1.5, "", "abc", "1", [], [[]], [5], {})
OTHERS += ({"a": 1}, ["a"], {"a": {"a": {}}})
SIZES = (2**31 - 1, 2**31, 2**32, 3_000_000_000, 4_294_967_294, 10**12, 2**63 - 1, 2**63, 10**30)
NAMES = ("../elsewhere/secret", "/etc/hostname", "..", ".", "", "a/../../x", "/", "nowhere", "x\0y")
NAMES += (
    "python:evil:f",
    "gym/evil:Id-v0",
    "tokens/jsonl:/etc/hostname",
    "../" * 50 + "etc/passwd",
)

Way = Callable[[pathlib.Path, np.random.Generator], str]


def flip(path: pathlib.Path, random: np.random.Generator) -> str:
    """Changes a few bytes."""
    data = bytearray(path.read_bytes())
    places = random.integers(len(data), size=random.integers(1, 9))
    for place in places:
        data[place] ^= int(random.integers(1, 256))
    path.write_bytes(data)
    return f"bytes {sorted(map(int, places))} flipped"


def cut(path: pathlib.Path, random: np.random.Generator) -> str:
    """Leaves the beginning; a line never ends there, with or without its end."""
    data = path.read_bytes()
    size = 0 if random.random() < 0.2 else int(random.integers(len(data)))
    while size and b"\n" in data[size - 1 : size + 1]:
        size -= 1
    path.write_bytes(data[:size])
    return f"cut to {size} of {len(data)} bytes"


def zero(path: pathlib.Path, random: np.random.Generator) -> str:
    """Fills a part, or all, with zeros, as a crash of the machine does."""
    data = bytearray(path.read_bytes())
    begin, end = sorted(map(int, random.integers(len(data) + 1, size=2)))
    if random.random() < 0.3:
        begin, end = 0, len(data)
    data[begin:end] = bytes(end - begin)
    path.write_bytes(data)
    return f"bytes {begin} to {end} of {len(data)} zeroed"


def retype(path: pathlib.Path, random: np.random.Generator) -> str:
    """Puts a value of another type in the place of one."""

    def other(value: Any) -> Any:
        others = [one for one in OTHERS if _kind(one) != _kind(value)]
        if path.suffix == ".toml":  # A list of numbers is what sweeps go through.
            others.remove([5])
        return others[random.integers(len(others))]

    if path.suffix == ".json" and random.random() < 0.05:
        path.write_text("[" * 100_000)
        return "nested without end"
    return _change(path, random, lambda value: True, other)


def enlarge(path: pathlib.Path, random: np.random.Generator) -> str:
    """Lets a file claim sizes that it does not have."""
    if path.suffix == ".safetensors" and random.random() < 0.3:
        data = bytearray(path.read_bytes())
        size = SIZES[random.integers(len(SIZES) - 2)]
        data[:8] = struct.pack("<Q", size)
        path.write_bytes(data)
        return f"its header claims {size} bytes"

    if path.suffix == ".gguf":
        data = bytearray(path.read_bytes())
        places = _sizes_of_gguf(data)
        place, size = places[random.integers(len(places))], SIZES[random.integers(len(SIZES) - 2)]
        data[place : place + 8] = struct.pack("<Q", size)
        path.write_bytes(data)
        return f"the size at byte {place} is {size}"

    def large(value: Any) -> Any:
        size = SIZES[random.integers(len(SIZES))]
        return -size if random.random() < 0.2 else size

    # A rate in a sweep may be as large as one likes.
    kinds = (int,) if path.suffix == ".toml" else (int, float)
    return _change(path, random, lambda value: type(value) in kinds, large)


def _sizes_of_gguf(data: bytes | bytearray) -> list[int]:
    """Returns where a GGUF file has counts of tensors, keys and entries, and axes of tensors."""
    places = [8, 16, 24]
    for name, gap in (
        (b"tokenizer.ggml.tokens", 8),  # The types of the value, and of a list's entries.
        (b"tokenizer.ggml.token_type", 8),
        (b"token_embd.weight", 4),  # The number of axes.
        (b"token_embd.weight", 12),
        (b"output_norm.weight", 4),
    ):
        places.append(data.index(name) + len(name) + gap)
    return places


def lead(path: pathlib.Path, random: np.random.Generator) -> str:
    """Lets a name lead elsewhere."""
    return _change(
        path,
        random,
        lambda value: isinstance(value, str),
        lambda value: NAMES[random.integers(len(NAMES))],
    )


def replace(path: pathlib.Path, random: np.random.Generator) -> str:
    """Puts something else in a file's place: a link out of the folder, a pipe, a folder."""
    data = path.read_bytes()
    path.unlink()
    match random.integers(6):
        case 0:
            path.mkdir()
            return "is a folder"
        case 1:
            os.mkfifo(path)
            return "is a pipe"
        case 2:
            path.symlink_to("nowhere")
            return "is a link to nothing"
        case 3:
            path.symlink_to(path.name)
            return "is a link to itself"
    outside = path.with_name(f"secret-{path.name}")
    while outside.parent.name != "scratch":  # What attempts are made in.
        outside = outside.parent.with_name(outside.name)
    outside.write_bytes(data + SECRET if path.suffix in (".json", ".jsonl", ".toml") else data)
    path.symlink_to(os.path.relpath(outside, path.parent))
    return f"is a link to {outside.name} outside"


def remove(path: pathlib.Path, random: np.random.Generator) -> str:
    """Deletes a file."""
    del random
    path.unlink()
    return "is missing"


def _change(
    path: pathlib.Path,
    random: np.random.Generator,
    is_meant: Callable[[Any], bool],
    other: Callable[[Any], Any],
) -> str:
    """Replaces a value of a file, by its format; "" if it has none that is meant."""
    match path.suffix:
        case ".json":
            value, said = _changed(json.loads(path.read_text()), random, is_meant, other)
            path.write_text(json.dumps(value))
        case ".jsonl":
            lines = path.read_text().splitlines()
            place = int(random.integers(len(lines)))
            value, said = _changed(json.loads(lines[place]), random, is_meant, other)
            lines[place] = json.dumps(value)
            path.write_text("\n".join(lines) + "\n")
            said = said and f"line {place + 1}: {said}"
        case ".safetensors":
            data = path.read_bytes()
            (size,) = struct.unpack("<Q", data[:8])
            value, said = _changed(json.loads(data[8 : 8 + size]), random, is_meant, other)
            header = json.dumps(value).encode()
            path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])
        case ".csv" | ".toml":
            text = path.read_text()
            cells = list(re.finditer(r"(?<=[,\n=\[])[^,\n=\[\]]+(?=[,\n\]])", text))
            cells = [cell for cell in cells if is_meant(_read(cell[0]))]
            if not cells:
                return ""
            cell = cells[random.integers(len(cells))]
            new = other(_read(cell[0]))
            shown = json.dumps(new) if path.suffix == ".toml" else str(new).replace(",", ";")
            path.write_text(text[: cell.start()] + shown + text[cell.end() :])
            said = f"{cell[0]!r} at {cell.start()} is {shown}"
        case _:
            return ""
    return said


def _changed(
    value: Any,
    random: np.random.Generator,
    is_meant: Callable[[Any], bool],
    other: Callable[[Any], Any],
) -> tuple[Any, str]:
    """Returns JSON in which one value is another, and what was changed."""
    places = [place for place in _places(value) if is_meant(_at(value, place))]
    if not places:
        return value, ""
    # A table of thousands of entries is one place among the others.
    depth = random.integers(max(map(len, places)) + 1)
    near = [place for place in places if len(place) <= depth] or places
    place = near[random.integers(len(near))]
    new = other(_at(value, place))
    name = ".".join(map(str, place)) or "all"
    if not place:
        return new, f"{name} is {new!r}"
    _at(value, place[:-1])[place[-1]] = new
    return value, f"{name} is {json.dumps(new)}"


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    places = [place]
    if isinstance(value, dict):
        places += [p for key, child in value.items() for p in _places(child, (*place, key))]
    elif isinstance(value, list):
        places += [p for key, child in enumerate(value) for p in _places(child, (*place, key))]
    return places


def _at(value: Any, place: Sequence[Any]) -> Any:
    for key in place:
        value = value[key]
    return value


def _kind(value: Any) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


def _read(text: str) -> Any:
    try:
        return json.loads(text.strip())
    except ValueError:
        return text.strip()


# Those of the second kind may leave a file that nobody can tell from a whole one.
SEEN: dict[str, Way] = {"cut": cut, "retype": retype, "enlarge": enlarge, "lead": lead}
SEEN |= {"replace": replace}
UNSEEN: dict[str, Way] = {"flip": flip, "zero": zero}
WAYS: dict[str, Way] = {**SEEN, **UNSEEN, "remove": remove}
