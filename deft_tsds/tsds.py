"""The exact optima of problem RT (TSDS, arXiv 2410.11303) for its three regularizers, in closed form.

With query weights w_i (the paper's 1/M) write gamma_ij = w_i r_ij, so that each row r_i is a distribution:

    min over r   (alpha/C) sum_i w_i sum_j r_ij d_ij + (1 - alpha) G(r)
    G_kde = max_ij rho_j |r_ij - (1/rho_j) / Z|,  Z = sum_j 1/rho_j        G_uniform: the same with rho = 1, Z = N
    G_tv  = 1/2 sum_ij w_i |r_ij - 1/N|

A query of weight 2/M is then the same as two equal queries of weight 1/M. Only tau = C (1 - alpha) / alpha decides.

**KDE and uniform.** Write G = 1/s - 1/Z. Then r_ij <= 1 / (s rho_j), and each query pours this much on successive
neighbours until its unit is spent: it fills k_i(s) of them, those with W_i(k) = sum_{k'<=k} 1/rho_(k') <= s. The
objective is convex in 1/s, and its slope is (alpha/C) (tau - F(s)), where

    F(s) = sum_i w_i sum_{k <= k_i(s)} (d_i(k_i+1) - d_i(k)) / rho_(k)

is a step function that rises at the levels W_i(k). So s* is the smallest level with F(s) >= tau. F is a cumulative
sum along each row, since filling neighbour k adds W_i(k) (d_i(k+1) - d_i(k)): bisection finds s* without a walk over
the events.

**Where the lower side of |.| binds.** G = 1/s - 1/Z also asks for r_ij >= (2/Z - 1/s) / rho_j, which is above zero
from s = Z/2 on. There the filled neighbours are the half of Z nearest to the query, whatever s, and the slope is
(alpha/C) (tau - A) with A = sum_i w_i sum_j (1/rho_j) |d_ij - median of d_i under the weights 1/rho|. So either
tau <= A and s* = Z/2, or s* = Z and the plan is r_ij = (1/rho_j) / Z, in which distances no longer count.

The Z of "kde" needs the densities of all N candidates, and a problem knows those of its shortlist. No rho exceeds N,
so that Z >= sum over the shortlist of 1/rho + (N - U) / N; an s* up to half of this bound is optimal whatever Z is.

**TV.** Rows and candidates decouple: moving mass from j to the nearest candidate saves (alpha/C) (d_ij - d_i(1)) and
costs 1 - alpha a unit. So 1/N stays where d_ij - d_i(1) <= tau, and the rest goes to the nearest.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from deft_tsds.arrays import check_real
from deft_tsds.problem import DensityOver, Plan, Problem

Regularizer = Literal["kde", "uniform", "tv"]


def tsds(problem: Problem, *, alpha: float = 0.5, scale: float = 5.0, regularizer: Regularizer = "kde") -> Plan:
    """Return the exact optimum of problem RT; with too few neighbours, the best plan that keeps to them.

    Args:
        problem: queries and neighbourhoods.
        alpha: in (0, 1], weight of the distances against the diversity; 1 takes the nearest candidate alone.
        scale: C > 0, the scale of the distances.
        regularizer: "kde", "uniform" or "tv".

    Returns:
        Plan in float64. Its `info` holds
            value: the objective of RT at this plan (see `objective_rt`);
            tau: C (1 - alpha) / alpha;
            s: the s of the optimum, for "uniform" equal to K* (None for "tv");
            neighbors: the largest number of neighbours with mass that a query has;
            exhausted: True when K neighbours were too few to reach the optimum, or to prove it reached;
            gap: how far the plan's objective may lie above the optimum; 0 unless exhausted;
            effective_size: 1 / sum_j p_j^2, the number of equally likely candidates that would be as diverse;
            support: the number of candidates with p_j > 0;
            message: one sentence for people.

    Raises:
        ValueError: alpha, scale or regularizer out of range.
    """
    alpha, scale = _check_arguments(alpha, scale, regularizer)
    rows = _active_rows(problem)
    tau = scale * (1 - alpha) / alpha
    optimum = _solve_tv(rows, tau, problem.size) if regularizer == "tv" else _solve_box(rows, tau, regularizer, problem)

    mass_MxK = np.zeros(np.shape(problem.costs_MxK))
    mass_MxK[rows.active] = rows.weights[:, None] * optimum.shares
    index_MxK, shortlist_U = np.asarray(problem.index_MxK), np.asarray(problem.shortlist_U)
    weights_U = np.bincount(index_MxK.ravel(), weights=mass_MxK.ravel(), minlength=len(shortlist_U))
    weights_U /= weights_U.sum()
    k = rows.costs.shape[1]
    info: dict[str, Any] = {
        "value": objective_rt(problem, mass_MxK, alpha=alpha, scale=scale, regularizer=regularizer),
        "tau": tau,
        "s": optimum.s,
        "neighbors": int(np.count_nonzero(mass_MxK, axis=1).max()),
        "exhausted": optimum.shortfall > 0,
        "gap": alpha / scale * optimum.shortfall,
        "effective_size": float(1 / np.sum(weights_U**2)),
        "support": int(np.count_nonzero(weights_U)),
    }
    if info["exhausted"]:
        info["message"] = (
            f"Not proven optimal: {k} neighbours a query are too few for tau = {tau:.4g}; the objective may lie up to "
            f"{info['gap']:.3g} above its optimum. Raise neighbors (there are {problem.size} candidates) or alpha."
        )
    else:
        info["message"] = (
            f"Optimal: {info['support']} candidates, as diverse as {info['effective_size']:.1f} equally likely ones."
        )
    if regularizer == "kde" and np.all(np.asarray(problem.density_U) == 1):
        info["message"] += (
            " Every density is 1, so that kde equals uniform: bandwidth is unset, or too small to matter."
        )
    return Plan(mass_MxK, weights_U, shortlist_U, problem.size, info)


def tsds_grown(
    candidates: Any,
    queries: Any,
    *,
    alpha: float = 0.5,
    scale: float = 5.0,
    regularizer: Regularizer = "kde",
    neighbors: int = 5000,
    bandwidth: float | None = None,
    density_over: DensityOver = "shortlist",
    query_weights: Any = None,
) -> tuple[Problem, Plan]:
    """Double the number of neighbours, from `neighbors` on, until the plan is the optimum of RT.

    The growth lives here and not in `Problem.from_embeddings` because how many neighbours are enough depends on alpha
    and scale. Arguments and errors are those of `Problem.from_embeddings` and `tsds`.

    Returns:
        The last problem and its plan, never exhausted (with K = N nothing is left out).
    """
    _check_arguments(alpha, scale, regularizer)  # before the search, which may take long
    while True:
        problem = Problem.from_embeddings(
            candidates,
            queries,
            neighbors=neighbors,
            bandwidth=bandwidth,
            density_over=density_over,
            query_weights=query_weights,
        )
        plan = tsds(problem, alpha=alpha, scale=scale, regularizer=regularizer)
        if not plan.info["exhausted"]:
            return problem, plan
        neighbors = 2 * neighbors


def objective_rt(
    problem: Problem, mass_MxK: Any, *, alpha: float = 0.5, scale: float = 5.0, regularizer: Regularizer = "kde"
) -> float:
    """Return the value of problem RT at any plan on the neighbourhoods of `problem` (see the head of this file).

    Args:
        problem: queries and neighbourhoods; candidates beyond the K of a query count with zero mass. For "kde" with a
            shortlist of fewer than N candidates, Z is taken at its lower bound; the optimum does not depend on it.
        mass_MxK: gamma >= 0, row i sums to the weight of query i.
        alpha, scale, regularizer: as in `tsds`.

    Raises:
        ValueError: alpha, scale or regularizer out of range, or mass of the wrong shape.
    """
    alpha, scale = _check_arguments(alpha, scale, regularizer)
    mass_MxK = np.asarray(mass_MxK, dtype=np.float64)
    if mass_MxK.shape != np.shape(problem.costs_MxK):
        raise ValueError(f"mass_MxK has shape {mass_MxK.shape}: give one entry for each of problem.costs_MxK.")
    rows = _active_rows(problem)
    mass = mass_MxK[rows.active]
    transport = float(np.sum(mass * rows.costs))
    k = mass.shape[1]
    if regularizer == "tv":
        reference = rows.weights[:, None] / problem.size
        diversity = 0.5 * float(np.abs(mass - reference).sum() + reference.sum() * (problem.size - k))
    else:
        density, total, _ = _reference(rows, regularizer, problem)
        deviations = np.abs(density * mass / rows.weights[:, None] - 1 / total)
        diversity = float(max(deviations.max(), 1 / total if problem.size > k else 0.0))
    return alpha / scale * transport + (1 - alpha) * diversity


class _Rows(NamedTuple):
    """The rows of a problem that carry weight, `a` of M, in float64."""

    active: np.ndarray  # bool [M]
    costs: np.ndarray  # [a, K]
    next_cost: np.ndarray  # [a]
    density: np.ndarray  # [a, K]
    weights: np.ndarray  # [a]


class _Optimum(NamedTuple):
    shares: np.ndarray  # r [a, K], each row sums to 1
    s: float | None
    shortfall: float  # bound on (value - optimum) C / alpha


def _check_arguments(alpha: float, scale: float, regularizer: str) -> tuple[float, float]:
    if regularizer not in get_args(Regularizer):
        raise ValueError(f"regularizer is {regularizer!r}: choose one of {', '.join(get_args(Regularizer))}.")
    if alpha == 0:
        raise ValueError("alpha is 0, which ignores every distance: use the Random selector, or give alpha above 0.")
    alpha = check_real(alpha, "alpha", above=0.0, at_most=1.0)
    return alpha, check_real(scale, "scale", above=0.0)


def _active_rows(problem: Problem) -> _Rows:
    weights_M = np.asarray(problem.query_weights_M, dtype=np.float64)
    active = weights_M > 0
    index = np.asarray(problem.index_MxK)[active]
    return _Rows(
        active,
        np.asarray(problem.costs_MxK, dtype=np.float64)[active],
        np.asarray(problem.next_cost_M, dtype=np.float64)[active],
        np.asarray(problem.density_U, dtype=np.float64)[index],
        weights_M[active],
    )


def _reference(rows: _Rows, regularizer: Regularizer, problem: Problem) -> tuple[np.ndarray, float, bool]:
    """The densities [a, K], Z = sum_j 1/rho_j, and whether Z is known; if not, it is a lower bound."""
    n = problem.size
    if regularizer == "uniform":
        return np.ones_like(rows.density), float(n), True
    density_U = np.asarray(problem.density_U, dtype=np.float64)
    beyond = n - len(density_U)
    return rows.density, float(np.sum(1 / density_U)) + beyond / n, beyond == 0


def _solve_box(rows: _Rows, tau: float, regularizer: Regularizer, problem: Problem) -> _Optimum:
    density, total, known = _reference(rows, regularizer, problem)
    every = np.arange(len(rows.weights))
    levels = np.cumsum(1 / density, axis=1)  # W_i(k)
    steps = np.diff(rows.costs, axis=1, append=rows.next_cost[:, None])
    # F counts filled neighbours, so column k is the sum after k of them.
    filled_sums = np.concatenate([np.zeros((len(every), 1)), np.cumsum(levels * steps, axis=1)], axis=1)

    def filled(s: float) -> np.ndarray:
        return np.array([row.searchsorted(s, side="right") for row in levels])

    def f(s: float) -> float:
        return float(rows.weights @ filled_sums[every, filled(s)])

    def shares(s: float) -> np.ndarray:
        return np.diff(np.minimum(levels, s), axis=1, prepend=0.0) / s

    in_reach = float(levels[:, -1].min())  # beyond it some query would need a (K+1)-th neighbour
    limit = min(in_reach, total / 2) if known else in_reach
    reached = f(limit)
    if reached >= tau or limit == in_reach:
        s = _smallest_level(levels, filled, f, tau, limit) if reached >= tau else limit
        # 1/s could fall by less than 1/s, at the slope tau - reached; and if Z is as small as it may be, the candidates
        # without mass deviate by 1/Z and not by 1/s - 1/Z or less.
        shortfall = max(tau - reached, 0.0) / s + tau * max(2 / total - 1 / s, 0.0)
        return _Optimum(shares(s), s, shortfall)

    middle = rows.costs[every, np.minimum(filled(limit), rows.costs.shape[1] - 1)]
    spread = np.sum(np.abs(rows.costs - middle[:, None]) / density, axis=1)
    complete = not np.isfinite(rows.next_cost).any()
    if not complete:  # candidates beyond the K are at least as far as the next one
        spread += np.maximum(total - levels[:, -1], 0) * (rows.next_cost - middle)
    reached = float(rows.weights @ spread)
    if tau <= reached:
        return _Optimum(shares(limit), limit, 0.0)
    if complete:
        return _Optimum(1 / (density * total), total, 0.0)
    return _Optimum(shares(limit), limit, (tau - reached) / total)


def _smallest_level(levels: np.ndarray, filled: Any, f: Any, tau: float, high: float) -> float:
    """The smallest s among the levels with f(s) >= tau, given that f(high) >= tau; `high` if no level is below it."""
    every = np.arange(len(levels))
    low = 0.0
    while True:
        following = min(float(levels[every, filled(low)].min()), high)  # low < high: no query has filled its K
        if f(following) >= tau:
            return following
        middle = (following + high) / 2
        if f(middle) >= tau:
            low, high = following, middle
        else:
            low = middle


def _solve_tv(rows: _Rows, tau: float, n: int) -> _Optimum:
    kept = rows.costs - rows.costs[:, :1] <= tau
    shares = kept / n
    shares[:, 0] += 1 - shares.sum(axis=1)
    # A candidate beyond the K and within tau should have kept its 1/N; moving that to the nearest costs the difference.
    missed = np.where(np.isfinite(rows.next_cost), tau - (rows.next_cost - rows.costs[:, 0]), 0.0)
    share_beyond = (n - rows.costs.shape[1]) / n
    return _Optimum(shares, None, float(rows.weights @ np.maximum(missed, 0.0)) * share_beyond)
