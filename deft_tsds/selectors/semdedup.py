"""SemDeDup: within clusters, rows that hardly differ from one before them are dropped.

Reference: "SemDeDup: Data-efficient learning at web-scale through semantic deduplication", arXiv 2303.09540.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import numpy as np

from deft_tsds.arrays import check_count, check_real, normalize_rows, row_blocks
from deft_tsds.cost import PlanCost, StageCost, clustering_cost
from deft_tsds.runs import track
from deft_tsds.sampling import generator_of
from deft_tsds.selection import Pool, Selection
from deft_tsds.selectors.clusters import cluster_rows, cosine_distances

Keep = Literal["hard", "easy", "random"]

_BLOCK = 512


@dataclass(frozen=True)
class SemDeDup:
    """k-means; each cluster in an order; a row is dropped if its cosine with a row before it is above 1 - epsilon.

    That is algorithm A.7 of the paper and its published code: the row before it may itself be one that was dropped. The
    order says which row of a group of duplicates stays: the first. Only rows of one cluster are compared.
    """

    epsilon: float | None = None
    """How much of the cosine two rows may lack and still be duplicates, in [0, 2]. None is the one that leaves just the
    budget: the rows with the least cosine to any before them stay. With a number, the budget is drawn uniformly from
    the rows that stay; where they are fewer, all of them are the selection."""

    clusters: int = 100
    """K; at most the number of rows."""

    keep: Keep = "hard"
    """Of duplicates keep the one farthest from the centroid ("hard", as the paper), nearest ("easy"), or any
    ("random")."""

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            check_real(self.epsilon, "epsilon", at_least=0, at_most=2)
        check_count(self.clusters, "clusters", 1)
        if self.keep not in get_args(Keep):
            raise ValueError(f"keep is {self.keep!r}: choose one of {', '.join(get_args(Keep))}.")

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """The clustering, and the pairs within clusters of equal size; unequal ones have more (see `cost`)."""
        n, d = pool.embeddings_NxD.shape
        pairs = StageCost("duplicates", 4 * n * d + 64 * n + 8 * _BLOCK * (8 * _BLOCK + d), n * n * d // self.clusters)
        return clustering_cost(n, d, self.clusters) + PlanCost((pairs,))

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        n = len(pool)
        key_clusters, key_order, key_draw = jax.random.split(key, 3)
        unit_NxD = normalize_rows(pool.embeddings_NxD)
        clustering, clustering_info = cluster_rows(unit_NxD, self.clusters, most_clusters=2, key=key_clusters)
        place_N = self._places(unit_NxD, clustering.centroids_KxD, clustering.labels_N, key_order)
        order = np.lexsort((place_N, clustering.labels_N))
        ends = np.cumsum(clustering.sizes_K)
        nearest_N = np.empty(n, np.float32)
        before_N = np.empty(n, np.int64)
        for start, end in track(list(zip(ends - clustering.sizes_K, ends, strict=True)), "duplicates in clusters"):
            rows = order[start:end]
            nearest_N[rows], places = most_similar_before(unit_NxD[rows])
            before_N[rows] = np.where(places < 0, -1, rows[places])

        info: dict[str, Any] = {"cluster_sizes": clustering.sizes_K.tolist(), "kmeans": clustering_info}
        by_novelty = np.argsort(nearest_N, kind="stable")
        if self.epsilon is None:
            rows = by_novelty[:budget]
            info["epsilon"] = 1 - float(nearest_N[rows[-1]])
        else:
            rows = by_novelty[nearest_N[by_novelty] <= 1 - self.epsilon]
            info["stay"] = len(rows)
            if len(rows) > budget:
                rows = generator_of(key_draw).choice(np.sort(rows), budget, replace=False)
            elif len(rows) < budget:
                info["shortfall"] = (
                    f"epsilon = {self.epsilon:g} leaves {len(rows)} of {n} candidates, fewer than the budget of "
                    f"{budget}: lower epsilon, or set it to None to have it chosen."
                )
        rows = np.sort(rows)
        reasons = []
        for row, cosine, before in zip(rows.tolist(), nearest_N[rows].tolist(), before_N[rows].tolist(), strict=True):
            cluster = int(clustering.labels_N[row])
            if before < 0:
                why = f"The first of cluster {cluster} ({self.keep} first): no row before it to repeat."
                reasons.append({"why": why, "cluster": cluster, "similar": None})
            else:
                why = (
                    f"In cluster {cluster} the most similar row before it ({self.keep} first) is {before}, at cosine "
                    f"{cosine:.4f}."
                )
                reasons.append({"why": why, "cluster": cluster, "similar": {"row": before, "cosine": cosine}})
        return Selection.of(rows, scores=-nearest_N[rows], reasons=reasons, info=info)

    def _places(
        self, unit_NxD: np.ndarray, centroids_KxD: np.ndarray, labels_N: np.ndarray, key: jax.Array
    ) -> np.ndarray:
        """What the rows of a cluster are ordered by; ties by the lower row."""
        if self.keep == "random":
            return generator_of(key).random(len(unit_NxD))
        distance_N = cosine_distances(unit_NxD, centroids_KxD, labels_N)
        return distance_N if self.keep == "easy" else -distance_N


def most_similar_before(unit_NxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest cosine of each row with a row before it, float32 [N], and the first row that has it, int64 [N].

    The first row has none: -1 for both.

    Args:
        unit_NxD: float32 rows of unit length.
    """
    cosine_N, place_N = np.full(len(unit_NxD), -1, np.float32), np.full(len(unit_NxD), -1)
    for rows in row_blocks(len(unit_NxD), 1, _BLOCK):
        left_BxD = np.asarray(unit_NxD[rows], np.float64)
        for columns in row_blocks(rows.stop - 1, 1, 8 * _BLOCK):
            # Rounded to float32, so that equal rows tie.
            cosine_BxC = (left_BxD @ np.asarray(unit_NxD[columns], np.float64).T).astype(np.float32)
            before_BxC = np.arange(columns.start, columns.stop) < np.arange(rows.start, rows.stop)[:, None]
            cosine_BxC = np.where(before_BxC, cosine_BxC, -np.inf)
            best_B = cosine_BxC.argmax(axis=1)
            found_B = np.take_along_axis(cosine_BxC, best_B[:, None], axis=1)[:, 0]
            better = np.flatnonzero((found_B > cosine_N[rows]) | ((place_N[rows] < 0) & np.isfinite(found_B)))
            cosine_N[rows.start + better] = found_B[better]
            place_N[rows.start + better] = columns.start + best_B[better]
    return cosine_N, place_N
