"""Tests of a model in few bits: its numbers, and what is printed of them."""

import csv
import pathlib

import jax
import numpy as np
import pytest

from kullback.experiments import cli
from kullback.experiments.commands import quantize
from kullback.experiments.evaluate import quantised
from kullback.experiments.runs import exports, model_files, models
from kullback.lm import gemma, quantisation, tasks, tokenizer, tuning
from kullback.lm.evaluation import Evaluator
from kullback.lm.quantisation import Scheme
from tests import small_models

SUMS = tasks.arithmetic(tasks.Arithmetic(digits=1, num_train=50, num_test=9))
BPE = tokenizer.train_bpe(SUMS.texts("train"), 300)
CONFIG = small_models.shape_for(
    BPE,
    num_layers=1,
    pattern=6,
    num_heads=1,
    embed_dim=32,
    head_dim=32,
    query_scale=32.0,
)
MODEL = gemma.make(CONFIG)


@pytest.fixture(scope="module")
def params() -> dict:
    # Sharper than initial parameters, so that few bits are seen.
    return jax.jit(lambda key: jax.tree.map(lambda x: 3.0 * x, MODEL.init(key)))(jax.random.key(0))


def test_the_bytes_are_those_of_codes_and_of_what_stays_float(params: dict):
    for table in (True, False):
        result = quantised.quantise(params, Scheme("q4_0", "q4_0" if table else "none"))
        leaves, changed = jax.tree.leaves(params), {m.tensor: m for m in result.matrices}
        assert ("embedding" in changed) == table
        in_bits = sum(x.size for x in leaves if x.ndim == 3) + table * params["embedding"].size
        others = sum(x.size for x in leaves) - in_bits
        assert result.num_bytes == in_bits * 18 // 32 + 4 * others
        np.testing.assert_array_equal(result.params["final_norm"], params["final_norm"])
        w, held = (p["remainder"]["layer_0"]["feed_forward"]["up"] for p in (params, result.params))
        expected = np.linalg.norm(held - w) / np.linalg.norm(w)
        name = "remainder/layer_0/feed_forward/up"
        np.testing.assert_allclose(changed[name].relative_error, expected, rtol=1e-5)
        assert changed[name].bits == 4.5 and quantised.worst(result).relative_error >= expected


def test_perplexities_and_divergence_are_those_of_all_logits_at_once(params: dict):
    test, _ = SUMS.examples("test", BPE, None)
    learning = tuning.Config(max_prompt_length=6, max_new_tokens=3, chunk=7)
    evaluator = Evaluator(MODEL, BPE, SUMS, test, learning)
    held = quantised.quantise(params, Scheme("int4", "int4")).params
    ids = np.zeros((len(test), 9), int)
    for row, example in zip(ids, test, strict=True):
        row[: len(example.prompt) + len(example.completion)] = example.prompt + example.completion
    log_probability = jax.jit(lambda p: jax.nn.log_softmax(MODEL.apply(p, ids)))
    log_p, log_q = (np.asarray(log_probability(p), np.float64) for p in (params, held))
    nats, kl, count = np.zeros(2), 0.0, 0
    for n, example in enumerate(test):
        for t, token in enumerate(example.completion, len(example.prompt)):
            nats -= np.array([x[n, t - 1, token] for x in (log_p, log_q)])
            kl += np.sum(np.exp(log_p[n, t - 1]) * (log_p - log_q)[n, t - 1])
            count += 1
    measured = quantised.estimates(evaluator, params, held, "int4", len(test))
    for name, total in zip(("float", "int4"), nats, strict=True):
        assert measured[f"nats_per_token_{name}"].mean == pytest.approx(total / count, rel=1e-4)
        perplexity = np.exp(total / count)
        assert measured[f"perplexity_{name}"].mean == pytest.approx(perplexity, rel=1e-3)
    assert measured["kl_per_token"].mean == pytest.approx(kl / count, rel=1e-3)
    assert kl / count > 1e-3


def test_the_command_offers_all_formats():
    assert quantize.FORMATS == tuple(quantisation.FORMATS)


def test_what_no_format_holds_is_refused_by_name(params: dict):
    spoilt = params | {"embedding": params["embedding"].at[3, 3].set(np.nan)}
    with pytest.raises(ValueError, match="embedding has numbers that are not finite"):
        quantised.quantise(spoilt, Scheme("int8", "int8"))
    short = params | {"embedding": params["embedding"][:, :24]}
    with pytest.raises(ValueError, match="embedding: q8_0 takes 32 weights at a time"):
        quantised.quantise(short, Scheme("int8", "q8_0"))


def test_the_command_writes_a_model_of_the_numbers_that_are_held(
    params: dict, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    start, out, table = tmp_path / "start", tmp_path / "out", tmp_path / "table.csv"
    exports.write_checkpoint(model_files.Checkpoint(CONFIG, BPE, params), start)
    command = ["quantize", str(start), "--format", "q4_0", "--report", str(table)]
    assert cli.main([*command, "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("q4_0: ") and f"matrices: {table}" in said and "perplexity" not in said
    written = models.load(out).params
    held = quantised.quantise(params, Scheme("q4_0", "q4_0")).params
    jax.tree.map(np.testing.assert_array_equal, written, held)
    lines = [*csv.DictReader(table.read_text().splitlines())]
    assert len(lines) == 1 + len(quantisation.MATRICES)
    # What is held already loses nothing more; nothing is overwritten.
    assert cli.main(["quantize", str(out), "--format", "q4_0"]) == 0
    assert "error of a matrix: 0.0000" in capsys.readouterr().out
    assert cli.main([*command]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err
