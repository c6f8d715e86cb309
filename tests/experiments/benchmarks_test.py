"""Tests of experiments/benchmarks/: what they measure is theirs to say, how they say it is not."""

import dataclasses
import json
import pathlib
import re

import pytest

from kullback.agents import munchausen
from kullback.experiments.benchmarks import __main__ as benchmarks
from kullback.experiments.benchmarks import (
    btr,
    flops,
    generation,
    gradient_step,
    language_models,
    machine,
    measuring,
    minatar,
    operators,
    peer,
    processes,
    reinforce,
    replay,
    rows,
    speeds,
    timing,
    tuning,
    utilisation,
    workers,
)
from kullback.lm import gemma

ROOT = pathlib.Path(__file__).parents[2]
PROGRAMS = sorted(peer.FOLDER.glob("*.py"))


def test_a_row_compares():
    speed = rows.Row(name="a", ours=30.0, unit="steps/s", peer="b", peer_value=20.0)
    assert speed.ratio == 1.5 and speed.met is None
    wait = rows.Row(name="a", ours=2.0, unit="s", peer_value=6.0, lower_is_better=True, target=3.0)
    assert wait.ratio == 3.0 and wait.met is True
    assert rows.Row(name="a", ours=2.0, unit="s").ratio is None


@pytest.mark.parametrize(
    ("fields", "met"),
    [
        ({"target": 30.0}, True),
        ({"target": 31.0}, False),
        ({"target": 31.0, "lower_is_better": True}, True),
        ({"target_ratio": 1.5}, True),
        ({"target_ratio": 1.6}, False),
        ({"target_ratio": 1.5, "target_limit_share": 0.5}, False),
        ({"target_ratio": 1.5, "target_limit_share": 0.4}, True),
        ({}, None),
    ],
)
def test_all_targets_must_be_met(fields: dict[str, float], met: bool | None):
    fields = {"peer_value": 45.0 if fields.get("lower_is_better") else 20.0, **fields}
    assert rows.Row(name="a", ours=30.0, unit="u", limit_share=0.45, **fields).met is met  # pyright: ignore[reportArgumentType]


def test_flops_of_a_step_are_those_of_the_specification():
    step = flops.gradient_step(flops.nature(6), 32, gradient_step.FORWARDS["m-dqn"])
    assert step / 1e9 == pytest.approx(2.78, abs=0.01)


def test_layers_of_btr_are_those_of_its_network():
    # Weights of the convolutions are used at each pixel; of the head at each quantile.
    places = [84**2, *(4 * [42**2]), 42**2, *(4 * [21**2]), 21**2, *(4 * [11**2])]
    torso = zip(btr.torso(), places, strict=True)
    weights = sum(layer.flops // 2 // place for layer, place in torso)
    biases = 5 * (32 + 64 + 64) + 36 * 64 + 2 * 512 + 7
    assert weights + flops.forward(btr.head()) // 2 + biases == btr.NUM_PARAMETERS


@pytest.mark.slow
def test_a_step_of_btr_is_a_learner_step():
    assert btr.stepper(2)() == 1


def test_flops_of_a_decoder_are_those_of_its_weights_and_of_what_it_attends_to():
    config = language_models.LONG
    params = gemma.num_params(config)
    norms = config.num_layers * (4 * config.embed_dim + 2 * config.head_dim) + config.embed_dim
    dense = 2 * (params.other - norms)
    # One token at position 1,000: 512 keys in five layers, 1,001 in one; 4 heads of 64.
    attention = 2 * 2 * 4 * 64 * (5 * 512 + 1_001)
    assert flops.decoder(config, range(1_000, 1_001)) == dense + attention
    assert flops.unembedding(config) == 2 * params.embedding
    # At positions 0 and 1: one key and two, in all layers.
    both = 2 * dense + 2 * 2 * 4 * 64 * 6 * (1 + 2)
    assert flops.decoder(config, range(2)) == both


def test_generation_is_bound_by_products_of_many_rows_and_by_reading_weights_for_one():
    many, one = (generation.CASES[name] for name in ("16 rows", "1 row"))
    assert generation.limit(one, 1e30, 1e9) == pytest.approx(1e9 / generation.weight_bytes(one))
    assert generation.limit(many, 1e30, 1e9) == pytest.approx(16e9 / generation.weight_bytes(one))
    # Of products a row costs the same in either.
    assert generation.limit(many, 1e9, 1e30) == pytest.approx(generation.limit(one, 1e9, 1e30))


def test_cost_of_learner_steps():
    tokens, other = 16 * 128, gemma.num_params(language_models.SMALL)
    # Within a tenth, three passes of two for each weight: attention is little here.
    assert tuning.cost("sft") == pytest.approx(3 * 2 * tokens * other.total, rel=0.1)
    offline, sampled = tuning.cost("gkd, offline"), tuning.cost("gkd, on-policy")
    student = gemma.num_params(language_models.STUDENT)
    once = 2 * (127 * student.other + 64 * student.embedding)
    assert sampled - offline == pytest.approx(16 * once, rel=0.1)


def test_cost_of_a_step_of_reinforcement_learning():
    shapes = language_models.SMALL, reinforce.SCORER
    policy, scorer = map(gemma.num_params, shapes)
    sampled = 4 * 63 + 16 * 64  # Prompts are read once.
    of_policy = (sampled + 16 * 128 * 4) * policy.other + 16 * 64 * 5 * policy.embedding
    expected = 2 * (of_policy + 16 * 128 * scorer.other)
    cost = reinforce.cost(shapes[0], reinforce.SIZES, shapes[1])
    assert cost == pytest.approx(expected, rel=0.1)
    of_rule = cost - reinforce.cost(shapes[0], reinforce.SIZES)
    assert of_rule == 16 * flops.decoder(reinforce.SCORER, range(128))


def test_the_best_window_counts_and_each_side_has_its_turn():
    order = []

    def side(name: str, rates: list[float]):
        def measure() -> dict[str, float]:
            order.append(name)
            return {name: rates.pop(0)}

        return measure

    best = timing.interleave([side("a", [1.0, 3.0]), side("b", [4.0, 2.0])], 2)
    assert best == {"a": 3.0, "b": 4.0} and order == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["replya"],
            "unknown benchmark 'replya'; expected one of agents, atari, btr, btr_atari, ",
        ),
        (["replay", "--seconds", "0"], "seconds must be > 0, got 0.0"),
        (["replay", "--rounds", "0"], "rounds must be >= 1, got 0"),
        (["replay", "--resume"], "--resume goes with --out FILE"),
    ],
)
def test_a_wrong_request_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert benchmarks.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_names_are_listed(capsys: pytest.CaptureFixture[str]):
    assert benchmarks.main(["--list"]) == 0
    assert capsys.readouterr().out.split() == list(benchmarks.BENCHMARKS)


def test_a_run_prints_a_table_and_keeps_it(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(replay.run, "__defaults__", (500,))
    out = tmp_path / "kept" / "found.json"
    request = ["replay", "--no-peers", "--seconds", "0.05", "--rounds", "1", "--out", str(out)]
    assert benchmarks.main(request, measuring.here) == 0
    assert "batches/s" in capsys.readouterr().out
    kept = json.loads(out.read_text())
    assert {"date", "cpu", "cores", "git_revision", "versions"} <= set(kept)
    assert len(kept["rows"]) == len(replay.PEERS) and kept["rows"][0]["ours"] > 0
    assert kept["rows"][0]["peer_value"] is None


def test_a_peer_that_fails_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*arguments: object) -> dict[str, float]:
        raise peer.PeerError("no wheel of it")

    monkeypatch.setattr(peer, "run", fail)
    monkeypatch.setattr(replay.run, "__defaults__", (500,))
    request = ["replay", "--seconds", "0.05", "--rounds", "1"]
    assert benchmarks.main(request, measuring.here) == 1
    assert capsys.readouterr().err == "benchmarks: no wheel of it\n"


def test_rows_are_kept_as_they_come_and_a_call_goes_on_where_another_ended(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    out, order = tmp_path / "rows.json", []

    def measure(name: str, budget: timing.Budget, with_peers: bool) -> list[rows.Row]:
        order.append(name)
        if name == "theory" and order.count(name) == 1:
            raise RuntimeError("no memory")
        is_killed = name == "startup" and order.count(name) == 1
        failure = "the peer was killed" if is_killed else ""
        return [rows.Row(name="a row", ours=float(len(order)), unit="s", failure=failure)]

    request = ["startup", "theory", "replay", "--resume", "--out", str(out)]
    assert benchmarks.main(request, measure) == 1
    error = capsys.readouterr().err
    assert "benchmarks: the peer was killed\n" in error and "theory: no memory\n" in error
    kept = json.loads(out.read_text())["rows"]
    assert [row["benchmark"] for row in kept] == ["startup", "replay"]
    # Only those that failed are measured again: a peer's failure leaves a row, ours none.
    assert benchmarks.main(request, measure) == 0
    assert order == ["startup", "theory", "replay", "startup", "theory"]
    again = rows.read(out)
    assert [row.benchmark for row in again] == ["replay", "startup", "theory"]
    assert not any(row.failure for row in again)
    assert benchmarks.main(request, measure) == 0 and len(order) == 5


def test_a_name_before_a_slash_is_all_of_its_cases():
    assert benchmarks.select(["published/sft", "replay"]) == ["published/sft", "replay"]
    assert benchmarks.select(["published", "published/sft"]) == [
        name for name in benchmarks.BENCHMARKS if name.startswith("published/")
    ]
    assert benchmarks.select([]) == list(benchmarks.BENCHMARKS)


@pytest.mark.slow
def test_a_process_of_its_own_measures_and_hands_back_rows_and_errors():
    budget = timing.Budget(seconds=0.05, rounds=1)
    timings = measuring.apart("replay", budget, with_peers=False)
    assert len(timings) == len(replay.PEERS) and all(row.ours > 0 for row in timings)
    with pytest.raises(ModuleNotFoundError):
        measuring.apart("nothing", budget, with_peers=False)


@pytest.mark.slow
def test_our_sides_do_the_work_they_say(monkeypatch: pytest.MonkeyPatch):
    assert gradient_step.stepper("m-dqn")() == 1
    monkeypatch.setattr(minatar, "WARM_UP", 64)
    steps = minatar.runner(1)()
    assert steps > 0 and steps % minatar.NUM_ENVS == 0
    # The preset is what users run: 4 agent steps a learner step, batches of 32.
    learning = munchausen.presets("minatar").learning
    assert (learning.replay.samples_per_update, learning.replay.batch_size) == (4, 32)


@pytest.mark.slow
def test_language_models_do_the_work_they_say(monkeypatch: pytest.MonkeyPatch):
    tiny = dataclasses.replace(
        language_models.SMALL, vocab_size=64, num_layers=1, embed_dim=16, hidden_dim=16, head_dim=4
    )
    case = generation.Case(tiny, num_rows=2, prompt_tokens=4, new_tokens=3, target_ratios={})
    assert 2 <= generation.sampler(case)() <= 6  # A row may end at its first token.
    shape, *sizes = generation.told(case)
    assert isinstance(shape, dict) and shape["hidden_size"] == 16 and sizes == [2, 4, 3]
    monkeypatch.setattr(language_models, "SMALL", tiny)
    monkeypatch.setattr(tuning, "STUDENTS", dict.fromkeys(tuning.CASES, tiny))
    assert tuning.stepper("gkd, on-policy")() == 1
    monkeypatch.setattr(reinforce, "SCORER", tiny)
    assert reinforce.small()() == 1


def test_data_of_learner_steps_are_those_of_peers():
    model = gemma.make(language_models.SMALL)
    for case, answers in (("sft", 127), ("gkd, offline", 64)):
        agent = tuning.agent(case, model, model)
        source = tuning.source(model, agent, case)
        assert source.stored is not None and source.sampling is None
        stored = source.stored(0, 16)
        assert stored.tokens.shape == (16, 128)
        assert (stored.is_answer.sum(1) == answers).all()
        on_policy = tuning.source(model, agent, "gkd, on-policy").sampling
        assert on_policy is not None and on_policy.num_rows(0) == 16


def test_an_operator_is_differentiated():
    assert operators.differentiator("alpha-1.5", num_rows=2)() == 1


@pytest.mark.slow
def test_memory_is_measured():
    assert machine.bandwidth(2**20, "copy")()["copy"] > 0
    before = machine.peak_memory()
    kept = bytearray(b"1") * (before + 2**20)  # Touched, and more than there was.
    assert machine.peak_memory() > before + len(kept) // 2


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_programs_of_peers_compile_and_never_import_ours(program: pathlib.Path):
    source = program.read_text()
    compile(source, program.name, "exec")
    assert "kullback" not in source


@pytest.mark.parametrize("requirements", sorted(peer.FOLDER.glob("*.txt")), ids=lambda p: p.name)
def test_versions_of_peers_are_pinned(requirements: pathlib.Path):
    lines = requirements.read_text().split()
    assert lines and all(line.count("==") == 1 for line in lines)


def test_the_page_of_results_shows_the_files_as_they_are(capsys: pytest.CaptureFixture[str]):
    folder = ROOT / "results" / "benchmarks"
    page = (folder / "README.md").read_text()
    files = re.findall(r"^\[([\w-]+\.json)\]", page, re.M)
    assert len(files) >= 5
    for name in files:
        assert benchmarks.main(["--show", str(folder / name)]) == 0
        assert capsys.readouterr().out in page, name


TINY = ("--preset=tiny", "--rows=2", "--length=8", "--prompt=4", "--new=4", "--seconds=0.01")


def test_the_speed_of_a_run_is_that_of_its_later_half():
    written = [
        {"steps": "10", "wall_seconds": "9", "wait_seconds": "8"},  # It compiles.
        {"steps": "20", "wall_seconds": "10", "wait_seconds": "8"},
        {"steps": "30", "wall_seconds": "12", "wait_seconds": "0.25"},
        {"steps": "40", "wall_seconds": "14", "wait_seconds": "0.75"},
    ]
    assert speeds.of_rows(written) == (5.0, 0.5)
    alone = [{k: v for k, v in row.items() if k != "wait_seconds"} for row in written]
    assert speeds.of_rows(alone) == (5.0, 0.0)


def test_gradients_go_round_a_ring_twice_but_for_what_each_has():
    assert [processes.exchanged(n, 100) for n in (1, 2, 4)] == [0, 400, 600]


@pytest.mark.slow
def test_runs_over_processes_and_with_workers_are_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "STEPS", 20)
    measured = processes.measure(2, 1)
    assert measured.rate > 0 and measured.num_params > 1e6
    game = "gym/CartPole-v1"
    by_way = {name: workers.speed(game, way, 3_000) for name, way in workers.WAYS.items()}
    assert all(measured.rate > 0 for measured in by_way.values())
    one, eight = (
        workers.details(game, workers.WAYS[name], by_way[name])
        for name in (f"2 processes, chunks of {n}" for n in ("1 tick", "8"))
    )
    assert 7 < one["bytes_a_step"] / eight["bytes_a_step"] < 8.1  # Parameters go with each chunk.
    with pytest.raises(peer.PeerError, match=r"ended with 2: .*shards=3"):
        speeds.trained(speeds.of_folder, ["dqn", game, "--set=shards=3", "--num-envs=4"])


@pytest.mark.slow
def test_the_share_of_a_peak_is_of_the_products_of_the_shapes(capsys: pytest.CaptureFixture[str]):
    arguments = [*TINY, "--dtype=float32", "--peak=1e9", "--bandwidth=1e9", "--work=forward"]
    assert utilisation.main(arguments) == 0
    head, line = capsys.readouterr().out.splitlines()
    assert "tiny in float32" in head and "0.001 TFLOP/s and 1 GB/s" in head
    rate = float(line.split()[1].replace(",", ""))
    # Of seven layers: 2 D (N + 2 K) H + 2 N H D + 6 D F, scores and values; and a row's logits.
    products = 7 * 8 * (2 * 32 * 64 + 2 * 32 * 32 + 6 * 32 * 64) + 7 * 36 * 4 * 32 + 2 * 128 * 32
    assert float(line.split()[3].rstrip("%")) == pytest.approx(rate * products / 8 / 1e7, abs=0.2)


@pytest.mark.slow
def test_the_utilisation_of_all_work_is_said(capsys: pytest.CaptureFixture[str]):
    assert utilisation.main([*TINY]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(utilisation.WORK)
