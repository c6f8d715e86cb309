r"""Rewards of texts by name: "exact", "0.8*exact+0.2*python:my.module:f".

    exact                   the score of an answer and its target by the task's own rule
    math                    1 if the answer's number equals the reference's, exactly, else 0: it is
                            the last, or that of a \boxed{...} or after "answer is"
    format:REGEX            1 if the expression matches the whole of the answer, else 0; in a time
                            that is bounded by the lengths alone, so that it is a regular one
    length                  tokens of the answer, its end-of-sequence token included
    reward-model:DIR        a reward model, trained on preferences: a run of reward-model
    entailment:DIR          log-probability that the document entails the answer, by a classifier;
                            the document is the data's (a field "document", or the task's own),
                            else the whole prompt
    http://HOST/PATH        a server, or https://: what it says of each text, see remote_rewards.py
    python:MODULE:FUNCTION  (prompts, texts, references), lists of B strings -> B floats; the module
                            is installed, or in the folder that the program was started in; a
                            function with a parameter `images` gets the paths of each prompt's

Terms are joined by "+" or, before a weight, by "-": "exact-0.01*length". White space around a term
is not part of it: an expression ends in a space as "[ ]".
"""

import dataclasses
import inspect
import pathlib
import re
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import modules, names, types
from kullback.environments import tokens
from kullback.experiments import interrupts
from kullback.experiments.runs import record, remote_rewards
from kullback.lm import (
    batches,
    encoded,
    final_answers,
    gemma_config,
    linear_patterns,
    sharding,
    tasks,
    tokenizer,
)
from kullback.lm.tokenizer import Tokenizer

KINDS = (
    "exact",
    "math",
    "format:REGEX",
    "length",
    "reward-model:DIR",
    "entailment:DIR",
    "python:MODULE:FUNCTION",
    "http://HOST/PATH",
    "https://HOST/PATH",
)
_KNOWN = "|".join(kind.partition(":")[0] for kind in KINDS)
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?"
_WEIGHT = rf"[+-]?\s*{_NUMBER}\s*\*\s*"
# Folders may hold "+", "-" and spaces: a term begins where a known name does.
_TERM = re.compile(rf"(?:^|\+|(?=-))\s*(?P<weight>{_WEIGHT})?(?=(?:{_KNOWN})\b)", re.I)


class TextBatch(NamedTuple):
    """B texts, with the prompt, the reference and the document of each."""

    prompts: list[str]
    texts: list[str]
    references: list[str]
    documents: list[str]  # The sources that texts are to be faithful to.
    images: list[list[str]]  # Paths of the images of each prompt, in order.


PythonScorer = Callable[[TextBatch], Sequence[float] | np.ndarray]
# A user's function: (prompts, texts, references), B strings each -> B numbers; by keyword it may
# take `images`, B lists of paths.
UserFunction = Callable[..., Sequence[float] | np.ndarray]


@dataclasses.dataclass(frozen=True)
class Reward:
    """A weighted sum of scorers; those in JAX are compiled into the program that samples."""

    name: str
    jax_terms: tuple[tuple[float, tokens.Scorer], ...]  # Weight, scorer.
    python_terms: tuple[tuple[float, str, PythonScorer], ...]  # Weight, name, function.
    servers: tuple[tuple[float, remote_rewards.Server], ...] = ()  # Weight, server.

    @property
    def params(self) -> tuple[types.Params, ...]:
        """Parameters of the scorers in JAX, which are an argument of the program."""
        return tuple(scorer.params for _, scorer in self.jax_terms)

    @property
    def reads_texts(self) -> bool:
        """Whether it has terms that are no part of the program that samples."""
        return bool(self.python_terms or self.servers)

    def keep(self, folder: pathlib.Path) -> None:
        """Writes into a run's folder what servers say, and takes from it what they have said.

        Raises:
          ValueError: for a damaged file.
        """
        for _, server in self.servers:
            server.keep(folder / record.REWARDS)

    def jax_score(
        self,
        params: tuple[types.Params, ...],
        completion: tokens.Completion,
        prompts: batches.Prompts,
    ) -> jax.Array:
        """Returns the sum of the terms in JAX, float32 [B]; `prompts` has one a completion."""
        total = jnp.zeros(len(completion.tokens), jnp.float32)
        for (weight, scorer), of_scorer in zip(self.jax_terms, params, strict=True):
            total += weight * jnp.asarray(scorer.score(of_scorer, completion, prompts), jnp.float32)
        return total

    def python_score(
        self,
        prompts: list[str],
        texts: list[str],
        references: list[str],
        documents: list[str] | None = None,
        images: list[list[str]] | None = None,
    ) -> np.ndarray:
        """Returns the sum of the terms in Python, float32 [B].

        Those of servers are part of it, and NaN where one of them gave none.

        Args:
          prompts, texts, references: B each.
          documents: B; None takes the prompts.
          images: paths of each prompt's, B lists; None: no prompt has any.

        Raises:
          ValueError: for a scorer that gives another number of rewards, or one that is not finite.
          interrupts.Failure: for a user's function that raises, or a server that gives nothing.
        """
        total = np.zeros(len(texts), np.float32)
        documents = prompts if documents is None else documents
        images = [[] for _ in texts] if images is None else images
        batch = TextBatch(prompts, texts, references, documents, images)
        for weight, name, function in self.python_terms:
            given = function(batch)
            wanted = f"reward {name!r} must give {len(texts)} finite numbers, one a text, got "
            try:
                with np.errstate(over="ignore"):  # Infinities are refused below.
                    scores = np.asarray(given, np.float32)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{wanted}{given!r:.80} ({error})") from error
            if scores.shape != total.shape or not np.all(np.isfinite(scores)):
                raise ValueError(
                    f"{wanted}shape {scores.shape}: {np.asarray(given).ravel()[:8].tolist()}"
                )
            with np.errstate(over="ignore", invalid="ignore"):  # `checked` names it.
                total += np.float32(weight) * scores
        if self.servers:
            self.checked(total)  # Below NaN means that a server gave none.
        for weight, server in self.servers:
            given = server.rewards(prompts, texts, references).astype(np.float32)
            with np.errstate(over="ignore", invalid="ignore"):
                total += np.float32(weight) * given
        return total

    def check_references(self, references: Iterable[str]) -> None:
        """Checks the references of all examples, before work starts.

        Raises:
          ValueError: for one without a number, to which "math" compares.
        """
        if all(name != "math" for _, name, _ in self.python_terms):
            return
        for reference in references:
            if final_answers.number(reference) is None:
                raise ValueError(
                    f"reward 'math' compares numbers, and a reference has none: {reference!r:.80}; "
                    "take exact, or leave the example out"
                )

    def checked(self, total: types.Array) -> types.Array:
        """Returns the sum of all terms, [B], unchanged.

        Raises:
          ValueError: if it is not finite somewhere, by a term in JAX or by a weight.
        """
        wrong = np.flatnonzero(~np.isfinite(np.asarray(total)))
        if len(wrong):
            raise ValueError(
                f"reward {self.name!r} must be finite, got {np.asarray(total)[wrong[0]]} for "
                f"text {wrong[0]} of {len(total)}; look at the weights, and at a reward model's "
                "parameters"
            )
        return total


def parse(
    text: str,
    task: tasks.Task,
    policy_tokenizer: Tokenizer,
    num_ids: int = 0,
    storage: gemma_config.Storage = "float32",
    mesh: sharding.Mesh | None = None,
    images: encoded.Images | None = None,
) -> Reward:
    """Returns the reward of a name or a sum.

    Args:
      text: "" is the task's own rule.
      task: of the texts.
      policy_tokenizer: a reward model must have the same.
      num_ids: ids of the policy, which a reward model's table must have; 0 is any.
      storage: format of a reward model's matrices in memory.
      mesh: over which a reward model is sharded; None is one device.
      images: by which the policy sees, and so must a reward model; None: it reads texts alone.

    Raises:
      ValueError: for an unknown name, a rule that the task lacks, or what cannot be loaded.
    """
    jax_terms: list[tuple[float, tokens.Scorer]] = []
    python_terms: list[tuple[float, str, PythonScorer]] = []
    servers: list[tuple[float, remote_rewards.Server]] = []
    for weight, name in _terms(text.strip() or "exact"):
        if abs(weight) > float(np.finfo(np.float32).max):
            raise ValueError(f"the weight of reward {name!r} must be below 3.4e38, got {weight:g}")
        kind, _, rest = name.partition(":")
        if kind == "length" and not rest:
            jax_terms.append((weight, tokens.Scorer("length", _length)))
        elif kind == "reward-model" and rest:
            scorer = _reward_model(rest, policy_tokenizer, num_ids, storage, mesh, images)
            jax_terms.append((weight, scorer))
        elif kind == "exact" and not rest:
            python_terms.append((weight, name, _exact(task)))
        elif kind == "math" and not rest:
            python_terms.append((weight, name, _math))
        elif kind == "format" and rest:
            python_terms.append((weight, name, _format(rest)))
        elif kind == "entailment" and rest:
            python_terms.append((weight, name, _entailment(rest)))
        elif kind in remote_rewards.SCHEMES and rest:
            servers.append((weight, remote_rewards.Server(name)))
        elif kind == "python" and rest:
            python_terms.append((weight, name, _python(rest)))
        else:
            raise ValueError(names.unknown("reward", name, KINDS, show_all=True))
    return Reward(text or "exact", tuple(jax_terms), tuple(python_terms), tuple(servers))


def named_folders(text: str) -> list[str]:
    """Returns the folders that a reward's name has; [] for what is no reward."""
    try:
        terms = _terms(text)
    except ValueError:
        return []
    parts = [name.partition(":") for _, name in terms]
    return [rest for kind, _, rest in parts if kind in ("reward-model", "entailment") and rest]


def _terms(text: str) -> list[tuple[float, str]]:
    """Returns weights and names of a sum's terms."""
    matches = [*_TERM.finditer(text)]
    if not matches or matches[0].start() > 0:  # It begins with an unknown name.
        unknown = text[: matches[0].start()] if matches else text
        name = re.sub(f"^{_WEIGHT}", "", unknown, flags=re.I).strip()
        raise ValueError(names.unknown("reward", name, KINDS, show_all=True))
    ends = [*(match.start() for match in matches[1:]), len(text)]
    return [
        (
            float(re.sub(r"[\s*]", "", match["weight"] or "1")),
            text[match.end() : end].strip(),
        )
        for match, end in zip(matches, ends, strict=True)
    ]


def _length(params: types.Params, completion: tokens.Completion, context: Any) -> types.Array:
    del params, context
    return completion.length


def _exact(task: tasks.Task) -> PythonScorer:
    score = task.score
    if score is None:
        raise ValueError(
            f"{task.name} has no rule that judges an answer: name a reward by --reward "
            f"({', '.join(KINDS[1:])})"
        )

    return lambda batch: [*map(score, batch.texts, batch.references)]


def _math(batch: TextBatch) -> Sequence[float]:
    return [*map(final_answers.same_number, batch.texts, batch.references)]


def _format(pattern: str) -> PythonScorer:
    try:
        matches = linear_patterns.whole(pattern)
    except ValueError as error:
        raise ValueError(f"reward format:REGEX: {error}") from error
    return lambda batch: [*map(float, map(matches, batch.texts))]


def _python(path: str) -> PythonScorer:
    module, _, name = path.partition(":")
    try:
        function: UserFunction = getattr(modules.load(module), name)
    except (AttributeError, ValueError) as error:
        raise ValueError(f"reward python:{path}: {error}; expected MODULE:FUNCTION") from error
    if not callable(function):
        raise ValueError(f"reward python:{path} must be a function, got {type(function).__name__}")
    takes_images = _has_parameter(function, "images")

    def scorer(batch: TextBatch) -> Sequence[float] | np.ndarray:
        named = {"images": batch.images} if takes_images else {}
        try:
            return function(batch.prompts, batch.texts, batch.references, **named)
        except (Exception, SystemExit) as error:  # A user's code may raise anything.
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{pathlib.Path(last.filename).name}, line {last.lineno}"
            raise interrupts.Failure(f"reward python:{path} raised {error!r} ({place})") from error

    return scorer


def _has_parameter(function: UserFunction, name: str) -> bool:
    """Returns whether a function declares a parameter of a name; not all in C say so."""
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _entailment(path: str) -> PythonScorer:
    from kullback.lm.entailment import scorers

    model = scorers.load(path)
    return lambda batch: model.log_probability(batch.documents, batch.texts)


def _reward_model(
    path: str,
    policy_tokenizer: Tokenizer,
    num_ids: int,
    storage: gemma_config.Storage,
    mesh: sharding.Mesh | None,
    images: encoded.Images | None,
) -> tokens.Scorer:
    from kullback.experiments.runs import reward_models

    scorer = reward_models.scorer(path, storage=storage, mesh=mesh, images=images)
    model_tokenizer = tokenizer.load(pathlib.Path(path) / "tokenizer")
    if model_tokenizer.fingerprint != policy_tokenizer.fingerprint:
        raise ValueError(
            f"reward-model:{path} reads other tokens than the policy writes; train it from the "
            "policy's own supervised start"
        )
    num_rows = scorer.params["decoder"]["embedding"].shape[0]
    if num_rows < num_ids:  # XLA would read the last row in place of one that does not exist.
        raise ValueError(
            f"reward-model:{path} has {num_rows} rows in its table and the policy writes {num_ids} "
            "ids; take one whose table has as many"
        )
    return scorer
