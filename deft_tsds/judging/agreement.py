"""How far raters agree beyond chance: Cohen's kappa of two, Fleiss' kappa of several, with bootstrap intervals.

Both are (A - E) / (1 - E): A the share of agreement found, E the share that raters with the same habits would reach by
chance. Where all answers are one and the same category E is 1, and no kappa is defined.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from deft_tsds.judging.clustered import cluster_weights, ends, unanimous


class Kappa(NamedTuple):
    """A kappa and its interval; None where it is not defined (see above), or where one cluster allows no interval.

    Attributes:
        rows: what it was reckoned from: things that two raters or more have judged.
    """

    value: float | None
    low: float | None
    high: float | None
    rows: int


class Agreement(NamedTuple):
    """Fleiss' kappa of all raters, and Cohen's of every pair that shares a row, by the places of the two."""

    fleiss: Kappa
    cohen: dict[tuple[int, int], Kappa]


def cohen_kappa(tables_CxC: np.ndarray) -> np.ndarray:
    """Cohen's kappa (Educational and Psychological Measurement 20, 1960) of tables of counts [..., C, C].

    Entry (a, b) of a table counts the rows that the first rater calls a and the second b. Returns float64 [...]; nan
    where it is not defined.
    """
    return _corrected(*_cohen(tables_CxC))


def fleiss_kappa(counts_NxC: np.ndarray, weights_N: np.ndarray | None = None) -> np.ndarray:
    """Fleiss' kappa (Psychological Bulletin 76, 1971) of counts [N, C]: how many raters call row n a c.

    Rows may have been judged by different numbers of raters (Fleiss, Levin and Paik, "Statistical Methods for Rates and
    Proportions", 2003, section 18.3, with rows of equal weight); those of fewer than two count for nothing.

    Args:
        counts_NxC: whole numbers.
        weights_N: how often each row counts, [..., N]; once by default.

    Returns:
        float64 [...]; nan where it is not defined.
    """
    counts_NxC = np.asarray(counts_NxC, np.float64)
    weights_N = np.ones(len(counts_NxC)) if weights_N is None else np.asarray(weights_N, np.float64)
    return _corrected(*_fleiss(counts_NxC, weights_N))


def agreement(
    ratings_NxR: np.ndarray,
    clusters_N: ArrayLike,
    *,
    categories: int,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int,
) -> Agreement:
    """Kappas of R raters on N rows, with intervals from a bootstrap over clusters of rows.

    Args:
        ratings_NxR: int, a category from 0, or -1 where the rater has not judged the row.
        clusters_N: rows that stand or fall together, such as the two edits of one item.
        categories: how many there are.
        level, resamples, seed: as in `clustered_mean`.

    Raises:
        ValueError: another shape, or a category that there is not.
    """
    ratings_NxR, clusters_N = np.asarray(ratings_NxR), np.asarray(clusters_N)
    if ratings_NxR.ndim != 2 or len(clusters_N) != len(ratings_NxR):
        raise ValueError(f"ratings {ratings_NxR.shape} and clusters {clusters_N.shape}: give [N, R] and [N].")
    if ratings_NxR.size and not (ratings_NxR.min() >= -1 and ratings_NxR.max() < categories):
        raise ValueError(f"ratings hold other than -1 to {categories - 1}: a category, or -1 for none.")
    options = {"level": level, "resamples": resamples, "seed": seed}
    counts_NxC = (ratings_NxR[:, :, None] == np.arange(categories)).sum(1).astype(np.float64)
    judged_N = counts_NxC.sum(1) >= 2
    counts_NxC, by_row_N = counts_NxC[judged_N], clusters_N[judged_N]
    fleiss = _kappa(by_row_N, functools.partial(_fleiss, counts_NxC), **options)
    cohen = {}
    for a, b in itertools.combinations(range(ratings_NxR.shape[1]), 2):
        both_N = (ratings_NxR[:, a] >= 0) & (ratings_NxR[:, b] >= 0)
        if both_N.any():
            cells_N = categories * ratings_NxR[both_N, a] + ratings_NxR[both_N, b]
            cells_NxCxC = np.eye(categories**2)[cells_N].reshape(-1, categories, categories)
            cohen[a, b] = _kappa(clusters_N[both_N], functools.partial(_cohen_of_rows, cells_NxCxC), **options)
    return Agreement(fleiss, cohen)


def _cohen(tables_CxC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Agreement found and expected, [...]."""
    tables_CxC = np.asarray(tables_CxC, np.float64)
    with np.errstate(invalid="ignore"):
        shares_CxC = tables_CxC / tables_CxC.sum((-2, -1), keepdims=True)
    expected = (shares_CxC.sum(-1) * shares_CxC.sum(-2)).sum(-1)
    return np.trace(shares_CxC, axis1=-2, axis2=-1), expected


def _cohen_of_rows(cells_NxCxC: np.ndarray, weights_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _cohen(np.tensordot(weights_N, cells_NxCxC, 1))


def _fleiss(counts_NxC: np.ndarray, weights_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Agreement found and expected, [...]."""
    judges_N = counts_NxC.sum(1)
    weights_N = weights_N * (judges_N >= 2)
    pairs_N = np.maximum(judges_N * (judges_N - 1), 1)
    alike_N = (counts_NxC * (counts_NxC - 1)).sum(1) / pairs_N
    totals_C = weights_N @ counts_NxC
    with np.errstate(invalid="ignore", divide="ignore"):
        shares_C = totals_C / totals_C.sum(-1, keepdims=True)
        return weights_N @ alike_N / weights_N.sum(-1), (shares_C**2).sum(-1)


def _corrected(agreed: np.ndarray, expected: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(expected < 1 - 1e-12, (agreed - expected) / (1 - expected), np.nan)


def _kappa(
    clusters_N: np.ndarray,
    parts: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    *,
    level: float,
    resamples: int,
    seed: int,
) -> Kappa:
    """`parts` gives agreement found and expected for weights of the rows, [..., N]."""
    rows, clusters = len(clusters_N), len(np.unique(clusters_N))
    if not rows:
        return Kappa(None, None, None, 0)
    agreed, expected = parts(np.ones(rows))
    value = float(_corrected(agreed, expected))
    if np.isnan(value) or clusters < 2:
        return Kappa(None if np.isnan(value) else value, None, None, rows)
    sure = unanimous(clusters, level)  # where all rows are alike the bootstrap knows of no others; this bound does
    if agreed > 1 - 1e-12:
        return Kappa(value, float(_corrected(np.asarray(sure), expected)), value, rows)
    if agreed < 1e-12:
        return Kappa(value, value, float(_corrected(np.asarray(1 - sure), expected)), rows)
    draws_R = _corrected(*parts(cluster_weights(clusters_N, resamples=resamples, seed=seed)))
    return Kappa(value, *ends(draws_R, clusters=clusters, level=level), rows)
