"""Rows of data with images or sound: which files they name, and where in a text these stand.

The forms are those of TRL (https://huggingface.co/docs/trl/dataset_formats) and of Hugging Face's
chat templates. A content is a list of items, {"type": "text", "text"} and {"type": "image"}; the
files are in the column `images`, a list, or `image`, one, or each item names its own by `path`,
`image` or `url`. Without items the images stand before the first text of the user's, as in TRL; a
prompt that is a text, or a list of items, is a turn of the user's.

    {"prompt": "How many?", "images": ["a.png"], "completion": "2"}
    {"messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", ...}]}, ...],
     "images": ["a.png"]}
    {"prompt": "What is said?", "audio": "a.wav", "completion": "yes"}

Clips of sound have the same forms, {"type": "audio"} and the columns `audio` or `audios`. Files lie
in the folder of the rows, or deeper, and are read as a stranger's (lm/pictures.py, lm/audio.py).
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from kullback.core import folders
from kullback.lm import audio, forms, interleaved, pictures


class Separated(NamedTuple):
    """A row whose media are apart."""

    record: dict[str, Any]  # Of a form of lm/forms.py; its items of media name no file.
    names: list[str]  # Of files, in the order of the items.


class Opened(NamedTuple):
    """A file that was read, as a segment of a row."""

    segment: interleaved.Shown  # Its source is the path of the file.
    note: str = ""  # One line about what was left out, or "".


class Settings(Protocol):
    """How a model takes one kind of media; it can be hashed."""

    @property
    def modality(self) -> forms.Modality:
        """The kind."""
        ...

    def open(self, path: pathlib.Path, /) -> Opened:
        """Reads a file; raises ValueError, naming it, if it is damaged or too large."""
        ...


class ImageSettings(NamedTuple):
    """How a model takes images."""

    config: pictures.Config  # How they are prepared; crops are blocks of their own.
    tokens: int  # Soft tokens of an image, M.
    modality: forms.Modality = forms.IMAGES

    def open(self, path: pathlib.Path) -> Opened:
        """Reads an image; raises as `pictures.read` does."""
        picture = pictures.read(path)
        height, width, _ = picture.pixels.shape
        config = self.config
        boxes = pictures.crop_boxes(width, height, config) if config.pan_and_scan else []
        return Opened(interleaved.Image(str(path), len(boxes), self.tokens), picture.note)


class SoundSettings(NamedTuple):
    """How a model takes clips of sound."""

    most_tokens: int  # Soft tokens of a clip, at most.
    modality: forms.Modality = forms.AUDIO

    def open(self, path: pathlib.Path) -> Opened:
        """Reads a clip.

        Raises:
          ValueError: naming the file, as `audio.read_wav` does; if it is too short or too long.
        """
        sound = audio.read_wav(path)
        if len(sound) <= audio.FRAME:
            least = 1000 * audio.FRAME // audio.SAMPLE_RATE
            raise ValueError(f"{path} is no longer than {least} ms, of which no frame is made")
        tokens = audio.num_tokens(len(sound))
        if tokens > self.most_tokens:
            raise ValueError(
                f"{path} has {tokens} soft tokens, more than the {self.most_tokens} of a clip that "
                f"this model hears, {self.most_tokens * audio.TOKEN_MS / 1000:g} s; cut it in parts"
            )
        return Opened(interleaved.Audio(str(path), tokens))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
    """The media that rows may name; each file is read once."""

    folder: pathlib.Path  # Of the rows.
    settings: Settings
    notes: list[str] = dataclasses.field(default_factory=list)  # About what was left out.
    known: dict[str, interleaved.Shown] = dataclasses.field(default_factory=dict)

    def segment(self, name: str) -> interleaved.Shown:
        """Returns what a file has, after it was read once.

        Raises:
          ValueError: for a name that leads out of the folder, and as the settings' `open` does.
        """
        name = name.removeprefix("./")
        if name not in self.known:
            if "://" in name or name.startswith("data:"):
                raise ValueError(
                    f"{name[:60]!a}, of {self.settings.modality.nouns}, is no file; fetch it into "
                    "the folder of the rows"
                )
            opened = self.settings.open(folders.inside(self.folder, name))
            self.notes.extend([opened.note] if opened.note else [])
            self.known[name] = opened.segment
        return self.known[name]


def separate(record: Mapping[str, Any], modality: forms.Modality) -> Separated:
    """Takes the media of a kind out of a row; one without is as it was.

    Contents are checked by `forms.demonstration` and the like, with `modality`.

    Raises:
      ValueError: for files that are not named by texts, as many items as files, or both by items
        and a column; for media without a turn of the user's.
    """
    rest = {key: value for key, value in record.items() if key not in modality.keys}
    column = _column(record, modality)
    prompt = rest.get("prompt")
    is_items = _is_items(prompt)
    if is_items or (isinstance(prompt, str) and column and "messages" not in rest):
        rest["prompt"] = [{"role": "user", "content": prompt}]
    key = "messages" if "messages" in rest else "prompt"
    turns = rest.get(key)
    if not forms.is_messages(turns):
        if column:
            raise ValueError(
                f"{modality.nouns} need messages, or a prompt of text or items, got keys "
                f"{sorted(record)}"
            )
        return Separated(rest, [])
    turns, named = _without_names(turns, modality)
    count = len(named)
    if column and not count:
        turns, count = _placed(turns, len(column), modality), len(column)
    if column and any(named):
        raise ValueError(
            f"{modality.nouns} are named by items and by a column; leave the column out, or the "
            "items' names"
        )
    names = column or named
    if len(names) != count or not all(names):
        raise ValueError(
            f"the messages have {count} {modality.nouns} and {len(names) if column else 0} files "
            "are named; name one for each, in their order"
        )
    return Separated({**rest, key: turns}, [name for name in names if name])


def names(record: Mapping[str, Any], modality: forms.Modality) -> list[str]:
    """Returns the names of the files of a row's media, of a pair those of its chosen answer's.

    Raises:
      ValueError: as `separate` does.
    """
    chosen = record.get("chosen")
    if "prompt" not in record and forms.is_messages(chosen):
        record = {**record, "messages": chosen}
    return separate(record, modality).names


def _column(record: Mapping[str, Any], modality: forms.Modality) -> list[str]:
    """Returns the names of files in a row's column of media; [] without one."""
    several, one = modality.keys
    present = [key for key in modality.keys if record.get(key) is not None]
    if len(present) > 1:
        raise ValueError(f"a row has {several} or {one}, not both")
    if not present:
        return []
    value = record[present[0]]
    if present[0] == several and not isinstance(value, list):
        raise ValueError(f"{several} must be a list of names of files, got {_shown(value)}")
    return [_name(entry, modality) for entry in (value if isinstance(value, list) else [value])]


def _name(entry: Any, modality: forms.Modality) -> str:
    """Returns the name of a file: a text, or the path of Hugging Face's {"path", "bytes"}."""
    if isinstance(entry, Mapping) and entry.get("bytes") is None:
        entry = entry.get("path")
    if not isinstance(entry, str) or not entry:
        raise ValueError(f"{modality.keys[0]} must be the names of files, got {_shown(entry)}")
    forms.check_string(f"a name in {modality.keys[0]}", entry)
    return entry


def _is_items(value: Any) -> bool:
    """Returns whether a prompt is a list of items, rather than of messages."""
    entries = value if isinstance(value, list) else []
    return any(isinstance(one, Mapping) and "type" in one and "role" not in one for one in entries)


def _without_names(
    turns: list[Any], modality: forms.Modality
) -> tuple[list[Any], list[str | None]]:
    """Returns messages whose media name no file, and the names; None for a modality without."""
    by = ("path", modality.item, "url")  # Keys of an item by which it names its file.
    names: list[str | None] = []
    bare = []
    for turn in turns:
        content = turn.get("content") if isinstance(turn, Mapping) else None
        if not isinstance(content, list):
            bare.append(turn)
            continue
        items = []
        for item in content:
            if isinstance(item, Mapping) and item.get("type") == modality.item:
                values = [item[key] for key in by if item.get(key) is not None]
                names.append(_name(values[0], modality) if values else None)
                item = {"type": modality.item}
            items.append(item)
        bare.append({**turn, "content": items})
    return bare, names


def _placed(turns: list[Any], count: int, modality: forms.Modality) -> list[Any]:
    """Returns messages with `count` media before the first text of the user's."""
    for n, turn in enumerate(turns):
        if isinstance(turn, Mapping) and turn.get("role") == "user" and "content" in turn:
            content = turn["content"]
            items = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if not isinstance(items, list):
                break  # Another check says what is wrong.
            placed = {**turn, "content": [{"type": modality.item}] * count + items}
            return [*turns[:n], placed, *turns[n + 1 :]]
    raise ValueError(f"{modality.nouns} need a message of the user's before which they stand")


def _shown(value: Any) -> str:
    return f"{json.dumps(value)[:40]} ({type(value).__name__})"
