"""Checkpoints of a run: the loop's snapshot, and beside it the segments of a large host replay."""

import contextlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kullback.core import checkpoints, loops, replay
from kullback.experiments.runs import record, run_folder

KEPT = 3  # The newest checkpoints; the best one stays beside them.


class Loaded(NamedTuple):
    """What a checkpoint held."""

    state: Any  # Of the loop.
    notes: dict[str, Any]
    marks: record.Marks | None  # None in those of older versions.


class Saver:
    """Saves and restores the state of one loop in one run folder."""

    def __init__(self, folder: run_folder.RunFolder, loop: loops.Loop):
        self._folder, self._loop = folder, loop
        self._segments: list[dict[str, Any]] = []  # Of the replay as it is now, in order.
        self._since: replay.Cursors | None = None  # What they hold.
        self._store = checkpoints.SegmentStore(folder.replay)

    def require_disk(self) -> int:
        """Bytes that the run's checkpoints may take; ValueError if the disk has fewer."""
        template = self._loop.template()
        snapshot = sum(_bytes(leaf) for leaf in jax.tree.leaves(template))
        # Those kept, the best, and the one being written; segments may overlap by one interval.
        beside = self._loop.host_replay.num_bytes if self._loop.host_replay else 0
        needed = (KEPT + 2) * snapshot + int(1.3 * beside)
        checkpoints.require_disk(self._folder.path, needed, "checkpoints")
        return needed

    def save(
        self,
        state: Any,
        score: float | None,
        notes: dict[str, Any],
        marks: record.Marks | None = None,
    ) -> None:
        """Writes a checkpoint.

        Args:
          state: of the loop.
          score: decides which is the best; only of a policy that was judged at this very step.
          notes: come back on loading, and so do
          marks: of the run's record as it is now.

        Raises:
          ArithmeticError: if a parameter is not finite; what was saved before stays.
        """
        step = self._loop.steps(state)
        for leaf in jax.tree.leaves(state.learner.params):
            if not np.all(np.isfinite(np.asarray(leaf, np.float32))):
                raise ArithmeticError(f"a parameter is not finite at step {step}")
        meta: dict[str, Any] = {"score": score, "notes": notes, "segments": []}
        if marks is not None:
            meta[record.META] = marks
        snapshot = self._loop.snapshot(state)
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
        checkpoints.save(self._folder.checkpoints, step, snapshot, meta, keep=KEPT)
        self._store.prune(checkpoints.live_segments(self._folder.checkpoints))

    def read(self, *, empty_replay: bool = False) -> tuple[Any, dict[str, Any]]:
        """Returns the newest checkpoint that is whole: the loop's snapshot, and its meta.

        Segments of the replay are verified, and not loaded.

        Args:
          empty_replay: passes over the segments of the replay, which begins anew.

        Raises:
          FileNotFoundError: if none is whole.
          ValueError: if it is of another shape than the loop's, if all that is damaged is the
            replay, or if there is no replay that could be left out.
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
                self._offer(error)
            raise
        return saved, meta

    def load(self, *, empty_replay: bool = False) -> Loaded:
        """Returns what the newest checkpoint that is whole held; warns of each passed over.

        `empty_replay`, and what is raised, are as for `read`.
        """
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

    def _offer(self, error: Exception) -> None:
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


def _bytes(leaf: Any) -> int:
    itemsize = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
    return int(np.prod(leaf.shape)) * itemsize
