"""Learners of adapters: a frozen base among the constants, and what is learnt beside it.

A learner's state has the adapters alone, with their moments and averages. Its loss, its policy and
its evaluations see whole parameters: the base of `Constants` joined with what is learnt, of which
nothing is copied. See lm/lora.py for the adapters themselves.

Where matrices have a format of few bits, and no adapters, what is learnt stays in float32, and the
loss and the policy see the numbers that the format holds (quantisation-aware training); a base of
adapters is in its format already. A model that learns all weights but a projector of images
(lm/sight.py) has that alone as its base.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from kullback.core import learners, trees, types
from kullback.lm import gemma, lora, quantisation, shared_ids

__all__ = ["Learnt", "adapted"]


def adapted(model: gemma.Model, settings: lora.Config) -> gemma.Model:
    """Returns the model with adapters, whose `init` draws these alone; without any, the model.

    Its other functions take the base's parameters joined with the adapters, see `Learnt`.
    """
    if not settings:
        return model
    decoder = gemma.make(model.config, settings)
    if model.lend_sense is not None:  # Its parameters are the base's.
        decoder = model.lend_sense(decoder)
    return shared_ids.over(decoder, model.num_ids)


def _same(base: types.Params) -> types.Params:
    return base


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learnt:
    """The parameters that a learner learns, and the whole ones that are made of them.

    Without a base they are the same.
    """

    settings: lora.Config
    scheme: quantisation.Scheme = quantisation.FLOAT  # Formats of what is learnt.
    # Base -> the frozen part of all networks' parameters, such as {"decoder": base}.
    frozen: Callable[[types.Params], types.Params] = _same

    def whole(self, learnt: types.Params, constants: types.Constants) -> types.Params:
        """Returns the parameters of all networks; nothing is copied that has no format."""
        if not self.settings:
            learnt = quantisation.simulated(learnt, self.scheme)
        return self._with_base(learnt, constants)

    def loss(self, of_whole: learners.Loss) -> learners.Loss:
        """Returns the loss of what is learnt, from that of whole parameters."""

        def loss(
            learnt: types.Params,
            targets: dict[str, types.Params],
            aux: Any,
            batch: types.Batch,
            key: types.Key,
            constants: types.Constants,
        ) -> tuple[jax.Array, tuple[Any, types.Feedback]]:
            params, whole_targets = self._all(learnt, targets, constants)
            return of_whole(params, whole_targets, aux, batch, key, constants)

        return loss

    def prepare(self, of_whole: learners.Prepare) -> learners.Prepare:
        """Returns what prepares a batch by what is learnt, from what does by whole parameters."""

        def prepare(
            learnt: types.Params,
            targets: dict[str, types.Params],
            batch: types.Batch,
            constants: types.Constants,
        ) -> tuple[types.Batch, dict[str, jax.Array]]:
            return of_whole(*self._all(learnt, targets, constants), batch, constants)

        return prepare

    def _all(
        self, learnt: types.Params, targets: dict[str, types.Params], constants: types.Constants
    ) -> tuple[types.Params, dict[str, types.Params]]:
        """Returns whole parameters and whole target trees."""
        whole_targets = {name: self.whole(x, constants) for name, x in targets.items()}
        return self.whole(learnt, constants), whole_targets

    def acting(self, learnt: types.Params, constants: types.Constants) -> types.Params:
        """Returns the whole parameters that a policy acts by; they need no gradient."""
        if self.scheme and not self.settings:
            return self._with_base(quantisation.held(learnt, self.scheme), constants)
        return self.whole(learnt, constants)

    def _with_base(self, learnt: types.Params, constants: types.Constants) -> types.Params:
        if constants.base is None:
            return learnt
        return trees.joined(self.frozen(constants.base), learnt)

    def actor_params(
        self, state: types.LearnerState, steps: types.Array, evaluate: bool, constants: Any
    ) -> dict[str, types.Params]:
        """Returns the parameters that act, see `types.Agent`."""
        del steps, evaluate
        return {"params": self.acting(state.params, constants)}
