"""Checkpoints of any tree of arrays: written whole or not at all, and checked when read.

`<folder>/<step>/` holds `arrays/` (Orbax), `contents.json` (a description of each leaf, and the
caller's `meta`) and `manifest.json` (size and CRC-32 of each file). Nothing in it is pickled.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import math
import pathlib
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from kullback.core import files, json_files, processes, trees
from kullback.core.files import CorruptError as CorruptError
from kullback.core.files import atomic_write_bytes as atomic_write_bytes
from kullback.core.files import atomic_write_text as atomic_write_text
from kullback.core.files import free_bytes as free_bytes
from kullback.core.files import require_disk as require_disk
from kullback.core.segments import SegmentStore as SegmentStore
from kullback.core.weights import export_params as export_params
from kullback.core.weights import import_params as import_params

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

logger = logging.getLogger(__name__)

CONTENTS = "contents.json"
# Arrays are compressed in chunks and collected in files, which are in memory until written. With
# Orbax's own settings a checkpoint of 1.5 GB took 2.9 GB beside its arrays, with these 0.5.
CHUNK_BYTES, FILE_BYTES = 2**25, 10**8

Meta = dict[str, Any]  # JSON-able; "score" and "segments" have a meaning here.

# A step that is saved again stands beside the first as <step>.1 until that is deleted.
_NAME = re.compile(r"(\d{12,})(?:\.(\d+))?")


@functools.cache
def _orbax() -> "ocp.Checkpointer":
    """Returns the one orbax checkpointer of this process."""
    import orbax.checkpoint as ocp  # Late: it is a fifth of what other commands import.

    # Orbax narrates each save through absl, up to warnings about what we do on purpose, and errors
    # that it raises too. A filter leaves absl's own level, and what others log, alone.
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    # Of writes that fail together one is raised; asyncio tells of the others when it finds them.
    logging.getLogger("asyncio").addFilter(lambda record: "OCDBT" not in record.getMessage())
    sys.unraisablehook = functools.partial(_report, sys.unraisablehook)
    # A save returns when all is written, so arrays need not be copied before.
    # Of several processes each acts for itself: it waits for no other, and writes all that it has.
    alone = ocp.options.MultiprocessingOptions()
    if processes.count() > 1:
        index = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"alone{index}"
        )
    handlers = ocp.type_handlers.create_type_handler_registry(
        (np.ndarray, ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)),
        (jax.Array, ocp.type_handlers.ArrayHandler(primary_host=alone.primary_host)),
    )
    handler = ocp.PyTreeCheckpointHandler(
        type_handler_registry=handlers, multiprocessing_options=alone
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


class _Contents(NamedTuple):
    """The fields of contents.json, checked by type."""

    meta: Meta
    leaves: dict[str, trees.Leaf]
    score: float  # Of the meta; -inf without one.
    segments: list[dict[str, Any]]  # Of the meta.


def _report(report: Callable[[Any], Any], raised: Any) -> None:
    """Reports an error that nobody could catch, unless it only follows from another.

    If one of several writes fails, Orbax closes its event loop and raises. Writes that still run
    then fail on the closed loop, and tensorstore would print each failure.
    """
    if raised.exc_type is not RuntimeError or str(raised.exc_value) != "Event loop is closed":
        report(raised)


@dataclasses.dataclass(frozen=True, order=True)
class _Saved:
    """A checkpoint on disk; ordered from old to new."""

    step: int
    attempt: int
    path: pathlib.Path

    def contents(self) -> _Contents:
        """Reads contents.json, which is compared with its entry in the manifest before.

        Raises:
          CorruptError: if it is not what was written, or holds what cannot be.
        """
        file = self.path / CONTENTS
        data = files.read_listed(self.path, CONTENTS)
        try:
            record = json_files.parse(data, str(file), nan=True)
            meta, leaves = record.record("meta"), record.record("leaves")
            score = meta.get("score", float, None)
            return _Contents(
                meta=dict(meta.items()),
                leaves={name: _leaf(leaves, name) for name, _ in leaves.items()},
                score=-math.inf if score is None or math.isnan(score) else score,
                segments=meta.list_of("segments", dict, []),
            )
        except ValueError as error:
            raise CorruptError(str(error)) from error

    def score(self, damaged: float = -math.inf) -> float:
        """Returns its score, -inf without one, `damaged` where it cannot be read."""
        try:
            return self.contents().score
        except CorruptError:
            return damaged


def _leaf(leaves: json_files.Record, name: str) -> trees.Leaf:
    """Returns the description of a leaf, as `trees.describe` gave it."""
    match leaves.get(name, list):
        case [list(shape), str(dtype), str() | None as impl] if all(
            type(n) is int and n >= 0 for n in shape
        ):
            return trees.Leaf(shape, dtype, impl)
    raise leaves.error(name, "the shape and type of a leaf")


def _saved(folder: files.Path) -> list[_Saved]:
    """Returns the checkpoints from old to new, the newest attempt of each step."""
    matches = [(_NAME.fullmatch(path.name), path) for path in pathlib.Path(folder).glob("[0-9]*")]
    all_saved = sorted(_Saved(int(m[1]), int(m[2] or 0), path) for m, path in matches if m)
    return list({saved.step: saved for saved in all_saved}.values())


def save(folder: files.Path, step: int, state: Any, meta: Meta, *, keep: int = 3) -> pathlib.Path:
    """Writes a checkpoint, prunes old ones, and returns the new one's folder.

    A process killed at any time leaves whole checkpoints, with the new one or without. The last
    `keep` steps are kept and the best: the one with the highest `meta["score"]` (None or NaN is no
    score), the newest of equal ones. No other process may write to `folder`.

    Args:
      folder: where checkpoints stand, one folder a step.
      step: >= 0; the highest is the latest. The same step again replaces the first.
      state: tree of arrays (JAX or NumPy, typed keys too) and Python numbers; None is no leaf.
      meta: JSON-able data beside the arrays.
      keep: >= 1.

    Raises:
      ValueError: for a leaf that is no array of numbers.
      OSError: if it cannot be written, for example to a full disk.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step must be >= 0 and keep >= 1, got {step} and {keep}")
    folder = pathlib.Path(folder)
    named = trees.named_leaves(state)
    leaves = {name: trees.describe(name, leaf) for name, leaf in named.items()}
    contents = json.dumps({"step": step, "meta": meta, "leaves": leaves})
    files.remove_leftovers(folder)
    attempts = [saved.attempt for saved in _saved(folder) if saved.step == step]
    path = folder / (f"{step:012d}" + (f".{attempts[-1] + 1}" if attempts else ""))
    with files.atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / CONTENTS).write_text(contents)
        arrays = {n: trees.to_numpy(leaf) for n, leaf in named.items() if 0 not in leaves[n].shape}
        if arrays:  # Orbax refuses an empty tree, an empty array and a relative path.
            _write(temporary / "arrays", arrays)
        files.write_manifest(temporary)
    _prune(folder, path, keep)
    return path


def _write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    import orbax.checkpoint as ocp

    try:
        save_args = {name: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES) for name in arrays}
        args = ocp.args.PyTreeSave(arrays, save_args, ocdbt_target_data_file_size=FILE_BYTES)
        _orbax().save(path.absolute(), args=args)
    except ValueError as error:  # Shapes and names are right: it is how tensorstore fails to write.
        raise OSError(f"{path} cannot be written: {error}") from error


def _prune(folder: pathlib.Path, new: pathlib.Path, keep: int) -> None:
    saved = _saved(folder)
    best = max(saved, key=lambda x: (x.score(), x.step))
    kept = {new, best.path, *(checkpoint.path for checkpoint in saved[-keep:])}
    for path in folder.glob("[0-9]*"):
        if _NAME.fullmatch(path.name) and path not in kept:
            files.remove(path)


def steps(folder: files.Path) -> list[int]:
    """Returns the steps that have a checkpoint, from old to new, whole or not."""
    return [saved.step for saved in _saved(folder)]


def best_step(folder: files.Path) -> int | None:
    """Returns the step of the highest score, the newest of equal ones; None if none has a score."""
    best = max(_saved(folder), key=lambda x: (x.score(), x.step), default=None)
    return None if best is None or best.score() == -math.inf else best.step


def live_segments(folder: files.Path) -> list[dict[str, Any]]:
    """Returns the segments that checkpoints list in `meta["segments"]`, which must be kept."""
    entries: list[dict[str, Any]] = []
    for saved in _saved(folder):
        try:
            entries += saved.contents().segments
        except CorruptError:  # Then it cannot be restored, and needs nothing.
            continue
    return entries


def newest_meta(folder: files.Path) -> Meta | None:
    """Reads the meta of the newest checkpoint whose own record is whole; None without one."""
    for saved in reversed(_saved(folder)):
        with contextlib.suppress(CorruptError):
            return saved.contents().meta
    return None


def restore(folder: files.Path, step: int, like: Any, *, part: bool = False) -> tuple[Any, Meta]:
    """Restores state and meta of the checkpoint of a step.

    Args:
      folder: where checkpoints stand.
      step: one of `steps(folder)`.
      like: tree of arrays, typed keys, Python numbers or `jax.ShapeDtypeStruct`s that gives
        structure, shapes, dtypes, and for each leaf whether it is NumPy's or JAX's; a struct's
        sharding says where the leaf goes.
      part: as for `restore_latest`.

    Raises:
      FileNotFoundError: if there is no such step.
      CorruptError: (a ValueError) if a file is missing, truncated or changed.
      ValueError: if a leaf differs from `like`.
    """
    for saved in _saved(folder):
        if saved.step == step:
            return _load(saved, like, part=part)
    raise FileNotFoundError(f"{folder} has no checkpoint of step {step}, only {steps(folder)}")


def restore_latest(
    folder: files.Path,
    like: Any,
    check: Callable[[Meta], None] | None = None,
    *,
    part: bool = False,
    best: bool = False,
) -> tuple[Any, Meta, int]:
    """Reads the newest checkpoint that is whole, and warns of newer ones that are not.

    Args:
      folder: where checkpoints stand.
      like: as for `restore`.
      check: raises CorruptError if files elsewhere that the meta lists (segments) are damaged;
        then, too, the checkpoint before is taken.
      part: whether `like` has only some of the saved leaves, by name; nothing else is read.
      best: takes the checkpoint of the highest score, the newest of equal ones, not the newest.

    Returns:
      State, meta and step.

    Raises:
      FileNotFoundError: if none is whole.
      ValueError: if a leaf differs from `like`, or the best is asked for and none has a score.
    """
    all_saved = _saved(folder)
    if best and best_step(folder) is None and all_saved:
        raise ValueError(
            f"{folder} has no checkpoint with a score: train with --eval-every, or take the newest"
        )
    if best:  # A damaged one might have been the best, so it comes first, and is reported.
        all_saved = sorted(all_saved, key=lambda x: (x.score(damaged=math.inf), x.step))
    skipped: list[tuple[pathlib.Path, CorruptError]] = []
    for saved in reversed(all_saved):
        try:
            if check is not None:
                check(saved.contents().meta)
            state, meta = _load(saved, like, part=part)
        except CorruptError as error:
            skipped.append((saved.path, error))
        else:
            for path, error in skipped:
                logger.warning("%s is skipped, not whole: %s", path, error)
            return state, meta, saved.step
    if not skipped:
        raise FileNotFoundError(f"{folder} holds no checkpoint")
    raise FileNotFoundError(
        f"{folder} holds no checkpoint that is whole, {len(skipped)} are damaged; of the first, "
        f"{skipped[0][0].name}: {skipped[0][1]}"
    )


def _load(saved: _Saved, like: Any, *, part: bool = False) -> tuple[Any, Meta]:
    import orbax.checkpoint as ocp

    files.check_manifest(saved.path)
    contents = saved.contents()
    leaves = contents.leaves
    named = trees.named_leaves(like)
    trees.check_alike(saved.path, leaves, named, part=part)
    leaves = {name: leaves[name] for name in named}
    arrays = {name: leaf.empty() for name, leaf in leaves.items() if 0 in leaf.shape}
    restore_args = {name: _restore_args(named[name]) for name in leaves if name not in arrays}
    if restore_args:
        _check_arrays(saved.path / "arrays", {name: named[name] for name in restore_args})
        arrays |= _orbax().restore(
            (saved.path / "arrays").absolute(),
            args=ocp.args.PyTreeRestore(
                item=dict.fromkeys(restore_args, 0), restore_args=restore_args, partial_restore=True
            ),
        )
    values = [trees.from_numpy(arrays[name], leaves[name], leaf) for name, leaf in named.items()]
    return jax.tree.unflatten(jax.tree.structure(like), values), contents.meta


def _check_arrays(path: pathlib.Path, like: Mapping[str, Any]) -> None:
    """Compares the stored shapes, for which memory is allocated, with those of `like`.

    Raises:
      CorruptError: if they differ from those that contents.json describes.
    """
    try:
        metadata: Any = _orbax().metadata(path.absolute())
        tree = metadata.item_metadata.tree
        stored = {name: (tree[name].shape, tree[name].dtype, tree[name].storage) for name in like}
    except Exception as error:  # Orbax and tensorstore raise many kinds.
        raise CorruptError(f"{path} cannot be read ({error!r:.200})") from error
    for name, leaf in like.items():
        shape, dtype, storage = stored[name]
        expected = trees.stored_as(leaf)
        chunk = shape if storage is None or storage.chunk_shape is None else storage.chunk_shape
        if (tuple(shape), dtype) != expected or any(
            part > max(1, whole) for part, whole in zip(chunk, shape, strict=True)
        ):
            raise CorruptError(
                f"{path} holds {name!r} as {dtype}{[*shape]} in chunks of {[*chunk]}, expected "
                f"{expected[1]}{[*expected[0]]}"
            )


def _restore_args(like: Any) -> "ocp.RestoreArgs":
    """Returns orbax's arguments: NumPy arrays, but sharded leaves are restored to their devices."""
    import orbax.checkpoint as ocp

    home = like.sharding if isinstance(like, jax.ShapeDtypeStruct) else None
    if isinstance(home, jax.sharding.NamedSharding) and not home.is_fully_replicated:
        return ocp.ArrayRestoreArgs(sharding=home)
    return ocp.RestoreArgs(restore_type=np.ndarray)
