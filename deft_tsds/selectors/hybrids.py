"""Two selectors made of the others: a core-set near the queries, and a transport plan that owes each cluster its part.

Each is a few lines that hand one selector's pool to the other: how to compose selectors of your own.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import numpy as np

from deft_tsds.arrays import check_count, normalize_rows
from deft_tsds.cost import PlanCost, clustering_cost, neighbors_cost
from deft_tsds.geometry.neighbors import nearest_neighbors
from deft_tsds.selection import Pool, Selection
from deft_tsds.selectors.clusters import Clusters, check_clusters, cluster_rows, largest_k
from deft_tsds.selectors.deft import DEFT
from deft_tsds.selectors.tsds import TSDS


@dataclass(frozen=True)
class ShortlistDEFT:
    """DEFT's core-set, chosen among the candidates near the queries (TSDS's shortlist) and not from the whole pool.

    For when the pool is mostly about other things: DEFT alone has no target, and its hard examples of such a pool are
    its strangest. Within the shortlist, hard means hard for the task.
    """

    deft: DEFT = field(default_factory=lambda: DEFT(base=0.0))
    """What chooses within the shortlist; its `base` is a share of the shortlist."""

    neighbors: int = 1000
    """K, the nearest candidates of each query that make the shortlist; at most all of them."""

    needs_queries: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_count(self.neighbors, "neighbors", 1)

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """The neighbours, and the clustering of the largest shortlist that they can make (see `deft_tsds.cost`)."""
        n, d = pool.embeddings_NxD.shape
        m = len(np.asarray(pool.queries_MxD))
        clusters = largest_k(self.deft.clusters, self.deft.most_clusters)
        return neighbors_cost(n, m, d, self.neighbors) + clustering_cost(min(n, m * self.neighbors), d, clusters)

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        found = nearest_neighbors(pool.queries_MxD, pool.embeddings_NxD, min(self.neighbors, len(pool)))
        shortlist_U = np.unique(found.indices_MxK)
        if len(shortlist_U) < budget:
            raise ValueError(
                f"the {self.neighbors} nearest candidates of each query are {len(shortlist_U)} altogether, fewer than "
                f"the budget of {budget}: raise neighbors, give more queries, or lower the budget."
            )
        groups_U = None if pool.groups_N is None else pool.groups_N[shortlist_U]
        near = Pool(pool.embeddings_NxD[shortlist_U], pool.queries_MxD, groups_U)
        selection = self.deft(near, budget=budget, key=key)

        rows = shortlist_U[selection.indices].astype(np.int64)
        nearest = nearest_neighbors(pool.embeddings_NxD[rows], pool.queries_MxD, 1)
        reasons = []
        for reason, query, distance in zip(
            selection.reasons, nearest.indices_MxK[:, 0].tolist(), nearest.distances_MxK[:, 0].tolist(), strict=True
        ):
            why = f"{reason['why'][:-1]}; nearest to query {query}, at distance {distance:.3f}."
            reasons.append({**reason, "why": why, "query": query, "query_distance": distance})
        info = {**selection.info, "shortlist": len(shortlist_U)}
        return dataclasses.replace(selection, indices=rows, reasons=tuple(reasons), info=info)


@dataclass(frozen=True)
class ClusteredTSDS:
    """TSDS with a quota for each of DEFT's clusters of the pool: the same number of rows from each.

    For when the queries stand for a wider task than they show: a plan alone may draw nearly everything from the one or
    two clusters where they lie. A cluster with too few rows that have a probability gives them all, and what it lacks
    goes to the others; where a row lies within its cluster's share is still decided by the plan.
    """

    tsds: TSDS = field(default_factory=TSDS)
    """The plan and the draw; its quotas are set here."""

    clusters: Clusters = 7
    """K, the number of clusters of the pool, as in DEFT; "silhouette" or "auto" chooses it."""

    most_clusters: int = 12
    """The largest K that "silhouette" and "auto" try."""

    needs_queries: ClassVar[bool] = True
    takes_cost_budget: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_clusters(self.clusters, self.most_clusters)
        if self.tsds.quotas is not None or self.tsds.caps is not None:
            raise ValueError("tsds.quotas and tsds.caps must be None: ClusteredTSDS gives each cluster its quota.")

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """The clustering of the pool, and then the stages of TSDS (see `deft_tsds.cost`)."""
        n, d = pool.embeddings_NxD.shape
        return clustering_cost(n, d, largest_k(self.clusters, self.most_clusters)) + self.tsds.cost(pool, budget)

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        key_clusters, key_draw = jax.random.split(key)
        clustering, clustering_info = cluster_rows(
            normalize_rows(pool.embeddings_NxD), self.clusters, most_clusters=self.most_clusters, key=key_clusters
        )
        clustered = dataclasses.replace(pool, groups_N=clustering.labels_N)
        selection = dataclasses.replace(self.tsds, quotas="equal")(clustered, budget=budget, key=key_draw)

        chosen_B = clustering.labels_N[selection.indices]
        sizes_K, taken_K = clustering.sizes_K, np.bincount(chosen_B, minlength=len(clustering.sizes_K))
        reasons = []
        for reason, cluster in zip(selection.reasons, chosen_B.tolist(), strict=True):
            why = f"{reason['why'][:-1]}; one of {taken_K[cluster]} from cluster {cluster} of {sizes_K[cluster]} rows."
            reasons.append({**reason, "why": why, "cluster": cluster, "cluster_size": int(sizes_K[cluster])})
        info = {
            **selection.info,
            "cluster_sizes": sizes_K.tolist(),
            "cluster_chosen": taken_K.tolist(),
            "kmeans": clustering_info,
        }
        if decisions := selection.info.get("auto", {}) | clustering_info.pop("auto", {}):
            info["auto"] = decisions
        return dataclasses.replace(selection, reasons=tuple(reasons), info=info)
