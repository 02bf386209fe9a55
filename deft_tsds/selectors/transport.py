"""Transport: candidates drawn by the plan that is best for an objective of your own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import numpy as np

from deft_tsds.arrays import check_count, check_real
from deft_tsds.cost import PlanCost, plan_cost
from deft_tsds.sampling import inclusion_probabilities, sample
from deft_tsds.selection import Pool, Selection
from deft_tsds.selectors.reasons import plan_reasons
from deft_tsds.transport.objective import Objective
from deft_tsds.transport.problem import DensityOver, Problem
from deft_tsds.transport.solve import solve


@dataclass(frozen=True)
class Transport:
    """Rows drawn without replacement by p_j = sum_i gamma_ij, gamma the best plan for an objective (see `dt.solve`).

    Terms that take `candidates_UxD`, `queries_MxD` or `pool_mean_D` and have not been given them get the embeddings of
    the pool here. Each row counts once, as with `TSDS`.
    """

    objective: Objective
    """What the plan is to minimise."""

    neighbors: int = 1000
    """K, the nearest candidates that each query considers; at most all of them. Memory is some 100 M K bytes."""

    bandwidth: float | Literal["auto"] | None = None
    """h of the densities, for terms that look at them; None makes every density 1."""

    density_over: DensityOver = "shortlist"
    """Where near-duplicates are looked for: in the "shortlist", or in the whole "pool"."""

    tolerance: float = 1e-4
    """The gap to reach, relative to the value."""

    max_iterations: int = 2000
    """How many steps to try at most."""

    cap: float | None = None
    """The most that any p_j may be, such as 1/B."""

    needs_queries: ClassVar[bool] = True
    takes_cost_budget: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.objective, Objective):
            raise ValueError(f"objective is {self.objective!r}: give an Objective (see Objective.of).")
        check_count(self.neighbors, "neighbors", 1)
        check_real(self.tolerance, "tolerance", above=0.0)

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """What the stages before the solver will need, and the draw (see `deft_tsds.cost`)."""
        density_over = None if self.bandwidth is None else self.density_over
        m, d = np.asarray(pool.queries_MxD).shape
        return plan_cost(len(pool), m, d, self.neighbors, budget=budget, density_over=density_over)

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        problem = Problem.from_embeddings(
            pool.embeddings_NxD,
            pool.queries_MxD,
            neighbors=self.neighbors,
            bandwidth=self.bandwidth,
            density_over=self.density_over,
        )
        plan, found = solve(
            problem,
            self._bound(pool, problem),
            tolerance=self.tolerance,
            max_iterations=self.max_iterations,
            cap=self.cap,
        )
        probability_N = plan.probabilities()
        draw = pool.draw_budget(budget)
        rows = np.sort(sample(probability_N, key=key, replace=False, **draw))
        inclusion_N = inclusion_probabilities(probability_N, **draw)
        chances = [{"inclusion": float(inclusion_N[row])} for row in rows]
        reasons = plan_reasons(pool, problem, plan, rows, chances, density=self.bandwidth is not None)
        info = {"plan": found, "neighbors_used": int(problem.costs_MxK.shape[1]), "shortlist": len(problem.shortlist_U)}
        return Selection.of(rows, scores=probability_N[rows], reasons=reasons, info=info)

    def _bound(self, pool: Pool, problem: Problem) -> Objective:
        wanted = {name for term in self.objective.terms.values() for name in term.parameters() - term.arguments.keys()}
        known: dict[str, Any] = {}
        if "candidates_UxD" in wanted:
            known["candidates_UxD"] = np.asarray(pool.embeddings_NxD[problem.shortlist_U])
        if "queries_MxD" in wanted:
            known["queries_MxD"] = np.asarray(pool.queries_MxD)
        if "pool_mean_D" in wanted:
            known["pool_mean_D"] = np.mean(pool.embeddings_NxD[:], axis=0, dtype=np.float64)
        return self.objective.bind(**known)
