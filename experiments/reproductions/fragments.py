"""How much of a text is copied from its document: coverage and density of extractive fragments.

Grusky, Naaman & Artzi, "Newsroom", NAACL 2018, https://arxiv.org/abs/1804.11283. Fragments are the
longest runs of words that text and document share, taken greedily from the text's beginning:

    coverage = (1 / |y|) sum_f |f|,  density = (1 / |y|) sum_f |f|^2,  f a fragment, |.| in words

A text of words that are all in the document, but nowhere two in a row, has coverage and density 1;
one that is a piece of it has coverage 1 and its own length as density.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Extractiveness(NamedTuple):
    """How much of a text is its document's."""

    coverage: float  # In [0, 1].
    density: float  # In [0, words of the text].


def fragments(document: Sequence[str], text: Sequence[str]) -> list[int]:
    """Returns lengths of the runs of words that are shared, in the order of the text.

    Args:
      document: words.
      text: words.
    """
    places: dict[str, list[int]] = {}
    for place, word in enumerate(document):
        places.setdefault(word, []).append(place)
    lengths, begin = [], 0
    while begin < len(text):
        starts = places.get(text[begin], [])
        longest = max((_shared(document, text, start, begin) for start in starts), default=0)
        if longest:
            lengths.append(longest)
        begin += max(1, longest)
    return lengths


def extractiveness(document: Sequence[str], text: Sequence[str]) -> Extractiveness:
    """Returns coverage and density of a text's words; 0 both for a text without words."""
    lengths, total = fragments(document, text), max(1, len(text))
    return Extractiveness(sum(lengths) / total, sum(n**2 for n in lengths) / total)


def _shared(document: Sequence[str], text: Sequence[str], at: int, begin: int) -> int:
    """Counts words that are equal from `at` in the document and `begin` in the text on."""
    length = 0
    for one, other in zip(document[at:], text[begin:], strict=False):
        if one != other:
            break
        length += 1
    return length
