"""Driving a run: its loop is advanced; evaluations, rows and checkpoints are made when due."""

import dataclasses
import errno
import math
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kullback.core import files, loops, posts, processes
from kullback.experiments import interrupts, progress
from kullback.experiments.runs import plans, run_folder
from kullback.experiments.runs.record import Record, Silent
from kullback.experiments.runs.saver import Saver
from kullback.experiments.runs.work import Work

Callback = Callable[[Mapping[str, Any]], None]  # Receives each row of metrics.csv.

DRAW_SECONDS = 60.0  # Between two drawings of the learning curve.
# Keys of a checkpoint's notes. SINCE: the step at which an interval began whose evaluation was
# abandoned; a run that goes on begins with that evaluation. BEST: the highest score so far; a
# higher one is saved at once.
SINCE = "since"
BEST = "best_evaluation"


class Assessment(NamedTuple):
    """The results of evaluating the policy at one step; empty if none was due."""

    scores: np.ndarray | None = None  # Mean return by seed, [K].
    num_cut: int = 0  # Episodes that reached the limit of steps.
    measured: Mapping[str, float] = {}  # Values of the work's own columns.
    texts: Sequence[Mapping[str, Any]] = ()  # For a reader.


class Due(NamedTuple):
    """Whether a row, a checkpoint or an evaluation is due at a step, and if it is the last."""

    log: bool
    save: bool
    evaluate: bool
    finished: bool


class _Clock:
    """The seconds that a run has taken, over all its sessions, and its speed."""

    def __init__(self, wall: float, steps: int):
        self._wall, self._steps = wall, steps
        self._since = self.drawn = time.monotonic()

    def wall(self) -> float:
        """Returns the run's seconds by now."""
        return self._wall + time.monotonic() - self._since

    def lap(self, steps: int) -> dict[str, float]:
        """Returns two columns of a row: the speed since the last row, and all seconds."""
        now = time.monotonic()
        speed = (steps - self._steps) / max(now - self._since, 1e-9)
        self._wall += now - self._since
        self._since, self._steps = now, steps
        return {"steps_per_second": speed, "wall_seconds": self._wall}


@dataclasses.dataclass(kw_only=True)
class Drive:
    """A loop and all that it is driven with, to the plan's steps or until it is interrupted."""

    loop: loops.Loop
    saver: Saver
    folder: run_folder.RunFolder
    home: pathlib.Path  # The folder that a user resumes: `folder`, or the one around it.
    plan: plans.Plan
    work: Work
    record: Record | Silent
    signals: interrupts.Interrupts
    callback: Callback | None
    quiet: bool
    saved_at: int = 0  # Steps of the newest checkpoint.

    def run(self, state: Any, notes: dict[str, Any]) -> None:
        """Goes on from a state and the notes of its checkpoint.

        Raises:
          interrupts.Interrupted: after a signal, once all is saved.
          interrupts.Failure: if the user's own code fails, once all is saved.
          ArithmeticError: if the loss or a parameter stops being finite.
        """
        steps = self.loop.steps(state)
        if not is_unfinished(self.plan, steps, notes):
            # Killed between the last checkpoint and the picture.
            if processes.is_first() and self.folder.is_curve_behind:
                self.folder.draw(title(self.plan), self.work.axes)
            self._finish(state)
            if processes.is_first():
                path = self.folder.path
                print(f"{path} is finished: {steps:,} steps; a larger --steps extends it")
            return
        label = f"{self.plan.agent} {self.plan.environment}"
        with progress.Progress(label, steps, self.plan.steps, self.quiet) as bar:
            self.saved_at = steps
            if processes.is_first():
                files.remove(self.folder.diverged_file)
            try:
                state = self._to_the_end(state, notes, bar)
            except ArithmeticError as error:
                if processes.is_first():
                    self.folder.write_diverged(str(error))
                raise
            except OSError as error:  # The disk is full, or gone, or not ours.
                reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
                then = "when there is room again" if is_full(error) else "when that is mended"
                raise interrupts.Failure(
                    f"{reason}; what was saved by step {self.saved_at:,} stays: {then}, go on "
                    f"with: kullback train --resume {self.home}"
                ) from error
        self._finish(state)

    def _to_the_end(self, state: Any, notes: dict[str, Any], bar: progress.Progress) -> Any:
        """Advances the loop; evaluates, logs and saves whenever that is due."""
        plan, steps = self.plan, self.loop.steps(state)
        clock = _Clock(float(notes.get("wall_seconds", 0.0)), steps)
        since, stop = notes.pop(SINCE, None), None
        while stop is None and (steps < plan.steps or since is not None):
            begun = steps if since is None else since
            if since is None:
                try:
                    state = self._advance(state, min(*_next(plan, begun).values(), plan.steps))
                except loops.Abandoned as abandoned:
                    state, stop = abandoned.state, abandoned.__cause__
            since, steps = None, self.loop.steps(state)
            due, assessment, score = _due(plan, begun, steps), Assessment(), None
            if stop is None and (due.evaluate or (due.finished and self.work.has_texts)):
                try:
                    with self.signals.at_once():
                        assessment = self._assess(state, steps, due.evaluate)
                except (Exception, KeyboardInterrupt) as error:  # The state is unchanged.
                    notes[SINCE], stop = begun, processes.shared(error)
            if stop is None:
                self._note(assessment, steps, notes, bar)
                if assessment.scores is not None or due.log:
                    state = self._log(state, assessment, notes, clock.lap(steps), bar)
                    score = _score(plan, assessment, notes)
                bar.update(steps, *shown(notes, self.work.axes.instead))
                received = processes.agreed(self.signals.received)
                if received and not due.finished:
                    stop = interrupts.Interrupted(number=received)
            is_best = bool(
                plan.eval_every and score is not None and score > notes.get(BEST, -math.inf)
            )
            if is_best:
                notes[BEST] = score
            if stop is not None or due.save or is_best:
                notes["wall_seconds"] = clock.wall()
                self.saver.save(state, score, notes, self.record.marks())
                self.saved_at = steps
                self._draw(clock, now=stop is not None or due.finished)
        if stop is not None:
            raise processes.share(self._saved(stop, steps))
        return state

    def _advance(self, state: Any, until: int) -> Any:
        try:
            state = self.loop.advance(state, until)
        except posts.Lost as error:
            raise interrupts.Failure(
                f"{error}; what was saved by step {self.saved_at:,} stays: go on with: "
                f"kullback train --resume {self.home}"
            ) from error
        if not np.all(np.isfinite(np.asarray(state.metrics.learner["loss"]))):
            raise ArithmeticError(
                f"the loss is not finite at step {self.loop.steps(state):,}; the last good "
                f"checkpoint, step {self.saved_at:,}, is kept in {self.folder.checkpoints}"
            )
        return state

    def _assess(self, state: Any, steps: int, is_evaluated: bool) -> Assessment:
        """Evaluates the policy; changes nothing of the run."""
        assessment = Assessment()
        if is_evaluated:
            episodes = self.loop.evaluate(state, self.plan.eval_episodes)
            assessment = assessment._replace(
                scores=episodes.returns.mean(axis=1),
                num_cut=episodes.num_cut,
                measured=self.work.measures(state.learner, steps),
            )
        return assessment._replace(texts=self.work.texts(state.learner, steps))

    def _note(
        self, assessment: Assessment, steps: int, notes: dict[str, Any], bar: progress.Progress
    ) -> None:
        """Keeps an assessment in the notes, and prints its warnings."""
        if assessment.scores is not None:
            notes["evaluation"] = float(assessment.scores.mean())
            notes.pop("evaluation_cut", None)
        if assessment.num_cut and assessment.scores is not None:
            num_cut = notes["evaluation_cut"] = assessment.num_cut
            count = self.plan.eval_episodes * len(assessment.scores)
            bar.say(
                f"{num_cut} of {count} episodes of the evaluation at step {steps:,} were cut at "
                "its limit of steps; --eval-max-steps raises that of another run"
            )
        if assessment.measured:
            warning = self.work.remember(notes, steps, assessment.measured)
            if warning is not None:
                bar.say(f"warning: {warning}")
        if assessment.texts:
            self.record.write_texts(steps, self.loop.seeds[0], assessment.texts)

    def _log(
        self,
        state: Any,
        assessment: Assessment,
        notes: dict[str, Any],
        lap: Mapping[str, float],
        bar: progress.Progress,
    ) -> Any:
        """Writes a row for each seed; returns the state with its sums emptied."""
        state, rows = self.loop.rows(state)
        steps = self.loop.steps(state)
        scores = assessment.scores
        evaluations = [math.nan] * len(rows) if scores is None else scores.tolist()
        for k, row in enumerate(rows):
            watched, warning = self.work.watch(notes, steps, row)
            if warning is not None:
                bar.say(f"warning: {warning}")
            line = {
                "seed": self.loop.seeds[k],
                "steps": steps,
                "frames": steps * self.work.spec.frames_per_step,
                **row,
                **watched,
                "evaluation": evaluations[k],
                **{name: assessment.measured.get(name, math.nan) for name in self.work.columns},
                **lap,
            }
            self.record.write(line)
            if self.callback is not None:
                self.callback(line)
        for name in ("recent_return", "loss"):
            notes[name] = float(np.mean([row[name] for row in rows]))
        return state

    def _draw(self, clock: _Clock, *, now: bool) -> None:
        """Draws the learning curve, unless it has just been drawn and is not wanted now."""
        if not processes.is_first():
            return
        if now or time.monotonic() - clock.drawn > DRAW_SECONDS:
            self.folder.draw(title(self.plan), self.work.axes)
            clock.drawn = time.monotonic()

    def _saved(self, stop: BaseException, steps: int) -> BaseException:
        """Returns the exception that ends a run, with where it was saved; a bug's unchanged."""
        how = f"saved at step {steps:,}; go on with: kullback train --resume {self.home}"
        if isinstance(stop, KeyboardInterrupt):
            return interrupts.as_interrupted(stop, how)
        if isinstance(stop, interrupts.Failure | ValueError | posts.Lost):
            failure = interrupts.Failure(f"{stop}; {how}")
            failure.__cause__ = stop
            return failure
        return stop

    def _finish(self, state: Any) -> None:
        """Makes the files that this kind of run leaves behind once it is over."""
        try:
            with self.signals.at_once():
                self.work.finish(self.folder.path, state.learner)
        except KeyboardInterrupt as error:
            left = "all steps are done and saved; what a run leaves at its end is made by"
            again = f"{left}: kullback train --resume {self.home}"
            raise interrupts.as_interrupted(error, again) from error


def is_full(error: OSError) -> bool:
    """Returns whether a write failed for lack of room; Orbax's errors have no number."""
    return error.errno in (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_unfinished(plan: plans.Plan, steps: int, notes: Mapping[str, Any]) -> bool:
    """Returns whether a run at some step, with the notes of its checkpoint, has work to do."""
    return steps < plan.steps or SINCE in notes


def _next(plan: plans.Plan, steps: int) -> dict[str, int]:
    """Returns the next step after `steps` at which each thing is due; never for a period of 0."""
    every = {
        "log": plan.log_every,
        "save": plan.checkpoint_every,
        "evaluate": plan.eval_every,
    }
    return {
        name: (steps // period + 1) * period if period else sys.maxsize
        for name, period in every.items()
    }


def _due(plan: plans.Plan, begun: int, steps: int) -> Due:
    """Returns what is due at a step, counted from the one where an iteration began."""
    finished = steps >= plan.steps
    is_due = {name: steps >= step for name, step in _next(plan, begun).items()}
    return Due(
        log=is_due["log"] or finished,
        save=is_due["save"] or finished,
        evaluate=is_due["evaluate"] or (finished and plan.eval_every > 0),
        finished=finished,
    )


def _score(plan: plans.Plan, assessment: Assessment, notes: Mapping[str, float]) -> float | None:
    """Returns the score of this step; None between two evaluations."""
    if plan.eval_every and assessment.scores is None:
        return None
    value = notes["evaluation" if plan.eval_every else "recent_return"]
    return value if math.isfinite(value) else None


def shown(notes: Mapping[str, float], instead: str) -> tuple[float | None, str]:
    """Returns the mean return for the progress bar, or the column `instead`, and its name."""
    value = notes.get("recent_return")
    if instead and (value is None or math.isnan(value)):
        return notes.get(instead), instead
    return value, "return"


def title(plan: plans.Plan) -> str:
    """Returns the title of a learning curve."""
    return f"{plan.agent} on {plan.environment}"
