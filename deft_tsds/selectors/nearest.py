"""By similarity to the queries alone: the most similar candidates, turns of the queries, and the means of subtasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast, get_args

import jax
import numpy as np

from deft_tsds.arrays import normalize_rows, row_blocks
from deft_tsds.cost import PlanCost, StageCost, neighbors_cost
from deft_tsds.geometry.mesh import by_own_rows
from deft_tsds.geometry.neighbors import BLOCK_BYTES, Metric, Neighbors, nearest_neighbors
from deft_tsds.selection import Pool, Selection


@dataclass(frozen=True)
class Nearest:
    """The rows with the highest similarity to any query; ties go to the lower row.

    The "doubly greedy" selector of "A Critical Look at Targeted Instruction Selection", arXiv 2602.14696. A query that
    many candidates are near to may take the whole budget: `RoundRobin` gives each query its turn.
    """

    metric: Metric = "cosine"
    """What is near: "cosine", "euclidean" or "dot"."""

    needs_queries: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_metric(self.metric)

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """One pass over the pool in blocks (see `deft_tsds.cost`)."""
        return _pass_cost(pool)

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        found = nearest_query(pool, self.metric)
        distance_N, query_N = found.distances_MxK[:, 0], found.indices_MxK[:, 0]
        order = np.argsort(distance_N, kind="stable")[:budget]
        rank = np.empty(len(pool), np.int64)
        rank[order] = np.arange(1, budget + 1)
        rows = np.sort(order)
        reasons = []
        for row in rows.tolist():
            number = {"query": int(query_N[row]), "distance": float(distance_N[row]), "rank": int(rank[row])}
            why = (
                f"Number {number['rank']} by similarity to any query: nearest to query {number['query']}, at "
                f"{self.metric} distance {number['distance']:.3f}."
            )
            reasons.append({"why": why, **number})
        return Selection.of(rows, scores=-distance_N[rows], reasons=reasons)


@dataclass(frozen=True)
class RoundRobin:
    """The queries take turns, in order, at their most similar candidate that is not yet chosen.

    The selector of LESS's and RDS+'s comparisons (arXiv 2503.01807, arXiv 2602.14696). Exact: the neighbourhoods grow
    until no query runs out of candidates before the budget is met.
    """

    metric: Metric = "cosine"
    """What is near: "cosine", "euclidean" or "dot"."""

    needs_queries: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_metric(self.metric)

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """The first search; queries that want the same candidates need deeper ones (see `deft_tsds.cost`)."""
        n, d = pool.embeddings_NxD.shape
        m = len(queries_of(pool))
        return neighbors_cost(n, m, d, _first_depth(n, m, budget))

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        n = len(pool)
        depth = _first_depth(n, len(queries_of(pool)), budget)
        while True:
            found = nearest_neighbors(pool.queries_MxD, pool.embeddings_NxD, depth, metric=self.metric)
            turns = _take_turns(found.indices_MxK, budget)
            if turns is not None:
                break
            depth = min(n, 4 * depth)
        chosen = []
        for number, (query, place) in enumerate(turns):
            row, distance = int(found.indices_MxK[query, place]), float(found.distances_MxK[query, place])
            turn = 1 + number // len(found.indices_MxK)
            why = (
                f"Turn {turn} of query {query}: its best candidate left, neighbour {place + 1} at {self.metric} "
                f"distance {distance:.3f}."
            )
            reason = {"why": why, "query": query, "turn": turn, "neighbor": place + 1, "distance": distance}
            chosen.append((row, -distance, reason))
        chosen.sort(key=lambda item: item[0])
        rows, scores, reasons = zip(*chosen, strict=True)
        return Selection.of(np.array(rows), scores=scores, reasons=reasons, info={"neighbors_used": depth})


@dataclass(frozen=True)
class RDSPlus:
    """RDS+: round robin over the cosine of representations that are the model's own, weighted by position.

    The representation of a text is sum_i (i / sum_i' i') h_i, h_i the last hidden state of the model that will be
    trained at token i; the embeddings of pool and queries have to be made so. The choice among them is `RoundRobin`.

    Reference: "Large-Scale Data Selection for Instruction Tuning", arXiv 2503.01807.
    """

    needs_queries: ClassVar[bool] = True

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """What `RoundRobin` needs."""
        return RoundRobin().cost(pool, budget)

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        return RoundRobin()(pool, budget=budget, key=key)


@dataclass(frozen=True)
class LESS:
    """LESS: score(x) = max over subtasks s of the mean of cos(x, q) over the queries q of s; the best rows.

    Made for gradient features, of any number of checkpoints: with a checkpoint's features at length sqrt(eta_i), side
    by side and sum_i eta_i = 1, the cosine of two rows is the paper's sum_i eta_i cos(.,.) of definition 3.1. Any other
    embedding works the same way.

    Reference: "LESS: Selecting Influential Data for Targeted Instruction Tuning", arXiv 2402.04333, section 4.2.
    """

    subtasks: tuple[str, ...] | None = None
    """The subtask of each query, in order; None takes the pool's `query_groups_M`, and where there are none makes all
    queries one subtask."""

    needs_queries: ClassVar[bool] = True

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """One pass over the pool in blocks (see `deft_tsds.cost`)."""
        return _pass_cost(pool)

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        names, means_SxD = self._means(pool)
        found = _nearest_of(
            pool, lambda rows_BxD: nearest_neighbors(normalize_rows(rows_BxD), means_SxD, 1, metric="dot")
        )
        score_N, subtask_N = -found.distances_MxK[:, 0], found.indices_MxK[:, 0]
        rows = np.sort(np.argsort(-score_N, kind="stable")[:budget])
        reasons = []
        for score, subtask in zip(score_N[rows].tolist(), subtask_N[rows].tolist(), strict=True):
            why = f"Mean cosine {score:.3f} with the queries of subtask {names[subtask]!r}, its best subtask."
            reasons.append({"why": why, "influence": score, "subtask": names[subtask]})
        taken = np.bincount(subtask_N[rows], minlength=len(names)).tolist()
        info = {"chosen_by_subtask": dict(zip(names, taken, strict=True))}
        return Selection.of(rows, scores=score_N[rows], reasons=reasons, info=info)

    def _means(self, pool: Pool) -> tuple[list[str], np.ndarray]:
        """The subtasks by name, and the mean direction of the queries of each, float32 [S, D]."""
        queries_MxD, m = queries_of(pool), len(queries_of(pool))
        if self.subtasks is not None and len(self.subtasks) != m:
            raise ValueError(f"LESS has {len(self.subtasks)} subtasks for {m} queries: give the subtask of each query.")
        labels = self.subtasks
        if labels is None:
            labels = ("all queries",) * m if pool.query_groups_M is None else tuple(map(str, pool.query_groups_M))
        names, subtask_M = np.unique(np.array(labels), return_inverse=True)
        unit_MxD = normalize_rows(queries_MxD)
        means = [unit_MxD[subtask_M == s].mean(axis=0, dtype=np.float64) for s in range(len(names))]
        return names.tolist(), np.array(means, np.float32)


def queries_of(pool: Pool) -> np.ndarray:
    """The queries, of which `select` has seen that they are there."""
    return cast(np.ndarray, pool.queries_MxD)


def nearest_query(pool: Pool, metric: Metric) -> Neighbors:
    """The query that each candidate is nearest to, [N, 1], found in blocks of the pool."""
    return _nearest_of(pool, lambda rows_BxD: nearest_neighbors(rows_BxD, pool.queries_MxD, 1, metric=metric))


def _nearest_of(pool: Pool, search: Callable[[np.ndarray], Neighbors]) -> Neighbors:
    """The result [N, 1] of a search for rows of the pool, found in blocks; on several hosts each has its own rows."""
    n, d = pool.embeddings_NxD.shape

    def found(mine: slice) -> np.ndarray:
        found_Rx2 = np.empty((mine.stop - mine.start, 2), np.int32)
        for rows in row_blocks(len(found_Rx2), row_bytes=4 * d, budget_bytes=BLOCK_BYTES):
            block = search(pool.embeddings_NxD[mine.start + rows.start : mine.start + rows.stop])
            found_Rx2[rows, :1], found_Rx2[rows, 1:] = block.distances_MxK.view(np.int32), block.indices_MxK
        return found_Rx2

    found_Nx2 = by_own_rows(found, n)
    return Neighbors(np.ascontiguousarray(found_Nx2[:, :1]).view(np.float32), found_Nx2[:, 1:])


def _pass_cost(pool: Pool) -> PlanCost:
    n, d = pool.embeddings_NxD.shape
    m = len(queries_of(pool))
    block = min(n, max(1, BLOCK_BYTES // (4 * d)))
    searching = neighbors_cost(m, block, d, 1).bytes
    return PlanCost((StageCost("nearest query", searching + 24 * block * d + 32 * n, 2 * n * m * d),))


def _check_metric(metric: str) -> None:
    if metric not in get_args(Metric):
        raise ValueError(f"metric is {metric!r}: choose one of {', '.join(get_args(Metric))}.")


def _first_depth(n: int, m: int, budget: int) -> int:
    return min(n, 2 * -(-budget // m) + 16)


def _take_turns(indices_MxK: np.ndarray, budget: int) -> list[tuple[int, int]] | None:
    """The turns, each a query and the place of its choice among its neighbours; None where a query runs out of them."""
    m, k = indices_MxK.shape
    neighbors = indices_MxK.tolist()
    place = [0] * m
    used: set[int] = set()
    turns: list[tuple[int, int]] = []
    while True:
        for query in range(m):
            while place[query] < k and neighbors[query][place[query]] in used:
                place[query] += 1
            if place[query] == k:
                return None
            used.add(neighbors[query][place[query]])
            turns.append((query, place[query]))
            if len(turns) == budget:
                return turns
