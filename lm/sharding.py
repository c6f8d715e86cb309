"""Sharding of Gemma over a mesh: heads, hidden units and vocabulary are cut over its model axis.

Shoeybi et al. 2019, "Megatron-LM", https://arxiv.org/abs/1909.08053: the first of two consecutive
matrices is cut by columns and the second by rows, so that activations between them stay on their
device, and one sum over devices follows the second. The vocabulary is cut by rows.
"""

from collections.abc import Callable

import jax

from kullback.core import processes, sharding, trees, types
from kullback.core.sharding import MODEL, Rule
from kullback.core.sharding import Mesh as Mesh
from kullback.core.sharding import Placement as Placement
from kullback.core.sharding import check_batch as check_batch
from kullback.core.sharding import make_mesh as make_mesh
from kullback.core.sharding import of_rows as of_rows
from kullback.lm import batches, gemma, lora


def rules(config: gemma.Config) -> tuple[Rule, ...]:
    """Returns the sharding rules of a model's parameters; for their shapes see lm/gemma.py.

    They are of a value network beside it, too (value_network.py), and of a reward model on it
    (reward_model.py), whose heads of one number are on every device.

    A head of attention is never cut, as its norm is over the whole of it; where the axis does not
    divide the heads (a single key-value head), every device holds all.
    """
    heads, kv_heads = (MODEL, config.num_heads), (MODEL, config.num_kv_heads)
    network = "((value/)?decoder/)?"
    # A layer axis leads each array of rank 2 or 3.
    layer = rf"{network}(periods|remainder)/layer_\d+"
    return (
        Rule(f"{network}embedding", 2, (MODEL, None)),
        Rule(f"{network}final_norm", 1, (None,)),
        Rule(rf"{layer}/.*_norm", 2, (None,)),
        Rule(rf"{layer}/attention/query", 3, (None, heads)),
        Rule(rf"{layer}/attention/(key|value)", 3, (None, kv_heads)),
        Rule(rf"{layer}/attention/output", 3, (heads, None)),
        Rule(rf"{layer}/feed_forward/(gate|up)", 3, (None, MODEL)),
        Rule(rf"{layer}/feed_forward/down", 3, (MODEL, None)),
        # Factors of adapters are cut as the matrix is, and never along their rank.
        Rule(rf"{layer}/attention/(query|key|value)/a", 3, (None, None)),
        Rule(rf"{layer}/attention/query/b", 3, (None, heads)),
        Rule(rf"{layer}/attention/(key|value)/b", 3, (None, kv_heads)),
        Rule(rf"{layer}/attention/output/a", 3, (heads, None)),
        Rule(rf"{layer}/feed_forward/(gate|up)/a", 3, (None, None)),
        Rule(rf"{layer}/feed_forward/(gate|up)/b", 3, (None, MODEL)),
        Rule(rf"{layer}/feed_forward/down/a", 3, (MODEL, None)),
        Rule(rf"{layer}/(attention/output|feed_forward/down)/b", 3, (None, None)),
        Rule(f"{network}rows/ids", 1, (None,)),
        Rule(f"{network}rows/update", 2, (None, None)),
        Rule(f"{network}projector/norm", 1, (None,)),
        Rule(f"{network}projector/weight", 2, (None, None)),
        # An encoder of audio is small: every device holds all of it.
        *(Rule(f"{network}hearing/.*", rank, (None,) * rank) for rank in (1, 2, 3)),
        Rule("value/head|head/w", 1, (None,)),
        Rule("head/b", 0, ()),
    )


def placement(
    mesh: Mesh | None, config: gemma.Config, teacher: gemma.Config | None = None
) -> Placement | None:
    """Returns the placement of a learner and its teacher on a mesh; None without a mesh."""
    if mesh is None:
        return None
    teacher_rules = () if teacher is None else rules(teacher)
    return Placement(mesh=mesh, rules=rules(config), teacher_rules=teacher_rules)


def shapes(
    config: gemma.Config, mesh: Mesh | None, adapters: lora.Config = lora.Config()
) -> types.Params:
    """Returns `jax.ShapeDtypeStruct`s of a model's parameters; with a mesh they have shardings.

    With adapters they are those of these alone.
    """
    leaves = jax.eval_shape(gemma.make(config, adapters).init, jax.random.key(0))
    return annotated(config, leaves, mesh)


def annotated(config: gemma.Config, shapes: types.Params, mesh: Mesh | None) -> types.Params:
    """Adds shardings to shapes of a model's or a reward model's parameters, if there is a mesh."""
    if mesh is None:
        return shapes
    return sharding.annotated(shapes, sharding.of_params(rules(config), shapes, mesh))


def placed(config: gemma.Config, params: types.Params, mesh: Mesh | None) -> types.Params:
    """Returns parameters of a model or a reward model, or adapters, on the devices of a mesh."""
    if mesh is None:
        return params
    return processes.put(params, sharding.of_params(rules(config), params, mesh))


def spread(rows: batches.Rows, mesh: Mesh | None) -> batches.Rows:
    """Cuts prompts or sequences over the devices of a mesh, if any; see `of_rows`."""
    if mesh is None:
        return rows
    return processes.put(rows, of_rows(mesh, len(rows.tokens)))


def by_path(
    config: gemma.Config, mesh: Mesh | None
) -> Callable[[str], jax.sharding.Sharding] | None:
    """Returns (path of a parameter) -> sharding, for `hugging_face.load`; None without a mesh."""
    if mesh is None:
        return None
    named = trees.named_leaves(shapes(config, mesh))
    return lambda path: named[path].sharding
