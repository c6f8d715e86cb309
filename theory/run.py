"""Running schemes: a scan over iterations, mapped over parameters, processes and seeds.

    history = run(mirror.md_vi, mdp, 800, parameters={"lambda_": lambdas, "tau": taus},
                  noise=sampled(), key=keys).records

Shape letters: P settings of the parameters, M processes, R seeds, K iterations. Results have the
axes [P, M, R, K + 1, ...], each of the first three only where the argument has it; entry k
belongs to iterate k, so entry 0 is the start.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.core import Tracer

from kullback.core import types
from kullback.theory import precision, solve
from kullback.theory.mdp import MDP, check_key
from kullback.theory.scheme import Scheme, State

__all__ = [
    "History",
    "Measure",
    "Noise",
    "Record",
    "everything",
    "gaussian",
    "nothing",
    "policy_error",
    "policy_gap",
    "run",
    "sampled",
    "value_error",
]

# (key, mdp) -> the process that one evaluation sees, and what is added to it, [S, A].
Noise = Callable[[types.Key, MDP], tuple[MDP, types.Array]]


class Record(NamedTuple):
    """An iterate and the error that went into it."""

    state: State  # Iterate k.
    error: types.Array  # [S, A]: eps_k = q_k - the exact evaluation of pi_k; zeros at k = 0.


class History(NamedTuple):
    """The result of a run."""

    final: State  # Iterate K.
    records: Any  # What `measure` said of the iterates 0, ..., K; a `Record` by default.


Measure = Callable[[MDP, Record, Any], Any]  # (mdp, record, context) -> pytree.


def everything(mdp: MDP, record: Record, context: Any) -> Record:
    """Returns the whole record; the default measure."""
    del mdp, context
    return record


def nothing(mdp: MDP, record: Record, context: Any) -> None:
    """Returns None; the measure that keeps nothing but the final iterate."""
    del mdp, record, context


def sampled(num_samples: int = 1) -> Noise:
    """Returns noise that replaces expectations by successors drawn from a generative model.

    Each state and action gets `num_samples` of them, drawn anew in each iteration and shared by
    its m backups; 1 gives the sampled MD-VI of "Leverage the Average", appendix D. The policy step
    sees the process itself: CPI's adaptive rates and line search know the true dynamics, and apply
    them to a sampled q_k.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be >= 1, got {num_samples}")
    return _sampled(num_samples)


def gaussian(scale: float) -> Noise:
    """Returns noise that adds independent normal errors of standard deviation `scale`."""
    if not scale >= 0:
        raise ValueError(f"scale must be >= 0, got {scale}")
    return _gaussian(scale)


@precision.float64
def run(
    scheme: Scheme | Callable[..., Scheme],
    mdp: MDP,
    num_iterations: int,
    *,
    parameters: Mapping[str, npt.ArrayLike] | None = None,
    errors: types.Array | None = None,
    noise: Noise | None = None,
    key: types.Key | None = None,
    clip: bool = False,
    measure: Measure = everything,
    context: Any = None,
    start: State | None = None,
) -> History:
    """Runs a scheme for K iterations, in float64.

    A program is compiled for every scheme: passing a constructor with its temperatures as
    `parameters` compiles once, whatever they are.

    Args:
      scheme: a scheme; or, with `parameters`, a function of them that makes one. It is called
        with numbers first, once for each p, so that what it refuses is refused.
      mdp: the process, or a batch of M.
      num_iterations: K >= 1.
      parameters: by name, [P] each: one run for every p, all with the same errors and keys. Of
        an f that is not KL's one temperature alone may be among them, the other is left out.
      errors: eps_1, ..., eps_K, [K, S, A], or [M, K, S, A] for a batch.
      noise: instead of errors, what draws them: `sampled()` or `gaussian(scale)`.
      key: with noise; typed, [], or [R] for R seeds. Process i of a batch draws with
        fold_in(key, i), iteration k with fold_in of that and k.
      clip: whether q_k is clipped to [-v_max, v_max], v_max = max |r| / (1 - gamma), which is
        part of its error; some theorems ask for it.
      measure: what to keep of an iterate; the default keeps all of it, [K + 1, S, A] several
        times. A function at module level (or kept by the caller) is compiled once.
      context: pytree for `measure`; each array has a leading axis M for a batch.
      start: iterate 0, with a leading axis M for a batch; else the scheme's own.

    Raises:
      ValueError: for errors and noise together, noise without a typed key, errors of another
        shape, or parameters that the scheme refuses.
    """
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be >= 1, got {num_iterations}")
    if (noise is None) != (key is None):
        raise ValueError("noise and key go together; got one of them only")
    if key is not None:
        check_key(key)
    if errors is not None and noise is not None:
        raise ValueError("pass errors, or noise that draws them, not both")
    expected = (*mdp.batch_shape, num_iterations, *mdp.reward.shape[-2:])
    if errors is not None and jnp.shape(errors) != expected:
        raise ValueError(f"errors must have shape {expected}, got {jnp.shape(errors)}")
    if parameters is not None:
        parameters = {name: jnp.asarray(x) for name, x in parameters.items()}
        shapes = {name: x.shape for name, x in parameters.items()}
        if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
            raise ValueError(f"parameters must be arrays [P] of one length, got {shapes}")
        _check_parameters(scheme, parameters)
    settings = scheme, num_iterations, noise, clip, measure
    return _run(mdp, parameters, errors, key, context, start, settings)


def policy_error(
    mdp: MDP, record: Record, optimal_q: types.Array, *, tau: float = 0.0
) -> types.Array:
    """Measures ||q_* - q_{pi_k}||_1 / ||q_*||_1, [], as "Leverage the Average" does; context: q_*.

    Args:
      mdp, record: see `Measure`.
      optimal_q: the optimal action values with entropy tau, [S, A].
      tau: temperature of both; fix it by functools.partial, kept by the caller.
    """
    _, q = solve.policy_values(mdp, record.state.log_policy, tau=tau)
    return jnp.sum(jnp.abs(optimal_q - q)) / jnp.sum(jnp.abs(optimal_q))


def policy_gap(
    mdp: MDP, record: Record, optimal_v: types.Array, *, tau: float = 0.0
) -> types.Array:
    """Measures the gap of the policy, max_s (v_* - v_{pi_k})(s), []; the context is v_*, [S]."""
    v, _ = solve.policy_values(mdp, record.state.log_policy, tau=tau)
    return jnp.max(optimal_v - v)


def value_error(mdp: MDP, record: Record, optimal_q: types.Array) -> types.Array:
    """Measures the error of the values, max |q_* - q_k|, []; the context is q_*, [S, A]."""
    del mdp
    return jnp.max(jnp.abs(optimal_q - record.state.q))


def _check_parameters(scheme: Any, parameters: Mapping[str, jax.Array]) -> None:
    """Raises ValueError for the first setting of the parameters that the scheme refuses."""
    if any(isinstance(x, Tracer) for x in parameters.values()):
        return  # Traced by the caller: their values are not known yet.
    columns = {name: np.asarray(x).tolist() for name, x in parameters.items()}
    for p, values in enumerate(zip(*columns.values(), strict=True)):
        setting = dict(zip(columns, values, strict=True))
        try:
            scheme(**setting)
        except ValueError as error:
            shown = ", ".join(f"{name}={value}" for name, value in setting.items())
            raise ValueError(f"setting {p} of the parameters, {shown}: {error}") from error


@functools.cache
def _sampled(num_samples: int) -> Noise:
    def noise(key: types.Key, mdp: MDP) -> tuple[MDP, types.Array]:
        return mdp.sample(key, num_samples), jnp.zeros_like(mdp.reward)

    return noise


@functools.cache
def _gaussian(scale: float) -> Noise:
    def noise(key: types.Key, mdp: MDP) -> tuple[MDP, types.Array]:
        return mdp, scale * jax.random.normal(key, mdp.reward.shape, mdp.reward.dtype)

    return noise


@functools.partial(jax.jit, static_argnames="settings")
def _run(
    mdp: MDP,
    parameters: dict[str, types.Array] | None,
    errors: types.Array | None,
    key: types.Key | None,
    context: Any,
    start: State | None,
    settings: tuple[Any, ...],
) -> History:
    scheme, num_iterations, noise, clip, measure = settings

    def run_one(
        parameters: Any, mdp: MDP, errors: Any, key: Any, context: Any, start: Any
    ) -> History:
        init, step = scheme if parameters is None else scheme(**parameters)
        zeros = jnp.zeros_like(mdp.reward)
        state = init(mdp) if start is None else start
        v_max = jnp.max(jnp.abs(mdp.reward)) / (1 - mdp.discount)

        def body(carry: tuple[Record, State], inputs: tuple[Any, types.Array]) -> tuple[Any, Any]:
            record, _ = carry
            error, k = inputs
            seen, added = mdp, zeros if error is None else error
            if noise is not None:
                seen, added = noise(jax.random.fold_in(key, k), mdp)
            new = step(mdp, record.state, added, seen)
            if clip:
                new = new._replace(q=jnp.clip(new.q, -v_max, v_max))
            if clip or noise is not None:
                # The error is the difference to the exact step, whose policy is the same. XLA
                # drops this step if no measure reads the error.
                added = new.q - step(mdp, record.state, zeros).q
            return (Record(new, added), record.state), measure(mdp, record, context)

        # One iteration more than asked for, whose result is dropped, so that `measure` is
        # compiled in one place and sees iterate K too.
        if errors is not None:
            errors = jnp.concatenate([errors, zeros[None]])
        inputs = errors, jnp.arange(num_iterations + 1)
        (_, final), records = jax.lax.scan(body, (Record(state, zeros), state), inputs)
        return History(final, records)

    has_seeds = key is not None and key.ndim > 0
    if mdp.batch_shape:
        if key is not None:
            keys = jax.vmap(jax.random.fold_in, (0, None)) if has_seeds else jax.random.fold_in
            key = jax.vmap(keys, (None, 0))(key, jnp.arange(mdp.batch_shape[0]))  # [M, ...]
    mapped = run_one
    if has_seeds:
        mapped = jax.vmap(mapped, (None, None, None, 0, None, None))
    if mdp.batch_shape:
        mapped = jax.vmap(mapped, (None, 0, 0, 0, 0, 0))
    if parameters is not None:
        mapped = jax.vmap(mapped, (0, None, None, None, None, None))
    return mapped(parameters, mdp, errors, key, context, start)
