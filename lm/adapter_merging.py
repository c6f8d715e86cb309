"""Averages of adapters of one base, as peft keeps them: exact by concatenation, then truncated.

The average of updates is not the product of average factors. That of M updates D_m = s_m B_m A_m
(peft's factors, A [r, in] and B [out, r]) is one of rank r_1 + .. + r_M,

    sum_m w_m D_m = B A,  A = [A_1; ..; A_M],  B = [w_1 s_1 B_1, .., w_M s_M B_M]

and the nearest one of a lower rank follows from the singular values of a small matrix, as both
factors are decomposed by QR. Angles between updates, for slerp, need inner products alone:

    <D_m, D_n> = s_m s_n sum (A_m A_n^T) * (B_m^T B_n)

Rows of the embedding that learnt stand in the files in place of the base's, which is not at hand:
those of the same tokens have a mean, and no update that slerp could turn.
"""

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kullback.core import averaging, files
from kullback.lm import lora, merging, terms
from kullback.lm.formats import peft_files


class Report(NamedTuple):
    """The result of a merge of adapters, but for its files."""

    num_matrices: int
    rank: int  # Of every adapter that was written.
    lost: float  # Share of the squared norm of all updates that truncation cut off, in [0, 1].
    worst: float  # The same of the matrix that lost most.
    worst_at: str  # Its name, "layer 3, down".


def merge(
    folders: Sequence[files.Path],
    out: files.Path,
    config: merging.Config,
    *,
    rank: int | None = None,
    force: bool = False,
) -> Report:
    """Merges folders of adapters into a new one, which is written whole or not at all.

    Their updates are task vectors: what slerp turns, and what LITI's interpolation scales.

    Args:
      folders: of adapters as peft has them, M of them.
      out: new.
      config: method and weights.
      rank: most columns of a factor of the result; None is exact, of the sum of all ranks.
      force: merges adapters that name different bases.

    Raises:
      ValueError: for other bases, matrices of other shapes, or what is no LoRA.
    """
    config.check(len(folders), has_base=config.method in ("slerp", "liti"))
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be >= 1, got {rank}")
    files.check_new_folder(out)
    bases = [peft_files.base_of(folder) for folder in folders]
    if len(set(bases)) > 1 and not force:
        raise ValueError(
            f"adapters of different bases, {', '.join(dict.fromkeys(bases))}, have no average; if "
            "these are one model by several names, add --force"
        )
    contents = [peft_files.read_any(folder) for folder in folders]
    rows = _averaged_rows(folders, [x.rows for x in contents], config)
    members = [x.pairs for x in contents]
    _check_shapes(folders, members)
    weights = _weights(members, config)
    merged: peft_files.Pairs = {}
    lost, worst, worst_at, total = 0.0, 0.0, "", 0.0
    for at in sorted({at for member in members for at in member}):
        exact = _joined(
            [
                (member[at], w)
                for member, w in zip(members, weights[at], strict=True)
                if at in member
            ]
        )
        merged[at], values = truncated(exact, rank)
        energy, cut = float(np.sum(values**2)), float(np.sum(values[len(merged[at].a) :] ** 2))
        lost, total = lost + cut, total + energy
        if energy and cut / energy > worst:
            worst, worst_at = cut / energy, f"layer {at[0]}, {at[1]}"
    width = max(len(pair.a) for pair in merged.values())
    targets = tuple(name for name in lora.TARGETS if any(name == at[1] for at in merged))
    settings = lora.Config(rank=width, alpha=float(width), targets=targets)
    notice = terms.joined(*(terms.of_folder(folder) for folder in folders))
    padded = {at: _padded(pair, width) for at, pair in merged.items()}
    merged_contents = peft_files.Contents(padded, rows)
    peft_files.write(out, merged_contents, settings, base=bases[0], notice=notice)
    return Report(len(merged), width, lost / total if total else 0.0, worst, worst_at)


def truncated(pair: peft_files.Pair, rank: int | None) -> tuple[peft_files.Pair, np.ndarray]:
    """Returns the nearest update of a rank, and all singular values of the given one, float64.

    Args:
      pair: of a scale of 1.
      rank: of the result, at most; None leaves it as it is.
    """
    b_basis, b_rest = np.linalg.qr(pair.b.astype(np.float64))
    a_basis, a_rest = np.linalg.qr(pair.a.T.astype(np.float64))
    left, values, right = np.linalg.svd(b_rest @ a_rest.T)
    if rank is None or rank >= len(pair.a):
        return pair, values
    root = np.sqrt(values[:rank])
    b = b_basis @ left[:, :rank] * root
    a = (root[:, None] * right[:rank]) @ a_basis.T
    return peft_files.Pair(a.astype(np.float32), b.astype(np.float32)), values


def gram(pairs: Sequence[peft_files.Pair | None]) -> np.ndarray:
    """Returns inner products of updates of one matrix, float64 [M, M]; None is an update of 0."""
    products = np.zeros((len(pairs), len(pairs)))
    for m, one in enumerate(pairs):
        for n, other in enumerate(pairs):
            if one is not None and other is not None:
                a, b = one.a.astype(np.float64), one.b.astype(np.float64)
                inner = np.sum((a @ other.a.T) * (b.T @ other.b))
                products[m, n] = one.scale * other.scale * inner
    return products


def _joined(pairs: Sequence[tuple[peft_files.Pair, float]]) -> peft_files.Pair:
    """Returns the sum of weighted updates, exact, of a scale of 1."""
    a = np.concatenate([pair.a for pair, _ in pairs])
    b = np.concatenate([np.float32(w * pair.scale) * pair.b for pair, w in pairs], 1)
    return peft_files.Pair(a, b)


def _averaged_rows(
    folders: Sequence[files.Path], members: Sequence[peft_files.Rows], config: merging.Config
) -> peft_files.Rows:
    """Returns the averages of rows of the embedding.

    Raises:
      ValueError: for members with rows of other tokens, or a method that needs the base's rows.
    """
    first = members[0]
    for folder, rows in zip(folders, members, strict=True):
        if rows.keys() != first.keys():
            raise ValueError(
                f"{folder} has rows of the embedding of the tokens {sorted(rows)}, and "
                f"{folders[0]} of {sorted(first)}; those of the base are not at hand: merge whole "
                "models"
            )
    if first and config.method in ("slerp", "liti"):
        raise ValueError(
            f"{config.method} needs the base's rows of the embedding, of which {folders[0]} has "
            f"other ones for the tokens {sorted(first)}: take mean or ema, or merge whole models"
        )
    weights = config.model_weights(len(members)) if first else ()
    return {
        i: np.sum([w * rows[i] for w, rows in zip(weights, members, strict=True)], 0).astype(
            np.float32
        )
        for i in first
    }


def _padded(pair: peft_files.Pair, rank: int) -> peft_files.Pair:
    """Returns an update whose factors have columns and rows of 0 beyond their rank."""
    rest = rank - len(pair.a)
    return peft_files.Pair(np.pad(pair.a, ((0, rest), (0, 0))), np.pad(pair.b, ((0, 0), (0, rest))))


def _weights(
    members: Sequence[peft_files.Pairs], config: merging.Config
) -> dict[tuple[int, str], np.ndarray]:
    """Returns the weight of each member by matrix, float64 [M]."""
    everywhere = sorted({at for member in members for at in member})
    if config.method != "slerp":
        uniform = config.interpolation * config.model_weights(len(members))
        return dict.fromkeys(everywhere, uniform)
    names = {"layer": lambda at: at[0], "tensor": lambda at: at, "all": lambda at: None}
    group_of = names[config.groups]
    grams: dict[object, np.ndarray] = {}
    for at in everywhere:
        products = gram([member.get(at) for member in members])
        grams[group_of(at)] = grams.get(group_of(at), 0) + products
    by_group = {
        group: config.interpolation * np.asarray(averaging.slerp_weights(products, config.t))
        for group, products in grams.items()
    }
    return {at: by_group[group_of(at)] for at in everywhere}


def _check_shapes(folders: Sequence[files.Path], members: Sequence[peft_files.Pairs]) -> None:
    """Raises ValueError where two members adapt a matrix of different shapes."""
    shapes: dict[tuple[int, str], tuple[pathlib.Path, int, int]] = {}
    for folder, member in zip(map(pathlib.Path, folders), members, strict=True):
        for at, pair in member.items():
            shape = len(pair.b), pair.a.shape[1]
            first, *expected = shapes.setdefault(at, (folder, *shape))
            if list(shape) != expected:
                raise ValueError(
                    f"{folder} adapts {at[1]} of layer {at[0]} as {list(shape)}, and {first} as "
                    f"{expected}: they are of different bases"
                )
