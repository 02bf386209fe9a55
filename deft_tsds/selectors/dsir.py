"""DSIR: rows drawn by how much likelier their n-grams are under the target than under the pool.

Reference: "Data Selection for Language Models via Importance Resampling", arXiv 2302.03169.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np

from deft_tsds.arrays import BLOCK_BYTES, check_real, row_blocks
from deft_tsds.cost import PlanCost, StageCost
from deft_tsds.runs import track
from deft_tsds.sampling import generator_of
from deft_tsds.selection import Pool, Selection


@dataclass(frozen=True)
class DSIR:
    """Rows drawn without replacement in proportion to w = prod_f (p_target(f) / p_pool(f))^c_f, c_f their counts.

    It reads texts, not embeddings: its candidates and queries are counts of hashed n-grams, one row a text
    (`deft_tsds.data.ngrams.NgramCounts`). p_target and p_pool are the bags of n-grams of queries and pool, each
    bucket's share of all counts plus `smoothing`. The draw is Gumbel top-k on log w (section 3.2).
    """

    draw: bool = True
    """Draw with the key; False takes the highest weights, the paper's "top-k" variant."""

    smoothing: float = 1e-8
    """What is added to each bucket's share, so that none is 0; that of the published code."""

    needs_queries: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_real(self.smoothing, "smoothing", above=0)

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """Two passes over the pool in blocks (see `deft_tsds.cost`)."""
        n, f = pool.embeddings_NxD.shape
        return PlanCost((StageCost("importance", 3 * min(8 * n * f, 2 * BLOCK_BYTES) + 32 * n + 40 * f, 4 * n * f),))

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        target_F = _total(pool.queries_MxD, "queries")
        if not target_F.any():
            raise ValueError("queries hold no n-gram: give texts with words in them.")
        ratio_F = _log_share(target_F, self.smoothing) - _log_share(
            _total(pool.embeddings_NxD, "candidates"), self.smoothing
        )
        n, f = pool.embeddings_NxD.shape
        log_weight_N, length_N = np.empty(n), np.empty(n)
        for rows in track(list(row_blocks(n, row_bytes=8 * f)), "importance weights"):
            block = pool.embeddings_NxD[rows]
            # One row at a time in float64, so that equal rows have equal weights.
            log_weight_N[rows] = np.einsum("nf,f->n", block, ratio_F, dtype=np.float64)
            length_N[rows] = np.sum(block, axis=1, dtype=np.float64)
        rows = gumbel_top_k(log_weight_N, budget, key) if self.draw else top_k(log_weight_N, budget)
        reasons = []
        for weight, length in zip(log_weight_N[rows].tolist(), length_N[rows].tolist(), strict=True):
            mean = weight / max(length, 1)
            why = (
                f"{'Drawn by' if self.draw else 'Taken for'} its log weight of {weight:.2f}: its {length:g} n-grams "
                f"are on average {np.exp(min(mean, 50)):.3g} times as frequent in the target as in the pool."
            )
            reasons.append({"why": why, "log_weight": weight, "ngrams": length})
        return Selection.of(rows, scores=log_weight_N[rows], reasons=reasons)


def gumbel_top_k(log_weights_N: np.ndarray, budget: int, key: jax.Array) -> np.ndarray:
    """Draw `budget` rows one after another, without replacement, in proportion to exp(log_weights).

    Returns:
        int64 [budget], ascending.

    References:
        Kool et al., "Stochastic beams and where to find them", arXiv 1903.06059 (Gumbel top-k).
    """
    return top_k(log_weights_N + generator_of(key).gumbel(size=len(log_weights_N)), budget)


def top_k(scores_N: np.ndarray, budget: int) -> np.ndarray:
    """The rows of the highest scores, ties to the lower row; int64 [budget], ascending."""
    return np.sort(np.argsort(-np.asarray(scores_N), kind="stable")[:budget])


def _total(counts, name: str) -> np.ndarray:
    """The sum of all rows, float64 [F]. ValueError for what cannot be counts."""
    n, f = counts.shape
    total_F = np.zeros(f)
    for rows in row_blocks(n, row_bytes=8 * f):
        block = counts[rows]
        if block.min() < 0:
            row = rows.start + int(np.argmax((block < 0).any(axis=1)))
            raise ValueError(
                f"{name}, row {row}, has a negative value: DSIR reads counts of n-grams, not embeddings; make both "
                "candidates and queries with deft_tsds.data.ngrams.NgramCounts."
            )
        total_F += np.sum(block, axis=0, dtype=np.float64)
    return total_F


def _log_share(total_F: np.ndarray, smoothing: float) -> np.ndarray:
    """log of each bucket's smoothed share; a pool without n-grams has a share of 0 everywhere."""
    return np.log(total_F / max(total_F.sum(), 1.0) + smoothing)
