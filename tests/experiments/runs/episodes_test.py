"""Tests of runs/episodes.py, rewards.py and warp.py: reinforcement learning of a run."""

import csv
import json
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kullback import experiments
from kullback.core import trees
from kullback.environments import tokens
from kullback.experiments import cli
from kullback.experiments.evaluate import warp_front
from kullback.experiments.runs import (
    language,
    language_setup,
    models,
    opened,
    plans,
    resolved,
    rewards,
    run_folder,
)
from kullback.lm import answers, gemma, rlhf, tasks, tokenizer, warp
from kullback.lm.entailment import scorers
from tests.records import as_killed, repeated

MODEL = ("num_layers=1", "embed_dim=16", "hidden_dim=16", "window=4")
SHORT = ("batch_size=4", "max_prompt_length=8", "max_new_tokens=4")
# Two members of three steps: an iteration is six.
WARP = ("members=2", "member_steps=3", "samples_per_prompt=2", "learning_rate=1e-2")
TASK = "tokens/arithmetic"
ALL_SUMS = tasks.Arithmetic  # Of the task as it is, before `few_sums`.
pytestmark = pytest.mark.usefixtures("few_sums")


def letters(prompts: list[str], texts: list[str], references: list[str]) -> list[float]:
    """Rewards each text by its length; checks that prompts and references come with it."""
    assert all(prompt.endswith("=") for prompt in prompts) and len(references) == len(texts)
    return [float(len(text)) for text in texts]


def wrong(prompts: list[str], texts: list[str], references: list[str]) -> list[float]:
    """Returns one number, however many texts there are."""
    del prompts, texts, references
    return [1.0]


LETTERS = f"python:{__name__}:letters"


def train(path: pathlib.Path, algorithm: str, model: Any, **fields: Any) -> pathlib.Path:
    given: dict[str, Any] = {
        "steps": 6,
        "log_every": 2,
        "checkpoint_every": 3,
        "quiet": True,
        **fields,
    }
    settings = (*SHORT, *given.pop("settings", ()))
    return experiments.train(
        algorithm, TASK, out=path, model=str(model), settings=settings, **given
    )


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("start") / "run"
    # The program of other modules' starts.
    return train(path, "sft", "tiny", model_flags=MODEL, settings=("warmup_steps=0",))


def equal(one: pathlib.Path, other: pathlib.Path) -> None:
    a, b = (models.load(path).params for path in (one, other))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def setup(path: pathlib.Path) -> language.Setup:
    return language_setup.setup(resolved.of(opened.open(path, trust_code=True)), path)


@pytest.fixture(scope="module")
def run(start: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("rlhf") / "run"
    settings = ("samples_per_prompt=2", "reference=moving-average", "learning_rate=1e-2")
    reward = f"0.5*{LETTERS}-0.25*length"
    return train(path, "rlhf", start, settings=settings, reward=reward, eval_every=6)


def test_what_a_run_logs(run: pathlib.Path):
    table = repeated(run)
    assert [row["steps"] for row in table] == ["2", "4", "6"]
    wanted = {"return_mean", "kl_start", "kl_reference", "answer_tokens", "entropy", "diversity"}
    assert wanted <= set(table[0]) and not any(float(row["kl_runaway"]) for row in table)
    assert np.isfinite(float(table[-1]["evaluation"]))
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    sampled = [line for line in lines if not line["greedy"]]
    assert [line["step"] for line in sampled] == [2] * 4 + [4] * 4 + [6] * 4
    assert sampled[0]["prompt"] == sampled[1]["prompt"] != sampled[2]["prompt"]
    # Half a letter, less a quarter of a token.
    for line in sampled:
        assert line["score"] < 0.5 * len(line["completion"]) or not line["completion"]
    config = json.loads((run / "config.json").read_text())
    assert config["plan"]["reward"].startswith("0.5*python:") and len(config["start_sha256"]) == 64


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Returns a start that knows what it writes, so that there is something to run away from."""
    path = tmp_path_factory.mktemp("sure") / "run"
    settings = ("learning_rate=2e-2", "batch_size=32")
    more = {"steps": 80, "log_every": 80, "checkpoint_every": 80, "model_flags": MODEL}
    return train(path, "sft", "tiny", settings=settings, **more)


@pytest.mark.parametrize(
    ("rate", "runs_away"),
    [("5e-2", True), ("1e-4", False)],
)
@pytest.mark.slow
def test_a_policy_that_runs_away_is_said_once(
    rate: str,
    runs_away: bool,
    sure: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
):
    settings = ("samples_per_prompt=2", f"learning_rate={rate}", "warmup_steps=0")
    path = train(
        tmp_path / "run", "rlhf", sure, steps=20, settings=settings, reward=LETTERS, quiet=False
    )
    said = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    table = repeated(path)
    away = [row["steps"] for row in table if float(row["kl_runaway"])]
    if not runs_away:
        assert not said and not away
        return
    assert away and away[-1] == "20", "it stays there"
    (line,) = said
    assert f"at step {away[0]} the KL to the supervised start is " in line
    assert line.endswith("lower learning_rate=0.05 or raise kl_coefficient=0.05")


def test_a_run_that_is_interrupted_goes_on_bit_by_bit(run: pathlib.Path, tmp_path: pathlib.Path):
    part = as_killed(run, tmp_path / "part", 3)
    experiments.resume(part, quiet=True, trust_code=True)
    equal(part, run)
    assert repeated(part) == repeated(run)
    config = run_folder.RunFolder(part).config()
    run_folder.RunFolder(part).write_config({**config, "start_sha256": "0" * 64})
    with pytest.raises(ValueError, match=r"the start .* has changed since the run began"):
        experiments.resume(part, steps=7, quiet=True, trust_code=True, accept_changes=True)


@pytest.mark.slow
def test_a_reward_that_raises_ends_a_run_in_a_line_and_loses_nothing(
    start: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    calls: list[int] = []

    def fails(prompts: list[str], texts: list[str], references: list[str]) -> list[float]:
        calls.append(len(texts))
        if len(calls) == 4:
            raise KeyError("no such word")
        return letters(prompts, texts, references)

    monkeypatch.setitem(globals(), "fails", fails)
    out = tmp_path / "run"
    arguments = ["train", "rlhf", TASK, "--model", str(start), "--steps", "5", "--out", str(out)]
    for setting in SHORT:
        arguments += ["--set", setting]
    assert cli.main([*arguments, "--reward", f"python:{__name__}:fails", "--seed", "3"]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"reward python:{__name__}:fails raised KeyError('no such word') (episodes_test" in line
    assert line.endswith(f"saved at step 3; go on with: kullback train --resume {out}")
    assert cli.main(["train", "--resume", str(out), "--trust-code"]) == 0
    whole = train(tmp_path / "whole", "rlhf", start, steps=5, reward=LETTERS, seed=3)
    equal(out, whole)


def test_log_probabilities_as_drawn_are_those_of_a_whole_pass(run: pathlib.Path):
    work = setup(run)
    actor, model, params = work.actor, work.evaluator.model, models.load(run).params
    assert actor is not None
    examples = work.splits.train[:2]
    written = actor.episodes({"params": params}, examples, jax.random.key(1))
    s = written.sequences
    expected = jax.jit(answers.log_probabilities, static_argnums=0)(model, params, s)
    np.testing.assert_allclose(written.log_probability[:, 1:], expected, atol=1e-5)
    assert np.all(np.asarray(written.log_probability)[~np.asarray(s.is_answer)] == 0)
    texts = actor.evaluator.answer_texts(s)
    lengths = np.asarray(s.is_answer).sum(1)
    np.testing.assert_allclose(
        written.rewards, [len(t) / 2 for t in texts] - lengths / 4, atol=1e-6
    )
    prompt = np.asarray(s.tokens)[1, : len(examples[0].prompt)]
    np.testing.assert_array_equal(prompt, examples[0].prompt)


@pytest.mark.slow
def test_warp_goes_on_in_the_middle_and_ends_with_its_front(
    start: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    """Cut inside the second member of the first iteration; the front is made once at the end."""
    monkeypatch.setattr(warp_front, "PROMPTS", 8)
    given = {"settings": WARP, "reward": LETTERS, "log_every": 6}
    whole = train(tmp_path / "whole", "warp", start, steps=12, **given)
    part = train(tmp_path / "part", "warp", start, steps=6, checkpoint_every=2, **given)
    (last,) = (part / "checkpoints").glob("*6")
    shutil.rmtree(last)  # As if it had been killed after step 4.
    experiments.resume(part, steps=12, quiet=True, trust_code=True)
    equal(part, whole)
    assert (part / "front.csv").read_text() == (whole / "front.csv").read_text()
    with (whole / "front.csv").open() as file:
        front = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert [point["eta"] for point in front] == list(warp.ETAS)
    # Of so few texts the estimate may be below 0.
    assert abs(front[0]["kl_start"]) < 1e-4 < abs(front[-1]["kl_start"])
    assert (whole / "front.png").stat().st_size > 1_000
    # A point is made of the folder of the merge, and the start.
    merged = models.load(whole / "merged-000012")
    assert merged.tokenizer.fingerprint == models.load(start).tokenizer.fingerprint
    actor = setup(whole).actor
    assert actor is not None
    ends = warp_front.Ends(models.load(start).params, merged.params)
    again = warp_front.front(actor, ends, etas=(1.0,), count=8, key=jax.random.key(0))
    np.testing.assert_allclose(again[0], list(front[-1].values()), rtol=1e-4)


def tokenizer_of(start: pathlib.Path) -> tokenizer.Tokenizer:
    return models.load(start).tokenizer


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", [(1, "exact")]),
        ("exact+length", [(1, "exact"), (1, "length")]),
        ("exact - 1e-2*length", [(1, "exact"), (-0.01, "length")]),
        ("-.5*length+2*exact", [(-0.5, "length"), (2, "exact")]),
        (f"0.8*exact+-0.2*{LETTERS}", [(0.8, "exact"), (-0.2, LETTERS)]),
    ],
)
def test_sums_of_rewards(start: pathlib.Path, text: str, terms: list[tuple[float, str]]):
    reward = rewards.parse(text, tasks.make(TASK), tokenizer_of(start))
    named = [(w, name) for w, name, _ in reward.python_terms]
    named += [(w, scorer.name) for w, scorer in reward.jax_terms]
    assert sorted(named) == sorted(terms)


def test_a_reward_is_the_sum_of_its_terms(start: pathlib.Path):
    reward = rewards.parse(
        f"2*exact+0.5*{LETTERS}-0.25*length", tasks.make(TASK), tokenizer_of(start)
    )
    scores = reward.python_score(["1+1="] * 2, ["2", "333"], ["2", "2"])
    np.testing.assert_allclose(scores, [2.5, 1.5])
    is_answer = jnp.array([[True, True], [True, False]])
    unread = jnp.zeros((2, 2))
    lengths, cut = jnp.sum(is_answer, 1), is_answer[:, 1]
    completion = tokens.Completion(unread, is_answer, lengths, cut, unread)
    prompts: Any = None
    np.testing.assert_allclose(reward.jax_score(reward.params, completion, prompts), [-0.5, -0.25])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exakt", "unknown reward 'exakt'; expected one of"),
        ("0.5*", "unknown reward ''"),
        ("python:nowhere:f", "reward python:nowhere:f: No module named 'nowhere'"),
        ("python:json", "reward python:json: .*expected MODULE:FUNCTION"),
        ("python:json:decoder", "must be a function, got module"),
        ("reward-model:nowhere", "nowhere is no run of a reward model"),
        ("entailment:nowhere", "nowhere"),
    ],
)
def test_rewards_that_cannot_be_are_refused(start: pathlib.Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        rewards.parse(text, tasks.make(TASK), tokenizer_of(start))


def test_a_task_without_a_rule_needs_a_reward_and_functions_are_checked(
    start: pathlib.Path, tmp_path: pathlib.Path
):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(ValueError, match="has no rule that judges an answer: name a reward"):
        rewards.parse("", tasks.make(f"tokens/jsonl:{file}"), tokenizer_of(start))
    reward = rewards.parse(f"python:{__name__}:wrong", tasks.make(TASK), tokenizer_of(start))
    with pytest.raises(ValueError, match=r"must give 2 finite numbers, one a text, got shape \(1,"):
        reward.python_score(["", ""], ["", ""], ["", ""])


@pytest.mark.parametrize(
    ("algorithm", "fields", "message"),
    [
        ("rlhf", {"model": "tiny"}, "rlhf starts from a supervised model"),
        ("rlhf", {"settings": ("distillation_weight=0.5",)}, "rlhf needs --teacher"),
        ("rlef", {"teacher": "x"}, "rlef takes no --teacher"),
        ("sft", {"reward": "exact"}, "sft takes no --reward, got 'exact'"),
        ("warp", {"steps": 7, "settings": WARP}, "2 members of 3 steps, got 7; the next is 12"),
    ],
)
def test_plans_that_cannot_be_are_refused(
    start: pathlib.Path, algorithm: str, fields: dict[str, Any], message: str
):
    settings = (*SHORT, *fields.get("settings", ()))
    given = {"model": str(start), **fields, "settings": settings}
    with pytest.raises(ValueError, match=message):
        language_setup.setup(
            resolved.resolve(plans.Plan(agent=algorithm, environment=TASK, **given))
        )


@pytest.mark.slow
def test_the_command_line_of_rlef_and_of_the_combined_objective(
    start: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    """A value network is beside the policy in a checkpoint; a teacher's distance is logged."""
    given = ["--model", str(start), "--steps", "2", "--log-every", "1"]
    given += [f"--set={setting}" for setting in SHORT]
    out = tmp_path / "rlef"
    assert cli.main(["train", "rlef", TASK, *given, "--out", str(out)]) == 0
    assert "value_error" in repeated(out)[0]
    assert cli.main(["evaluate", str(out), "--episodes", "2"]) == 0
    names = [set(trees.named_leaves(models.load(path).params)) for path in (out, start)]
    assert names[0] == names[1]
    out = tmp_path / "both"
    more = ["--teacher", str(start), "--set=distillation_weight=0.5", "--eval-every", "2"]
    assert cli.main(["train", "rlhf", TASK, *given, *more, "--out", str(out)]) == 0
    assert float(repeated(out)[-1]["distance"]) >= 0
    assert np.isfinite(float(repeated(out)[-1]["teacher_distance"]))
    capsys.readouterr()


@pytest.mark.slow
def test_the_best_of_some_answers(
    run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    given = ["evaluate", str(run), "--episodes", "8", "--samples", "1"]
    given += ["--out", str(tmp_path / "out.jsonl")]
    assert cli.main([*given, "--best-of", "4", "--reward", LETTERS]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("  ")}
    assert shown["reward"] < shown["reward_best_of_4"] and "score_best_of_4" in shown
    assert shown["kl_of_best_of_4_at_most"] == pytest.approx(np.log(4) - 3 / 4, abs=1e-4)
    assert cli.main([*given, "--reward", "exact"]) == 2
    assert "--reward goes with --best-of N" in capsys.readouterr().err


@pytest.mark.slow
def test_rewards_rise(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Sums that half of the answers get right: 100 steps raise the held-out reward, two seeds."""
    monkeypatch.setattr(tasks, "Arithmetic", ALL_SUMS)  # Few are learnt by heart.
    shape = ("num_layers=2", "embed_dim=64", "hidden_dim=128", "head_dim=16", "window=16")
    lengths = ("max_prompt_length=12", "max_new_tokens=6")
    given: dict[str, Any] = {"quiet": True, "log_every": 100, "checkpoint_every": 1_000}
    start = experiments.train(
        "sft",
        TASK,
        out=tmp_path / "start",
        model="tiny",
        model_flags=shape,
        steps=600,
        settings=(*lengths, "batch_size=64", "learning_rate=3e-3"),
        **given,
    )
    settings = (*lengths, "batch_size=128", "samples_per_prompt=8", "learning_rate=3e-4")
    for seed in (0, 1):
        path = experiments.train(
            "rlhf",
            TASK,
            out=tmp_path / f"run{seed}",
            model=str(start),
            steps=100,
            seed=seed,
            settings=(*settings, "kl_coefficient=0.02"),
            **given,
        )
        actor = setup(path).actor
        assert actor is not None
        before, after = (
            actor.scores({"params": models.load(p).params}, 512, jax.random.key(9)).mean()
            for p in (start, path)
        )
        assert after > before + 0.05, (seed, before, after)


def test_presets_are_what_the_papers_have():
    member = warp.Config().member
    assert isinstance(member, rlhf.Config) and member.reference == "moving-average"
    assert (member.kl_coefficient, member.anchor_rate) == (0.1, 0.01)
    assert gemma.PRESETS["tiny"].eos_ids == (1,)


def test_entailment_is_of_the_document_that_is_named(
    start: pathlib.Path, root: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    short = scorers.Config(max_length=48, overlap=8)  # As long as the tiny model's rows.
    model = scorers.load(root / "tests/lm/fixtures/bert", short)
    monkeypatch.setattr(scorers, "load", lambda folder: model)
    reward = rewards.parse("2*entailment:somewhere", tasks.make(TASK), tokenizer_of(start))
    prompts, documents = ["Say:\n\nA document.", "No question."], ["A document.", "No question."]
    scores = reward.python_score(prompts, ["It is.", ""], ["", ""], documents)
    expected = model.log_probability(documents, ["It is.", ""])
    np.testing.assert_allclose(scores, 2 * expected)
    assert scores[1] == pytest.approx(2 * scorers.floor(short))
