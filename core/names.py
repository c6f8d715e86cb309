"""Messages for unknown names. Imports nothing heavy."""

import difflib
import re
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str], *, show_all: bool = False) -> str:
    """Returns one line for a name that is none of `known`, with the nearest of them or with all."""
    known = sorted(known)
    near = [] if show_all else alike(name, known)
    near = near or ([] if show_all else difflib.get_close_matches(name, known, n=3, cutoff=0.5))
    hint = f"did you mean {', '.join(near)}?" if near else f"expected one of {', '.join(known)}"
    return f"unknown {kind} {name!r}; {hint}"


def alike(name: str, known: Iterable[str]) -> list[str]:
    """Returns up to three of `known` that other libraries call `name`: ALE/Pong-v5 is atari/pong.

    They end in the same word, whatever stands before it and whichever version behind, or in a word
    with which the name's last word begins (PongNoFrameskip-v4).
    """
    word = _last_word(name)
    same = [name for name in known if _last_word(name) == word]
    if not same:
        begins = {name: _last_word(name) for name in known}
        same = [name for name, start in begins.items() if len(start) > 3 and word.startswith(start)]
    return same[:3]


def _last_word(name: str) -> str:
    """Returns the letters and digits behind the last slash, without a version."""
    last = re.sub(r"-v\d+$", "", name.lower().rsplit("/", 1)[-1])
    return re.sub(r"[^a-z0-9]", "", last)
