"""Sums over all pairs of two sets of unit rows, in blocks: what facility location and herding need of the whole pool.

Everything is in float64 and the sums are rounded once to float32, so that sums that are equal stay equal whatever the
block they are in (as with the distances of `neighbors`). Where the pool is large, a uniform sample stands for it: the
mean over a sample of n rows of anything in [0, 1] is off by more than sqrt(log(2 / p) / 2n) with a probability of at
most p (Hoeffding's inequality).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from deft_tsds.arrays import row_blocks, usable_cpus
from deft_tsds.cost import PlanCost, StageCost
from deft_tsds.runs import track
from deft_tsds.sampling import generator_of

# A product of so many pairs, 2 MB, is turned into its sums while it is in the cache.
_LEFT = 128
_RIGHT = 2048

_CERTAINTY = 0.99


def pair_means(
    left_AxD: Any, right_PxD: np.ndarray, function: Callable[[np.ndarray, slice], np.ndarray], *, what: str = ""
) -> np.ndarray:
    """The mean over p of function(left_a . right_p) for each a.

    Args:
        left_AxD: float32 rows of any length, read in blocks and brought to unit length.
        right_PxD: float64 rows of unit length.
        function: `function(cosines_BxQ, columns) -> [B, Q]`, columns the slice of the Q right rows; it may write into
            its argument.
        what: for the progress bar; "" shows none.

    Returns:
        float32 [A].
    """
    mean_A = np.empty(len(left_AxD), np.float32)

    def part(rows: slice) -> None:
        left_BxD = unit_float64(left_AxD[rows])
        total_B = np.zeros(len(left_BxD))
        for columns in row_blocks(len(right_PxD), 1, _RIGHT):
            total_B += function(left_BxD @ right_PxD[columns].T, columns).sum(axis=1)
        mean_A[rows] = total_B / len(right_PxD)

    parts = list(row_blocks(len(left_AxD), 1, _LEFT))
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(usable_cpus()) as threads:
        done = threads.map(part, parts)
        for _ in track(done, what, total=len(parts)) if what else done:
            pass
    return mean_A


def unit_float64(rows_NxD: np.ndarray) -> np.ndarray:
    """float64 rows at unit length; zero rows stay zero. Not rounded to float32, whose rows have lengths beside 1."""
    rows_NxD = np.asarray(rows_NxD, np.float64)
    norms_N = np.sqrt(np.einsum("nd,nd->n", rows_NxD, rows_NxD))
    return rows_NxD / np.where(norms_N > 0, norms_N, 1.0)[:, None]


def stand_ins(pool_NxD: np.ndarray, most: int, key: jax.Array) -> tuple[np.ndarray, dict[str, Any]]:
    """All rows of the pool at unit length, or a uniform sample of `most` of them, and what to say about it.

    Returns:
        float64 [n, D], and plain JSON: n, and with a sample the bound on the error of a mean of numbers in [0, 1].
    """
    n = len(pool_NxD)
    if n <= most:
        return unit_float64(pool_NxD[:]), {"compared_with": n}
    rows = np.sort(generator_of(key).choice(n, most, replace=False))
    bound = math.sqrt(math.log(2 / (1 - _CERTAINTY)) / (2 * most))
    said = {"compared_with": most, "error_of_a_mean_at_most": bound, "with_certainty": _CERTAINTY}
    return unit_float64(pool_NxD[rows]), said


def pair_cost(n: int, d: int, sample: int) -> PlanCost:
    """One mean over the stand-ins for each of N rows."""
    p = min(n, sample)
    blocks = usable_cpus() * (24 * _LEFT * _RIGHT + 16 * _LEFT * d)
    return PlanCost((StageCost("pairs", 24 * p * d + 32 * n + blocks, 2 * n * p * d),))
