"""ROUGE: the overlap of a text with a reference, in words, pairs of words and subsequences.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004,
https://aclanthology.org/W04-1013. Words are runs of a-z and 0-9 in lower case, stemmed by Porter's
rules, so that it is for English alone. The measure is F1, equal to that of rouge_score.
"""

import functools
import math
import re

from rouge_score_rs import rouge_scorer

NAMES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}  # Ours -> the package's.
_WORD = re.compile("[a-z0-9]")


def scores(generated: str, target: str) -> dict[str, float]:
    """Returns F1 in [0, 1] by name: of single words, word pairs, and longest common subsequence.

    It is NaN where the target has no word of a-z or 0-9, such as in Cyrillic.
    """
    if not _WORD.search(target.lower()):
        return dict.fromkeys(NAMES, math.nan)
    measures = _scorer().score(target, generated)
    return {ours: measures[theirs].fmeasure for ours, theirs in NAMES.items()}


@functools.cache
def _scorer() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(list(NAMES.values()), use_stemmer=True)
