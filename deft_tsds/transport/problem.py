"""The transport problem between queries and their neighbourhoods, and a plan that answers it.

Shapes: N candidates, M queries, K neighbours of a query, U distinct candidates in all neighbourhoods (the shortlist).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

import jax
import numpy as np

from deft_tsds.arrays import Rows, as_matrix, check_count, check_real, check_same_width
from deft_tsds.geometry.bandwidth import propose_bandwidth
from deft_tsds.geometry.density import kernel_density
from deft_tsds.geometry.mesh import as_shared_matrix, mesh_of, processes, rows_of
from deft_tsds.geometry.neighbors import nearest_neighbors
from deft_tsds.transport.closed_form import Regularizer, check_trade, optima, widened

DensityOver = Literal["shortlist", "pool"]


@dataclass(frozen=True, eq=False)
class Problem:
    """Queries, their K nearest candidates, and how crowded the place of each candidate is.

    A pytree; `size` is static, `info` stays behind.

    Attributes:
        costs_MxK: float32, L2 distances d_i(1) <= ... <= d_i(K) to the neighbours of each query.
        next_cost_M: float32, d_i(K+1), the distance that every candidate beyond the K has at least; inf when K = N.
        index_MxK: int32, the place of each neighbour in the shortlist.
        shortlist_U: int32, candidate ids, sorted and distinct.
        density_U: float32, rho of each shortlisted candidate; ones when no bandwidth was given.
        query_weights_M: float64, sums to 1. A row of weight zero is padding: it changes no answer.
        size: N.
        info: how it came about (see `from_embeddings`).

    Example:
        >>> candidates, queries = np.array([[0.0], [0.1], [1.0], [9.0]]), np.array([[0.0]])
        >>> problem = dt.Problem.from_embeddings(candidates, queries, neighbors=2)
        >>> problem.costs_MxK.shape, problem.next_cost_M, problem.shortlist_U, problem.size
        ((1, 2), array([1.], dtype=float32), array([0, 1], dtype=int32), 4)
    """

    costs_MxK: Any
    next_cost_M: Any
    index_MxK: Any
    shortlist_U: Any
    density_U: Any
    query_weights_M: Any
    size: int
    info: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_embeddings(
        cls,
        candidates: Any,
        queries: Any,
        *,
        neighbors: int = 5000,
        bandwidth: float | Literal["auto"] | None = None,
        density_over: DensityOver = "shortlist",
        query_weights: Any = None,
        grow: bool = False,
        alpha: float = 0.5,
        scale: float = 5.0,
        regularizer: Regularizer = "kde",
    ) -> Problem:
        """Find the neighbourhoods of the queries and the density of the shortlist.

        Args:
            candidates: [N, D] real; may be a float32 memory-map, `Shards` or a `Store`, which are read once a search.
            queries: [M, D] real.
            neighbors: K, at least 1; a K above N means all N candidates.
            bandwidth: h of the kernel density; None leaves rho = 1, which makes "kde" the same as "uniform"; "auto"
                proposes one from the near-duplicates of the shortlist (`deft_tsds.geometry.bandwidth` has the rule).
            density_over: rho sums over the "shortlist" (as the authors' code does) or over the whole "pool" (as the
                paper defines it; U N D operations).
            query_weights: [M] above 0, made to sum to 1; None weighs all queries alike.
            grow: whether to search again with more neighbours, up to 4 times as many by how much was missing, until
                `tsds` with the following arguments finds its optimum among them (with K = N it always does).
            alpha, scale, regularizer: the optimum that `grow` is for; not read without it. An optimum of a higher
                alpha or a lower scale needs no more neighbours than this one.

        Returns:
            Problem. Its `info` holds
                neighbors: K;
                searches: every K that was searched for, the last one included;
                shortlist: U;
                bandwidth: h, or None;
                bandwidth_found: with bandwidth="auto", what was seen of near-duplicates (`propose_bandwidth`).

        Raises:
            ValueError: bad rows or different widths, neighbors < 1, bandwidth not above 0, unknown density_over,
                weights of the wrong shape or not above 0, alpha, scale or regularizer out of range.
        """
        if density_over not in get_args(DensityOver):
            raise ValueError(f"density_over is {density_over!r}: choose one of {', '.join(get_args(DensityOver))}.")
        candidates_NxD = as_shared_matrix(candidates, "candidates", mesh_of(None))
        queries_MxD = as_matrix(queries, "queries")
        check_same_width(queries_MxD, candidates_NxD, "queries", "candidates")
        n = len(candidates_NxD)
        k = min(check_count(neighbors, "neighbors", 1), n)
        if bandwidth is not None and not isinstance(bandwidth, str):
            bandwidth = check_real(bandwidth, "bandwidth", above=0.0)
        elif bandwidth not in (None, "auto"):
            raise ValueError(f'bandwidth is {bandwidth!r}: give a number above 0, "auto" or None.')
        alpha, scale = check_trade(alpha, scale, regularizer)
        query_weights_M = _check_weights(query_weights, len(queries_MxD))

        tau = scale * (1 - alpha) / alpha
        searches = []
        while True:
            searches.append(k)
            problem = cls._neighborhoods(candidates_NxD, queries_MxD, k, query_weights_M)
            # Before the densities, which may take longer than the search: "uniform" and "tv" need none, and what "kde"
            # cannot reach with rho = 1 is out of its reach with any rho >= 1 (unless Z is known).
            if grow and (regularizer != "kde" or len(problem.shortlist_U) < n):
                k = _enough_neighbors(problem, tau, "uniform" if regularizer == "kde" else regularizer)
            if k == searches[-1]:
                problem = problem._with_density(candidates_NxD, bandwidth, density_over, searches)
                if grow:
                    k = _enough_neighbors(problem, tau, regularizer)
                if k == searches[-1]:
                    return problem

    @classmethod
    def _neighborhoods(cls, candidates_NxD: np.ndarray, queries_MxD: np.ndarray, k: int, weights_M: Any) -> Problem:
        """The K nearest candidates of each query, with rho = 1."""
        n = len(candidates_NxD)
        found = nearest_neighbors(queries_MxD, candidates_NxD, min(k + 1, n))
        next_cost_M = found.distances_MxK[:, k] if k < n else np.full(len(queries_MxD), np.inf, dtype=np.float32)
        # A mark for each candidate, not np.unique, which would sort M K numbers.
        wanted_N = np.zeros(n, dtype=bool)
        wanted_N[found.indices_MxK[:, :k].ravel()] = True
        shortlist_U = np.flatnonzero(wanted_N).astype(np.int32)
        place_N = np.cumsum(wanted_N, dtype=np.int32) - np.int32(1)
        return cls(
            costs_MxK=found.distances_MxK[:, :k],
            next_cost_M=np.ascontiguousarray(next_cost_M),
            index_MxK=place_N[found.indices_MxK[:, :k]],
            shortlist_U=shortlist_U,
            density_U=np.ones(len(shortlist_U), dtype=np.float32),
            query_weights_M=weights_M,
            size=n,
        )

    def _with_density(
        self,
        candidates_NxD: np.ndarray,
        bandwidth: float | Literal["auto"] | None,
        density_over: DensityOver,
        searches: list[int],
    ) -> Problem:
        info = {"neighbors": searches[-1], "searches": list(searches), "shortlist": len(self.shortlist_U)}
        if bandwidth is None:
            return replace(self, info={**info, "bandwidth": None})
        everything = len(self.shortlist_U) == self.size
        pool = candidates_NxD if density_over == "pool" and not everything else None
        rows_U = None if everything else self.shortlist_U
        mesh = mesh_of(None)
        if isinstance(candidates_NxD, Rows):  # files read a row many times slower than memory: once, then
            one = processes(mesh).size == 1
            held = candidates_NxD.held(self.shortlist_U) if one else rows_of(mesh, candidates_NxD, self.shortlist_U)
            candidates_NxD, rows_U = cast(np.ndarray, held), None
        if bandwidth == "auto":
            distance_U = np.full(len(self.shortlist_U), np.inf, dtype=np.float32)
            np.minimum.at(distance_U, self.index_MxK.ravel(), self.costs_MxK.ravel())
            shortlisted_UxD = candidates_NxD[:] if rows_U is None else rows_of(mesh, candidates_NxD, rows_U)
            bandwidth, info["bandwidth_found"] = propose_bandwidth(shortlisted_UxD, distance_U)
            del shortlisted_UxD
        density_U = kernel_density(candidates_NxD, rows=rows_U, bandwidth=bandwidth, pool=pool)
        return replace(self, density_U=density_U, info={**info, "bandwidth": bandwidth})


@dataclass(frozen=True, eq=False)
class Plan:
    """A transport plan on the neighbourhoods of a Problem. A pytree; `size` is static, `info` stays behind.

    Attributes:
        mass_MxK: gamma, row i sums to the weight of query i; column k is the k-th neighbour of the row.
        weights_U: the candidates' marginal sum_i gamma_ij on the shortlist, sums to 1.
        shortlist_U: int32, candidate ids of `weights_U`.
        size: N.
        info: what the solver has to say of this plan (see `tsds`).

    Example:
        >>> candidates, queries = np.array([[0.0], [0.1], [1.0], [9.0]]), np.array([[0.0]])
        >>> plan = dt.tsds(dt.Problem.from_embeddings(candidates, queries, neighbors=2), alpha=1.0)  # the nearest alone
        >>> plan.mass_MxK, plan.probabilities()
        (array([[1., 0.]]), array([1., 0., 0., 0.]))
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


# A message is no array, and a dict cannot be static: `info` does not pass through a transformation.
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
    drop_fields=["info"],
)
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


def _enough_neighbors(problem: Problem, tau: float, regularizer: Regularizer) -> int:
    """K itself if it is enough for the optimum, else the next K to try."""
    k = problem.costs_MxK.shape[1]
    optimum = optima(problem, regularizer).at(tau)
    return k if optimum.shortfall == 0 else widened(k, optimum.reached, tau, problem.size, most=4)
