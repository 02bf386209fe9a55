"""TSDS: candidates drawn by an optimal transport plan from a few examples of the target task.

Reference: "TSDS: Data Selection for Task-Specific Model Finetuning", arXiv 2410.11303.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import jax
import numpy as np

from deft_tsds.arrays import check_count, check_real
from deft_tsds.cost import PlanCost, plan_cost
from deft_tsds.sampling import inclusion_probabilities, sample
from deft_tsds.selection import Pool, Selection
from deft_tsds.selectors.auto import spread_plan
from deft_tsds.selectors.nearest import nearest_query
from deft_tsds.selectors.reasons import plan_reasons
from deft_tsds.transport.problem import DensityOver, Plan, Problem
from deft_tsds.transport.tsds import Regularizer, tsds, tsds_grown


@dataclass(frozen=True)
class TSDS:
    """Rows drawn by p_j = sum_i gamma_ij, gamma the optimum of problem RT between the queries and the candidates.

    Weights: drawn without replacement, each row counts once, since its chance of being chosen already follows p_j and a
    weight by p_j would count it twice. Drawn with replacement, a row counts as often as it was drawn, which is the
    sample of the paper with its repeats put together.
    """

    alpha: float | Literal["auto"] | None = None
    """Weight of being near to the queries against diversity, in (0, 1]; lower spreads over more candidates. None is
    0.5, or what `effective_size` asks for. "auto" is the highest whose plan is worth enough distinct examples for the
    budget (see `auto.spread_plan`), with as many neighbours as that takes; info says why."""

    scale: float = 5.0
    """C, the scale of the distances; only C (1 - alpha) / alpha matters."""

    bandwidth: float | Literal["auto"] = 0.75
    """h, the distance below which two candidates count as near-duplicates (regularizer "kde" only); "auto" proposes
    one from the near-duplicates that the shortlist shows, and info says what it saw."""

    neighbors: int = 5000
    """K, the nearest candidates that each query considers; at most all of them."""

    regularizer: Regularizer = "kde"
    """How diversity is measured: "kde" (robust to near-duplicates), "uniform" or "tv"."""

    replace: bool = False
    """Draw with replacement, as the paper does: fewer distinct rows than the budget, weighted by their draws."""

    density_over: DensityOver = "shortlist"
    """Where near-duplicates are looked for: among the "shortlist" of neighbours, or in the whole "pool" (slower)."""

    grow: bool = True
    """Search again with up to 4 times the `neighbors` until the optimum lies within them; without that, a plan that is
    not optimal says so in info."""

    fill: Literal["nearest"] | None = None
    """What to do when fewer rows have a probability than the budget asks for: None is an error that names the knobs,
    "nearest" takes all of them, and then the candidates nearest to any query (one more pass over the pool)."""

    quotas: dict[str, int | float] | Literal["equal"] | None = None
    """Per group, a number of rows or a share of the budget, or "equal" for the same from each (see `sample`). Needs
    groups."""

    caps: dict[str, int | float] | None = None
    """Per group, the most rows or the largest share of the budget. Needs groups."""

    effective_size: float | None = None
    """In place of alpha: how diverse the plan should be, as a number of equally likely candidates (see `tsds`). Then
    `neighbors` does not grow; an error says when it is too small."""

    needs_queries: ClassVar[bool] = True
    takes_cost_budget: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.alpha is not None and self.effective_size is not None:
            raise ValueError("alpha and effective_size both decide how far the mass spreads: give one of them.")
        if self.alpha is not None and self.alpha != "auto":
            check_real(self.alpha, "alpha", above=0, at_most=1)
        if self.effective_size is not None:
            check_real(self.effective_size, "effective_size", at_least=1)
        check_real(self.scale, "scale", above=0)
        if self.bandwidth != "auto":
            check_real(self.bandwidth, "bandwidth", above=0)
        check_count(self.neighbors, "neighbors", 1)
        for name, choices in (("regularizer", get_args(Regularizer)), ("density_over", get_args(DensityOver))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(choices)}.")
        if self.fill not in (None, "nearest"):
            raise ValueError(f"fill is {self.fill!r}: give 'nearest' or None.")
        if self.fill is not None and self.replace:
            raise ValueError("fill is for draws without replacement: with replace=True no draw falls short.")

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """What the stages will need with the neighbours asked for (see `deft_tsds.cost`); each doubling by `grow`
        doubles what depends on K."""
        n, d = pool.embeddings_NxD.shape
        m = len(np.asarray(pool.queries_MxD))
        density_over = self.density_over if self.regularizer == "kde" else None
        return plan_cost(n, m, d, self.neighbors, budget=budget, density_over=density_over)

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        draw = pool.draw_budget(budget)
        if self.quotas is not None or self.caps is not None:
            if pool.groups_N is None:
                raise ValueError("TSDS(quotas=..., caps=...) needs groups: give one label a candidate.")
            draw |= {"groups": pool.groups_N, "quotas": self.quotas, "caps": self.caps}
        problem, plan, decisions = self._decided(pool, budget)
        probability_N = plan.probabilities()
        if self.fill == "nearest":
            draw["fill"] = _nearest_first(pool)
        drawn = sample(probability_N, key=key, replace=self.replace, **draw)
        rows, draws = np.unique(drawn, return_counts=True)
        info: dict[str, Any] = {
            "plan": plan.info,
            "neighbors_asked": min(self.neighbors, len(pool)),
            "neighbors_used": int(problem.costs_MxK.shape[1]),
            "shortlist": len(problem.shortlist_U),
            "filled": int((probability_N[rows] == 0).sum()),
        }
        if self.bandwidth == "auto" and self.regularizer == "kde":
            found = problem.info["bandwidth_found"]
            info["bandwidth"] = {"h": problem.info["bandwidth"], **found}
            decisions["bandwidth"] = {"value": problem.info["bandwidth"], "paper": 0.75, "why": found["message"]}
        if decisions:
            info["auto"] = decisions
        if self.replace:
            chances = [{"draws": int(count)} for count in draws]
            if len(rows) < len(drawn):
                info["shortfall"] = (
                    f"{len(drawn)} draws with replacement gave {len(rows)} distinct rows, weighted by their draws."
                )
        else:
            inclusion_N = inclusion_probabilities(probability_N, **draw)
            chances = [{"inclusion": float(inclusion_N[row])} for row in rows]
        reasons = plan_reasons(pool, problem, plan, rows, chances, density=self.regularizer == "kde")
        weights = draws if self.replace else None
        return Selection.of(rows, weights=weights, scores=probability_N[rows], reasons=reasons, info=info)

    def plan(self, pool: Pool, budget: int | None = None) -> tuple[Problem, Plan]:
        """The problem between queries and candidates, and the plan whose probabilities a call draws from: what there
        is to do once, where many budgets or keys follow.

        Args:
            pool: with queries.
            budget: in rows; only alpha="auto" looks at it.

        Raises:
            ValueError: as `tsds`, such as neighbours that are too few for `effective_size`; alpha="auto" without a
                budget.
        """
        problem, plan, _ = self._decided(pool, budget)
        return problem, plan

    def _decided(self, pool: Pool, budget: int | None) -> tuple[Problem, Plan, dict[str, Any]]:
        """Problem and plan, and the decision on alpha where it is "auto"."""
        arrays = (pool.embeddings_NxD, pool.queries_MxD)
        neighborhoods: dict[str, Any] = {
            "neighbors": self.neighbors,
            "bandwidth": self.bandwidth if self.regularizer == "kde" else None,
            "density_over": self.density_over,
        }
        optimum: dict[str, Any] = {"scale": self.scale, "regularizer": self.regularizer}
        if self.alpha == "auto":
            if budget is None:
                raise ValueError('alpha="auto" depends on the budget: give plan(pool, budget).')
            if pool.cost_budget is not None and pool.costs_N is not None:
                budget = max(1, min(len(pool), round(pool.cost_budget / pool.costs_N.mean())))
            problem, plan, decision = spread_plan(*arrays, budget, **optimum, **neighborhoods)
            return problem, plan, {"alpha": decision}
        if self.effective_size is None:
            optimum["alpha"] = 0.5 if self.alpha is None else self.alpha
            if self.grow:
                return *tsds_grown(*arrays, **optimum, **neighborhoods), {}
        else:
            optimum["effective_size"] = self.effective_size
        problem = Problem.from_embeddings(*arrays, **neighborhoods)
        return problem, tsds(problem, **optimum), {}


def _nearest_first(pool: Pool) -> np.ndarray:
    """All rows of the pool, by their distance to the nearest query; ties by lower row."""
    return np.argsort(nearest_query(pool, "euclidean").distances_MxK[:, 0], kind="stable")
