"""A run under way: advances its loop, and evaluates, logs and saves when that is due."""

import dataclasses
import math
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kullback.core import files, loops
from kullback.experiments import interrupts, progress
from kullback.experiments.runs import plans, run_folder
from kullback.experiments.runs import record as records
from kullback.experiments.runs.saver import Saver
from kullback.lm import power_law

Callback = Callable[[Mapping[str, Any]], None]  # Receives each row of metrics.csv.

DRAW_SECONDS = 60.0  # Between two drawings of the learning curve.
# A key of a checkpoint's notes: the step after which what is due was counted, where evaluating was
# abandoned. A run that goes on begins with that evaluation.
SINCE = "since"
BEST = "best_evaluation"  # Likewise: the highest score; a higher one is saved at once.


class Assessment(NamedTuple):
    """What was found out about the policy as it is; None is what was not asked."""

    scores: np.ndarray | None = None  # Mean return of an evaluation, [K].
    num_cut: int = 0  # Episodes of it that reached the limit of steps.
    distance: float | None = None  # To the teacher.
    lines: list[dict[str, Any]] | None = None  # Texts, for a reader.


@dataclasses.dataclass(kw_only=True)
class Drive:
    """What a loop is driven with, to the plan's number of steps or until it is interrupted."""

    loop: loops.Loop
    saver: Saver
    folder: run_folder.RunFolder
    home: pathlib.Path  # What a user goes on with.
    plan: plans.Plan
    environment: Any  # Or the setup of a language model.
    record: records.Record
    heard: interrupts.Interrupts
    callback: Callback | None
    quiet: bool
    saved_at: int = 0  # Steps of the newest checkpoint.

    def run(self, state: Any, notes: dict[str, Any]) -> None:
        """Goes on from a state and the notes of its checkpoint.

        Raises:
          interrupts.Interrupted: after a signal, and after all was saved.
          interrupts.Failure: for what the caller handed over and failed, likewise.
          ArithmeticError: if the loss or a parameter stops being finite.
        """
        steps = self.loop.steps(state)
        if not is_unfinished(self.plan, steps, notes):
            self._finish(state)
            print(f"{self.folder.path} is finished: {steps:,} steps; a larger --steps extends it")
            return
        label = f"{self.plan.agent} {self.plan.environment}"
        with progress.Progress(label, steps, self.plan.steps, self.quiet) as bar:
            self.saved_at = steps
            files.remove(self.folder.diverged_file)
            try:
                state = self._to_the_end(state, notes, bar)
            except ArithmeticError as error:
                self.folder.write_diverged(str(error))
                raise
            except OSError as error:  # A disk that is full, or gone.
                reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
                raise interrupts.Failure(
                    f"{reason}; what was saved by step {self.saved_at:,} stays: when there is room "
                    f"again, go on with: kullback train --resume {self.home}"
                ) from error
        self._finish(state)

    def _to_the_end(
        self,
        state: Any,
        notes: dict[str, Any],
        bar: progress.Progress,
    ) -> Any:
        loop, plan = self.loop, self.plan
        steps = loop.steps(state)
        wall = float(notes.get("wall_seconds", 0.0))
        drawn = clock = time.monotonic()
        logged_at = steps
        since, stop = notes.pop(SINCE, None), None
        while stop is None and (steps < plan.steps or since is not None):
            begun, since = steps if since is None else since, None
            due = {
                name: _next(begun, every)
                for name, every in (
                    ("log", plan.log_every),
                    ("save", plan.checkpoint_every),
                    ("evaluate", plan.eval_every),
                )
            }
            if begun == steps:
                try:
                    state = loop.advance(state, min(*due.values(), plan.steps))
                except loops.Abandoned as abandoned:
                    state, stop = abandoned.state, abandoned.__cause__
                steps = loop.steps(state)
                if not np.all(np.isfinite(np.asarray(state.metrics.learner["loss"]))):
                    raise ArithmeticError(
                        f"the loss is not finite at step {steps:,}; the last good checkpoint, "
                        f"step {self.saved_at:,}, is kept in {self.folder.checkpoints}"
                    )
            finished = steps >= plan.steps
            is_evaluated = steps >= due["evaluate"] or bool(finished and plan.eval_every)
            found = Assessment()
            score = None  # Of this very step: a checkpoint between two evaluations has none.
            if stop is None and (is_evaluated or (finished and plan.is_language)):
                try:
                    with self.heard.at_once():
                        found = self._assess(state, steps, is_evaluated)
                except (Exception, KeyboardInterrupt) as error:  # It has changed nothing.
                    notes[SINCE], stop = begun, error
            if stop is None:
                self._note(found, steps, notes, bar)
                if found.scores is not None or steps >= due["log"] or finished:
                    state, rows = loop.rows(state)
                    now = time.monotonic()
                    wall += now - clock
                    speed, clock = (steps - logged_at) / max(now - clock, 1e-9), now
                    logged_at = steps
                    for k, row in enumerate(rows):
                        self._write(steps, k, row, found, speed, wall)
                    notes["recent_return"] = float(np.mean([row["recent_return"] for row in rows]))
                    notes["loss"] = float(np.mean([row["loss"] for row in rows]))
                    score = notes["recent_return"]
                if plan.eval_every:
                    score = None if found.scores is None else notes["evaluation"]
                bar.update(steps, *_shown(notes, plan.is_language))
                if self.heard.asked and not finished:
                    stop = interrupts.Interrupted(number=self.heard.asked)
            score = _finite(score)
            is_best = (
                bool(plan.eval_every) and score is not None and score > notes.get(BEST, -math.inf)
            )
            if is_best:
                notes[BEST] = score
            if stop is not None or steps >= due["save"] or finished or is_best:
                notes["wall_seconds"] = wall + time.monotonic() - clock
                self.saver.save(state, score, notes, self.record.marks())
                self.saved_at = steps
                if stop is not None or finished or time.monotonic() - drawn > DRAW_SECONDS:
                    self.folder.draw(title(plan), of_language=plan.is_language)
                    drawn = time.monotonic()
        if stop is not None:
            raise self._saved(stop, steps)
        return state

    def _assess(self, state: Any, steps: int, is_evaluated: bool) -> Assessment:
        """Evaluates the policy; changes nothing of the run."""
        scores = distance = lines = None
        num_cut = 0
        if is_evaluated:
            episodes = self.loop.evaluate(state, self.plan.eval_episodes)
            scores, num_cut = episodes.returns.mean(axis=1), episodes.num_cut
            if self.plan.teacher:
                distance = self.environment.distance(state.learner, steps)
        if self.plan.is_language:
            lines = self.environment.texts(state.learner, steps)
        return Assessment(scores, num_cut, distance, lines)

    def _note(
        self, found: Assessment, steps: int, notes: dict[str, Any], bar: progress.Progress
    ) -> None:
        """Keeps what an assessment found, and says what a user should hear of it."""
        if found.scores is not None:
            notes["evaluation"] = float(found.scores.mean())
            notes.pop("evaluation_cut", None)
        if found.num_cut and found.scores is not None:
            notes["evaluation_cut"] = found.num_cut
            count = self.plan.eval_episodes * len(found.scores)
            bar.say(
                f"{found.num_cut} of {count} episodes of the evaluation at step {steps:,} were "
                "cut at its limit of steps; --eval-max-steps raises that of another run"
            )
        if found.distance is not None:
            notes.setdefault("distances", []).append([steps, found.distance])
            text = _departure(notes["distances"])
            if text and not notes.get("has_departed"):
                notes["has_departed"] = True
                bar.say(f"warning: {text}")
        if found.lines is not None:
            self.record.write_texts(steps, self.loop.seeds[0], found.lines)

    def _write(
        self,
        steps: int,
        k: int,
        row: Mapping[str, float],
        found: Assessment,
        speed: float,
        wall: float,
    ) -> None:
        """Writes the row of the loop's seed k."""
        line = {
            "seed": self.loop.seeds[k],
            "steps": steps,
            "frames": steps * self.environment.spec.frames_per_step,
            **row,
            "evaluation": float("nan") if found.scores is None else float(found.scores[k]),
            **_of_teacher(self.plan, found.distance),
            "steps_per_second": speed,
            "wall_seconds": wall,
        }
        self.record.write(line)
        if self.callback is not None:
            self.callback(line)

    def _saved(self, stop: BaseException, steps: int) -> BaseException:
        """Returns what ended a run, with where it was saved; a fault of ours as it is."""
        how = f"saved at step {steps:,}; go on with: kullback train --resume {self.home}"
        if isinstance(stop, KeyboardInterrupt):
            return interrupts.as_interrupted(stop, how)
        if isinstance(stop, interrupts.Failure | ValueError):
            failure = interrupts.Failure(f"{stop}; {how}")
            failure.__cause__ = stop
            return failure
        return stop

    def _finish(self, state: Any) -> None:
        """Makes what a kind of run leaves behind once it is over, if it does."""
        finish = getattr(self.environment, "finish", None)
        if finish is None:
            return
        try:
            with self.heard.at_once():
                finish(self.folder.path, state.learner)
        except KeyboardInterrupt as error:
            left = "all steps are done and saved; what a run leaves at its end is made by"
            again = f"{left}: kullback train --resume {self.home}"
            raise interrupts.as_interrupted(error, again) from error


def is_unfinished(plan: plans.Plan, steps: int, notes: Mapping[str, Any]) -> bool:
    """Returns whether a run at some step, with the notes of its checkpoint, has work to do."""
    return steps < plan.steps or SINCE in notes


def _of_teacher(plan: plans.Plan, distance: float | None) -> dict[str, float]:
    """A column of its own, in runs that have a teacher."""
    if not plan.teacher:
        return {}
    return {"teacher_distance": float("nan") if distance is None else distance}


def _departure(distances: Sequence[Sequence[float]]) -> str | None:
    """What is to be said where the distance to a teacher leaves its power law."""
    return power_law.warning(*zip(*distances, strict=True))


def _shown(notes: Mapping[str, float], of_language: bool) -> tuple[float | None, str]:
    """The number that matters and its name: where nothing has a return, the loss."""
    value = notes.get("recent_return")
    if of_language and (value is None or math.isnan(value)):
        return notes.get("loss"), "loss"
    return value, "return"


def _next(steps: int, every: int) -> int:
    """The next multiple of `every` after `steps`; never for 0."""
    return (steps // every + 1) * every if every else sys.maxsize


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def title(plan: plans.Plan) -> str:
    """Returns what a learning curve is headed by."""
    return f"{plan.agent} on {plan.environment}"
