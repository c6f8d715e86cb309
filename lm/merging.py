"""Merging of models in Hugging Face folders into one, tensor by tensor (core/averaging.py).

Files are memory-mapped and read block by block, so that a merge of any size takes little memory.
Spherical interpolation reads them twice: for the angles of whole groups of tensors, and for the
sums. Any architecture will do; only names of tensors are read.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from kullback.core import averaging, files, finite, flat_arrays, folders
from kullback.lm import folder_meaning, terms
from kullback.lm.formats import tensor_files

METHODS = ("mean", "ema", "slerp", "liti")
GROUPS = ("layer", "tensor", "all")
COPIED = (".json", ".model", ".txt", ".jinja", ".tiktoken")  # Files beside the weights; no code.
SEGMENT = 1 << 20  # Numbers in one task of a thread.
MAX_THREADS = 8
FLUSHED = 1 << 27  # Bytes after which written data are flushed to disk in the background.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a merge; the defaults are WARP's, as far as it has any."""

    method: str = "slerp"  # One of METHODS.
    weights: tuple[float, ...] | None = None  # One a model, for mean and liti; None: uniform.
    rate: float | None = None  # mu in (0, 1], for ema; models are in the order of time.
    t: float | None = None  # lambda in [0, 1], for slerp of two; None: 1 / M recursively.
    interpolation: float = 1.0  # eta, for slerp with a base and for liti; 0 is the base.
    group: str | None = None  # One of GROUPS, tensors that slerp takes as one vector; None: layer.

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("method", self.method, METHODS),
            ("group", self.groups, GROUPS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        averaging.check_interpolation(self.interpolation)
        if (self.rate is None) == (self.method == "ema"):
            raise ValueError(f"rate is of ema and required there, got {self.rate}")
        if self.rate is not None:
            averaging.check_rate(self.rate)
        for name, value, methods in (
            ("weights", self.weights, ("mean", "liti")),
            ("t", self.t, ("slerp",)),
            ("group", self.group, ("slerp",)),
            ("interpolation other than 1", self.interpolation != 1 or None, ("slerp", "liti")),
        ):
            if value is not None and self.method not in methods:
                raise ValueError(f"{name} is of {' and '.join(methods)}, not of {self.method}")

    @property
    def groups(self) -> str:
        """Group of GROUPS whose tensors slerp takes as one vector."""
        return "layer" if self.group is None else self.group

    def check(self, num_models: int, *, has_base: bool) -> None:
        """Raises ValueError unless that many models can be merged with or without a base."""
        if self.method == "liti" and not has_base:
            raise ValueError("liti goes toward a base, and none is given")
        if self.method in ("mean", "ema") and has_base:
            raise ValueError(f"{self.method} takes no base")
        if self.interpolation != 1 and not has_base:
            raise ValueError("interpolation goes toward a base, and none is given")
        if num_models < 2 and not has_base:
            raise ValueError(f"expected at least two models, got {num_models}")
        if self.method == "slerp":
            averaging.slerp_weights(np.eye(num_models), self.t)
        else:
            self.model_weights(num_models)

    def model_weights(self, num_models: int) -> np.ndarray:
        """Returns the weight of each model in a method without angles, float64 [M]."""
        if self.rate is not None:
            return averaging.ema_weights(num_models, self.rate)
        return averaging.mean_weights(num_models, self.weights)


class Report(NamedTuple):
    """The result of a merge, but for its files."""

    num_tensors: int  # Tensors written.
    num_bytes: int  # Size of these.
    grams: dict[str, np.ndarray]  # <delta_m, delta_n>, [M, M] by group; empty without angles.
    overridden: list[str]  # Differences of models that were merged all the same, a line each.
    left_out: list[str]  # Files of code beside the first model, which are not copied.


def gemma_groups(group: str) -> averaging.GroupOf:
    """Returns the grouping, by one of GROUPS, of lm/gemma.py's parameters, which stack layers."""

    def group_of(path: str) -> averaging.Group:
        layer = re.match(r"(periods|remainder)/layer_\d+", path)
        if group == "all":
            return averaging.whole(path)
        name = layer[0] if layer and group == "layer" else path
        return averaging.Group(name, is_stacked=layer is not None)

    return group_of


def group_name(group: str, tensor: str) -> str:
    """Returns the name of a tensor's group, by one of GROUPS.

    Tensors of a layer share their names up to the first number, "model.layers.3". A tensor outside
    of layers (the embedding, the last norm) is a group by itself.
    """
    if group == "all":
        return ""
    layer = re.match(r"(?:[^.]+\.)*?\d+(?=\.)", tensor) if group == "layer" else None
    return layer[0] if layer else tensor


def merge(
    models: Sequence[files.Path],
    out: files.Path,
    config: Config,
    base: files.Path | None = None,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
    *,
    force: bool = False,
    names: Sequence[str] | None = None,
) -> Report:
    """Merges folders of safetensors into a new one, which is written whole or not at all.

    Tensors, their types and their files are those of the first model, and so are config.json and
    the tokenizer, which must be those of all (lm/folder_meaning.py); code is not copied. Tensors
    that are not floating must be equal in all. An unembedding that config.json ties to the
    embedding is merged once, as the embedding, and left out. Embeddings of one tokenizer that are
    padded to different numbers of rows are merged in the rows that all have; the rest is the first
    model's. A notice of terms (lm/terms.py) that any of them has goes with the merge.

    Args:
      models: theta_1 .. theta_M, with model.safetensors or shards and their index.
      out: folder to write, which must not exist or be empty.
      config: method and settings.
      base: theta_0, from which task vectors are taken; None is 0, for slerp.
      on_bytes: called with the bytes of angles and output that are done, and their total.
      force: whether to merge models whose configurations or tokenizers differ; the report has the
        differences.
      names: of the models and then the base, for messages; None: their paths.

    Raises:
      ValueError: if a folder is missing, out is a model or not empty, models differ (naming the
        first field or tensor), or config does not fit them.
      CorruptError: if a file cannot be read.
    """
    out = pathlib.Path(out)
    config.check(len(models), has_base=base is not None)
    sources = [pathlib.Path(path) for path in (*models, *([] if base is None else [base]))]
    labels = [str(folder) for folder in sources] if names is None else [*names]
    check_places(out, sources)
    opened = [tensor_files.open_folder(folder) for folder in sources]
    companions = _companions(sources[0])
    notice = terms.joined(*map(terms.of_folder, sources))
    overridden = folder_meaning.differences(sources, labels)
    if overridden and not force:
        rest = f" (and {len(overridden) - 1} fields more)" if overridden[1:] else ""
        raise ValueError(
            f"models differ in {overridden[0]}{rest}; their weights mean different functions, "
            "which have no average: choose others, or take all from the first model by --force"
        )
    tensor_files.check_alike(labels, opened, padded=folder_meaning.has_same_tokens(sources))
    first = opened[0]
    floats = {name: tensor for name, tensor in first.items() if tensor.dtype in tensor_files.FLOATS}
    inputs = {name: _shared([tensors[name] for tensors in opened]) for name in floats}
    num_bytes = sum(tensor.data.nbytes for tensor in first.values())
    files.require_disk(out, num_bytes, "merged weights")
    has_angles = config.method == "slerp" and len(models) > 1
    total = num_bytes + has_angles * sum(arrays[0].nbytes for arrays in inputs.values())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        on_bytes(done, total)

    with concurrent.futures.ThreadPoolExecutor(_num_threads()) as pool:
        try:
            grams: dict[str, np.ndarray] = {}
            if has_angles:
                grams = _grams(pool, inputs, len(models), config.groups, advance)
            weights = _weights(config, grams, len(models), floats, has_base=base is not None)
            with files.atomic_path(out) as temporary:
                temporary.mkdir()
                for file in dict.fromkeys(tensor.file for tensor in first.values()):
                    stored = {n: tensor for n, tensor in first.items() if tensor.file == file}
                    (temporary / file).parent.mkdir(parents=True, exist_ok=True)
                    _write(pool, temporary / file, stored, inputs, weights, advance)
                tensor_files.write_index(temporary, first, num_bytes)
                for name, path in companions.items():
                    shutil.copyfile(path, temporary / name)
                terms.write(temporary, notice)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C takes effect now, not a pass later.
            raise
    code = sorted(path.name for path in sources[0].glob("*.py"))
    return Report(len(first), num_bytes, grams, overridden, code)


def _num_threads() -> int:
    has_affinity = hasattr(os, "sched_getaffinity")
    available = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    return min(available, MAX_THREADS)


def check_places(out: pathlib.Path, folders: Sequence[pathlib.Path]) -> None:
    """Checks, before work, that models exist, and that a merge can be written to `out`.

    Raises:
      ValueError: for a folder that is missing, or is `out`; if `out` is not empty, or cannot be
        written.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder; expected that of a model, or of its run")
        if out.resolve() == folder.resolve():
            raise ValueError(f"{out} is one of the models; choose another folder for the merge")
    files.check_new_folder(out)


def _shared(tensors: list[tensor_files.Tensor]) -> list[np.ndarray]:
    """Returns the flat numbers of a tensor in each model, cut to the rows that all have."""
    if len({tensor.shape for tensor in tensors}) == 1:
        return [tensor.data for tensor in tensors]
    num_rows = min(tensor.shape[0] for tensor in tensors)
    return [tensor.of_rows(num_rows).data for tensor in tensors]


def _segments(names: Iterable[str], sizes: Iterable[int]) -> list[tuple[str, slice]]:
    return [
        (name, slice(start, min(start + SEGMENT, size)))
        for name, size in zip(names, sizes, strict=True)
        for start in range(0, size, SEGMENT)
    ]


def _grams(
    pool: concurrent.futures.Executor,
    inputs: dict[str, list[np.ndarray]],
    num_models: int,
    group: str,
    advance: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Returns Gram matrices of the task vectors, [M, M] by group; a base is the last input."""

    def gram(task: tuple[str, slice]) -> np.ndarray:
        name, segment = task
        arrays = [array[segment] for array in inputs[name]]
        base = arrays[num_models] if arrays[num_models:] else None
        return flat_arrays.gram(arrays[:num_models], base)

    tasks = _segments(inputs, (arrays[0].size for arrays in inputs.values()))
    grams = {group_name(group, name): np.zeros((num_models, num_models)) for name in inputs}
    # In the order of the tasks, whichever is done first, so that sums are the same in each run.
    for (name, segment), summand in zip(tasks, pool.map(gram, tasks), strict=True):
        if not np.isfinite(summand).all():
            raise ValueError(_no_angle(name, segment, [array[segment] for array in inputs[name]]))
        grams[group_name(group, name)] += summand
        advance((segment.stop - segment.start) * inputs[name][0].itemsize)
    return grams


def _no_angle(name: str, segment: slice, arrays: list[np.ndarray]) -> str:
    for array in arrays:
        if not finite.is_finite(array):
            return _not_finite(name, array, arrays, segment.start)
    return f"tensor {name!r} has numbers too large for an angle: their squares overflow"


def _weights(
    config: Config,
    grams: dict[str, np.ndarray],
    num_models: int,
    names: Iterable[str],
    *,
    has_base: bool,
) -> dict[str, np.ndarray]:
    """Returns the weights of the models and then of the base, by tensor."""

    def finish(weights: np.ndarray) -> np.ndarray:
        if not has_base:
            return weights
        return np.roll(averaging.from_base(weights, config.interpolation), -1)

    if not grams:
        return dict.fromkeys(names, finish(config.model_weights(num_models)))
    weights = {key: finish(averaging.slerp_weights(gram, config.t)) for key, gram in grams.items()}
    return {name: weights[group_name(config.groups, name)] for name in names}


def _write(
    pool: concurrent.futures.Executor,
    path: pathlib.Path,
    tensors: dict[str, tensor_files.Tensor],
    inputs: dict[str, list[np.ndarray]],
    weights: dict[str, np.ndarray],
    advance: Callable[[int], None],
) -> None:
    """Writes a file of the merge, with tensors at the offsets of its header."""
    head, begins = tensor_files.header(tensors)

    def work(task: tuple[str, slice]) -> int:
        name, segment = task
        merged = tensors[name].data[segment]
        if name in inputs:
            first, arrays = merged, [array[segment] for array in inputs[name]]
            merged = np.empty_like(first)
            num_shared = len(arrays[0])
            flat_arrays.combine(arrays, weights[name], merged[:num_shared])
            merged[num_shared:] = first[num_shared:]
            if not finite.is_finite(merged):
                raise ValueError(_not_finite(name, merged, arrays, segment.start))
        offset = begins[name] + segment.start * merged.itemsize
        tensor_files.write_at(file.fileno(), merged.view(np.uint8).data, offset)
        return merged.nbytes

    with path.open("wb", buffering=0) as file, concurrent.futures.ThreadPoolExecutor(1) as disk:
        tensor_files.write_at(file.fileno(), memoryview(head), 0)
        tasks = _segments(tensors, (tensor.data.size for tensor in tensors.values()))
        flush, waiting = disk.submit(lambda: None), 0
        for num_bytes in pool.map(work, tasks):
            advance(num_bytes)
            waiting += num_bytes
            if waiting >= FLUSHED and flush.done():
                flush.result()  # Raises if the disk is full.
                flush, waiting = disk.submit(os.fsync, file.fileno()), 0
        flush.result()


def _not_finite(name: str, merged: np.ndarray, arrays: list[np.ndarray], start: int) -> str:
    """Describes the first number of the merge that is not finite, and the model it comes from."""
    at = int(np.argmax(~np.isfinite(merged)))
    place = f"number {start + at} of tensor {name!r}"
    models = [n for n, x in enumerate(arrays, 1) if at < len(x) and not np.isfinite(x[at])]
    if not models:
        return (
            f"{place} is {float(merged[at])} in the merge, and finite in all models: it overflows"
        )
    wrong = arrays[models[0] - 1][at]
    return f"{place} is {float(wrong)} in model {models[0]} (the base comes last); leave it out"


def _companions(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns paths of config.json, the tokenizer and the like, by name, which the merge copies."""
    names = sorted(path.name for path in folder.iterdir() if not path.is_dir())
    copied = [name for name in names if name.endswith(COPIED) and not name.endswith(".index.json")]
    return folders.present(folder, copied)
