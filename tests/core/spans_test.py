"""Tests of core/spans.py; tests/core/replay_test.py puts a whole replay back."""

import numpy as np
import pytest

from kullback.core import replay, spans, types

SPEC = types.Spec(shape=(2,), dtype=np.uint8, num_actions=5)
STORE = replay.host(SPEC, replay.Config(capacity=8, min_replay_size=4, batch_size=4), 2)


def span() -> dict[str, np.ndarray]:
    state = STORE.init()
    frame = np.ones((2, 2), np.uint8)
    timestep = types.TimeStep(
        np.full(2, types.MID, np.int8), np.ones(2, np.float32), np.ones(2, np.float32), frame, frame
    )
    return spans.span(STORE.add(state, frame, np.zeros(2, np.int32), timestep), None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("row"), "this one "),
        (lambda s: s.update(more=np.zeros(1)), "this one "),
        (lambda s: s.update(row=s["row"] + 1_000), r"row of a segment must be int32 in \[0, "),
        (lambda s: s.update(row=s["row"] - 5), r"row of a segment must be int32 in \[0, "),
        (lambda s: s.update(starts_row=s["starts_row"] * 1.0), "starts_row of a segment must be"),
        (lambda s: s.update(row=s["row"][:, None]), "row of a segment must be"),
        (lambda s: s.update(frames=s["frames"][:1]), r"frames of a segment must be uint8\[4, 2\]"),
        (
            lambda s: s.update(reward=s["reward"].astype(bool)),
            "reward of a segment must be float32",
        ),
        (lambda s: s.update(starts=s["starts"][:1]), "starts of a segment must be int32"),
    ],
)
def test_a_span_of_another_replay_is_refused(change, message):
    arrays = span()
    spans.load_span(STORE.init(), arrays)
    change(arrays)
    state = STORE.init()
    with pytest.raises(ValueError, match=message):
        spans.load_span(state, arrays)
    assert not state.frames.any()
