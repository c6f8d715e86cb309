"""Tests of lm/kl_excursions.py: when a policy has run away from its start."""

import math
from typing import Any

import numpy as np
import pytest

from kullback.lm import kl_excursions


def judged(kls: list[float], entropy: float = 0.2, tokens: float = 4.0) -> list[Any]:
    """Returns what is said of intervals of these KLs, nats a text, ten steps apart."""
    notes: dict[str, Any] = {}
    return [
        kl_excursions.watch(
            notes, 10 * n, {"kl_start": kl, "answer_tokens": tokens, "entropy": entropy}, "do it"
        )
        for n, kl in enumerate(kls, 1)
    ]


def test_each_excursion_is_said_once_and_recorded_while_it_lasts():
    # The threshold is 1 nat a token, 4 a text; below 2 an excursion is over.
    said = judged([0.0, 3.9, 4.1, 9.0, 2.1, 1.9, 3.9, 5.0])
    assert [columns["kl_runaway"] for columns, _ in said] == [0, 0, 1, 1, 1, 0, 0, 1]
    warnings = [warning for _, warning in said if warning is not None]
    assert [warning.split(" the KL")[0] for warning in warnings] == ["at step 30", "at step 80"]
    assert "is 4.1 nats a text, 1 a token, above 1:" in warnings[0]
    assert warnings[0].endswith("; do it")


def test_one_text_of_those_that_the_start_writes_is_no_excursion():
    """A start of uniform tokens: whatever is written, the KL is at most its entropy."""
    num_tokens, length = 50, 4
    entropy = math.log(num_tokens)
    one_text = length * entropy  # -ln p(text) under the start.
    assert judged([0.0, one_text], entropy)[1] == ({"kl_runaway": 0.0}, None)
    # A start that is not uniform gives a text of its rarest tokens more.
    p = np.array([0.9, 0.09, 0.01])
    entropy = float(-np.sum(p * np.log(p)))
    (_, warning) = judged([0.0, -length * math.log(0.01)], entropy)[1]
    assert warning is not None and "18.4 nats a text, 4.6 a token, above 1:" in warning


def test_the_threshold_is_of_the_start_however_sure_the_policy_becomes():
    notes: dict[str, Any] = {}
    row = {"kl_start": 0.0, "answer_tokens": 10.0, "entropy": 2.5}
    kl_excursions.watch(notes, 1, row, "")
    later = {**row, "kl_start": 20.0, "entropy": 0.01}
    assert kl_excursions.watch(notes, 2, later, "") == ({"kl_runaway": 0.0}, None)
    assert kl_excursions.watch({}, 2, later, "")[1] is not None
    assert kl_excursions.watch(dict(notes), 2, {**later, "kl_start": 26.0}, "")[1] is not None


@pytest.mark.parametrize(("kl", "tokens"), [(math.nan, 4.0), (9.0, 0.0), (9.0, math.nan)])
def test_what_is_not_known_is_no_excursion(kl: float, tokens: float):
    assert judged([kl], tokens=tokens) == [({"kl_runaway": 0.0}, None)]
