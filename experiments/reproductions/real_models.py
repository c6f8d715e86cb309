"""Studies of a real model, the published Gemma 3 270M: what they share.

Weights are asked for before anything is done, and stand in results by their SHA-256 alone. A run is
a stage of a pipeline, a process of its own, in a folder of the study's parts: what was killed goes
on from its last checkpoint. Measures are of held-out examples, one by one, so that intervals are
over documents or prompts where there is one model, and over seeds where there are more.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kullback.core import files
from kullback.experiments.evaluate import evaluation as evaluations
from kullback.experiments.evaluate.subjects import Subject
from kullback.experiments.pipelines import outputs, running, stages
from kullback.experiments.reproductions import effects, judging, study
from kullback.experiments.runs import (
    converted,
    driving,
    models,
    pretrained,
    run_folder,
    saver,
)
from kullback.lm import evaluation, gemma_config
from kullback.lm.entailment import faithfulness

PUBLISHED = "pretrained:gemma3-270m"
CHECKPOINTS = 8  # Of a run, evenly spaced: a kill loses an eighth of it at most.


def require(model: str, *packages: str) -> gemma_config.Config:
    """Returns a model's shape, once all that a study reads is there.

    Args:
      model: as of --model; pretrained:NAME may be in the cache, or installed.
      *packages: modules whose data are read, such as "aclsum".

    Raises:
      ValueError: for what is not there, with the command that installs it.
    """
    if pretrained.is_name(model):
        converted.require(model)
    else:
        models.stored(model)
    for package in packages:
        faithfulness.data_folder(package, "")
    shape = models.shape(model)
    if shape is None:
        raise ValueError(f"model must be a language model, got {model}")
    return shape


def origin(model: str) -> study.Row:
    """Returns a model's name and SHA-256: of the published file, or of the files at its path.

    The name of a folder or a file is its last part.
    """
    if pretrained.is_name(model):
        return {"model": model, "sha256": pretrained.named(model)[1].sha256}
    path = pathlib.Path(model)
    return {"model": path.name, "sha256": outputs.fingerprint(path)}


def base(model: str) -> study.Arm:
    """Returns the arm that notes the base of a study, the table `base`."""
    return study.Arm("base", 1, lambda journal: [origin(model)], "base")


def reported_base(tables: study.Tables) -> judging.Check:
    """Returns what a verdict says of the base."""
    (row,) = tables["base"]
    return judging.reported("base", f"{row['model']}, SHA-256 {row['sha256']}")


def train(agent: str, task: str, model: str, steps: int, seed: int, **more: Any) -> dict[str, Any]:
    """Returns a stage that trains, as a pipeline's file would have it.

    Args:
      agent, task, model, steps, seed: of `kullback train`.
      **more: further keys of the stage, such as settings, teacher, reward.
    """
    every = {"checkpoint_every": -(-steps // CHECKPOINTS), "log_every": max(1, steps // 50)}
    named = {"agent": agent, "environment": task, "model": model, "steps": steps, "seed": seed}
    return {"run": "train", **named, **every, **more}


def warmup(steps: int) -> int:
    """Returns the steps in which a learning rate rises: a tenth of a run's, fewer than all."""
    return max(1, steps // 10) if steps > 1 else 0


def run(
    given: Mapping[str, Any], name: str, journal: study.Journal, *, before: int = 0
) -> dict[str, pathlib.Path]:
    """Does the stages of a pipeline that are not done; returns what each has made, by its name.

    The journal shows their steps and the metric that matters. What stages print is in
    FOLDER/stages/NAME-KEY.log.

    Args:
      given: stages, by name.
      name: of the pipeline's folder among the journal's parts.
      journal: of the study.
      before: steps of the running part that are done.
    """
    reached: dict[str, int] = {}  # Steps, by the stages that have run here.

    def watch(planned: outputs.Planned) -> None:
        if rows := run_folder.RunFolder(planned.path).rows():
            row = {column: float(value) for column, value in rows[-1].items()}
            reached[planned.stage.name] = int(row["steps"])
            journal.tick(before + sum(reached.values()), *driving.shown(row, "loss"))

    folder = journal.path(name)
    running.run({"stage": given}, out=folder, quiet=True, say=lambda line: None, watch=watch)
    planned = outputs.plan(stages.read({"stage": given}), folder)
    return {name: one.path for name, one in planned.items()}


def seconds(path: pathlib.Path) -> float:
    """Returns the seconds that a stage took, without those before an interruption.

    Args:
      path: of what it made, in its pipeline's folder.
    """
    record = path.parent / outputs.RECORDS / f"{path.name}.json"
    return json.loads(record.read_text())["seconds"]


def subject(path: str | pathlib.Path, task: str, **lengths: Any) -> Subject:
    """Returns a model, a run or not, and the task on which it is measured.

    Args:
      path: of a run or weights, or pretrained:NAME.
      task: "tokens/...".
      **lengths: max_prompt_length, max_new_tokens and overlong.
    """
    place = models.stored(path)
    return Subject(path=pathlib.Path(path), run=place.run, task_name=task, lengths=lengths)


@functools.lru_cache(maxsize=1)  # Several arms are compared with one model.
def loaded(path: str, task: str, **lengths: Any) -> tuple[evaluation.Evaluator, Any]:
    """Returns an evaluator of a model and a task, and the model's parameters."""
    measured = subject(path, task, **lengths)
    return evaluations.evaluator_of(measured), measured.checkpoint.params


def likelihoods(evaluator: evaluation.Evaluator, params: Any, count: int) -> study.Rows:
    """Returns nats and tokens of each held-out completion, a row an example."""
    sums = evaluator.likelihoods({"params": params}, count)
    return [
        {"example": n, "nats": float(nats), "tokens": int(tokens)}
        for n, (nats, tokens) in enumerate(zip(sums.nats, sums.tokens, strict=True))
    ]


def a_token(rows: study.Rows, column: str, **columns: Any) -> np.ndarray:
    """Returns a column divided by the tokens of each example, [examples]."""
    sums, tokens = (study.column(rows, name, **columns) for name in (column, "tokens"))
    return sums / tokens


def write_rows(folder: pathlib.Path, by_split: Mapping[str, Iterable[study.Row]]) -> str:
    """Writes records as a task, if it is not there; returns its name, "tokens/jsonl:FOLDER"."""
    for split, rows in by_split.items():
        if not (path := folder / f"{split}.jsonl").is_file():
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            files.atomic_write_text(path, "".join(lines))
    return f"tokens/jsonl:{folder}"


class Chain(NamedTuple):
    """Stages that tune a model, each from the last one's, as many as its score asks for."""

    stage_of: Callable[[str, int], dict[str, Any]]  # (model, number from 0) -> stage.
    model: str  # With which the first begins.
    name: str  # Of their folder among the journal's parts.
    journal: study.Journal

    def last(self, count: int) -> pathlib.Path:
        """Returns what the last of `count` stages made; those that are not done are done first."""
        names = [f"tuned-{n}" for n in range(1, count + 1)]
        models = [self.model, *(f"{{{name}}}" for name in names)]
        stages = {name: self.stage_of(models[n], n) for n, name in enumerate(names)}
        *earlier, _ = (stage["steps"] for stage in stages.values())
        return run(stages, self.name, self.journal, before=sum(earlier))[names[-1]]

    def until(
        self, score: Callable[[pathlib.Path], float], *, least: float, most_stages: int
    ) -> tuple[int, float]:
        """Does stages until the score of the last is high enough; scores are kept.

        Args:
          score: of what a stage has made.
          least: score that is enough.
          most_stages: the most that are tried.

        Returns:
          Number of stages, by which `last` finds it; its score.

        Raises:
          ValueError: if so many are not enough.
        """
        reached = -np.inf
        for count in range(1, most_stages + 1):
            name = f"{self.name}-{count}"
            (row,) = self.journal.step(name, lambda n=count: [{"score": score(self.last(n))}])
            reached = row["score"]
            self.journal.say(
                f"{self.name}: {reached:.3g} after {count} of at most {most_stages} stages, and "
                f"{least:.3g} is enough"
            )
            if reached >= least:
                return count, reached
        raise ValueError(
            f"{self.name}: after {most_stages} stages of learning the score is "
            f"{reached:.3g}, and {least:g} is needed; more stages, more steps or a higher rate may "
            "reach it"
        )


def memory(shape: gemma_config.Config, copies: float, tokens: int, chunk: int = 0) -> str:
    """Returns a line on the memory of a step, about, for `Study.before`.

    Args:
      shape: of the model.
      copies: of its float32 parameters: itself, gradients, moments, a teacher.
      tokens: of a step, whose activations are kept.
      chunk: tokens whose logits are in memory.
    """
    layer = 6 * shape.hidden_dim + 4 * shape.num_heads * shape.head_dim + 12 * shape.embed_dim
    activations = 4 * tokens * shape.num_layers * layer
    logits = 3 * 4 * (chunk or min(tokens, 128)) * shape.vocab_size
    weights = copies * 4 * gemma_config.num_params(shape).total
    return f"memory: about {files.size(round(weights + activations + logits + 4e8))}"


def disk(shape: gemma_config.Config, runs: int = 1) -> str:
    """Returns a line on the disk that checkpoints of all weights take, for `Study.before`.

    Args:
      shape: of the model.
      runs: that are there at once; one of them writes a checkpoint beside those that it keeps.
    """
    checkpoint = 3 * 4 * gemma_config.num_params(shape).total
    most = runs * saver.kept(checkpoint) + 1
    return f"disk: up to {files.size(most * checkpoint)} while it runs"


def power(count: int, units: str) -> str:
    """Returns a line on the smallest effect that so many units show, for `Study.before`."""
    if count < 2:
        return f"one of {units} has no interval: nothing is judged"
    least = effects.smallest_of(count)
    return (
        f"of {count} {units}, a difference of {least:.2g} of its standard deviation is seen with "
        f"probability {effects.POWER:g}; verdict.json has what each claim would have shown"
    )
