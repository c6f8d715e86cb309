"""The seeds of a run: together in one program, or in turn in a folder each."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kullback.core import files, processes
from kullback.experiments import interrupts
from kullback.experiments.runs import (
    driving,
    kinds,
    owner,
    plans,
    record,
    run_folder,
    unchanged,
)
from kullback.experiments.runs.driving import Callback
from kullback.experiments.runs.saver import Saver
from kullback.experiments.runs.work import Work


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeds:
    """All seeds of a run in its folder, and where their progress goes."""

    recipe: kinds.Recipe
    folder: run_folder.RunFolder
    callback: Callback | None
    quiet: bool
    empty_replay: bool = False
    # Writes config.json of a run that goes on, once what it has saved is read: a refusal before
    # leaves it as it was.
    accept: Callable[[], None] = lambda: None

    @property
    def plan(self) -> plans.Plan:
        """The plan of all seeds."""
        return self.recipe.named.plan

    def run(self, work: Work, close: Callable[[], None]) -> None:
        """Runs all seeds, together in one program, or in turn in a sub-folder each.

        `close` closes `work` early if each seed builds its own.
        """
        plan, folder = self.plan, self.folder
        for note in () if self.quiet else work.notes():
            print(note)
        if work.seeds_together or plan.num_seeds == 1:
            self._drive(work, folder, plan, plan.seeds, self.empty_replay, self.accept)
            return
        close()
        parts = []
        for seed in plan.seeds:
            self._check(seed)
        self.accept()
        config = folder.config()
        for seed in plan.seeds:
            part = self._part(seed)
            part.path.mkdir(exist_ok=True)
            with owner.held(part.path):
                single = plan.of_seed(seed)
                part.write_config({**config, "plan": single.to_json()})
                empty_replay = self.empty_replay and record.standing(part, plan.steps) == "saved"
                with self.recipe.built(folder.path) as seed_work:
                    unchanged.check_frozen(plan, seed_work.details(), config)
                    self._drive(seed_work, part, single, (seed,), empty_replay)
            parts.append(part)
            folder.write_rows([row for p in parts for row in p.rows()])
            folder.draw(driving.title(plan), work.axes)

    def _part(self, seed: int) -> run_folder.RunFolder:
        """Returns the folder of one seed of several that run in turn."""
        return run_folder.RunFolder(self.folder.path / f"seed_{seed}")

    def _check(self, seed: int) -> None:
        """Refuses a seed that cannot go on, before those ahead of it have worked for hours."""
        part = self._part(seed)
        if not part.path.is_dir() or record.standing(part, self.plan.steps) != "saved":
            return
        with self.recipe.built(self.folder.path) as work, contextlib.ExitStack() as stack:
            loop = work.loop((seed,), _ignore, self.plan.log_every, contextlib.nullcontext)
            stack.callback(loop.close)
            Saver(part, loop).read(empty_replay=self.empty_replay)

    def _drive(
        self,
        work: Work,
        folder: run_folder.RunFolder,
        plan: plans.Plan,
        seeds: Sequence[int],
        empty_replay: bool,
        accept: Callable[[], None] = lambda: None,
    ) -> None:
        """Runs one loop to the plan's number of steps, or until it is interrupted.

        `folder` and `plan` are the run's, or those of one of its seeds; `accept` is the run's, if
        the folder is.
        """
        is_first = processes.is_first()
        standing = processes.told(lambda: record.standing(folder, plan.steps))
        processes.say_how_to_go_on(f"kullback train --resume {self.folder.path}")
        if standing == "finished":
            if is_first:
                accept()
                print(
                    f"{folder.path} is finished: it has no checkpoints, and its rows are all there"
                )
            return
        signals = interrupts.Interrupts(at_steps=processes.count() > 1)
        with signals, contextlib.ExitStack() as stack:
            with signals.at_once():  # Nothing would be lost yet.
                if is_first:
                    work.keep(folder.path)
                loop = work.loop(
                    seeds,
                    lambda steps, texts: written.write_texts(steps, seeds[0], texts),
                    plan.log_every,
                    signals.at_once,
                )
                stack.callback(loop.close)
                saver = Saver(folder, loop)
                if standing == "saved":
                    state, notes, marks = saver.load(empty_replay=empty_replay)
                    processes.check_equal(np.int64(loop.steps(state)), "the newest checkpoint")
                    if is_first:  # All have read what is changed now.
                        accept()
                    written = record.of(folder, has_texts=work.has_texts)
                    if driving.is_unfinished(plan, loop.steps(state), notes):
                        written.begin(loop.steps(state), marks)
                else:
                    disk = processes.told(saver.require_disk)
                    processes.barrier()
                    if is_first:
                        accept()
                        saver.discard()
                    written = record.of(folder, has_texts=work.has_texts)
                    if not self.quiet:
                        print(f"{folder.path}: checkpoints take at most {files.size(disk)}")
                    state, notes = loop.init(), {}
                    written.begin(0)
                    saver.save(state, None, notes, written.marks())
            driving.Drive(
                loop=loop,
                saver=saver,
                folder=folder,
                home=self.folder.path,
                plan=plan,
                work=work,
                record=written,
                signals=signals,
                callback=self.callback,
                quiet=self.quiet,
            ).run(state, notes)


def _ignore(steps: int, texts: list[dict[str, Any]]) -> None:
    """Receives texts that nobody is to read."""
