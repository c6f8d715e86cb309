"""Tests of what runs of language models write down and keep: texts, operators, the best."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import pytest

from kullback import experiments
from kullback.core import checkpoints
from kullback.core.sampling import Sampling
from kullback.experiments import cli
from kullback.experiments.evaluate import generate
from kullback.experiments.runs import exports, models, run_folder
from kullback.lm import folder_meaning, gkd, sft

TASK = "tokens/arithmetic"
pytestmark = pytest.mark.usefixtures("few_sums")
SPARSE = "alpha-1.5"


def train(path: pathlib.Path, algorithm: str, *settings: str, **fields: Any) -> pathlib.Path:
    short = ("batch_size=4", "max_prompt_length=8", "max_new_tokens=4", "learning_rate=1e-2")
    given: dict[str, Any] = {"log_every": 3, "checkpoint_every": 2, **fields}
    return experiments.train(
        algorithm,
        TASK,
        out=path,
        quiet=True,
        model="tiny",
        model_flags=("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4"),
        settings=(*short, *settings),
        **given,
    )


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("sparse") / "run"
    return train(path, "sft", f"divergence={SPARSE}", steps=4, eval_every=2, eval_episodes=3)


def texts(path: pathlib.Path) -> list[dict[str, Any]]:
    file = run_folder.RunFolder(path).samples_file
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_a_run_that_samples_nothing_writes_greedy_texts_at_evaluations(sparse: pathlib.Path):
    lines = texts(sparse)
    assert [line["step"] for line in lines] == [2] * 4 + [4] * 4
    first = lines[0]
    assert first.keys() == {
        *("step", "seed", "greedy", "prompt", "target", "completion", "done", "score")
    }
    assert first["greedy"] and first["prompt"].endswith("=") and first["seed"] == 0
    checkpoint = models.load(sparse)
    bpe = checkpoint.tokenizer
    prompts = [(bpe.bos_id, *bpe.encode(line["prompt"])) for line in lines[4:]]
    greedy = Sampling(temperature=0)
    writer = generate.Writer(checkpoint=checkpoint, max_new_tokens=4, sampling=greedy)
    completions = generate.complete(writer, prompts)
    assert [line["completion"] for line in lines[4:]] == [row.text for row in completions]
    assert [line["done"] for line in lines[4:]] == [row.is_complete for row in completions]


@pytest.mark.parametrize("mixing", ["batch", "row"])
@pytest.mark.slow
def test_a_run_that_is_broken_off_has_the_texts_of_one_that_is_not(
    sparse: pathlib.Path, tmp_path: pathlib.Path, mixing: str
):
    given = {"steps": 9, "teacher": str(sparse)}
    settings = ("student_fraction=0.5", f"mixing={mixing}")
    whole = train(tmp_path / "whole", "gkd", *settings, **given)

    def break_off(row: Any) -> None:
        if row["steps"] == 6:
            raise RuntimeError("the power went")

    part = tmp_path / "part"
    with pytest.raises(RuntimeError, match="the power went"):
        train(part, "gkd", *settings, **given, callback=break_off)
    file = run_folder.RunFolder(part).samples_file
    assert max(line["step"] for line in texts(part)) > 4  # The checkpoint's step.
    file.write_text(file.read_text() + '{"step": 7, "pro')
    experiments.resume(part, quiet=True)
    assert file.read_bytes() == run_folder.RunFolder(whole).samples_file.read_bytes()
    sampled = [line["step"] for line in texts(whole) if not line["greedy"]]
    by_coin = [
        step + 1 for step in range(9) if np.random.default_rng([0, step]).random() < 0.5
    ]  # Of each interval of three the last.
    expected = {"row": [3, 6, 9], "batch": sorted({(s - 1) // 3: s for s in by_coin}.values())}
    counts = {"row": 2, "batch": 4}
    assert sampled == [step for step in expected[mixing] for _ in range(counts[mixing])]


@pytest.mark.slow
def test_the_operator_goes_with_the_model(
    sparse: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "model"
    assert cli.main(["export", str(sparse), "--out", str(out)]) == 0
    one, other = models.load(sparse), models.load(out)
    assert one.divergence == other.divergence == SPARSE
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    prompts = [(one.tokenizer.bos_id, *one.tokenizer.encode("1+2="))] * 8
    writers = [generate.Writer(checkpoint=x, max_new_tokens=4) for x in (one, other)]
    both = [generate.complete(writer, prompts) for writer in writers]
    assert both[0] == both[1]

    capsys.readouterr()
    file = tmp_path / "texts.jsonl"
    count = ["--episodes", "3", "--samples", "2"]
    lengths = ["--max-prompt-length", "8", "--max-new-tokens", "4", "--out", str(file)]
    assert cli.main(["evaluate", str(out), TASK, *count, *lengths]) == 0
    of_weights = capsys.readouterr().out
    assert f"{SPARSE}_loss" in of_weights and "pass@2" in of_weights
    assert "perplexity" not in of_weights.replace("no perplexity", "")
    assert cli.main(["evaluate", str(sparse), *count]) == 0
    of_run = capsys.readouterr().out
    assert of_run.splitlines()[:-1] == of_weights.splitlines()[:-1]
    assert (sparse / "evaluation-001.jsonl").read_bytes() == file.read_bytes()
    for wrong, message in (
        ([str(out), TASK, *lengths], "nothing is overwritten"),
        ([str(out)], "add one, tokens/..."),
        ([str(out), TASK, "--best"], "is no run of a language model"),
        ([str(sparse), "--seed", "7"], "has seeds 0 to 0, not 7"),
        ([str(sparse), "tokens/none"], "unknown task 'tokens/none'"),
    ):
        assert cli.main(["evaluate", *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("notes", "message"),
    [({"divergence": "alpha-x"}, "unknown divergence"), ("alpha-1.5", "must be an object")],
)
def test_an_operator_that_is_none_is_refused(
    untuned: pathlib.Path, tmp_path: pathlib.Path, notes: Any, message: str
):
    checkpoint = models.load(untuned)._replace(divergence=SPARSE)
    exports.write_checkpoint(checkpoint, tmp_path / "model")
    assert models.load(tmp_path / "model").divergence == SPARSE
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    assert config[folder_meaning.NOTES] == {"divergence": SPARSE}
    file.write_text(json.dumps(config | {folder_meaning.NOTES: notes}))
    with pytest.raises(ValueError, match=message):
        models.load(tmp_path / "model")
    file.write_text(json.dumps({k: v for k, v in config.items() if k != folder_meaning.NOTES}))
    assert models.load(tmp_path / "model").divergence == "kl"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (sft.Config(divergence="chi_squared"), "chi_squared"),
        (gkd.Config(divergence="reverse_kl"), "kl"),
        (gkd.Config(divergence="fenchel_young-alpha-1.5"), "alpha-1.5"),
    ],
)
def test_operators_of_algorithms(config: Any, expected: str):
    assert config.output_divergence == expected


@pytest.mark.slow
def test_the_best_checkpoint_is_that_of_the_highest_evaluation(
    sparse: pathlib.Path, tmp_path: pathlib.Path
):
    # All scores are 0 there, and of equal ones the newest is the best: this one is worse later.
    worse = ("warmup_steps=0", "learning_rate=30.0", "divergence=kl")
    file = tmp_path / "data.jsonl"
    rows = [{"prompt": f"{n}=", "completion": str(n)} for n in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = experiments.train(
        "sft",
        f"tokens/jsonl:{file}",
        out=tmp_path / "run",
        quiet=True,
        model=str(sparse),
        settings=("batch_size=4", "max_prompt_length=8", "max_new_tokens=4", *worse),
        steps=2,
        eval_every=1,
        checkpoint_every=1,
    )
    scores = [float(row["evaluation"]) for row in run_folder.RunFolder(path).rows()]
    assert scores[0] > scores[1]
    best, newest = models.load(path, best=True).params, models.load(path).params
    folder = run_folder.RunFolder(path).checkpoints
    like = {"learner": {"params": jax.eval_shape(lambda: newest)}}
    first = checkpoints.restore(folder, 1, like, part=True)[0]["learner"]["params"]
    jax.tree.map(np.testing.assert_array_equal, best, first)
    is_same = jax.tree.map(np.array_equal, best, newest)
    assert not all(jax.tree.leaves(is_same))
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        models.load(path, best=True)


@pytest.mark.slow
def test_more_tokens_than_the_context_are_refused(sparse: pathlib.Path):
    checkpoint = models.load(sparse)
    short = checkpoint._replace(config=dataclasses.replace(checkpoint.config, context_length=6))
    writer = generate.Writer(checkpoint=short, max_new_tokens=4)
    with pytest.raises(ValueError, match=r"3 tokens and 4 new ones exceed .* of 6; at most 3 fit"):
        generate.complete(writer, [[checkpoint.config.bos_id, 9, 9]])


@pytest.mark.slow
def test_texts_that_a_template_rendered_are_said_and_read_on_request(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    for split, count in (("train", 4), ("test", 2)):
        (tmp_path / f"{split}.jsonl").write_text(
            "".join(
                json.dumps({"prompt": _opened(f"{split} {n}"), "completion": "ab<end_of_turn>"})
                + "\n"
                for n in range(count)
            )
        )
    arguments = ["train", "sft", f"tokens/jsonl:{tmp_path}", "--steps", "1", "--model", "tiny"]
    for flag in ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4"):
        arguments += ["--model-flag", flag]
    for setting in ("batch_size=2", "max_prompt_length=90", "max_new_tokens=20"):
        arguments += ["--set", setting]
    out = tmp_path / "run"
    assert cli.main([*arguments, "--control-tokens", "parse", "--out", str(out)]) == 0
    assert "spells" not in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert config["plan"]["control_tokens"] == "parse" and config["data"]["train"]["spelled"] == 0
    assert config["data"]["rule"] == 2
    bpe = models.load(out).tokenizer
    # begin, start, "user\n", text, end, "\n", start, "model\n", "ab", end.
    pieces = [bpe.encode(t) for t in ("user\n", "train 0", "\n", "model\n", "ab")]
    assert config["data"]["train"]["tokens"] == 4 * (5 + sum(map(len, pieces)))
    said = "spells <start_of_turn>, which is read as the letters that it is; if a chat template"

    evaluate = ["evaluate", str(out), "--episodes", "2", "--samples", "1"]
    assert cli.main(evaluate) == 0
    assert said not in capsys.readouterr().out
    assert cli.main([*evaluate, "--control-tokens", "text", "--max-prompt-length", "200"]) == 0
    assert f"{tmp_path}/test.jsonl:1 (and 1 more) {said}" in capsys.readouterr().out

    generate_ = ["generate", "--model", str(out), "--max-new-tokens", "1"]
    for more, is_said in (([], True), (["--control-tokens", "parse"], False)):
        for given in (["--prompt", _opened("a")], ["--prompts", str(tmp_path / "train.jsonl")]):
            assert cli.main([*generate_, *given, *more]) == 0
            assert (said in capsys.readouterr().err) == is_said


def _opened(text: str) -> str:
    return f"<bos><start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n"
