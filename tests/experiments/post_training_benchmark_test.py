"""Tests of experiments/benchmarks/post_training.py, on a tiny model and on figures of our own."""

import dataclasses
import json
import math
import pathlib

import jax
import numpy as np
import pytest

from kullback.experiments.benchmarks import __main__ as benchmarks
from kullback.experiments.benchmarks import (
    language_models,
    peer,
    post_training,
    reinforce,
    timing,
)
from kullback.lm import gemma
from kullback.lm.formats import hugging_face

TINY = dataclasses.replace(
    language_models.SMALL, vocab_size=64, num_layers=1, embed_dim=16, hidden_dim=16, head_dim=4
)
FIGURES = {"sgemm": 1e12, "rate": 2.0, "learner_rate": 3.0, "peak_bytes": 1e9}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the models and the texts small."""
    monkeypatch.setattr(language_models, "SMALL", TINY)
    monkeypatch.setattr(reinforce, "SCORER", TINY)
    for name, value in (("PAIRS", 2), ("PROMPT", 3), ("NEW", 4)):
        monkeypatch.setattr(post_training, name, value)
    learning = dataclasses.replace(
        post_training.LEARNING, batch_size=2, max_prompt_length=3, max_new_tokens=4
    )
    monkeypatch.setattr(post_training, "LEARNING", learning)
    sizes = {
        "grpo": reinforce.Sizes(prompts=1, samples=2, prompt=3, new=4),
        "ppo": reinforce.Sizes(prompts=2, samples=1, prompt=3, new=4),
    }
    for name, of_case in sizes.items():
        case = post_training.CASES[name]._replace(sizes=of_case)
        monkeypatch.setitem(post_training.CASES, name, case)


def test_all_cases_can_be_named():
    assert list(benchmarks.POST_TRAINING) == list(post_training.CASES)
    assert benchmarks.select(["post_training"]) == [
        f"post_training/{x}" for x in ("grpo", "ppo", "dpo")
    ]
    with pytest.raises(ValueError, match="unknown case 'kto'"):
        post_training.run(timing.Budget(seconds=0.01, rounds=1), peer.none, "kto")


def test_all_learn_from_as_many_tokens():
    assert {case.sizes.rows for case in post_training.CASES.values() if case.sizes} == {16}
    chosen, rejected = post_training.pairs(language_models.SMALL)
    assert len(chosen.tokens) + len(rejected.tokens) == 16
    for rows in (chosen, rejected):
        assert rows.tokens.shape == (8, 128) and (rows.is_answer.sum(1) == 64).all()
        # A word of the peer's tokenizer each, but for the end, which it adds itself.
        assert rows.tokens.min() >= 3 and (rows.tokens[:, :-1] < 8_191).all()
        assert (rows.tokens[:, -1] == 8_191).all()
    assert (chosen.tokens[:, :64] == rejected.tokens[:, :64]).all()
    assert (chosen.tokens[:, 64:-1] != rejected.tokens[:, 64:-1]).any(1).all()


def test_cost_of_steps():
    policy, scorer = map(gemma.num_params, (language_models.SMALL, reinforce.SCORER))
    rows = 16 * 128
    # Within a tenth, two operations for each weight: attention is little here.
    pairs = 2 * 3 * (rows * policy.other + 16 * 64 * policy.embedding)
    assert post_training.cost("dpo") == pytest.approx(pairs, rel=0.1)
    # Four epochs of three passes, and the policy before them; the value network the same; and the
    # reference. Each prompt is read for one text.
    written = 16 * (63 + 64) * policy.other + 16 * 64 * policy.embedding
    learnt = (2 * 13 + 1) * rows * policy.other + (13 + 1) * 16 * 64 * policy.embedding
    ppo = 2 * (written + learnt + rows * scorer.other)
    assert post_training.cost("ppo") == pytest.approx(ppo, rel=0.1)
    # One epoch of GRPO has the passes of REINFORCE.
    of_reinforce = reinforce.cost(language_models.SMALL, reinforce.SIZES, reinforce.SCORER)
    assert post_training.cost("grpo") == of_reinforce


def test_each_figure_has_a_row_and_trl_as_it_comes_the_target():
    told = {"rate": 1.0, "learner_rate": 2.0, "peak_bytes": 3e9, "kept_rate": 1.5}
    best = FIGURES | {f"trl, {key}": value for key, value in told.items()}
    step, keeping, learner, memory = post_training.compared("ppo", best)
    assert (step.name, step.unit, step.peer) == ("step of PPO", "steps/s", "trl")
    assert (step.ratio, step.target_ratio, step.met) == (2.0, 2.0, True)
    assert step.limit_share == pytest.approx(2 * post_training.cost("ppo") / 1e12)
    assert (keeping.peer_value, keeping.peer) == (1.5, "trl that keeps freed memory")
    assert keeping.met is None
    assert (learner.name, learner.ratio) == ("step of PPO, without writing and scoring", 1.5)
    assert (memory.unit, memory.ours, memory.ratio) == ("GB", 1.0, 3.0)
    slower = post_training.compared("grpo", best | {"trl, rate": 1.1})
    assert slower[0].met is False


def test_losses_of_dpo_must_agree():
    ours = {"sgemm": 1e12, "rate": 2.0, "peak_bytes": 1e9, "loss": 0.71}
    theirs = {"trl, rate": 2.0, "trl, peak_bytes": 1e9, "trl, loss": 0.7100005}
    step, memory, loss = post_training.compared("dpo", ours | theirs)
    assert (step.met, memory.met, loss.met) == (True, None, True)
    assert (loss.unit, loss.peer) == ("nats", "")
    assert loss.details == {"loss": 0.71, "peer_loss": 0.7100005}
    *_, loss = post_training.compared("dpo", ours | theirs | {"trl, loss": 0.7102})
    assert loss.met is False


@pytest.mark.slow
def test_rows_without_a_peer_and_of_one_that_fails(
    tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
):
    monkeypatch.setattr(peer, "ENVIRONMENTS", tmp_path)
    monkeypatch.setattr(peer, "ours", lambda module, case, seconds: FIGURES)
    requests = []

    def run_peer(name: str, program: str, *arguments: object) -> dict[str, float]:
        requests.append((name, program, *arguments))
        raise peer.PeerError("no wheel of it")

    budget = timing.Budget(seconds=0.01, rounds=2)
    measured = post_training.run(budget, run_peer, "ppo")
    assert [(row.peer, row.failure) for row in measured] == 3 * [("trl", "ppo: no wheel of it")]
    assert len(requests) == 2 and requests[0][:4] == ("trl_ppo", "post_training", 0.01, "ppo")
    assert json.loads(str(requests[0][4])) == [2, 1, 3, 4, 0.05]
    assert [json.loads(str(shape))["hidden_size"] for shape in requests[0][5:]] == [16, 16]
    assert [row.peer for row in post_training.run(budget, peer.none, "ppo")] == ["", "", ""]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_peer_of_dpo_reads_our_weights_and_pairs(tiny: None, tmp_path: pathlib.Path):
    _, case, sizes, folder = post_training.request("dpo", 0.01, tmp_path)
    assert (case, json.loads(str(sizes)), folder) == ("dpo", [2, 3, 0.1], tmp_path)
    drawn = post_training.pairs(TINY)
    assert json.loads((tmp_path / "pairs.json").read_text()) == [x.tokens.tolist() for x in drawn]
    for seed, name in enumerate(("policy", "reference")):
        _, read, _ = hugging_face.load(tmp_path / name)
        wanted = post_training.initial(TINY, seed)
        jax.tree.map(np.testing.assert_array_equal, read, wanted)


@pytest.mark.slow
def test_the_first_loss_of_dpo_is_that_of_its_definition(tiny: None):
    drawn, model = post_training.pairs(TINY), gemma.make(TINY)
    sums = []
    for seed in (0, 1):
        params = post_training.initial(TINY, seed)
        for rows in drawn:
            logits = np.asarray(model.apply(params, rows.tokens), np.float64)[:, :-1]
            log_pi = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
            of_tokens = np.take_along_axis(log_pi, np.asarray(rows.tokens)[:, 1:, None], -1)[..., 0]
            sums.append(np.sum(of_tokens[:, 2:], 1))  # Of the answer, which begins at 3.
    margins = 0.1 * ((sums[0] - sums[2]) - (sums[1] - sums[3]))
    figures = post_training.ours("dpo", 0.01)
    assert figures["loss"] == pytest.approx(np.mean(np.log1p(np.exp(-margins))), abs=1e-5)
    assert abs(figures["loss"] - math.log(2)) > 1e-4  # The reference is another.
    assert figures["rate"] > 0 and figures["peak_bytes"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("case", ["grpo", "ppo"])
def test_our_side_writes_and_learns(tiny: None, case: str):
    figures = post_training.ours(case, 0.01)
    assert set(figures) == {"rate", "learner_rate", "peak_bytes"}
    assert all(value > 0 for value in figures.values())
