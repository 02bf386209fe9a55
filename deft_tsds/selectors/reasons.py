"""Why a transport plan chose a row: the queries that it serves, how crowded its place is, and its nearest duplicate."""

from __future__ import annotations

from typing import Any

import numpy as np

from deft_tsds.geometry.mesh import mesh_of, rows_of
from deft_tsds.geometry.neighbors import nearest_neighbors
from deft_tsds.selection import Pool
from deft_tsds.transport.problem import Plan, Problem

_QUERIES_NAMED = 3


def plan_reasons(
    pool: Pool, problem: Problem, plan: Plan, rows: np.ndarray, chances: list[dict[str, Any]], *, density: bool
) -> list[dict[str, Any]]:
    """A sentence and its numbers for each chosen row.

    Args:
        pool, problem, plan: what was solved.
        rows: [B] chosen rows, ascending. A row without probability filled up the budget.
        chances: how each row was drawn, as numbers for its reason.
        density: whether the densities of the problem entered the plan.
    """
    probability_B = plan.probabilities()[rows]
    duplicates = nearest_duplicates(pool, problem.shortlist_U, rows)
    drawn = np.flatnonzero(probability_B > 0)
    filled = np.flatnonzero(probability_B == 0)
    said = dict(zip(drawn.tolist(), _served(problem, plan, rows[drawn], probability_B[drawn], density), strict=True))
    if len(filled):
        said |= zip(filled.tolist(), _nearest_queries(pool, rows[filled]), strict=True)
    reasons = []
    for b, (chance, duplicate) in enumerate(zip(chances, duplicates, strict=True)):
        why, numbers = said[b]
        if duplicate is not None:
            why += f"; nearest other candidate {duplicate['row']} at distance {duplicate['distance']:.3f}"
        reason = {"why": why + ".", "probability": float(probability_B[b]), **chance, **numbers}
        reasons.append({**reason, "duplicate": duplicate})
    return reasons


def _served(
    problem: Problem, plan: Plan, rows: np.ndarray, probabilities: np.ndarray, density: bool
) -> list[tuple[str, dict[str, Any]]]:
    """For each drawn row, its density and the queries that pour the most of its mass."""
    place = np.searchsorted(problem.shortlist_U, rows)
    chosen_U = np.full(len(problem.shortlist_U), -1, np.int32)
    chosen_U[place] = np.arange(len(rows), dtype=np.int32)
    chosen_MxK = chosen_U[problem.index_MxK]
    query, neighbor = np.nonzero((chosen_MxK >= 0) & (plan.mass_MxK > 0))
    owner = chosen_MxK[query, neighbor]
    share = plan.mass_MxK[query, neighbor] / probabilities[owner]
    distance = problem.costs_MxK[query, neighbor]
    # By row, then by share; filled neighbours have equal shares up to rounding: then the nearer query goes first.
    order = np.lexsort((query, distance, -np.round(share, 9), owner))
    query, neighbor, share, distance = query[order], neighbor[order], share[order], distance[order]
    ends = np.searchsorted(owner[order], np.arange(len(rows) + 1))

    said = []
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
        numbers: dict[str, Any] = {"queries_served": served, "queries": queries}
        if density:
            numbers["density"] = float(problem.density_U[place[b]])
            why += f", density {numbers['density']:.2f} (1 is a row without near-duplicates)"
        said.append((why, numbers))
    return said


def _nearest_queries(pool: Pool, rows: np.ndarray) -> list[tuple[str, dict[str, Any]]]:
    """For each row that filled up the budget, the query that it is nearest to."""
    found = nearest_neighbors(rows_of(mesh_of(None), pool.embeddings_NxD, rows), pool.queries_MxD, 1)
    said = []
    for query, distance in zip(found.indices_MxK[:, 0].tolist(), found.distances_MxK[:, 0].tolist(), strict=True):
        why = (
            f"Fills up the budget, without a probability of its own: nearest to query {query} (distance {distance:.3f})"
        )
        said.append((why, {"filled": True, "queries_served": 0, "queries": [{"query": query, "distance": distance}]}))
    return said


def nearest_duplicates(pool: Pool, shortlist_U: np.ndarray, rows: np.ndarray) -> list[dict[str, Any] | None]:
    """For each row, the nearest other candidate of the shortlist and its distance; None where there is no other."""
    shortlist_U = np.asarray(shortlist_U)
    mesh = mesh_of(None)
    chosen_BxD, shortlisted_UxD = (rows_of(mesh, pool.embeddings_NxD, which) for which in (rows, shortlist_U))
    found = nearest_neighbors(chosen_BxD, shortlisted_UxD, min(2, len(shortlist_U)))
    ids_Bx2 = shortlist_U[found.indices_MxK]
    duplicates = []
    for row, ids, distances in zip(rows.tolist(), ids_Bx2.tolist(), found.distances_MxK.tolist(), strict=True):
        # The row itself is one of the two nearest, unless it has exact copies or lies outside the shortlist.
        others = [(other, distance) for other, distance in zip(ids, distances, strict=True) if other != row]
        duplicates.append({"row": others[0][0], "distance": others[0][1]} if others else None)
    return duplicates
