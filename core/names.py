"""What to say to a name that is none of those known. Imports nothing heavy."""

import difflib
import re
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str], *, show_all: bool = False) -> str:
    """One line for a name that is none of `known`, with the nearest of them or with all."""
    known = sorted(known)
    near = [] if show_all else alike(name, known)
    near = near or ([] if show_all else difflib.get_close_matches(name, known, n=3, cutoff=0.5))
    hint = f"did you mean {', '.join(near)}?" if near else f"expected one of {', '.join(known)}"
    return f"unknown {kind} {name!r}; {hint}"


def alike(name: str, known: Iterable[str]) -> list[str]:
    """Returns those of `known`, three at most, that others call so: ALE/Pong-v5 is atari/pong.

    They end in the same word, whatever stands before it and whichever version behind, or in one
    with which the name's begins (PongNoFrameskip-v4).
    """
    word = _last_word(name)
    same = [one for one in known if _last_word(one) == word]
    if not same:
        begins = {one: _last_word(one) for one in known}
        same = [one for one, start in begins.items() if len(start) > 3 and word.startswith(start)]
    return same[:3]


def _last_word(name: str) -> str:
    """Letters and digits behind the last slash, without a version."""
    last = re.sub(r"-v\d+$", "", name.lower().rsplit("/", 1)[-1])
    return re.sub(r"[^a-z0-9]", "", last)
