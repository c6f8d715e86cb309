"""What to say to a name that is none of those known. Imports nothing heavy."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str], *, show_all: bool = False) -> str:
    """One line for a name that is none of `known`, with the nearest of them or with all."""
    known = sorted(known)
    near = [] if show_all else difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"expected one of {', '.join(known)}"
    return f"unknown {kind} {name!r}; {hint}"
