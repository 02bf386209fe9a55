"""Problem RT (TSDS, arXiv 2410.11303): from a problem to its exact optimal plan.

    min over gamma >= 0, sum_j gamma_ij = w_i   (alpha/C) sum_ij gamma_ij d_ij + (1 - alpha) G(gamma)

`deft_tsds.transport.closed_form` has the three regularizers G, their optima, and why these are what they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deft_tsds.arrays import check_real
from deft_tsds.transport.closed_form import (
    ActiveRows,
    Optima,
    Optimum,
    Regularizer,
    check_trade,
    inverse_densities,
    optima,
)
from deft_tsds.transport.problem import Plan, Problem

_SIZE_TOLERANCE = 1e-9


def tsds(
    problem: Problem,
    *,
    alpha: float | None = None,
    scale: float = 5.0,
    regularizer: Regularizer = "kde",
    effective_size: float | None = None,
) -> Plan:
    """Return the exact optimum of problem RT; with too few neighbours, the best plan that keeps to them.

    Args:
        problem: queries and neighbourhoods, M x K.
        alpha: in (0, 1], weight of the distances against the diversity; 1 takes the nearest candidate alone. None is
            0.5, or with `effective_size` what that asks for.
        scale: C > 0, the scale of the distances. Only tau = C (1 - alpha) / alpha decides.
        regularizer: "kde", "uniform" or "tv".
        effective_size: in place of an alpha, the size 1 / sum_j p_j^2 that the plan is to have: the number of equally
            likely candidates among which two draws coincide as often as two draws by p. (Unlike the number of distinct
            rows in a draw it needs no budget.) It grows continuously along the optima, but for "tv", which moves in
            steps of 1/N: there it is the first step that has at least this size. The plan is an optimum for the alpha
            in its `info`; where others are for the same alpha, `tsds` with that alpha returns the one of smallest s.
            Where queries come to share candidates the size may dip, and more than one optimum have it.

    Returns:
        Plan in float64. Its `info` holds
            value: the objective of RT at this plan (see `objective_rt`);
            alpha, scale, tau: with tau = C (1 - alpha) / alpha;
            s: the s of the optimum, for "uniform" equal to K* (None for "tv");
            neighbors: the largest number of neighbours with mass that a query has;
            exhausted: True when K neighbours were too few to reach the optimum, or to prove it reached;
            gap: how far the plan's objective may lie above the optimum; 0 unless exhausted;
            effective_size: 1 / sum_j p_j^2;
            support: the number of candidates with p_j > 0;
            message: one sentence for people.

    Raises:
        ValueError: alpha, scale or regularizer out of range; alpha and effective_size together; an effective size
            below that of the nearest candidates alone, or above that of the last optimum proven within K neighbours.

    Example:
        >>> candidates, queries = np.array([[0.0], [0.1], [1.0], [9.0]]), np.array([[0.0]])
        >>> plan = dt.tsds(dt.Problem.from_embeddings(candidates, queries), alpha=0.9, scale=1.0)
        >>> plan.probabilities(), plan.info["support"], plan.info["gap"]
        (array([0.5, 0.5, 0. , 0. ]), 2, 0.0)
    """
    if effective_size is not None and alpha is not None:
        raise ValueError("alpha and effective_size both decide how far the mass spreads: give one of them.")
    alpha, scale = check_trade(0.5 if alpha is None else alpha, scale, regularizer)
    path = optima(problem, regularizer)
    if effective_size is None:
        tau = scale * (1 - alpha) / alpha
        optimum = path.at(tau)
    else:
        wanted = check_real(effective_size, "effective_size", at_least=1.0)
        tau, optimum = _of_size(path, wanted, len(problem.shortlist_U))
        alpha = scale / (scale + tau)

    mass_MxK = np.zeros(np.shape(problem.costs_MxK))
    weights_U, transport = _pour(path.rows, optimum, len(problem.shortlist_U), mass_MxK)
    info: dict[str, Any] = {
        "value": alpha / scale * transport + (1 - alpha) * optimum.diversity,
        "alpha": alpha,
        "scale": scale,
        "tau": tau,
        "s": optimum.s,
        "neighbors": optimum.width,
        "exhausted": optimum.shortfall > 0,
        "gap": alpha / scale * optimum.shortfall,
        "effective_size": _effective_size(weights_U),
        "support": int(np.count_nonzero(weights_U)),
    }
    if info["exhausted"]:
        info["message"] = (
            f"Not proven optimal: {path.rows.k} neighbours a query are too few for tau = {tau:.4g}; the objective may "
            f"lie up to {info['gap']:.3g} above its optimum. Raise neighbors (there are {problem.size} candidates) or "
            "alpha, or let Problem.from_embeddings(grow=True) find how many are enough."
        )
    else:
        info["message"] = (
            f"Optimal: {info['support']} candidates, as diverse as {info['effective_size']:.1f} equally likely ones."
        )
    if regularizer == "kde" and np.all(np.asarray(problem.density_U) == 1):
        info["message"] += (
            " Every density is 1, so that kde equals uniform: bandwidth is unset, or too small to matter."
        )
    return Plan(mass_MxK, weights_U, np.asarray(problem.shortlist_U), problem.size, info)


def tsds_grown(
    candidates: Any,
    queries: Any,
    *,
    alpha: float = 0.5,
    scale: float = 5.0,
    regularizer: Regularizer = "kde",
    **neighborhoods: Any,
) -> tuple[Problem, Plan]:
    """The problem with neighbours enough for its optimum, and that optimum, which is never exhausted.

    `neighborhoods` are further arguments of `Problem.from_embeddings`; errors are its errors.
    """
    optimum: dict[str, Any] = {"alpha": alpha, "scale": scale, "regularizer": regularizer}
    problem = Problem.from_embeddings(candidates, queries, grow=True, **optimum, **neighborhoods)
    return problem, tsds(problem, **optimum)


def objective_rt(
    problem: Problem, mass_MxK: Any, *, alpha: float = 0.5, scale: float = 5.0, regularizer: Regularizer = "kde"
) -> float:
    """Return the value of problem RT at any plan on the neighbourhoods of `problem`.

    Args:
        problem: queries and neighbourhoods; candidates beyond the K of a query count with zero mass. For "kde" with a
            shortlist of fewer than N candidates, Z is taken at its lower bound; the optimum does not depend on it.
        mass_MxK: gamma >= 0, row i sums to the weight of query i.
        alpha, scale, regularizer: as in `tsds`.

    Raises:
        ValueError: alpha, scale or regularizer out of range, or mass of the wrong shape.
    """
    alpha, scale = check_trade(alpha, scale, regularizer)
    mass_MxK = np.asarray(mass_MxK, dtype=np.float64)
    if mass_MxK.shape != np.shape(problem.costs_MxK):
        raise ValueError(f"mass_MxK has shape {mass_MxK.shape}: give one entry for each of problem.costs_MxK.")
    rows = ActiveRows(problem)
    every = slice(0, len(rows))
    mass = mass_MxK[rows.of(every)]
    transport = float(np.sum(mass * rows.costs(every, rows.k)))
    if regularizer == "tv":
        reference = rows.weights[:, None] / problem.size
        diversity = 0.5 * float(np.abs(mass - reference).sum() + reference.sum() * (problem.size - rows.k))
    else:
        inverse_U, total, _ = inverse_densities(problem, regularizer)
        inverse = inverse_U[rows.index(every, rows.k)]
        deviations = np.abs(mass / (inverse * rows.weights[:, None]) - 1 / total)
        diversity = float(max(deviations.max(), 1 / total if problem.size > rows.k else 0.0))
    return alpha / scale * transport + (1 - alpha) * diversity


def _pour(
    rows: ActiveRows, optimum: Optimum, shortlist: int, mass_MxK: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """The candidates' marginal [U] and the cost of the transport; the mass itself goes to `mass_MxK`, zero so far."""
    weights_U = np.zeros(shortlist)
    transport = 0.0
    for block in rows.blocks(optimum.width):
        mass = optimum.shares(block)
        mass *= rows.weights[block, None]
        np.add.at(weights_U, rows.index(block, optimum.width).ravel(), mass.ravel())
        transport += float(np.vdot(mass, rows.costs(block, optimum.width)))
        if mass_MxK is not None:
            mass_MxK[rows.of(block), : optimum.width] = mass
    return weights_U / weights_U.sum(), transport


def _effective_size(weights_U: np.ndarray) -> float:
    return float(1 / np.vdot(weights_U, weights_U))


def _of_size(path: Optima, wanted: float, shortlist: int) -> tuple[float, Optimum]:
    """A tau and its optimum, of the wanted effective size: bisection along the path of the optima."""

    def size(optimum: Optimum) -> float:
        return _effective_size(_pour(path.rows, optimum, shortlist)[0])

    if (least := size(path.at(0.0))) > wanted * (1 + _SIZE_TOLERANCE):
        raise ValueError(
            f"effective_size is {wanted:g}, but the nearest candidates of the queries alone have {least:.4g} "
            "(alpha = 1): give at least that, or fewer queries."
        )
    low, high = 0.0, path.end()
    tau, optimum = path.along(high)
    if (most := size(optimum)) < wanted * (1 - _SIZE_TOLERANCE):
        raise ValueError(
            f"effective_size is {wanted:g}, but the optima that are proven within {path.rows.k} neighbours a query end "
            f"at {most:.4g}: lower effective_size, or raise neighbors."
        )
    while high - low > _SIZE_TOLERANCE * high:
        middle = (low + high) / 2
        between = path.along(middle)
        reached = size(between[1])
        if reached >= wanted:
            high, (tau, optimum) = middle, between
        else:
            low = middle
        if wanted <= reached <= wanted * (1 + _SIZE_TOLERANCE):
            break
    return tau, optimum
