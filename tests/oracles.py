"""Independent oracles, slow and plain: NumPy in float64, a loop over events, linear programs."""

from __future__ import annotations

import heapq

import numpy as np
from scipy.optimize import linprog


def brute_distances(queries, candidates, metric="euclidean"):
    """All distances [M, N] in float64, each pair by itself, in difference form."""
    q, x = np.asarray(queries, dtype=np.float64), np.asarray(candidates, dtype=np.float64)
    distances = np.empty((len(q), len(x)))
    for i, row in enumerate(q):
        if metric == "dot":
            distances[i] = -(x @ row)
            continue
        if metric == "euclidean":
            distances[i] = np.linalg.norm(x - row, axis=1)
            continue
        for j, other in enumerate(x):
            norms = np.linalg.norm(row) * np.linalg.norm(other)
            distances[i, j] = 1.0 if norms == 0 else 1 - row @ other / norms
    return distances


def brute_density(points, pool, bandwidth):
    """rho_j = sum_x max(0, 1 - |x_j - x|^2 / h^2) in float64."""
    return np.maximum(0, 1 - (brute_distances(points, pool) / bandwidth) ** 2).sum(axis=1)


def solve_rt_by_linear_program(distances_MxN, density_N, weights_M, *, alpha, scale, regularizer):
    """Problem RT over all candidates by HiGHS; returns (value, gamma [M, N])."""
    m, n = distances_MxN.shape
    density = np.ones(n) if regularizer == "uniform" else density_N
    cost = alpha / scale * weights_M[:, None] * distances_MxN
    rows = np.kron(np.eye(m), np.ones(n))
    identity = np.eye(m * n)
    if regularizer == "tv":  # one slack |r_ij - 1/N| an entry
        c = np.concatenate([cost.ravel(), (1 - alpha) / 2 * np.repeat(weights_M, n)])
        upper = np.block([[identity, -identity], [-identity, -identity]])
        bound = np.concatenate([np.full(m * n, 1 / n), np.full(m * n, -1 / n)])
        equal = np.hstack([rows, np.zeros((m, m * n))])
    else:  # one slack t = max rho_j |r_ij - (1/rho_j) / Z|
        reference = 1 / np.sum(1 / density)
        scaled = np.tile(density, m)[:, None] * identity
        c = np.append(cost.ravel(), 1 - alpha)
        upper = np.hstack([np.vstack([scaled, -scaled]), -np.ones((2 * m * n, 1))])
        bound = np.concatenate([np.full(m * n, reference), np.full(m * n, -reference)])
        equal = np.hstack([rows, np.zeros((m, 1))])
    options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    found = linprog(c, A_ub=upper, b_ub=bound, A_eq=equal, b_eq=np.ones(m), method="highs", options=options)
    assert found.status == 0, found.message
    return found.fun, weights_M[:, None] * found.x[: m * n].reshape(m, n)


def solve_box_by_events(costs_MxK, next_cost_M, density_MxK, weights_M, tau):
    """The paper's sweep: fill neighbours in the order in which s fills them, until the sum reaches tau.

    Returns (s, gamma [M, K]), or None when a query runs out of neighbours first.
    """
    m, k = costs_MxK.shape
    events = [(1 / density_MxK[i, 0], i, 0) for i in range(m)]
    heapq.heapify(events)
    poured_cost, poured = np.zeros(m), np.zeros(m)
    total = 0.0
    while True:
        s, i, j = heapq.heappop(events)
        total -= weights_M[i] * (costs_MxK[i, j] * poured[i] - poured_cost[i])
        poured[i] += 1 / density_MxK[i, j]
        poured_cost[i] += costs_MxK[i, j] / density_MxK[i, j]
        following = costs_MxK[i, j + 1] if j + 1 < k else next_cost_M[i]
        total += weights_M[i] * (following * poured[i] - poured_cost[i])
        if total >= tau:
            break
        if j + 1 == k:
            return None
        heapq.heappush(events, (poured[i] + 1 / density_MxK[i, j + 1], i, j + 1))
    mass = np.zeros((m, k))
    for i in range(m):
        left = 1.0
        for j in range(k):
            mass[i, j] = min(left, 1 / (s * density_MxK[i, j]))
            left -= mass[i, j]
    return s, weights_M[:, None] * mass
