"""Rules that reword a text and keep it true, or make it false.

A corruption changes a number or a term, exchanges two words, or turns a claim round. Rules know
words and no meaning: now and then a reworded text is false, or a corrupted one still true.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

CORRUPTIONS = ("number", "opposite", "negation", "term", "order")
CONNECTIVES = (
    "however , |moreover , |furthermore , |in addition , |therefore , |thus , |in particular , |"
    "finally , |in this paper , |in this work , |in this study , |also , |specifically , "
)
# Words that may stand for one another in a paper; each row is one meaning.
SYNONYMS = (
    "use employ utilize|uses employs utilizes|used employed utilized|show demonstrate|"
    "shows demonstrates|showed demonstrated|shown demonstrated|method approach|"
    "methods approaches|propose present introduce|proposes presents introduces|"
    "proposed presented introduced|experiments evaluations|results findings|many numerous|"
    "important essential|problem challenge issue|difficult hard challenging|"
    "significantly substantially considerably|improve enhance|improves enhances|obtain achieve|"
    "obtained achieved|obtains achieves|often frequently|investigate examine study|"
    "investigated examined studied|build construct|big large|task problem|several various|"
    "require need|requires needs|recent latest|previous prior|limited restricted"
)
# Words whose exchange turns a claim round.
OPPOSITES = (
    "improve degrade|improves degrades|improved degraded|improvement degradation|"
    "improvements degradations|outperform underperform|outperforms underperforms|"
    "outperformed underperformed|increase decrease|increases decreases|increased decreased|"
    "better worse|best worst|high low|higher lower|highest lowest|large small|larger smaller|"
    "more less|most least|always never|effective ineffective|supervised unsupervised|"
    "significant negligible|significantly negligibly|faster slower|similar different|"
    "possible impossible|able unable|simple complex|easy difficult|sufficient insufficient|"
    "with without|few many|positive negative|same opposite|before after|useful useless|"
    "strong weak|short long|available unavailable|explicit implicit|known unknown|"
    "helps hurts|help hurt|all none|successfully unsuccessfully|accurate inaccurate|"
    "reliable unreliable|reduce enlarge|reduces enlarges|lack abundance|limited unlimited"
)
AUXILIARIES = "is are was were can could does do did will would should may might has have".split()
COUNTS = "one two three four five six seven eight nine ten".split()
ORDINALS = "first second third fourth fifth".split()
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9-]*|\d+(?:\.\d+)?")
_NUMBER = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])")
_ASIDE = re.compile(r" ?(?:\([^()]*\)|\[[^\[\]]*\])")


class Pool(NamedTuple):
    """Numbers and words of a document, which replace others of their kind."""

    numbers: tuple[str, ...]
    by_ending: dict[str, tuple[str, ...]]  # Words by `_ending`, a rough part of speech.


def split_words(text: str) -> list[str]:
    """Returns words and numbers, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def coverage(premise: str, hypothesis: str) -> tuple[float, float]:
    """Returns the share of the hypothesis' words, and of its word pairs, that the premise has."""
    known, said = split_words(premise), split_words(hypothesis)
    pairs_known, pairs_said = set(itertools.pairwise(known)), [*itertools.pairwise(said)]
    single = [word in known for word in said]
    double = [pair in pairs_known for pair in pairs_said]
    return (sum(single) / max(1, len(single)), sum(double) / max(1, len(double)))


def reword(text: str, rng: np.random.Generator) -> str:
    """Drops asides and a first connective, and replaces some words by synonyms."""
    if rng.random() < 0.7:
        text = _ASIDE.sub("", text)
    if rng.random() < 0.5:
        text = re.sub(f"^(?:{CONNECTIVES})", "", text, flags=re.IGNORECASE)
    if rng.random() < 0.5:
        text = re.sub(r"\b[Ww]e\b", "they", text)
        text = re.sub(r"\b[Oo]ur\b", "their", text)

    def other(match: re.Match[str]) -> str:
        choices = _synonyms().get(match[0].lower(), ())
        chosen = choices[rng.integers(len(choices))] if choices and rng.random() < 0.6 else match[0]
        return chosen

    text = _WORD.sub(other, text).strip()
    return text[:1].upper() + text[1:]


def pool_of(sentences: Iterable[str]) -> Pool:
    """Collects the numbers and words of a document, by kind."""
    by_ending: dict[str, dict[str, None]] = {}
    text = " ".join(sentences)
    for word in _WORD.findall(_ASIDE.sub("", text)):
        if ending := _ending(word):
            by_ending.setdefault(ending, {})[word] = None
    numbers = tuple(dict.fromkeys(_NUMBER.findall(text)))
    return Pool(numbers, {ending: tuple(group) for ending, group in by_ending.items()})


def corrupt(text: str, kind: str, pool: Pool, rng: np.random.Generator) -> str | None:
    """Returns the text with one fact made wrong; None if it has none of the kind.

    A change that keeps the meaning is none: "5" for "5.0" or "five", or one synonym for another.

    Args:
      text: a sentence.
      kind: one of CORRUPTIONS.
      pool: of the document that the text is from.
      rng: chooses the place and its replacement.

    Raises:
      ValueError: for another kind.
    """
    if kind not in _CORRUPTIONS:
        raise ValueError(f"kind must be one of {CORRUPTIONS}, got {kind!r}")
    wrong = _CORRUPTIONS[kind](text, pool, rng)
    return None if wrong is None or _is_same(wrong, text) else wrong


def draw(texts: Sequence[str], rng: np.random.Generator) -> str:
    """Draws one of the texts."""
    return texts[int(rng.integers(len(texts)))]


def _replace(
    text: str, matches: list[tuple[re.Match[str], str]], rng: np.random.Generator
) -> str | None:
    """Replaces one of the matches, at random; None if there is none."""
    if not matches:
        return None
    match, by = matches[rng.integers(len(matches))]
    by = by[:1].upper() + by[1:] if match[0][:1].isupper() and match.start() == 0 else by
    return text[: match.start()] + by + text[match.end() :]


def _number(text: str, pool: Pool, rng: np.random.Generator) -> str | None:
    matches = []
    for match in _NUMBER.finditer(text):
        choices = [n for n in pool.numbers if float(n) != float(match[0])]
        larger = float(match[0]) * float(rng.uniform(1.2, 3)) + 1
        close = str(round(larger, 1 if "." in match[0] else None))
        use_pool = choices and rng.random() < 0.5
        matches.append((match, draw(choices, rng) if use_pool else close))
    for match in _WORD.finditer(text):
        for row in (COUNTS, ORDINALS):
            if match[0].lower() in row:
                matches.append((match, draw([w for w in row if w != match[0].lower()], rng)))
    return _replace(text, matches, rng)


def _opposite(text: str, pool: Pool, rng: np.random.Generator) -> str | None:
    del pool
    known = ((m, _opposites().get(m[0].lower())) for m in _WORD.finditer(text))
    return _replace(text, [(match, by) for match, by in known if by], rng)


def _negation(text: str, pool: Pool, rng: np.random.Generator) -> str | None:
    del pool
    negated = list(re.finditer(r" (?:not|n't|no longer)\b| ?\bcannot\b", text))
    if negated:
        match = negated[rng.integers(len(negated))]
        by = " can" if "cannot" in match[0] else ""
        return (text[: match.start()] + by + text[match.end() :]).strip()
    matches = re.finditer(rf"\b(?:{'|'.join(AUXILIARIES)})\b", text)
    if wrong := _replace(text, [(match, f"{match[0]} not") for match in matches], rng):
        return wrong
    verbs = re.finditer(r"(?<=\b[Ww]e )(?:[a-z]+)|(?<=\b[Tt]hey )(?:[a-z]+)", text)
    plain = [match for match in verbs if not match[0].endswith(("ed", "ly", "s"))]
    return _replace(text, [(match, f"do not {match[0]}") for match in plain], rng)


def _term(text: str, pool: Pool, rng: np.random.Generator) -> str | None:
    said, matches = set(split_words(text)), []
    for match in _WORD.finditer(text):
        near = _synonyms().get(match[0].lower(), ())
        choices = [
            word
            for word in pool.by_ending.get(_ending(match[0]), ())
            if word.lower() not in said and word.lower() not in near
        ]
        if choices:
            matches.append((match, draw(choices, rng)))
    return _replace(text, matches, rng)


def _order(text: str, pool: Pool, rng: np.random.Generator) -> str | None:
    """Exchanges two words of one kind, so that the set of words stays."""
    del pool
    matches = [match for match in _WORD.finditer(text) if _ending(match[0])]
    swaps = [
        (a, b)
        for n, a in enumerate(matches)
        for b in matches[n + 1 :]
        if _ending(a[0]) == _ending(b[0])
        and a[0].lower() != b[0].lower()
        # "a and b" says the same as "b and a".
        and not re.fullmatch(r"[\s,]*(?:and|or|,)?[\s,]*", text[a.end() : b.start()])
    ]
    if not swaps:
        return None
    a, b = swaps[rng.integers(len(swaps))]
    return text[: a.start()] + b[0] + text[a.end() : b.start()] + a[0] + text[b.end() :]


_CORRUPTIONS: dict[str, Callable[[str, Pool, np.random.Generator], str | None]] = {
    "number": _number,
    "opposite": _opposite,
    "negation": _negation,
    "term": _term,
    "order": _order,
}


def _is_same(text: str, other: str) -> bool:
    """Returns whether two texts mean the same word by word: equal numbers, or synonyms."""
    one, two = split_words(text), split_words(other)
    return len(one) == len(two) and all(
        a == b or b in _synonyms().get(a, ()) or (_value(a) is not None and _value(a) == _value(b))
        for a, b in zip(one, two, strict=True)
    )


def _value(word: str) -> float | None:
    """Returns the value of a number, in digits or spelt; None for another word."""
    if word in COUNTS:
        return float(COUNTS.index(word) + 1)
    return float(word) if _NUMBER.fullmatch(word) else None


def _ending(word: str) -> str:
    """Returns a rough part of speech of a content word, "" for any other."""
    if word[0].isdigit():
        return ""  # A number is a kind of its own.
    if re.search(r"[A-Z0-9]", word[1:]):
        return "name"  # "BLEU", "Lattice-LSTM".
    if len(word) < 5 or word[0].isupper() or word in _FUNCTION_WORDS:
        return ""
    endings = ("ing", "ion", "ed", "ly", "s", "al", "ic")
    return next((ending for ending in endings if word.endswith(ending)), "-")


_FUNCTION_WORDS = set(
    "about above after again against among around because been before being below between both "
    "could could does doing during each every first from further have having however into itself "
    "moreover other others over same second several should since such than that their them then "
    "there therefore these they third this those though through thus under until using very were "
    "what when where whether which while whose will with within without would paper section table "
    "figure these every many".split()
)


@functools.cache
def _synonyms() -> dict[str, tuple[str, ...]]:
    synonyms: dict[str, tuple[str, ...]] = {}
    for row in SYNONYMS.split("|"):
        for word in row.split():
            others = tuple(other for other in row.split() if other != word)
            synonyms[word] = (*synonyms.get(word, ()), *others)
    return synonyms


@functools.cache
def _opposites() -> dict[str, str]:
    rows = [row.split() for row in OPPOSITES.split("|")]
    return {a: b for one, two in rows for a, b in ((one, two), (two, one))}
