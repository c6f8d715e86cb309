"""The rules by which networks read observations, which a run keeps from its beginning."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kullback.core import networks, types

# Key of config.json's spec where the rules make a difference; version 0.1 did not write it.
RULES = "input_rules"
_RECORDED = ("shape", "dtype", "num_actions", "frames_per_step")


def details(spec: types.Spec) -> dict[str, Any]:
    """Returns what config.json says of a spec."""
    return {
        "shape": list(spec.shape),
        "dtype": np.dtype(spec.dtype).name,
        "num_actions": spec.num_actions,
        "frames_per_step": spec.frames_per_step,
        **({} if _reads_alike(spec) else {RULES: spec.input_rules}),
    }


def _reads_alike(spec: types.Spec) -> bool:
    """Returns whether all rules read such observations alike, so that runs may be compared."""
    if spec.bounds is not None and networks.unscalable(spec.bounds):
        return False
    is_stack, is_planes = spec.frame_stack > 1, np.dtype(spec.dtype) == np.bool_
    has_bytes = np.dtype(spec.dtype) == np.uint8
    return is_stack or is_planes or not (has_bytes or len(spec.shape) == 3)


def as_recorded(spec: types.Spec, config: Mapping[str, Any]) -> types.Spec:
    """Returns the spec of an environment as the run of a config.json reads it.

    Raises:
      ValueError: if the run was trained on other observations or actions.
    """
    recorded = config.get("spec")
    if not isinstance(recorded, dict):
        return spec
    current = details(spec)
    for name in _RECORDED:
        if name in recorded and recorded[name] != current[name]:
            raise ValueError(
                f"the run was trained on {name} {recorded[name]} and this environment has "
                f"{current[name]}; hand over the environment that it was trained in"
            )
    if _reads_alike(spec):
        return spec
    rules = recorded.get(RULES, 1)
    if rules not in (1, types.Spec.input_rules):
        raise ValueError(
            f"config.json: spec.{RULES} must be 1 or {types.Spec.input_rules}, got {rules!r}; "
            "a newer version may have begun this run"
        )
    return dataclasses.replace(spec, input_rules=rules)


def notes(spec: types.Spec) -> list[str]:
    """Returns lines for a user about how networks read such observations."""
    if _reads_alike(spec):
        return []
    if spec.input_rules == 1:
        return [
            "note: this run began with version 0.1 and reads observations as it did: bytes "
            "unscaled but in Nature's network, declared bounds of any width as a scale, pictures "
            "as grids; a new run would not"
        ]
    lines = []
    if unscaled := networks.unscalable(spec.bounds) if spec.bounds is not None else []:
        shown = ", ".join(map(str, unscaled[:10])) + (", ..." if len(unscaled) > 10 else "")
        lines.append(
            f"note: {len(unscaled)} of {spec.shape[0]} dimensions of the observation are not "
            f"scaled ({shown}): their declared bounds are equal, not finite in float32, or more "
            f"than {networks.WIDEST:,.0f} apart"
        )
    is_bytes = np.dtype(spec.dtype) == np.uint8
    if is_bytes and spec.largest_byte == 255 and networks.is_grid(spec):
        lines.append(
            f"note: bytes of shape {spec.shape} are read as fractions of 255, which the "
            "environment declares as their largest; if they are categories, declare how many"
        )
    return lines
