"""Tests of lm/adapter_merging.py: averages of adapters, exact and truncated."""

import pathlib
from typing import Any

import numpy as np
import pytest

from kullback.core import averaging
from kullback.lm import adapter_merging, lora, merging
from kullback.lm.formats import peft_files

# Of layer 1 the third has none.
SIZES = {(0, "query"): (6, 5), (0, "down"): (4, 6), (1, "query"): (6, 5)}


def pairs(seed: int, rank: int, scale: float, places: Any = tuple(SIZES)) -> peft_files.Pairs:
    rng = np.random.default_rng(seed)
    return {
        at: peft_files.Pair(
            rng.normal(size=(rank, SIZES[at][0])).astype(np.float32),
            rng.normal(size=(SIZES[at][1], rank)).astype(np.float32),
            scale,
        )
        for at in places
    }


MEMBERS = [pairs(0, 2, 0.5), pairs(1, 3, 2.0), pairs(2, 1, 1.0, tuple(SIZES)[:2])]


def delta(pair: peft_files.Pair | None, at: Any) -> np.ndarray:
    """Returns an update in float64, [out, in]; of no adapter it is 0."""
    if pair is None:
        return np.zeros(SIZES[at][::-1])
    return pair.scale * pair.b.astype(np.float64) @ pair.a.astype(np.float64)


@pytest.fixture
def folders(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    out = []
    for number, member in enumerate(MEMBERS):
        pair = member[0, "query"]
        settings = lora.Config(
            rank=len(pair.a), alpha=pair.scale * len(pair.a), targets=("query", "down")
        )
        out.append(tmp_path / f"member{number}")
        peft_files.write(out[-1], peft_files.Contents(member, {}), settings, base="one")
    return out


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "mean"},
        {"method": "mean", "weights": (1.0, 3.0, 4.0)},
        {"method": "ema", "rate": 0.3},
        {"method": "liti", "interpolation": 0.3},
        {"method": "slerp"},
        {"method": "slerp", "group": "tensor", "interpolation": 0.5},
        {"method": "slerp", "group": "all"},
    ],
)
def test_without_a_rank_averages_are_those_of_the_updates(
    folders: list[pathlib.Path], tmp_path: pathlib.Path, fields: dict[str, Any]
):
    config = merging.Config(**fields)
    report = adapter_merging.merge(folders, tmp_path / "out", config)
    assert (report.rank, report.lost, report.num_matrices) == (6, 0.0, 3)
    tasks = [{f"{k[0]}/{k[1]}": delta(m.get(k), k) for k in SIZES} for m in MEMBERS]
    if config.method == "slerp":
        groups = {
            "layer": lambda path: averaging.Group(path.split("/")[0]),
            "tensor": lambda path: averaging.Group(path),
            "all": averaging.whole,
        }
        expected = averaging.slerp(tasks, t=config.t, group_of=groups[config.groups])
    else:
        expected = averaging.mean(tasks, config.model_weights(3).tolist())
    for at, pair in peft_files.read_any(tmp_path / "out").pairs.items():
        wanted = config.interpolation * expected[f"{at[0]}/{at[1]}"]
        np.testing.assert_allclose(delta(pair, at), wanted, atol=1e-5)


def test_a_truncated_average_is_the_nearest_and_says_what_it_lost(
    folders: list[pathlib.Path], tmp_path: pathlib.Path
):
    report = adapter_merging.merge(folders, tmp_path / "out", merging.Config(method="mean"), rank=2)
    assert report.rank == 2
    lost = total = 0.0
    read = peft_files.read_any(tmp_path / "out").pairs
    shares = {}
    for at in SIZES:
        exact = np.mean([delta(member.get(at), at) for member in MEMBERS], 0)
        values = np.linalg.svd(exact, compute_uv=False)
        distance = np.sum((exact - delta(read[at], at)) ** 2)
        np.testing.assert_allclose(distance, np.sum(values[2:] ** 2), rtol=1e-4)  # Eckart, Young.
        lost, total = lost + distance, total + np.sum(values**2)
        shares[at] = distance / np.sum(values**2)
    np.testing.assert_allclose(report.lost, lost / total, rtol=1e-4)
    worst = max(shares, key=shares.__getitem__)
    assert report.worst_at == f"layer {worst[0]}, {worst[1]}"
    np.testing.assert_allclose(report.worst, shares[worst], rtol=1e-4)


def test_inner_products_of_factors_are_those_of_updates():
    at = 0, "down"
    got = adapter_merging.gram([MEMBERS[0][at], None, MEMBERS[1][at]])
    dense = [delta(pair, at).ravel() for pair in (MEMBERS[0][at], None, MEMBERS[1][at])]
    np.testing.assert_allclose(got, [[a @ b for b in dense] for a in dense], rtol=1e-9, atol=1e-12)


def test_adapters_of_other_bases_are_refused(folders: list[pathlib.Path], tmp_path: pathlib.Path):
    other = tmp_path / "other"
    settings = lora.Config(rank=2, targets=("query",))
    peft_files.write(
        other,
        peft_files.Contents({(0, "query"): MEMBERS[0][0, "query"]}, {}),
        settings,
        base="another",
    )
    config = merging.Config(method="mean")
    with pytest.raises(ValueError, match="different bases, one, another, have no average"):
        adapter_merging.merge([folders[0], other], tmp_path / "out", config)
    adapter_merging.merge([folders[0], other], tmp_path / "forced", config, force=True)
    wide = MEMBERS[0][0, "query"]._replace(a=np.ones((2, 7), np.float32))
    peft_files.write(
        tmp_path / "wide", peft_files.Contents({(0, "query"): wide}, {}), settings, base="one"
    )
    with pytest.raises(ValueError, match=r"\[5, 7\], and .* as \[5, 6\]"):
        adapter_merging.merge([folders[0], tmp_path / "wide"], tmp_path / "out", config)
    assert not (tmp_path / "out").exists()


def test_rows_of_the_embedding_have_a_mean_and_need_the_base_for_anything_else(
    tmp_path: pathlib.Path,
):
    rng, folders = np.random.default_rng(0), [tmp_path / name for name in "abc"]
    rows = [
        {i: rng.normal(size=6).astype(np.float32) for i in ids} for ids in ((7, 3), (3, 7), (3,))
    ]
    for folder, of_tokens in zip(folders, rows, strict=True):
        contents = peft_files.Contents(MEMBERS[0], of_tokens)
        peft_files.write(folder, contents, lora.Config(rank=2), base="one")
    config = merging.Config(method="mean", weights=(1.0, 3.0))
    adapter_merging.merge(folders[:2], tmp_path / "out", config)
    read = peft_files.read_any(tmp_path / "out").rows
    assert set(read) == {3, 7}
    for i, row in read.items():
        np.testing.assert_allclose(row, 0.25 * rows[0][i] + 0.75 * rows[1][i], rtol=1e-6)
    with pytest.raises(ValueError, match=r"c has rows .* tokens \[3\], and .*a of \[3, 7\]"):
        adapter_merging.merge(folders, tmp_path / "other", merging.Config(method="mean"))
    with pytest.raises(ValueError, match="slerp needs the base's rows"):
        adapter_merging.merge(folders[:2], tmp_path / "other", merging.Config(method="slerp"))
