"""ROUGE: the overlap of a text with a reference, in words, pairs of words and subsequences.

Lin, "ROUGE: A Package for Automatic Evaluation of Summaries", 2004,
https://aclanthology.org/W04-1013. Words are runs of a-z and 0-9 in lower case, stemmed by Porter's
rules: English alone. What is reported is F1, of rouge_score's definition to the last digit.
"""

import functools
import math
import re

from rouge_score_rs import rouge_scorer

NAMES = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}  # Ours -> the package's.
_WORD = re.compile("[a-z0-9]")


def scores(generated: str, target: str) -> dict[str, float]:
    """F1 in [0, 1] by name: of single words, of pairs, of the longest common subsequence.

    NaN where the target has no word that this measure sees, as in Cyrillic: 0 would blame the text.
    """
    if not _WORD.search(target.lower()):
        return dict.fromkeys(NAMES, math.nan)
    found = _scorer().score(target, generated)
    return {ours: found[theirs].fmeasure for ours, theirs in NAMES.items()}


@functools.cache
def _scorer() -> rouge_scorer.RougeScorer:
    return rouge_scorer.RougeScorer(list(NAMES.values()), use_stemmer=True)
