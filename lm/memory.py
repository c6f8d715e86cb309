"""The memory that learning takes, computed from shapes before anything runs.

    parameters     once, in float32; of adapters, if there are some
    moments        of the optimiser: twice the parameters for Adam; and target parameters, and
                   copies by which texts are written ahead
    frozen         models that are read: teacher, start, a reward's, the base of adapters; of those
                   in few bits the codes, and the block that is open; pages of a file too, as each
                   step reads them all; and what a format of few bits holds in place of the
                   parameters
    gradients      once; twice where they are accumulated over micro-batches; none of what is frozen
    activations    that the backward pass reads, of one micro-batch
    logits         three arrays of a chunk: logits, and temporaries of the loss and its gradient
    media          features of all images or clips of the data, which are kept, and of a batch

Weights that the backward pass reads are the parameters themselves. XLA needs less where it fuses,
and somewhat more where pieces of memory do not fit: tests hold the sum to what it reports. Before
learning, what gets few bits is read as float32, which is beside its codes until all are made.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kullback.core import files, trees, types
from kullback.lm import chunked, gemma, lora, narrow_weights

LOGIT_ARRAYS = 3  # Arrays of a chunk's logits that are in memory at a time.


class Needs(NamedTuple):
    """The bytes of learning, by what they are for."""

    parameters: int
    moments: int  # The rest of the learner's state.
    frozen: int
    gradients: int
    activations: int
    logits: int
    media: int = 0

    @property
    def total(self) -> int:
        """Bytes of all."""
        return sum(self)

    def __str__(self) -> str:
        """Spells the bytes, and what they are for."""
        parts = ", ".join(f"{n} {files.size(x)}" for n, x in self._asdict().items() if x)
        return f"{files.size(self.total)} ({parts})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The settings that decide how much memory a learner step takes."""

    rows: int  # Items of a step, which micro-batches share.
    width: int  # Tokens of a sequence.
    micro_batches: int
    chunk: int  # Most tokens whose logits are in memory at a time; 0 without logits.
    remat: bool  # Whether the backward pass recomputes each layer's activations.
    adapters: lora.Config = lora.Config()
    is_quantized: bool = False  # Whether there are the numbers of a format beside those learnt.
    # Networks of the model's size with gradients: two with a value network, none if a head learns.
    networks: int = 1
    per_row: int = 1  # Sequences of an item: a pair of answers has two.
    versions: int = 0  # Copies of the parameters, by which texts are written ahead.
    media: int = 0  # Bytes of the features of images or clips, in memory at once.

    def __str__(self) -> str:
        """Spells the flags of `kullback train` that have a say."""
        return f"--model-flag remat={self.remat} --set micro_batches={self.micro_batches}"

    def thriftier(self) -> Iterator["Setting"]:
        """Yields settings of the same step that take less memory, the fastest first."""
        yield dataclasses.replace(self, remat=True)
        for micro_batches in range(self.micro_batches + 1, self.rows + 1):
            if self.rows % micro_batches == 0:
                yield dataclasses.replace(self, remat=True, micro_batches=micro_batches)


def of_learning(
    config: gemma.Config, state: types.LearnerState, frozen: Any, setting: Setting
) -> Needs:
    """Computes the memory of a learner step, which is the most that learning takes.

    Args:
      config: of the model that learns.
      state: shapes of the learner's state.
      frozen: trees of parameters, or their shapes, that are read only.
      setting: of the step.
    """
    parameters = trees.num_bytes(state.params)
    rows = setting.rows // setting.micro_batches * setting.per_row
    copies = (1 if setting.micro_batches == 1 else 2) if setting.networks else 0
    config = dataclasses.replace(config, remat=setting.remat)
    return Needs(
        parameters=parameters,
        moments=trees.num_bytes((state.opt_state, state.targets)) + parameters * setting.versions,
        frozen=trees.num_bytes(frozen)
        + narrow_weights.opened_bytes(frozen)
        + parameters * setting.is_quantized,
        gradients=parameters * copies,
        activations=setting.networks * _activations(config, setting.adapters, rows, setting.width),
        logits=LOGIT_ARRAYS
        * min(
            chunked.LOGIT_BYTES,
            4 * config.vocab_size * min(setting.chunk, rows * setting.width),
        ),
        media=setting.media,
    )


def require(needs: Callable[[Setting], Needs], setting: Setting, free: int) -> None:
    """Checks that a learner step fits.

    Args:
      needs: the memory of a step by its setting.
      setting: of the step.
      free: bytes that a run may take in all, those included that frozen models take already.

    Raises:
      ValueError: if it does not, with settings that would.
    """
    wanted = needs(setting)
    if wanted.total <= free:
        return
    refusal = f"learning takes {wanted} of memory, and {files.size(free)} are free: "
    for other in setting.thriftier():
        if needs(other).total <= free:
            raise ValueError(f"{refusal}{other} takes {files.size(needs(other).total)}")
    raise ValueError(
        f"{refusal}take an optimiser with smaller moments (--set optimizer=adafactor), fewer or "
        "shorter texts (batch_size, max_prompt_length, max_new_tokens), or a smaller model"
    )


@functools.cache
def _activations(config: gemma.Config, settings: lora.Config, rows: int, width: int) -> int:
    """Returns bytes of the arrays that the backward pass of a micro-batch reads."""
    model, keys = gemma.make(config, settings), jax.random.key(0)
    base, frozen = jax.eval_shape(gemma.make(config).init, keys), {}
    learnt = base
    if settings:
        ids = jax.eval_shape(lambda: lora.row_ids([0] * len(settings.train_tokens)))
        learnt, frozen = jax.eval_shape(model.init, keys), trees.joined(base, ids)
        if settings.shared_a:
            shared = functools.partial(lora.shared_factors, config, settings)
            frozen = trees.joined(frozen, jax.eval_shape(shared, keys))
    tokens = jax.ShapeDtypeStruct((rows, width), jnp.int32)

    def residuals(learnt: types.Params, frozen: types.Params, tokens: jax.Array) -> Any:
        def features(learnt: types.Params) -> jax.Array:
            return model.features(trees.joined(frozen, learnt), tokens)

        return jax.vjp(features, learnt)[1]

    stored = trees.num_bytes(jax.eval_shape(residuals, learnt, frozen, tokens))
    # Weights are among them, and are not stored anew.
    weights = {name: x for name, x in trees.joined(frozen, learnt).items() if name in config.blocks}
    return max(stored - trees.num_bytes(weights), 0)
