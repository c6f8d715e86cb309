r"""Whole matches of regular expressions in a time that is bounded by the lengths alone.

Python's `re` backtracks: (a+)+b takes 2^n steps on n letters a, and nothing can stop it. A limit in
seconds would make a reward depend on the machine's load. Here all ways to match are followed at
once, as in Thompson, "Regular Expression Search Algorithm", 1968: a text of n characters takes
O(n m) steps for an expression of m places, and m is bounded.

Single characters and conditions (\d, [a-z], ., ^, \b) are those of `re`, which checks the
expression first, so that a match means the same as `re.fullmatch`. What is not regular is refused:
references to groups, looking ahead or behind, atomic groups and possessive repeats.
"""

import dataclasses
import re
import warnings
from collections.abc import Callable

LENGTH = 1_000  # Most characters of an expression.
PLACES = 2_000  # Most places of one, with repeats written out: x{3} has three.

_FLAGS = re.compile(r"\(\?([aims]+)\)")
_GROUP = re.compile(r"\((?:\?:|\?P<\w+>|(?!\?))")
_REPEAT = re.compile(r"(?:(?P<sign>[*+?])|\{(?P<low>[0-9]*)(?P<comma>,)?(?P<high>[0-9]*)\})")
_CLASS = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]", re.S)
_ESCAPE = re.compile(
    r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^}]*\}|0[0-7]{0,2}|[0-7]{3}|[^0-9])",
    re.S,
)
_CONDITIONS = ("^", "$", r"\A", r"\Z", r"\b", r"\B")


_ANYWHERE = re.compile("")


@dataclasses.dataclass
class _Place:
    """A place of an expression: what must hold there, and the places that follow."""

    atom: re.Pattern[str] = _ANYWHERE
    takes: bool = False  # Whether the atom is a character, rather than a condition.
    following: list[int] = dataclasses.field(default_factory=list)


def whole(pattern: str) -> Callable[[str], bool]:
    """Returns the function that says whether an expression matches the whole of a text.

    Args:
      pattern: as for `re`, without what is not regular; (?i), (?m), (?s), (?a) come first.

    Raises:
      ValueError: for what `re` refuses, what is not regular, or an expression that is too long.
    """
    if not 0 < len(pattern) <= LENGTH:
        raise ValueError(f"an expression has 1 to {LENGTH:,} characters, got {len(pattern):,}")
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # Of [[.
            compiled = re.compile(pattern)
            flags = _FLAGS.match(pattern)
            reader = _Reader(pattern, flags.end() if flags else 0, compiled.flags & ~re.UNICODE)
            start, ends = reader.alternatives()
    except (re.error, OverflowError) as error:
        raise ValueError(f"{pattern!r:.80} is no regular expression: {error}") from error
    except RecursionError as error:
        raise ValueError(f"{pattern!r:.80} has too many groups in groups") from error
    end = reader.place()
    reader.join(ends, end)
    return _Matcher(reader.places, start, end)


class _Reader:
    """Reads an expression, which `re` accepts, as places; a fragment is its start and its ends."""

    def __init__(self, pattern: str, at: int, flags: int):
        self.at, self.places = at, list[_Place]()
        self._pattern, self._flags = pattern, flags

    def refusal(self) -> ValueError:
        return ValueError(
            f"{self._pattern!r:.80} at character {self.at + 1}: only what is regular is matched in "
            "a bounded time: characters, classes, ., |, groups, * + ? {m,n}, ^ $ \\b"
        )

    def place(self, atom: re.Pattern[str] = _ANYWHERE, *, takes: bool = False) -> int:
        if len(self.places) >= PLACES:
            raise ValueError(
                f"{self._pattern!r:.80} has more than {PLACES:,} places with its repeats written "
                "out; use * or + in place of large counts"
            )
        self.places.append(_Place(atom, takes))
        return len(self.places) - 1

    def join(self, ends: list[int], start: int) -> None:
        for end in ends:
            self.places[end].following.append(start)

    def alternatives(self) -> tuple[int, list[int]]:
        fork, ends = self.place(), list[int]()
        while True:
            start, last = self._sequence()
            self.join([fork], start)
            ends += last
            if not self._pattern.startswith("|", self.at):
                return fork, ends
            self.at += 1

    def _sequence(self) -> tuple[int, list[int]]:
        start = self.place()
        ends = [start]
        while self.at < len(self._pattern) and self._pattern[self.at] not in "|)":
            begin = self.at
            first, last = self._item()
            low, high = self._counts()
            after = self.at
            # A repeat is read again for each copy, so that each has places of its own.
            for number in range(max(low, 1) if high is None else high):
                if number:
                    self.at = begin
                    first, last = self._item()
                if low or high is not None:
                    self.join(ends, first)
                    ends = last if number < low else [*ends, *last]
            if high is None:  # The last copy, any number of times more.
                loop = self.place()
                self.join([*ends, *last], loop)
                self.join([loop], first)
                ends = [loop]
            self.at = after
        return start, ends

    def _item(self) -> tuple[int, list[int]]:
        pattern, at = self._pattern, self.at
        if pattern[at] == "(":
            opening = _GROUP.match(pattern, at)
            if opening is None:
                raise self.refusal()
            self.at = opening.end()
            inside = self.alternatives()
            self.at += 1  # The bracket that closes it.
            return inside
        atom = _CLASS.match(pattern, at) if pattern[at] == "[" else None
        if pattern[at] == "\\":
            atom = _ESCAPE.match(pattern, at)
            if atom is None:
                raise self.refusal()
        text = pattern[at] if atom is None else atom[0]
        self.at += len(text)
        takes = text not in _CONDITIONS
        place = self.place(re.compile(text, self._flags), takes=takes)
        return place, [place]

    def _counts(self) -> tuple[int, int | None]:
        """Returns the least and the largest number of times of what was read; None is no limit."""
        repeat = _REPEAT.match(self._pattern, self.at)
        if repeat is None or not any(repeat.groups()):  # {} is a text.
            return 1, 1
        self.at = repeat.end()
        if self._pattern.startswith("+", self.at):
            raise self.refusal()
        if self._pattern.startswith("?", self.at):  # Lazy; a whole match is the same.
            self.at += 1
        if repeat["sign"]:
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[repeat["sign"]]
        low, high = int(repeat["low"] or 0), repeat["high"]
        if not repeat["comma"]:
            return low, low
        return low, int(high) if high else None


@dataclasses.dataclass(frozen=True)
class _Matcher:
    """Says whether the places match a whole text."""

    places: list[_Place]
    start: int
    end: int

    def __call__(self, text: str) -> bool:
        active = self._reached([self.start], text, 0)
        for at in range(len(text)):
            taken = [i for i in active if (p := self.places[i]).takes and p.atom.match(text, at)]
            active = self._reached(
                [j for i in taken for j in self.places[i].following], text, at + 1
            )
            if not active:
                return False
        return self.end in active

    def _reached(self, starts: list[int], text: str, at: int) -> set[int]:
        """Returns the places that are reached from others without a character."""
        reached, waiting = set[int](), [*starts]
        while waiting:
            number = waiting.pop()
            if number in reached:
                continue
            reached.add(number)
            place = self.places[number]
            if not place.takes and place.atom.match(text, at):
                waiting += place.following
        return reached
