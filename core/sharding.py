"""Learners over a mesh of devices: rows of a batch over one axis, weights over the other.

A table of rules says how each parameter is cut, by its path and its rank; arrays that mirror
parameters (an optimiser's moments, targets) are cut alike. The compiler inserts the communication
(GSPMD, Xu et al. 2021, https://arxiv.org/abs/2105.04663), so that no algorithm knows of it.
"""

import dataclasses
import functools
import logging
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from kullback.core import processes, trees, types

logger = logging.getLogger(__name__)

DATA, MODEL = AXES = ("data", "model")  # Of a mesh: rows of a batch, and parts of a weight.

AnyMesh = Mesh | AbstractMesh
# How a dimension is cut: not at all, over an axis, or over one in so many parts that stay whole.
Cut = str | tuple[str, int] | None


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule of how parameters are cut, by whole path and rank.

    `cuts` are those of the last dimensions. The dimensions before them are layer axes, along which
    a scan runs, so that no rule can cut them.
    """

    pattern: str  # A regular expression, of the path "periods/layer_0/attention/query".
    rank: int  # Of the array, a layer axis included.
    cuts: tuple[Cut, ...]

    def __post_init__(self) -> None:
        if len(self.cuts) > self.rank:
            raise ValueError(f"rule {self.pattern!r} cuts {self.cuts}, more than rank {self.rank}")
        axes = [axis for axis in map(_axis, self.cuts) if axis is not None]
        if set(axes) - set(AXES) or len(set(axes)) < len(axes):
            raise ValueError(
                f"rule {self.pattern!r} must name each of {', '.join(AXES)} at most once, "
                f"got {self.cuts}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """The devices and shardings of a learner's arrays."""

    mesh: Mesh
    rules: tuple[Rule, ...]  # Of its parameters.
    teacher_rules: tuple[Rule, ...] = ()  # Of the teacher among its constants.


def shape_of(text: str) -> tuple[int, int]:
    """Parses "4x2" into (data, model), the sizes of the axes of a mesh.

    Raises:
      ValueError: for any other text.
    """
    sizes = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)
    if sizes is None:
        raise ValueError(f"a mesh is DATAxMODEL devices, such as 4x2, got {text!r}")
    return int(sizes[1]), int(sizes[2])


def make_mesh(text: str) -> Mesh:
    """Makes the mesh of all devices, from "4x2".

    Raises:
      ValueError: unless the mesh has as many devices as there are.
    """
    data, model = shape_of(text)
    if jax.process_count() != processes.count():
        raise ValueError(
            f"mesh {text} would span {jax.process_count()} processes that jax.distributed has "
            "joined: call core.processes.start() first, in each of them"
        )
    if data * model != jax.device_count():
        raise ValueError(
            f"mesh {text} is of {data * model} devices, and there are {jax.device_count()}; "
            f"e.g. {jax.device_count()}x1"
        )
    return jax.make_mesh((data, model), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)


def match(rules: Sequence[Rule], path: str, shape: tuple[int, ...], mesh: AnyMesh) -> NamedSharding:
    """Returns the sharding of a parameter, by the first rule that matches.

    A dimension that its axis does not divide is not cut, which is logged once.

    Raises:
      ValueError: if none matches.
    """
    for rule in rules:
        if rule.rank == len(shape) and re.fullmatch(rule.pattern, path):
            whole = (None,) * (rule.rank - len(rule.cuts))  # Layer axes.
            sizes = shape[len(whole) :]
            cuts = (_cut(rule, *pair, mesh) for pair in zip(rule.cuts, sizes, strict=True))
            return NamedSharding(mesh, PartitionSpec(*whole, *cuts))
    raise ValueError(
        f"no rule says how parameter {path!r} of shape {list(shape)} is cut over a mesh; "
        f"add one of its path and of rank {len(shape)}"
    )


def of_params(rules: Sequence[Rule], params: Any, mesh: AnyMesh) -> Any:
    """Returns the shardings of parameters, given as arrays or shapes; raises as `match` does."""
    named = trees.named_leaves(params)
    shardings = [match(rules, path, leaf.shape, mesh) for path, leaf in named.items()]
    return jax.tree.unflatten(jax.tree.structure(params), shardings)


def of_state(rules: Sequence[Rule], state: types.LearnerState, mesh: AnyMesh) -> types.LearnerState:
    """Returns the shardings of a learner's state, given as arrays or shapes.

    An array that has the shape of a parameter and whose path ends in that parameter's is cut like
    it. All other arrays (counters, keys, an algorithm's `aux`) are replicated.

    Raises:
      ValueError: if a parameter matches no rule.
    """
    params = trees.named_leaves(state.params)
    of_param = {path: match(rules, path, leaf.shape, mesh) for path, leaf in params.items()}
    shardings = []
    for path, leaf in trees.named_leaves(state).items():
        parts = path.split("/")
        suffixes = ("/".join(parts[n:]) for n in range(1, len(parts)))
        twin = next((s for s in suffixes if s in params and params[s].shape == leaf.shape), None)
        if twin is None and leaf.ndim > 0:
            _report(f"{path} {list(leaf.shape)} mirrors no parameter: each device holds all of it")
        shardings.append(replicated(mesh) if twin is None else of_param[twin])
    return jax.tree.unflatten(jax.tree.structure(state), shardings)


def of_rows(mesh: AnyMesh, num_rows: int) -> NamedSharding:
    """Returns the sharding of arrays with so many leading rows; replicated if indivisible."""
    size = mesh.shape[DATA]
    if num_rows % size == 0:
        return NamedSharding(mesh, PartitionSpec(DATA))
    _report(f"{num_rows} rows do not divide by {size} ({DATA}): each device holds all of them")
    return replicated(mesh)


def replicated(mesh: AnyMesh) -> NamedSharding:
    """Returns the sharding of replicated arrays."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: AnyMesh, batch_size: int) -> None:
    """Refuses a batch that does not divide over the devices.

    Raises:
      ValueError: if it does not.
    """
    size = mesh.shape[DATA]
    if batch_size % size:
        shape = "x".join(str(mesh.shape[axis]) for axis in AXES)
        raise ValueError(
            f"batch_size={batch_size} does not divide by {size}, the {DATA} axis of mesh {shape}; "
            f"the next that does is {-(-batch_size // size) * size}"
        )


def annotated(shapes: Any, shardings: Any) -> Any:
    """Adds shardings to `jax.ShapeDtypeStruct`s, as which a checkpoint is restored."""
    return jax.tree.map(
        lambda leaf, home: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home),
        shapes,
        shardings,
    )


def spread(tree: Any, axis: int = 0) -> Any:
    """Constrains `axis` of arrays to be cut over the data axis; for code inside a step.

    The compiler keeps rows cut through most operations. Where the cut is lost, as by a sort over
    all rows, each device would compute everything that follows; this restores it. On one device,
    and for arrays that do not divide, it does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree

    def cut(x: jax.Array) -> jax.Array:
        if x.ndim <= axis or x.shape[axis] % mesh.shape[DATA]:
            return x
        free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - axis - 1)
        spec = PartitionSpec(*(None,) * axis, DATA, *free)  # A scan may run along those before.
        return jax.lax.with_sharding_constraint(x, spec)

    return jax.tree.map(cut, tree)


def over_mesh(learner: types.Learner, placement: Placement) -> types.Learner:
    """Compiles a learner's functions over a mesh.

    The state is created on its devices, and a step donates its buffers. The arrays of a batch have
    a leading axis of rows; constants stay where the caller has put them.

    Raises:
      ValueError: if a parameter matches no rule.
    """
    mesh = placement.mesh
    shapes = jax.eval_shape(learner.init, jax.random.key(0))
    state = of_state(placement.rules, shapes, mesh)
    rows = NamedSharding(mesh, PartitionSpec(DATA))

    def traced(state: types.LearnerState, batch: types.Batch, constants: types.Constants) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # For `spread`.
            return learner.step(state, batch, constants)

    step = jax.jit(
        traced,
        in_shardings=(state, rows, None),
        out_shardings=(state, None),
        donate_argnums=0,
    )
    return types.Learner(
        init=jax.jit(learner.init, out_shardings=state),
        # Positional, as shardings belong to positions.
        step=lambda state, batch, constants=types.NO_CONSTANTS: step(state, batch, constants),
    )


def _cut(rule: Rule, cut: Cut, size: int, mesh: AnyMesh) -> str | None:
    """Returns the mesh axis that cuts a dimension of a parameter; None if it does not divide it."""
    axis = _axis(cut)
    if axis is None or mesh.shape[axis] == 1:
        return None
    parts = cut[1] if isinstance(cut, tuple) else size
    if size % parts == 0 and parts % mesh.shape[axis] == 0:
        return axis
    _report(
        f"{rule.pattern}: {parts} parts do not divide by {mesh.shape[axis]} ({axis}): "
        "each device holds all of them"
    )
    return None


def _axis(cut: Cut) -> str | None:
    return cut[0] if isinstance(cut, tuple) else cut


@functools.cache
def _report(message: str) -> None:
    """Warns, once for each message."""
    logger.warning("%s", message)
