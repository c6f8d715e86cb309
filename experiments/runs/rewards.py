"""What texts are worth, by name: "exact", "0.8*exact+0.2*python:my.module:f".

    exact                   the task's own rule, of an answer and its target
    length                  tokens of the answer, what ends it among them
    reward-model:DIR        of preferences: a run of reward-model
    entailment:DIR          log-probability that the document entails the answer, by a classifier;
                            the document is the data's (a field "document", or what the task says),
                            else the whole prompt
    python:MODULE:FUNCTION  of (prompts, texts, references), lists of B strings -> B floats; the
                            module is installed, or in the folder that the program was started in

A sum's terms are joined by "+" or, before a weight, by "-": "exact-0.01*length".
"""

import dataclasses
import pathlib
import re
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import modules, names, types
from kullback.environments import tokens
from kullback.experiments import interrupts
from kullback.lm import batches, tasks, tokenizer

KINDS = ("exact", "length", "reward-model:DIR", "entailment:DIR", "python:MODULE:FUNCTION")
_KNOWN = "|".join(kind.partition(":")[0] for kind in KINDS)
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_WEIGHT = rf"[+-]?\s*{_NUMBER}\s*\*\s*"
# Folders may hold "+", "-" and spaces: a term begins where a known name does.
_TERM = re.compile(rf"(?:^|\+|(?=-))\s*(?P<weight>{_WEIGHT})?(?=(?:{_KNOWN})\b)", re.I)


class Written(NamedTuple):
    """What is scored by Python: B texts, and what belongs to each."""

    prompts: list[str]
    texts: list[str]
    references: list[str]
    documents: list[str]  # That texts are to be faithful to.


OfTexts = Callable[[Written], Sequence[float] | np.ndarray]
# Of a user: (prompts, texts, references), B strings each -> B numbers.
OfUser = Callable[[list[str], list[str], list[str]], Sequence[float] | np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reward:
    """A weighted sum of scorers; those of JAX run inside the program that samples."""

    name: str
    compiled: tuple[tuple[float, tokens.Scorer], ...]
    of_texts: tuple[tuple[float, str, OfTexts], ...]  # Weight, name, function.

    @property
    def params(self) -> tuple[types.Params, ...]:
        """Of the scorers of JAX: an argument of the program."""
        return tuple(scorer.params for _, scorer in self.compiled)

    def in_program(
        self,
        params: tuple[types.Params, ...],
        completion: tokens.Completion,
        prompts: batches.Prompts,
    ) -> jax.Array:
        """The terms of JAX, float32 [B]; `prompts` are those of each row."""
        total = jnp.zeros(len(completion.tokens), jnp.float32)
        for (weight, scorer), own in zip(self.compiled, params, strict=True):
            total += weight * jnp.asarray(scorer.score(own, completion, prompts), jnp.float32)
        return total

    def between_programs(
        self,
        prompts: list[str],
        texts: list[str],
        references: list[str],
        documents: list[str] | None = None,
    ) -> np.ndarray:
        """Returns the terms of Python, float32 [B].

        Args:
          prompts, texts, references: B each.
          documents: B; None takes the prompts.

        Raises:
          ValueError: for one that gives another number of rewards, or one that is not finite.
          interrupts.Failure: for a function of a user's that raises.
        """
        total = np.zeros(len(texts), np.float32)
        written = Written(prompts, texts, references, prompts if documents is None else documents)
        for weight, name, function in self.of_texts:
            given = function(written)
            wanted = f"reward {name!r} must give {len(texts)} finite numbers, one a text, got "
            try:
                with np.errstate(over="ignore"):  # What is too large is seen below.
                    found = np.asarray(given, np.float32)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{wanted}{given!r:.80} ({error})") from error
            if found.shape != total.shape or not np.all(np.isfinite(found)):
                raise ValueError(
                    f"{wanted}shape {found.shape}: {np.asarray(given).ravel()[:8].tolist()}"
                )
            with np.errstate(over="ignore", invalid="ignore"):  # `checked` names it.
                total += np.float32(weight) * found
        return total

    def checked(self, total: types.Array) -> types.Array:
        """Returns the sum of all terms, [B], as it is.

        Raises:
          ValueError: if it is not finite somewhere, by a term of JAX or by a weight.
        """
        wrong = np.flatnonzero(~np.isfinite(np.asarray(total)))
        if len(wrong):
            raise ValueError(
                f"reward {self.name!r} must be finite, got {np.asarray(total)[wrong[0]]} for "
                f"text {wrong[0]} of {len(total)}; look at the weights, and at a reward model's "
                "parameters"
            )
        return total


def parse(text: str, task: tasks.Task, words: tokenizer.Tokenizer, num_ids: int = 0) -> Reward:
    """The reward of a name or a sum.

    Args:
      text: "" is the task's own rule.
      task: of the texts.
      words: the policy's tokenizer, which a reward model must share.
      num_ids: of the policy, which a reward model's table must have; 0 is any.

    Raises:
      ValueError: for an unknown name, a rule that the task lacks, or what cannot be loaded.
    """
    compiled: list[tuple[float, tokens.Scorer]] = []
    of_texts: list[tuple[float, str, OfTexts]] = []
    for weight, name in _terms(text.strip() or "exact"):
        if abs(weight) > float(np.finfo(np.float32).max):
            raise ValueError(f"the weight of reward {name!r} must be below 3.4e38, got {weight:g}")
        kind, _, rest = name.partition(":")
        if kind == "length" and not rest:
            compiled.append((weight, tokens.Scorer("length", _length)))
        elif kind == "reward-model" and rest:
            compiled.append((weight, _reward_model(rest, words, num_ids)))
        elif kind == "exact" and not rest:
            of_texts.append((weight, name, _exact(task)))
        elif kind == "entailment" and rest:
            of_texts.append((weight, name, _entailment(rest)))
        elif kind == "python" and rest:
            of_texts.append((weight, name, _python(rest)))
        else:
            raise ValueError(names.unknown("reward", name, KINDS, show_all=True))
    return Reward(text or "exact", tuple(compiled), tuple(of_texts))


def _terms(text: str) -> list[tuple[float, str]]:
    """Weights and names of a sum."""
    found = [*_TERM.finditer(text)]
    if not found or found[0].start() > 0:  # It begins with a name that nobody knows.
        name = re.sub(f"^{_WEIGHT}", "", text[: found[0].start()] if found else text, flags=re.I)
        raise ValueError(names.unknown("reward", name.strip(), KINDS, show_all=True))
    ends = [*(match.start() for match in found[1:]), len(text)]
    return [
        (
            float(re.sub(r"[\s*]", "", match["weight"] or "1")),
            text[match.end() : end].strip(),
        )
        for match, end in zip(found, ends, strict=True)
    ]


def _length(params: types.Params, completion: tokens.Completion, context: Any) -> types.Array:
    del params, context
    return completion.length


def _exact(task: tasks.Task) -> OfTexts:
    score = task.score
    if score is None:
        raise ValueError(
            f"{task.name} has no rule that judges an answer: name a reward by --reward "
            f"({', '.join(KINDS[1:])})"
        )

    def of_texts(written: Written) -> list[float]:
        return [score(*pair) for pair in zip(written.texts, written.references, strict=True)]

    return of_texts


def _python(path: str) -> OfTexts:
    module, _, name = path.partition(":")
    try:
        found = getattr(modules.load(module), name)
    except (AttributeError, ValueError) as error:
        raise ValueError(f"reward python:{path}: {error}; expected MODULE:FUNCTION") from error
    if not callable(found):
        raise ValueError(f"reward python:{path} must be a function, got {type(found).__name__}")
    function: OfUser = found  # pyright: ignore[reportAssignmentType]  # Checked at each call.

    def of_texts(written: Written) -> Sequence[float] | np.ndarray:
        try:
            return function(written.prompts, written.texts, written.references)
        except (Exception, SystemExit) as error:  # It runs whatever code it likes.
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{pathlib.Path(last.filename).name}, line {last.lineno}"
            raise interrupts.Failure(f"reward python:{path} raised {error!r} ({place})") from error

    return of_texts


def _entailment(path: str) -> OfTexts:
    from kullback.lm.entailment import scorers

    model = scorers.load(path)
    return lambda written: model.log_probability(written.documents, written.texts)


def _reward_model(path: str, words: tokenizer.Tokenizer, num_ids: int) -> tokens.Scorer:
    from kullback.experiments.runs import reward_models

    scorer = reward_models.scorer(path)
    theirs = tokenizer.load(pathlib.Path(path) / "tokenizer")
    if theirs.fingerprint != words.fingerprint:
        raise ValueError(
            f"reward-model:{path} reads other tokens than the policy writes; train it from the "
            "policy's own supervised start"
        )
    rows = len(scorer.params["decoder"]["embedding"])
    if rows < num_ids:  # XLA would read the last row in the place of one that is not there.
        raise ValueError(
            f"reward-model:{path} has {rows} rows in its table and the policy writes {num_ids} "
            "ids; take one whose table has as many"
        )
    return scorer
