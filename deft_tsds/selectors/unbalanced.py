"""Unbalanced transport from the queries to the candidates near them: the rows that receive most of the mass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np

from deft_tsds.arrays import check_count, check_real
from deft_tsds.cost import PlanCost, StageCost, neighbors_cost
from deft_tsds.geometry.neighbors import nearest_neighbors
from deft_tsds.selection import Pool, Selection
from deft_tsds.selectors.dsir import top_k
from deft_tsds.selectors.nearest import queries_of
from deft_tsds.selectors.pairs import unit_float64


@dataclass(frozen=True)
class UnbalancedTransport:
    """The rows of the largest p_j = sum_i P_ij, P the plan that minimises

        sum_ij P_ij C_ij + epsilon KL(P | a b^T) + penalty KL(P^T 1 | b)   with P 1 = a,

    C_ij = (1 - cos(q_i, x_j)) / 2, a uniform over the queries and b over the shortlist: every query gives all its
    mass, and candidates may take more or less than an equal part at a small price.

    Reference: "A Critical Look at Targeted Instruction Selection", arXiv 2602.14696 (its defaults). Solved by ott-jax's
    Sinkhorn iterations on logarithms.
    """

    neighbors: int = 1000
    """K: the shortlist is the K candidates nearest to each query; the plan is dense over it, M U numbers."""

    epsilon: float = 0.01
    """Weight of the entropy. Larger spreads each query over more candidates."""

    penalty: float = 1e-4
    """Weight of the candidates' marginal. Larger makes their parts more equal."""

    tolerance: float = 1e-4
    """How far the marginal of the queries may be off, in total."""

    max_iterations: int = 2000
    """How many iterations to try at most; what is then not converged is an error."""

    needs_queries: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.neighbors, "neighbors", 1)
        check_count(self.max_iterations, "max_iterations", 1)
        for name in ("epsilon", "penalty", "tolerance"):
            check_real(getattr(self, name), name, above=0)

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """The neighbours, and the plan over the largest shortlist that they can make (see `deft_tsds.cost`)."""
        n, d = pool.embeddings_NxD.shape
        m = len(queries_of(pool))
        u = min(n, m * self.neighbors)
        plan = StageCost("plan", 32 * m * u + 16 * u * d, 2 * m * u * d + 20 * m * u * self.max_iterations)
        return neighbors_cost(n, m, d, self.neighbors) + PlanCost((plan,))

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        queries_MxD = queries_of(pool)
        k = min(self.neighbors, len(pool))
        shortlist_U = np.unique(nearest_neighbors(queries_MxD, pool.embeddings_NxD, k, metric="cosine").indices_MxK)
        if len(shortlist_U) < budget:
            raise ValueError(
                f"the {k} nearest candidates of each query are {len(shortlist_U)} altogether, fewer than the budget of "
                f"{budget}: raise neighbors, give more queries, or lower the budget."
            )
        unit_MxD, unit_UxD = unit_float64(queries_MxD[:]), unit_float64(pool.embeddings_NxD[shortlist_U])
        cost_MxU = ((1 - unit_MxD @ unit_UxD.T) / 2).astype(np.float32)
        plan_MxU, found = self._solve(cost_MxU)
        mass_U = plan_MxU.sum(axis=0, dtype=np.float64).astype(np.float32)
        places = top_k(mass_U, budget)
        rows = shortlist_U[places].astype(np.int64)
        first_B = plan_MxU[:, places].argmax(axis=0)
        reasons = []
        for place, query, mass in zip(places.tolist(), first_B.tolist(), mass_U[places].tolist(), strict=True):
            share = float(plan_MxU[query, place]) / mass if mass > 0 else 0.0
            cosine = 1 - 2 * float(cost_MxU[query, place])
            why = (
                f"Receives a mass of {mass:.3g}, {share:.0%} of it from query {query} at cosine {cosine:.3f}; an equal "
                f"part of the shortlist would be {1 / len(shortlist_U):.3g}."
            )
            reasons.append({"why": why, "mass": mass, "query": query, "share": share, "cosine": cosine})
        info = {"shortlist": len(shortlist_U), "plan": found}
        return Selection.of(rows, scores=mass_U[places], reasons=reasons, info=info)

    def _solve(self, cost_MxU: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        """The plan, and how it was found."""
        # ott writes a marginal's penalty as tau = penalty / (penalty + epsilon); 1 is a marginal that must hold.
        tau = self.penalty / (self.penalty + self.epsilon)
        plan_MxU, converged, iterations, errors = _sinkhorn(
            cost_MxU, self.epsilon, tau=tau, tolerance=self.tolerance, max_iterations=self.max_iterations
        )
        if not converged:
            raise ValueError(
                f"the plan is not within tolerance={self.tolerance:g} after {self.max_iterations} iterations: raise "
                "max_iterations, tolerance or epsilon."
            )
        measured = np.asarray(errors)[np.asarray(errors) >= 0]
        return np.asarray(plan_MxU), {"iterations": int(iterations), "error": float(measured[-1])}


@partial(jax.jit, static_argnames=("tau", "tolerance", "max_iterations"))
def _sinkhorn(cost_MxU, epsilon, *, tau, tolerance, max_iterations):
    """The plan, whether it converged, its iterations and their errors. ott compares tau with 1 in Python."""
    from ott.geometry.geometry import Geometry  # here, because it takes seconds to import
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    problem = LinearProblem(Geometry(cost_matrix=cost_MxU, epsilon=epsilon), tau_b=tau)
    solved = Sinkhorn(threshold=tolerance, max_iterations=max_iterations)(problem)
    return solved.matrix, solved.converged, solved.n_iters, solved.errors
