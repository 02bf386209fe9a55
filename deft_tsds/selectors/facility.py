"""Facility location: the rows that together come nearest to every row of the pool.

References:
    Nemhauser, Wolsey and Fisher, "An analysis of approximations for maximizing submodular set functions", 1978.
    Minoux, "Accelerated greedy algorithms for maximizing submodular set functions", 1978 (the lazy form).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from deft_tsds.arrays import check_count
from deft_tsds.cost import PlanCost
from deft_tsds.runs import track
from deft_tsds.selection import Pool, Selection
from deft_tsds.selectors.pairs import pair_cost, pair_means, stand_ins, unit_float64

# So many gains are brought up to date together: first the fewer, then twice as many each time, up to the more.
_FEWEST, _MOST = 64, 4096


@dataclass(frozen=True)
class FacilityLocation:
    """Lazy greedy for f(S) = mean_i max_{j in S} (1 + cos(x_i, x_j)) / 2, monotone and submodular.

    The greedy choice reaches at least 1 - 1/e of the best f that any B rows have. For the choice at hand info has more:
    no B rows have more than f(S) plus the B largest gains that are left, and `certified` is f(S) over that. A gain is
    worked out again only while it could still be the largest; equal gains go to the lower row.

    No matrix of all pairs is held. Where the pool has more than `sample` rows, the mean is over a uniform sample of so
    many (the choice is still among all), and the certificate is one for that sample; info has Hoeffding's bound on how
    far f of a given choice lies from its value over the pool.
    """

    sample: int = 16_384
    """The most rows i that the mean is over."""

    def __post_init__(self) -> None:
        check_count(self.sample, "sample", 1)

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """Two rounds of gains for all rows, as a rule, and B small ones (see `pairs`)."""
        n, d = pool.embeddings_NxD.shape
        return pair_cost(n, d, self.sample) + pair_cost(n, d, self.sample)

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        stand_PxD, compared = stand_ins(pool.embeddings_NxD, self.sample, key)
        best_P = np.zeros(len(stand_PxD))  # f of the empty set is 0
        # Before anything is chosen a gain is linear in the row: (1 + x_j . mean) / 2.
        gain_N = pair_means(pool.embeddings_NxD, stand_PxD.mean(axis=0, keepdims=True), lambda c, _: (1 + c) / 2)
        fresh_N = np.ones(len(pool), bool)
        rows, gains, updates = [], [], 0
        for _ in track(range(budget), "facility location"):
            together = _FEWEST
            while not fresh_N[row := int(np.argmax(gain_N))]:
                stale = _largest(np.where(fresh_N, -np.inf, gain_N), together)
                together = min(2 * together, _MOST)
                gain_N[stale] = pair_means(pool.embeddings_NxD[stale], stand_PxD, partial(_gained, best_P))
                fresh_N[stale] = True
                updates += len(stale)
            rows.append(row)
            gains.append(float(gain_N[row]))
            gain_N[row] = -np.inf
            chosen_D = unit_float64(pool.embeddings_NxD[row : row + 1])[0]
            best_P = np.maximum(best_P, (1 + stand_PxD @ chosen_D) / 2)
            fresh_N[:] = False
        value = float(best_P.mean())
        left_N = gain_N[np.isfinite(gain_N)]
        most = min(value + float(np.sort(left_N)[::-1][:budget].sum(dtype=np.float64)), 1.0)
        info: dict[str, Any] = {"value": value, "best_at_most": most, "certified": value / most, "updates": updates}
        reasons, covered = {}, 0.0
        for step, (row, gain) in enumerate(zip(rows, gains, strict=True), 1):
            covered += gain
            why = f"Number {step}: brings the mean similarity of the pool to its nearest chosen row up by {gain:.4g}"
            reasons[row] = {"why": f"{why}, to {covered:.4f}.", "step": step, "gain": gain}
        order = np.argsort(rows)
        chosen = np.array(rows)[order]
        scores = np.array(gains)[order]
        return Selection.of(
            chosen, scores=scores, reasons=[reasons[row] for row in chosen.tolist()], info=info | compared
        )


def _gained(best_P: np.ndarray, cosine_BxQ: np.ndarray, columns: slice) -> np.ndarray:
    """How much nearer each of the rows `columns` comes."""
    return np.maximum((1 + cosine_BxQ) / 2 - best_P[columns], 0)


def _largest(values_N: np.ndarray, count: int) -> np.ndarray:
    """The finite entries among the `count` largest, ascending by row."""
    if len(values_N) > count:
        rows = np.sort(np.argpartition(values_N, len(values_N) - count)[-count:])
    else:
        rows = np.arange(len(values_N))
    return rows[np.isfinite(values_N[rows])]
