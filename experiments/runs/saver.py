"""Checkpoints of a run: the loop's snapshot, and the segments of a large host replay beside it."""

import contextlib
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from kullback.core import checkpoints, loops, processes, replay, trees
from kullback.experiments.runs import record, run_folder

# The newest checkpoints stay: this many, or as many as take no more bytes, and one at least. The
# best one stays, too.
KEPT, KEPT_BYTES = 3, 8 * 10**9


class Loaded(NamedTuple):
    """The contents of a checkpoint."""

    state: Any  # The loop's.
    notes: dict[str, Any]
    marks: record.Marks | None  # None in checkpoints of older versions.


def kept(num_bytes: int) -> int:
    """Returns how many of the newest checkpoints stay, of `num_bytes` each."""
    return max(1, min(KEPT, KEPT_BYTES // max(num_bytes, 1)))


class Saver:
    """Saves and restores the state of one loop in the folder of one run."""

    def __init__(self, folder: run_folder.RunFolder, loop: loops.Loop):
        self._folder, self._loop = folder, loop
        self._segments: list[dict[str, Any]] = []  # The current replay's, in order.
        self._since: replay.Cursors | None = None  # Where the newest segment ends.
        self._store = checkpoints.SegmentStore(folder.replay)

    @functools.cached_property
    def _snapshot_bytes(self) -> int:
        """Bytes of a checkpoint's arrays."""
        return trees.num_bytes(self._loop.template())

    def require_disk(self) -> int:
        """Returns the bytes that checkpoints may take; raises ValueError if the disk has fewer."""
        snapshot = self._snapshot_bytes
        # Besides those kept, the best and the one being written; segments overlap by an interval.
        segments = self._loop.host_replay.num_bytes if self._loop.host_replay else 0
        needed = (kept(snapshot) + 2) * snapshot + int(1.3 * segments)
        checkpoints.require_disk(self._folder.path, needed, "checkpoints")
        return needed

    def discard(self) -> None:
        """Deletes what is left of a first checkpoint that was never whole."""
        self._store.prune([])

    def save(
        self,
        state: Any,
        score: float | None,
        notes: dict[str, Any],
        marks: record.Marks | None = None,
    ) -> None:
        """Writes a checkpoint; of several processes the first does, of the arrays of all.

        Args:
          state: of the loop.
          score: decides which checkpoint is the best; None unless evaluated at this step.
          notes: are returned by `load`.
          marks: of the run's record as it is now; likewise.

        Raises:
          ArithmeticError: if a parameter is not finite; older checkpoints stay.
        """
        snapshot = processes.gathered(self._loop.snapshot(state))
        processes.told(lambda: self._write(state, snapshot, score, notes, marks))

    def _write(
        self,
        state: Any,
        snapshot: Any,
        score: float | None,
        notes: dict[str, Any],
        marks: record.Marks | None,
    ) -> None:
        step = self._loop.steps(state)
        for leaf in jax.tree.leaves(snapshot.learner.params):
            if not np.all(np.isfinite(np.asarray(leaf, np.float32))):
                raise ArithmeticError(f"a parameter is not finite at step {step}")
        meta: dict[str, Any] = {"score": score, "notes": notes, "segments": []}
        if marks is not None:
            meta[record.META] = marks
        if (host_replay := self._loop.host_replay) is not None:
            at = host_replay.cursors(snapshot)
            span = {"end": np.asarray(at.cursor).tolist()}
            self._segments.append(self._store.append(host_replay.span(state, self._since), span))
            self._since = at
            live_after = host_replay.live_after(state)
            self._segments = [
                entry
                for entry in self._segments
                if np.any(np.array(entry["span"]["end"]) > live_after)
            ]
            meta["segments"] = self._segments
        checkpoints.save(
            self._folder.checkpoints, step, snapshot, meta, keep=kept(self._snapshot_bytes)
        )
        self._store.prune(checkpoints.live_segments(self._folder.checkpoints))

    def read(self, *, empty_replay: bool = False) -> tuple[Any, dict[str, Any]]:
        """Reads the snapshot and the meta of the newest whole checkpoint; warns of damaged ones.

        Segments of the replay are verified, and not loaded.

        Args:
          empty_replay: ignores the segments of the replay, which begins empty.

        Raises:
          FileNotFoundError: if no checkpoint is whole.
          ValueError: if its shapes are not the loop's, if only the replay is damaged, or if there
            is no replay that could be left out.
        """
        if empty_replay and self._loop.host_replay is None:
            raise ValueError(
                f"{self._folder.path} has no replay beside its checkpoints that could be damaged: "
                "leave --empty-replay out"
            )
        folder, template = self._folder.checkpoints, self._loop.template()
        check = _check if empty_replay else self._check
        try:
            saved, meta, _ = checkpoints.restore_latest(folder, template, check=check)
        except FileNotFoundError as error:
            if self._loop.host_replay is not None:
                self._offer_empty_replay(error)
            raise
        return saved, meta

    def load(self, *, empty_replay: bool = False) -> Loaded:
        """Loads the newest whole checkpoint; arguments and errors are those of `read`."""
        saved, meta = self.read(empty_replay=empty_replay)
        if empty_replay:
            state = self._loop.restore(saved, None)
            self._segments, self._since = [], None
        else:
            try:
                state = self._loop.restore(saved, map(self._store.load, meta["segments"]))
            except ValueError as error:
                raise ValueError(f"{self._folder.replay}: {error}") from error
            self._segments = meta["segments"]
            if self._loop.host_replay is not None:
                self._since = self._loop.host_replay.cursors(saved)
        return Loaded(state, meta["notes"], meta.get(record.META))

    def _check(self, meta: dict[str, Any]) -> None:
        _check(meta)
        num_envs = self._loop.host_replay.num_envs if self._loop.host_replay else 0
        for entry in meta["segments"]:
            match entry:
                case {"span": {"end": [*ends]}} if [*map(type, ends)] == [int] * num_envs:
                    continue
            raise checkpoints.CorruptError("a segment of it says no span of the replay")
        self._store.verify(meta["segments"])

    def _offer_empty_replay(self, error: Exception) -> None:
        """Raises ValueError if nothing but the replay is damaged."""
        with contextlib.suppress(FileNotFoundError):
            template = self._loop.template()
            _, _, step = checkpoints.restore_latest(self._folder.checkpoints, template, _check)
            raise ValueError(
                f"{self._folder.replay} is damaged, and all else of step {step:,} is whole: go on "
                "with an empty replay, which is filled again before it is learnt from, by "
                "--empty-replay"
            ) from error


def _check(meta: dict[str, Any]) -> None:
    """Raises CorruptError unless a checkpoint's meta is what `Saver.save` writes."""
    if not (isinstance(meta.get("notes"), dict) and isinstance(meta.get("segments"), list)):
        raise checkpoints.CorruptError("it has no notes or no segments")
