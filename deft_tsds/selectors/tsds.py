"""TSDS: candidates drawn by an optimal transport plan from a few examples of the target task.

Reference: "TSDS: Data Selection for Task-Specific Model Finetuning", arXiv 2410.11303.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import jax
import numpy as np

from deft_tsds.arrays import check_count, check_real
from deft_tsds.problem import DensityOver, Plan, Problem
from deft_tsds.sampling import inclusion_probabilities, sample
from deft_tsds.selection import Pool, Selection
from deft_tsds.tsds import Regularizer, tsds, tsds_grown

_QUERIES_NAMED = 3


@dataclass(frozen=True)
class TSDS:
    """Rows drawn by p_j = sum_i gamma_ij, gamma the optimum of problem RT between the queries and the candidates.

    Weights: drawn without replacement, each row counts once, since its chance of being chosen already follows p_j and a
    weight by p_j would count it twice. Drawn with replacement, a row counts as often as it was drawn, which is the
    sample of the paper with its repeats put together.
    """

    alpha: float = 0.5
    """Weight of being near to the queries against diversity, in (0, 1]; lower spreads over more candidates."""

    scale: float = 5.0
    """C, the scale of the distances; only C (1 - alpha) / alpha matters."""

    bandwidth: float = 0.75
    """h, the distance below which two candidates count as near-duplicates (regularizer "kde" only)."""

    neighbors: int = 5000
    """K, the nearest candidates that each query considers; at most all of them."""

    regularizer: Regularizer = "kde"
    """How diversity is measured: "kde" (robust to near-duplicates), "uniform" or "tv"."""

    replace: bool = False
    """Draw with replacement, as the paper does: fewer distinct rows than the budget, weighted by their draws."""

    density_over: DensityOver = "shortlist"
    """Where near-duplicates are looked for: among the "shortlist" of neighbours, or in the whole "pool" (slower)."""

    grow: bool = True
    """Double `neighbors` as often as the optimum needs it; without that, a plan that is not optimal says so in info."""

    needs_queries: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_real(self.alpha, "alpha", above=0, at_most=1)
        check_real(self.scale, "scale", above=0)
        check_real(self.bandwidth, "bandwidth", above=0)
        check_count(self.neighbors, "neighbors", 1)
        for name, choices in (("regularizer", get_args(Regularizer)), ("density_over", get_args(DensityOver))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(choices)}.")

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        problem, plan = self._solve(pool)
        probability_N = plan.probabilities()
        info: dict[str, Any] = {
            "plan": plan.info,
            "neighbors_asked": min(self.neighbors, len(pool)),
            "neighbors_used": int(problem.costs_MxK.shape[1]),
            "shortlist": len(problem.shortlist_U),
        }
        drawn = sample(probability_N, budget, key=key, replace=self.replace)
        rows, draws = np.unique(drawn, return_counts=True)
        if self.replace:
            chance = [{"draws": int(count)} for count in draws]
            weights = draws
            if len(rows) < budget:
                info["shortfall"] = (
                    f"{budget} draws with replacement gave {len(rows)} distinct rows, weighted by their draws."
                )
        else:
            inclusion_N = inclusion_probabilities(probability_N, budget)
            chance = [{"inclusion": float(inclusion_N[row])} for row in rows]
            weights = None
        reasons = self._reasons(problem, plan, rows, probability_N[rows], chance)
        return Selection.of(rows, weights=weights, scores=probability_N[rows], reasons=reasons, info=info)

    def _solve(self, pool: Pool) -> tuple[Problem, Plan]:
        neighborhoods: dict[str, Any] = {
            "neighbors": self.neighbors,
            "bandwidth": self.bandwidth if self.regularizer == "kde" else None,
            "density_over": self.density_over,
        }
        optimum: dict[str, Any] = {"alpha": self.alpha, "scale": self.scale, "regularizer": self.regularizer}
        if self.grow:
            return tsds_grown(pool.embeddings_NxD, pool.queries_MxD, **optimum, **neighborhoods)
        problem = Problem.from_embeddings(pool.embeddings_NxD, pool.queries_MxD, **neighborhoods)
        return problem, tsds(problem, **optimum)

    def _reasons(
        self, problem: Problem, plan: Plan, rows: np.ndarray, probabilities: np.ndarray, chance: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """For each chosen row: its probability, its density, and the queries that pour the most of its mass."""
        place = np.searchsorted(problem.shortlist_U, rows)
        chosen_U = np.full(len(problem.shortlist_U), -1)
        chosen_U[place] = np.arange(len(rows))
        chosen_MxK = chosen_U[problem.index_MxK]
        query, neighbor = np.nonzero((chosen_MxK >= 0) & (plan.mass_MxK > 0))
        owner = chosen_MxK[query, neighbor]
        share = plan.mass_MxK[query, neighbor] / probabilities[owner]
        distance = problem.costs_MxK[query, neighbor]
        # By row, then by share; filled neighbours have equal shares up to rounding: then the nearer query goes first.
        order = np.lexsort((query, distance, -np.round(share, 9), owner))
        query, neighbor, share, distance = query[order], neighbor[order], share[order], distance[order]
        ends = np.searchsorted(owner[order], np.arange(len(rows) + 1))

        reasons = []
        for b, probability in enumerate(probabilities.tolist()):
            queries = [
                {
                    "query": int(query[e]),
                    "share": float(share[e]),
                    "distance": float(distance[e]),
                    "rank": int(neighbor[e]) + 1,
                }
                for e in range(ends[b], min(ends[b] + _QUERIES_NAMED, ends[b + 1]))
            ]
            first, served = queries[0], int(ends[b + 1] - ends[b])
            why = (
                f"Serves {served} {'query' if served == 1 else 'queries'}, first of all query {first['query']} "
                f"({first['share']:.0%} of its mass; neighbour {first['rank']} at distance {first['distance']:.3f}); "
                f"probability {probability:.3g}"
            )
            reason = {"probability": probability, **chance[b], "queries_served": served, "queries": queries}
            if self.regularizer == "kde":
                reason["density"] = float(problem.density_U[place[b]])
                why += f", density {reason['density']:.2f} (1 is a row without near-duplicates)"
            reasons.append({"why": why + ".", **reason})
        return reasons
