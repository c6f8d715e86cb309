"""Rows of data with images: which files they name, and where in the conversation these stand.

The forms are those of TRL (https://huggingface.co/docs/trl/dataset_formats) and of Hugging Face's
chat templates. A content is a list of items, {"type": "text", "text"} and {"type": "image"}; the
files are in the column `images`, a list, or `image`, one, or each item names its own by `path`,
`image` or `url`. Without items the images stand before the first text of the user's, as in TRL; a
prompt that is a text, or a list of items, is a turn of the user's.

    {"prompt": "How many?", "images": ["a.png"], "completion": "2"}
    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", ...}]}, ...],
     "images": ["a.png"]}

Files lie in the folder of the rows, or deeper, and are read as a stranger's (lm/pictures.py).
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from kullback.core import folders
from kullback.lm import forms, interleaved, pictures

_NAMES = ("path", "image", "url")  # Keys of an item by which it names its file.


class Separated(NamedTuple):
    """A row whose images are apart."""

    record: dict[str, Any]  # Of a form of lm/forms.py; its items of images name no file.
    names: list[str]  # Of files, in the order of the items.


class Settings(NamedTuple):
    """How a model takes images."""

    config: pictures.Config  # How they are prepared.
    tokens: int  # Soft tokens of an image, M.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """The images that rows may name; each file is read once."""

    folder: pathlib.Path  # Of the rows.
    settings: Settings  # Crops are blocks of their own.
    notes: list[str] = dataclasses.field(default_factory=list)  # About what was left out.
    known: dict[str, interleaved.Image] = dataclasses.field(default_factory=dict)

    def image(self, name: str) -> interleaved.Image:
        """Returns an image, whose source is the path of its file, after it was read once.

        Raises:
          ValueError: for a name that leads out of the folder, and as `pictures.read` does.
        """
        name = name.removeprefix("./")
        if name not in self.known:
            if "://" in name or name.startswith("data:"):
                raise ValueError(
                    f"the image {name[:60]!a} is no file; fetch it into the folder of the rows"
                )
            path = folders.inside(self.folder, name)
            picture = pictures.read(path)
            height, width, _ = picture.pixels.shape
            config, tokens = self.settings
            boxes = pictures.crop_boxes(width, height, config) if config.pan_and_scan else []
            self.notes.extend([picture.note] if picture.note else [])
            self.known[name] = interleaved.Image(str(path), len(boxes), tokens)
        return self.known[name]


def of_file(
    path: pathlib.Path, config: pictures.Config, tokens: int
) -> tuple[interleaved.Image, str]:
    """Returns an image, whose source is the path of its file, and a note, see `pictures.Picture`.

    Args:
      path: of the file, which is read.
      config: how images are prepared.
      tokens: soft tokens of an image, M.

    Raises:
      ValueError: as `pictures.read` does.
    """
    picture = pictures.read(path)
    height, width, _ = picture.pixels.shape
    boxes = pictures.crop_boxes(width, height, config) if config.pan_and_scan else []
    return interleaved.Image(str(path), len(boxes), tokens), picture.note


def separate(record: Mapping[str, Any]) -> Separated:
    """Takes the images out of a row; one without is as it was.

    Contents are checked by `forms.demonstration` and the like, with `images`.

    Raises:
      ValueError: for files that are not named by texts, as many items as files, or both by items
        and a column; for images without a turn of the user's.
    """
    rest = {key: value for key, value in record.items() if key not in forms.IMAGES}
    column = _column(record)
    prompt = rest.get("prompt")
    is_items = _is_items(prompt)
    if is_items or (isinstance(prompt, str) and column and "messages" not in rest):
        rest["prompt"] = [{"role": "user", "content": prompt}]
    key = "messages" if "messages" in rest else "prompt"
    turns = rest.get(key)
    if not forms.is_messages(turns):
        if column:
            raise ValueError(
                f"images need messages, or a prompt of text or items, got keys {sorted(record)}"
            )
        return Separated(rest, [])
    turns, named = _without_names(turns)
    count = len(named)
    if column and not count:
        turns, count = _placed(turns, len(column)), len(column)
    if column and any(named):
        raise ValueError(
            "images are named by items and by a column; leave the column out, or the items' names"
        )
    names = column or named
    if len(names) != count or not all(names):
        raise ValueError(
            f"the messages have {count} images and {len(names) if column else 0} files are named; "
            "name one for each, in their order"
        )
    return Separated({**rest, key: turns}, [name for name in names if name])


def names(record: Mapping[str, Any]) -> list[str]:
    """Returns the names of the files of a row's images, of a pair those of its chosen answer's.

    Raises:
      ValueError: as `separate` does.
    """
    chosen = record.get("chosen")
    if "prompt" not in record and forms.is_messages(chosen):
        record = {**record, "messages": chosen}
    return separate(record).names


def _column(record: Mapping[str, Any]) -> list[str]:
    """Returns the names of files in a row's column of images; [] without one."""
    present = [key for key in forms.IMAGES if record.get(key) is not None]
    if len(present) > 1:
        raise ValueError("a row has images or image, not both")
    if not present:
        return []
    value = record[present[0]]
    if present[0] == "images" and not isinstance(value, list):
        raise ValueError(f"images must be a list of names of files, got {_shown(value)}")
    return [_name(entry) for entry in (value if isinstance(value, list) else [value])]


def _name(entry: Any) -> str:
    """Returns the name of a file: a text, or the path of Hugging Face's {"path", "bytes"}."""
    if isinstance(entry, Mapping) and entry.get("bytes") is None:
        entry = entry.get("path")
    if not isinstance(entry, str) or not entry:
        raise ValueError(f"an image must be the name of a file, got {_shown(entry)}")
    forms.check_string("the name of an image", entry)
    return entry


def _is_items(value: Any) -> bool:
    """Returns whether a prompt is a list of items, rather than of messages."""
    entries = value if isinstance(value, list) else []
    return any(isinstance(one, Mapping) and "type" in one and "role" not in one for one in entries)


def _without_names(turns: list[Any]) -> tuple[list[Any], list[str | None]]:
    """Returns messages whose images name no file, and the names; None for an image without."""
    names: list[str | None] = []
    bare = []
    for turn in turns:
        content = turn.get("content") if isinstance(turn, Mapping) else None
        if not isinstance(content, list):
            bare.append(turn)
            continue
        items = []
        for item in content:
            if isinstance(item, Mapping) and item.get("type") == "image":
                values = [item[key] for key in _NAMES if item.get(key) is not None]
                names.append(_name(values[0]) if values else None)
                item = {"type": "image"}
            items.append(item)
        bare.append({**turn, "content": items})
    return bare, names


def _placed(turns: list[Any], count: int) -> list[Any]:
    """Returns messages with `count` images before the first text of the user's."""
    for n, turn in enumerate(turns):
        if isinstance(turn, Mapping) and turn.get("role") == "user" and "content" in turn:
            content = turn["content"]
            items = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if not isinstance(items, list):
                break  # Another check says what is wrong.
            placed = {**turn, "content": [{"type": "image"}] * count + items}
            return [*turns[:n], placed, *turns[n + 1 :]]
    raise ValueError("images need a message of the user's before which they stand")


def _shown(value: Any) -> str:
    return f"{json.dumps(value)[:40]} ({type(value).__name__})"
