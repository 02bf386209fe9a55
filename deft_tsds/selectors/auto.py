"""Knobs decided by what the embeddings show: DEFT's base share, and how far the plan of TSDS spreads.

Nothing here sees a label or a score, so nothing here can know which choice trains the better model; each function says
by which principle it decides and where that ends. Each returns its value and the decision in plain JSON: `value`,
`paper` (the fixed value of the paper), `why` (a sentence with the numbers that were seen), and these numbers.
`clusters.stable_clusters` and `geometry.bandwidth` are of the same kind.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from deft_tsds.geometry.bandwidth import propose_bandwidth
from deft_tsds.geometry.density import kernel_density
from deft_tsds.geometry.neighbors import nearest_neighbors
from deft_tsds.sampling import generator_of
from deft_tsds.selectors.clusters import cluster_sample, cosine_distances, distance_to_mean, even_sample
from deft_tsds.transport.closed_form import Regularizer
from deft_tsds.transport.problem import Plan, Problem
from deft_tsds.transport.tsds import tsds

PAPER_BASE, PAPER_ALPHA = 0.3, 0.5

_LEAST_TAU = 1e-6  # in units of the largest distance: below it, only the nearest candidate counts
_BISECTIONS = 12  # to about 1% of tau


def base_share(unit_NxD: np.ndarray, budget: int, clusters: int, *, key: jax.Array) -> tuple[float, dict[str, Any]]:
    """DEFT's base set as a share of the pool: what the hard examples leave of the budget, and at least half of it.

    The paper finds that hard examples beat random ones beside a small base set, and lose beside a large one. So the
    core-set is to hold what is hard and no more: the rows that lie farther from their centroid than the mean distance
    in their cluster by a standard deviation, less those that only repeat others, since by distance a row and its copies
    are equally hard. With B the budget, N the pool, and t the share of such rows, the base set of b rows leaves t (N -
    b) of them, so that b = (B - t N) / (1 - t). It is never less than half of the budget: whatever hard examples turn
    out to be worth, half of the choice stays a random sample of the pool.

    How many rows repeat others is 1 - mean of 1/rho, rho the kernel density with the bandwidth that `propose_bandwidth`
    finds.

    Where this ends: the share of rows beyond one standard deviation is about a sixth on most data, so that up to a
    budget of a third of the pool the half decides. Whether far means hard, or wrong, nobody can see without labels.

    Args:
        unit_NxD: float32 rows of unit length (or 0).
        budget: B, from 1 to N.
        clusters: K, in which what is far is measured, on a sample.
        key: decides the starts of the clustering.
    """
    n = len(unit_NxD)
    sample_nxD = even_sample(unit_NxD)
    distinct = len(np.unique(sample_nxD, axis=0))
    fitted = cluster_sample(sample_nxD, min(clusters, distinct), generator_of(key))
    distance_n = cosine_distances(sample_nxD, fitted.cluster_centers_, fitted.labels_)
    far_n = np.zeros(len(sample_nxD), bool)
    for cluster in range(len(fitted.cluster_centers_)):
        members = np.flatnonzero(fitted.labels_ == cluster)
        limit = distance_n[members].mean() + distance_n[members].std()
        far_n[members] = distance_n[members] > limit + 1e-12  # rounding sets no row apart
    far, repeats = float(far_n.mean()), repeated_share(unit_NxD)
    hard = far * (1 - repeats)
    wanted = math.ceil((budget - hard * n) / (1 - hard))
    count = min(max(budget // 2, wanted), budget - 1)
    by_half = "half of the budget" if count == budget // 2 else "what these leave of the budget"
    why = (
        f"base {count / n:.4g} of the pool ({count} rows), {by_half} of {budget}: {far:.1%} of the rows are far from "
        f"their centroid (more than a standard deviation above the mean of their cluster) and {repeats:.1%} only "
        f"repeat others, so that {hard:.1%} are hard examples to be had."
    )
    found = {"far": far, "repeats": repeats, "hard": hard}
    return count / n, {"value": count / n, "paper": PAPER_BASE, "why": why, **found}


def repeated_share(unit_NxD: np.ndarray) -> float:
    """The share of rows that only repeat others, exactly or nearly: 1 - mean of 1/rho over an even sample."""
    sample_nxD = even_sample(unit_NxD)
    if len(np.unique(sample_nxD, axis=0)) == 1:
        return 1 - 1 / len(unit_NxD)
    try:
        h = propose_bandwidth(unit_NxD, distance_to_mean(unit_NxD))[0]
    except ValueError:  # nothing but exact copies around each probe: any h below the distance of rows that differ
        distinct_nxD = np.unique(sample_nxD, axis=0)
        h = float(nearest_neighbors(distinct_nxD, distinct_nxD, 2).distances_MxK[:, 1].min())
    density_n = np.asarray(kernel_density(sample_nxD, bandwidth=h, pool=unit_NxD), np.float64)
    return float(1 - np.mean(1 / density_n))


def spread_plan(
    candidates: Any, queries: Any, budget: int, *, scale: float, regularizer: Regularizer, **neighborhoods: Any
) -> tuple[Problem, Plan, dict[str, Any]]:
    """The problem, and the optimum for the largest alpha whose plan is worth enough distinct examples for the budget.

    What a plan p is worth in distinct examples is 1 / sum_j rho_j p_j^2, its effective size with near-copies counted as
    one (for "kde"; else rho is 1): the diversity of order 2 of Leinster and Cobbold, where the rho_j rows near j share
    its mass evenly. Wanted are as many as two independent choices of the budget would hold together, Z (1 - (1 -
    B/Z)^2) of the Z = sum of 1/rho distinct examples in the pool: about 2 B of a large pool. So each row is about as
    likely to be chosen as not; a plan of fewer would leave the draw no choice, a plan of more spends the budget farther
    from the queries than it needs.

    The neighbourhoods grow, up to the whole pool, until they hold that plan.

    Where this ends: the factor of two is a principle and no measurement; with labels, `learn_knobs` finds a better one.

    Args:
        candidates, queries, neighborhoods: as in `Problem.from_embeddings`, without `grow`.
        budget: B, from 1 to N rows.
        scale, regularizer: as in `tsds`.

    References:
        Leinster and Cobbold, "Measuring diversity: the importance of species similarity", 2012.
    """
    while True:
        problem = Problem.from_embeddings(candidates, queries, **neighborhoods)
        everything = float(np.sum(1 / _density(problem))) + problem.size - len(problem.shortlist_U)
        wanted = everything * (1 - max(0.0, 1 - budget / everything) ** 2)
        plan = _least_spread(problem, wanted, scale=scale, regularizer=regularizer)
        k = problem.costs_MxK.shape[1]
        if k == problem.size or not (plan.info["exhausted"] or distinct_size(problem, plan) < wanted):
            break
        neighborhoods["neighbors"] = min(2 * k, problem.size)
    alpha, worth = plan.info["alpha"], distinct_size(problem, plan)
    papers = tsds(problem, alpha=PAPER_ALPHA, scale=scale, regularizer=regularizer)
    than = "at least " if papers.info["exhausted"] else ""
    why = (
        f"alpha {alpha:.4g} (tau {plan.info['tau']:.4g}): a plan worth {worth:.0f} distinct examples for a budget of "
        f"{budget}, where {wanted:.0f} are as many as two choices hold; with alpha {PAPER_ALPHA:g} it would be worth "
        f"{than}{distinct_size(problem, papers):.0f}."
    )
    found = {"distinct_size": worth, "wanted": wanted, "neighbors": k}
    return problem, plan, {"value": alpha, "paper": PAPER_ALPHA, "why": why, **found}


def distinct_size(problem: Problem, plan: Plan) -> float:
    """1 / sum_j rho_j p_j^2: how many distinct examples a plan is worth."""
    return float(1 / np.sum(_density(problem) * plan.weights_U**2))


def _density(problem: Problem) -> np.ndarray:
    return np.asarray(problem.density_U, np.float64)


def _least_spread(problem: Problem, wanted: float, *, scale: float, regularizer: Regularizer) -> Plan:
    """The plan of the smallest tau that is worth what is wanted, or of the largest tau that could matter."""

    def at(tau: float) -> Plan:
        return tsds(problem, alpha=scale / (scale + tau), scale=scale, regularizer=regularizer)

    plan = at(0.0)
    if distinct_size(problem, plan) >= wanted:
        return plan
    farthest = float(np.max(problem.costs_MxK))
    # From N times the largest distance on, distances no longer count (see A in `closed_form`).
    low, high = math.log(_LEAST_TAU * farthest), math.log(problem.size * farthest)
    plan = at(math.exp(high))
    if distinct_size(problem, plan) < wanted:
        return plan
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        between = at(math.exp(middle))
        if distinct_size(problem, between) >= wanted:
            high, plan = middle, between
        else:
            low = middle
    return plan
