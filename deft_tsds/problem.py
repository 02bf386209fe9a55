"""The transport problem between queries and their neighbourhoods, and a plan that answers it.

Shapes: N candidates, M queries, K neighbours of a query, U distinct candidates in all neighbourhoods (the shortlist).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import jax
import numpy as np

from deft_tsds.arrays import as_matrix, check_count, check_real, check_same_width
from deft_tsds.density import kernel_density
from deft_tsds.neighbors import nearest_neighbors

DensityOver = Literal["shortlist", "pool"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Queries, their K nearest candidates, and how crowded the place of each candidate is. A pytree; `size` is static.

    Attributes:
        costs_MxK: float32, L2 distances d_i(1) <= ... <= d_i(K) to the neighbours of each query.
        next_cost_M: float32, d_i(K+1), the distance that every candidate beyond the K has at least; inf when K = N.
        index_MxK: int32, the place of each neighbour in the shortlist.
        shortlist_U: int32, candidate ids, sorted and distinct.
        density_U: float32, rho of each shortlisted candidate; ones when no bandwidth was given.
        query_weights_M: float64, sums to 1. A row of weight zero is padding: it changes no answer.
        size: N.
    """

    costs_MxK: Any
    next_cost_M: Any
    index_MxK: Any
    shortlist_U: Any
    density_U: Any
    query_weights_M: Any
    size: int

    @classmethod
    def from_embeddings(
        cls,
        candidates: Any,
        queries: Any,
        *,
        neighbors: int = 5000,
        bandwidth: float | None = None,
        density_over: DensityOver = "shortlist",
        query_weights: Any = None,
    ) -> Problem:
        """Find the neighbourhoods of the queries and the density of the shortlist.

        Args:
            candidates: [N, D] real; may be a float32 memory-map.
            queries: [M, D] real.
            neighbors: K, at least 1; a K above N means all N candidates.
            bandwidth: h of the kernel density; None leaves rho = 1, which makes "kde" the same as "uniform".
            density_over: rho sums over the "shortlist" (as the authors' code does) or over the whole "pool" (as the
                paper defines it; U N D operations).
            query_weights: [M] above 0, made to sum to 1; None weighs all queries alike.

        Raises:
            ValueError: bad rows or different widths, neighbors < 1, bandwidth not above 0, unknown density_over,
                weights of the wrong shape or not above 0.
        """
        if density_over not in get_args(DensityOver):
            raise ValueError(f"density_over is {density_over!r}: choose one of {', '.join(get_args(DensityOver))}.")
        candidates_NxD = as_matrix(candidates, "candidates")
        queries_MxD = as_matrix(queries, "queries")
        check_same_width(queries_MxD, candidates_NxD, "queries", "candidates")
        n = len(candidates_NxD)
        k = min(check_count(neighbors, "neighbors", 1), n)
        if bandwidth is not None:
            bandwidth = check_real(bandwidth, "bandwidth", above=0.0)
        query_weights_M = _check_weights(query_weights, len(queries_MxD))

        found = nearest_neighbors(queries_MxD, candidates_NxD, min(k + 1, n))
        next_cost_M = found.distances_MxK[:, k] if k < n else np.full(len(queries_MxD), np.inf, dtype=np.float32)
        shortlist_U, index = np.unique(found.indices_MxK[:, :k], return_inverse=True)
        if bandwidth is None:
            density_U = np.ones(len(shortlist_U), dtype=np.float32)
        else:
            pool = candidates_NxD if density_over == "pool" else None
            density_U = kernel_density(candidates_NxD[shortlist_U], bandwidth=bandwidth, pool=pool)
        return cls(
            costs_MxK=np.ascontiguousarray(found.distances_MxK[:, :k]),
            next_cost_M=np.ascontiguousarray(next_cost_M),
            index_MxK=index.reshape(-1, k).astype(np.int32),
            shortlist_U=shortlist_U,
            density_U=density_U,
            query_weights_M=query_weights_M,
            size=n,
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """A transport plan on the neighbourhoods of a Problem. A pytree; `size` is static, `info` stays behind.

    Attributes:
        mass_MxK: gamma, row i sums to the weight of query i; column k is the k-th neighbour of the row.
        weights_U: the candidates' marginal sum_i gamma_ij on the shortlist, sums to 1.
        shortlist_U: int32, candidate ids of `weights_U`.
        size: N.
        info: what the solver has to say of this plan (see `tsds`).
    """

    mass_MxK: Any
    weights_U: Any
    shortlist_U: Any
    size: int
    info: dict[str, Any] = field(default_factory=dict)

    def probabilities(self) -> np.ndarray:
        """Return p_j = sum_i gamma_ij over all candidates, float64 [N], summing to 1."""
        probabilities_N = np.zeros(self.size)
        probabilities_N[np.asarray(self.shortlist_U)] = self.weights_U
        return probabilities_N / probabilities_N.sum()


jax.tree_util.register_dataclass(
    Problem,
    data_fields=[
        "costs_MxK",
        "next_cost_M",
        "index_MxK",
        "shortlist_U",
        "density_U",
        "query_weights_M",
    ],
    meta_fields=["size"],
)
# A message is no array, and a dict cannot be static: `info` does not pass through a transformation.
jax.tree_util.register_dataclass(
    Plan, data_fields=["mass_MxK", "weights_U", "shortlist_U"], meta_fields=["size"], drop_fields=["info"]
)


def _check_weights(query_weights: Any, m: int) -> np.ndarray:
    if query_weights is None:
        return np.full(m, 1.0 / m)
    weights_M = np.asarray(query_weights, dtype=np.float64)
    if weights_M.shape != (m,):
        raise ValueError(f"query_weights has shape {weights_M.shape}: give one weight for each of the {m} queries.")
    good = np.isfinite(weights_M) & (weights_M > 0)
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"query_weights, row {row}, is {weights_M[row]}: give a finite weight above 0, or drop the query."
        )
    weights_M = weights_M / weights_M.max()  # first, so that the sum of large weights cannot overflow
    return weights_M / weights_M.sum()
