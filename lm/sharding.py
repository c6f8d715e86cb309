"""How a Gemma is cut over a mesh: heads, hidden units and the vocabulary over its model axis.

Shoeybi et al. 2019, "Megatron-LM", https://arxiv.org/abs/1909.08053: the first of two matrices that
follow each other is cut by columns and the second by rows, so that activations between them stay
on their device, and one sum over devices follows the second. The vocabulary is cut by rows.
"""

from collections.abc import Callable

import jax

from kullback.core import sharding, trees, types
from kullback.core.sharding import MODEL, Rule
from kullback.core.sharding import Mesh as Mesh
from kullback.core.sharding import Placement as Placement
from kullback.core.sharding import check_batch as check_batch
from kullback.core.sharding import make_mesh as make_mesh
from kullback.core.sharding import of_rows as of_rows
from kullback.lm import gemma


def rules(config: gemma.Config) -> tuple[Rule, ...]:
    """The table for a model's parameters; for their shapes see lm/gemma.py.

    Heads stay whole, for each is normalised and compared as one; where the axis does not divide
    them (a single key-value head), every device holds all.
    """
    heads, kv_heads = (MODEL, config.num_heads), (MODEL, config.num_kv_heads)
    layer = r"(periods|remainder)/layer_\d+"  # A layer axis leads each array of rank 2 or 3.
    return (
        Rule("embedding", 2, (MODEL, None)),
        Rule("final_norm", 1, (None,)),
        Rule(rf"{layer}/.*_norm", 2, (None,)),
        Rule(rf"{layer}/attention/query", 3, (None, heads)),
        Rule(rf"{layer}/attention/(key|value)", 3, (None, kv_heads)),
        Rule(rf"{layer}/attention/output", 3, (heads, None)),
        Rule(rf"{layer}/feed_forward/(gate|up)", 3, (None, MODEL)),
        Rule(rf"{layer}/feed_forward/down", 3, (MODEL, None)),
    )


def placement(
    mesh: Mesh | None, config: gemma.Config, teacher: gemma.Config | None = None
) -> Placement | None:
    """Where the arrays of a learner of a model are, and of its teacher."""
    if mesh is None:
        return None
    of_teacher = () if teacher is None else rules(teacher)
    return Placement(mesh=mesh, rules=rules(config), teacher_rules=of_teacher)


def shapes(config: gemma.Config, mesh: Mesh | None) -> types.Params:
    """`jax.ShapeDtypeStruct`s of a model's parameters; with a mesh, they say where each goes."""
    found = jax.eval_shape(gemma.make(config).init, jax.random.key(0))
    if mesh is None:
        return found
    return sharding.annotated(found, sharding.of_params(rules(config), found, mesh))


def by_path(
    config: gemma.Config, mesh: Mesh | None
) -> Callable[[str], jax.sharding.Sharding] | None:
    """Path of a parameter -> where it goes, for `hugging_face.load`; None without a mesh."""
    if mesh is None:
        return None
    named = trees.named_leaves(shapes(config, mesh))
    return lambda path: named[path].sharding
