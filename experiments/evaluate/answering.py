"""Sampled and greedy answers to questions, in a folder that keeps what is done.

What is sampled depends on the seed, the questions and the settings alone, a batch of questions at a
time, so that work that was interrupted goes on as if it had not been.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from kullback.core import checked_lines, files, finite, json_files, types
from kullback.core.sampling import Sampling
from kullback.experiments import interrupts
from kullback.experiments.evaluate.subjects import Subject
from kullback.experiments.runs import episodes, owner, rewards
from kullback.lm import batches, data, evaluation, final_answers, tasks

SETTINGS, SAMPLES = "settings.json", "samples.jsonl"

GREEDY = Sampling(temperature=0)
_NO_REWARD = rewards.Reward("", (), ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that decide what is sampled."""

    samples: int = 32  # k, of each question; the paper's are 8 and 32.
    # Of a sample's tokens; the paper does not give its own.
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    seed: int = 0
    batch_size: int = 8  # Questions that are answered side by side.
    thought: str = ""  # Text after a prompt that is to be answered with a chain of thought.
    direct: str = ""  # Text after a prompt that is to be answered without one, greedily.
    reward: str = ""  # Of samples, see rewards.py; "" is none.


class Answer(NamedTuple):
    """One answer to a question."""

    text: str
    tokens: int  # With the stop token.
    nats: float  # Minus the log-probability, as it was drawn.
    reward: float = 0.0


class Responses(NamedTuple):
    """A question, with its answers."""

    prompt: str
    reference: str
    greedy: Answer
    samples: list[Answer]  # k.


class Questions(NamedTuple):
    """A set of questions with references."""

    name: str
    task: tasks.Task
    examples: list[data.Example]
    notices: list[str]

    @property
    def label(self) -> str:
        """The SHA-256 of prompts and references, by which samples are known."""
        ids = [[example.prompt, example.completion] for example in self.examples]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()


def questions(name: str, subject: Subject, count: int | None = None, *, skip: int = 0) -> Questions:
    """Returns the questions of a name, as a model reads them.

    Args:
      name: a JSONL file, whose records are all questions, or a task, whose held-out ones are.
      subject: the model, with its lengths.
      count: at most so many; None is all.
      skip: leaves out the first.

    Raises:
      ValueError: for a file that cannot be read, or no question.
    """
    tokenizer = subject.checkpoint.tokenizer
    if name.startswith("tokens/"):
        task = dataclasses.replace(subject, task_name=name).task
        examples, report = task.examples("test", tokenizer, subject.limits)
    else:
        task, config = tasks.jsonl(name), subject.checkpoint.config
        limits = data.Limits(max_length=config.context_length, vocab_size=config.vocab_size)
        examples, report = data.read_jsonl(name, tokenizer, limits)
    chosen = examples[skip : None if count is None else skip + count]
    if not chosen:
        raise ValueError(f"{name} has {len(examples)} questions, and none beyond the first {skip}")
    return Questions(name, task, chosen, [*data.notices({"questions": report})])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Respondent:
    """A model that answers one set of questions."""

    subject: Subject
    settings: Settings
    questions: Questions

    @functools.cached_property
    def evaluator(self) -> evaluation.Evaluator:
        """The evaluator of the questions, with prompts as long as the longest.

        Raises:
          ValueError: if a prompt and an answer exceed the model's context.
        """
        checkpoint = self.subject.checkpoint
        prompts = (x.prompt for n in self.suffixes for x in self.examples(n))
        width = batches.width(max(map(len, prompts)))
        learning = dataclasses.replace(self.subject.learning, max_prompt_length=width)
        if learning.width > checkpoint.config.context_length:
            raise ValueError(
                f"the longest prompt of {self.questions.name}, padded to {width} tokens, and "
                f"{learning.max_new_tokens} new ones exceed the model's context of "
                f"{checkpoint.config.context_length}; lower --max-new-tokens"
            )
        return evaluation.Evaluator(
            *(checkpoint.model, checkpoint.tokenizer, self.questions.task),
            *(self.questions.examples, learning, checkpoint.divergence),
        )

    @functools.cached_property
    def suffixes(self) -> dict[str, tuple[int, ...]]:
        """Token ids that follow a prompt, by the text that they are."""
        encode = self.subject.checkpoint.tokenizer.encode
        return {text: tuple(encode(text)) for text in (self.settings.thought, self.settings.direct)}

    def examples(self, suffix: str) -> list[data.Example]:
        """Returns the questions with a text after their prompts."""
        ids = self.suffixes[suffix] if suffix else ()
        return [x._replace(prompt=(*x.prompt, *ids)) for x in self.questions.examples]

    @functools.cached_property
    def reward(self) -> rewards.Reward:
        """The reward of samples.

        Raises:
          ValueError: as `rewards.parse` does, or for references that it cannot compare with.
        """
        if not self.settings.reward:
            return _NO_REWARD
        evaluator = self.evaluator
        reward = rewards.parse(
            *(self.settings.reward, evaluator.task, evaluator.tokenizer, evaluator.model.num_ids)
        )
        reward.check_references(map(evaluator.target, evaluator.test))
        return reward

    @functools.cached_property
    def _actors(self) -> tuple[episodes.Actor, episodes.Actor]:
        """The actors that write samples, and greedy answers."""
        evaluator, settings = self.evaluator, self.settings
        sampler = evaluator.sampler(settings.sampling, settings.samples)
        greedy = evaluator.sampler(GREEDY)
        return (
            episodes.Actor(sampler=sampler, evaluator=evaluator, reward=self.reward),
            episodes.Actor(sampler=greedy, evaluator=evaluator, reward=_NO_REWARD),
        )

    def check_references(self, kind: final_answers.Kind) -> None:
        """Raises ValueError for a reference that is no answer of the kind."""
        for number, example in enumerate(self.questions.examples, 1):
            reference = self.evaluator.target(example)
            if final_answers.READERS[kind](reference) is None:
                raise ValueError(
                    f"{self.questions.name}: the reference of question {number} has no {kind}: "
                    f"{reference!r:.60}; --answers text compares texts"
                )

    def ask(self, part: int) -> list[Responses]:
        """Returns the answers to the questions of a part, of `batch_size` but for the last."""
        size, examples = self.settings.batch_size, self.questions.examples
        numbers = [*range(part * size, min((part + 1) * size, len(examples)))]
        filled = [*numbers, *[numbers[-1]] * (size - len(numbers))]  # One program for all parts.
        key = jax.random.fold_in(jax.random.key(self.settings.seed), part)
        acting = {"params": self.subject.checkpoint.params}
        suffixes = (self.settings.thought, self.settings.direct)
        written = [
            write(actor, acting, [self.examples(suffix)[n] for n in filled], key)
            for actor, suffix in zip(self._actors, suffixes, strict=True)
        ]
        samples, greedy = written
        k = self.settings.samples
        return [
            Responses(
                self.evaluator.tokenizer.decode(examples[n].prompt),
                self.evaluator.target(examples[n]),
                greedy[row],
                samples[row * k : (row + 1) * k],
            )
            for row, n in enumerate(numbers)
        ]


def write(
    actor: episodes.Actor, acting: Any, examples: list[data.Example], key: types.Key
) -> list[Answer]:
    """Returns the answers of an actor to some prompts, those of a prompt one after another.

    Raises:
      ValueError: for log-probabilities that are not finite.
      interrupts.Failure: if a server gave no reward for one of them.
    """
    written = actor.episodes(acting, examples, key)
    finite.require(written.log_probability, acting["params"], "log-probabilities of answers")
    if written.weights is not None and not np.all(written.weights):
        raise interrupts.Failure(
            f"reward {actor.reward.name!r}: a server gave no reward for some texts; the same "
            "command asks again"
        )
    texts = actor.evaluator.answer_texts(written.sequences)
    nats = -np.asarray(written.log_probability, np.float64).sum(1)
    lengths = np.asarray(written.sequences.is_answer).sum(1)
    rewards = np.asarray(written.rewards, np.float64)
    columns = texts, lengths.tolist(), nats.tolist(), rewards.tolist()
    return [Answer(*row) for row in zip(*columns, strict=True)]


def default_folder(model: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the folder of a model's answers, the same each time: answers/MODEL-QUESTIONS."""
    stem = name.replace("/", "-").replace(":", "-") if name.startswith("tokens/") else name
    return pathlib.Path("answers") / f"{model.stem}-{pathlib.Path(stem).stem}"


def collect(
    respondents: Sequence[Respondent],
    folder: pathlib.Path,
    *,
    on_part: Callable[[str, int, int], Any] = lambda name, done, total: None,
) -> list[list[Responses]]:
    """Returns the answers of each respondent to its questions, what is done from the folder.

    Args:
      respondents: of one model and one setting.
      folder: a new one, or one where the same work was begun.
      on_part: receives a set's name, and how many of its questions are answered.

    Raises:
      ValueError: for a folder with something else, or with work of other settings; for a damaged
        file in it.
      interrupts.Interrupted: on a signal; the message says how far the work is.
    """
    identity = _identity(respondents[0])
    files.check_writable(folder / SAMPLES)
    begun = (folder / SETTINGS).is_file()
    if begun:
        _compare(folder, identity)
    else:
        files.check_new_folder(folder)
    # What cannot be answered leaves nothing behind.
    first = {} if begun else {0: respondents[0].ask(0)}
    folder.mkdir(parents=True, exist_ok=True)
    with owner.held(folder, "used"):
        if not begun:
            files.atomic_write_text(folder / SETTINGS, json.dumps(identity, indent=2) + "\n")
        known = {
            (record.get("questions", str), record.get("number", int)): _responses(record)
            for record in checked_lines.begin(folder / SAMPLES)
        }
        try:
            return [
                _answered(r, folder, known, first if n == 0 else {}, on_part)
                for n, r in enumerate(respondents)
            ]
        except KeyboardInterrupt as error:
            message = f"interrupted: {folder} keeps what is done, and the same command goes on"
            raise interrupts.as_interrupted(error, message) from error


def _answered(
    respondent: Respondent,
    folder: pathlib.Path,
    known: dict[tuple[str, int], Responses],
    parts: dict[int, list[Responses]],
    on_part: Callable[[str, int, int], Any],
) -> list[Responses]:
    label, total = respondent.questions.label, len(respondent.questions.examples)
    size = respondent.settings.batch_size
    for part in range(-(-total // size)):
        numbers = range(part * size, min((part + 1) * size, total))
        missing = [n for n in numbers if (label, n) not in known]
        if missing:
            written = parts[part] if part in parts else respondent.ask(part)
            known |= {(label, n): written[n - numbers[0]] for n in missing}
            lines = ({"questions": label, "number": n, **_line(known[label, n])} for n in missing)
            checked_lines.append(folder / SAMPLES, lines)
        on_part(respondent.questions.name, numbers[-1] + 1, total)
    return [known[label, n] for n in range(total)]


def _identity(respondent: Respondent) -> dict[str, Any]:
    """Returns what decides the samples, JSON-able, but for the questions themselves."""
    checkpoint = respondent.subject.checkpoint
    return {
        "version": 1,
        "model_sha256": checkpoint.fingerprint,
        "dtype": str(checkpoint.config.dtype),
        "storage": checkpoint.config.storage,
        "max_new_tokens": respondent.subject.learning.max_new_tokens,
        **dataclasses.asdict(respondent.settings),
    }


def _compare(folder: pathlib.Path, identity: dict[str, Any]) -> None:
    recorded = dict(json_files.leaves(json_files.read(folder / SETTINGS).values))
    for key, value in json_files.leaves(json.loads(json.dumps(identity))):
        if recorded.get(key) != value:
            raise ValueError(
                f"{folder / SETTINGS}: {key} was {json_files.shown(recorded.get(key))} and is "
                f"{json_files.shown(value)}: these are other answers; choose another --out"
            )


def _line(one: Responses) -> dict[str, Any]:
    return {
        "prompt": one.prompt,
        "reference": one.reference,
        "greedy": one.greedy._asdict(),
        "samples": [answer._asdict() for answer in one.samples],
    }


def _responses(record: json_files.Record) -> Responses:
    def answer(values: Any) -> Answer:
        return Answer(*(values[name] for name in Answer._fields))

    return Responses(
        record.get("prompt", str),
        record.get("reference", str),
        answer(record.get("greedy", dict)),
        [*map(answer, record.list_of("samples", dict))],
    )
