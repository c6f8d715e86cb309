"""Tests of experiments/runs/settings.py."""

import dataclasses
from typing import Literal

import pytest

from kullback.agents import munchausen
from kullback.experiments.runs import settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    size: int = 1
    kind: Literal["huber", "squared"] = "huber"

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate must be > 0, got {self.rate}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    left: Inner = Inner()
    right: Inner = Inner()
    clip: float | None = None
    layers: tuple[int, ...] = (8, 8)
    pair: tuple[int, float] = (1, 0.5)
    dueling: bool = False
    name: str = "one"


def test_fields_are_the_leaves_with_dotted_names_types_and_values():
    leaves = list(settings.fields(Outer(right=Inner(size=3))))
    assert [name for name, _, _ in leaves] == [
        *("left.rate", "left.size", "left.kind", "right.rate", "right.size", "right.kind"),
        *("clip", "layers", "pair", "dueling", "name"),
    ]
    assert leaves[4] == ("right.size", int, 3)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("left.rate=1e-3", Outer(left=Inner(rate=1e-3))),
        ("right.size=50_000", Outer(right=Inner(size=50_000))),
        ("left.kind=squared", Outer(left=Inner(kind="squared"))),
        ("clip=-1.5", Outer(clip=-1.5)),
        ("clip=None", Outer()),
        ("clip=none", Outer()),
        ("layers=64", Outer(layers=(64,))),
        ("layers=64,32", Outer(layers=(64, 32))),
        ("layers=(64, 32)", Outer(layers=(64, 32))),
        ("pair=2,1e-2", Outer(pair=(2, 0.01))),
        ("dueling=True", Outer(dueling=True)),
        ("dueling=true", Outer(dueling=True)),
        ("dueling=false", Outer()),
        (" name = two words ", Outer(name="two words")),
    ],
)
def test_a_value_is_read_by_the_type_of_its_field(assignment: str, expected: Outer):
    assert (
        settings.apply(Outer(clip=2.0 if "one" in assignment else None), [assignment]) == expected
    )


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("left.size=1.5", "left.size must be int, got '1.5'"),
        ("left.rate=fast", "left.rate must be float, got 'fast'"),
        ("left.rate=", "left.rate must be float, got ''"),
        ("left.rate=--help", "left.rate must be float, got '--help'"),
        ("left.kind=hubr", "left.kind must be huber or squared, got 'hubr'"),
        ("clip=x", "clip must be float | None, got 'x'"),
        ("layers=8,x", "layers must be tuple[int, ...], got '8,x'"),
        ("pair=1", "pair must be tuple[int, float], got '1'"),
        ("dueling=1", "dueling must be True or False, got '1'"),
        ("left.rate=-1", "rate must be > 0, got -1.0"),
        ("rate=1", "field 'rate' is ambiguous: write one of left.rate, right.rate"),
        ("left.rat=1", "unknown field 'rat'; did you mean rate"),
        ("left=1", "unknown field 'left'; expected one of "),
        ("clip", "expected field=value, got 'clip'"),
    ],
)
def test_refuses(assignment: str, message: str, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError) as error:
        settings.apply(Outer(), [assignment])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not any(capfd.readouterr()), "a parser spoke"


def test_bare_and_half_dotted_names_reach_where_only_one_field_has_them():
    config = munchausen.presets("toy")
    for name in ("capacity", "replay.capacity", "learning.replay.capacity"):
        assert settings.apply(config, [f"{name}=600"]).learning.replay.capacity == 600
    assert settings.apply(config, ["temperature=0.1"]).temperature == 0.1


def test_fields_that_hold_one_another_change_at_once():
    # 5,000 slots and a warm-up of 500 agent steps: either alone would be refused.
    config = settings.apply(munchausen.presets("toy"), ["capacity=100", "min_replay_size=100"])
    replay = config.learning.replay
    assert (replay.capacity, replay.min_replay_size) == (100, 100)
    with pytest.raises(ValueError, match="capacity=100 must be at least min_replay_size=500"):
        settings.apply(munchausen.presets("toy"), ["capacity=100"])


def test_of_two_values_the_last_holds_and_what_was_given_stays_as_it_was():
    given = Outer()
    assert settings.apply(given, ["left.size=2", "left.size=3"]).left.size == 3
    assert given == Outer() == settings.apply(given, [])


ROWS = {"small": {"rate": 0.2, "size": 3}, "large": {"rate": 0.4, "size": 9}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named(Inner):
    row: Literal["small", "large"] = dataclasses.field(
        default="small", metadata={settings.ROWS: ROWS}
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outside:
    inner: Named = Named()
    rate: float = 7.0


def test_a_named_row_gives_the_fields_beside_it_but_those_that_are_assigned():
    for assignments in (["row=large", "inner.rate=0.5"], ["inner.rate=0.5", "inner.row=large"]):
        changed = settings.apply(Outside(), assignments)
        assert changed == Outside(inner=Named(row="large", rate=0.5, size=9))
    assert settings.apply(Named(size=5), ["rate=0.3"]) == Named(size=5, rate=0.3)
    # Back to the first one: all of its row.
    large = settings.apply(Named(), ["row=large"])
    assert settings.apply(large, ["row=small"]) == Named(rate=0.2, size=3)
