"""Rows that lie far apart: the greedy k-center, and a diverse sample with equal parts of all tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deft_tsds.apportion import largest_remainder
from deft_tsds.arrays import row_blocks
from deft_tsds.cost import PlanCost
from deft_tsds.selection import Pool, Selection
from deft_tsds.selectors.greedy import Greedy, choose_greedily, greedy_cost, squared_distances, unit_rows

# Squared distances of unit rows are at most this.
_FARTHEST = 4.0

# What a row at distance 0 from a chosen one counts: its logarithm is far below that of any other, and finite.
_AT_ZERO = 1e-30


@dataclass(frozen=True)
class KCenter:
    """Each row the one farthest from all that are chosen, first of all the row nearest to the mean (ties: lower row).

    The greedy algorithm of Gonzalez: the largest distance of any row to its nearest chosen one is at most twice the
    least that any choice of as many rows can reach. info has that radius, and a lower bound on the least. Distances are
    those of the rows at unit length. It is drawn to outliers: what nothing else resembles is far from everything.

    References:
        Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985.
        Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", arXiv 1708.00489.
    """

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """One pass over the pool a row (see `greedy`)."""
        n, d = pool.embeddings_NxD.shape
        return greedy_cost(n, d, budget)

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        unit_NxD = unit_rows(pool.embeddings_NxD)
        start_N = -np.asarray(squared_distances(unit_NxD, _mean(unit_NxD)))
        found = choose_greedily(
            unit_NxD, budget, start_N=start_N, fold=_fold_nearest, value=_statistic, what="farthest rows"
        )
        distance_B = np.sqrt(np.maximum(found.values_B, 0))
        distance_B[0] = np.sqrt(_FARTHEST)
        radius = float(np.sqrt(found.statistic_N.max()))
        reasons = [
            _said(
                f"Number {step + 1}: the farthest from the rows chosen before it, at distance {distance:.3f}."
                if step
                else "The first: the row nearest to the mean direction of the pool.",
                step=step + 1,
                distance=distance,
            )
            for step, distance in enumerate(distance_B.tolist())
        ]
        # Any B rows leave two of the B + 1 rows that are `radius` apart from each other to the same one of them.
        info = {"radius": radius, "least_radius_at_least": radius / 2}
        return in_order(found, distance_B, reasons, info)


@dataclass(frozen=True)
class Diverse:
    """LIMA-style: as many rows from each group (task) as from any other, and within it rows spread over the space.

    What a small group lacks goes to the others by largest remainder; without groups the pool is one. Within a group the
    first row is drawn uniformly and each further one with a probability in proportion to its squared distance to the
    nearest chosen row of the group, at unit length: the D^2 draw of k-means++, which spreads as `KCenter` does but
    follows the density, so that it does not collect outliers.

    References:
        "LIMA: Less Is More for Alignment", arXiv 2305.11206 (1,000 examples, even over sources, diverse).
        Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", 2007.
    """

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """One pass over the pool a row (see `greedy`)."""
        n, d = pool.embeddings_NxD.shape
        return greedy_cost(n, d, budget)

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        n = len(pool)
        groups_N = np.zeros(n, np.int8) if pool.groups_N is None else pool.groups_N
        labels, group_N, sizes = np.unique(groups_N, return_inverse=True, return_counts=True)
        counts = largest_remainder(np.ones(len(labels)), budget, sizes)
        unit_NxD = unit_rows(pool.embeddings_NxD)
        parts, reasons = [], []
        for group in np.flatnonzero(counts).tolist():
            found = choose_greedily(
                unit_NxD,
                int(counts[group]),
                start_N=np.full(n, _FARTHEST, np.float32),
                fold=_fold_nearest,
                value=_drawn_by_distance,
                parameters=jax.random.fold_in(key, group),
                among_N=group_N == group,
                what="diverse rows",
            )
            parts.append(found)
            whom = "" if pool.groups_N is None else f" of group {labels[group].item()!r}"
            for step in range(1, 1 + int(counts[group])):
                numbers: dict[str, Any] = {"step": step}
                if pool.groups_N is not None:
                    numbers |= {"group": labels[group].item()}
                why = (
                    f"Number {step} of {counts[group]}{whom}: drawn by the squared distance to the nearest row chosen "
                    "before it."
                    if step > 1
                    else f"The first of {counts[group]}{whom}: drawn uniformly."
                )
                reasons.append(_said(why, **numbers))
        rows_B = np.concatenate([part.rows_B for part in parts])
        info = {} if pool.groups_N is None else {"groups": _by_name(labels, counts)}
        found = Greedy(rows_B, np.zeros(len(rows_B), np.float32), parts[0].statistic_N)
        return in_order(found, found.values_B, reasons, info)


def in_order(found: Greedy, scores_B: np.ndarray, reasons: list[dict], info: dict[str, Any]) -> Selection:
    """The selection of what was chosen one by one, in the order of the pool."""
    order = np.argsort(found.rows_B)
    return Selection.of(found.rows_B[order], scores=scores_B[order], reasons=[reasons[b] for b in order], info=info)


def _said(why: str, **numbers: Any) -> dict[str, Any]:
    return {"why": why, **numbers}


def _by_name(labels: np.ndarray, counts: np.ndarray) -> dict[str, int]:
    return {str(label): int(count) for label, count in zip(labels, counts, strict=True)}


def _mean(unit_NxD: jax.Array) -> np.ndarray:
    """The mean row, summed in float64 so that the order of the rows does not matter."""
    rows_NxD = np.asarray(unit_NxD)
    total_D = np.zeros(rows_NxD.shape[1])
    for rows in row_blocks(len(rows_NxD), row_bytes=8 * rows_NxD.shape[1]):
        total_D += np.sum(rows_NxD[rows], axis=0, dtype=np.float64)
    return (total_D / len(rows_NxD)).astype(np.float32)


def _fold_nearest(nearest_N, squared_N, step, parameters):
    """The squared distance to the nearest chosen row; what stood there before the first one is gone."""
    return jnp.where(step == 0, squared_N, jnp.minimum(nearest_N, squared_N))


def _statistic(statistic_N, step, parameters):
    return statistic_N


def _drawn_by_distance(nearest_N, step, key):
    """Gumbel noise on the logarithms: the largest is a draw in proportion to the squared distances."""
    noise_N = jax.random.gumbel(jax.random.fold_in(key, step), nearest_N.shape)
    return jnp.log(jnp.maximum(nearest_N, _AT_ZERO)) + noise_N
